"""The default loss of each kind of target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from harness.core.targets import Kind, Target
from harness.recipes.recipe import Batch, Outputs

__all__ = ["LOSSES", "default_loss"]


def _mask(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Voxelwise cross-entropy, averaged within each item."""
    return functional.cross_entropy(output, target, reduction="none").flatten(1).mean(1)


def _number(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output[:, 0] - target) ** 2


def _binary(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")


def _classes(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, target, reduction="none")


LOSSES: Mapping[Kind, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mask": _mask,
    "number": _number,
    "binary": _binary,
    "classes": _classes,
}
"""Kind → function of output, (N, width, *space), and target, (N, …), that returns the loss of each item, (N,)."""


def default_loss(outputs: Outputs, batch: Batch, targets: Sequence[Target]) -> torch.Tensor:
    """Sum of the default losses of all targets, each a weighted mean over items.

    Parameters
    ----------
    outputs : outputs by target
    batch : batch with the targets. Its weights multiply the losses of the items, whose
        sum is divided by the number of items, not by the sum of the weights

    Returns
    -------
    Tensor
        () scalar
    """
    total = torch.zeros((), device=next(iter(outputs.values())).device)
    for target in targets:
        loss = LOSSES[target.kind](outputs[target.name], batch.targets[target.name])
        if target.name in batch.weights:
            loss = loss * batch.weights[target.name]
        total = total + target.loss_weight * loss.mean()
    return total
