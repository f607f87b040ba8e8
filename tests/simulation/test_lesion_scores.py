"""Simulated scores: placement of regions, loads, noise, and ceilings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.simulation.lesion_scores import (
    draw_rois,
    element,
    eligible,
    label_rois,
    loads,
    place_rois,
    r2_ceiling,
    roi_table,
    score_weights,
    scores,
)


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _counts(shape: tuple[int, int, int] = (14, 16, 13), seed: int = 0) -> Array:
    """Lesion counts of many patients around two centres."""
    x, y, z = np.indices(shape)
    near = np.exp(-((x - 5) ** 2 + (y - 6) ** 2 + (z - 5) ** 2) / 18) + 0.6 * np.exp(
        -((x - 9) ** 2 + (y - 12) ** 2 + (z - 8) ** 2) / 12
    )
    counts: Array = _generator(seed).poisson(25 * near)
    return counts


def _lopsided() -> Array:
    """An element without symmetry, to detect mirrored regions."""
    mask = np.zeros((4, 3, 2), bool)
    mask[0] = True
    mask[2:, 1, 1] = True
    return mask


# ----------------------------------------------------------------- regions


@pytest.mark.parametrize("rule", ["all", "any"])
@pytest.mark.parametrize("mask", [element("cube", 5), element("cube", 4), element("ball", 6), _lopsided()])
def test_eligible_centres_are_those_found_one_by_one(mask: Array, rule: Any) -> None:
    """Eligible centres agree with a loop over voxels, where the region starts at c − s//2 within the grid."""
    counts = _counts()
    expected = np.zeros(counts.shape, bool)
    for centre in np.ndindex(counts.shape):
        low = [c - n // 2 for c, n in zip(centre, mask.shape, strict=True)]
        if min(low) < 0 or any(a + n > size for a, n, size in zip(low, mask.shape, counts.shape, strict=True)):
            continue
        box = counts[tuple(slice(a, a + n) for a, n in zip(low, mask.shape, strict=True))] >= 7
        expected[centre] = box[mask].all() if rule == "all" else box[mask].any()
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(eligible(counts, patients=7, element=mask, rule=rule), expected)


def test_odd_cube_has_its_centre_in_the_middle() -> None:
    """A cube of 5 around 94 covers 92 to 96, as in the publication's slices."""
    roi = place_rois([(94, 112, 94)], (152, 179, 142))[0]
    assert roi.slices[0] == slice(92, 97) and roi.voxels == 125


def test_even_cube_begins_half_its_size_before_the_centre() -> None:
    """A cube of 8 around 37 covers 33 to 40."""
    roi = place_rois([(37, 58, 54)], (91, 107, 86), size=8)[0]
    assert roi.slices[0] == slice(33, 41) and roi.voxels == 512


@pytest.mark.parametrize(("size", "voxels"), [(1, 1), (2, 8), (3, 19), (5, 81)])
def test_ball_has_the_voxels_within_half_a_diameter(size: int, voxels: int) -> None:
    """A ball of diameter 3 excludes the 8 corners (√3 > 1.5), and one of 5 all voxels from √8 on."""
    assert element("ball", size).sum() == voxels


def test_regions_outside_the_grid_are_all_named() -> None:
    """All regions that leave the grid are named in the message."""
    with pytest.raises(OutOfRange, match=r"roi1 around \(1, 8, 8\).*roi3 around \(8, 8, 14\)"):
        place_rois([(1, 8, 8), (8, 8, 8), (8, 8, 14)], (16, 16, 16))


def test_overlapping_regions_are_refused() -> None:
    """Cubes of 5, four voxels apart on one axis, share 25 voxels and are refused."""
    with pytest.raises(OutOfRange, match=r"roi1 around \(6, 8, 8\) and roi2 around \(10, 8, 8\) share 25"):
        place_rois([(6, 8, 8), (10, 8, 8)], (16, 16, 16))


def test_label_becomes_a_region() -> None:
    """An atlas label gives the box, voxels and centre of a region, here two slabs of different size."""
    labels = np.zeros((6, 7, 8), int)
    labels[1:3, 2:6, 4] = 3
    labels[4, 2:6, 4] = 3
    labels[0, 0, 0] = 9
    roi, other = label_rois(labels, [3, 9], names=["front", "corner"])
    assert (roi.name, roi.low, roi.mask.shape, roi.centre) == ("front", (1, 2, 4), (4, 4, 1), (2, 4, 4))
    assert np.array_equal(roi.volume(labels.shape), labels == 3) and other.voxels == 1


@pytest.mark.parametrize("values", [[3, 4], [3, 3]])
def test_invalid_labels_are_refused(values: list[int]) -> None:
    """A missing or repeated label is refused, and the message lists the existing labels."""
    with pytest.raises(OutOfRange, match=r"the atlas has the labels 3"):
        label_rois(np.full((3, 3, 3), 3), values)


@pytest.mark.parametrize("shape", ["cube", "ball"])
@pytest.mark.parametrize("size", [3, 4])
def test_drawn_regions_are_eligible_and_disjoint(shape: Any, size: int) -> None:
    """For twenty seeds, drawn regions have eligible centres and do not overlap."""
    counts = _counts()
    allowed = eligible(counts, patients=4, element=element(shape, size))
    for seed in range(20):
        rois = draw_rois(counts, _generator(seed), shape=shape, size=size, patients=4)
        assert all(allowed[roi.centre] for roi in rois)
        assert sum(roi.volume(counts.shape).astype(int) for roi in rois).max() == 1


def test_balls_may_lie_where_only_their_boxes_overlap() -> None:
    """Balls may be placed where only their boxes overlap, in a grid too small for two such cubes."""
    counts = np.full((9, 9, 9), 10)
    rois = draw_rois(counts, _generator(), number=2, shape="ball")
    assert not np.logical_and(*(roi.volume(counts.shape) for roi in rois)).any()
    with pytest.raises(OutOfRange, match="2 regions of 5 voxels must fit without overlap"):
        draw_rois(counts, _generator(), number=2, shape="cube")


def test_every_centre_can_be_drawn() -> None:
    """The first of two regions is drawn equally often from four eligible centres."""
    counts = np.zeros((12, 3, 3), int)
    counts[0:4] = counts[8:12] = 10
    seen = [draw_rois(counts, _generator(seed), number=2, size=3)[0].centre[0] for seed in range(200)]
    values, times = np.unique(seen, return_counts=True)
    assert values.tolist() == [1, 2, 9, 10]
    assert stats.chisquare(times).pvalue > 0.001


def test_same_generator_gives_the_same_regions() -> None:
    """The same generator draws the same regions."""
    one, other = (draw_rois(_counts(), _generator(3), size=3, patients=4) for _ in range(2))
    assert [roi.centre for roi in one] == [roi.centre for roi in other]


def test_strata_are_terciles_of_the_mean_count() -> None:
    """With three strata, region k lies in the k-th third of the eligible centres ranked by lesion count."""
    counts, mask = _counts(), element("cube", 3)
    allowed = np.argwhere(eligible(counts, patients=4, element=mask))
    means = np.array([counts[tuple(slice(c - 1, c + 2) for c in centre)].mean() for centre in allowed])
    bounds = np.quantile(means, [0, 1 / 3, 2 / 3, 1])
    slack = 0.1
    for seed in range(10):
        rois = draw_rois(counts, _generator(seed), size=3, patients=4, strata=3)
        for k, roi in enumerate(rois):
            assert bounds[k] - slack <= counts[roi.slices].mean() <= bounds[k + 1] + slack


def test_message_gives_a_possible_number_of_patients() -> None:
    """If no centre is eligible, the message gives the largest number of patients for which one is."""
    counts = _counts()
    with pytest.raises(
        OutOfRange, match=r"lesioned in at least 30 patients\), got 0; .* is 35; try targets.scores.patients=(\d+)"
    ) as e:
        draw_rois(counts, _generator(), number=1, patients=30)
    best = int(str(e.value).split("patients=")[1].split(",")[0])
    mask = element("cube", 5)
    assert eligible(counts, patients=best, element=mask).any()
    assert not eligible(counts, patients=best + 1, element=mask).any()


# ----------------------------------------------------------------- scores


def test_load_is_the_mean_occupancy_in_the_region() -> None:
    """The load is the mean occupancy of the region: three voxels of 1 and one of ¼, of 27."""
    mask = np.zeros((7, 7, 7), np.float32)
    mask[2, 2, 2:5] = 1
    mask[3, 3, 3] = 0.25
    mask[0] = 1  # outside the region
    roi = place_rois([(3, 3, 3)], mask.shape, size=3)
    assert loads(mask, roi) == pytest.approx([3.25 / 27])


def test_load_of_a_ball_excludes_the_corners() -> None:
    """The load of a ball excludes the corners of its box."""
    mask = np.zeros((5, 5, 5), bool)
    mask[0, 0, 0] = True
    assert loads(mask, place_rois([(2, 2, 2)], mask.shape, shape="ball")).tolist() == [0.0]


def test_designs() -> None:
    """The designs have the published weights: thirds, one region each, or b and 1 − b of the next."""
    assert score_weights("single").tolist() == [[1 / 3] * 3]
    assert score_weights("multi").tolist() == np.eye(3).tolist()
    expected = [[1, 0, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]]
    assert score_weights("intercorrelation", b=0.75).tolist() == expected


def test_weights_are_normalised() -> None:
    """Weights 2 : 1 : 1 are normalised to a sum of one."""
    assert score_weights("single", weights=(2, 1, 1)).tolist() == [[0.5, 0.25, 0.25]]


@pytest.mark.parametrize("weights", [(1, 1), (1, -1, 1), (0, 0, 0), (1, np.inf, 1), (1, np.nan, 1)])
def test_invalid_weights_are_refused(weights: tuple[float, ...]) -> None:
    """Weights of wrong number, negative, all zero, infinite or NaN are refused."""
    with pytest.raises(OutOfRange, match="weights must be 3 finite numbers"):
        score_weights("single", weights=weights)


def _loads(n: int, seed: int = 0) -> Array:
    """Bimodal loads with the published means."""
    means = np.array([0.688, 0.498, 0.658])
    return _generator(seed).beta(0.35 * means, 0.35 * (1 - means), size=(n, 3))


def test_noise_agrees_with_the_publication() -> None:
    """The noisy score is (1−a)·L + a·N(0, SD(L)) for the same random draws."""
    table = _loads(50)
    got = scores(table, np.eye(3), _generator(5), noise=0.3, scaling="none")
    expected = 0.7 * table + 0.3 * table.std(axis=0) * _generator(5).standard_normal((50, 3))
    np.testing.assert_allclose(got.targets, expected)
    np.testing.assert_allclose(got.expected, 0.7 * table)
    assert got.clean is not table and np.array_equal(got.clean, table)


def test_cohort_scaling_reaches_from_zero_to_one() -> None:
    """Scaling over the cohort maps scores to 0–1, and expected scores accordingly."""
    got = scores(_loads(50), np.eye(3), _generator(5), noise=0.3)
    raw = scores(_loads(50), np.eye(3), _generator(5), noise=0.3, scaling="none")
    assert got.targets.min(axis=0).tolist() == [0, 0, 0] and got.targets.max(axis=0).tolist() == [1, 1, 1]
    np.testing.assert_allclose(got.expected * (got.high - got.low) + got.low, raw.expected, atol=1e-12)


def test_clipping_is_refused() -> None:
    """Clipping is refused, since it would change the ceiling."""
    with pytest.raises(OutOfRange, match="clipping"):
        scores(_loads(9), np.eye(3), _generator(), scaling="clip")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.3, 0.4, 0.5])
@pytest.mark.parametrize("scaling", ["cohort", "none"])
def test_best_prediction_reaches_the_ceiling(noise: float, scaling: Any) -> None:
    """The mean R² of the expected score over draws of 821 subjects agrees with the formula of the ceiling."""
    table, rng = _loads(821), _generator(1)
    found = []
    for _ in range(40):
        got = scores(table, np.eye(3), rng, noise=noise, scaling=scaling)
        found.append(r2_score(got.targets, got.expected))
    assert np.mean(found) == pytest.approx(r2_ceiling(noise), abs=4 * np.std(found) / 40**0.5)


def test_ceilings_as_printed() -> None:
    """Ceilings agree with the published .988, .941, .845, .692 and .500."""
    assert np.round(r2_ceiling(np.arange(6) / 10), 3).tolist() == [1, 0.988, 0.941, 0.845, 0.692, 0.5]


def test_nonlinearities_by_hand() -> None:
    """The nonlinearities are log₁₀(1 + 9s) and (10^s − 1)/9 for the default strength."""
    table = np.array([[0.0], [0.5], [1.0]])
    bent = partial(scores, table, np.eye(1), _generator(), scaling="none")
    assert bent(nonlinearity="log").clean[:, 0] == pytest.approx([0, np.log10(5.5), 1])
    assert bent(nonlinearity="exp").clean[:, 0] == pytest.approx([0, (10**0.5 - 1) / 9, 1])


def test_threshold_by_hand() -> None:
    """A score is 1 above half of its maximum over the subjects, and 0 otherwise."""
    table = np.array([[0.0, 0.4], [0.2, 0.0], [0.5, 0.3], [0.4, 0.4]])
    made = scores(table, np.array([[0.5, 0.5]]), _generator(), scaling="none", nonlinearity="threshold").clean
    assert made[:, 0].tolist() == [0, 0, 1, 1]  # sums 0.2, 0.1, 0.4 and 0.4; half of the maximum is 0.2


def test_disconnection_by_hand() -> None:
    """A lesion of one region is enough, regions without weight do not count, and a single region gives its load."""
    table = np.array([[0.0, 0.0, 0.7], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.75, 1.0]])
    weights = np.array([[0.5, 0.5, 0.0], [2 / 3, 1 / 3, 0.0], [0.0, 0.0, 1.0]])
    made = scores(table, weights, _generator(), scaling="none", nonlinearity="disconnection").clean
    np.testing.assert_allclose(made[:, 0], [0, 1, 0.75, 0.75])
    np.testing.assert_allclose(made[:, 1], [0, 1, 1 - 0.5 * 0.5**0.5, 0.5])
    np.testing.assert_allclose(made[:, 2], table[:, 2])


def test_effects_of_volume_and_age() -> None:
    """Effects are in SDs of the score per SD; age is part of the target, and not of the clean score."""
    table, rng = _loads(200), np.random.default_rng(3)
    volumes, ages = rng.uniform(1, 50, 200), rng.normal(70, 9, 200)
    roots, old = ((x - x.mean()) / x.std() for x in (np.sqrt(volumes), ages))
    plain = scores(table, np.eye(3), _generator(), scaling="none")
    both = scores(
        table, np.eye(3), _generator(), scaling="none", volumes=volumes, volume_effect=0.5, ages=ages, age_effect=2.0
    )
    sd = plain.clean.std(axis=0)
    np.testing.assert_allclose(both.clean, plain.clean + 0.5 * sd * roots[:, None])
    np.testing.assert_allclose(both.targets, both.clean + 2 * sd * old[:, None])
    np.testing.assert_allclose(both.expected, both.clean)
    noisy = scores(table, np.eye(3), _generator(), noise=0.3, ages=ages, volumes=volumes)
    np.testing.assert_array_equal(noisy.targets, scores(table, np.eye(3), _generator(), noise=0.3).targets)


@pytest.mark.parametrize(("given", "number"), [(None, 0), (np.ones(3), 3), (np.r_[np.nan, np.ones(9)], 9)])
def test_effects_need_a_value_for_every_subject(given: Any, number: int) -> None:
    """Missing volumes or ages are refused if they have an effect."""
    with pytest.raises(
        OutOfRange, match=f"ages with an effect must be 10 finite numbers, one per subject, got {number}"
    ):
        scores(_loads(10), np.eye(3), _generator(), ages=given, age_effect=1.0)


def test_nonlinearities_are_inverse() -> None:
    """The exponential of the logarithm is the identity."""
    table = np.linspace(0, 1, 11)[:, None]
    log = scores(table, np.eye(1), _generator(), nonlinearity="log", strength=4).clean
    back = scores(log, np.eye(1), _generator(), nonlinearity="exp", strength=4).clean
    np.testing.assert_allclose(back, table, atol=1e-12)


def test_nonlinearity_needs_a_score_within_zero_and_one() -> None:
    """A nonlinearity is refused for scores beyond 0–1, here with weights that sum to three."""
    table = np.array([[0.2, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert scores(table, np.ones((1, 3)), _generator(), scaling="none").clean.max() == pytest.approx(2.2)
    with pytest.raises(OutOfRange, match=r"0 <= weights · loads <= 1.*0 to 2.2"):
        scores(table, np.ones((1, 3)), _generator(), nonlinearity="log")


def test_score_without_variation_is_refused() -> None:
    """A score without variation is refused."""
    table = np.array([[0.5, 0.0, 0.1], [0.1, 0.0, 0.2]])
    with pytest.raises(OutOfRange, match=r"got score 2 \(all 0\) over 2 subjects"):
        scores(table, np.eye(3), _generator())


def test_scores_of_wrong_shapes_are_refused() -> None:
    """Weights for another number of regions than the loads have are refused."""
    with pytest.raises(OutOfRange, match=r"\(4, 2\) and \(3, 3\)"):
        scores(np.zeros((4, 2)), np.eye(3), _generator())


# ----------------------------------------------------------------- table


def test_table_by_hand() -> None:
    """The table agrees with hand-worked values for three subjects, one region and a flipping, rotating affine."""
    affine = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -4], [0, 0, 3, 1], [0, 0, 0, 1]])
    masks = np.zeros((3, 4, 5, 4), bool)
    masks[0, 1:3, 1:3, 1:3] = True
    masks[1, 1, 1, 1] = True
    masks[2, 0, 4, 0] = masks[2, 0, 3, :] = True
    rois = place_rois([(2, 2, 2)], (4, 5, 4), size=2)
    table = np.stack([loads(mask, rois) for mask in masks])
    row = roi_table(rois, table, masks.sum(axis=0), np.array([8, 1, 5]), affine)[0]
    assert row.centre_mm == (6.0, -1.0, 7.0)
    assert row.size_mm == (3.0, 4.0, 6.0) and row.size_voxels == (2, 2, 2)
    assert (row.voxels, row.patients, row.touched) == (8, 3, 2)
    assert row.mean_load == pytest.approx(9 / 24)
    assert (row.prevalence_max, row.prevalence_mean) == (pytest.approx(2 / 3), pytest.approx(9 / 24))
    # Ranks of the loads 1, 1/8, 0 and of the volumes 8, 1, 5: 1 − 6·(1 + 1)/24.
    assert row.volume_rho == pytest.approx(0.5)


def test_constant_load_has_no_rank_correlation() -> None:
    """A constant load has a rank correlation of NaN, without a warning."""
    rois = place_rois([(1, 1, 1)], (3, 3, 3), size=1)
    row = roi_table(rois, np.zeros((4, 1)), np.zeros((3, 3, 3)), np.arange(4), np.eye(4))[0]
    assert np.isnan(row.volume_rho) and row.touched == 0


def test_region_larger_than_the_grid_is_refused() -> None:
    """Before its voxels are made, which would not fit into memory."""
    with pytest.raises(OutOfRange, match="a region must fit on the grid of 14×16×13 voxels, got roi_size=100000"):
        draw_rois(_counts(), _generator(), size=100_000)
    with pytest.raises(OutOfRange, match="a region must fit on the grid of 4×4×4 voxels, got roi_size=5"):
        place_rois([(1, 1, 1)], (4, 4, 4), size=5)
