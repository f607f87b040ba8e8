"""Methods that take channels away and see what the output does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import factorial

import torch
from torch import Tensor, nn

from harness.attribution.batches import Baseline, BatchSize, Inputs, Maps, baselines
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
    """Loss of output where a whole channel is replaced by the baseline.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    baseline : see :func:`harness.attribution.batches.baselines`

    Returns
    -------
    list
        f(input) − f(input without the channel), the same at all voxels of the
        channel. Channels of several inputs are replaced one at a time as well.

    Notes
    -----
    Two channels that say the same hide each other; see :func:`channel_shapley`.
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

    The players are the channels (of all inputs), at most eight of them. The
    value of a coalition is the output where every other channel is replaced by
    the baseline. 2**channels forward passes an item serve all outputs.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    baseline : see :func:`harness.attribution.batches.baselines`

    Returns
    -------
    list
        The channel's value, the same at all its voxels. The channels' values
        sum to f(input) − f(baseline).

    Raises
    ------
    OutOfRange
        With more than eight channels.
    """
    players = sum(x.shape[1] for x in inputs)
    if players > _MOST_CHANNELS:
        raise OutOfRange(
            f"`channels <= {_MOST_CHANNELS}` must hold for channel_shapley (2**channels forward passes), "
            f"got {players}; take channel_ablation"
        )
    kept = torch.tensor(list(product([False, True], repeat=players)))
    values = _values(model, inputs, baselines(inputs, baseline), kept, batch_size)
    weights = _shapley_weights(kept).to(values)
    return [_constant(values[:, :, target] @ weights, inputs) for target in targets]


def _shapley_weights(kept: Tensor) -> Tensor:
    """Weight of each coalition's value in each player's Shapley value.

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
    # A coalition of s players counts with the orders in which the player joins last (s - 1 before it),
    # or, negative, with those in which it would join next (s before it).
    joined = [[orders[sum(row) - 1] if inside else -orders[sum(row)] for inside in row] for row in kept.tolist()]
    return torch.tensor(joined, dtype=torch.float64)


@torch.no_grad()
def _values(model: nn.Module, inputs: Inputs, base: Inputs, kept: Tensor, batch_size: int) -> Tensor:
    """Outputs (N, coalitions, K) where only the kept channels show the input.

    Parameters
    ----------
    kept : (coalitions, channels of all inputs) bool
    """
    of_items = []
    for item in range(len(inputs[0])):
        outputs = []
        for rows in torch.split(kept, batch_size):
            shares = torch.split(rows, [x.shape[1] for x in inputs], dim=1)
            mixed = (
                torch.where(show.to(x.device).reshape(*show.shape, *[1] * (x.ndim - 2)), x[item], b[item])
                for show, x, b in zip(shares, inputs, base, strict=True)
            )
            outputs.append(model(*mixed))
        of_items.append(torch.cat(outputs))
    return torch.stack(of_items)


def _constant(values: Tensor, inputs: Inputs) -> Inputs:
    """One value (N, channels of all inputs) per channel → maps that are constant in space."""
    shares = torch.split(values, [x.shape[1] for x in inputs], dim=1)
    return tuple(
        share.reshape(*share.shape, *[1] * (x.ndim - 2)).expand_as(x).to(x.dtype).clone()
        for share, x in zip(shares, inputs, strict=True)
    )
