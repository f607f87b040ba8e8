"""Intervals, comparisons and shares over subjects.

The subject is the unit of all of them: what repeats within a subject (seeds,
visits, lesions) is averaged before it comes here, and kept apart by
:func:`variance_components`.

With fewer than :data:`MINIMUM_SUBJECTS` subjects only t intervals are given. A
bootstrap of three subjects covers two thirds of what it claims, and a paired
test of so few says more about the normal assumption than about the data.
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
"""Fewest subjects for a rank, a p value or a bootstrap."""

_UNDEFINED_SHARE = 0.05  # of resamples that may have no value before the bootstrap is refused

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its t interval and standard error, all in the values' unit."""

    mean: float
    low: float
    high: float
    se: float


@dataclass(frozen=True)
class BootstrapInterval:
    """A statistic of all subjects with its bootstrap interval.

    Parameters
    ----------
    value : the statistic on the subjects as they are
    low, high : bounds; NaN where ``reason`` says why there are none
    n : subjects that were used
    missing : subjects left out because one of their columns is NaN
    reason : why there is no interval, empty if there is one
    """

    value: float
    low: float
    high: float
    n: int
    missing: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Differences:
    """Each configuration against the best, over the subjects that both have.

    Parameters
    ----------
    best : index of the configuration that the others are compared with
    difference : (C,) mean of configuration − best; 0 for the best itself
    low, high : (C,) t interval of the difference, not adjusted; NaN for the best
    p : (C,) two-sided p of the paired t test; NaN for the best and below six pairs
    p_adjusted : (C,) the same after Holm's correction
    n : (C,) int, subjects in the comparison
    indistinguishable : (C,) bool, nothing says that it differs from the best;
        true for the best, and true where there are too few pairs to say
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
    """Variance between subjects and between seeds within a subject.

    Parameters
    ----------
    subject : variance of the subjects' true values, ≥ 0
    seed : variance of one subject's value over seeds, ≥ 0; NaN with one seed
    """

    subject: float
    seed: float

    @property
    def subject_sd(self) -> float:
        """Standard deviation between subjects, in the values' unit."""
        return math.sqrt(self.subject)

    @property
    def seed_sd(self) -> float:
        """Standard deviation between seeds within a subject, in the values' unit."""
        return math.sqrt(self.seed)


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of the subjects with Student's t interval.

    Parameters
    ----------
    values : (n,) one value per subject; what is not finite is skipped
    level : coverage of the interval, in (0, 1)

    Returns
    -------
    Interval
        All NaN if no value is left; bounds and standard error NaN with one.
        How many were skipped is counted by :func:`mean_score`.
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
    """:func:`mean_interval` as a :class:`~harness.core.types.Score`, which counts the subjects.

    Parameters
    ----------
    values : (n,) one value per subject; what is not finite is skipped and counted as missing
    level : coverage of the interval
    chance, ceiling : handed through
    """
    mean, low, high, se = mean_interval(values, level=level)
    n = _finite(values).size
    missing = int(np.size(np.asarray(values))) - n
    return Score(mean, low, high, n, se, missing, chance, ceiling)


def pseudo_values(statistic: Callable[[npt.NDArray[np.intp]], float], count: int) -> Floats:
    """What each of n units contributes to a pooled statistic (Tukey 1958).

    n·θ − (n−1)·θ₋ᵢ, with θ₋ᵢ the statistic without unit i, shifted so that their mean is
    θ. For a mean these are the values themselves; for a smooth statistic they behave
    like values, so that paired comparisons of them compare the statistics.

    Parameters
    ----------
    statistic : takes the numbers of the units that count, (m,) rising
    count : n, the number of units; subjects, or blocks of subjects

    Returns
    -------
    (n,) float64
        Empty with fewer than two units; NaN where the statistic is not defined.

    Notes
    -----
    Unshifted, their mean would be the statistic less its estimated bias, and a table's
    differences would not be those of its values.

    References
    ----------
    Tukey 1958, Bias and confidence in not quite large samples. Efron & Tibshirani
    1993, An introduction to the bootstrap, section 11.5.
    """
    if count < 2:
        return np.empty(0)
    everyone = np.arange(count)
    whole = statistic(everyone)
    without = np.array([statistic(np.delete(everyone, unit)) for unit in everyone])
    values: Floats = count * whole - (count - 1) * without
    values -= values.mean() - whole
    return values


def jackknife_interval(values: npt.ArrayLike, estimate: float, *, level: float = 0.95) -> Interval:
    """The t interval of a pooled statistic from its pseudo-values, around the statistic itself.

    Parameters
    ----------
    values : (n,) of :func:`pseudo_values`
    estimate : the statistic of all units

    Returns
    -------
    Interval
        Without bounds below two units, or where a pseudo-value is not finite.
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
    """Bootstrap interval of a pooled statistic, subjects drawn whole.

    Parameters
    ----------
    statistic : takes the columns, each (n,), and returns one number
    columns : the same subjects in every column; a subject that is not finite in all is left out
    rng : where the draws come from
    draws : number of resamples
    method : bias-corrected and accelerated, or plain percentiles
    level : coverage of the interval

    Returns
    -------
    BootstrapInterval
        Without bounds, and with the reason, below six subjects; where all
        resamples agree; and where the statistic is undefined in more than one
        resample in twenty. Fewer undefined resamples are left out.

    Raises
    ------
    OutOfRange
        If the columns differ in length.
    """
    _check_level(level)
    arrays = [np.asarray(column, dtype=float).ravel() for column in columns]
    lengths = sorted({array.size for array in arrays})
    if len(lengths) != 1:
        raise OutOfRange(f"all columns must hold the same subjects, got lengths {lengths}")
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
    # No new draws: scipy turns the cleaned distribution into bounds.
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
    p : (m,) p values; NaN is no test and stays NaN

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
    """Each configuration against the best, subject by subject.

    Parameters
    ----------
    values : (configurations, subjects), NaN where a subject has no value
    best : index of the best; by default the one with the best mean
    higher_is_better : which end is best, where ``best`` is not given
    level : coverage of the intervals; 1 − level is what adjusted p is held against
    family : what Holm's correction counts: all pairs of configurations, or only
        the comparisons with the best

    Returns
    -------
    Differences
        The sign is that of configuration − best, in the values' unit.

    Notes
    -----
    ``family="pairs"`` because the best is picked from the same values. With
    eight configurations that do not differ, counting only the seven
    comparisons with the winner calls some of them different in 9 % (6
    subjects) to 12 % (21 subjects) of simulated cohorts instead of 5 %; all
    pairs hold the level (3 %) however the best was picked. ``"best"`` is for a
    reference that was fixed beforehand.
    """
    _check_level(level)
    table = np.atleast_2d(np.asarray(values, dtype=float))
    count = table.shape[0]
    if best is None:
        best = _best_row(table, higher_is_better)
    if not 0 <= best < count:
        raise OutOfRange(f"0 <= best < {count} must hold, the number of configurations, got best={best}")

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
    same = ~(p_adjusted < 1 - level)  # NaN: nothing distinguishes them
    return Differences(best, difference, low, high, p, p_adjusted, n, same)


def variance_components(values: npt.ArrayLike) -> VarianceComponents:
    """Subject and seed variance apart, by one-way analysis of variance.

    Parameters
    ----------
    values : (subjects, seeds), NaN where a cell is missing

    Returns
    -------
    VarianceComponents
        ``seed`` is the mean square within subjects; ``subject`` what the mean
        square between subjects has above it, divided by the (effective) number
        of seeds, never below 0. Both NaN with fewer than two subjects; with one
        seed per subject ``seed`` is NaN and ``subject`` holds both.

    Notes
    -----
    Seeds are nested in subjects: under leave-one-out, seed 0 of two subjects
    is two trainings that share nothing but a number.

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
    """Exact Shapley value of each player: its mean marginal worth over all orders of joining.

    Parameters
    ----------
    values : worth of every non-empty subset (2ⁿ − 1 of them: 15 for four sequences)
    players : in the order wanted; by default all that occur, sorted
    empty : worth of nobody, unless ``values`` has the empty set: what is scored
        without any input (0 for the Dice coefficient of an empty prediction)

    Returns
    -------
    dict
        One value per player; they add up to the worth of all − ``empty``. NaN
        in any subset gives NaN.

    Raises
    ------
    OutOfRange
        If a subset is missing; all missing ones are named.

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
    """:func:`shapley` of each subject by itself, averaged with a t interval.

    Parameters
    ----------
    values : (subjects,) worth of every non-empty subset, the same subjects in each
    players, empty : see :func:`shapley`
    level : coverage of the interval

    Returns
    -------
    dict
        One :class:`~harness.core.types.Score` per player. A subject with a NaN in
        any subset is missing for every player, so that the shares add up.
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
    worth = {frozenset(): np.asarray(empty, dtype=float), **values}
    shares: dict[str, Array] = {}
    for name in names:
        without = [frozenset(), *(subset for subset in subsets if name not in subset)]
        weights = [1 / (len(names) * math.comb(len(names) - 1, len(subset))) for subset in without]
        gains = (worth[subset | {name}] - worth[subset] for subset in without)
        shares[name] = np.sum([weight * gain for weight, gain in zip(weights, gains, strict=True)], axis=0)
    # A subset that is undefined for a subject cancels out of nobody's share.
    undefined = np.isnan(np.sum([worth[subset] for subset in subsets], axis=0))
    return {name: np.where(undefined, math.nan, share) for name, share in shares.items()}


def _best_row(table: Floats, higher_is_better: bool) -> int:
    means = np.array([mean_interval(row).mean for row in table])
    if np.all(np.isnan(means)):
        raise OutOfRange("at least one configuration must have a value, got only NaN")
    return int(np.nanargmax(means) if higher_is_better else np.nanargmin(means))


def _deltas(first: Floats, second: Floats) -> Floats:
    """first − second where both are finite; what differs by rounding alone is 0."""
    if first.shape != second.shape:
        raise OutOfRange(f"pairs must come from the same subjects, got {first.size} and {second.size} values")
    kept = np.isfinite(first) & np.isfinite(second)
    first, second = first[kept], second[kept]
    # Two equal results summed in another order would otherwise have p = 0.
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
    # Degenerate resamples are found and named above, not warned about.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return stats.bootstrap(tuple(data), statistic, paired=True, vectorized=False, **options)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OutOfRange(f"0 < level < 1 must hold, got level={level}")
