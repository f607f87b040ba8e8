"""Skill on one scale for numbers, binary labels and classes, and accuracy within groups of a nuisance."""

from __future__ import annotations

import numpy as np

from harness.core.errors import RequestError
from harness.core.types import Array, Source
from harness.metrics.classification import balanced_accuracy, balanced_chance
from harness.metrics.columns import complete
from harness.metrics.diagnostic import binary_balanced_accuracy
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric
from harness.metrics.regression import r2

__all__ = ["label_accuracy", "majority_share", "skill", "worst_group_accuracy"]

NAN = float("nan")
SAGAWA = Source(
    authors="Sagawa et al.",
    year=2020,
    title="Distributionally robust neural networks for group shifts",
    doi="10.48550/arXiv.1911.08731",
)

_DECISION = ("target_label", "predicted_probability")
_GROUPED = (*_DECISION, "covariate")


@metric(
    "skill",
    source="R²; Youden's J and its generalisation to several classes",
    direction="higher",
    range=(float("-inf"), 1),
    level="pool",
    empty="as R² and balanced accuracy: NaN",
    chance=0.0,
    kinds=("number", "binary", "classes"),
)
def skill(columns: Columns) -> float:
    """Share of the way from chance to a perfect prediction, for targets of any kind with one value per sample.

    For a number, R². For labels and classes, (b − c) / (1 − c) of the balanced accuracy b with
    its chance level c. It orders the same models on the same samples as the mean squared
    error or the balanced accuracy do, and can be averaged over targets of different kinds.

    Parameters
    ----------
    columns : ``target_score`` and ``predicted_score``, ``target_label`` and
        ``predicted_probability``, or ``target_class`` and ``predicted_class``

    Returns
    -------
    float
        At most 1; 0 for a constant prediction; NaN if the truth is constant.

    Raises
    ------
    RequestError
        If there are no such columns.
    """
    if "target_score" in columns:
        return r2(columns)
    if "target_label" in columns:
        return 2 * binary_balanced_accuracy(columns) - 1
    if "target_class" in columns:
        chance = balanced_chance(columns)
        return (balanced_accuracy(columns) - chance) / (1 - chance) if chance < 1 else NAN
    raise RequestError(
        "metric skill needs the metrics target_score and predicted_score, target_label and predicted_probability, or "
        f"target_class and predicted_class in the task, got {', '.join(sorted(columns)) or 'none'}"
    )


@metric(
    "label_accuracy",
    source="as in scikit-learn",
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="no sample: NaN",
    chance="majority_share",
    needs=_DECISION,
)
def label_accuracy(columns: Columns) -> float:
    """Share of the samples with the correct label, at a probability of one half.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``

    Returns
    -------
    float
        In [0, 1]; NaN without samples.
    """
    truth, predicted = complete(columns, _DECISION)
    return float(np.mean(_decided(predicted) == truth)) if len(truth) else NAN


@metric(
    "majority_share",
    source="the definition",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no sample: NaN",
    needs=_DECISION,
)
def majority_share(columns: Columns) -> float:
    """Accuracy of the best constant prediction, the share of the more frequent label.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``

    Returns
    -------
    float
        In [0.5, 1]; NaN without samples.
    """
    truth, _ = complete(columns, _DECISION)
    return float(max(np.mean(truth), 1 - np.mean(truth))) if len(truth) else NAN


@metric(
    "worst_group_accuracy",
    source=SAGAWA,
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="a group without samples, or a nuisance that has not two values: NaN",
    needs=_GROUPED,
)
def worst_group_accuracy(columns: Columns) -> float:
    """Lowest accuracy over the four groups of label and nuisance.

    A network that uses a nuisance which is correlated with the label as a shortcut fails in
    the groups in which they disagree.

    Parameters
    ----------
    columns : ``target_label``, ``predicted_probability``, and ``covariate``, a nuisance with
        two values

    Returns
    -------
    float
        In [0, 1]; NaN if one of the groups has no sample, or the nuisance not two values.
    """
    truth, predicted, nuisance = complete(columns, _GROUPED)
    right = _decided(predicted) == truth
    values = np.unique(nuisance)
    groups = [right[(truth == label) & (nuisance == value)] for label in (0, 1) for value in values]
    return float(min(map(np.mean, groups))) if len(values) == 2 and all(map(len, groups)) else NAN


def _decided(probability: Array) -> Array:
    """Predicted labels."""
    found: Array = (probability >= 0.5).astype(np.float64)
    return found
