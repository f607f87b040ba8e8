"""The :class:`Recipe`: everything that defines a training except the network and the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.core.errors import CellError
from harness.core.targets import Kind, Target
from harness.core.types import Array

__all__ = ["Batch", "Loss", "Outputs", "Recipe", "adam", "mean_loss", "refuse_other_kinds", "unchanged"]

Outputs = Mapping[str, torch.Tensor]
"""Target → network output, (N, width, *space)."""


@dataclass(frozen=True)
class Batch:
    """A batch of items.

    Parameters
    ----------
    inputs : network inputs, (N, C, *space) float32 each
    targets : target → (N, …), int64 labels or float32 values
    weights : target → (N,) float32, weight of each item in the loss; 1 if absent
    """

    inputs: tuple[torch.Tensor, ...]
    targets: Mapping[str, torch.Tensor] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device."""
        return Batch(
            tuple(one.to(device) for one in self.inputs),
            {name: one.to(device) for name, one in self.targets.items()},
            {name: one.to(device) for name, one in self.weights.items()},
        )


Loss = Callable[[Outputs, Batch, Sequence[Target]], torch.Tensor]
"""Function of outputs, batch and targets that returns a scalar."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    epochs : number of passes over the training items
    batch_size : items per step
    optimiser : creates the optimiser for a list of parameters
    loss : computes a scalar from outputs, batch and targets
    augment : returns an augmented batch, given a generator and a batch
    sample : returns the item indices of one epoch in order, given a generator and the
        targets of all items
    select : computes a validation score from the outputs and batches of all validation
        items, in order; the weights of the epoch with the highest score are kept. It
        should sum up batch by batch, as :func:`mean_loss` does, since a list of all
        batches may need much memory. ``None`` keeps the weights of the last epoch
    threads : number of CPU threads of torch; results depend on it, so it is part of the
        identity
    lr_factor : returns the factor of the learning rate, given the epoch, counted from 1
    patience : epochs without a better validation score after which training ends; 0 for
        never
    """

    epochs: int
    batch_size: int
    optimiser: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    loss: Loss
    augment: Callable[[np.random.Generator, Batch], Batch]
    sample: Callable[[np.random.Generator, Mapping[str, Array]], Array]
    select: Callable[[Iterable[tuple[Outputs, Batch]], Sequence[Target]], float] | None
    threads: int = 1
    lr_factor: Callable[[int], float] = lambda epoch: 1.0
    patience: int = 0


def adam(parameters: list[torch.nn.Parameter], *, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam or AdamW, in the fused implementation.

    Parameters
    ----------
    name : ``"adam"`` or ``"adamw"``
    lr : learning rate
    weight_decay : weight decay
    """
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    optimiser: torch.optim.Optimizer = kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return optimiser


def mean_loss(loss: Loss, batches: Iterable[tuple[Outputs, Batch]], targets: Sequence[Target]) -> float:
    """Loss of all items, computed batch by batch, so that the outputs of one batch are in memory.

    Parameters
    ----------
    loss : a mean over items, whatever their number; each item may have a weight
    batches : outputs and batches, of any sizes, at least one
    targets : targets of the network

    Notes
    -----
    A loss that is not a mean over items, such as the Dice loss of a batch or a
    cross-entropy divided by the sum of class weights, is not the mean of its values in
    batches. A recipe with such a loss must select by a value that it can sum up, as
    :func:`harness.recipes.segmentation.mean_iou` does.
    """
    total, count = 0.0, 0
    for outputs, batch in batches:
        size = len(next(iter(batch.targets.values())))
        total, count = total + size * float(loss(outputs, batch, targets)), count + size
    return total / count


def unchanged(rng: np.random.Generator, batch: Batch) -> Batch:
    """Return the batch unchanged, for recipes without augmentation."""
    return batch


def refuse_other_kinds(recipe: str, kind: Kind, targets: Sequence[Target]) -> None:
    """Refuse targets that a recipe's loss is not made for.

    Raises
    ------
    CellError
        If a target is of another kind; all of them are named.
    """
    others = [f"{target.name} ({target.kind})" for target in targets if target.kind != kind]
    if others:
        raise CellError(
            f"recipe {recipe} trains targets of kind {kind}, got {', '.join(others)}; use recipe=supervised"
        )
