"""Targets: what a study predicts.

A target has a *kind*, which determines the output channels of the network, what is
stored of a prediction, and when a model counts as collapsed:

=========  =====================  ================================================
kind       network output         stored for each sample
=========  =====================  ================================================
mask       2 channels per voxel   ``probability``, an image (made by the adapter)
number     1 value                ``value``, on the scale of the target
binary     1 logit                ``logit``, ``probability``
classes    1 logit per class      ``logits``, ``probabilities``
=========  =====================  ================================================

The default loss of each kind is in :mod:`harness.recipes.losses`. Metrics declare
the kinds that they support (:func:`harness.metrics.register.metric`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from harness.core.errors import OutOfRange

__all__ = ["KINDS", "Kind", "Target", "as_array", "is_collapsed", "kept", "logistic", "softmax"]

Array = npt.NDArray[Any]
Kind = Literal["mask", "number", "binary", "classes"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SPREAD = 1e-6  # predictions are constant if they differ by less than this, relative to the truth


@dataclass(frozen=True)
class Target:
    """A quantity that is predicted for every sample.

    Parameters
    ----------
    name : unique within a cohort, e.g. ``"age"``
    kind : ``"mask"``, ``"number"``, ``"binary"`` or ``"classes"``
    classes : names of the classes of a ``"classes"`` target, in the order of the
        logits; empty for other kinds
    loss_weight : weight of this target in the total loss

    Raises
    ------
    OutOfRange
        If a ``"classes"`` target has fewer than two classes, if another kind has
        classes, or if the weight is not positive and finite.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OutOfRange(f"kind of target {self.name} must be one of {', '.join(KINDS)}, got {self.kind!r}")
        different = len(set(self.classes)) == len(self.classes)
        fits = len(self.classes) >= 2 and different if self.kind == "classes" else not self.classes
        if not fits:
            raise OutOfRange(
                f"a target of kind classes must name two different classes or more, and other kinds must name none; "
                f"got {self.classes} for {self.name} ({self.kind})"
            )
        if not 0 < self.loss_weight < math.inf:
            raise OutOfRange(f"`0 < loss_weight < inf` must hold for target {self.name}, got {self.loss_weight}")

    @property
    def width(self) -> int:
        """Number of output channels of the network for this target."""
        return {"mask": 2, "number": 1, "binary": 1, "classes": len(self.classes)}[self.kind]

    @property
    def of_sample(self) -> bool:
        """Whether the target is one value per sample rather than an image."""
        return self.kind != "mask"


def kept(target: Target, output: Array) -> dict[str, Array]:
    """Convert the network output for one sample to what is stored.

    Parameters
    ----------
    target : a target with one value per sample
    output : (width,) output channels of the target

    Returns
    -------
    dict
        For a number, ``value`` () float64. For a binary target, ``logit`` and
        ``probability`` () float64. For classes, ``logits`` and ``probabilities`` (K,)
        float64.

    Raises
    ------
    OutOfRange
        If the target is a mask, or the output does not have the width of the target.
    """
    values = np.asarray(output, np.float64)
    if not target.of_sample or values.shape != (target.width,):
        raise OutOfRange(
            f"output of {target.name} ({target.kind}) must be one value per sample, of the width of its head "
            f"({target.width}), got shape {values.shape}"
        )
    if target.kind == "number":
        return {"value": values[0]}
    if target.kind == "binary":
        return {"logit": values[0], "probability": logistic(values[0])}
    return {"logits": values, "probabilities": softmax(values)}


def as_array(target: Target, value: float) -> Array:
    """Convert the value of one item to a training target, (1,): int64 for classes, otherwise float32."""
    return np.array([value], np.int64 if target.kind == "classes" else np.float32)


def logistic(logit: Array) -> Array:
    """1 / (1 + exp(−logit)) without overflow, of any shape."""
    values = np.asarray(logit, np.float64)
    small = np.exp(-np.abs(values))  # at most 1
    return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small))


def softmax(logits: Array) -> Array:
    """Softmax over the last axis without overflow."""
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def is_collapsed(target: Target, predictions: Sequence[Mapping[str, Array]], truths: Sequence[float]) -> bool:
    """Whether a model predicts the same for all samples although the truth differs.

    Parameters
    ----------
    target : a target with one value per sample
    predictions : stored prediction of each sample, see :func:`kept`
    truths : true value, or index of the true class, of each sample

    Returns
    -------
    bool
        False for fewer than two samples.
    """
    if len(predictions) < 2:
        return False
    key = {"number": "value", "binary": "logit", "classes": "logits"}[target.kind]
    values = np.array([one[key] for one in predictions])
    spread, truth = float(np.max(np.ptp(values, axis=0))), float(np.ptp(truths))
    return truth > 0 and spread <= _SPREAD * (truth if target.kind == "number" else 1.0)
