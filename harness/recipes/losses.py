"""The default loss of any targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.core.targets import Target
from harness.models.heads import HEADS
from harness.recipes.recipe import Batch, Outputs

__all__ = ["default_loss"]


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
        loss = HEADS[target.kind].loss(outputs[target.name], batch.targets[target.name])
        if target.name in batch.weights:
            loss = loss * batch.weights[target.name]
        total = total + target.loss_weight * loss.mean()
    return total
