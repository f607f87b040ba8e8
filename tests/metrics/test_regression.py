"""Regression metrics against scikit-learn and scipy, and the published formula of the ceiling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score

from harness.core.errors import OutOfRange, UnknownName
from harness.core.registry import METRICS
from harness.metrics import compute
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate_ceiling, evaluate_chance

POOLED = ("r2", "r2_ceiling", "r2_clean", "r_squared", "r_squared_p", "mse", "slope", "bias")


def columns(n: int = 60, *, noise: float = 0.3, seed: int = 0) -> dict[str, np.ndarray]:
    """Clean scores, noisy targets and imperfect predictions."""
    rng = np.random.default_rng(seed)
    clean = rng.beta(0.6, 0.4, size=n)
    target = (1 - noise) * clean + noise * clean.std() * rng.normal(size=n)
    return {"clean_score": clean, "target_score": target, "predicted_score": 0.5 * clean + 0.1 * rng.normal(size=n)}


def slow_slope(target: np.ndarray, predicted: np.ndarray) -> float:
    """Slope of the target on the prediction."""
    return float(LinearRegression().fit(predicted[:, None], target).coef_[0])


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r2": r2_score,
    "r_squared": lambda target, predicted: stats.pearsonr(target, predicted).statistic ** 2,
    "r_squared_p": lambda target, predicted: stats.pearsonr(target, predicted).pvalue,
    "mse": mean_squared_error,
    "slope": slow_slope,
    "bias": lambda target, predicted: predicted.mean() - target.mean(),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_value_agrees_with_the_reference(name: str) -> None:
    """Values agree with scikit-learn and scipy, including the order of target and prediction."""
    given = columns()
    expected = REFERENCES[name](given["target_score"], given["predicted_score"])
    assert compute(name, columns=given) == pytest.approx(expected)


def test_clean_r2_is_against_the_noise_free_score() -> None:
    """``r2_clean`` uses the clean score and does not depend on the target column."""
    given = columns()
    expected = r2_score(given["clean_score"], given["predicted_score"])
    assert compute("r2_clean", columns={**given, "target_score": given["target_score"][::-1]}) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("noise", "ceiling"), [(0.0, 1.0), (0.1, 0.988), (0.2, 0.941), (0.3, 0.845), (0.4, 0.692), (0.5, 0.5)]
)
def test_ceiling_agrees_with_the_formula_on_average(noise: float, ceiling: float) -> None:
    """The mean over cohorts of 821 is (1−a)² / ((1−a)² + a²), also after scaling to 0–1."""
    values = []
    for seed in range(20):
        given = columns(821, noise=noise, seed=seed)
        target = given["target_score"]
        given["target_score"] = (target - target.min()) / np.ptp(target)
        values.append(compute("r2_ceiling", columns=given))
    assert np.mean(values) == pytest.approx(ceiling, abs=0.01)


def test_ceiling_is_the_r2_of_the_best_affine_predictor() -> None:
    """The ceiling is scikit-learn's R² of the least-squares line of the target on the clean score."""
    given = columns()
    x = given["clean_score"][:, None]
    best = LinearRegression().fit(x, given["target_score"]).predict(x)
    reached = compute("r2", columns={**given, "predicted_score": best})
    assert compute("r2_ceiling", columns=given) == pytest.approx(reached)


def test_r2_declares_ceiling_and_chance() -> None:
    """R² declares its ceiling, and its chance level of 0 is that of a constant prediction."""
    inputs = MetricInputs(columns=columns())
    for name in ("r2", "r_squared"):
        function = METRICS.get(name).function
        assert evaluate_ceiling(function, inputs) == compute("r2_ceiling", columns=columns())
        assert evaluate_chance(function, inputs) == 0


def test_real_scores_have_no_ceiling() -> None:
    """Without clean scores, the ceiling is NaN."""
    given = columns()
    del given["clean_score"]
    assert np.isnan(evaluate_ceiling(METRICS.get("r2").function, MetricInputs(columns=given)))
    given["clean_score"] = np.full(60, np.nan)
    assert np.isnan(evaluate_ceiling(METRICS.get("r2").function, MetricInputs(columns=given)))


def test_metrics_without_a_ceiling_have_none() -> None:
    """A metric without a declared ceiling has a ceiling of NaN."""
    assert np.isnan(evaluate_ceiling(METRICS.get("mse").function, MetricInputs(columns=columns())))


def test_mean_prediction_scores_zero() -> None:
    """Predicting the mean gives an R² of 0, the declared chance level."""
    given = columns()
    given["predicted_score"] = np.full(60, given["target_score"].mean())
    assert compute("r2", columns=given) == pytest.approx(0)


def test_prediction_on_another_scale_has_r2_below_minus_one() -> None:
    """A prediction three times too large has R² < −1, but a squared correlation of 1."""
    given = columns()
    given["predicted_score"] = 3 * given["target_score"]
    assert compute("r2", columns=given) < -1
    assert compute("r_squared", columns=given) == pytest.approx(1)
    assert compute("slope", columns=given) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", POOLED)
def test_subjects_without_a_value_are_left_out(name: str) -> None:
    """Subjects with NaN in a required column are left out."""
    given = columns()
    extended = {key: np.r_[column, 0.5] for key, column in given.items()}
    for key in METRICS.get(name).facts["needs"]:
        one = {**extended, key: np.r_[given[key], np.nan]}
        assert compute(name, columns=one) == pytest.approx(compute(name, columns=given))


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("n", [0, 1])
def test_too_few_subjects_are_nan(name: str, n: int) -> None:
    """With too few subjects, all values except error and bias are NaN."""
    given = {key: column[:n] for key, column in columns().items()}
    assert np.isnan(compute(name, columns=given)) == (n == 0 or name not in ("mse", "bias"))


@pytest.mark.parametrize("name", ["r2", "r2_ceiling", "r2_clean", "r_squared", "r_squared_p"])
def test_equal_targets_are_nan(name: str) -> None:
    """Equal targets give NaN, also if their mean is rounded."""
    constant = np.full(7, 0.1)
    given = {"clean_score": constant, "target_score": constant, "predicted_score": np.arange(7.0)}
    assert np.isnan(compute(name, columns=given))


def test_equal_predictions_have_no_slope() -> None:
    """For a constant prediction, slope and correlation are NaN."""
    given = {**columns(), "predicted_score": np.full(60, 0.1)}
    assert np.isnan(compute("slope", columns=given))
    assert np.isnan(compute("r_squared", columns=given))


def test_missing_column_is_named() -> None:
    """A missing column raises an error that names it and lists the columns given."""
    with pytest.raises(UnknownName, match=r"no column is named 'predicted_score'.* All: target_score"):
        compute("r2", columns={"target_score": np.arange(3.0)})


@pytest.mark.parametrize("name", ["target_score", "predicted_score", "clean_score"])
def test_input_values_are_returned(name: str) -> None:
    """A metric named after a metric input returns the value of that input."""
    assert compute(name, **{name: 0.25}) == 0.25


def test_clean_score_may_be_unknown() -> None:
    """Without a clean score, the value is NaN."""
    assert np.isnan(compute("clean_score"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_must_be_finite(value: float) -> None:
    """A score that is NaN or infinite is refused; a missing score must be left out."""
    with pytest.raises(OutOfRange, match=r"`target_score` must be a finite number, got (nan|inf); leave out"):
        MetricInputs(target_score=value)
