"""Confidence intervals, paired comparisons and Shapley values over subjects.

Subjects are the unit of analysis. Repeated values within a subject (seeds, visits,
lesions) are averaged beforehand; :func:`variance_components` separates their variance.

With fewer than :data:`MINIMUM_SUBJECTS` subjects, only t intervals are computed: the
coverage of a bootstrap over three subjects is two thirds of its nominal level, and a
paired test of so few subjects depends mainly on the assumption of normality.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.core.errors import OutOfRange
from harness.core.types import Array, Score

__all__ = [
    "BootstrapInterval",
    "Differences",
    "Interval",
    "MINIMUM_SUBJECTS",
    "VarianceComponents",
    "bootstrap_interval",
    "holm",
    "jackknife_interval",
    "mean_interval",
    "mean_score",
    "paired_differences",
    "pseudo_values",
    "shapley",
    "shapley_scores",
    "variance_components",
]

MINIMUM_SUBJECTS = 6
"""Minimum number of subjects for ranks, p values and bootstrap intervals."""

_UNDEFINED_SHARE = 0.05  # largest share of undefined resamples in a bootstrap

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with t interval and standard error, in the unit of the values."""

    mean: float
    low: float
    high: float
    se: float


@dataclass(frozen=True)
class BootstrapInterval:
    """A pooled statistic with its bootstrap interval.

    Parameters
    ----------
    value : statistic of all subjects, without resampling
    low, high : bounds; NaN if there is no interval
    n : number of subjects used
    missing : number of subjects left out because of a NaN
    reason : why there is no interval; empty if there is one
    """

    value: float
    low: float
    high: float
    n: int
    missing: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Differences:
    """Comparison of each configuration with the best one, over their common subjects.

    Parameters
    ----------
    best : index of the best configuration
    difference : (C,) mean of configuration − best; 0 for the best itself
    low, high : (C,) t interval of the difference, not adjusted; NaN for the best
    p : (C,) two-sided p of the paired t test; NaN for the best and below six pairs
    p_adjusted : (C,) p after Holm's correction
    n : (C,) int, number of subjects in the comparison
    indistinguishable : (C,) bool, True unless the configuration differs significantly
        from the best; True for the best itself and if there are too few pairs
    """

    best: int
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_adjusted: Floats
    n: npt.NDArray[np.intp]
    indistinguishable: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VarianceComponents:
    """Variance between subjects, and between seeds within subjects.

    Parameters
    ----------
    subject : variance of the true values of subjects, ≥ 0
    seed : variance over seeds within a subject, ≥ 0; NaN with one seed
    """

    subject: float
    seed: float

    @property
    def subject_sd(self) -> float:
        """Standard deviation between subjects, in the unit of the values."""
        return math.sqrt(self.subject)

    @property
    def seed_sd(self) -> float:
        """Standard deviation between seeds within a subject, in the unit of the values."""
        return math.sqrt(self.seed)


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean over subjects with Student's t interval.

    Parameters
    ----------
    values : (n,) one value per subject; values that are not finite are skipped
    level : confidence level, in (0, 1)

    Returns
    -------
    Interval
        All NaN without values; bounds and standard error NaN with one value. See
        :func:`mean_score` for the number of skipped values.
    """
    _check_level(level)
    kept = _finite(values)
    if kept.size == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    mean = float(kept.mean())
    if kept.size == 1:
        return Interval(mean, math.nan, math.nan, math.nan)
    se = float(kept.std(ddof=1)) / math.sqrt(kept.size)
    half = float(stats.t.ppf((1 + level) / 2, kept.size - 1)) * se
    return Interval(mean, mean - half, mean + half, se)


def mean_score(
    values: npt.ArrayLike, *, level: float = 0.95, chance: float = math.nan, ceiling: float = math.nan
) -> Score:
    """:func:`mean_interval` as a :class:`~harness.core.types.Score`, with the number of subjects.

    Parameters
    ----------
    values : (n,) one value per subject; values that are not finite count as missing
    level : confidence level
    chance, ceiling : copied to the score
    """
    mean, low, high, se = mean_interval(values, level=level)
    n = _finite(values).size
    missing = int(np.size(np.asarray(values))) - n
    return Score(mean, low, high, n, se, missing, chance, ceiling)


def pseudo_values(statistic: Callable[[npt.NDArray[np.intp]], float], count: int) -> Floats:
    """Jackknife pseudo-values of a pooled statistic (Tukey 1958).

    These are n·θ − (n−1)·θ₋ᵢ, where θ₋ᵢ is the statistic without unit i, shifted so that
    their mean is θ. For a mean, they are the values themselves. For a smooth statistic,
    they behave like independent values, so that paired comparisons of pseudo-values
    compare the statistics.

    Parameters
    ----------
    statistic : computes the statistic from the sorted indices of units, (m,)
    count : n, the number of units: subjects or blocks of subjects

    Returns
    -------
    (n,) float64
        Empty with fewer than two units; NaN where the statistic is undefined.

    Notes
    -----
    Without the shift, their mean would be the statistic minus its estimated bias, and
    differences would not match those of the statistics in the table.

    References
    ----------
    Tukey 1958, Bias and confidence in not quite large samples. Efron & Tibshirani
    1993, An introduction to the bootstrap, section 11.5.
    """
    if count < 2:
        return np.empty(0)
    units = np.arange(count)
    whole = statistic(units)
    without = np.array([statistic(np.delete(units, unit)) for unit in units])
    values: Floats = count * whole - (count - 1) * without
    values -= values.mean() - whole
    return values


def jackknife_interval(values: npt.ArrayLike, estimate: float, *, level: float = 0.95) -> Interval:
    """Interval of a pooled statistic: a t interval of its pseudo-values, centred at the statistic.

    Parameters
    ----------
    values : (n,) pseudo-values, see :func:`pseudo_values`
    estimate : statistic of all units

    Returns
    -------
    Interval
        Bounds are NaN with fewer than two units, or if a pseudo-value is not finite.
    """
    _check_level(level)
    known = np.asarray(values, dtype=float)
    if known.size < 2 or not np.isfinite(known).all():
        return Interval(estimate, math.nan, math.nan, math.nan)
    error = float(known.std(ddof=1) / math.sqrt(known.size))
    half = float(stats.t.ppf((1 + level) / 2, known.size - 1)) * error
    return Interval(estimate, estimate - half, estimate + half, error)


def bootstrap_interval(
    statistic: Callable[..., float],
    columns: Sequence[npt.ArrayLike],
    *,
    rng: np.random.Generator,
    draws: int = 2000,
    method: Literal["bca", "percentile"] = "bca",
    level: float = 0.95,
) -> BootstrapInterval:
    """Bootstrap interval of a pooled statistic, with subjects as the resampled unit.

    Parameters
    ----------
    statistic : computes one number from the columns, (n,) each
    columns : columns with the same subjects; a subject with a value that is not finite is
        left out
    rng : random generator
    draws : number of resamples
    method : bias-corrected and accelerated (``"bca"``), or percentiles
    level : confidence level

    Returns
    -------
    BootstrapInterval
        Bounds are NaN, with a reason, if there are fewer than six subjects, if all
        resamples are equal, or if the statistic is undefined in more than 5 % of the
        resamples. Fewer undefined resamples are left out.

    Raises
    ------
    OutOfRange
        If the columns differ in length.
    """
    _check_level(level)
    arrays = [np.asarray(column, dtype=float).ravel() for column in columns]
    lengths = sorted({array.size for array in arrays})
    if len(lengths) != 1:
        raise OutOfRange(f"all columns must have the same subjects, got lengths {lengths}")
    kept = np.all(np.isfinite(arrays), axis=0)
    data = [array[kept] for array in arrays]
    n, missing = int(kept.sum()), int((~kept).sum())
    value = float(statistic(*data)) if n else math.nan

    def refused(reason: str) -> BootstrapInterval:
        return BootstrapInterval(value, math.nan, math.nan, n, missing, reason)

    if n < MINIMUM_SUBJECTS:
        return refused(f"{n} subjects; a bootstrap needs at least {MINIMUM_SUBJECTS}")
    result = _bootstrap(data, statistic, n_resamples=draws, method="percentile", confidence_level=level, rng=rng)
    drawn = np.asarray(result.bootstrap_distribution, dtype=float)
    undefined = int((~np.isfinite(drawn)).sum())
    if undefined > _UNDEFINED_SHARE * draws or not math.isfinite(value):
        return refused(f"the statistic is undefined in {undefined} of {draws} resamples")
    result.bootstrap_distribution = drawn[np.isfinite(drawn)]
    if np.ptp(result.bootstrap_distribution) == 0:
        return refused("every resample gives the same value")
    # SciPy computes the bounds from the defined resamples, without new draws.
    name = {"bca": "BCa", "percentile": "percentile"}[method]
    bounds = _bootstrap(
        data, statistic, n_resamples=0, bootstrap_result=result, method=name, confidence_level=level, rng=rng
    ).confidence_interval
    low, high = float(bounds.low), float(bounds.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return refused("the acceleration of BCa is undefined for these subjects")
    return BootstrapInterval(value, low, high, n, missing)


def holm(p: npt.ArrayLike) -> Floats:
    """Holm's step-down correction: the i-th smallest of m is multiplied by m − i + 1.

    Parameters
    ----------
    p : (m,) p values; NaN, i.e. no test, stays NaN

    Returns
    -------
    (m,) float array
        Adjusted p values, monotone in ``p``, at most 1.

    References
    ----------
    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    raw = np.asarray(p, dtype=float)
    adjusted = np.full(raw.shape, math.nan)
    tests = np.flatnonzero(np.isfinite(raw))
    order = tests[np.argsort(raw[tests], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * factors), 1.0)
    return adjusted


def paired_differences(
    values: npt.ArrayLike,
    *,
    best: int | None = None,
    higher_is_better: bool = True,
    level: float = 0.95,
    family: Literal["pairs", "best"] = "pairs",
) -> Differences:
    """Paired comparison of each configuration with the best one.

    Parameters
    ----------
    values : (configurations, subjects), NaN where a subject has no value
    best : index of the best configuration; by default the one with the best mean
    higher_is_better : direction of the values, used if ``best`` is not given
    level : confidence level; adjusted p values below 1 − level are significant
    family : comparisons that Holm's correction counts: all pairs of configurations, or
        only those with the best

    Returns
    -------
    Differences
        Configuration − best, in the unit of the values.

    Raises
    ------
    OutOfRange
        If ``best`` is not the index of a configuration, or there are only NaN values.

    Notes
    -----
    The default is ``family="pairs"`` because the best configuration is selected on the
    same values. With eight equal configurations, counting only the seven comparisons
    with the best finds a significant difference in 9 % (6 subjects) to 12 % (21
    subjects) of simulated cohorts instead of 5 %. Counting all pairs keeps the level
    (3 %). Use ``"best"`` for a reference that was chosen beforehand.
    """
    _check_level(level)
    table = np.atleast_2d(np.asarray(values, dtype=float))
    count = table.shape[0]
    if best is None:
        best = _best_row(table, higher_is_better)
    if not 0 <= best < count:
        raise OutOfRange(f"0 <= best < {count} must hold for the index of a configuration, got best={best}")

    tests = {pair: _paired_test(table[pair[0]], table[pair[1]]) for pair in combinations(range(count), 2)}
    counted = [pair for pair in tests if family == "pairs" or best in pair]
    adjusted = dict(zip(counted, holm([tests[pair] for pair in counted]), strict=True))

    difference, low, high = np.zeros(count), np.full(count, math.nan), np.full(count, math.nan)
    p, p_adjusted, n = np.full(count, math.nan), np.full(count, math.nan), np.zeros(count, dtype=np.intp)
    for row in range(count):
        delta = _deltas(table[row], table[best])
        n[row] = delta.size
        if row != best:
            difference[row], low[row], high[row], _ = mean_interval(delta, level=level)
            pair = (min(row, best), max(row, best))
            p[row], p_adjusted[row] = tests[pair], adjusted[pair]
    same = ~(p_adjusted < 1 - level)  # also True for NaN
    return Differences(best, difference, low, high, p, p_adjusted, n, same)


def variance_components(values: npt.ArrayLike) -> VarianceComponents:
    """Separate subject and seed variance by one-way analysis of variance.

    Parameters
    ----------
    values : (subjects, seeds), NaN where a value is missing

    Returns
    -------
    VarianceComponents
        ``seed`` is the mean square within subjects. ``subject`` is the difference of the
        mean squares between and within subjects, divided by the (effective) number of
        seeds, and at least 0. Both are NaN with fewer than two subjects. With one seed
        per subject, ``seed`` is NaN and ``subject`` is their sum.

    Notes
    -----
    Seeds are nested in subjects: in leave-one-out cross-validation, seed 0 of two
    subjects refers to two independent trainings.

    References
    ----------
    Searle, Casella, McCulloch 1992, Variance components, section 3.6 (unequal numbers).
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    groups = [kept for kept in (_finite(row) for row in table) if kept.size]
    subjects, total = len(groups), sum(group.size for group in groups)
    if subjects < 2:
        within = float(groups[0].var(ddof=1)) if groups and groups[0].size > 1 else math.nan
        return VarianceComponents(math.nan, within)
    sizes = np.array([group.size for group in groups], dtype=float)
    means = np.array([group.mean() for group in groups])
    grand = float((sizes * means).sum() / total)
    between = float((sizes * (means - grand) ** 2).sum() / (subjects - 1))
    if total == subjects:
        return VarianceComponents(between, math.nan)
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups) / (total - subjects))
    effective = (total - float((sizes**2).sum()) / total) / (subjects - 1)
    return VarianceComponents(max(0.0, (between - within) / effective), within)


def shapley(
    values: Mapping[frozenset[str], float], players: Sequence[str] | None = None, *, empty: float = 0.0
) -> dict[str, float]:
    """Exact Shapley value of each player: its mean marginal contribution over all orderings.

    Parameters
    ----------
    values : value of every non-empty subset (2ⁿ − 1 subsets, 15 for four sequences)
    players : players in the order of the result; by default all that occur, sorted
    empty : value of the empty set, unless ``values`` has it: the score without any input
        (0 for the Dice coefficient of an empty prediction)

    Returns
    -------
    dict
        One value per player. Their sum is the value of all players − ``empty``. NaN if
        any subset is NaN.

    Raises
    ------
    OutOfRange
        If subsets are missing; all of them are listed.

    References
    ----------
    Shapley 1953, A value for n-person games.
    """
    arrays = {subset: np.asarray(value, dtype=float) for subset, value in values.items()}
    return {player: float(share) for player, share in _shapley(arrays, players, empty).items()}


def shapley_scores(
    values: Mapping[frozenset[str], npt.ArrayLike],
    players: Sequence[str] | None = None,
    *,
    empty: float = 0.0,
    level: float = 0.95,
) -> dict[str, Score]:
    """:func:`shapley` computed for each subject, then averaged, with a t interval.

    Parameters
    ----------
    values : (subjects,) values of every non-empty subset, with the same subjects
    players, empty : see :func:`shapley`
    level : confidence level

    Returns
    -------
    dict
        One :class:`~harness.core.types.Score` per player. A subject with NaN in any
        subset is missing for all players, so that the Shapley values add up.
    """
    arrays = {subset: np.asarray(value, dtype=float) for subset, value in values.items()}
    return {player: mean_score(share, level=level) for player, share in _shapley(arrays, players, empty).items()}


def _shapley(values: Mapping[frozenset[str], Array], players: Sequence[str] | None, empty: float) -> dict[str, Array]:
    names = tuple(players) if players is not None else tuple(sorted(frozenset().union(*values)))
    subsets = [frozenset(chosen) for size in range(1, len(names) + 1) for chosen in combinations(names, size)]
    missing = ["+".join(name for name in names if name in subset) for subset in subsets if subset not in values]
    if missing:
        raise OutOfRange(
            f"every one of the {len(subsets)} subsets of {', '.join(names)} must have a value, "
            f"got none for {', '.join(missing)}; run them first"
        )
    value_of = {frozenset(): np.asarray(empty, dtype=float), **values}
    shares: dict[str, Array] = {}
    for name in names:
        without = [frozenset(), *(subset for subset in subsets if name not in subset)]
        weights = [1 / (len(names) * math.comb(len(names) - 1, len(subset))) for subset in without]
        gains = (value_of[subset | {name}] - value_of[subset] for subset in without)
        shares[name] = np.sum([weight * gain for weight, gain in zip(weights, gains, strict=True)], axis=0)
    # An undefined subset makes the Shapley values of all players undefined for a subject.
    undefined = np.isnan(np.sum([value_of[subset] for subset in subsets], axis=0))
    return {name: np.where(undefined, math.nan, share) for name, share in shares.items()}


def _best_row(table: Floats, higher_is_better: bool) -> int:
    means = np.array([mean_interval(row).mean for row in table])
    if np.all(np.isnan(means)):
        raise OutOfRange("at least one configuration must have a value, got only NaN")
    return int(np.nanargmax(means) if higher_is_better else np.nanargmin(means))


def _deltas(first: Floats, second: Floats) -> Floats:
    """first − second where both are finite; differences due to rounding are set to 0."""
    if first.shape != second.shape:
        raise OutOfRange(f"paired values must have the same subjects, got {first.size} and {second.size} values")
    kept = np.isfinite(first) & np.isfinite(second)
    first, second = first[kept], second[kept]
    # Otherwise, equal results summed in a different order would have p = 0.
    delta = first - second
    delta[np.isclose(first, second, rtol=1e-12, atol=0.0)] = 0.0
    return delta


def _paired_test(first: Floats, second: Floats) -> float:
    delta = _deltas(first, second)
    if delta.size < MINIMUM_SUBJECTS:
        return math.nan
    mean, _, _, se = mean_interval(delta)
    if se <= 1e-12 * abs(mean):
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / se, delta.size - 1))


def _finite(values: npt.ArrayLike) -> Floats:
    flat = np.asarray(values, dtype=float).ravel()
    kept: Floats = flat[np.isfinite(flat)]
    return kept


def _bootstrap(data: Sequence[Array], statistic: Callable[..., float], **options: Any) -> Any:
    # Degenerate resamples are handled above.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return stats.bootstrap(tuple(data), statistic, paired=True, vectorized=False, **options)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OutOfRange(f"0 < level < 1 must hold, got level={level}")
