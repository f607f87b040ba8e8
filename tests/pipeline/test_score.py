"""Metric inputs of predictions and maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.core.targets import Target
from harness.core.task import Task
from harness.core.types import Array, Input, NetworkSpec, Sample
from harness.pipeline.score import Values, inputs_of_map, score_prediction

SPEC = NetworkSpec((Input("image", ("red",), (2, 3)),), (Target("target", "mask"),))
PROBABILITY = np.array([[0.9, 0.8, 0.1], [0.2, 0.6, 0.5]], np.float32)


@pytest.fixture
def picture(in_memory: Callable[[Array], Any]) -> Sample:
    """A picture with a mask, without affine and voxel size."""
    mask = np.array([[1, 0, 0], [0, 1, 1]], bool)
    return Sample("a", "a", {"red": in_memory(PROBABILITY)}, {"target": in_memory(mask)}, {})


def test_masks_of_pictures_are_scored(toy_task: Task, picture: Sample) -> None:
    """Predicted and true masks of a picture are compared as volumes of one slice: Dice is 2 · 2 / (3 + 3)."""
    values = Values()
    score_prediction(
        toy_task, SPEC, picture, {"target": {"probability": PROBABILITY}}, ["dice"], values, seed=0, regions={}
    )  # fmt: skip
    assert values["dice"]["values"]["a"]["targets"] == {"target": pytest.approx(2 / 3)}


def test_maps_of_pictures_have_their_prediction_as_one_slice(picture: Sample) -> None:
    """The map, the prediction and the truth of a picture are given to metrics with a third axis of length one."""
    prediction = {"target": {"probability": PROBABILITY}}
    given = inputs_of_map(
        SPEC, picture, "target", PROBABILITY[None], prediction, channels=("red",), rng=np.random.default_rng(0)
    )  # fmt: skip
    assert given.explanation is not None and given.explanation.shape == (1, 2, 3, 1)
    assert given.target is not None and given.target.shape == (2, 3, 1)
    assert given.prediction is not None
    np.testing.assert_array_equal(given.prediction[..., 0], [[1, 1, 0], [0, 1, 0]])


def test_the_truth_of_a_map_is_that_of_its_scalar(in_memory: Callable[[Array], Any]) -> None:
    """With a mask for each target, a map of a class or an output has the mask of its target, other scalars none."""
    age, hair = np.eye(2, 3) > 0, np.eye(2, 3)[:, ::-1] > 0
    masks = {"truth_age": in_memory(age), "truth_hair": in_memory(hair), "nuisance": in_memory(~age)}
    sample = Sample("a", "a", {"red": in_memory(PROBABILITY)}, masks, {})
    spec = NetworkSpec(SPEC.inputs, (Target("age", "number"), Target("hair", "classes", ("black", "red"))))

    def given(scalar: str) -> Any:
        return inputs_of_map(
            spec, sample, scalar, PROBABILITY[None], {}, channels=("red",), rng=np.random.default_rng(0)
        )  # fmt: skip

    np.testing.assert_array_equal(given("age").target[..., 0], age)
    np.testing.assert_array_equal(given("hair:red").target[..., 0], hair)
    np.testing.assert_array_equal(given("hair").nuisance[..., 0], ~age)
    assert given("gate").target is None


def test_one_truth_serves_all_targets(picture: Sample) -> None:
    """Without masks of single targets, the mask ``target`` is the truth of every scalar."""
    assert picture.truth_of("age") is picture.masks["target"] and picture.truth_of("hair:red") is not None
