"""Labels and classes: scikit-learn is the reference, hand-made columns for the rest."""

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
    """Labels, and probabilities that know something of them; some are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(float)
    return {
        "target_label": labels,
        "predicted_probability": np.round(np.clip(0.3 * labels + rng.uniform(0, 0.7, n), 0, 1), 1),
    }


def classes(seed: int = 0, n: int = 60) -> dict[str, Array]:
    """Three classes of unequal size, half of them recognised."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(float)
    return {"target_class": truth, "predicted_class": np.where(rng.random(n) < 0.5, truth, rng.integers(0, 3, n))}


def probabilities(seed: int = 0, n: int = 60) -> tuple[Array, Array]:
    """True classes, and probabilities of four classes each."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    return truth, rng.dirichlet(np.ones(4), n)


@SEEDS
def test_auroc_is_sklearns(seed: int) -> None:
    """Ties count half."""
    columns = binary(seed)
    expected = reference.roc_auc_score(columns["target_label"], columns["predicted_probability"])
    assert compute("auroc", columns=columns) == pytest.approx(expected, abs=1e-12)


@SEEDS
def test_balanced_accuracy_is_sklearns(seed: int) -> None:
    """The mean recall of the classes."""
    columns = classes(seed)
    expected = reference.balanced_accuracy_score(columns["target_class"], columns["predicted_class"])
    assert compute("balanced_accuracy", columns=columns) == pytest.approx(expected, abs=1e-12)


@SEEDS
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_mean_of_binary_accuracy_is_sklearns_accuracy(seed: int, threshold: float) -> None:
    """A probability at the threshold is called positive."""
    columns = binary(seed)
    found = [
        compute("binary_accuracy", target_label=label, predicted_probability=probability, threshold=threshold)
        for label, probability in zip(*columns.values(), strict=True)
    ]
    expected = reference.accuracy_score(columns["target_label"], columns["predicted_probability"] >= threshold)
    assert np.mean(found) == pytest.approx(expected)


@SEEDS
def test_mean_of_brier_is_sklearns_brier_score(seed: int) -> None:
    """The mean squared difference of probability and label."""
    columns = binary(seed)
    found = [
        compute("brier", target_label=label, predicted_probability=probability)
        for label, probability in zip(*columns.values(), strict=True)
    ]
    assert np.mean(found) == pytest.approx(reference.brier_score_loss(*columns.values()))


@SEEDS
def test_mean_of_accuracy_is_sklearns_top_one(seed: int) -> None:
    """The most probable class is the prediction."""
    truth, said = probabilities(seed)
    found = [compute("accuracy", target_class=one, class_probabilities=of) for one, of in zip(truth, said, strict=True)]
    assert np.mean(found) == pytest.approx(reference.top_k_accuracy_score(truth, said, k=1))


def test_predicted_class_is_the_most_probable() -> None:
    """Of several equal ones the first."""
    assert compute("predicted_class", class_probabilities=[0.2, 0.4, 0.4]) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("target_label", 1.0), ("predicted_probability", 0.75), ("target_class", 2.0)]
)
def test_values_are_handed_on(name: str, value: float) -> None:
    """The metric of the name returns the input of the name."""
    assert compute(name, **{name: value}) == value


@pytest.mark.parametrize("name", ["auroc", "balanced_accuracy", "balanced_chance"])
def test_samples_without_a_value_are_left_out(name: str) -> None:
    """A NaN in either column removes the sample."""
    columns = binary() if name == "auroc" else classes()
    first, second = columns
    more = {first: np.append(columns[first], [0.0, NAN]), second: np.append(columns[second], [NAN, 1.0])}
    assert compute(name, columns=more) == compute(name, columns=columns)


@pytest.mark.parametrize("labels", [[], [1.0], [0.0, 0.0, 0.0]])
def test_auroc_of_one_label_is_undefined(labels: list[float]) -> None:
    """There is no pair to rank."""
    columns = {"target_label": np.array(labels), "predicted_probability": np.linspace(0.1, 0.9, len(labels))}
    assert np.isnan(compute("auroc", columns=columns))


@pytest.mark.parametrize("name", ["balanced_accuracy", "balanced_chance"])
def test_balanced_accuracy_of_nothing_is_undefined(name: str) -> None:
    """NaN without samples."""
    assert np.isnan(compute(name, columns={"target_class": np.zeros(0), "predicted_class": np.zeros(0)}))


def test_a_class_that_is_only_predicted_is_not_counted() -> None:
    """By hand: class 0 is recognised twice of three times, class 1 always; class 2 does not occur."""
    columns = {"target_class": np.array([0.0, 0, 0, 1]), "predicted_class": np.array([0.0, 0, 2, 1])}
    assert compute("balanced_accuracy", columns=columns) == pytest.approx((2 / 3 + 1) / 2)


def test_chance_of_balanced_accuracy_is_one_over_the_classes() -> None:
    """What a constant prediction scores, whatever class it says; 0.5 for the area under the curve."""
    columns = classes()
    part = partial(METRICS.get("balanced_accuracy").function)
    chance = evaluate_chance(part, MetricInputs(columns=columns))
    constant = [
        compute("balanced_accuracy", columns={**columns, "predicted_class": np.full(60, float(one))})
        for one in range(3)
    ]
    assert chance == pytest.approx(1 / 3) and constant == pytest.approx([chance] * 3)


def test_chance_of_auroc_is_a_half() -> None:
    """Equal probabilities score it exactly."""
    columns = {**binary(), "predicted_probability": np.full(60, 0.3)}
    assert evaluate_chance(METRICS.get("auroc").function, MetricInputs(columns=columns)) == 0.5
    assert compute("auroc", columns=columns) == 0.5


@pytest.mark.parametrize("name", ["auroc", "balanced_accuracy"])
def test_a_column_that_is_absent_is_named(name: str) -> None:
    """The message says which column, and what there is."""
    with pytest.raises(UnknownName, match=r"no column is named 'target_(label|class)'\. All: other\."):
        compute(name, columns={"other": np.ones(3)})
