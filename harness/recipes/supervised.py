"""Training on targets of any kind, with the default loss of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from harness.core.errors import OutOfRange, UnknownName
from harness.core.registry import RECIPES
from harness.core.types import Array
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Recipe, adam, mean_loss, unchanged

__all__ = ["supervised"]


@RECIPES.register("supervised", source="the standard loss of each kind of target: MSE, cross-entropy")
def supervised(
    *,
    epochs: Annotated[int, Ge(1)] = 30,
    batch_size: Annotated[int, Ge(1)] = 16,
    optimiser: Literal["adam", "adamw"] = "adam",
    lr: Annotated[float, Gt(0), Le(1)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    balance: str = "",
    select: Literal["validation_loss", "last"] = "validation_loss",
    threads: Annotated[int, Ge(1)] = 1,
) -> Recipe:
    """Squared error for numbers and cross-entropy for classes and masks, summed over targets.

    Parameters
    ----------
    epochs : number of passes over the training items
    batch_size : items per step
    optimiser : optimiser, Adam or AdamW
    lr : learning rate
    weight_decay : weight decay of the optimiser
    balance : binary or classes target whose classes are sampled equally often, with
        replacement; if empty, every item is visited once per epoch
    select : weights to keep: those of the epoch with the lowest ``validation_loss``, or
        those of the ``last`` epoch
    threads : number of CPU threads of torch; results depend on it

    Notes
    -----
    Losses are multiplied by the weights of targets and samples
    (:class:`harness.core.targets.Target`, :class:`harness.core.types.Sample`).
    """

    def sample(rng: np.random.Generator, targets: Mapping[str, Array]) -> Array:
        count = len(next(iter(targets.values())))
        if not balance:
            return rng.permutation(count)
        if balance not in targets:
            raise UnknownName("target (recipe.balance)", balance, targets)
        labels = targets[balance]
        if labels.ndim != 1 or not np.all(labels == np.round(labels)):
            what = "a mask" if labels.ndim != 1 else "a number"
            raise OutOfRange(f"recipe.balance must name a binary or classes target, got {balance}, which is {what}")
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        chances = 1.0 / counts[classes]
        return rng.choice(count, count, p=chances / chances.sum())

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=partial(adam, name=optimiser, lr=lr, weight_decay=weight_decay),
        loss=default_loss,
        augment=unchanged,
        sample=sample,
        select=(lambda batches, targets: -mean_loss(default_loss, batches, targets))
        if select == "validation_loss"
        else None,
        threads=threads,
    )
