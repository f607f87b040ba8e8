"""Agreement of two metrics about the order of methods, with an interval over subjects."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["kendall_interval"]


def kendall_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of Kendall's τ-b of the means of two metrics over methods.

    Parameters
    ----------
    first, second : (M, n) float, values of M methods and n subjects; NaN where undefined
    level : confidence level
    resamples : number of bootstrap samples of the subjects, each for both metrics and all methods
    seed : seed of the samples

    Returns
    -------
    low, high : float or None
        In [−1, 1]. ``None`` if τ is undefined in more than one in twenty samples, because all
        means of a metric are equal.

    Notes
    -----
    Methods are fixed: the interval says what other subjects would give for the same methods.
    Means of methods that hardly differ change places by chance, so that τ of noisy means is
    closer to 0 than that of the true ones, and the interval with it.
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    rng = np.random.default_rng(seed)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of methods without a value in a sample
        for _ in range(resamples):
            chosen = rng.integers(0, one.shape[1], one.shape[1])
            means = np.stack([np.nanmean(one[:, chosen], axis=1), np.nanmean(two[:, chosen], axis=1)])
            kept = np.isfinite(means).all(axis=0)
            found.append(float(stats.kendalltau(*means[:, kept]).statistic) if kept.sum() > 1 else np.nan)
    known = np.array(found)[np.isfinite(found)]
    if len(known) < 0.95 * resamples:
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
