"""Metrics of agreement between two measurements of the same subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.core.errors import OutOfRange
from harness.core.types import Array, Source
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import choose, metric

__all__ = [
    "BlandAltman",
    "Form",
    "bland_altman",
    "count_bias",
    "count_limits_width",
    "icc",
    "icc_count",
    "icc_volume",
    "volume_bias",
    "volume_limits_width",
]

Form = Literal["1,1", "2,1", "3,1", "1,k", "2,k", "3,k"]

NAN = float("nan")
INFINITY = float("inf")
SHROUT = Source(
    authors="Shrout & Fleiss",
    year=1979,
    title="Intraclass correlations: uses in assessing rater reliability",
    doi="10.1037/0033-2909.86.2.420",
)
BLAND = Source(
    authors="Bland & Altman",
    year=1986,
    title="Statistical methods for assessing agreement between two methods of clinical measurement",
    doi="10.1016/S0140-6736(86)90837-8",
)

_COUNTS = ("true_count", "predicted_count")
_VOLUMES = ("true_volume_mm3", "predicted_volume_mm3")


@dataclass(frozen=True)
class BlandAltman:
    """Mean difference and limits of agreement.

    Parameters
    ----------
    bias : mean of prediction − truth, in the unit of the values
    lower, upper : bias ∓ 1.96 standard deviations of the differences
    """

    bias: float
    lower: float
    upper: float


@dataclass(frozen=True)
class _MeanSquares:
    """Mean squares of an (n, k) table: rows, columns, within rows, residual."""

    rows: float
    columns: float
    within: float
    residual: float
    n: int
    k: int


def icc(ratings: Array, *, form: Form = "1,1") -> float:
    """Intraclass correlation of single or averaged ratings (Shrout & Fleiss 1979).

    Parameters
    ----------
    ratings : (n, k) float, n subjects by k raters; rows with NaN are left out
    form : ``"1,1"`` for a one-way model, where each subject has different raters;
        ``"2,1"`` for a two-way random model with absolute agreement; ``"3,1"`` for a
        two-way mixed model with consistency. These are reliabilities of one rating;
        ``"1,k"``, ``"2,k"`` and ``"3,k"`` are those of the mean of all k ratings

    Returns
    -------
    float
        At most 1; negative if subjects vary less than ratings of the same subject; NaN with
        fewer than two complete rows or if all ratings are equal.

    Raises
    ------
    UnknownName
        If there is no such form.
    OutOfRange
        If ``ratings`` is not (n, k) numbers with at least two raters.
    """
    estimate = choose("form", form, _FORMS)
    ratings = _numbers("ratings", ratings)
    if ratings.ndim != 2 or ratings.shape[1] < 2:
        raise OutOfRange(f"ratings must be (n, k) with k >= 2 raters, got shape {ratings.shape}")
    ratings = ratings[np.isfinite(ratings).all(axis=1)]
    if len(ratings) < 2 or np.ptp(ratings) == 0:
        return NAN
    return estimate(_mean_squares(ratings))


def bland_altman(truth: Array, prediction: Array) -> BlandAltman:
    """Bias and limits of agreement of prediction − truth (Bland & Altman 1986).

    Parameters
    ----------
    truth, prediction : (n,) float, one value per subject; pairs with NaN are left out

    Returns
    -------
    BlandAltman
        In the unit of the values. All NaN without pairs; limits NaN with one pair.

    Raises
    ------
    OutOfRange
        If the values are not numbers, or not as many of both.
    """
    truth, prediction = _numbers("truth", truth), _numbers("prediction", prediction)
    if truth.ndim != 1 or truth.shape != prediction.shape:
        raise OutOfRange(f"truth and prediction must be (n,) of equal n, got {truth.shape} and {prediction.shape}")
    difference = prediction - truth
    difference = difference[np.isfinite(difference)]
    bias = float(difference.mean()) if difference.size else NAN
    half = 1.96 * float(difference.std(ddof=1)) if difference.size > 1 else NAN
    return BlandAltman(bias, bias - half, bias + half)


@metric(
    "icc_count",
    source=SHROUT,
    direction="higher",
    range=(-INFINITY, 1),
    level="pool",
    empty="fewer than two subjects, or all counts equal: NaN",
    chance=0.0,
    needs=_COUNTS,
)
def icc_count(columns: Columns, *, form: Form = "1,1") -> float:
    """Intraclass correlation of true and predicted lesion counts.

    Parameters
    ----------
    columns : ``true_count`` and ``predicted_count``
    form : form of the ICC: ``1,1`` one-way, ``2,1`` two-way random with absolute
        agreement, ``3,1`` two-way mixed with consistency; ``1,k``, ``2,k`` and ``3,k`` for
        the mean of both values

    Returns
    -------
    float
        See :func:`icc`.
    """
    return icc(np.stack(complete(columns, _COUNTS), axis=1), form=form)


@metric(
    "icc_volume",
    source=SHROUT,
    direction="higher",
    range=(-INFINITY, 1),
    level="pool",
    empty="fewer than two subjects, or all volumes equal: NaN",
    chance=0.0,
    needs=_VOLUMES,
)
def icc_volume(columns: Columns, *, form: Form = "1,1") -> float:
    """Intraclass correlation of true and predicted lesion volumes.

    Parameters
    ----------
    columns : ``true_volume_mm3`` and ``predicted_volume_mm3``
    form : form of the ICC: ``1,1`` one-way, ``2,1`` two-way random with absolute
        agreement, ``3,1`` two-way mixed with consistency; ``1,k``, ``2,k`` and ``3,k`` for
        the mean of both values

    Returns
    -------
    float
        See :func:`icc`.
    """
    return icc(np.stack(complete(columns, _VOLUMES), axis=1), form=form)


@metric(
    "count_bias",
    source=BLAND,
    direction="zero",
    range=(-INFINITY, INFINITY),
    level="pool",
    empty="no subject: NaN",
    needs=_COUNTS,
)
def count_bias(columns: Columns) -> float:
    """Mean difference of predicted − true lesion count.

    Parameters
    ----------
    columns : ``true_count`` and ``predicted_count``

    Returns
    -------
    float
        In lesions; NaN without subjects.
    """
    return bland_altman(*complete(columns, _COUNTS)).bias


@metric(
    "volume_bias",
    source=BLAND,
    direction="zero",
    range=(-INFINITY, INFINITY),
    level="pool",
    empty="no subject: NaN",
    needs=_VOLUMES,
)
def volume_bias(columns: Columns) -> float:
    """Mean difference of predicted − true lesion volume.

    Parameters
    ----------
    columns : ``true_volume_mm3`` and ``predicted_volume_mm3``

    Returns
    -------
    float
        In mm³; NaN without subjects.
    """
    return bland_altman(*complete(columns, _VOLUMES)).bias


@metric(
    "count_limits_width",
    source=BLAND,
    direction="lower",
    range=(0, INFINITY),
    level="pool",
    empty="fewer than two subjects: NaN",
    needs=_COUNTS,
)
def count_limits_width(columns: Columns) -> float:
    """Width of the limits of agreement of lesion counts.

    Parameters
    ----------
    columns : ``true_count`` and ``predicted_count``

    Returns
    -------
    float
        In lesions, at least 0; NaN with fewer than two subjects.
    """
    return _width(bland_altman(*complete(columns, _COUNTS)))


@metric(
    "volume_limits_width",
    source=BLAND,
    direction="lower",
    range=(0, INFINITY),
    level="pool",
    empty="fewer than two subjects: NaN",
    needs=_VOLUMES,
)
def volume_limits_width(columns: Columns) -> float:
    """Width of the limits of agreement of lesion volumes.

    Parameters
    ----------
    columns : ``true_volume_mm3`` and ``predicted_volume_mm3``

    Returns
    -------
    float
        In mm³, at least 0; NaN with fewer than two subjects.
    """
    return _width(bland_altman(*complete(columns, _VOLUMES)))


def _width(limits: BlandAltman) -> float:
    return limits.upper - limits.lower


def _numbers(name: str, values: Array) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OutOfRange(f"{name} must be an array of numbers, got {type(values).__name__} ({error})") from None


def _mean_squares(ratings: npt.NDArray[np.float64]) -> _MeanSquares:
    n, k = ratings.shape
    # Subtracting the common offset improves numerical precision.
    ratings = ratings - ratings.mean()
    of_row, of_column = ratings.mean(axis=1, keepdims=True), ratings.mean(axis=0, keepdims=True)
    return _MeanSquares(
        rows=k * float(np.sum(of_row**2)) / (n - 1),
        columns=n * float(np.sum(of_column**2)) / (k - 1),
        within=float(np.sum((ratings - of_row) ** 2)) / (n * (k - 1)),
        residual=float(np.sum((ratings - of_row - of_column) ** 2)) / ((n - 1) * (k - 1)),
        n=n,
        k=k,
    )


def _one_way(ms: _MeanSquares) -> float:
    return _ratio(ms.rows - ms.within, ms.rows + (ms.k - 1) * ms.within)


def _two_way_random(ms: _MeanSquares) -> float:
    return _ratio(
        ms.rows - ms.residual,
        ms.rows + (ms.k - 1) * ms.residual + ms.k * (ms.columns - ms.residual) / ms.n,
    )


def _two_way_mixed(ms: _MeanSquares) -> float:
    return _ratio(ms.rows - ms.residual, ms.rows + (ms.k - 1) * ms.residual)


def _one_way_mean(ms: _MeanSquares) -> float:
    return _ratio(ms.rows - ms.within, ms.rows)


def _two_way_random_mean(ms: _MeanSquares) -> float:
    return _ratio(ms.rows - ms.residual, ms.rows + (ms.columns - ms.residual) / ms.n)


def _two_way_mixed_mean(ms: _MeanSquares) -> float:
    return _ratio(ms.rows - ms.residual, ms.rows)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else NAN


_FORMS: Mapping[str, Callable[[_MeanSquares], float]] = {
    "1,1": _one_way,
    "2,1": _two_way_random,
    "3,1": _two_way_mixed,
    "1,k": _one_way_mean,
    "2,k": _two_way_random_mean,
    "3,k": _two_way_mixed_mean,
}
