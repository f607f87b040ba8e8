"""Scores of maps against scikit-learn, slow replicas and maps worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.metrics import compute
from harness.metrics.localisation import pearson_between

SCORES = ("relevance_mass", "relevance_ap", "pointing_game", "top_k_intersection")


@pytest.fixture
def by_hand():
    """Two channels on six voxels, the target is the first two."""
    explanation = np.array([[3, -1, 2, 0, 0, 0], [1, 1, -2, 0, 0, 1]], dtype=np.float32).reshape(2, 6, 1, 1)
    target = np.array([1, 1, 0, 0, 0, 0], dtype=bool).reshape(6, 1, 1)
    return explanation, target


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("relevance_mass", {}, 6 / 11),  # sizes 4, 2, 4, 0, 0, 1
        ("relevance_mass", {"sign": "positive"}, 5 / 8),  # 4, 1, 2, 0, 0, 1
        ("pointing_game", {}, 1),  # signed 4, 0, 0, 0, 0, 1
        ("pointing_game", {"sign": "absolute"}, 0.5),  # two voxels of size 4
        ("relevance_ap", {}, 0.5 * 1 + 0.5 * 2 / 6),
        ("top_k_intersection", {}, 0.5),
        ("top_k_intersection", {"k": 1}, 1),
        ("top_k_intersection", {"k": 4}, (1 + 2 * 1 / 4) / 4),  # 4 and 1, then two of four zeros
    ],
)
def test_values_worked_by_hand(by_hand, name, options, value):
    """Six voxels give these numbers on paper."""
    explanation, target = by_hand
    assert compute(name, explanation=explanation, target=target, **options) == pytest.approx(value)


def test_ap_agrees_with_scikit_learn(blobs):
    """The map is the sum of the channels, the score is scikit-learn's."""
    target = blobs(0)
    maps = np.random.default_rng(0).normal(size=(3, *target.shape)) + 0.5 * target
    expected = average_precision_score(target.ravel(), maps.sum(axis=0).ravel())
    assert compute("relevance_ap", explanation=maps, target=target) == pytest.approx(expected)


def test_ap_agrees_with_its_definition(blobs):
    """Σ (Rᵢ − Rᵢ₋₁) Pᵢ over the distinct values, ties taken together, written out slowly."""
    target = blobs(0)[:8, :8, :8]
    values = np.random.default_rng(1).integers(6, size=target.shape)
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(values.ravel()), reverse=True):
        chosen = values >= threshold
        recall = (chosen & target).sum() / target.sum()
        total += (recall - recall_before) * (chosen & target).sum() / chosen.sum()
        recall_before = recall
    assert compute("relevance_ap", explanation=values[None].astype(float), target=target) == pytest.approx(total)


def test_top_k_is_what_random_tie_breaking_scores():
    """Breaking ties at random many times gives the same mean."""
    rng = np.random.default_rng(0)
    target = rng.random((5, 5, 5)) < 0.2
    values = rng.integers(4, size=target.shape).astype(float)
    k = int(target.sum())
    scores = []
    for _ in range(4000):
        order = np.argsort(-(values + 1e-6 * rng.random(values.shape)).ravel())
        scores.append(target.ravel()[order[:k]].mean())
    value = compute("top_k_intersection", explanation=values[None], target=target)
    assert value == pytest.approx(np.mean(scores), abs=0.01)


@pytest.mark.parametrize("name", SCORES)
def test_perfect_map_scores_one(blobs, name):
    """The target itself is the best map."""
    target = blobs(0)
    assert compute(name, explanation=target[None].astype(np.float32), target=target) == pytest.approx(1)


@pytest.mark.parametrize("name", SCORES)
def test_even_map_scores_the_prevalence(blobs, name):
    """A constant map knows nothing and scores exactly the declared chance level."""
    target = blobs(0)
    even = np.full((2, *target.shape), 0.25)
    chance = compute("prevalence", target=target)
    assert compute(name, explanation=even, target=target) == pytest.approx(chance)


@pytest.mark.parametrize("name", SCORES)
def test_shuffled_map_scores_the_prevalence(blobs, name):
    """Shuffling a good map takes it back to chance, on average."""
    target = blobs(0)
    rng = np.random.default_rng(0)
    good = target + 0.3 * rng.normal(size=target.shape)
    runs = 1000 if name == "pointing_game" else 30
    shuffled = [
        compute(name, explanation=rng.permutation(good.ravel()).reshape(1, *good.shape), target=target)
        for _ in range(runs)
    ]
    chance = compute("prevalence", target=target)
    assert np.mean(shuffled) == pytest.approx(chance, abs=0.02)
    assert compute(name, explanation=good[None], target=target) > 3 * chance


@pytest.mark.parametrize("name", SCORES)
def test_no_target_is_nan(blobs, name):
    """Without a lesion there is nothing to find."""
    none = np.zeros_like(blobs(0))
    assert np.isnan(compute(name, explanation=np.ones((1, *none.shape)), target=none))


def test_mass_without_relevance_is_nan(blobs):
    """A map of zeros, or of negative values only, has no (positive) mass."""
    target = blobs(0)
    zero = np.zeros((1, *target.shape))
    assert np.isnan(compute("relevance_mass", explanation=zero, target=target))
    assert np.isnan(compute("relevance_mass", explanation=zero - 1, target=target, sign="positive"))


def test_mass_refuses_the_signed_sum(blobs):
    """Shares of values of both signs are no shares."""
    with pytest.raises(UnknownName, match=r"no value of sign is named 'signed'.* All: absolute, positive"):
        compute("relevance_mass", explanation=np.ones((1, *blobs(0).shape)), target=blobs(0), sign="signed")


def test_channel_shares():
    """A channel's share is its part of the absolute attribution, and shares add up to one."""
    explanation = np.zeros((3, 2, 2, 2))
    explanation[0] = 1.0
    explanation[1] = -3.0
    given = {"explanation": explanation, "channels": ("T1w", "T2w", "FLAIR")}
    assert [compute("channel_share", **given, channel=name) for name in given["channels"]] == [0.25, 0.75, 0.0]


def test_channel_share_of_an_absent_channel_is_nan():
    """A model without the channel has no share of it; a zero map has no shares."""
    given = {"channels": ("T1w", "T2w")}
    assert np.isnan(compute("channel_share", explanation=np.ones((2, 2, 2, 2)), **given, channel="SWI"))
    assert np.isnan(compute("channel_share", explanation=np.zeros((2, 2, 2, 2)), **given, channel="T1w"))


def test_the_weight_of_a_map_does_not_count(blobs):
    """A map in float16 or a thousand times larger scores the same."""
    target = blobs(0)
    maps = np.random.default_rng(0).normal(size=(2, *target.shape)).astype(np.float16)
    for name in SCORES:
        one = compute(name, explanation=maps, target=target)
        assert compute(name, explanation=maps.astype(np.float64) * 1000, target=target) == pytest.approx(one)


# ---------------------------------------------------------------- lesion-symptom simulation


def slow_pr_auc(values, target, *, anchored=True, thresholds=1000):
    """One pass over all voxels per threshold, written from the definition."""
    recall, precision = [], []
    for threshold in np.linspace(values.max(), values.min(), thresholds):
        chosen = values >= threshold
        hits = (chosen & target).sum()
        recall.append(hits / target.sum())
        precision.append(hits / chosen.sum())
    if anchored:
        recall, precision = [0.0, *recall], [precision[0], *precision]
    pairs = zip(recall, recall[1:], precision, precision[1:], strict=False)
    return sum((b - a) * (p + q) / 2 for a, b, p, q in pairs)


MAPS = {
    "noise": lambda rng, target: rng.normal(size=target.shape) + target,
    "plateaus": lambda rng, target: rng.integers(-3, 4, size=target.shape) / 7 + 0.3 * target,
    "sparse": lambda rng, target: np.where(rng.random(target.shape) < 0.1, rng.random(target.shape), 0) + 0.2 * target,
    "on the thresholds": lambda rng, target: rng.integers(0, 1000, size=target.shape) / 999,
    "tiny": lambda rng, target: 1e-30 * rng.normal(size=target.shape),
    "far from zero": lambda rng, target: 1e9 + rng.normal(size=target.shape) + target,
}


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MAPS)
def test_pr_auc_is_the_slow_one(blobs, kind, dtype, anchored):
    """The same area as a thousand passes, to rounding of the sum."""
    target = blobs(0)
    values = MAPS[kind](np.random.default_rng(2), target).astype(dtype)
    found = compute("pr_auc_1000", explanation=values[None], target=target, anchored=anchored)
    assert found == pytest.approx(slow_pr_auc(values.astype(float), target, anchored=anchored), rel=1e-12)


def test_pr_auc_takes_any_number_of_thresholds(blobs):
    """Two thresholds are the maximum and the minimum."""
    target = blobs(0)
    values = np.random.default_rng(0).normal(size=target.shape)
    for number in (2, 17):
        found = compute("pr_auc_1000", explanation=values[None], target=target, thresholds=number)
        assert found == pytest.approx(slow_pr_auc(values, target, thresholds=number), rel=1e-12)


def test_pr_auc_with_an_anchor_gives_a_perfect_plateau_its_one(blobs):
    """Without the published curve's missing anchor it scores 0."""
    target = blobs(0)
    perfect = {"explanation": target[None].astype(float), "target": target}
    assert compute("pr_auc_1000", **perfect) == 1
    assert compute("pr_auc_1000", **perfect, anchored=False) == 0
    assert compute("relevance_ap", **perfect) == pytest.approx(1)


def occlusion_map(shape, low, size, window, stride):
    """Map of an exact model of one region, every voxel lesioned equally often: mean over covering windows, slowly."""
    region = np.zeros(shape, bool)
    region[tuple(slice(a, a + size) for a in low)] = True
    total, covers = np.zeros(shape), np.zeros(shape)
    for corner in np.ndindex(*((n - window) // stride + 1 for n in shape)):
        here = tuple(slice(stride * a, stride * a + window) for a in corner)
        total[here] += region[here].sum()
        covers[here] += 1
    # Whole multiples of 1/27 tie exactly after rounding.
    return np.round(total / np.maximum(covers, 1), 9), region


@pytest.mark.parametrize(
    ("window", "stride", "offset", "ap", "area"),
    [
        (5, 3, (0, 0, 0), 0.977, 0.965),
        (5, 3, (0, 1, 0), 0.914, 0.913),
        (5, 3, (1, 0, 1), 0.874, 0.878),
        (5, 3, (1, 1, 1), 0.852, 0.865),
        (8, 4, (0, 0, 0), 1.0, 1.0),
        (8, 4, (0, 0, 2), 0.833, 0.917),
        (8, 4, (1, 2, 2), 0.597, 0.653),
    ],
)
def test_ceilings_of_occlusion(window, stride, offset, ap, area):
    """The published ceilings' table: exact average precision and the area of the thresholds."""
    low = [6 * stride + more for more in offset]
    values, target = occlusion_map((15 * stride + window,) * 3, low, window, window, stride)
    given = {"explanation": values[None], "target": target}
    assert compute("relevance_ap", **given) == pytest.approx(ap, abs=5e-4)
    assert compute("pr_auc_1000", **given) == pytest.approx(area, abs=6e-4)


@pytest.mark.parametrize(("offset", "value"), [((0, 0, 0), 0.593), ((0, 0, 1), 0.539), ((2, 2, 2), 0.392)])
def test_ceilings_of_continuous_dice(offset, value):
    """The published ceilings' table of window 8, stride 4."""
    values, target = occlusion_map((68,) * 3, [24 + more for more in offset], 8, 8, 4)
    assert compute("cdc", explanation=values[None], target=target) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("shape", "n", "value"),
    [
        ((152, 179, 142), 125, 3.62e-5),
        ((152, 179, 142), 375, 1.01e-4),
        ((91, 107, 86), 512, 6.27e-4),
        ((91, 107, 86), 1536, 1.85e-3),
    ],
)
def test_chance_of_average_precision_is_the_table_s(shape, n, value):
    """Both publications' grids and regions."""
    target = np.zeros(shape, bool)
    target.flat[:n] = True
    assert compute("random_ap", target=target) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_chance_of_average_precision_is_the_mean_of_all_rankings(n):
    """Seven voxels have few rankings: all of them."""
    target = np.zeros((7, 1, 1), bool)
    target[:n] = True
    values = []
    for ranks in itertools.permutations(range(7)):
        hits = target.ravel()[list(ranks)]
        values.append((hits * np.cumsum(hits) / np.arange(1, 8)).sum() / n)
    assert compute("random_ap", target=target) == pytest.approx(np.mean(values))


def test_only_the_brain_can_count(blobs):
    """Ranking inside a mask is ranking the mask's voxels alone."""
    target, brain = blobs(0), np.random.default_rng(0).random(blobs(0).shape) < 0.5
    values = np.random.default_rng(1).normal(size=target.shape) + target
    given = {"explanation": values[None], "target": target, "brain": brain, "inside": "brain"}
    expected = average_precision_score(target[brain], values[brain])
    assert compute("relevance_ap", **given) == pytest.approx(expected)
    assert compute("pr_auc_1000", **given) == pytest.approx(slow_pr_auc(values[brain], target[brain]))
    of = compute("random_ap", target=target, brain=brain, inside="brain")
    assert of == pytest.approx(compute("random_ap", target=target[brain].reshape(-1, 1, 1)))


@pytest.mark.parametrize("name", ["relevance_ap", "pr_auc_1000"])
def test_inside_needs_a_mask(blobs, name):
    """Without one there is no inside."""
    with pytest.raises(RequestError, match="inside=brain needs `brain`, which is missing"):
        compute(name, explanation=np.ones((1, *blobs(0).shape)), target=blobs(0), inside="brain")


def test_continuous_dice_by_hand():
    """Of 4, 2 | 2, 0, −3, 0 with the first two true: scaled 1, .5 | .5, so c = .75 and 2 · 1.5 / (1.5 + 2)."""
    values = np.array([4, 2, 2, 0, -3, 0.0]).reshape(1, 6, 1, 1)
    target = np.array([1, 1, 0, 0, 0, 0], bool).reshape(6, 1, 1)
    assert compute("cdc", explanation=values, target=target) == pytest.approx(3 / 3.5)


def test_continuous_dice_counts_only_where_the_map_is_positive():
    """Of 4, 0 | 2: c is the mean over the positive voxel alone, 2 · 1 / (1 · 2 + 1.5)."""
    values = np.array([4, 0, 2, -1.0]).reshape(1, 4, 1, 1)
    target = np.array([1, 1, 0, 0], bool).reshape(4, 1, 1)
    assert compute("cdc", explanation=values, target=target) == pytest.approx(2 / 3.5)


def test_continuous_dice_is_twice_the_mass_over_one_more(blobs):
    """2m / (1 + m) for a map that is positive throughout the target."""
    target = blobs(0)
    values = np.random.default_rng(0).random((1, *target.shape)) + target
    mass = compute("relevance_mass", explanation=values, target=target, sign="positive")
    assert compute("cdc", explanation=values, target=target) == pytest.approx(2 * mass / (1 + mass))


def test_continuous_dice_without_overlap_is_zero(blobs):
    """A map elsewhere, and a map that is nowhere positive."""
    target = blobs(0)
    assert compute("cdc", explanation=(~target)[None].astype(float), target=target) == 0
    assert compute("cdc", explanation=np.full((1, *target.shape), -1.0), target=target) == 0


def rates(values, rois, **options):
    """Of all regions."""
    return [compute("rc_rate", explanation=values, rois=rois, roi=k, **options) for k in range(len(rois))]


def test_contribution_rates_by_hand():
    """Regions hold 3, −1 | 2, 0 | 0 and the background 5."""
    values = np.array([3, -1, 2, 0, 0, 5.0]).reshape(1, 6, 1, 1)
    rois = np.zeros((3, 6, 1, 1), bool)
    rois[0, :2], rois[1, 2:4], rois[2, 4] = True, True, True
    assert rates(values, rois) == pytest.approx([3 / 5, 2 / 5, 0])
    assert rates(values, rois, sign="signed") == pytest.approx([2 / 4, 2 / 4, 0])
    assert rates(values, rois, sign="absolute") == pytest.approx([4 / 6, 2 / 6, 0])
    # the published scores 3/(10+2), 2/(10+2), 0/(10+1)
    assert rates(values, rois, literal=True) == pytest.approx([3 / 5, 2 / 5, 0])
    rois[1, 3] = False
    scores = np.array([3 / 12, 2 / 11, 0])
    assert rates(values, rois, literal=True) == pytest.approx(scores / scores.sum())


def test_contribution_rates_of_an_exact_model_are_load_weighted(blobs):
    """bL₂ / (bL₂ + (1 − b)L₃), not b."""
    lesions = np.random.default_rng(0).random((20, *blobs(0).shape)) < 0.3
    rois = np.zeros((2, *blobs(0).shape), bool)
    rois[0, :5, :5, :5], rois[1, 8:13, :5, :5] = True, True
    lesions[:, rois[1]] |= np.random.default_rng(1).random((20, 125)) < 0.5
    group = sum(lesion * (0.7 * rois[0] + 0.3 * rois[1]) for lesion in lesions)
    first, second = (lesions[:, roi].mean() for roi in rois)
    expected = 0.7 * first / (0.7 * first + 0.3 * second)
    assert rates(group[None], rois) == pytest.approx([expected, 1 - expected])
    assert expected < 0.62


def test_contribution_rate_without_attribution_is_nan():
    """Nothing positive in any region has no shares."""
    rois = np.ones((2, 2, 2, 2), bool)
    assert np.isnan(rates(np.full((1, 2, 2, 2), -1.0), rois)).all()


def test_contribution_rate_of_a_region_that_is_not_there():
    """Regions count from 0; a task may ask for more of them than a user has drawn."""
    assert np.isnan(compute("rc_rate", explanation=np.ones((1, 2, 2, 2)), rois=np.ones((2, 2, 2, 2)), roi=2))


def test_peak_distance_is_in_mm(spacing_mm):
    """Hand-worked: two voxels along Y and one along Z, 1.6 and 2 mm."""
    values, target = np.zeros((1, 6, 6, 6)), np.zeros((6, 6, 6), bool)
    values[0, 3, 1, 2], target[3, 3:5, 3:5], target[0, 0, 0] = 1, True, False
    given = {"explanation": values, "target": target, "spacing_mm": spacing_mm}
    assert compute("peak_distance_mm", **given) == pytest.approx(np.hypot(1.6, 2.0))
    values[0, 3, 4, 4] = 1
    assert compute("peak_distance_mm", **given) == pytest.approx(np.hypot(1.6, 2.0) / 2)


def test_many_peaks_are_measured_like_few(blobs, spacing_mm, monkeypatch):
    """Through the map of distances or voxel by voxel, the mean is the same."""
    target, values = blobs(0), np.random.default_rng(0).integers(3, size=(1, *blobs(0).shape)).astype(float)
    given = {"explanation": values, "target": target, "spacing_mm": spacing_mm}
    few = compute("peak_distance_mm", **given)
    monkeypatch.setattr("harness.metrics.localisation._FEW_PEAKS", 0)
    assert compute("peak_distance_mm", **given) == pytest.approx(few)
    assert few > 0


@pytest.mark.parametrize("name", ["cdc", "peak_distance_mm", "pr_auc_1000"])
def test_no_target_is_nan_here_too(blobs, spacing_mm, name):
    """Without a region there is nothing to find."""
    given = {"explanation": np.ones((1, *blobs(0).shape)), "target": np.zeros_like(blobs(0))}
    assert np.isnan(compute(name, **given, **({"spacing_mm": spacing_mm} if name == "peak_distance_mm" else {})))


def test_correlation_of_maps_is_numpy_s():
    """In float32 too, and whatever the shape."""
    first, second = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 6)).astype(np.float32)
    second += first
    expected = np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1]
    assert pearson_between(first, second) == pytest.approx(expected)
    assert pearson_between(first, -2 * first) == pytest.approx(-1)


def test_correlation_with_an_even_map_is_nan():
    """An even map varies with nothing; its mean may round."""
    assert np.isnan(pearson_between(np.full(7, 0.1), np.arange(7.0)))


def test_correlation_refuses_other_shapes():
    """Maps are compared voxel by voxel."""
    with pytest.raises(OutOfRange, match=r"the same shape to be compared, got \(2, 3\) and \(3, 2\)"):
        pearson_between(np.ones((2, 3)), np.ones((3, 2)))
