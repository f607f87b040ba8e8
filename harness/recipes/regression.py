"""Regression of one or several numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch.nn import functional

from harness.core.registry import RECIPES
from harness.core.targets import Target
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Batch, Outputs, Recipe, adam, mean_loss, refuse_other_kinds, unchanged

__all__ = ["regression"]


@RECIPES.register("regression", source="the lesion-symptom CNN study, Section II")
def regression(
    *,
    epochs: Annotated[int, Ge(1)] = 70,
    batch_size: Annotated[int, Ge(1)] = 4,
    optimiser: Literal["adam", "adamw"] = "adamw",
    lr: Annotated[float, Gt(0), Le(1)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.01,
    lr_drop_epoch: Annotated[int, Ge(0)] = 0,
    lr_drop_factor: Annotated[float, Gt(0), Le(1)] = 0.1,
    select: Literal["validation_loss", "last"] = "last",
    threads: Annotated[int, Ge(1)] = 1,
) -> Recipe:
    """Mean squared error over all scores, with the defaults of the CNN study.

    Parameters
    ----------
    epochs : number of passes over the training samples
    batch_size : samples per step
    optimiser : optimiser, Adam or AdamW
    lr : learning rate
    weight_decay : weight decay of the optimiser
    lr_drop_epoch : last epoch with the full learning rate; 0 for a constant rate
    lr_drop_factor : factor of the learning rate after ``lr_drop_epoch``
    select : weights to keep: those of the ``last`` epoch, which needs no validation
        samples, or those of the epoch with the lowest ``validation_loss``
    threads : number of CPU threads of torch; results depend on it

    Notes
    -----
    The mean is over samples and scores. Weights of targets and of samples multiply
    the squared errors.
    """

    def loss(outputs: Outputs, batch: Batch, targets: Sequence[Target]) -> torch.Tensor:
        refuse_other_kinds("regression", "number", targets)
        if batch.weights or any(target.loss_weight != 1 for target in targets):
            return default_loss(outputs, batch, targets) / len(targets)
        return functional.mse_loss(_joined(outputs, targets), _joined(batch.targets, targets))

    def fitness(batches: Iterable[tuple[Outputs, Batch]], targets: Sequence[Target]) -> float:
        return -mean_loss(loss, batches, targets)

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=partial(adam, name=optimiser, lr=lr, weight_decay=weight_decay),
        loss=loss,
        augment=unchanged,
        sample=lambda rng, targets: rng.permutation(len(next(iter(targets.values())))),
        select=fitness if select == "validation_loss" else None,
        threads=threads,
        lr_factor=lambda epoch: lr_drop_factor if 0 < lr_drop_epoch < epoch else 1.0,
    )


def _joined(values: Outputs, targets: Sequence[Target]) -> torch.Tensor:
    """Concatenate the values of all targets, (N, K)."""
    return torch.cat([values[target.name].reshape(-1, 1) for target in targets], dim=1)
