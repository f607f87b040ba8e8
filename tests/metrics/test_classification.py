"""Classification metrics against scikit-learn and hand-made columns."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as reference

from harness.core.errors import UnknownName
from harness.core.registry import METRICS
from harness.core.types import Array
from harness.metrics import compute
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate_chance

NAN = float("nan")
SEEDS = pytest.mark.parametrize("seed", range(3))


def binary(seed: int = 0, n: int = 60) -> dict[str, Array]:
    """Labels and probabilities that depend on them, with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(float)
    return {
        "target_label": labels,
        "predicted_probability": np.round(np.clip(0.3 * labels + rng.uniform(0, 0.7, n), 0, 1), 1),
    }


def classes(seed: int = 0, n: int = 60) -> dict[str, Array]:
    """Three classes of unequal size, about half of them predicted correctly."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(float)
    return {"target_class": truth, "predicted_class": np.where(rng.random(n) < 0.5, truth, rng.integers(0, 3, n))}


def probabilities(seed: int = 0, n: int = 60) -> tuple[Array, Array]:
    """True classes and the probabilities of four classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    return truth, rng.dirichlet(np.ones(4), n)


@SEEDS
def test_auroc_agrees_with_sklearn(seed: int) -> None:
    """The area under the ROC curve agrees with scikit-learn, with ties counted as one half."""
    columns = binary(seed)
    expected = reference.roc_auc_score(columns["target_label"], columns["predicted_probability"])
    columns = {"target_label": columns["target_label"], "predicted_logit": columns["predicted_probability"]}
    assert compute("auroc", columns=columns) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_very_sure_networks() -> None:
    """Logits whose probabilities are all 0 or all 1 after rounding are still in order."""
    labels = np.repeat([0.0, 1.0], 10)
    for offset in (-900.0, 40.0):
        assert compute("auroc", columns={"target_label": labels, "predicted_logit": offset + np.arange(20.0)}) == 1


@SEEDS
def test_balanced_accuracy_agrees_with_sklearn(seed: int) -> None:
    """Balanced accuracy agrees with scikit-learn."""
    columns = classes(seed)
    expected = reference.balanced_accuracy_score(columns["target_class"], columns["predicted_class"])
    assert compute("balanced_accuracy", columns=columns) == pytest.approx(expected, abs=1e-12)


@SEEDS
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_mean_of_binary_accuracy_agrees_with_sklearn(seed: int, threshold: float) -> None:
    """The mean of ``binary_accuracy`` is scikit-learn's accuracy; a probability at the threshold is positive."""
    columns = binary(seed)
    found = [
        compute("binary_accuracy", target_label=label, predicted_probability=probability, threshold=threshold)
        for label, probability in zip(*columns.values(), strict=True)
    ]
    expected = reference.accuracy_score(columns["target_label"], columns["predicted_probability"] >= threshold)
    assert np.mean(found) == pytest.approx(expected)


@SEEDS
def test_mean_of_brier_agrees_with_sklearn(seed: int) -> None:
    """The mean of ``brier`` is scikit-learn's Brier score."""
    columns = binary(seed)
    found = [
        compute("brier", target_label=label, predicted_probability=probability)
        for label, probability in zip(*columns.values(), strict=True)
    ]
    assert np.mean(found) == pytest.approx(reference.brier_score_loss(*columns.values()))


@SEEDS
def test_mean_of_accuracy_agrees_with_sklearn(seed: int) -> None:
    """The mean of ``accuracy`` is scikit-learn's top-1 accuracy."""
    truth, predicted = probabilities(seed)
    found = [
        compute("accuracy", target_class=one, class_probabilities=of) for one, of in zip(truth, predicted, strict=True)
    ]
    assert np.mean(found) == pytest.approx(reference.top_k_accuracy_score(truth, predicted, k=1))


def test_predicted_class_is_the_most_probable() -> None:
    """Of several classes with the highest probability, the first is predicted."""
    assert compute("predicted_class", class_probabilities=[0.2, 0.4, 0.4]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_label", 1.0), ("predicted_probability", 0.75), ("predicted_logit", -3.0), ("target_class", 2.0)],
)
def test_input_values_are_returned(name: str, value: float) -> None:
    """A metric named after a metric input returns the value of that input."""
    assert compute(name, **{name: value}) == value


@pytest.mark.parametrize("name", ["auroc", "balanced_accuracy", "balanced_chance"])
def test_samples_without_a_value_are_left_out(name: str) -> None:
    """Samples with NaN in either column are left out."""
    columns = classes()
    if name == "auroc":
        columns = dict(zip(("target_label", "predicted_logit"), binary().values(), strict=True))
    first, second = columns
    more = {first: np.append(columns[first], [0.0, NAN]), second: np.append(columns[second], [NAN, 1.0])}
    assert compute(name, columns=more) == compute(name, columns=columns)


@pytest.mark.parametrize("labels", [[], [1.0], [0.0, 0.0, 0.0]])
def test_auroc_of_one_label_is_undefined(labels: list[float]) -> None:
    """The area under the ROC curve is NaN without samples of both labels."""
    columns = {"target_label": np.array(labels), "predicted_logit": np.linspace(0.1, 0.9, len(labels))}
    assert np.isnan(compute("auroc", columns=columns))


@pytest.mark.parametrize("name", ["balanced_accuracy", "balanced_chance"])
def test_balanced_accuracy_of_nothing_is_undefined(name: str) -> None:
    """Without samples, balanced accuracy and its chance level are NaN."""
    assert np.isnan(compute(name, columns={"target_class": np.zeros(0), "predicted_class": np.zeros(0)}))


def test_a_class_without_samples_is_not_counted() -> None:
    """A class that never occurs and is only predicted does not count: recalls are 2/3 and 1."""
    columns = {"target_class": np.array([0.0, 0, 0, 1]), "predicted_class": np.array([0.0, 0, 2, 1])}
    assert compute("balanced_accuracy", columns=columns) == pytest.approx((2 / 3 + 1) / 2)


def test_chance_of_balanced_accuracy_is_one_over_the_classes() -> None:
    """The chance level of balanced accuracy is one over the number of classes, as for constant predictions."""
    columns = classes()
    part = partial(METRICS.get("balanced_accuracy").function)
    chance = evaluate_chance(part, MetricInputs(columns=columns))
    constant = [
        compute("balanced_accuracy", columns={**columns, "predicted_class": np.full(60, float(one))})
        for one in range(3)
    ]
    assert chance == pytest.approx(1 / 3) and constant == pytest.approx([chance] * 3)


def test_chance_of_auroc_is_a_half() -> None:
    """The chance level of the area under the ROC curve is 0.5, as for equal probabilities."""
    columns = {**binary(), "predicted_logit": np.full(60, 0.3)}
    assert evaluate_chance(METRICS.get("auroc").function, MetricInputs(columns=columns)) == 0.5
    assert compute("auroc", columns=columns) == 0.5


@pytest.mark.parametrize("name", ["auroc", "balanced_accuracy"])
def test_missing_column_is_named(name: str) -> None:
    """A missing column raises an error that names it and lists the columns given."""
    with pytest.raises(UnknownName, match=r"no column is named 'target_(label|class)'\. All: other\."):
        compute(name, columns={"other": np.ones(3)})
