"""Matching of lesion centres against hand-worked examples and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.metrics import compute
from harness.metrics.detection import (
    chance_precision,
    chance_sensitivity,
    magnitude_accuracy,
    precision,
    sensitivity,
)
from harness.metrics.metric_inputs import find_lesions

UNIT = (1.0, 1.0, 1.0)


@pytest.fixture
def line(points):
    """A function that makes lesions of one voxel on a line with 1 mm spacing."""

    def make(*at: int):
        return points(*[(x, 0, 0) for x in at], shape=(60, 3, 3), spacing_mm=UNIT)

    return make


def test_one_to_one_uses_a_lesion_once(line):
    """A predicted centre near two lesions finds one of them one-to-one and both many-to-one."""
    truth, predicted = line(10, 14), line(12)
    assert sensitivity(truth, predicted) == 0.5
    assert precision(truth, predicted) == 1
    assert sensitivity(truth, predicted, match="many_to_one") == 1


def test_one_to_one_makes_as_many_pairs_as_possible(line):
    """One-to-one matching makes the most pairs, where a greedy choice of the nearest would leave one out."""
    # 12 is nearest to 13, but 10 can only be matched by 12, and 13 also by 16.
    truth, predicted = line(10, 13), line(12, 16)
    assert sensitivity(truth, predicted) == 1
    assert precision(truth, predicted) == 1


@pytest.mark.parametrize(("tolerance_mm", "found"), [(0, 1), (1.5, 2), (3, 3), (5, 4)])
def test_tolerance_is_a_distance_in_mm(line, tolerance_mm, found):
    """Centres at a distance of 0, 1, 3 and 5 mm are matched from that tolerance on, bound included."""
    truth, predicted = line(5, 20, 35, 50), line(5, 21, 38, 55)
    assert sensitivity(truth, predicted, tolerance_mm=tolerance_mm) == found / 4


def test_spacing_decides_what_is_near(points):
    """Two voxels are 2 mm apart along X and 4 mm along Z."""
    truth = points((5, 5, 5))
    assert sensitivity(truth, points((7, 5, 5))) == 1
    assert sensitivity(truth, points((5, 5, 7))) == 0


def test_zero_tolerance_is_the_same_voxel():
    """With zero tolerance, centroids match if they lie in the same voxel."""
    truth, predicted, beyond = (np.zeros((9, 9, 9), dtype=bool) for _ in range(3))
    truth[3:6, 4, 4] = True  # centroid 4.0
    predicted[3:5, 4, 4] = True  # centroid 3.5, voxel 4
    beyond[2:5, 4, 4] = True  # centroid 3.0, voxel 3
    truth, predicted, beyond = (find_lesions(mask, UNIT) for mask in (truth, predicted, beyond))
    assert sensitivity(truth, predicted, tolerance_mm=0) == 1
    assert sensitivity(truth, beyond, tolerance_mm=0) == 0


def test_mask_rules_use_voxels_instead_of_distances():
    """The rules ``any_overlap`` and ``centre_in_mask`` use voxels, not the distance of centres."""
    truth, inside, touching = (np.zeros((30, 9, 9), dtype=bool) for _ in range(3))
    truth[2:28, 4, 4] = True
    inside[4, 4, 4] = True
    touching[4, 4:7, 4] = True  # its centre lies outside the lesion
    truth, inside, touching = (find_lesions(mask, UNIT) for mask in (truth, inside, touching))
    rules = ("one_to_one", "many_to_one", "centre_in_mask", "any_overlap")
    assert [sensitivity(truth, inside, match=match) for match in rules] == [0, 0, 1, 1]
    assert [precision(truth, touching, match=match) for match in rules] == [0, 0, 0, 1]


def test_overlap_counts_lesions_not_voxels():
    """A predicted lesion across two true ones finds both and counts once in precision."""
    truth = np.zeros((9, 5, 5), dtype=bool)
    truth[1:3, 2, 2] = truth[5:7, 2, 2] = True
    predicted = np.zeros_like(truth)
    predicted[1:7, 2, 2] = True
    predicted[8, 4, 4] = True
    given = {"target": truth, "prediction": predicted, "spacing_mm": UNIT, "match": "any_overlap"}
    assert compute("sensitivity", **given) == 1
    assert compute("precision", **given) == 0.5


def _best_matching(near: np.ndarray) -> int:
    """Largest number of pairs over all orders of the predicted lesions."""
    true, predicted = near.shape
    padded = np.zeros((true, max(true, predicted)), dtype=bool)
    padded[:, :predicted] = near
    return max(
        sum(padded[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(range(padded.shape[1]), true)
    )


@pytest.mark.parametrize("seed", range(12))
def test_matching_agrees_with_trying_all_orders(points, seed):
    """On small random sets, no assignment makes more pairs, with or without a size bin."""
    rng = np.random.default_rng(seed)
    draw = lambda n: [tuple(voxel) for voxel in 2 * rng.integers((4, 4, 3), size=(n, 3))]  # noqa: E731
    truth, predicted = points(*draw(6)), points(*draw(6))
    distance = np.linalg.norm(truth.centroids_mm[:, None] - predicted.centroids_mm[None], axis=2)
    expected = _best_matching(distance <= 4.0)
    assert sensitivity(truth, predicted, tolerance_mm=4.0) == expected / truth.count
    assert precision(truth, predicted, tolerance_mm=4.0) == expected / predicted.count
    assert sensitivity(truth, predicted, tolerance_mm=4.0, size_bin=(1, None)) == expected / truth.count


def test_size_bins_divide_the_lesions():
    """Each size bin counts the lesions within its bounds, both included."""
    truth = np.zeros((30, 9, 9), dtype=bool)
    truth[2, 4, 4] = True
    truth[8:11, 4, 4] = True
    truth[20:25, 4, 4] = True
    predicted = truth.copy()
    predicted[2, 4, 4] = False
    truth, predicted = find_lesions(truth, UNIT), find_lesions(predicted, UNIT)
    bins = [(1, 2), (1, 3), (3, 4), (5, None)]
    assert [sensitivity(truth, predicted, size_bin=size) for size in bins] == [0, 0.5, 1, 1]
    assert math.isnan(sensitivity(truth, predicted, size_bin=(6, 9)))


def test_size_bin_assigns_a_prediction_to_the_nearer_lesion():
    """A prediction between a small and a large lesion counts for the nearer one only."""
    truth, predicted = np.zeros((12, 5, 5), dtype=bool), np.zeros((12, 5, 5), dtype=bool)
    predicted[5, 2, 2] = True
    truth[2, 2, 2] = True  # 3 mm away
    truth[5:8, 2, 2] = True  # its centre is 1 mm away
    truth, predicted = find_lesions(truth, UNIT), find_lesions(predicted, UNIT)
    assert sensitivity(truth, predicted, size_bin=(1, 1)) == 0
    assert sensitivity(truth, predicted, size_bin=(2, None)) == 1


def test_size_bin_refuses_a_reversed_range(line):
    """A size bin with reversed bounds is refused."""
    with pytest.raises(OutOfRange, match="`low <= high` must hold for size_bin, got low=5, high=2"):
        sensitivity(line(3), line(3), size_bin=(5, 2))


def test_negative_tolerance_is_refused(line):
    """A negative tolerance is refused."""
    with pytest.raises(OutOfRange, match="`tolerance_mm >= 0` must hold, got -1"):
        precision(line(3), line(3), tolerance_mm=-1)


def test_unknown_match_is_refused_even_without_lesions(line):
    """An unknown matching rule is refused, also if there are no lesions."""
    with pytest.raises(UnknownName, match=r"no value of match is named 'overlap'.*any_overlap"):
        sensitivity(line(), line(), match="overlap")


def test_magnitude_is_the_distance_from_the_origin(line):
    """The magnitude is √(S² + P²): S = 1/2 and P = 1 give √1.25, and perfect detection gives √2."""
    assert magnitude_accuracy(line(10, 30), line(10)) == pytest.approx(math.sqrt(1.25))
    assert magnitude_accuracy(line(10, 30), line(10, 30)) == pytest.approx(math.sqrt(2))


def test_empty_cases(line):
    """No prediction: S 0, P NaN, A 0. No target: S NaN, P 0, A NaN. Neither: all NaN."""
    some, none = line(10), line()
    values = [
        [score(t, p) for score in (sensitivity, precision, magnitude_accuracy)]
        for t, p in ((some, none), (none, some), (none, none))
    ]
    np.testing.assert_equal(values, [[0, np.nan, 0], [np.nan, 0, np.nan], [np.nan] * 3])


def test_counts(line):
    """Counts are numbers of connected components."""
    mask = line(1, 5, 9).labels > 0
    assert compute("true_count", target=mask, spacing_mm=UNIT) == 3
    assert compute("predicted_count", prediction=mask, spacing_mm=UNIT) == 3


def test_chance_of_one_centre_is_the_share_of_the_volume(points):
    """The chance of one centre to hit one lesion is the volume of its ball over the brain: 4/3·π·3³ / volume."""
    shape = (20, 20, 20)
    one = points((10, 10, 10), shape=shape, spacing_mm=UNIT)
    rng = np.random.default_rng(0)
    value = chance_sensitivity(one, one, UNIT, rng, tolerance_mm=3.0, draws=9_000)
    expected = 4 / 3 * math.pi * 27 / 20**3
    assert value == pytest.approx(expected, abs=4 * math.sqrt(expected / 9_000))


def test_chance_at_zero_tolerance_is_one_voxel(points):
    """With zero tolerance, the chance of one centre in 1,000 voxels is 1/1000."""
    one = points((2, 2, 2), shape=(10, 10, 10), spacing_mm=UNIT)
    value = chance_precision(one, one, UNIT, np.random.default_rng(0), tolerance_mm=0, draws=9_000)
    assert value == pytest.approx(1e-3, abs=1e-3)
    assert value > 0


def test_chance_places_centres_inside_the_brain(points):
    """Random centres are placed inside the brain only."""
    one = points((5, 5, 5))
    own, away = (np.zeros(one.labels.shape, dtype=bool) for _ in range(2))
    own[5, 5, 5] = away[15, 15, 15] = True
    rng = np.random.default_rng(0)
    assert chance_sensitivity(one, one, (1.0, 0.8, 2.0), rng, own, tolerance_mm=0) == 1
    assert chance_sensitivity(one, one, (1.0, 0.8, 2.0), rng, away, tolerance_mm=3) == 0


@pytest.mark.parametrize("match", ["one_to_one", "many_to_one", "any_overlap", "centre_in_mask"])
def test_random_predictions_score_chance(match):
    """Random single voxels score the computed chance level on average.

    A ball of 3.3 mm contains 147 voxel centres and has a volume of 150.5 voxels, so that
    voxels and continuous positions can be compared.
    """
    rng = np.random.default_rng(3)
    truth = np.zeros((24, 24, 24), dtype=bool)
    for x, y, z in itertools.product(range(3, 24, 7), repeat=3):
        truth[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = True
    scores, expected = [], []
    for _ in range(60):
        predicted = np.zeros_like(truth)
        predicted[tuple(rng.integers(24, size=(3, 40)))] = True
        given = {"target": truth, "prediction": predicted, "spacing_mm": UNIT, "match": match, "tolerance_mm": 3.3}
        scores.append([compute("sensitivity", **given), compute("precision", **given)])
        expected.append(
            [compute("chance_sensitivity", **given, rng=rng), compute("chance_precision", **given, rng=rng)]
        )
    np.testing.assert_allclose(np.mean(scores, axis=0), np.mean(expected, axis=0), atol=0.02)
    assert np.mean(expected) > 0.01


def test_chance_is_reproducible(points):
    """The same generator state gives the same chance level."""
    truth = points((5, 5, 5), (9, 9, 9), (12, 3, 3))
    first, again = (chance_sensitivity(truth, truth, UNIT, np.random.default_rng(5)) for _ in range(2))
    assert first == again


def test_chance_of_nothing(points):
    """Without predicted centres, S is 0 and P is NaN; without a place for them, S is NaN."""
    some, none = points((5, 5, 5)), points()
    rng = np.random.default_rng(0)
    assert chance_sensitivity(some, none, UNIT, rng) == 0
    assert math.isnan(chance_precision(some, none, UNIT, rng))
    assert math.isnan(chance_sensitivity(some, some, UNIT, rng, np.zeros(some.labels.shape, dtype=bool)))


def test_matching_of_1200_lesions():
    """Of 1,200 lesions that are moved by at most one voxel, nearly all are detected, with or without a size bin."""
    rng = np.random.default_rng(0)
    truth, predicted = (np.zeros((120, 140, 120), dtype=bool) for _ in range(2))
    voxels = rng.choice(60 * 70 * 60, size=1200, replace=False)
    x, y, z = np.unravel_index(voxels, (60, 70, 60))
    truth[2 * x, 2 * y, 2 * z] = True
    predicted[2 * x, np.minimum(2 * y + rng.integers(2, size=1200), 139), 2 * z] = True
    truth, predicted = find_lesions(truth, UNIT), find_lesions(predicted, UNIT)
    value = sensitivity(truth, predicted)
    binned = sensitivity(truth, predicted, size_bin=(1, None))
    assert value == binned > 0.95
