"""Controls: maps that do not depend on the model, as a reference for attribution methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.attribution.batches import Inputs, Maps
from harness.core.errors import HarnessError
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of

__all__ = ["edge", "input_itself", "random_map", "weights"]

_EDGE = "Adebayo et al. 2018, arXiv:1810.03292"


@ATTRIBUTIONS.register("random", control=True)
def random_map(model: nn.Module, inputs: Inputs, targets: Sequence[int], *, seed: int) -> Maps:
    """Independent standard normal random numbers, which show the chance level of metrics.

    Parameters
    ----------
    model, inputs, targets, seed : see :mod:`harness.attribution`; each target has its own
        random stream
    """
    maps: Maps = []
    for target in targets:
        rng = torch.Generator().manual_seed(seed_of(seed, "random", target))
        maps.append(tuple(torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device) for x in inputs))
    return maps


@ATTRIBUTIONS.register("edge", source=_EDGE, control=True)
def edge(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """Edge detector: magnitude of the spatial gradient of each channel, per voxel.

    The gradient is computed by central differences; axes of one voxel are ignored.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    return [tuple(_edges(x) for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("input", control=True)
def input_itself(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """The input itself, which shows the metrics of image intensity alone.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    return [tuple(x.clone() for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("weights", needs=("weights",), of_linear="weights")
def weights(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """Map of the model itself: weights of a linear model, a back-projection, or a statistic per voxel.

    Parameters
    ----------
    model : contains a module with ``weight_map()``, which returns (K, C, *space)
    inputs, targets : see :mod:`harness.attribution`; the map is the same for all items

    Raises
    ------
    HarnessError
        If no module of the model has the method ``weight_map``.
    """
    owner: Any = next((module for module in model.modules() if hasattr(module, "weight_map")), None)
    if owner is None:
        raise HarnessError(
            "the attribution weights needs a model with a method `weight_map`; choose occlusion or "
            "integrated_gradients for a network"
        )
    own = owner.weight_map()
    return [tuple(own[target].to(x).expand_as(x).clone() for x in inputs) for target in targets]


def _edges(x: Tensor) -> Tensor:
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    if not axes:
        return torch.zeros_like(x)
    slopes = torch.gradient(x, dim=axes)
    return torch.stack([slope**2 for slope in slopes]).sum(0).sqrt()
