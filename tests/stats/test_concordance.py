"""Intervals of Kendall's τ over subjects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.stats.concordance import _means, _taus, tau_interval

RNG = np.random.default_rng(0)


def test_tau_is_that_of_scipy() -> None:
    """With ties in both."""
    first, second = RNG.integers(0, 5, (40, 9)).astype(float), RNG.integers(0, 5, (40, 9)).astype(float)
    expected = [stats.kendalltau(one, two).statistic for one, two in zip(first, second, strict=True)]
    np.testing.assert_allclose(_taus(first, second), expected, atol=1e-12)


def test_means_are_those_of_drawn_subjects() -> None:
    """A subject that is drawn twice counts twice, and undefined values are skipped."""
    values = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]])
    counts = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(_means(values, counts), [[4 / 3, 13 / 3], [2, 17 / 3]])


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    """Quantiles of τ over resampled subjects, computed one by one."""
    first = np.arange(8.0)[:, None] + 2 * RNG.normal(size=(8, 12))
    second = np.arange(8.0)[:, None] + 2 * RNG.normal(size=(8, 12))
    found = tau_interval(first, second, rng=np.random.default_rng(1))
    rng = np.random.default_rng(2)
    taus = []
    for _ in range(2000):
        drawn = rng.integers(0, 12, 12)
        taus.append(stats.kendalltau(first[:, drawn].mean(axis=1), second[:, drawn].mean(axis=1)).statistic)
    np.testing.assert_allclose(found, np.quantile(taus, [0.025, 0.975]), atol=0.08)


def test_equal_orders_have_no_width() -> None:
    """Methods that differ far more than subjects."""
    values = 100 * np.arange(5.0)[:, None] + RNG.normal(size=(5, 10))
    assert tau_interval(values, values, rng=np.random.default_rng(0)) == pytest.approx((1, 1))
    assert tau_interval(values, -values, rng=np.random.default_rng(0)) == pytest.approx((-1, -1))


def test_few_subjects_have_no_interval() -> None:
    """Five are too few for a bootstrap."""
    assert np.isnan(tau_interval(np.ones((4, 5)), np.ones((4, 5)), rng=np.random.default_rng(0))).all()


def test_interval_covers_the_order_of_the_true_means() -> None:
    """With clear differences, the interval contains τ of the true means in about 95 % of 60 tables."""
    rng = np.random.default_rng(2)
    true = np.array([[0.0, 0.5, 1.0, 1.5, 2.0], [0.0, 1.0, 0.5, 1.5, 2.0]])
    expected = stats.kendalltau(*true).statistic
    inside = []
    for _ in range(60):
        low, high = tau_interval(*(true[:, :, None] + 0.4 * rng.normal(size=(2, 5, 30))), rng=rng)
        inside.append(low <= expected + 1e-9 and expected - 1e-9 <= high)
    assert np.mean(inside) > 0.88
