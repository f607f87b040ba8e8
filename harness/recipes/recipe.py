"""What a recipe is: everything about a training but the network and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from harness.core.errors import CellError
from harness.core.targets import Kind, Target
from harness.core.types import Array

__all__ = ["Batch", "Outputs", "Recipe", "adam", "refuse_other_kinds", "unchanged"]

Outputs = Mapping[str, torch.Tensor]
"""Target → output of its head, (N, width, *space)."""


@dataclass(frozen=True)
class Batch:
    """Items that a network sees at once.

    Parameters
    ----------
    inputs : (N, C, *space) float32 each
    targets : target → (N, …), int64 labels or float32 values
    weights : target → (N,) float32, weight of each item in the loss; 1 where absent
    """

    inputs: tuple[torch.Tensor, ...]
    targets: Mapping[str, torch.Tensor] = field(default_factory=dict)
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            tuple(one.to(device) for one in self.inputs),
            {name: one.to(device) for name, one in self.targets.items()},
            {name: one.to(device) for name, one in self.weights.items()},
        )


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    epochs : passes over the training items
    batch_size : items per step
    optimiser : parameters → optimiser
    loss : (outputs, batch, targets) → scalar
    augment : (generator, batch) → changed batch
    sample : (generator, target → array over all items) → item indices of one epoch, in order
    select : (outputs, targets) of all validation items → number; the weights of
        the epoch with the highest are kept. ``None`` keeps the last epoch's
    threads : CPU threads of torch; part of the identity, because results differ
    lr_factor : epoch, from 1 → what the step size is multiplied with
    """

    epochs: int
    batch_size: int
    optimiser: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    loss: Callable[[Outputs, Batch, Sequence[Target]], torch.Tensor]
    augment: Callable[[np.random.Generator, Batch], Batch]
    sample: Callable[[np.random.Generator, Mapping[str, Array]], Array]
    select: Callable[[Outputs, Batch, Sequence[Target]], float] | None
    threads: int = 1
    lr_factor: Callable[[int], float] = lambda epoch: 1.0


def adam(parameters: list[torch.nn.Parameter], *, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam or AdamW in one fused step.

    Parameters
    ----------
    name : ``"adam"`` or ``"adamw"``
    """
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    optimiser: torch.optim.Optimizer = kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return optimiser


def unchanged(rng: np.random.Generator, batch: Batch) -> Batch:
    """No augmentation."""
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
