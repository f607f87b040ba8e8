"""Metrics of a binary decision, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_curve

from harness.metrics.diagnostic import (
    best_threshold,
    binary_balanced_accuracy,
    calibration_error,
    sensitivity,
    specificity,
    tuned_accuracy,
    tuned_balanced_accuracy,
    tuned_sensitivity,
    tuned_specificity,
)


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    """Labels and probabilities of 200 samples."""
    rng = np.random.default_rng(0)
    probability = rng.random(200)
    return {
        "target_label": (rng.random(200) < probability**2).astype(float),
        "predicted_probability": probability,
    }


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_equals_scikit_learn(columns: dict[str, np.ndarray], threshold: float) -> None:
    """Rates at a threshold are those of scikit-learn."""
    truth, decided = columns["target_label"], columns["predicted_probability"] >= threshold
    assert sensitivity(columns, threshold=threshold) == pytest.approx(recall_score(truth, decided))
    assert specificity(columns, threshold=threshold) == pytest.approx(recall_score(truth, decided, pos_label=0))
    expected = balanced_accuracy_score(truth, decided)
    assert binary_balanced_accuracy(columns, threshold=threshold) == pytest.approx(expected)


def test_calibration_error_from_bins(columns: dict[str, np.ndarray]) -> None:
    """It is the mean distance of scikit-learn's calibration curve, weighted by the samples of each bin."""
    shares, means = calibration_curve(columns["target_label"], columns["predicted_probability"], n_bins=5)
    counts = np.histogram(columns["predicted_probability"], bins=np.linspace(0, 1, 6))[0]
    expected = (np.abs(shares - means) * counts).sum() / counts.sum()
    assert calibration_error(columns, bins=5) == pytest.approx(expected)


def test_perfect_and_undefined() -> None:
    """Certain and right predictions have no error; one label alone has no balanced accuracy."""
    right = {"target_label": np.array([0.0, 1, 1]), "predicted_probability": np.array([0.0, 1, 1])}
    assert (sensitivity(right), specificity(right), binary_balanced_accuracy(right)) == (1, 1, 1)
    assert calibration_error(right) == 0
    one = {"target_label": np.ones(3), "predicted_probability": np.array([0.2, 0.6, 0.9])}
    assert sensitivity(one) == pytest.approx(2 / 3)
    assert math.isnan(specificity(one)) and math.isnan(binary_balanced_accuracy(one))
    none = {"target_label": np.array([]), "predicted_probability": np.array([])}
    assert math.isnan(calibration_error(none)) and math.isnan(sensitivity(none))


def test_best_threshold_has_the_largest_youden_index(columns: dict[str, np.ndarray]) -> None:
    """Sensitivity + specificity at the best threshold is the maximum over scikit-learn's ROC curve."""
    false, true, _ = roc_curve(columns["target_label"], columns["predicted_probability"])
    best = best_threshold(columns)
    found = sensitivity(columns, threshold=best) + specificity(columns, threshold=best)
    assert found == pytest.approx((true - false).max() + 1)


def test_best_threshold_by_hand() -> None:
    """It lies between the classes, or at an end if all predictions are equal; one label has none."""
    assert best_threshold(
        {"target_label": np.array([0.0, 0, 1]), "predicted_probability": np.array([0.1, 0.2, 0.3])}
    ) == (pytest.approx(0.25))
    constant = {"target_label": np.array([0.0, 1]), "predicted_probability": np.array([0.9, 0.9])}
    assert best_threshold(constant) in (0.0, 1.0)
    assert math.isnan(best_threshold({"target_label": np.ones(2), "predicted_probability": np.array([0.1, 0.2])}))


def test_tuned_rates_use_the_threshold_of_the_column(columns: dict[str, np.ndarray]) -> None:
    """Tuned rates are those at the threshold in the column, and undefined without one."""
    with_threshold = {**columns, "best_threshold": np.full(200, 0.3)}
    assert tuned_sensitivity(with_threshold) == sensitivity(columns, threshold=0.3)
    assert tuned_specificity(with_threshold) == specificity(columns, threshold=0.3)
    assert tuned_balanced_accuracy(with_threshold) == binary_balanced_accuracy(columns, threshold=0.3)
    truth, decided = columns["target_label"], columns["predicted_probability"] >= 0.3
    assert tuned_accuracy(with_threshold) == pytest.approx(accuracy_score(truth, decided))
    assert math.isnan(tuned_accuracy({**columns, "best_threshold": np.full(200, np.nan)}))
    assert math.isnan(tuned_balanced_accuracy({**columns, "best_threshold": np.full(200, np.nan)}))
