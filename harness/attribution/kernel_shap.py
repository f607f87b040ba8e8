"""KernelSHAP of segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from captum.attr import KernelShap
from torch import nn

from harness.attribution.batches import BatchSize, Inputs, Maps, independent_size
from harness.attribution.fills import Fill, filled
from harness.attribution.lime_segments import Segmentation, segments_of
from harness.core.errors import OutOfRange
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of

__all__ = ["kernel_shap"]


@ATTRIBUTIONS.register("kernel_shap", source="Lundberg & Lee 2017, arXiv:1705.07874; captum")
def kernel_shap(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    seed: int,
    segmentation: Segmentation = "slic",
    segments: Annotated[int, Gt(0)] = 50,
    compactness: Annotated[float, Gt(0)] = 10.0,
    per_segment: Annotated[int, Gt(1)] = 10,
    fill: Fill = "black",
    batch_size: BatchSize = 64,
) -> Maps:
    """KernelSHAP: approximate Shapley values of segments for the output, by captum.

    Parameters
    ----------
    model, inputs, targets, seed : see :mod:`harness.attribution`; images in [0, 1]. Segments
        are shared by all inputs
    segmentation : ``slic``, ``quickshift``, ``felzenszwalb``, or ``squares`` for a regular grid
    segments : wanted number of segments
    compactness : weight of the distance in space against that in colour, for ``slic``
    per_segment : images with hidden segments for each segment
    fill : what hidden segments are replaced by: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background`` (the median of its brightest 5 %)
    batch_size : maximum number of images in a forward pass

    Returns
    -------
    list
        Shapley value of its segment for each voxel, divided by the number of its values in
        all channels, so that a map sums to f(input) − f(fill) approximately.

    Raises
    ------
    OutOfRange
        If inputs differ in space, or the segmentation does not support the image.
    """
    spaces = sorted({tuple(x.shape[2:]) for x in inputs})
    if len(spaces) != 1 or not 2 <= len(spaces[0]) <= 3:
        listed = ", ".join(map(str, spaces))
        raise OutOfRange(f"KernelSHAP needs inputs of one shape, with two or three axes, got {listed}")
    method = KernelShap(model)
    rows: list[list[Inputs]] = [[] for _ in targets]
    for item in range(len(inputs[0])):
        own = tuple(x[item : item + 1] for x in inputs)
        image = torch.cat(own, dim=1)[0].cpu().numpy()
        labels = segments_of(image, segmentation, count=segments, compactness=compactness)
        hidden = torch.split(torch.from_numpy(filled(image, fill))[None], [x.shape[1] for x in inputs], dim=1)
        masks = tuple(torch.from_numpy(labels).to(x.device)[None, None].expand_as(x) for x in own)
        sizes = torch.from_numpy(np.bincount(labels.ravel())[labels] * len(image))
        for number, target in enumerate(targets):
            torch.manual_seed(seed_of(seed, "kernel_shap", item, target))
            found = method.attribute(
                own,
                baselines=tuple(one.to(x) for one, x in zip(hidden, own, strict=True)),
                target=target,
                feature_mask=masks,
                n_samples=per_segment * (int(labels.max()) + 1),
                perturbations_per_eval=independent_size(model, own, batch_size, copies=2),
            )
            rows[number].append(tuple(one / sizes.to(one) for one in found))
    return [tuple(torch.cat(parts) for parts in zip(*of_target, strict=True)) for of_target in rows]
