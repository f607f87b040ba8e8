"""How well a score is predicted: R² with its ceiling, correlation, error and calibration.

The scores of a subject are metrics that only hand them on, so that pooled metrics
can read them as columns. Subjects without one of the two values are left out.
"""

from __future__ import annotations

import numpy as np

from harness.core.types import Array, Source
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = [
    "bias",
    "clean_score",
    "mse",
    "predicted_score",
    "r2",
    "r2_ceiling",
    "r2_clean",
    "r_squared",
    "r_squared_p",
    "slope",
    "target_score",
]

NAN = float("nan")
INFINITY = float("inf")
COX = Source(
    authors="Cox",
    year=1958,
    title="Two further applications of a model for binary regression",
    doi="10.1093/biomet/45.3-4.562",
)

_NOISY = ("target_score", "predicted_score")
_CLEAN = ("clean_score", "predicted_score")
_FEW = "fewer than two subjects, or all scores equal: NaN"


@metric("target_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="cannot be")
def target_score(target_score: float) -> float:
    """The score to predict.

    Parameters
    ----------
    target_score : number

    Returns
    -------
    float
        The same.
    """
    return target_score


@metric("predicted_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="cannot be")
def predicted_score(predicted_score: float) -> float:
    """The score that the model predicts.

    Parameters
    ----------
    predicted_score : number

    Returns
    -------
    float
        The same.
    """
    return predicted_score


@metric("clean_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="real score: NaN")
def clean_score(clean_score: float | None = None) -> float:
    """The score that the image determines, before noise was added.

    Parameters
    ----------
    clean_score : number, on the scale of the target score; absent for real scores

    Returns
    -------
    float
        The same; NaN if there is none.
    """
    return NAN if clean_score is None else clean_score


@metric(
    "r2",
    source="coefficient of determination as in scikit-learn",
    direction="higher",
    range=(-INFINITY, 1),
    level="pool",
    empty=_FEW,
    chance=0.0,
    ceiling="r2_ceiling",
    needs=_NOISY,
)
def r2(columns: Columns) -> float:
    """R² of the predicted scores.

    1 − Σ (target − predicted)² / Σ (target − mean)². Predicting the mean scores 0.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``; with ``clean_score`` there
        is a ceiling

    Returns
    -------
    float
        At most 1; NaN with fewer than two subjects or when all targets are equal.
        Below −1 the prediction is on another scale than the target: a predictor
        with the target's mean, no larger variance and no negative correlation
        cannot score less.
    """
    return _r2(*complete(columns, _NOISY))


@metric(
    "r2_ceiling",
    source="the best affine function of the noise-free score",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="real scores, fewer than two subjects, or all scores equal: NaN",
    needs=("clean_score", "target_score"),
)
def r2_ceiling(columns: Columns) -> float:
    """The highest R² that a prediction from the image can have, noise being what it is.

    The squared correlation of the clean with the target scores.

    Parameters
    ----------
    columns : with ``target_score`` and, if it is known, ``clean_score``

    Returns
    -------
    float
        In [0, 1]; NaN where the clean score is not known. 1 without noise.

    Notes
    -----
    For these subjects and this noise. With noise of the score's own SD in the
    proportion a it is about (1−a)² / ((1−a)² + a²). A prediction can exceed it by
    luck, by the little that noise and image happen to share.
    """
    if "clean_score" not in columns:
        return NAN
    return _r(*complete(columns, ("clean_score", "target_score"))) ** 2


@metric(
    "r2_clean",
    source="coefficient of determination as in scikit-learn",
    direction="higher",
    range=(-INFINITY, 1),
    level="pool",
    empty=_FEW,
    chance=0.0,
    needs=_CLEAN,
)
def r2_clean(columns: Columns) -> float:
    """R² of the predicted against the noise-free scores.

    Parameters
    ----------
    columns : with ``clean_score`` and ``predicted_score``

    Returns
    -------
    float
        See :func:`r2`; its ceiling is 1, whatever the noise.
    """
    return _r2(*complete(columns, _CLEAN))


@metric(
    "r_squared",
    source="squared Pearson correlation",
    direction="higher",
    range=(0, 1),
    level="pool",
    empty=_FEW,
    chance=0.0,
    ceiling="r2_ceiling",
    needs=_NOISY,
)
def r_squared(columns: Columns) -> float:
    """Squared correlation of predicted and target scores, blind to scale and offset.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In [0, 1]; NaN with fewer than two subjects or when all predictions or all
        targets are equal. A reversed prediction scores as high as a right one.

    Notes
    -----
    Without skill its mean over n subjects is 1 / (n − 1), not 0.
    """
    return _r(*complete(columns, _NOISY)) ** 2


@metric(
    "r_squared_p",
    source="t test of Pearson's correlation as in scipy",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="fewer than three subjects, or all scores equal: NaN",
    needs=_NOISY,
    interval=False,
)
def r_squared_p(columns: Columns) -> float:
    """p of the correlation of predicted and target scores, two-sided.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In [0, 1]; NaN with fewer than three subjects or when all are equal.
    """
    target, predicted = complete(columns, _NOISY)
    if len(target) < 3 or _even(target) or _even(predicted):
        return NAN
    from scipy.stats import pearsonr  # half a second to import, in every process that scores

    return float(pearsonr(target, predicted).pvalue)


@metric(
    "mse",
    source="mean squared error",
    direction="lower",
    range=(0, INFINITY),
    level="pool",
    empty="no subject: NaN",
    needs=_NOISY,
)
def mse(columns: Columns) -> float:
    """Mean squared error of the predicted scores.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In squared units of the score, at least 0; NaN without subjects.
    """
    target, predicted = complete(columns, _NOISY)
    return float(np.mean((target - predicted) ** 2)) if len(target) else NAN


@metric(
    "slope",
    source=COX,
    direction="none",
    range=(-INFINITY, INFINITY),
    level="pool",
    empty="fewer than two subjects, or all predictions equal: NaN",
    needs=_NOISY,
)
def slope(columns: Columns) -> float:
    """Calibration slope: of the target scores on the predicted ones, by least squares.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        1 is calibrated; below 1 the predictions spread too far, above 1 too little;
        NaN with fewer than two subjects or when all predictions are equal.
    """
    target, predicted = complete(columns, _NOISY)
    if len(target) < 2 or _even(predicted):
        return NAN
    centred = predicted - predicted.mean()
    return float(centred @ target / (centred @ centred))


@metric(
    "bias",
    source=COX,
    direction="zero",
    range=(-INFINITY, INFINITY),
    level="pool",
    empty="no subject: NaN",
    needs=_NOISY,
)
def bias(columns: Columns) -> float:
    """Mean of predicted − target score.

    Parameters
    ----------
    columns : with ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In units of the score; NaN without subjects.
    """
    target, predicted = complete(columns, _NOISY)
    return float(np.mean(predicted - target)) if len(target) else NAN


def _r2(target: Array, predicted: Array) -> float:
    if len(target) < 2 or _even(target):
        return NAN
    return float(1 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean()) ** 2))


def _r(first: Array, second: Array) -> float:
    if len(first) < 2 or _even(first) or _even(second):
        return NAN
    return float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))


def _even(values: Array) -> bool:
    # A mean of equal numbers may differ from them in the last bit, which is no variation.
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0))
