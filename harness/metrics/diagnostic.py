"""Metrics of a binary decision at a threshold, and of its calibration, over all samples."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from harness.core.types import Array, Source
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = [
    "best_threshold",
    "binary_balanced_accuracy",
    "calibration_error",
    "sensitivity",
    "specificity",
    "tuned_accuracy",
    "tuned_balanced_accuracy",
    "tuned_sensitivity",
    "tuned_specificity",
]

_DECISION = ("target_label", "predicted_probability")
_TUNED = (*_DECISION, "best_threshold")
YOUDEN = Source(
    "Youden",
    1950,
    "Index for rating diagnostic tests",
    doi="10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3",
)
NAN = float("nan")

Threshold = Annotated[float, Gt(0), Lt(1)]


def _rate(columns: Columns, label: int, threshold: float) -> float:
    """Share of the samples with a label that are classified correctly; NaN if there are none."""
    truth, predicted = complete(columns, _DECISION)
    own = truth == label
    if math.isnan(threshold):
        return NAN
    return float(np.mean((predicted[own] >= threshold) == bool(label))) if own.any() else NAN


@metric(
    "binary_sensitivity",
    source="as in scikit-learn (recall)",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no positive sample: NaN",
    needs=_DECISION,
)
def sensitivity(columns: Columns, *, threshold: Threshold = 0.5) -> float:
    """Share of the positive samples that are classified as positive.

    It says nothing without the specificity, and therefore has no direction.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``
    threshold : smallest probability of a positive decision

    Returns
    -------
    float
        In [0, 1]; NaN without positive samples.
    """
    return _rate(columns, 1, threshold)


@metric(
    "binary_specificity",
    source="as in scikit-learn (recall of the negative class)",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no negative sample: NaN",
    needs=_DECISION,
)
def specificity(columns: Columns, *, threshold: Threshold = 0.5) -> float:
    """Share of the negative samples that are classified as negative.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``
    threshold : smallest probability of a positive decision

    Returns
    -------
    float
        In [0, 1]; NaN without negative samples.
    """
    return _rate(columns, 0, threshold)


@metric(
    "binary_balanced_accuracy",
    source="as in scikit-learn",
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="only one label occurs: NaN",
    chance=0.5,
    needs=_DECISION,
)
def binary_balanced_accuracy(columns: Columns, *, threshold: Threshold = 0.5) -> float:
    """Mean of sensitivity and specificity.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``
    threshold : smallest probability of a positive decision

    Returns
    -------
    float
        In [0, 1]; NaN if only one label occurs.
    """
    return (_rate(columns, 1, threshold) + _rate(columns, 0, threshold)) / 2


@metric(
    "best_threshold",
    source=YOUDEN,
    direction="none",
    range=(0, 1),
    level="pool",
    empty="only one label occurs: NaN",
    needs=_DECISION,
    interval=False,
)
def best_threshold(columns: Columns) -> float:
    """Probability at which the sum of sensitivity and specificity is largest.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``

    Returns
    -------
    float
        In [0, 1]: the middle between two neighbouring predictions; of several equally good
        thresholds, the one closest to 0.5. NaN if only one label occurs.
    """
    truth, predicted = complete(columns, _DECISION)
    if len(np.unique(truth)) < 2:
        return NAN
    values = np.unique(predicted)
    middles = np.array([0.0, *(values[1:] + values[:-1]) / 2, 1.0])
    decided = predicted[:, None] >= middles
    sums = decided[truth == 1].mean(axis=0) + (~decided[truth == 0]).mean(axis=0)
    best = middles[sums >= sums.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


@metric(
    "tuned_sensitivity",
    source=YOUDEN,
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no positive sample, or no threshold: NaN",
    needs=_TUNED,
)
def tuned_sensitivity(columns: Columns) -> float:
    """Sensitivity at the best threshold of the validation samples.

    Parameters
    ----------
    columns : ``target_label``, ``predicted_probability`` and ``best_threshold``, one value
        for all samples, which was chosen on validation samples

    Returns
    -------
    float
        In [0, 1]; NaN without positive samples, or without a threshold.
    """
    return _rate(columns, 1, _threshold(columns))


@metric(
    "tuned_specificity",
    source=YOUDEN,
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no negative sample, or no threshold: NaN",
    needs=_TUNED,
)
def tuned_specificity(columns: Columns) -> float:
    """Specificity at the best threshold of the validation samples.

    Parameters
    ----------
    columns : see :func:`tuned_sensitivity`

    Returns
    -------
    float
        In [0, 1]; NaN without negative samples, or without a threshold.
    """
    return _rate(columns, 0, _threshold(columns))


@metric(
    "tuned_balanced_accuracy",
    source=YOUDEN,
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="only one label occurs, or no threshold: NaN",
    chance=0.5,
    needs=_TUNED,
)
def tuned_balanced_accuracy(columns: Columns) -> float:
    """Mean of sensitivity and specificity at the best threshold of the validation samples.

    Parameters
    ----------
    columns : see :func:`tuned_sensitivity`

    Returns
    -------
    float
        In [0, 1]; NaN if only one label occurs, or without a threshold.
    """
    return (tuned_sensitivity(columns) + tuned_specificity(columns)) / 2


@metric(
    "tuned_accuracy",
    source=YOUDEN,
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="no sample, or no threshold: NaN",
    needs=_TUNED,
)
def tuned_accuracy(columns: Columns) -> float:
    """Share of the samples that are classified correctly at the best threshold of the validation samples.

    Parameters
    ----------
    columns : see :func:`tuned_sensitivity`

    Returns
    -------
    float
        In [0, 1]; NaN without samples, or without a threshold. If one label is rare, the
        answer that it never occurs has a high accuracy.
    """
    truth, predicted = complete(columns, _DECISION)
    threshold = _threshold(columns)
    if math.isnan(threshold) or not len(truth):
        return NAN
    return float(np.mean((predicted >= threshold) == (truth == 1)))


def _threshold(columns: Columns) -> float:
    """The threshold of the samples; NaN if they have none."""
    known = columns["best_threshold"][np.isfinite(columns["best_threshold"])]
    return float(known[0]) if known.size else NAN


@metric(
    "calibration_error",
    source="Naeini et al. 2015 (expected calibration error)",
    direction="lower",
    range=(0, 1),
    level="pool",
    empty="no sample: NaN",
    needs=_DECISION,
)
def calibration_error(columns: Columns, *, bins: Annotated[int, Ge(1)] = 10) -> float:
    """Expected calibration error: mean distance of the predicted probability and the share of positive samples.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``
    bins : number of bins of equal width in [0, 1]; each is weighted by its samples

    Returns
    -------
    float
        In [0, 1]; NaN without samples. With few samples per bin it is above 0 by chance
        even if the probabilities are right.
    """
    truth, predicted = complete(columns, _DECISION)
    if not len(truth):
        return NAN
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps: Array = np.array(
        [abs(predicted[place == one].mean() - truth[place == one].mean()) for one in np.unique(place)]
    )
    shares = np.unique(place, return_counts=True)[1] / len(truth)
    return float(gaps @ shares)
