"""Rank correlation with a permutation test and a bootstrap whose units are subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, combinations_with_replacement, permutations, product

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["resampled_spearman", "spearman", "spearman_p"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_AT_ONCE = 2000
# Differences of correlations below this are due to rounding.
_ROUNDING = 1e-12


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman correlation, with mean ranks for ties.

    Parameters
    ----------
    first, second : (n,) float, finite

    Returns
    -------
    float
        In [−1, 1]; NaN with fewer than two values, or if all values of one are equal.
    """
    return float(_standard_ranks(first) @ _standard_ranks(second))


def spearman_p(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    units: npt.ArrayLike | None = None,
    *,
    permutations: int = 20_000,
    seed: int = 0,
) -> float:
    """Two-sided permutation p value of the Spearman correlation.

    Parameters
    ----------
    first, second : (n,) float, finite
    units : (n,) unit of each value, such as the subject of a visit; by default, every value
        is a unit
    permutations : number of random permutations. If there are not more arrangements than
        this, all of them are computed and the p value is exact
    seed : seed of the random permutations

    Returns
    -------
    float
        In (0, 1]; NaN if the correlation is undefined.

    Notes
    -----
    Units are exchanged as a whole, and only with units of the same number of values: their
    values keep their order. This is valid if units of the same size are exchangeable under
    the null hypothesis, however strongly the values within a unit are correlated. With
    random permutations, the observed arrangement counts as one of them, so that p > 0.
    """
    ranks, others = _standard_ranks(first), _standard_ranks(second)
    observed = float(ranks @ others)
    if math.isnan(observed):
        return math.nan
    groups = _groups(np.arange(len(ranks)) if units is None else np.asarray(units))
    # The logarithm, because the number of arrangements overflows.
    exact = sum(math.lgamma(len(group) + 1) for group in groups) <= math.log(permutations) + _ROUNDING
    orders = _all_orders(groups) if exact else _random_orders(groups, permutations, seed)
    extreme, total = 0, 0
    for order in orders:
        found = others[order] @ ranks
        extreme += int(np.sum(np.abs(found) >= abs(observed) - _ROUNDING))
        total += len(order)
    return extreme / total if exact else (extreme + 1) / (total + 1)


def resampled_spearman(first: npt.ArrayLike, second: npt.ArrayLike, counts: npt.ArrayLike) -> Floats:
    """Spearman correlations of bootstrap samples.

    Parameters
    ----------
    first, second : (n,) float, finite
    counts : (B, n) int, how often each value occurs in each sample; values of one unit, such as
        the visits of a subject, have the same number

    Returns
    -------
    (B,) float64
        In [−1, 1]; NaN where all values of a sample are equal.

    Notes
    -----
    These are the values of :func:`spearman` for the samples written out. Ranks are cumulative
    counts, so that no sample is sorted.
    """
    weights = np.asarray(counts, np.float64)
    ranks = [_resampled_ranks(np.asarray(one, np.float64), weights) for one in (first, second)]
    pairs = combinations_with_replacement(ranks, 2)
    own, both, others = (np.einsum("bn,bn,bn->b", weights, one, other) for one, other in pairs)
    scale = np.sqrt(own * others)
    found: Floats = np.divide(both, scale, out=np.full(len(weights), math.nan), where=scale > _ROUNDING)
    return np.clip(found, -1, 1)


def _resampled_ranks(values: Floats, weights: Floats) -> Floats:
    """Ranks (B, n) of values in samples, mean ranks for ties, minus their mean over each sample."""
    if not values.size:
        return np.zeros(weights.shape)
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    of_value = np.add.reduceat(weights[:, order], np.flatnonzero(np.diff(places[order], prepend=-1)), axis=1)
    ranks = np.cumsum(of_value, axis=1) - of_value / 2
    found: Floats = ranks[:, places] - weights.sum(axis=1, keepdims=True) / 2
    return found


def _standard_ranks(values: npt.ArrayLike) -> Floats:
    """Ranks with mean 0 and Euclidean norm 1; NaN if all values are equal."""
    ranks = stats.rankdata(np.asarray(values, np.float64))
    centred: Floats = ranks - ranks.mean() if ranks.size else ranks
    norm = math.sqrt(float(centred @ centred))
    found: Floats = centred / norm if norm > 0 else np.full(max(centred.size, 1), math.nan)
    return found


def _groups(units: npt.NDArray[np.generic]) -> list[Indices]:
    """Units of equal size: (units, size) indices of values for each size."""
    _, inverse = np.unique(units, return_inverse=True)
    members = [np.flatnonzero(inverse == unit) for unit in range(int(inverse.max()) + 1)]
    return [np.array([one for one in members if len(one) == size]) for size in sorted({len(one) for one in members})]


def _random_orders(groups: Sequence[Indices], count: int, seed: int) -> Iterator[Indices]:
    """Random arrangements, (P, n) at a time."""
    rng = np.random.default_rng(seed)
    size = sum(group.size for group in groups)
    for start in range(0, count, _AT_ONCE):
        orders = np.empty((min(_AT_ONCE, count - start), size), np.intp)
        for group in groups:
            drawn = rng.random((len(orders), len(group))).argsort(axis=1)
            orders[:, group.ravel()] = group[drawn].reshape(len(orders), -1)
        yield orders


def _all_orders(groups: Sequence[Indices]) -> Iterator[Indices]:
    """All arrangements, one at a time as (1, n)."""
    places = np.concatenate([group.ravel() for group in groups])
    for drawn in product(*(permutations(range(len(group))) for group in groups)):
        order = np.empty((1, len(places)), np.intp)
        taken = (group[list(one)].ravel() for group, one in zip(groups, drawn, strict=True))
        order[0, places] = list(chain.from_iterable(taken))
        yield order
