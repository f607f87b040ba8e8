"""Targets: properties of each kind, and predictions from network outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import special

from harness.core.errors import OutOfRange
from harness.core.targets import KINDS, Kind, Target, as_array, kept, logistic, softmax
from harness.core.types import Sample
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs
from harness.models.heads import HEADS

NUMBER = Target("age", "number")
BINARY = Target("sex", "binary")
MASK = Target("lesion", "mask")
CLASSES = Target("hair", "classes", ("black", "blond", "red"))


@pytest.mark.parametrize(
    ("target", "width", "of_sample"),
    [(MASK, 2, False), (NUMBER, 1, True), (BINARY, 1, True), (CLASSES, 3, True)],
)
def test_width_of_the_head(target: Target, width: int, of_sample: bool) -> None:
    """A mask has two channels per voxel, classes have one logit each, and other kinds have one value."""
    assert (target.width, target.of_sample) == (width, of_sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ordinal"}, "kind of target x must be one of mask, number, binary, classes, got 'ordinal'"),
        (
            {"kind": "classes"},
            r"and other kinds must name none; got \(\) for x \(classes\)",
        ),
        ({"kind": "classes", "classes": ("a",)}, r"two different classes or more.*got \('a',\)"),
        ({"kind": "classes", "classes": ("a", "b", "a")}, r"two different classes or more.*got \('a', 'b', 'a'\)"),
        ({"kind": "binary", "classes": ("a", "b")}, r"other kinds must name none; got \('a', 'b'\) for x \(binary\)"),
        ({"kind": "number", "classes": ("a",)}, r"other kinds must name none; got \('a',\) for x \(number\)"),
        ({"kind": "number", "loss_weight": 0.0}, "`0 < loss_weight < inf` must hold for target x, got 0.0"),
        ({"kind": "number", "loss_weight": float("nan")}, "`0 < loss_weight < inf` must hold for target x, got nan"),
        ({"kind": "number", "loss_weight": float("inf")}, "must hold for target x, got inf"),
    ],
)
def test_invalid_targets_are_refused(options: dict[str, Any], message: str) -> None:
    """Unknown kinds, missing or misplaced classes and weights that are not positive and finite are refused."""
    with pytest.raises(OutOfRange, match=message):
        Target("x", **options)


def test_number_keeps_its_value() -> None:
    """A number is kept as one float64 value."""
    found = kept(NUMBER, np.array([1.5], np.float32))
    assert set(found) == {"value"}
    assert (found["value"].shape, found["value"].dtype, float(found["value"])) == ((), np.float64, 1.5)


@pytest.mark.parametrize("logit", [-3.25, 0.0, 1.5])
def test_binary_target_keeps_logit_and_probability(logit: float) -> None:
    """The probability of a binary target is scipy's expit of the logit."""
    found = kept(BINARY, np.array([logit], np.float32))
    assert set(found) == {"logit", "probability"}
    assert [one.shape for one in found.values()] == [(), ()]
    assert float(found["logit"]) == logit
    assert float(found["probability"]) == pytest.approx(special.expit(logit), rel=1e-14)


def test_classes_keep_logits_and_probabilities() -> None:
    """The probabilities of classes are scipy's softmax of the logits."""
    logits = np.array([0.5, -2.0, 3.0], np.float32)
    found = kept(CLASSES, logits)
    assert set(found) == {"logits", "probabilities"}
    assert {one.dtype for one in found.values()} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_allclose(found["probabilities"], special.softmax(logits.astype(np.float64)), rtol=1e-14)


@pytest.mark.parametrize(("target", "output"), [(MASK, np.zeros(2)), (BINARY, np.zeros(2)), (CLASSES, np.zeros(2))])
def test_output_of_another_target_is_refused(target: Target, output: np.ndarray) -> None:
    """A mask, or an output of another width than the target's, is refused."""
    with pytest.raises(OutOfRange, match=rf"output of {target.name} \({target.kind}\) must be .*got shape \(2,\)"):
        kept(target, output)


def test_logistic_agrees_with_scipy() -> None:
    """``logistic`` agrees with scipy for arrays of any shape and does not overflow."""
    logits = np.linspace(-700, 700, 162).reshape(2, 81)
    np.testing.assert_allclose(logistic(logits), special.expit(logits), rtol=1e-14, atol=0)
    np.testing.assert_array_equal(logistic(np.array([-1e4, 1e4])), [0, 1])


def test_softmax_agrees_with_scipy() -> None:
    """``softmax`` agrees with scipy over the last axis and does not overflow."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 3)) * 10.0 ** rng.integers(-2, 4, (4, 5, 1))
    np.testing.assert_allclose(softmax(logits), special.softmax(logits, axis=-1), rtol=1e-12)


@pytest.mark.parametrize(("target", "dtype"), [(NUMBER, np.float32), (BINARY, np.float32), (CLASSES, np.int64)])
def test_target_array_has_the_dtype_of_its_loss(target: Target, dtype: type) -> None:
    """Numbers and binary labels become float32 and classes int64, as torch's losses require."""
    found = as_array(target, 1.0)
    assert (found.tolist(), found.dtype) == ([1], dtype)


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_equal_predictions_are_collapsed(target: Target) -> None:
    """Predictions that are the same for all samples are collapsed."""
    same = [kept(target, np.linspace(1, 2, target.width))] * 4
    assert KINDS[target.kind].is_collapsed(same, [0, 1, 1, 0])


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_different_predictions_are_not_collapsed(target: Target) -> None:
    """Predictions that differ by one part in ten thousand are not collapsed."""
    steps = [np.linspace(1, 2, target.width) + np.eye(target.width)[0] * number * 1e-4 for number in range(4)]
    assert not KINDS[target.kind].is_collapsed([kept(target, one) for one in steps], [0, 1, 1, 0])


def test_spread_of_numbers_is_relative_to_the_truth() -> None:
    """The spread of predicted numbers is compared with the spread of the true values."""
    predictions = [kept(NUMBER, np.array([value])) for value in (5.0, 5.001)]
    assert KINDS[NUMBER.kind].is_collapsed(predictions, [0.0, 1e6])
    assert not KINDS[NUMBER.kind].is_collapsed(predictions, [0.0, 0.01])


def _scaled(target: Target, factor: float, count: int = 40) -> tuple[list[Mapping[str, Any]], list[float]]:
    """Predictions that are correct up to their spread, which is a factor of that of the truth, and the truths."""
    truths = np.arange(count) % (target.width if target.width > 1 else 2)
    if target.kind == "number":
        return [{"value": np.asarray(7 + factor * truth)} for truth in truths], list(truths)
    if target.kind == "binary":
        return [{"logit": truth - 0.5, "probability": 0.3 + factor * truth} for truth in truths], list(truths)
    rows = [np.full(target.width, (1 - factor) / target.width) + factor * np.eye(target.width)[one] for one in truths]
    return [{"logits": np.log(row), "probabilities": row} for row in rows], list(truths)


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
@pytest.mark.parametrize(("factor", "low"), [(0.001, True), (0.09, True), (0.11, False), (0.5, False)])
def test_predictions_that_hardly_vary_have_a_low_spread(target: Target, factor: float, low: bool) -> None:
    """Below 10 % of the spread of the truth, predictions have a low spread, whatever their correlation."""
    kind = KINDS[target.kind]
    assert kind.has_low_spread(*_scaled(target, factor)) is low
    assert not kind.is_collapsed(*_scaled(target, factor))


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_collapsed_predictions_have_no_low_spread(target: Target) -> None:
    """A prediction has one flag: constant predictions are collapsed."""
    same = [kept(target, np.linspace(1, 2, target.width))] * 8
    assert KINDS[target.kind].is_collapsed(same, [0, 1] * 4)
    assert not KINDS[target.kind].has_low_spread(same, [0, 1] * 4)


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_low_spread_needs_six_samples_that_differ(target: Target) -> None:
    """The spread of few samples is small by chance, and there is none to compare with if all truths are equal."""
    predictions, truths = _scaled(target, 0.01)
    kind = KINDS[target.kind]
    assert kind.has_low_spread(predictions[:6], truths[:6])
    assert not kind.has_low_spread(predictions[:5], truths[:5])
    assert not kind.has_low_spread(predictions, [1.0] * len(truths))


def test_masks_have_no_low_spread() -> None:
    """Images are compared voxel by voxel."""
    assert not KINDS["mask"].has_low_spread([{"probability": np.full(9, 0.4, np.float32)}] * 8, [])


@pytest.mark.parametrize("truths", [[], [1.0], [1.0, 1.0]])
def test_constant_truth_is_not_collapsed(truths: list[float]) -> None:
    """If there are fewer than two samples or all true values are equal, nothing is collapsed."""
    assert not KINDS[BINARY.kind].is_collapsed([kept(BINARY, np.array([2.0]))] * len(truths), truths)


@pytest.mark.parametrize(
    ("probabilities", "collapsed"),
    [
        ([[0.1, 0.4], [0.2, 0.3]], True),
        ([[0.6, 0.7], [0.9, 0.8]], True),
        ([[0.4999999, 0.5000001], [0.1, 0.2]], True),
        ([[0.49, 0.51], [0.1, 0.2]], False),
        ([[0.1, 0.9], [0.2, 0.8]], False),
    ],
    ids=["empty masks", "full masks", "constant", "one mask with lesion and background", "two"],
)
def test_masks_are_collapsed_if_no_sample_has_two_classes(probabilities: list[list[float]], collapsed: bool) -> None:
    """Masks are collapsed if each is empty, full, or of one probability, and not if a single one is better."""
    predictions = [{"probability": np.array(one, np.float32)} for one in probabilities]
    assert KINDS["mask"].is_collapsed(predictions, []) is collapsed


ONE_OF_EACH = (MASK, NUMBER, BINARY, CLASSES)


def predictions_of(target: Target, count: int) -> list[Mapping[str, Any]]:
    """What is stored of random outputs."""
    rng = np.random.default_rng(0)
    if not target.of_sample:
        return [{"probability": rng.random((5, 4, 3), np.float32)} for _ in range(count)]
    return [kept(target, rng.normal(size=target.width)) for _ in range(count)]


class TestEveryKind:
    """Whatever holds for all kinds of targets."""

    def test_every_kind_is_tested(self) -> None:
        """Every kind has a class and an example in these tests."""
        assert tuple(KINDS) == get_args(Kind) == tuple(one.kind for one in ONE_OF_EACH)

    @pytest.mark.parametrize("target", ONE_OF_EACH, ids=lambda one: one.kind)
    def test_average_of_equal_predictions(self, target: Target) -> None:
        """The average of equal predictions is the prediction itself, except for an offset of logits."""
        (one,) = predictions_of(target, 1)
        found = KINDS[target.kind].average([one] * 3)
        assert found.keys() == one.keys()
        for name, values in found.items():
            assert (values.shape, values.dtype) == (one[name].shape, one[name].dtype)
            offset = np.ptp(values - one[name]) if name == "logits" else np.abs(values - one[name]).max()
            assert offset < 1e-6

    @pytest.mark.parametrize("target", ONE_OF_EACH, ids=lambda one: one.kind)
    def test_average_lies_between_the_predictions(self, target: Target) -> None:
        """Values and probabilities are averaged: they are the means over networks."""
        several = predictions_of(target, 4)
        found = KINDS[target.kind].average(several)
        (name,) = found.keys() & {"value", "probability", "probabilities"}
        np.testing.assert_allclose(found[name], np.mean([one[name] for one in several], axis=0), rtol=1e-6)

    def test_kinds_with_classes(self) -> None:
        """Binary and classes targets have classes; samples can be chosen by them."""
        assert [KINDS[one.kind].class_count(one) for one in ONE_OF_EACH] == [0, 0, 2, 3]

    @pytest.mark.parametrize("target", [BINARY, CLASSES], ids=lambda one: one.kind)
    def test_classes_and_their_confidence(self, target: Target) -> None:
        """The predicted class is the one with the highest probability, which is the confidence."""
        kind = KINDS[target.kind]
        for one in predictions_of(target, 20):
            positive = one.get("probability")
            each = one["probabilities"] if positive is None else np.array([1 - positive, positive])
            assert len(each) == kind.class_count(target)
            assert (kind.predicted_class(one), kind.confidence(one)) == (each.argmax(), each.max())

    @pytest.mark.parametrize("target", ONE_OF_EACH, ids=lambda one: one.kind)
    def test_columns_name_their_target(self, target: Target) -> None:
        """Columns of the table of predictions start with the target's name; an image has none."""
        (one,) = predictions_of(target, 1)
        columns = KINDS[target.kind].columns(target, one)
        assert bool(columns) is target.of_sample
        assert all(name.startswith(target.name) and np.isfinite(value) for name, value in columns.items())

    @pytest.mark.parametrize("target", ONE_OF_EACH, ids=lambda one: one.kind)
    def test_metric_inputs_are_those_declared(self, target: Target, in_memory: Callable[..., Any]) -> None:
        """Truth and prediction give the declared inputs of metrics, and no others."""
        mask = np.random.default_rng(1).random((5, 4, 3)) < 0.3
        values = {} if target.kind == "mask" else {target.name: 1.0}
        sample = Sample("a", "a", {}, {target.name: in_memory(mask)}, {}, targets=values, clean=values)
        kind, (one,) = KINDS[target.kind], predictions_of(target, 1)
        truth, prediction = kind.inputs_of_truth(target, sample), kind.inputs_of_prediction(one)
        inputs = MetricInputs(**truth, **prediction, spacing_mm=(1, 1, 1))
        declared = kind.truth_inputs | kind.prediction_inputs
        given = {name for name in METRIC_INPUTS if name != "spacing_mm" and inputs.get(name) is not None}
        assert given == declared and truth.keys() <= kind.truth_inputs and prediction.keys() <= kind.prediction_inputs

    @pytest.mark.parametrize("target", ONE_OF_EACH, ids=lambda one: one.kind)
    def test_head_gives_one_loss_and_one_scalar_per_item(self, target: Target) -> None:
        """The head gives the loss and the explained scalar of each item alone, whatever else is in the batch."""
        rng, head = np.random.default_rng(0), HEADS[target.kind]
        space = () if target.of_sample else (5, 4)
        output = torch.from_numpy(rng.normal(size=(6, target.width, *space)).astype(np.float32))
        labels = torch.from_numpy(rng.integers(0, 2, (6, *space)).astype(KINDS[target.kind].dtype))
        for found, alone in (
            (head.loss(output, labels), [head.loss(output[[i]], labels[[i]]) for i in range(6)]),
            (head.scalar(output, 0), [head.scalar(output[[i]], 0) for i in range(6)]),
        ):
            assert found.shape == (6,)
            torch.testing.assert_close(found, torch.cat(alone))
