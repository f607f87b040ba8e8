"""The probe stage: metrics that run the network again, on changed images.

Samples are probed with the networks that explained them: validation or test samples of a
fold with the network of that fold, samples of a fixed test set with the average of all
networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from harness.attribution.batches import independent_size
from harness.core.errors import RequestError
from harness.core.explanations import Explanation
from harness.core.seeding import generator
from harness.core.task import Task
from harness.core.types import Array, NetworkSpec, Prediction, Sample
from harness.metrics.metric_inputs import Predict
from harness.metrics.register import inputs_of
from harness.pipeline.explain import Explained, classified_target, explained_inputs
from harness.pipeline.networks import OWN, Member, Scalar, Scalars, device, scalars_of, tensor_of
from harness.pipeline.score import Values, add, inputs_of_map

__all__ = ["Sizes", "predict_function", "probe_sample"]

Sizes = dict[tuple[str, tuple[int, ...]], int]
"""Batch size of the networks for a scalar and a shape of the image, which is found for one sample and used for all."""


def probe_sample(
    task: Task,
    spec: NetworkSpec,
    members: Sequence[Member],
    sample: Sample,
    explanation: Explanation,
    explained: Explained,
    prediction: Prediction,
    labels: Sequence[str],
    into: Values,
    *,
    channels: tuple[str, ...],
    seed: int,
    batch_size: int,
    classes: Mapping[str, int],
    sizes: Sizes | None = None,
) -> None:
    """Add the values of some probe metrics of one sample.

    Parameters
    ----------
    members : the networks that explained the sample
    explanation, explained : the explanation and its maps
    classes : predicted class of each classes target, whose logit is explained
    batch_size : number of images in a forward pass
    sizes : receives the batch sizes of these networks, and is read for further samples
    """
    sizes = {} if sizes is None else sizes
    scalars = scalars_of(explanation.of, spec, members[0].network)
    if explanation.of.endswith(OWN):  # one map, whose channels explain scalars of their own
        scalars = (Scalar(explanation.of),)
    for scalar, one in zip(scalars, explained.maps, strict=True):
        of = scalar
        if explanation.of.endswith(OWN):
            target = classified_target(scalar.name, spec) or spec.targets[0]
            of = Scalar(target.name, target, -1 if target.classes else 0)  # one function stands for all channels
        predict, image = predict_function(
            members, spec, sample, of, batch_size=batch_size, classes=classes, sizes=sizes
        )
        if one.shape[1:] != image.shape[1 : one.ndim]:
            raise RequestError(
                f"probe metrics need maps in the space of the network's input, got maps of {one.shape[1:]} and "
                f"images of {image.shape[1:]} for {sample.id}"
            )
        logit = _predict_logit(of, predict, members, spec, sample, batch_size, sizes)
        given = inputs_of_map(
            spec,
            sample,
            scalar.name,
            one,
            prediction,
            channels=channels,
            rng=generator(seed, "metrics", sample.id, "probe"),
            image=image,
            predict=predict,
            image_channels=[name for place in spec.explained for name in spec.inputs[place].channels],
            predict_logit=logit,
        )
        # Metrics of a binary target have no value for scalars of other targets.
        own = [one for one in labels if logit is not None or "predict_logit" not in inputs_of(task.metrics[one])]
        for label in own:
            add(into, task, label, sample, "targets", scalar.name, given)


def _predict_logit(
    scalar: Scalar,
    predict: Predict,
    members: Sequence[Member],
    spec: NetworkSpec,
    sample: Sample,
    batch_size: int,
    sizes: Sizes,
) -> Predict | None:
    """The logit of the binary target of a scalar as a function of the image; ``None`` if it has none."""
    target = classified_target(scalar.name, spec)
    if target is None or target.kind != "binary":
        return None
    if scalar.target == target:
        return predict
    logit = Scalar(target.name, target)
    return predict_function(members, spec, sample, logit, batch_size=batch_size, sizes=sizes)[0]


def predict_function(
    members: Sequence[Member],
    spec: NetworkSpec,
    sample: Sample,
    scalar: Scalar,
    *,
    batch_size: int,
    classes: Mapping[str, int] | None = None,
    sizes: Sizes | None = None,
) -> tuple[Predict, Array]:
    """The explained scalar as a function of the image, and the image.

    Parameters
    ----------
    members : the networks, whose outputs are averaged
    spec : specification of the networks
    sample : a sample with one item; inputs that are not explained (such as age) are fixed
    scalar : the explained scalar
    classes : predicted class of each classes target, whose logit is explained
    sizes : receives the batch size of these networks, and is read for further samples

    Returns
    -------
    predict : callable
        Maps (B, C, X, Y, Z) images to (B,) float64. Images are computed one by one if the
        outputs of a network depend on other images in the batch. An image for which several
        metrics ask, such as the unchanged one, is computed once.
    image : (C, X, Y, Z) float32
        All explained channels; Z is 1 for pictures.

    Raises
    ------
    RequestError
        If the sample has several items, its explained inputs have different spaces, or the
        adapters of an ensemble give different explained arrays.
    """
    explained = spec.explained
    pairs = explained_inputs(members[0], sample)
    shapes = {pairs[place][0].shape[2:] for place in explained}
    if len(pairs[0][0]) != 1 or len(shapes) != 1:
        raise RequestError(
            f"probe metrics need one item per sample and explained inputs of one shape, got {len(pairs[0][0])} items "
            f"of {', '.join(map(str, sorted(shapes)))} for {sample.id}"
        )
    for member in members[1:]:
        others = explained_inputs(member, sample)
        if any(not np.array_equal(pairs[place][0], others[place][0]) for place in explained):
            raise RequestError(
                f"probe metrics change one image for all networks of an ensemble, but the adapters of "
                f"{len(members)} networks scale {sample.id} differently; use an adapter whose `explained` arrays do "
                "not depend on the training samples, or remove the probe metrics"
            )
    widths = [pairs[place][0].shape[1] for place in explained]
    item = np.concatenate([pairs[place][0][0] for place in explained])
    wrapped = [_scalars(member, spec, sample, scalar, classes or {}) for member in members]

    def inputs_of(images: Array) -> tuple[torch.Tensor, ...]:
        chunk = images.reshape(len(images), *item.shape)
        return torch.split(torch.from_numpy(chunk).to(device()), widths, dim=1)

    found = {} if sizes is None else sizes
    key = (scalar.name, item.shape)

    def size() -> int:
        if key not in found:
            one = inputs_of(item[None])
            found[key] = min(independent_size(network, one, batch_size, copies=batch_size) for network in wrapped)
        return found[key]

    known: dict[bytes, float] = {}

    def predict(images: Array) -> Array:
        images = np.ascontiguousarray(images, np.float32)
        keys = [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in known:
                new.setdefault(key, place)
        if new:
            known.update(zip(new, computed(images[list(new.values())]), strict=True))
        return np.array([known[key] for key in keys], np.float64)

    @torch.inference_mode()
    def computed(images: Array) -> Array:
        values = []
        most = size() if len(images) > 1 else 1
        for start in range(0, len(images), most):
            inputs = inputs_of(images[start : start + most])
            outputs = [network(*inputs)[:, 0].double().cpu().numpy() for network in wrapped]
            values.append(np.mean(outputs, axis=0))
        joined: Array = np.concatenate(values)
        return joined

    return predict, item if item.ndim == 4 else item[..., None]


def _scalars(member: Member, spec: NetworkSpec, sample: Sample, scalar: Scalar, classes: Mapping[str, int]) -> Scalars:
    pairs = explained_inputs(member, sample)
    added = [pairs[place][1] for place in spec.explained]
    return Scalars(
        member.network,
        spec,
        [scalar],
        fixed={
            place: tensor_of(pairs[place][0]).to(device()) for place in range(len(pairs)) if place not in spec.explained
        },
        added=[None if one is None else tensor_of(one).to(device()) for one in added]
        if any(one is not None for one in added)
        else (),
        classes=classes,
    ).eval()
