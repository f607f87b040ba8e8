"""Training on whole volumes, with augmentation in three dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from harness.core.errors import CellError
from harness.core.registry import RECIPES
from harness.core.targets import Target
from harness.core.types import Array
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Batch, Outputs, Recipe, adam, mean_loss
from harness.recipes.supervised import supervised

__all__ = ["augmented", "volume_recipe"]


@RECIPES.register("volumes", source="the MS disability study, Section II")
def volume_recipe(
    *,
    epochs: Annotated[int, Ge(1)] = 300,
    batch_size: Annotated[int, Ge(1)] = 70,
    lr: Annotated[float, Gt(0), Le(1)] = 5e-5,
    weight_decay: Annotated[float, Ge(0)] = 0.01,
    balance: str = "",
    flips: bool = True,
    quarter_turns: bool = True,
    noise: Annotated[float, Ge(0)] = 0.2,
    angle_deg: Annotated[float, Ge(0), Le(180)] = 30.0,
    scaling: Annotated[float, Ge(0), Lt(1)] = 0.1,
    select: Literal["auc", "validation_loss", "last"] = "auc",
    patience: Annotated[int, Ge(0)] = 50,
    threads: Annotated[int, Ge(1)] = 1,
) -> Recipe:
    """AdamW with random flips, quarter turns, noise, rotations and scaling of whole volumes.

    The losses are those of each kind of target, weighted by the weights of targets and
    samples.

    Parameters
    ----------
    epochs : largest number of passes over the training samples
    batch_size : samples per step
    lr : learning rate
    weight_decay : weight decay of AdamW
    balance : binary or classes target whose classes are sampled equally often, with
        replacement; if empty, every sample is visited once per epoch
    flips : flip each axis with probability one half
    quarter_turns : turn by 0, 90, 180 or 270° in the plane of the first two axes that are
        equally long; without such axes, there are no turns
    noise : standard deviation of Gaussian noise, for images in [0, 1]
    angle_deg : largest rotation around each axis
    scaling : largest relative change of size
    select : weights to keep: those of the epoch with the highest area under the ROC curve
        of the first binary target in the validation samples, those with the lowest
        ``validation_loss``, or those of the ``last`` epoch
    patience : epochs without improvement after which training ends; 0 for never
    threads : number of CPU threads of torch; results depend on it

    Notes
    -----
    The publication states no number of epochs. Selection by AUC is described there; among
    epochs with equal AUC, the first is kept.
    """
    fitness = {
        "auc": _auc,
        "validation_loss": lambda batches, targets: -mean_loss(default_loss, batches, targets),
        "last": None,
    }[select]
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=partial(adam, name="adamw", lr=lr, weight_decay=weight_decay),
        loss=default_loss,
        augment=partial(
            augmented, flips=flips, quarter_turns=quarter_turns, noise=noise, angle_deg=angle_deg, scaling=scaling
        ),
        sample=supervised(balance=balance).sample,
        select=fitness,
        threads=threads,
        patience=patience,
    )


def _auc(batches: Iterable[tuple[Outputs, Batch]], targets: Sequence[Target]) -> float:
    """Area under the ROC curve of the first binary target."""
    names = [target.name for target in targets if target.kind == "binary"]
    if not names:
        raise CellError("recipe.select=auc needs a binary target, got none; set recipe.select=validation_loss")
    found = [(outputs[names[0]][:, 0].cpu(), batch.targets[names[0]].cpu()) for outputs, batch in batches]
    labels = torch.cat([label for _, label in found]).numpy()
    if len(set(labels.tolist())) < 2:
        raise CellError(
            "recipe.select=auc needs both classes in the validation samples, got one; set recipe.select=validation_loss"
        )
    return float(roc_auc_score(labels, torch.cat([output for output, _ in found]).numpy()))


def augmented(
    rng: np.random.Generator,
    batch: Batch,
    *,
    flips: bool,
    quarter_turns: bool,
    noise: float,
    angle_deg: float,
    scaling: float,
) -> Batch:
    """Augment the volumes of a batch; scalar inputs and targets are unchanged.

    Parameters
    ----------
    rng : random generator
    batch : inputs (N, L, X, Y, Z) and any scalars (N, C)
    flips, quarter_turns, noise, angle_deg, scaling : see :func:`volume_recipe`

    Returns
    -------
    Batch
        Volumes of the same shape; linear interpolation, zeros outside of the field of view.
    """
    images = batch.inputs[0]
    if flips:
        images = _flipped(rng.random((len(images), 3)) < 0.5, images)
    plane = _square_plane(images.shape[2:])
    if quarter_turns and plane:
        turns = rng.integers(0, 4, len(images))
        images = torch.stack([torch.rot90(one, int(turn), plane) for one, turn in zip(images, turns, strict=True)])
    if angle_deg or scaling:
        angles = np.deg2rad(rng.uniform(-angle_deg, angle_deg, (len(images), 3)))
        sizes = rng.uniform(1 - scaling, 1 + scaling, len(images))
        images = _moved(images, _matrices(angles, sizes, images.shape[2:]))
    if noise:
        images = images + noise * torch.from_numpy(rng.standard_normal(images.shape, np.float32)).to(images.device)
    return Batch((images, *batch.inputs[1:]), batch.targets, batch.weights)


def _flipped(chosen: Array, images: torch.Tensor) -> torch.Tensor:
    """Flip the axes of each image, (N, 3) bool."""
    flipped = [
        torch.flip(one, [int(axis) + 1 for axis in np.flatnonzero(axes)]) if axes.any() else one
        for one, axes in zip(images, chosen, strict=True)
    ]
    return torch.stack(flipped)


def _square_plane(shape: Sequence[int]) -> tuple[int, int] | None:
    """The first two equally long axes of an image (L, X, Y, Z), or ``None``."""
    for first in range(3):
        for second in range(first + 1, 3):
            if shape[first] == shape[second]:
                return first + 1, second + 1
    return None


def _matrices(angles: Array, sizes: Array, shape: Sequence[int]) -> torch.Tensor:
    """(N, 3, 4) matrices for ``affine_grid``, which orders coordinates from the last axis (Z)."""
    found = np.zeros((len(angles), 3, 4), np.float32)
    sides = np.array(shape, float)[::-1]
    for index, (rotation, size) in enumerate(zip(angles, sizes, strict=True)):
        turn = np.eye(3)
        for axis, angle in enumerate(rotation):
            one, (first, second) = np.eye(3), [other for other in range(3) if other != axis]
            one[first, first] = one[second, second] = math.cos(angle)
            one[first, second], one[second, first] = -math.sin(angle), math.sin(angle)
            turn = turn @ one
        # Coordinates are normalised to [-1, 1] along each axis.
        found[index, :, :3] = turn / size * sides[None, :] / sides[:, None]
    return torch.from_numpy(found)


def _moved(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
