"""Voxelwise overlap and volume of predicted masks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from harness.core.errors import RequestError, UnknownName
from harness.core.types import Array, Source
from harness.metrics.register import metric

__all__ = [
    "auc",
    "dice",
    "predicted_volume_mm3",
    "true_volume_mm3",
    "volumetric_similarity",
    "voxel_precision",
    "voxel_sensitivity",
]

NAN = float("nan")
TAHA = Source(
    authors="Taha & Hanbury",
    year=2015,
    title="Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool",
    doi="10.1186/s12880-015-0068-x",
)
DICE = Source(authors="Dice", year=1945, doi="10.2307/1932409")


@metric("dice", source=DICE, direction="higher", range=(0, 1), empty="both masks empty: NaN; one of them: 0")
def dice(prediction: Array, target: Array) -> float:
    """Dice coefficient, 2·TP / (2·TP + FP + FN).

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if both masks are empty, 0 if only one is.
    """
    tp, fp, fn, _ = _confusion(prediction, target)
    return _ratio(2 * tp, 2 * tp + fp + fn)


@metric(
    "volumetric_similarity",
    source=TAHA,
    direction="higher",
    range=(0, 1),
    empty="both masks empty: NaN; one of them: 0",
)
def volumetric_similarity(prediction: Array, target: Array) -> float:
    """Volumetric similarity, 1 − |FN − FP| / (2·TP + FP + FN).

    Masks of equal volume have the value 1, wherever they are.

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if both masks are empty, 0 if only one is.
    """
    tp, fp, fn, _ = _confusion(prediction, target)
    return 1 - _ratio(abs(fn - fp), 2 * tp + fp + fn)


@metric(
    "auc",
    source=TAHA,
    direction="higher",
    range=(0, 1),
    empty="target empty or full: NaN; prediction empty: 0.5",
    chance=0.5,
)
def auc(
    prediction: Array,
    target: Array,
    probability: Array | None = None,
    brain: Array | None = None,
    *,
    soft: bool = False,
    inside: Literal["volume", "brain"] = "volume",
) -> float:
    """Area under the ROC curve over voxels.

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool
    probability : (X, Y, Z) float in [0, 1], required if ``soft``
    brain : (X, Y, Z) bool, required if ``inside="brain"``
    soft : rank voxels by probability; otherwise the predicted mask is the only threshold
        and the area is (TPR − FPR + 1) / 2
    inside : voxels that are used, those of the whole volume or of the brain

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty or full. 0.5 for an empty prediction, unless
        ``soft``.

    Raises
    ------
    RequestError
        If an option requires an array that is missing.

    Notes
    -----
    For a sparse mask, the area without ``soft`` is about (1 + TPR) / 2 and not comparable
    with the soft area. Areas over the volume and over the brain are not comparable
    either, because voxels of air are easy to classify.
    """
    where = _where(inside, brain)
    if soft:
        if probability is None:
            raise RequestError("auc with soft=true needs `probability`, which is missing; pass it, or set soft=false")
        return _soft_auc(probability[where], target[where])
    tp, fp, fn, tn = _confusion(prediction[where], target[where])
    return (_ratio(tp, tp + fn) - _ratio(fp, fp + tn) + 1) / 2


@metric("voxel_sensitivity", source=TAHA, direction="higher", range=(0, 1), empty="target empty: NaN")
def voxel_sensitivity(prediction: Array, target: Array) -> float:
    """Share of true voxels that are predicted, TP / (TP + FN).

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty.
    """
    tp, _, fn, _ = _confusion(prediction, target)
    return _ratio(tp, tp + fn)


@metric(
    "voxel_precision",
    source=TAHA,
    direction="higher",
    range=(0, 1),
    empty="prediction empty: NaN; target empty: 0",
    chance="prevalence",
)
def voxel_precision(prediction: Array, target: Array) -> float:
    """Share of predicted voxels that are true, TP / (TP + FP).

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if the prediction is empty.
    """
    tp, fp, _, _ = _confusion(prediction, target)
    return _ratio(tp, tp + fp)


@metric("true_volume_mm3", source="", direction="none", range=(0, float("inf")), empty="0")
def true_volume_mm3(target: Array, spacing_mm: tuple[float, float, float]) -> float:
    """True lesion volume in mm³.

    Parameters
    ----------
    target : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z

    Returns
    -------
    float
        0 for an empty mask.
    """
    return _volume_mm3(target, spacing_mm)


@metric("predicted_volume_mm3", source="", direction="none", range=(0, float("inf")), empty="0")
def predicted_volume_mm3(prediction: Array, spacing_mm: tuple[float, float, float]) -> float:
    """Predicted lesion volume in mm³.

    Parameters
    ----------
    prediction : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z

    Returns
    -------
    float
        0 for an empty mask.
    """
    return _volume_mm3(prediction, spacing_mm)


def _confusion(prediction: Array, target: Array) -> tuple[int, int, int, int]:
    tp = int(np.count_nonzero(prediction & target))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(target)) - tp
    return tp, fp, fn, target.size - tp - fp - fn


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else NAN


def _volume_mm3(mask: Array, spacing_mm: tuple[float, float, float]) -> float:
    return float(np.count_nonzero(mask) * np.prod(spacing_mm))


def _where(inside: str, brain: Array | None) -> Any:
    if inside == "volume":
        return ...
    if inside != "brain":
        raise UnknownName("value of inside", inside, ("brain", "volume"))
    if brain is None:
        raise RequestError("auc with inside=brain needs `brain`, which is missing; pass a mask, or set inside=volume")
    return brain


def _soft_auc(probability: Array, target: Array) -> float:
    """Area under the ROC curve by the trapezoidal rule, over all distinct probabilities.

    Equals scikit-learn's, which is five times slower and slow to import.
    """
    if target.all() or not target.any():
        return NAN
    order = np.argsort(probability, axis=None)[::-1]  # the order of ties does not matter
    ranked, true = probability.ravel()[order], target.ravel()[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    hits = np.cumsum(true)[last]
    alarms = np.flatnonzero(last) + 1 - hits
    area = np.trapezoid(np.append(0, hits), np.append(0, alarms))
    return float(area / (float(hits[-1]) * float(alarms[-1])))
