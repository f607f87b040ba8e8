"""Scores of maps against scikit-learn, slow replicas and maps worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from harness.errors import UnknownName
from harness.metrics import compute

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
