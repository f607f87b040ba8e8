"""Rank correlation and its permutation test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.stats.permutation import resampled_spearman, spearman, spearman_p


def test_correlation_agrees_with_scipy_with_ties() -> None:
    """The correlation is that of scipy, also with ties."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 30), rng.normal(size=30)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_undefined_correlation_is_nan(values: list[float]) -> None:
    """Without variation there is neither a correlation nor a p value."""
    assert math.isnan(spearman(values, values)) and math.isnan(spearman_p(values, values))


def test_exact_p_agrees_with_scipy() -> None:
    """For few values, all arrangements are computed, as scipy does."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        first, second = rng.normal(size=6), rng.integers(0, 3, 6) + 0.0
        reference = stats.permutation_test(
            (first,),
            lambda one, other=second: stats.spearmanr(one, other).statistic,
            permutation_type="pairings",
            n_resamples=np.inf,
        )
        share = np.mean(np.abs(reference.null_distribution) >= abs(reference.statistic) - 1e-12)
        assert spearman_p(first, second) == pytest.approx(share, abs=1e-12)


def test_random_permutations_agree_with_the_exact_p() -> None:
    """5,000 random of 5,040 arrangements give the exact p value within 4 standard errors."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=7), rng.normal(size=7)
    exact = spearman_p(first, second, permutations=5040)
    assert abs(spearman_p(first, second, permutations=5000) - exact) < 4 * math.sqrt(exact * (1 - exact) / 5000)


def test_units_are_exchanged_as_a_whole() -> None:
    """Two units of two values and one of one value have two arrangements; the observed and its exchange."""
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 2, 3, 4, 5])
    # The exchange gives 3, 4, 1, 2, 5, whose correlation is lower.
    assert spearman_p(first, second, ["a", "a", "b", "b", "c"]) == pytest.approx(1 / 2)


@pytest.mark.parametrize("clustered", [False, True])
def test_p_is_uniform_under_the_null(clustered: bool) -> None:
    """Without a relation, p is uniform, also if the two visits of half of the subjects are nearly equal."""
    rng = np.random.default_rng(3)
    subjects = np.concatenate([np.arange(24), np.arange(12)]) if clustered else np.arange(24)
    found = []
    for number in range(300):
        of_subject = rng.normal(size=(2, 24))
        first, second = of_subject[:, subjects] + 0.1 * rng.normal(size=(2, len(subjects)))
        found.append(spearman_p(first, second, subjects, permutations=400, seed=number))
    assert stats.kstest(found, "uniform").pvalue > 0.01
    if clustered:
        naive = [spearman_p(*(rng.normal(size=(2, 24))[:, subjects]), permutations=400) for _ in range(300)]
        assert np.mean(np.array(naive) < 0.05) > 0.08  # what happens if visits are taken as units


def test_resampled_correlations_are_those_of_the_samples_written_out() -> None:
    """Each value is the correlation of the values, repeated as often as counted, with ties in both."""
    rng = np.random.default_rng(4)
    first, second, subjects = rng.integers(0, 6, 20), rng.integers(0, 9, 20), rng.integers(0, 14, 20)
    counts = rng.multinomial(14, np.full(14, 1 / 14), size=50)[:, subjects]
    expected = [spearman(np.repeat(first, one), np.repeat(second, one)) for one in counts]
    np.testing.assert_allclose(resampled_spearman(first, second, counts), expected, atol=1e-12)


def test_sample_without_variation_has_no_correlation() -> None:
    """A bootstrap sample of one value, and an empty one, are undefined; the others are not."""
    found = resampled_spearman([1, 2, 3], [2, 1, 4], [[3, 0, 0], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(found, [math.nan, math.nan, 0.5], atol=1e-12)
