"""Every registered metric with perfect, empty and random metric inputs."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from harness.core.errors import OutOfRange
from harness.core.registry import METRICS
from harness.metrics.inversion import PERCENTS
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs
from harness.metrics.register import evaluate, evaluate_all, evaluate_chance, inputs_of, options

SPACING_MM = (1.0, 0.8, 2.0)
SHAPE = (12, 11, 10)
NAMES = METRICS.names()
FACTS = {name: METRICS.get(name).facts for name in NAMES}
# Metrics that run the network are best for what this network uses; they have tests of their own.
DIRECTED = [name for name in NAMES if FACTS[name]["direction"] != "none" and FACTS[name]["level"] != "probe"]
OF_MAPS = [name for name in NAMES if "explanation" in inputs_of(METRICS.get(name).function)]
WITH_CHANCE = [name for name in NAMES if FACTS[name]["chance"] is not None]
POOLED = [name for name in NAMES if FACTS[name]["level"] == "pool"]
TRUE = ("true_count", "true_volume_mm3", "target_score", "clean_score", "target_class")
COLUMNS = (*TRUE, "predicted_count", "predicted_volume_mm3", "predicted_score", "predicted_class")
# Metric inputs for third-party metrics that no built-in metric uses.
THIRD_PARTY = {"predict"}


def _mask(rng: np.random.Generator) -> np.ndarray:
    return rng.random(SHAPE) < 0.04


def _inputs(kind: str) -> MetricInputs:
    rng = np.random.default_rng(11)
    nothing = np.zeros(SHAPE, dtype=bool)
    target = _mask(rng)
    prediction = {"perfect": target, "random": _mask(rng), "empty": nothing, "silent": nothing, "invented": _mask(rng)}[
        kind
    ]
    if kind in ("empty", "invented"):
        target = nothing
    explanation = {"perfect": target[None].repeat(2, axis=0).astype(float), "random": rng.normal(size=(2, *SHAPE))}
    truth = np.arange(5.0)
    predicted = {"perfect": truth, "random": rng.normal(size=5), "empty": np.zeros(5), "silent": np.zeros(5)}
    if kind == "empty":
        truth = np.zeros(5)
    labels = (truth > 2).astype(float)
    columns = {name: truth if name in TRUE else predicted.get(kind, truth + 1) for name in COLUMNS}
    columns["target_label"] = labels
    columns["predicted_logit"] = {"perfect": labels, "random": rng.random(5)}.get(kind, np.full(5, 0.5))
    columns["predicted_probability"] = {"perfect": labels, "random": rng.random(5)}.get(kind, np.full(5, 0.5))
    columns["best_threshold"] = np.full(5, 0.5)
    for percent in (0, *PERCENTS):
        noise = rng.random(5)
        columns[f"random_inverted_logits@{percent}"] = noise
        columns[f"inverted_logits@{percent}"] = -labels if kind == "perfect" else noise
    columns |= {"masked_means@T1w:40": rng.random(5), "covariate": np.array([0.0, 1.0, 0.0, 1.0, 0.0])}
    image = np.stack([target + 0.5, target - 0.5])
    return MetricInputs(
        prediction=prediction,
        probability=prediction.astype(np.float32),
        target=target,
        nuisance=_mask(rng),
        spacing_mm=SPACING_MM,
        brain=np.ones(SHAPE, dtype=bool),
        explanation=explanation.get(kind, np.zeros((2, *SHAPE))),
        exact=target.astype(float),
        channels=("T1w", "T2w"),
        rois=np.stack([target, ~target]),
        target_score=0.5,
        predicted_score=0.25,
        clean_score=0.5,
        target_label=1.0,
        predicted_probability=1.0 if kind == "perfect" else 0.25,
        predicted_logit=40.0 if kind == "perfect" else -1.0,
        target_class=2.0,
        class_probabilities=np.array([0.0, 0.0, 1.0] if kind == "perfect" else [0.5, 0.3, 0.2]),
        image=np.clip(image, 0, 1),
        image_channels=("T1w", "T2w"),
        covariates={"": 1.0},
        exposed={"": 0.5},
        predict_logit=lambda images: images.mean(axis=(1, 2, 3, 4)),
        predict=lambda images: images.mean(axis=(1, 2, 3, 4)),
        numbers={"weighted_r2": 0.5},
        rng=rng,
        columns=columns,
    )


@pytest.mark.parametrize("kind", ["perfect", "random", "empty", "silent", "invented"])
@pytest.mark.parametrize("name", NAMES)
def test_value_is_a_float_in_the_declared_range_or_nan(name, kind):
    """Every metric returns a float within its range or NaN, also for empty masks."""
    entry = METRICS.get(name)
    found = evaluate_all(entry.function, _inputs(kind))
    low, high = entry.facts["range"]
    assert isinstance(found, dict) == entry.facts["several"]
    for value in found.values() if isinstance(found, dict) else [found]:
        assert type(value) is float
        assert math.isnan(value) or low <= value <= high + 1e-12


@pytest.mark.parametrize("name", DIRECTED)
def test_perfect_inputs_scores_the_best_value(name):
    """Perfect predictions score the top of the range if higher is better, and zero otherwise."""
    entry = METRICS.get(name)
    direction = entry.facts["direction"]
    value = evaluate(entry.function, _inputs("perfect"))
    assert value == pytest.approx(entry.facts["range"][1] if direction == "higher" else 0.0)


@pytest.mark.parametrize("name", DIRECTED)
def test_random_inputs_scores_worse_than_perfect(name):
    """Random predictions score worse than perfect ones."""
    entry = METRICS.get(name)
    direction = entry.facts["direction"]
    perfect, random = (evaluate(entry.function, _inputs(kind)) for kind in ("perfect", "random"))
    assert random < perfect if direction == "higher" else abs(random) > abs(perfect)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed(name):
    """A metric does not change its inputs."""
    inputs = _inputs("random")
    before = {used: np.array(value) for used in METRIC_INPUTS if isinstance(value := inputs.get(used), np.ndarray)}
    evaluate_all(METRICS.get(name).function, inputs)
    for used, array in before.items():
        np.testing.assert_array_equal(inputs.get(used), array)


@pytest.mark.parametrize("name", NAMES)
def test_same_inputs_give_the_same_value(name):
    """A second call with the same inputs gives the same value."""
    inputs = _inputs("random")
    np.testing.assert_equal(*(evaluate_all(METRICS.get(name).function, inputs) for _ in range(2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["inside the target", "outside", "outside the brain", "without a target"])
@pytest.mark.parametrize("name", OF_MAPS)
def test_maps_that_are_not_finite_are_refused(name, place, value):
    """Every metric of a map refuses one such value, wherever it is, also if its function is called directly."""
    function, inputs = METRICS.get(name).function, _inputs("empty" if place == "without a target" else "random")
    given = {used: inputs.get(used) for used in inputs_of(function)}
    maps, brain = np.array(given["explanation"]), np.ones(SHAPE, dtype=bool)
    chosen = inputs.target if place == "inside the target" else ~inputs.target
    voxel = tuple(np.argwhere(chosen)[3])
    maps[(1, *voxel)] = value
    brain[voxel] = place != "outside the brain"
    options_ = {"inside": "brain"} if place == "outside the brain" and "inside" in options(function) else {}
    with pytest.raises(OutOfRange, match="`explanation` must be finite everywhere, got 1 NaN or infinite of 2640 val"):
        function(**{**given, "explanation": maps, **({"brain": brain} if "brain" in given else {})}, **options_)
    with pytest.raises(OutOfRange, match="`explanation` must be finite everywhere, got 1 NaN or infinite of 2640 val"):
        MetricInputs(explanation=maps)


@pytest.mark.parametrize("name", WITH_CHANCE)
def test_chance_lies_in_the_range(name):
    """A declared chance level lies within the range of the metric."""
    entry = METRICS.get(name)
    low, high = entry.facts["range"]
    assert low <= evaluate_chance(entry.function, _inputs("random")) < high


@pytest.mark.parametrize("name", POOLED)
def test_needs_are_metrics_of_subjects(name):
    """Columns of a pooled metric are metrics of subjects, chosen from predictions, or all those of kinds."""
    assert FACTS[name]["needs"] or FACTS[name]["kinds"]
    for column in FACTS[name]["needs"]:
        chosen_from = FACTS[column]["needs"] if FACTS[column]["level"] == "pool" else (column,)
        assert {FACTS[one]["level"] for one in chosen_from} <= {"subject", "probe"}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_covers_every_parameter(name):
    """The docstring has a summary, a section Returns and the name of every option."""
    function = METRICS.get(name).function
    text = inspect.getdoc(function) or ""
    assert METRICS.get(name).summary.endswith(".")
    assert "Returns" in text
    assert [word for word in options(function) if word not in text] == []


def test_all_inputs_are_used_by_some_metric():
    """Every metric input is used by a built-in metric, except those for third-party metrics."""
    used = {word for name in METRICS.names() for word in inputs_of(METRICS.get(name).function)}
    assert set(METRIC_INPUTS) == used | THIRD_PARTY
