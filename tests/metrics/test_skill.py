"""Skill on one scale, and accuracy within groups of a nuisance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score

from harness.core.errors import RequestError
from harness.core.types import Array
from harness.metrics.localisation import nuisance_mass, nuisance_share, relevance_mass
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate, evaluate_chance, kinds_of
from harness.metrics.regression import mse
from harness.metrics.skill import label_accuracy, majority_share, skill, worst_group_accuracy

RNG = np.random.default_rng(5)
SCORES = RNG.normal(50, 10, 40)
PREDICTED = SCORES + RNG.normal(0, 5, 40)
LABELS = (RNG.random(40) < 0.3).astype(float)
PROBABILITY = np.clip(LABELS * 0.4 + RNG.random(40) * 0.6, 0, 1)
CLASSES = RNG.integers(0, 4, 40).astype(float)
GUESSES = np.where(RNG.random(40) < 0.7, CLASSES, (CLASSES + 1) % 4)
BINARY: dict[str, Array] = {"target_label": LABELS, "predicted_probability": PROBABILITY}


def test_skill_of_a_number_is_r2() -> None:
    """As in scikit-learn; the chance level of the squared error is the variance."""
    columns = {"target_score": SCORES, "predicted_score": PREDICTED}
    assert skill(columns) == pytest.approx(r2_score(SCORES, PREDICTED))
    given = MetricInputs(columns=columns)
    assert evaluate(mse, given) == pytest.approx((1 - skill(columns)) * SCORES.var())
    assert evaluate_chance(mse, given) == pytest.approx(SCORES.var())


def test_skill_of_labels_and_classes_is_adjusted_balanced_accuracy() -> None:
    """As in scikit-learn with ``adjusted=True``."""
    decided = PROBABILITY >= 0.5
    assert skill(BINARY) == pytest.approx(balanced_accuracy_score(LABELS, decided, adjusted=True))
    classes = {"target_class": CLASSES, "predicted_class": GUESSES}
    assert skill(classes) == pytest.approx(balanced_accuracy_score(CLASSES, GUESSES, adjusted=True))


def test_skill_of_chance_is_zero() -> None:
    """A constant prediction has no skill."""
    assert skill({"target_score": SCORES, "predicted_score": np.full(40, SCORES.mean())}) == pytest.approx(0)
    assert skill({"target_label": LABELS, "predicted_probability": np.zeros(40)}) == 0
    assert skill({"target_class": CLASSES, "predicted_class": np.ones(40)}) == 0


def test_skill_is_undefined_for_a_constant_truth() -> None:
    """NaN if only one score, label or class occurs."""
    assert np.isnan(skill({"target_score": np.ones(40), "predicted_score": PREDICTED}))
    assert np.isnan(skill({"target_label": np.ones(40), "predicted_probability": PROBABILITY}))
    assert np.isnan(skill({"target_class": np.ones(40), "predicted_class": GUESSES}))


def test_skill_needs_columns() -> None:
    """Without a truth, the message names the metrics that the task needs; all kinds with one value are supported."""
    with pytest.raises(RequestError, match=r"target_score and predicted_score.*got covariate"):
        skill({"covariate": SCORES})
    assert kinds_of(skill) == ("number", "binary", "classes")


def test_accuracy_with_its_chance() -> None:
    """As in scikit-learn; chance is the share of the more frequent label."""
    assert label_accuracy(BINARY) == pytest.approx(accuracy_score(LABELS, PROBABILITY >= 0.5))
    assert majority_share(BINARY) == pytest.approx(max(LABELS.mean(), 1 - LABELS.mean()))
    assert evaluate_chance(label_accuracy, MetricInputs(columns=BINARY)) == majority_share(BINARY)


def test_worst_group_by_hand() -> None:
    """Eight samples: the group with label 1 and nuisance 0 is right in one of two."""
    columns = {
        "target_label": np.array([0, 0, 0, 0, 1, 1, 1, 1.0]),
        "covariate": np.array([0, 0, 1, 1, 0, 0, 1, 1.0]),
        "predicted_probability": np.array([0.1, 0.2, 0.3, 0.4, 0.1, 0.9, 0.5, 0.6]),
    }
    assert worst_group_accuracy(columns) == 0.5
    shortcut = {**columns, "predicted_probability": columns["covariate"]}
    assert worst_group_accuracy(shortcut) == 0 and label_accuracy(shortcut) == 0.5


def test_worst_group_is_undefined_without_a_group() -> None:
    """NaN if the nuisance equals the label, never varies, or has more than two values."""
    for nuisance in (LABELS, np.zeros(40), SCORES, np.full(40, np.nan)):
        assert np.isnan(worst_group_accuracy({**BINARY, "covariate": nuisance}))


def test_mass_on_the_nuisance() -> None:
    """The share of the relevance on the nuisance, its chance level, and NaN where there is none."""
    explanation, nuisance = RNG.normal(size=(2, 6, 5, 1)), RNG.random((6, 5, 1)) < 0.3
    assert nuisance_mass(explanation, nuisance) == relevance_mass(explanation, nuisance)
    given = MetricInputs(explanation=explanation, nuisance=nuisance)
    assert evaluate_chance(nuisance_mass, given) == nuisance_share(explanation, nuisance) == nuisance.mean()
    assert np.isnan(nuisance_mass(explanation))
    assert np.isnan(evaluate(nuisance_mass, MetricInputs(explanation=explanation)))
