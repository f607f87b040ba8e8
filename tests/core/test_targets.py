"""Targets: what each kind brings, and what is kept of a network's output."""

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
    """A mask has two channels a voxel, classes have one logit each, other kinds one value."""
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
def test_impossible_targets_are_refused(options: dict[str, Any], message: str) -> None:
    """An unknown kind, classes where none belong or too few, and weights that are not positive numbers."""
    with pytest.raises(OutOfRange, match=message):
        Target("x", **options)


def test_number_keeps_its_value() -> None:
    """One value, in double precision."""
    found = kept(NUMBER, np.array([1.5], np.float32))
    assert set(found) == {"value"}
    assert (found["value"].shape, found["value"].dtype, float(found["value"])) == ((), np.float64, 1.5)


@pytest.mark.parametrize("logit", [-3.25, 0.0, 1.5])
def test_binary_target_keeps_logit_and_probability(logit: float) -> None:
    """Reference: scipy's expit of the logit."""
    found = kept(BINARY, np.array([logit], np.float32))
    assert set(found) == {"logit", "probability"}
    assert [one.shape for one in found.values()] == [(), ()]
    assert float(found["logit"]) == logit
    assert float(found["probability"]) == pytest.approx(special.expit(logit), rel=1e-14)


def test_classes_keep_logits_and_probabilities() -> None:
    """Reference: scipy's softmax of the logits."""
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
    """A mask is kept by the adapter, and an output must have the width of its head."""
    with pytest.raises(OutOfRange, match=rf"output of {target.name} \({target.kind}\) must be .*got shape \(2,\)"):
        kept(target, output)


def test_logistic_is_scipys() -> None:
    """Of any shape, without overflow at either end."""
    logits = np.linspace(-40, 40, 162).reshape(2, 81)
    np.testing.assert_allclose(logistic(logits), special.expit(logits), rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(logistic(np.array([-1e4, 1e4])), [0, 1])


def test_softmax_is_scipys() -> None:
    """Over the last axis, without overflow for large logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 3)) * 10.0 ** rng.integers(-2, 4, (4, 5, 1))
    np.testing.assert_allclose(softmax(logits), special.softmax(logits, axis=-1), rtol=1e-12)


@pytest.mark.parametrize(("target", "dtype"), [(NUMBER, np.float32), (BINARY, np.float32), (CLASSES, np.int64)])
def test_value_as_the_network_learns_it(target: Target, dtype: type) -> None:
    """Classes are labels, numbers and binary labels are floats, as torch's losses need them."""
    found = as_array(target, 1.0)
    assert (found.tolist(), found.dtype) == ([1], dtype)


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_one_prediction_for_all_is_collapsed(target: Target) -> None:
    """A model that says the same of every sample ignores its input."""
    same = [kept(target, np.linspace(1, 2, target.width))] * 4
    assert is_collapsed(target, same, [0, 1, 1, 0])


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES])
def test_different_predictions_are_not_collapsed(target: Target) -> None:
    """A difference of one part in ten thousand is one."""
    steps = [np.linspace(1, 2, target.width) + np.eye(target.width)[0] * number * 1e-4 for number in range(4)]
    assert not is_collapsed(target, [kept(target, one) for one in steps], [0, 1, 1, 0])


def test_spread_of_numbers_is_relative_to_the_truth() -> None:
    """A difference of 0.001 is nothing on a scale of millions and much on a scale of hundredths."""
    said = [kept(NUMBER, np.array([value])) for value in (5.0, 5.001)]
    assert is_collapsed(NUMBER, said, [0.0, 1e6])
    assert not is_collapsed(NUMBER, said, [0.0, 0.01])


@pytest.mark.parametrize("truths", [[], [1.0], [1.0, 1.0]])
def test_where_the_truth_is_one_value_nothing_is_collapsed(truths: list[float]) -> None:
    """The same prediction is right for fewer than two samples, and where all are alike."""
    assert not is_collapsed(BINARY, [kept(BINARY, np.array([2.0]))] * len(truths), truths)
