"""Controls: maps that do not depend on the model, as a reference for attribution methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.attribution.batches import Inputs, Maps
from harness.core.errors import HarnessError, RequestError
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of

__all__ = [
    "centre_square",
    "constant",
    "edge",
    "input_itself",
    "mean_of_channels",
    "one_channel",
    "random_map",
    "weights",
]

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


@ATTRIBUTIONS.register("constant", control=True)
def constant(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """One at every voxel: the whole image as explanation.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    return [tuple(torch.ones_like(x) for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("centre_square", control=True)
def centre_square(
    model: nn.Module, inputs: Inputs, targets: Sequence[int], *, size: Annotated[int, Gt(0)] = 32
) -> Maps:
    """One in the centre of the image and zero elsewhere.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    size : edge length of the centre in voxels; longer than an axis for all of it
    """
    return [tuple(_centre(x, size) for x in inputs) for _ in targets]


def _centre(x: Tensor, size: int) -> Tensor:
    found = torch.zeros_like(x)
    inside = [slice(max((side - size) // 2, 0), max((side - size) // 2, 0) + size) for side in x.shape[2:]]
    found[(slice(None), slice(None), *inside)] = 1
    return found


@ATTRIBUTIONS.register("edge", source=_EDGE, control=True, shows_input=True)
def edge(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """Edge detector: magnitude of the spatial gradient of each channel, per voxel.

    The gradient is computed by central differences; axes of one voxel are ignored.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    return [tuple(_edges(x) for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("input", control=True, shows_input=True)
def input_itself(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """The input itself, which shows the metrics of image intensity alone.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    return [tuple(x.clone() for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("one_channel", control=True, shows_input=True, of_channel="channel")
def one_channel(
    model: nn.Module, inputs: Inputs, targets: Sequence[int], *, channel: Annotated[int, Ge(0)] = 0
) -> Maps:
    """One channel of the input, as the map of every channel.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    channel : index of the channel, counted over all inputs

    Raises
    ------
    RequestError
        If there is no such channel.
    """
    channels = _channels(inputs)
    if channel >= channels.shape[1]:
        raise RequestError(f"`channel < {channels.shape[1]}` must hold for these inputs, got {channel}")
    one = channels[:, channel : channel + 1]
    return [tuple(one.expand_as(x).clone() for x in inputs) for _ in targets]


@ATTRIBUTIONS.register("mean_of_channels", control=True, shows_input=True)
def mean_of_channels(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Maps:
    """Mean over all channels of all inputs, as the map of every channel.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    """
    mean = _channels(inputs).mean(dim=1, keepdim=True)
    return [tuple(mean.expand_as(x).clone() for x in inputs) for _ in targets]


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


def _channels(inputs: Inputs) -> Tensor:
    """All channels of all inputs, (N, C, *space).

    Raises
    ------
    RequestError
        If the inputs differ in space.
    """
    shapes = sorted({tuple(x.shape[2:]) for x in inputs})
    if len(shapes) != 1:
        raise RequestError(f"this control needs inputs of one shape, got {', '.join(map(str, shapes))}")
    return torch.cat(list(inputs), dim=1)


def _edges(x: Tensor) -> Tensor:
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    if not axes:
        return torch.zeros_like(x)
    slopes = torch.gradient(x, dim=axes)
    return torch.stack([slope**2 for slope in slopes]).sum(0).sqrt()
