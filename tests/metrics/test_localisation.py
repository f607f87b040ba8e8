"""Localisation metrics against scikit-learn, slow replicas and hand-worked maps."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from harness.core.errors import OutOfRange, RequestError
from harness.metrics import compute
from harness.metrics.localisation import pearson_between
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import METRICS, evaluate_chance

SCORES = ("relevance_mass", "relevance_ap", "pointing_game", "top_k_intersection")


@pytest.fixture
def by_hand():
    """A map with two channels on six voxels, of which the first two are the target."""
    explanation = np.array([[3, -1, 2, 0, 0, 0], [1, 1, -2, 0, 0, 1]], dtype=np.float32).reshape(2, 6, 1, 1)
    target = np.array([1, 1, 0, 0, 0, 0], dtype=bool).reshape(6, 1, 1)
    return explanation, target


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("relevance_mass", {}, 6 / 11),  # absolute sums 4, 2, 4, 0, 0, 1
        ("relevance_mass", {"sign": "positive"}, 5 / 8),  # positive parts 4, 1, 2, 0, 0, 1
        ("pointing_game", {}, 1),  # signed sums 4, 0, 0, 0, 0, 1
        ("pointing_game", {"sign": "absolute"}, 0.5),  # two voxels of absolute sum 4
        ("relevance_ap", {}, 0.5 * 1 + 0.5 * 2 / 6),
        ("top_k_intersection", {}, 0.5),
        ("top_k_intersection", {"k": 1}, 1),
        ("top_k_intersection", {"k": 4}, (1 + 2 * 1 / 4) / 4),  # 4 and 1, then two of four zeros
    ],
)
def test_values_worked_by_hand(by_hand, name, options, value):
    """Metrics of a map on six voxels agree with values worked out by hand."""
    explanation, target = by_hand
    assert compute(name, explanation=explanation, target=target, **options) == pytest.approx(value)


def test_ap_agrees_with_scikit_learn(blobs):
    """Average precision agrees with scikit-learn's on the sum of the channels."""
    target = blobs(0)
    maps = np.random.default_rng(0).normal(size=(3, *target.shape)) + 0.5 * target
    expected = average_precision_score(target.ravel(), maps.sum(axis=0).ravel())
    assert compute("relevance_ap", explanation=maps, target=target) == pytest.approx(expected)


def test_ap_agrees_with_its_definition(blobs):
    """Average precision agrees with its definition Σ (Rᵢ − Rᵢ₋₁) Pᵢ over distinct values."""
    target = blobs(0)[:8, :8, :8]
    values = np.random.default_rng(1).integers(6, size=target.shape)
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(values.ravel()), reverse=True):
        chosen = values >= threshold
        recall = (chosen & target).sum() / target.sum()
        total += (recall - recall_before) * (chosen & target).sum() / chosen.sum()
        recall_before = recall
    assert compute("relevance_ap", explanation=values[None].astype(float), target=target) == pytest.approx(total)


def test_top_k_is_the_mean_over_random_tie_breaking():
    """The value with ties is the mean over random tie breaking."""
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
    """A map equal to the target scores one."""
    target = blobs(0)
    assert compute(name, explanation=target[None].astype(np.float32), target=target) == pytest.approx(1)


@pytest.mark.parametrize("name", SCORES)
def test_constant_map_scores_the_prevalence(blobs, name):
    """A constant map scores the declared chance level."""
    target = blobs(0)
    constant = np.full((2, *target.shape), 0.25)
    chance = compute("prevalence", target=target)
    assert compute(name, explanation=constant, target=target) == pytest.approx(chance)


@pytest.mark.parametrize("name", SCORES)
def test_shuffled_map_scores_the_prevalence(blobs, name):
    """Shuffled maps score chance on average."""
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
    """Without a target, the value is NaN."""
    none = np.zeros_like(blobs(0))
    assert np.isnan(compute(name, explanation=np.ones((1, *none.shape)), target=none))


def test_mass_without_relevance_is_nan(blobs):
    """A map without any, or without positive, relevance has no relevance mass."""
    target = blobs(0)
    zero = np.zeros((1, *target.shape))
    assert np.isnan(compute("relevance_mass", explanation=zero, target=target))
    assert np.isnan(compute("relevance_mass", explanation=zero - 1, target=target, sign="positive"))


def test_mass_refuses_the_signed_sum(blobs):
    """Relevance mass refuses the signed sum."""
    with pytest.raises(
        OutOfRange, match="sign of metric relevance_mass must be one of positive, absolute, got 'signed'"
    ):
        compute("relevance_mass", explanation=np.ones((1, *blobs(0).shape)), target=blobs(0), sign="signed")


def test_channel_shares():
    """Shares of the absolute attribution sum to one over the channels."""
    explanation = np.zeros((3, 2, 2, 2))
    explanation[0] = 1.0
    explanation[1] = -3.0
    given = {"explanation": explanation, "channels": ("T1w", "T2w", "FLAIR")}
    assert [compute("channel_share", **given, channel=name) for name in given["channels"]] == [0.25, 0.75, 0.0]


def test_channel_share_of_an_absent_channel_is_nan():
    """The share of an absent channel, or of a zero map, is NaN."""
    given = {"channels": ("T1w", "T2w")}
    assert np.isnan(compute("channel_share", explanation=np.ones((2, 2, 2, 2)), **given, channel="SWI"))
    assert np.isnan(compute("channel_share", explanation=np.zeros((2, 2, 2, 2)), **given, channel="T1w"))


def test_scale_of_a_map_does_not_matter(blobs):
    """Data type and scale of a map do not change the value."""
    target = blobs(0)
    maps = np.random.default_rng(0).normal(size=(2, *target.shape)).astype(np.float16)
    for name in SCORES:
        one = compute(name, explanation=maps, target=target)
        assert compute(name, explanation=maps.astype(np.float64) * 1000, target=target) == pytest.approx(one)


# ---------------------------------------------------------------- lesion-symptom simulation


def slow_pr_auc(values, target, *, anchored=True, thresholds=1000):
    """Area under the precision-recall curve by one pass over all voxels per threshold."""
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
def test_pr_auc_agrees_with_a_slow_replica(blobs, kind, dtype, anchored):
    """The area agrees with a slow replica with a thousand passes, up to rounding."""
    target = blobs(0)
    values = MAPS[kind](np.random.default_rng(2), target).astype(dtype)
    found = compute("pr_auc_1000", explanation=values[None], target=target, anchored=anchored)
    assert found == pytest.approx(slow_pr_auc(values.astype(float), target, anchored=anchored), rel=1e-12)


def test_pr_auc_takes_any_number_of_thresholds(blobs):
    """The area agrees with the slow replica for any number of thresholds."""
    target = blobs(0)
    values = np.random.default_rng(0).normal(size=target.shape)
    for number in (2, 17):
        found = compute("pr_auc_1000", explanation=values[None], target=target, thresholds=number)
        assert found == pytest.approx(slow_pr_auc(values, target, thresholds=number), rel=1e-12)


def test_pr_auc_of_a_perfect_binary_map_needs_an_anchor(blobs):
    """A perfect binary map scores 1 with an anchor and 0 without, as in the published curve."""
    target = blobs(0)
    perfect = {"explanation": target[None].astype(float), "target": target}
    assert compute("pr_auc_1000", **perfect) == 1
    assert compute("pr_auc_1000", **perfect, anchored=False) == 0
    assert compute("relevance_ap", **perfect) == pytest.approx(1)


def occlusion_map(shape, low, size, window, stride):
    """Occlusion map of an exact model of one region, computed slowly as the mean over covering windows."""
    region = np.zeros(shape, bool)
    region[tuple(slice(a, a + size) for a in low)] = True
    total, covers = np.zeros(shape), np.zeros(shape)
    for corner in np.ndindex(*((n - window) // stride + 1 for n in shape)):
        window_voxels = tuple(slice(stride * a, stride * a + window) for a in corner)
        total[window_voxels] += region[window_voxels].sum()
        covers[window_voxels] += 1
    # Multiples of 1/27 are equal after rounding.
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
    """Ceilings agree with the published table: average precision and the area over thresholds."""
    low = [6 * stride + more for more in offset]
    values, target = occlusion_map((15 * stride + window,) * 3, low, window, window, stride)
    given = {"explanation": values[None], "target": target}
    assert compute("relevance_ap", **given) == pytest.approx(ap, abs=5e-4)
    assert compute("pr_auc_1000", **given) == pytest.approx(area, abs=6e-4)


@pytest.mark.parametrize(("offset", "value"), [((0, 0, 0), 0.593), ((0, 0, 1), 0.539), ((2, 2, 2), 0.392)])
def test_ceilings_of_continuous_dice(offset, value):
    """Ceilings of continuous Dice agree with the published table for window 8 and stride 4."""
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
def test_chance_of_average_precision_agrees_with_the_tables(shape, n, value):
    """Chance levels agree with the tables of both publications."""
    target = np.zeros(shape, bool)
    target.flat[:n] = True
    assert compute("random_ap", target=target) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_chance_of_average_precision_is_the_mean_of_all_rankings(n):
    """The chance level is the mean over all rankings of seven voxels."""
    target = np.zeros((7, 1, 1), bool)
    target[:n] = True
    values = []
    for ranks in itertools.permutations(range(7)):
        hits = target.ravel()[list(ranks)]
        values.append((hits * np.cumsum(hits) / np.arange(1, 8)).sum() / n)
    assert compute("random_ap", target=target) == pytest.approx(np.mean(values))


def test_only_the_brain_counts(blobs):
    """With ``inside="brain"``, only voxels of the brain are ranked."""
    target, brain = blobs(0), np.random.default_rng(0).random(blobs(0).shape) < 0.5
    values = np.random.default_rng(1).normal(size=target.shape) + target
    given = {"explanation": values[None], "target": target, "brain": brain, "inside": "brain"}
    expected = average_precision_score(target[brain], values[brain])
    assert compute("relevance_ap", **given) == pytest.approx(expected)
    assert compute("pr_auc_1000", **given) == pytest.approx(slow_pr_auc(values[brain], target[brain]))
    assert compute("prevalence", target=target, brain=brain, inside="brain") == target[brain].mean()
    of = compute("random_ap", target=target, brain=brain, inside="brain")
    assert of == pytest.approx(compute("random_ap", target=target[brain].reshape(-1, 1, 1)))


@pytest.mark.parametrize("name", ["relevance_ap", "pr_auc_1000"])
def test_the_brain_counts_if_there_is_a_mask(blobs, name):
    """With ``inside="brain_if_known"``, all voxels are ranked without a mask; its chance level is of the same."""
    target, brain = blobs(0), np.random.default_rng(0).random(blobs(0).shape) < 0.5
    given = {"explanation": np.random.default_rng(1).normal(size=(1, *target.shape)), "target": target}
    known = {"inside": "brain_if_known"}
    assert compute(name, **given, brain=brain, **known) == compute(name, **given, brain=brain, inside="brain")
    assert compute(name, **given, **known) == compute(name, **given)
    component = partial(METRICS.get(name).function, **known)
    with_mask = MetricInputs(**given, brain=brain)
    assert evaluate_chance(component, with_mask) == target[brain].mean() != target.mean()
    assert evaluate_chance(component, MetricInputs(**given)) == target.mean()


@pytest.mark.parametrize("name", ["relevance_ap", "pr_auc_1000"])
def test_inside_needs_a_mask(blobs, name):
    """``inside="brain"`` without a brain mask raises an error."""
    with pytest.raises(RequestError, match="inside=brain needs `brain`, which is missing"):
        compute(name, explanation=np.ones((1, *blobs(0).shape)), target=blobs(0), inside="brain")


def test_continuous_dice_by_hand():
    """Values 4, 2 | 2, 0, −3, 0 are scaled to 1, .5 | .5, so c = .75 and the Dice is 2 · 1.5 / (1.5 + 2)."""
    values = np.array([4, 2, 2, 0, -3, 0.0]).reshape(1, 6, 1, 1)
    target = np.array([1, 1, 0, 0, 0, 0], bool).reshape(6, 1, 1)
    assert compute("cdc", explanation=values, target=target) == pytest.approx(3 / 3.5)


def test_continuous_dice_counts_only_where_the_map_is_positive():
    """For values 4, 0 | 2, c is the mean over positive voxels only: 2 · 1 / (1 · 2 + 1.5)."""
    values = np.array([4, 0, 2, -1.0]).reshape(1, 4, 1, 1)
    target = np.array([1, 1, 0, 0], bool).reshape(4, 1, 1)
    assert compute("cdc", explanation=values, target=target) == pytest.approx(2 / 3.5)


def test_continuous_dice_follows_from_the_mass(blobs):
    """Continuous Dice is 2m / (1 + m) with the mass m, if the map is positive throughout the target."""
    target = blobs(0)
    values = np.random.default_rng(0).random((1, *target.shape)) + target
    mass = compute("relevance_mass", explanation=values, target=target, sign="positive")
    assert compute("cdc", explanation=values, target=target) == pytest.approx(2 * mass / (1 + mass))


def test_continuous_dice_without_overlap_is_zero(blobs):
    """A map outside the target, or without positive values, scores 0."""
    target = blobs(0)
    assert compute("cdc", explanation=(~target)[None].astype(float), target=target) == 0
    assert compute("cdc", explanation=np.full((1, *target.shape), -1.0), target=target) == 0


def rates(values, rois, **options):
    """Contribution rates of all regions."""
    return [compute("rc_rate", explanation=values, rois=rois, roi=k, **options) for k in range(len(rois))]


def test_contribution_rates_by_hand():
    """Regions with 3, −1 | 2, 0 | 0 and background 5 give the rates worked out by hand."""
    values = np.array([3, -1, 2, 0, 0, 5.0]).reshape(1, 6, 1, 1)
    rois = np.zeros((3, 6, 1, 1), bool)
    rois[0, :2], rois[1, 2:4], rois[2, 4] = True, True, True
    assert rates(values, rois) == pytest.approx([3 / 5, 2 / 5, 0])
    assert rates(values, rois, sign="signed") == pytest.approx([2 / 4, 2 / 4, 0])
    assert rates(values, rois, sign="absolute") == pytest.approx([4 / 6, 2 / 6, 0])
    # the published scores 3/(10+2), 2/(10+2) and 0/(10+1)
    assert rates(values, rois, literal=True) == pytest.approx([3 / 5, 2 / 5, 0])
    rois[1, 3] = False
    scores = np.array([3 / 12, 2 / 11, 0])
    assert rates(values, rois, literal=True) == pytest.approx(scores / scores.sum())


def test_contribution_rates_of_an_exact_model_are_load_weighted(blobs):
    """The rate of an exact model is bL₂ / (bL₂ + (1 − b)L₃), and not b."""
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
    """Without positive relevance in any region, the rates are NaN."""
    rois = np.ones((2, 2, 2, 2), bool)
    assert np.isnan(rates(np.full((1, 2, 2, 2), -1.0), rois)).all()


def test_contribution_rate_of_a_missing_region_is_nan():
    """The rate of a region that does not exist is NaN."""
    assert np.isnan(compute("rc_rate", explanation=np.ones((1, 2, 2, 2)), rois=np.ones((2, 2, 2, 2)), roi=2))


def test_peak_distance_is_in_mm(spacing_mm):
    """Two voxels along Y and one along Z are 1.6 and 2 mm."""
    values, target = np.zeros((1, 6, 6, 6)), np.zeros((6, 6, 6), bool)
    values[0, 3, 1, 2], target[3, 3:5, 3:5], target[0, 0, 0] = 1, True, False
    given = {"explanation": values, "target": target, "spacing_mm": spacing_mm}
    assert compute("peak_distance_mm", **given) == pytest.approx(np.hypot(1.6, 2.0))
    values[0, 3, 4, 4] = 1
    assert compute("peak_distance_mm", **given) == pytest.approx(np.hypot(1.6, 2.0) / 2)


def test_many_peaks_agree_with_few(blobs, spacing_mm, monkeypatch):
    """Distances of many peaks, by the distance transform, agree with the distances voxel by voxel."""
    target, values = blobs(0), np.random.default_rng(0).integers(3, size=(1, *blobs(0).shape)).astype(float)
    given = {"explanation": values, "target": target, "spacing_mm": spacing_mm}
    few = compute("peak_distance_mm", **given)
    monkeypatch.setattr("harness.metrics.localisation._FEW_PEAKS", 0)
    assert compute("peak_distance_mm", **given) == pytest.approx(few)
    assert few > 0


@pytest.mark.parametrize("name", ["cdc", "peak_distance_mm", "pr_auc_1000"])
def test_no_target_region_is_nan(blobs, spacing_mm, name):
    """Without a target region, the value is NaN."""
    given = {"explanation": np.ones((1, *blobs(0).shape)), "target": np.zeros_like(blobs(0))}
    assert np.isnan(compute(name, **given, **({"spacing_mm": spacing_mm} if name == "peak_distance_mm" else {})))


def test_correlation_of_maps_agrees_with_numpy():
    """The correlation of maps agrees with numpy for float32 maps of any shape."""
    first, second = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 6)).astype(np.float32)
    second += first
    expected = np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1]
    assert pearson_between(first, second) == pytest.approx(expected)
    assert pearson_between(first, -2 * first) == pytest.approx(-1)


def test_correlation_with_a_constant_map_is_nan():
    """The correlation with a constant map is NaN."""
    assert np.isnan(pearson_between(np.full(7, 0.1), np.arange(7.0)))


def test_correlation_refuses_other_shapes():
    """Maps of different shapes are refused."""
    with pytest.raises(OutOfRange, match=r"the same shape to be compared, got \(2, 3\) and \(3, 2\)"):
        pearson_between(np.ones((2, 3)), np.ones((3, 2)))
