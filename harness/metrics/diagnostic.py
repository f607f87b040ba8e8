"""Metrics of a binary decision at a threshold, and of its calibration, over all samples."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from harness.core.types import Array
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = ["binary_balanced_accuracy", "calibration_error", "sensitivity", "specificity"]

_DECISION = ("target_label", "predicted_probability")
NAN = float("nan")

Threshold = Annotated[float, Gt(0), Lt(1)]


def _rate(columns: Columns, label: int, threshold: float) -> float:
    """Share of the samples with a label that are classified correctly; NaN if there are none."""
    truth, predicted = complete(columns, _DECISION)
    own = truth == label
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
