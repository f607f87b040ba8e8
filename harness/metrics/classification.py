"""Metrics of classification, for binary and classes targets.

The labels and probabilities of a sample are metrics themselves, so that pooled metrics can
use them as columns. Samples with a missing value are left out.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from harness.core.types import Array, Source
from harness.metrics.columns import complete
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
    "predicted_logit",
    "predicted_probability",
    "target_class",
    "target_label",
]

NAN = float("nan")
BRIER = Source(
    authors="Brier",
    year=1950,
    title="Verification of forecasts expressed in terms of probability",
    doi="10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2",
)

_CONVENTION = "as in scikit-learn"
_BINARY = ("target_label", "predicted_logit")
_CLASSES = ("target_class", "predicted_class")


@metric("target_label", source="", direction="none", range=(0, 1), empty="never undefined")
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


@metric("predicted_probability", source="", direction="none", range=(0, 1), empty="never undefined")
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


@metric("predicted_logit", source="", direction="none", range=(-np.inf, np.inf), empty="never undefined")
def predicted_logit(predicted_logit: float) -> float:
    """Predicted logit of the positive class.

    Parameters
    ----------
    predicted_logit : number

    Returns
    -------
    float
        The logit.
    """
    return predicted_logit


@metric("target_class", source="", direction="none", range=(0, float("inf")), empty="never undefined")
def target_class(target_class: float) -> float:
    """Index of the true class.

    Parameters
    ----------
    target_class : index of the true class, from 0

    Returns
    -------
    float
        The index.
    """
    return target_class


@metric("predicted_class", source="", direction="none", range=(0, float("inf")), empty="never undefined")
def predicted_class(class_probabilities: Array) -> float:
    """Index of the class with the highest predicted probability.

    Parameters
    ----------
    class_probabilities : (K,) float in [0, 1]

    Returns
    -------
    float
        The index, from 0; the first one if there are ties.
    """
    return float(np.argmax(class_probabilities))


@metric("binary_accuracy", source=_CONVENTION, direction="higher", range=(0, 1), empty="never undefined")
def binary_accuracy(target_label: float, predicted_probability: float, *, threshold: float = 0.5) -> float:
    """Whether the predicted label is correct; the mean is the accuracy.

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


@metric("accuracy", source=_CONVENTION, direction="higher", range=(0, 1), empty="never undefined")
def accuracy(target_class: float, class_probabilities: Array) -> float:
    """Whether the most probable class is correct; the mean is the accuracy.

    Parameters
    ----------
    target_class : index of the true class, from 0
    class_probabilities : (K,) float in [0, 1]

    Returns
    -------
    float
        1 or 0.
    """
    return float(int(np.argmax(class_probabilities)) == int(target_class))


@metric("brier", source=BRIER, direction="lower", range=(0, 1), empty="never undefined")
def brier(target_label: float, predicted_probability: float) -> float:
    """Squared difference between probability and label; the mean is the Brier score.

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
    "auroc",
    source=_CONVENTION,
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="only one label occurs: NaN",
    chance=0.5,
    needs=_BINARY,
)
def auroc(columns: Columns) -> float:
    """Area under the receiver operating characteristic (ROC) curve over all samples.

    Parameters
    ----------
    columns : ``target_label`` and ``predicted_logit``; any increasing function of the logit,
        such as the probability, gives the same area

    Returns
    -------
    float
        In [0, 1]; 0.5 if all logits are equal; NaN if only one label occurs.

    Notes
    -----
    Logits are used because probabilities of networks that are very sure are equal after
    rounding: above a logit of 37, the probability is 1.
    """
    labels, logits = complete(columns, _BINARY)
    return float(roc_auc_score(labels, logits)) if len(np.unique(labels)) == 2 else NAN


@metric(
    "balanced_accuracy",
    source=_CONVENTION,
    direction="higher",
    range=(0, 1),
    level="pool",
    empty="no sample: NaN",
    chance="balanced_chance",
    needs=_CLASSES,
)
def balanced_accuracy(columns: Columns) -> float:
    """Mean of the recall over all true classes that occur.

    Parameters
    ----------
    columns : ``target_class`` and ``predicted_class``

    Returns
    -------
    float
        In [0, 1]; NaN without samples.
    """
    truth, predicted = complete(columns, _CLASSES)
    if not len(truth):
        return NAN
    # Equals scikit-learn's, which warns if a predicted class does not occur in the truth.
    return float(np.mean([np.mean(predicted[truth == one] == one) for one in np.unique(truth)]))


@metric(
    "balanced_chance",
    source="the definition",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="no sample: NaN",
    needs=_CLASSES,
)
def balanced_chance(columns: Columns) -> float:
    """Balanced accuracy of a constant prediction.

    Parameters
    ----------
    columns : ``target_class`` and ``predicted_class``

    Returns
    -------
    float
        One over the number of true classes that occur; NaN without samples.
    """
    count = len(np.unique(complete(columns, _CLASSES)[0]))
    return 1.0 / count if count else NAN
