"""Metrics of a binary decision, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, recall_score

from harness.metrics.diagnostic import binary_balanced_accuracy, calibration_error, sensitivity, specificity


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
