"""Recipes: how a network is trained. A recipe is a value; the loop is elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch.nn import functional

from harness.core.registry import RECIPES
from harness.core.types import Array
from harness.recipes.augmentation import draw_poses, transform

__all__ = ["Recipe", "mean_iou", "regression", "segmentation"]

Augment = Callable[[np.random.Generator, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    epochs : passes over the training items
    batch_size : items per step
    optimiser : parameters → optimiser
    loss : (outputs, targets) → scalar
    augment : (generator, inputs, targets) → changed inputs, targets
    sample : (generator, targets) → item indices of one epoch, in order
    select : (outputs, targets) of all validation items → number; the weights of
        the epoch with the highest are kept. ``None`` keeps the last epoch's.
    threads : CPU threads of torch; part of the identity, because results differ
    lr_factor : epoch, from 1 → what the step size is multiplied with
    """

    epochs: int
    batch_size: int
    optimiser: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    augment: Augment
    sample: Callable[[np.random.Generator, Array], Array]
    select: Callable[[torch.Tensor, torch.Tensor], float] | None
    threads: int = 1
    lr_factor: Callable[[int], float] = lambda epoch: 1.0


@RECIPES.register("segmentation", source="Rashid et al. 2021 (DEEPMIR), public code")
def segmentation(
    *,
    epochs: Annotated[int, Ge(1)] = 30,
    batch_size: Annotated[int, Ge(1)] = 32,
    optimiser: Literal["adam", "adamw"] = "adam",
    lr: Annotated[float, Gt(0), Le(1)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    augmentation: Literal["published", "joint", "none"] = "published",
    max_angle_deg: Annotated[float, Ge(0), Le(180)] = 16.0,
    max_shift_px: Annotated[float, Ge(0)] = 45.0,
    copies: Annotated[int, Ge(1)] = 398,
    balance: bool = True,
    lesion_weight: Annotated[float, Gt(0)] = 1.0,
    select: Literal["mean_iou", "last"] = "mean_iou",
    threads: Annotated[int, Ge(1)] = 1,
) -> Recipe:
    """Voxelwise cross-entropy with augmentation; the defaults are the published ones.

    Parameters
    ----------
    copies : augmented copies of every slice in one epoch
    balance : draw as many background slices as slices with a lesion
    lesion_weight : weight of the lesion class in the cross-entropy
    select : ``mean_iou`` keeps the epoch with the best mean IoU of both classes
        over the validation items

    Notes
    -----
    The original stores 398 copies of each slice; we draw that many poses anew
    in every epoch, which is the same set sampled with replacement.
    """
    weights = torch.tensor([1.0, lesion_weight])

    def optimise(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        kind = _uncompiled(optimiser)
        return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets, weight=weights.to(outputs.device))

    def augment(
        rng: np.random.Generator, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if augmentation == "none":
            return inputs, targets
        pose = draw_poses(rng, len(inputs), kind=augmentation, max_angle_deg=max_angle_deg, max_shift_px=max_shift_px)
        return transform(pose, inputs, targets)

    def sample(rng: np.random.Generator, targets: Array) -> Array:
        return _draw_items(rng, targets, copies=copies, balance=balance)

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=optimise,
        loss=loss,
        augment=augment,
        sample=sample,
        select=mean_iou if select == "mean_iou" else None,
        threads=threads,
    )


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
    """Mean squared error over all scores; the defaults are those of the CNN study.

    Parameters
    ----------
    lr_drop_epoch : last epoch with the full step size; 0 keeps it to the end
    lr_drop_factor : what the step is multiplied with afterwards
    select : ``last`` keeps the last epoch, and no subject need validate;
        ``validation_loss`` the epoch with the lowest error on validation subjects
    """

    def optimise(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        kind = _uncompiled(optimiser)
        return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def fitness(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return -float(functional.mse_loss(outputs, targets))

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=optimise,
        loss=functional.mse_loss,
        augment=lambda rng, inputs, targets: (inputs, targets),
        sample=lambda rng, targets: rng.permutation(len(targets)),
        select=fitness if select == "validation_loss" else None,
        threads=threads,
        lr_factor=lambda epoch: lr_drop_factor if 0 < lr_drop_epoch < epoch else 1.0,
    )


def mean_iou(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean over both classes of the intersection over union of all voxels together.

    Parameters
    ----------
    outputs : (N, 2, *space) logits
    targets : (N, *space) labels 0, 1

    Returns
    -------
    float
        in [0, 1]; a class absent from both counts as 1
    """
    predicted = outputs.argmax(1)
    ious = []
    for label in (0, 1):
        ours, theirs = predicted == label, targets == label
        union = int((ours | theirs).sum())
        ious.append(int((ours & theirs).sum()) / union if union else 1.0)
    return float(np.mean(ious))


@cache
def _uncompiled(name: Literal["adam", "adamw"]) -> type[torch.optim.Adam]:
    """Adam or AdamW without torch's wrappers that import its compiler only to say that they are not to be compiled.

    That takes more than a second in every process that trains, and changes nothing.
    """
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    plain = {method: inspect.unwrap(getattr(kind, method)) for method in ("add_param_group", "zero_grad", "step")}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(plain["step"])})


def _draw_items(rng: np.random.Generator, targets: Array, *, copies: int, balance: bool) -> Array:
    """Item indices of one epoch: every item ``copies`` times, shuffled.

    With ``balance``, slices without a lesion are drawn as often as slices with one.
    """
    lesion = np.asarray(targets.reshape(len(targets), -1).any(1))
    positive, negative = np.flatnonzero(lesion), np.flatnonzero(~lesion)
    if balance and len(positive) and len(negative):
        negative = rng.choice(negative, len(positive), replace=len(negative) < len(positive))
    return rng.permutation(np.tile(np.concatenate([positive, negative]), copies))
