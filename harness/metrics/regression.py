"""Metrics of regression: R² with its ceiling, correlation, error and calibration.

The scores of a subject are metrics themselves, so that pooled metrics can use them as
columns. Subjects with a missing value are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.core.errors import UnknownName
from harness.core.types import Array, Source
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = [
    "bias",
    "clean_score",
    "covariate",
    "mse",
    "mse_of_mean",
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


@metric("target_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="never undefined")
def target_score(target_score: float) -> float:
    """True score of the subject.

    Parameters
    ----------
    target_score : number

    Returns
    -------
    float
        The score.
    """
    return target_score


@metric("covariate", source="", direction="none", range=(-np.inf, np.inf), empty="no number: NaN")
def covariate(covariates: Mapping[str, float | str | None], *, name: str = "") -> float:
    """Covariate of the sample, such as a clinical score, for pooled metrics.

    Parameters
    ----------
    covariates : covariates by name
    name : name of the covariate

    Returns
    -------
    float
        The number; NaN if it is missing or a text.

    Raises
    ------
    UnknownName
        If the sample has no such covariate.
    """
    if name not in covariates:
        raise UnknownName("covariate", name, covariates)
    value = covariates[name]
    return NAN if value is None or isinstance(value, str) else float(value)


@metric("predicted_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="never undefined")
def predicted_score(predicted_score: float) -> float:
    """Predicted score of the subject.

    Parameters
    ----------
    predicted_score : number

    Returns
    -------
    float
        The score.
    """
    return predicted_score


@metric("clean_score", source="", direction="none", range=(-INFINITY, INFINITY), empty="measured score: NaN")
def clean_score(clean_score: float | None = None) -> float:
    """Simulated score of the subject without noise.

    Parameters
    ----------
    clean_score : number on the scale of the true score; absent for measured scores

    Returns
    -------
    float
        The score; NaN if there is none.
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
    fault=(-1.0, "scale fault: R² below -1 cannot come from overfitting alone"),
)
def r2(columns: Columns) -> float:
    """Coefficient of determination (R²) of the predicted scores.

    This is 1 − Σ (target − predicted)² / Σ (target − mean)². Predicting the mean gives 0.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``; the ceiling also needs
        ``clean_score``

    Returns
    -------
    float
        At most 1; NaN with fewer than two subjects or if all targets are equal. Values
        below −1 show that the predictions have a different scale: they are impossible for
        predictions with the mean of the targets, no larger variance, and a non-negative
        correlation.
    """
    return _r2(*complete(columns, _NOISY))


@metric(
    "r2_ceiling",
    source="the best affine function of the noise-free score",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="measured scores, fewer than two subjects, or all scores equal: NaN",
    needs=("clean_score", "target_score"),
)
def r2_ceiling(columns: Columns) -> float:
    """Highest R² that a prediction from the image can reach, given the noise of the scores.

    This is the squared correlation of clean and true scores.

    Parameters
    ----------
    columns : ``target_score`` and, if known, ``clean_score``

    Returns
    -------
    float
        In [0, 1]; 1 without noise; NaN if the clean score is unknown.

    Notes
    -----
    The value holds for these subjects and this noise. For noise level a and noise with
    the SD of the score, it is about (1−a)² / ((1−a)² + a²). Predictions can exceed it
    slightly by chance, if noise and image are correlated in the sample.
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
    """R² of the predicted scores relative to the noise-free scores.

    Parameters
    ----------
    columns : ``clean_score`` and ``predicted_score``

    Returns
    -------
    float
        See :func:`r2`; the ceiling is 1 for any noise.
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
    """Squared correlation of predicted and true scores, independent of scale and offset.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In [0, 1]; NaN with fewer than two subjects or if all predictions or all targets
        are equal. Predictions with the opposite sign have the same value.

    Notes
    -----
    Without skill, the expected value over n subjects is 1 / (n − 1), not 0.
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
    """Two-sided p value of the correlation of predicted and true scores.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In [0, 1]; NaN with fewer than three subjects or if all scores are equal.
    """
    target, predicted = complete(columns, _NOISY)
    if len(target) < 3 or _even(target) or _even(predicted):
        return NAN
    from scipy.stats import pearsonr  # slow to import

    return float(pearsonr(target, predicted).pvalue)


@metric(
    "mse",
    source="mean squared error",
    direction="lower",
    range=(0, INFINITY),
    level="pool",
    empty="no subject: NaN",
    chance="mse_of_mean",
    needs=_NOISY,
)
def mse(columns: Columns) -> float:
    """Mean squared error of the predicted scores.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In squared units of the score, at least 0; NaN without subjects.
    """
    target, predicted = complete(columns, _NOISY)
    return float(np.mean((target - predicted) ** 2)) if len(target) else NAN


@metric(
    "mse_of_mean",
    source="the definition",
    direction="none",
    range=(0, INFINITY),
    level="pool",
    empty="no subject: NaN",
    needs=_NOISY,
)
def mse_of_mean(columns: Columns) -> float:
    """Mean squared error of the best constant prediction, the variance of the true scores.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        In squared units of the score, at least 0; NaN without subjects.
    """
    target, _ = complete(columns, _NOISY)
    return float(np.var(target)) if len(target) else NAN


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
    """Calibration slope: least-squares slope of true scores on predicted scores.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

    Returns
    -------
    float
        1 if calibrated; below 1 if the spread of the predictions is too large, above 1 if
        it is too small; NaN with fewer than two subjects or if all predictions are equal.
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
    """Mean difference of predicted − true score.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``

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
    # The mean of equal numbers may differ from them in the last bit.
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0))
