"""Targets: properties of each kind, and predictions from network outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from harness.core.errors import OutOfRange
from harness.core.targets import Target, as_array, is_collapsed, kept, logistic, softmax

NUMBER = Target("age", "number")
BINARY = Target("sex", "binary")
CLASSES = Target("hair", "classes", ("black", "blond", "red"))


@pytest.mark.parametrize(
    ("target", "width", "of_sample"),
    [(Target("lesion", "mask"), 2, False), (NUMBER, 1, True), (BINARY, 1, True), (CLASSES, 3, True)],
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


@pytest.mark.parametrize(
    ("target", "output"), [(Target("lesion", "mask"), np.zeros(2)), (BINARY, np.zeros(2)), (CLASSES, np.zeros(2))]
)
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
    assert is_collapsed(target, same, [0, 1, 1, 0])


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_different_predictions_are_not_collapsed(target: Target) -> None:
    """Predictions that differ by one part in ten thousand are not collapsed."""
    steps = [np.linspace(1, 2, target.width) + np.eye(target.width)[0] * number * 1e-4 for number in range(4)]
    assert not is_collapsed(target, [kept(target, one) for one in steps], [0, 1, 1, 0])


def test_spread_of_numbers_is_relative_to_the_truth() -> None:
    """The spread of predicted numbers is compared with the spread of the true values."""
    predictions = [kept(NUMBER, np.array([value])) for value in (5.0, 5.001)]
    assert is_collapsed(NUMBER, predictions, [0.0, 1e6])
    assert not is_collapsed(NUMBER, predictions, [0.0, 0.01])


@pytest.mark.parametrize("truths", [[], [1.0], [1.0, 1.0]])
def test_constant_truth_is_not_collapsed(truths: list[float]) -> None:
    """If there are fewer than two samples or all true values are equal, nothing is collapsed."""
    assert not is_collapsed(BINARY, [kept(BINARY, np.array([2.0]))] * len(truths), truths)
