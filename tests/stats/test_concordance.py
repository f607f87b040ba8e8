"""Kendall's τ of two metrics over methods, with intervals over subjects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.stats.concordance import kendall_interval


def test_clear_orders_have_an_interval_of_one_value() -> None:
    """Methods whose order is the same in all subjects have the same τ in all samples."""
    rng = np.random.default_rng(0)
    means = np.arange(6.0)[:, None]
    first, second = (means + 0.01 * rng.normal(size=(6, 20)) for _ in range(2))
    assert kendall_interval(first, second) == pytest.approx((1.0, 1.0))
    assert kendall_interval(first, -second) == pytest.approx((-1.0, -1.0))


def test_equal_metrics_agree() -> None:
    """A metric agrees with itself in every sample of subjects, however noisy it is."""
    values = np.random.default_rng(0).normal(size=(5, 10))
    assert kendall_interval(values, values) == pytest.approx((1.0, 1.0))


def test_unrelated_metrics_have_intervals_that_cover_zero() -> None:
    """Noise alone gives intervals around 0, in nearly all of 40 tables."""
    rng = np.random.default_rng(1)
    found = [kendall_interval(*rng.normal(size=(2, 6, 15)), resamples=200) for _ in range(40)]
    assert np.mean([low is not None and high is not None and low <= 0 <= high for low, high in found]) > 0.85


def test_interval_covers_the_order_of_the_true_means() -> None:
    """With clear differences, the interval contains τ of the true means in about 95 % of 60 tables."""
    rng = np.random.default_rng(2)
    true = np.array([[0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 1.0, 0.5, 1.5, 2.0]])
    expected = stats.kendalltau(*true).statistic
    inside = []
    for _ in range(60):
        low, high = kendall_interval(*(true[:, :, None] + 0.4 * rng.normal(size=(2, 5, 30))), resamples=200)
        assert low is not None and high is not None
        inside.append(low <= expected + 1e-9 and expected - 1e-9 <= high)
    assert np.mean(inside) > 0.88


def test_undefined() -> None:
    """Constant metrics have no τ; methods without values in a sample are left out of it."""
    assert kendall_interval(np.ones((4, 10)), np.random.default_rng(0).normal(size=(4, 10))) == (None, None)
    values = np.arange(5.0)[:, None] + np.zeros((5, 10))
    values[0, :3] = np.nan
    assert kendall_interval(values, values) == (pytest.approx(1), pytest.approx(1))
