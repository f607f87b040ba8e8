"""Attribution methods that replace input channels by a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import factorial

import torch
from torch import Tensor, nn

from harness.attribution.batches import Baseline, BatchSize, Inputs, Maps, baselines, independent_size
from harness.core.errors import OutOfRange
from harness.core.registry import ATTRIBUTIONS

__all__ = ["channel_ablation", "channel_shapley"]

_MOST_CHANNELS = 8


@ATTRIBUTIONS.register("channel_ablation", zero_if_ignored=True)
def channel_ablation(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    baseline: Baseline = 0.0,
    batch_size: BatchSize = 8,
) -> Maps:
    """Channel ablation: decrease of the output if a whole channel is replaced by the baseline.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    baseline : baseline of the input: one number, or one number per channel
    batch_size : maximum number of items in a forward pass

    Returns
    -------
    list
        f(input) − f(input without the channel), the same at all voxels of a channel. If
        there are several inputs, their channels are replaced one at a time.

    Notes
    -----
    Channels with the same information can compensate for each other, so that each has a
    low value; see :func:`channel_shapley`.
    """
    players = sum(x.shape[1] for x in inputs)
    kept = torch.cat([torch.ones(1, players, dtype=torch.bool), ~torch.eye(players, dtype=torch.bool)])
    values = _values(model, inputs, baselines(inputs, baseline), kept, batch_size)
    return [_constant(values[:, :1, target] - values[:, 1:, target], inputs) for target in targets]


@ATTRIBUTIONS.register(
    "channel_shapley",
    source="Shapley 1953, doi:10.1515/9781400881970-018",
    zero_if_ignored=True,
    complete="channels",
)
def channel_shapley(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    baseline: Baseline = 0.0,
    batch_size: BatchSize = 8,
) -> Maps:
    """Exact Shapley value of each input channel for the output.

    The players are the channels of all inputs, at most eight. The value of a coalition is
    the output if all other channels are replaced by the baseline. This takes 2**channels
    forward passes per item, for all outputs together.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    baseline : baseline of the input: one number, or one number per channel
    batch_size : maximum number of items in a forward pass

    Returns
    -------
    list
        The Shapley value of each channel, the same at all voxels of a channel. The values
        of all channels sum to f(input) − f(baseline).

    Raises
    ------
    OutOfRange
        If there are more than eight channels.
    """
    players = sum(x.shape[1] for x in inputs)
    if players > _MOST_CHANNELS:
        raise OutOfRange(
            f"`channels <= {_MOST_CHANNELS}` must hold for channel_shapley (2**channels forward passes), "
            f"got {players}; choose channel_ablation"
        )
    kept = torch.tensor(list(product([False, True], repeat=players)))
    values = _values(model, inputs, baselines(inputs, baseline), kept, batch_size)
    weights = _shapley_weights(kept).to(values)
    return [_constant(values[:, :, target] @ weights, inputs) for target in targets]


def _shapley_weights(kept: Tensor) -> Tensor:
    """Weight of the value of each coalition in the Shapley value of each player.

    Parameters
    ----------
    kept : (2**P, P) bool, all coalitions of P players

    Returns
    -------
    Tensor
        (2**P, P) float64
    """
    players = kept.shape[1]
    orders = [factorial(size) * factorial(players - size - 1) / factorial(players) for size in range(players)]
    # The weight of a coalition of s players is the share of orderings in which the player joins last
    # (s - 1 before it) or, with negative sign, would join next (s before it).
    joined = [[orders[sum(row) - 1] if inside else -orders[sum(row)] for inside in row] for row in kept.tolist()]
    return torch.tensor(joined, dtype=torch.float64)


@torch.no_grad()
def _values(model: nn.Module, inputs: Inputs, base: Inputs, kept: Tensor, batch_size: int) -> Tensor:
    """Outputs, (N, coalitions, K), with all channels that are not kept replaced by the baseline.

    Parameters
    ----------
    kept : (coalitions, channels of all inputs) bool
    """
    size = independent_size(model, inputs, batch_size, copies=len(kept))
    of_items = []
    for item in range(len(inputs[0])):
        outputs = []
        for rows in torch.split(kept, size):
            shares = torch.split(rows, [x.shape[1] for x in inputs], dim=1)
            mixed = (
                torch.where(show.to(x.device).reshape(*show.shape, *[1] * (x.ndim - 2)), x[item], b[item])
                for show, x, b in zip(shares, inputs, base, strict=True)
            )
            outputs.append(model(*mixed))
        of_items.append(torch.cat(outputs))
    return torch.stack(of_items)


def _constant(values: Tensor, inputs: Inputs) -> Inputs:
    """Convert one value per channel, (N, channels of all inputs), to spatially constant maps."""
    shares = torch.split(values, [x.shape[1] for x in inputs], dim=1)
    return tuple(
        share.reshape(*share.shape, *[1] * (x.ndim - 2)).expand_as(x).to(x.dtype).clone()
        for share, x in zip(shares, inputs, strict=True)
    )
