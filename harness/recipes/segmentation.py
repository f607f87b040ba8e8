"""Segmentation with voxelwise cross-entropy and geometric augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch.nn import functional

from harness.core.registry import RECIPES
from harness.core.targets import Target
from harness.core.types import Array
from harness.recipes.augmentation import draw_poses, transform
from harness.recipes.recipe import Batch, Outputs, Recipe, adam, refuse_other_kinds, unchanged

__all__ = ["mean_iou", "segmentation"]


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
    """Voxelwise cross-entropy with geometric augmentation and the published defaults.

    Parameters
    ----------
    epochs : number of passes over the training slices
    batch_size : slices per step
    optimiser : optimiser, Adam or AdamW
    lr : learning rate
    weight_decay : weight decay of the optimiser
    augmentation : ``published`` draws one of the 398 published copies of a slice,
        ``joint`` combines flip, rotation and shift, ``none`` disables augmentation
    max_angle_deg : largest rotation in degrees
    max_shift_px : largest shift along each axis in voxels
    copies : number of augmented copies of each slice per epoch
    balance : sample as many slices without lesions as slices with lesions
    lesion_weight : weight of the lesion class in the cross-entropy
    select : weights to keep: those of the epoch with the best ``mean_iou`` of both
        classes on the validation samples, or those of the ``last`` epoch
    threads : number of CPU threads of torch; results depend on it

    Notes
    -----
    The original code stores 398 copies of each slice. We draw as many transforms anew
    in every epoch, i.e. we sample from the same set with replacement.
    Weights of samples multiply the losses of their slices; the mean is over all
    voxels, each with the weight of its class.
    """
    weights = torch.tensor([1.0, lesion_weight])

    def loss(outputs: Outputs, batch: Batch, targets: Sequence[Target]) -> torch.Tensor:
        refuse_other_kinds("segmentation", "mask", targets)
        (target,) = targets
        output, labels = outputs[target.name], batch.targets[target.name]
        of_class = weights.to(output.device)
        if target.name not in batch.weights:
            return target.loss_weight * functional.cross_entropy(output, labels, weight=of_class)
        voxels = functional.cross_entropy(output, labels, weight=of_class, reduction="none")
        summed = (voxels.flatten(1).sum(1) * batch.weights[target.name]).sum()
        return target.loss_weight * summed / of_class[labels].sum()

    def augment(rng: np.random.Generator, batch: Batch) -> Batch:
        (inputs,), ((name, labels),) = batch.inputs, batch.targets.items()
        pose = draw_poses(rng, len(inputs), kind=augmentation, max_angle_deg=max_angle_deg, max_shift_px=max_shift_px)
        moved, moved_labels = transform(pose, inputs, labels)
        return Batch((moved,), {name: moved_labels}, batch.weights)

    def sample(rng: np.random.Generator, targets: Mapping[str, Array]) -> Array:
        (labels,) = targets.values()
        return _draw_items(rng, labels, copies=copies, balance=balance)

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimiser=partial(adam, name=optimiser, lr=lr, weight_decay=weight_decay),
        loss=loss,
        augment=unchanged if augmentation == "none" else augment,
        sample=sample,
        select=mean_iou if select == "mean_iou" else None,
        threads=threads,
    )


def mean_iou(batches: Iterable[tuple[Outputs, Batch]], targets: Sequence[Target]) -> float:
    """Mean intersection over union of both classes, over all voxels of all items.

    Parameters
    ----------
    batches : logits of the mask, (N, 2, *space), and batches with labels (N, *space), 0 or 1

    Returns
    -------
    float
        In [0, 1]; a class that occurs in neither prediction nor labels counts as 1.
    """
    name = targets[0].name
    shared, either = [0, 0], [0, 0]
    for outputs, batch in batches:
        predicted, labels = outputs[name].argmax(1), batch.targets[name]
        for label in (0, 1):
            found, true = predicted == label, labels == label
            shared[label] += int((found & true).sum())
            either[label] += int((found | true).sum())
    return float(np.mean([both / union if union else 1.0 for both, union in zip(shared, either, strict=True)]))


def _draw_items(rng: np.random.Generator, labels: Array, *, copies: int, balance: bool) -> Array:
    """Item indices of one epoch: each item ``copies`` times, in random order.

    With ``balance``, there are as many slices without lesions as with lesions.
    """
    lesion = np.asarray(labels.reshape(len(labels), -1).any(1))
    positive, negative = np.flatnonzero(lesion), np.flatnonzero(~lesion)
    if balance and len(positive) and len(negative):
        negative = rng.choice(negative, len(positive), replace=len(negative) < len(positive))
    return rng.permutation(np.tile(np.concatenate([positive, negative]), copies))
