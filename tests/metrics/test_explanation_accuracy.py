"""What a network recognises in a shown explanation, with networks whose answers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit

from harness.core.errors import OutOfRange
from harness.metrics.centre import centre_ap, centre_share
from harness.metrics.explanation_accuracy import (
    blank_probability,
    deletion_area,
    explanation_accuracy,
    insertion_area,
    keeps_label,
    kept_accuracy,
    random_deletion_area,
    random_explanation_accuracy,
    random_insertion_area,
    random_kept_accuracy,
    share_shown,
    shown_map,
)

RNG = np.random.default_rng(0)
IMAGE = 0.3 + 0.4 * RNG.random((3, 10, 10, 1))
SPOT = np.zeros((1, 10, 10, 1))
SPOT[:, 2:4, 2:4] = 1.0


def spotted(images: np.ndarray) -> np.ndarray:
    """A network that asks how much of the spot is as in the image: logit 5 for all of it, −5 for a black one."""
    inside = images[:, :, 2:4, 2:4].mean(axis=(1, 2, 3, 4)) / IMAGE[:, 2:4, 2:4].mean()
    return 10 * inside - 5


def dark(images: np.ndarray) -> np.ndarray:
    """A network that calls dark images positive."""
    return 20 * (0.55 - images.mean(axis=(1, 2, 3, 4)))


def test_map_is_scaled() -> None:
    """The sum over channels is scaled to [0, 1]; a constant map shows all if it is positive, else nothing."""
    both = np.concatenate([SPOT, 3 * SPOT])
    np.testing.assert_array_equal(shown_map(both), SPOT[0])
    assert (shown_map(np.ones((2, 3, 3, 1))) == 1).all() and not shown_map(-np.ones((1, 3, 3, 1))).any()
    assert share_shown(SPOT) == pytest.approx(0.04)
    with pytest.raises(OutOfRange, match="must be finite"):
        shown_map(np.full((1, 2, 2, 1), np.nan))


def test_shown_spot_is_recognised() -> None:
    """Showing the spot alone is as good as the whole image, and hiding it is not."""
    assert explanation_accuracy(SPOT, IMAGE, spotted) == pytest.approx(expit(5))
    assert explanation_accuracy(1 - SPOT, IMAGE, spotted) == pytest.approx(expit(-5))
    assert keeps_label(SPOT, IMAGE, spotted) == 1 and keeps_label(1 - SPOT, IMAGE, spotted) == 0
    assert blank_probability(IMAGE, spotted) == pytest.approx(expit(-5))


def test_half_shown_is_half_the_image() -> None:
    """The image is shown in proportion to the map, over the fill."""
    half = SPOT / 2
    half[0, 9, 9] = 1.0  # the maximum of the map
    assert explanation_accuracy(half, IMAGE, spotted) == pytest.approx(expit(0), abs=1e-6)


def test_of_the_predicted_class() -> None:
    """For an image that is predicted negative, it is the probability of the negative class."""
    opposite: Callable[[np.ndarray], np.ndarray] = lambda images: -spotted(images)  # noqa: E731
    assert explanation_accuracy(SPOT, IMAGE, opposite) == pytest.approx(expit(5))


def test_a_network_that_recognises_nothing_in_an_empty_image_and_one_that_does() -> None:
    """With black fill, a network that calls dark images positive gives every map the accuracy of an empty image."""
    assert blank_probability(IMAGE, dark, fill="black") > 0.99 > 0.01 > blank_probability(IMAGE, dark, fill="white")
    for one in (SPOT, np.rot90(SPOT, axes=(1, 2)), RNG.random((1, 10, 10, 1)) ** 4):
        assert explanation_accuracy(one, IMAGE, dark, fill="black") > 0.9


def test_kept_share() -> None:
    """4 % of the pixels are the spot; voxels that tie are kept in their order."""
    assert kept_accuracy(SPOT, IMAGE, spotted, percent=4) == pytest.approx(expit(5))
    first_row = np.zeros((1, 10, 10, 1))
    assert kept_accuracy(first_row, IMAGE, spotted, percent=10) == pytest.approx(expit(-5))


def test_deletion_and_insertion_by_hand() -> None:
    """The spot is hidden after the first tenth, or shown from it on: one half step of the trapezoid."""
    steps = [expit(5), *[expit(-5)] * 10]
    expected = np.trapezoid(steps, dx=0.1)
    assert deletion_area(SPOT, IMAGE, spotted) == pytest.approx(expected)
    assert insertion_area(SPOT, IMAGE, spotted) == pytest.approx(np.trapezoid([1 - one for one in steps], dx=0.1))


@pytest.mark.parametrize(
    ("metric", "chance"),
    [
        (explanation_accuracy, random_explanation_accuracy),
        (kept_accuracy, random_kept_accuracy),
        (deletion_area, random_deletion_area),
        (insertion_area, random_insertion_area),
    ],
)
def test_chance_is_the_mean_over_random_orders(metric: Callable[..., float], chance: Callable[..., float]) -> None:
    """The chance level is that of the map with its pixels in random order, for each random stream."""
    rng = np.random.default_rng(3)
    expected = metric(rng.permutation(SPOT.ravel()).reshape(SPOT.shape), IMAGE, spotted)
    assert chance(SPOT, IMAGE, spotted, np.random.default_rng(3)) == pytest.approx(expected)


def test_centre() -> None:
    """The deciding region is the target in the centre; its share is the chance level."""
    target = np.zeros((8, 8, 1), bool)
    target[3:] = True
    square = np.zeros((8, 8, 1), bool)
    square[3:5, 3:5] = True
    assert centre_ap(square[None].astype(float), target, size=2) == 1
    assert centre_share(square[None].astype(float), target, size=4) == pytest.approx(3 * 4 / 64)
    assert np.isnan(centre_ap(square[None].astype(float), np.zeros_like(target), size=2))
