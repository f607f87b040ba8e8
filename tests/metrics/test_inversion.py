"""Voxel inversion and masked means: masks by hand, linear networks with known answers, areas, permutations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from harness.core.types import Array
from harness.metrics.association import masked_spearman, masked_spearman_p, permutation_p, target_number
from harness.metrics.exposed import exposed_scalar
from harness.metrics.inversion import (
    SHARES,
    inversion_area,
    inverted_auroc,
    inverted_logit,
    inverted_share,
    masked_mean,
    quantile_mask,
)

INSIDE = np.ones((1, 2, 5), bool)
INSIDE[0, 0, 0] = False
RELEVANCE = np.array([[[9.0, 1, 2, 3, 4], [5, -1, -2, -3, 0]]])[None]


def test_masks_by_hand() -> None:
    """Positive values inside are 1 to 5: the top 40 % reach 3.4; of the brain, the top 40 % of nine voxels."""
    assert RELEVANCE[0][quantile_mask(RELEVANCE, INSIDE, 0.4)[0]].tolist() == [4, 5]
    assert sorted(RELEVANCE[0][quantile_mask(RELEVANCE, INSIDE, 1.0)[0]]) == [1, 2, 3, 4, 5]
    assert sorted(RELEVANCE[0][quantile_mask(RELEVANCE, INSIDE, 0.4, "brain")[0]]) == [2, 3, 4, 5]
    assert quantile_mask(RELEVANCE, INSIDE, 1.0, "brain").sum() == 9
    assert not quantile_mask(-np.abs(RELEVANCE), INSIDE, 0.5).any()


@pytest.mark.parametrize("channels", [1, 2])
def test_logit_of_a_linear_network(channels: int) -> None:
    """Inverting voxels changes a linear logit by Σ w (1 − 2x) over them, per channel or with one mask for all."""
    rng = np.random.default_rng(0)
    image, weight = rng.random((2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    explanation = rng.normal(size=(channels, 3, 4, 5))
    brain = rng.random((3, 4, 5)) < 0.8

    def predict(images: Array) -> Array:
        return np.asarray((images * weight).sum(axis=(1, 2, 3, 4)))

    mask = quantile_mask(explanation, brain, 0.3)
    expected = (image * weight).sum() + (weight * (1 - 2 * image) * mask).sum()
    assert inverted_logit(explanation, image, predict, brain, share=0.3) == pytest.approx(expected)
    whole = inverted_logit(np.ones_like(explanation), image, predict, brain, share=1.0)
    assert whole == pytest.approx((np.where(brain, 1 - image, image) * weight).sum())
    assert inverted_share(np.ones_like(explanation), image, brain, share=1.0) == 1.0
    assert inverted_share(-np.ones_like(explanation), image, brain) == 0.0


def test_without_a_brain_mask_zero_voxels_are_outside() -> None:
    """Voxels that are zero in all channels are never inverted."""
    image = np.zeros((2, 1, 1, 4))
    image[0, 0, 0, :2] = 0.25
    seen: list[Array] = []

    def predict(images: Array) -> Array:
        seen.append(images[0])
        return np.zeros(len(images))

    inverted_logit(np.ones_like(image), image, predict, share=1.0)
    np.testing.assert_array_equal(seen[0][:, 0, 0], [[0.75, 0.75, 0, 0], [1, 1, 0, 0]])


def test_masked_means() -> None:
    """The mean of a channel in its own mask, or in the only one; NaN for a channel that is not there."""
    image = np.arange(20.0).reshape(2, 1, 2, 5) / 20
    explanation = np.concatenate([RELEVANCE, -RELEVANCE])
    assert masked_mean(explanation, image, INSIDE, channel=0, share=0.4) == pytest.approx((0.2 + 0.25) / 2)
    assert masked_mean(explanation, image, INSIDE, channel=1, share=0.2) == pytest.approx(0.9)
    assert masked_mean(RELEVANCE, image, INSIDE, channel=1, share=0.4) == pytest.approx((0.7 + 0.75) / 2)
    assert math.isnan(masked_mean(explanation, image, INSIDE, channel=2))
    assert math.isnan(masked_mean(-np.abs(explanation), image, INSIDE, channel=0))


def columns(seed: int = 0, n: int = 40) -> dict[str, Array]:
    """Labels and logits that are less and less related to them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(float)
    return {"target_label": labels, "predicted_logit": labels + rng.normal(size=n)} | {
        f"inverted_{share}": labels * (1 - share / 100) + rng.normal(size=n) for share in SHARES
    }


def test_area_is_that_of_scikit_learns_curve() -> None:
    """Each point of the curve is scikit-learn's AUC, and the area is that of the trapezoids."""
    given = columns()
    names = ("predicted_logit", *(f"inverted_{share}" for share in SHARES))
    curve = [roc_auc_score(given["target_label"], given[name]) for name in names]
    for share, value in zip((0, *SHARES), curve, strict=True):
        assert inverted_auroc(given, share=share) == pytest.approx(value)
    assert inversion_area(given) == pytest.approx(sum((a + b) / 2 / 10 for a, b in itertools.pairwise(curve)))
    tied = {**given, "inverted_40": np.round(given["inverted_40"])}
    assert inverted_auroc(tied) == pytest.approx(roc_auc_score(tied["target_label"], tied["inverted_40"]))
    assert math.isnan(inversion_area({**given, "target_label": np.ones(40)}))


def test_permutations_are_exact_for_few_samples() -> None:
    """With many permutations, p approaches the share of all orders with a correlation as large."""
    first, second = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 4, 3, 6, 5])
    observed = abs(stats.spearmanr(first, second).statistic)
    orders = [abs(stats.spearmanr(first, one).statistic) for one in itertools.permutations(second)]
    exact = np.mean(np.array(orders) >= observed - 1e-12)
    found = permutation_p(first, second, permutations=20_000, rng=np.random.default_rng(0))
    assert found == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_without_a_relation() -> None:
    """In 200 data sets without a relation, about 5 % of the p values are below .05."""
    rng = np.random.default_rng(1)
    values = [
        permutation_p(rng.normal(size=30), rng.normal(size=30), permutations=400, rng=np.random.default_rng(seed))
        for seed in range(200)
    ]
    assert 0.01 < np.mean(np.array(values) < 0.05) < 0.11
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_correlation_with_the_number_behind_the_label() -> None:
    """Spearman's correlation as in scipy, with samples without a number left out; p has the smallest value 1/20,001."""
    rng = np.random.default_rng(0)
    numbers, means = rng.permutation(60).astype(float), np.zeros(60)
    means[:] = -numbers + rng.normal(size=60)
    numbers[3] = np.nan
    given = {"target_number": numbers, "masked_mean": means}
    kept = np.isfinite(numbers)
    assert masked_spearman(given) == pytest.approx(stats.spearmanr(numbers[kept], means[kept]).statistic)
    assert masked_spearman_p(given) == pytest.approx(1 / 20_001)
    assert math.isnan(masked_spearman({"target_number": np.ones(5), "masked_mean": np.arange(5.0)}))
    assert target_number(1.0, 6.5) == 6.5 and math.isnan(target_number(1.0))


def test_exposed_scalars_of_correct_samples() -> None:
    """The value is that of the network; samples that are classified wrongly are left out unless asked."""
    exposed = {"attention:qT1": 0.5}
    assert exposed_scalar(exposed, 1.0, 0.9, name="attention:qT1") == 0.5
    assert math.isnan(exposed_scalar(exposed, 1.0, 0.4, name="attention:qT1"))
    assert exposed_scalar(exposed, 1.0, 0.4, name="attention:qT1", correct_only=False) == 0.5
    assert math.isnan(exposed_scalar(exposed, 0.0, 0.4, name="attention:NDI"))
