"""Metrics of binary and classes targets."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from harness.core.types import Array
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = [
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "balanced_chance",
    "binary_accuracy",
    "brier",
    "predicted_class",
    "predicted_probability",
    "target_class",
    "target_label",
]

_CONVENTION = "scikit-learn"
_BINARY = ("target_label", "predicted_probability")
_CLASSES = ("target_class", "predicted_class")


@metric("target_label", source="the data", direction="none", range=(0.0, 1.0))
def target_label(target_label: float) -> float:
    """True label of the sample.

    Parameters
    ----------
    target_label : 0 or 1

    Returns
    -------
    float
        The label.
    """
    return target_label


@metric("predicted_probability", source="the model", direction="none", range=(0.0, 1.0))
def predicted_probability(predicted_probability: float) -> float:
    """Predicted probability of the positive class.

    Parameters
    ----------
    predicted_probability : number in [0, 1]

    Returns
    -------
    float
        The probability.
    """
    return predicted_probability


@metric("target_class", source="the data", direction="none", range=(0.0, float("inf")))
def target_class(target_class: float) -> float:
    """Index of the true class.

    Parameters
    ----------
    target_class : index, from 0

    Returns
    -------
    float
        The index.
    """
    return target_class


@metric("predicted_class", source="the model", direction="none", range=(0.0, float("inf")))
def predicted_class(class_probabilities: Array) -> float:
    """Index of the class with the highest predicted probability.

    Parameters
    ----------
    class_probabilities : (K,) float in [0, 1]

    Returns
    -------
    float
        The index, from 0; the first of several classes with the same probability.
    """
    return float(np.argmax(class_probabilities))


@metric("binary_accuracy", source=_CONVENTION, direction="higher", range=(0.0, 1.0))
def binary_accuracy(target_label: float, predicted_probability: float, *, threshold: float = 0.5) -> float:
    """1 if the predicted label is correct, else 0; the mean is the accuracy.

    Parameters
    ----------
    target_label : 0 or 1
    predicted_probability : number in [0, 1]
    threshold : smallest probability of a positive prediction

    Returns
    -------
    float
        1 or 0.
    """
    return float((predicted_probability >= threshold) == (target_label > 0))


@metric("accuracy", source=_CONVENTION, direction="higher", range=(0.0, 1.0))
def accuracy(target_class: float, class_probabilities: Array) -> float:
    """1 if the most probable class is correct, else 0; the mean is the accuracy.

    Parameters
    ----------
    target_class : index of the true class
    class_probabilities : (K,) float in [0, 1]

    Returns
    -------
    float
        1 or 0.
    """
    return float(int(np.argmax(class_probabilities)) == int(target_class))


@metric("brier", source="Brier 1950", direction="lower", range=(0.0, 1.0))
def brier(target_label: float, predicted_probability: float) -> float:
    """Brier score: squared difference between probability and label.

    Parameters
    ----------
    target_label : 0 or 1
    predicted_probability : number in [0, 1]

    Returns
    -------
    float
        In [0, 1].
    """
    return (predicted_probability - target_label) ** 2


@metric(
    "auroc", source=_CONVENTION, direction="higher", range=(0.0, 1.0), level="pool", chance=0.5, needs=_BINARY,
    empty="NaN where only one class occurs",
)  # fmt: skip
def auroc(columns: Columns) -> float:
    """Area under the receiver operating characteristic (ROC) curve over all samples.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_probability``

    Returns
    -------
    float
        In [0, 1]; NaN if only one class occurs.
    """
    labels, probabilities = columns["target_label"], columns["predicted_probability"]
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, probabilities))


@metric(
    "balanced_accuracy", source=_CONVENTION, direction="higher", range=(0.0, 1.0), level="pool", needs=_CLASSES,
    chance="balanced_chance", empty="NaN without samples",
)  # fmt: skip
def balanced_accuracy(columns: Columns) -> float:
    """Mean of the recall over all true classes.

    Parameters
    ----------
    columns : ``target_class`` and ``predicted_class``

    Returns
    -------
    float
        In [0, 1]; NaN without samples.
    """
    truth, predicted = columns["target_class"], columns["predicted_class"]
    if not len(truth):
        return float("nan")
    # Equals scikit-learn's, which warns if a predicted class does not occur in the truth.
    return float(np.mean([np.mean(predicted[truth == one] == one) for one in np.unique(truth)]))


@metric("balanced_chance", source="the definition", direction="none", range=(0.0, 1.0), level="pool", needs=_CLASSES)
def balanced_chance(columns: Columns) -> float:
    """Balanced accuracy of a constant prediction: one over the number of true classes.

    Parameters
    ----------
    columns : ``target_class``

    Returns
    -------
    float
        In (0, 1]; NaN without samples.
    """
    count = len(np.unique(columns["target_class"]))
    return 1.0 / count if count else float("nan")
