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
