"""Recipe for histological pictures: supervised training with stain augmentation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from skimage.color import hed_from_rgb, rgb_from_hed

from harness.core.registry import RECIPES
from harness.recipes.recipe import Batch, Recipe
from harness.recipes.supervised import supervised

__all__ = ["augmented", "stained_pictures"]

_DARKEST = 1e-6  # smallest light, so that the optical density is finite


@RECIPES.register("stained_pictures", source="Tellez et al. 2018, doi:10.1109/TMI.2018.2820199 (H&E augmentation)")
def stained_pictures(
    *,
    epochs: Annotated[int, Ge(1)] = 30,
    batch_size: Annotated[int, Ge(1)] = 64,
    optimiser: Literal["adam", "adamw"] = "adam",
    lr: Annotated[float, Gt(0), Le(1)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    balance: str = "",
    select: Literal["validation_loss", "last"] = "validation_loss",
    flips: bool = True,
    quarter_turns: bool = True,
    stain: Annotated[float, Ge(0), Le(1)] = 0.05,
    threads: Annotated[int, Ge(1)] = 1,
) -> Recipe:
    """Cross-entropy with random flips, quarter turns and stains.

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
    flips : flip each axis with a probability of one half
    quarter_turns : turn square pictures by a random multiple of 90°
    stain : largest relative change of the amount of each stain (haematoxylin, eosin, residual)
        and largest shift, as a share of an optical density of 1; 0 for no change
    threads : number of CPU threads of torch; results depend on it
    """
    plain = supervised(
        epochs=epochs, batch_size=batch_size, optimiser=optimiser, lr=lr, weight_decay=weight_decay, balance=balance,
        select=select, threads=threads,
    )  # fmt: skip
    return replace(plain, augment=partial(augmented, flips=flips, quarter_turns=quarter_turns, stain=stain))


def augmented(rng: np.random.Generator, batch: Batch, *, flips: bool, quarter_turns: bool, stain: float) -> Batch:
    """Augment the RGB pictures of a batch; scalar inputs and targets are unchanged.

    Parameters
    ----------
    rng : random generator
    batch : inputs (N, 3, H, W) in [0, 1] and any scalars (N, C)
    flips, quarter_turns, stain : see :func:`stained_pictures`
    """
    images = batch.inputs[0]
    count = len(images)
    if flips:
        for axis, chosen in zip((2, 3), rng.random((2, count)) < 0.5, strict=True):
            images = torch.where(_for_items(chosen, images), images.flip(axis), images)
    if quarter_turns and images.shape[2] == images.shape[3]:
        turns = rng.integers(0, 4, count)
        images = torch.stack([torch.rot90(one, int(turn), (1, 2)) for one, turn in zip(images, turns, strict=True)])
    if stain:
        factors, shifts = 1 + rng.uniform(-stain, stain, (count, 3)), rng.uniform(-stain, stain, (count, 3))
        images = _restained(images, torch.from_numpy(factors), torch.from_numpy(shifts))
    return Batch((images, *batch.inputs[1:]), batch.targets, batch.weights)


def _for_items(chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(chosen).to(images.device)[:, None, None, None]


def _restained(images: torch.Tensor, factors: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Change the amounts of the stains of each image: amount · factor + shift.

    Parameters
    ----------
    images : (N, 3, H, W) in [0, 1]
    factors, shifts : (N, 3), by stain
    """
    to_stains = torch.from_numpy(np.array(hed_from_rgb)).to(images)
    to_density = torch.from_numpy(np.array(rgb_from_hed)).to(images)
    density = -torch.log10(images.clamp(min=_DARKEST))
    amounts = torch.einsum("nchw,cs->nshw", density, to_stains)
    amounts = amounts * factors.to(images)[..., None, None] + shifts.to(images)[..., None, None]
    light: torch.Tensor = 10 ** -torch.einsum("nshw,sc->nchw", amounts, to_density)
    return light.clamp(0, 1)
