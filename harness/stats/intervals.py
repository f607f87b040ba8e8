"""Confidence intervals, paired comparisons and Shapley values over subjects.

Subjects are the unit of analysis. Repeated values within a subject (seeds, visits,
lesions) are averaged beforehand; :func:`variance_components` separates their variance.

Intervals stay inside the range of a metric (:func:`bounded_interval`). With fewer than
:data:`MINIMUM_SUBJECTS` subjects there are only intervals of means, and no tests: a
paired test of so few subjects depends mainly on the assumption of normality.
``benchmarks/intervals.py`` prints the coverage of all intervals, and the error of the
tests, in simulated data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from harness.core.errors import OutOfRange
from harness.core.types import Array, Score

__all__ = [
    "BOOTSTRAP_SAMPLES",
    "Differences",
    "FOLDS",
    "Interval",
    "MINIMUM_SUBJECTS",
    "MOST_OF_TRAINING",
    "Range",
    "Training",
    "UNBOUNDED",
    "VarianceComponents",
    "bootstrap_counts",
    "bootstrap_interval",
    "bounded_interval",
    "few_decide",
    "jackknife_interval",
    "mean_interval",
    "mean_score",
    "paired_differences",
    "pseudo_values",
    "shapley",
    "shapley_scores",
    "takes_training_in",
    "variance_components",
    "with_training",
]

MINIMUM_SUBJECTS = 6
"""Minimum number of subjects for ranks, p values and intervals of pooled values."""

FOLDS = (3, 6)
"""Smallest and largest number of folds whose trainings enter an interval, see :func:`with_training`."""

MOST_OF_TRAINING = 1.0
"""Largest variance that trainings add to that of a metric of predictions, see ``most`` of :func:`with_training`."""

BOOTSTRAP_SAMPLES = 2000
"""Number of bootstrap samples of an interval."""

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]
Training = Literal["none", "deterministic", "random"]
"""What a training depends on, see :func:`with_training`."""

UNBOUNDED: Range = (-math.inf, math.inf)
"""Range of a metric without bounds."""

_OVER_CHANCE = 4.0  # variance from training subjects over that from chance, of networks with one seed
_WIDEST = 2.0  # largest half width, relative to the value, of an interval on the logarithmic scale
_FAR = 8.0  # subjects decide a mean if they are this many robust SDs away from the median
_FEW = 0.2  # and if they are at most this share of the subjects


class Interval(NamedTuple):
    """A value with its interval and standard error, in the unit of the value.

    ``reason`` says why there is no interval; it is empty if there is one.
    """

    value: float
    low: float
    high: float
    se: float
    reason: str = ""


@dataclass(frozen=True)
class Differences:
    """Comparison of each configuration with the best one, over their common subjects.

    Parameters
    ----------
    best : index of the best configuration
    difference : (C,) mean of configuration − best; 0 for the best itself
    low, high : (C,) simultaneous t interval of the difference, which excludes 0 exactly if
        the configuration differs significantly; NaN for the best
    p : (C,) two-sided p of the paired t test; NaN for the best and with too few pairs
    p_adjusted : (C,) p multiplied by the number of comparisons (Bonferroni), at most 1
    n : (C,) int, number of subjects in the comparison
    indistinguishable : (C,) bool, True unless the configuration differs significantly
        from the best; True for the best itself and if there are too few pairs
    rank_low, rank_high : (C,) int, simultaneous intervals of the ranks, from 1: a
        configuration ranks behind those that are significantly better, and before those
        that are significantly worse
    """

    best: int
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_adjusted: Floats
    n: npt.NDArray[np.intp]
    indistinguishable: npt.NDArray[np.bool_]
    rank_low: npt.NDArray[np.intp]
    rank_high: npt.NDArray[np.intp]


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


def bounded_interval(value: float, se: float, df: int, *, range: Range = UNBOUNDED, level: float = 0.95) -> Interval:
    """Student's t interval of an estimate that stays inside the range of the metric.

    Parameters
    ----------
    value : the estimate
    se : its standard error
    df : degrees of freedom
    range : lowest and highest possible value of the metric
    level : confidence level, in (0, 1)

    Returns
    -------
    Interval
        If both ends of the range are finite, the interval is computed on the logit scale;
        if only the lower end is finite, on the logarithmic scale (delta method). With a
        finite upper end alone, as for R², the bounds are cut at it. Values at the end of
        the range, and distances whose half width is more than twice their size, have the
        interval of the plain scale, cut at the range.

    Notes
    -----
    In simulated scores of 12 subjects, the logit scale covers .97 (ICC), .95 (r²) and .93
    (very skewed means) instead of .92, .89 and .90 on the plain scale, and the plain
    scale leaves the range in up to two thirds of the samples (``benchmarks/intervals.py``).
    No scale helps if failures are so rare that a sample has none: with one failure in ten
    subjects, intervals of 6, 12 and 21 subjects cover .58, .72 and .89. For R², a
    logarithmic scale was tried: its intervals of 12 subjects are up to 60 times wider.

    References
    ----------
    Casella & Berger 2002, Statistical inference, section 5.5.4 (delta method).
    """
    _check_level(level)
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    low, high = range
    ends: list[float] = []
    if se > 0 and low < value < high and math.isfinite(low):
        if math.isfinite(high):
            share = (value - low) / (high - low)
            centre, step = special.logit(share), half / (high - low) / (share * (1 - share))
            ends = [low + (high - low) * float(special.expit(centre + sign * step)) for sign in (-1, 1)]
        elif half <= _WIDEST * (value - low):
            ends = [low + (value - low) * float(np.exp(sign * half / (value - low))) for sign in (-1, 1)]
        if ends:
            return Interval(value, ends[0], ends[1], se)
    return Interval(value, max(low, value - half), min(high, value + half), se)


def mean_interval(values: npt.ArrayLike, *, range: Range = UNBOUNDED, level: float = 0.95) -> Interval:
    """Mean over subjects with Student's t interval.

    Parameters
    ----------
    values : (n,) one value per subject; values that are not finite are skipped
    range : lowest and highest possible value, see :func:`bounded_interval`
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
        return Interval(math.nan, math.nan, math.nan, math.nan, "no values")
    mean = float(kept.mean())
    if kept.size == 1:
        return Interval(mean, math.nan, math.nan, math.nan, "one value")
    se = float(kept.std(ddof=1)) / math.sqrt(kept.size)
    return bounded_interval(mean, se, kept.size - 1, range=range, level=level)


def mean_score(
    values: npt.ArrayLike,
    *,
    range: Range = UNBOUNDED,
    level: float = 0.95,
    chance: float = math.nan,
    ceiling: float = math.nan,
) -> Score:
    """:func:`mean_interval` as a :class:`~harness.core.types.Score`, with the number of subjects.

    Parameters
    ----------
    values : (n,) one value per subject; values that are not finite count as missing
    range : lowest and highest possible value, see :func:`bounded_interval`
    level : confidence level
    chance, ceiling : copied to the score
    """
    found = mean_interval(values, range=range, level=level)
    n = _finite(values).size
    missing = int(np.size(np.asarray(values))) - n
    return Score(found.value, found.low, found.high, n, found.se, missing, chance, ceiling)


def few_decide(values: npt.ArrayLike) -> tuple[int, float]:
    """Number of subjects far from the others that decide a mean, and the mean without them.

    Parameters
    ----------
    values : (n,) one value per subject; values that are not finite are skipped

    Returns
    -------
    count : int
        Number of values more than eight robust standard deviations (1.4826 times the
        median absolute deviation, or a tenth of the SD if that is larger) from the
        median, if they shift the mean by more than half of its standard error; otherwise
        0, also if there are fewer than six values, or more than a fifth are far away.
    mean : float
        Mean without them.
    """
    kept = _finite(values)
    if kept.size < MINIMUM_SUBJECTS:
        return 0, math.nan
    away = np.abs(kept - np.median(kept))
    # The floor is for values that tie, whose median deviation is 0.
    far = away > _FAR * max(1.4826 * float(np.median(away)), 0.1 * float(kept.std(ddof=1)))
    rest = float(kept[~far].mean())
    shifted = abs(rest - kept.mean()) > 0.5 * kept.std(ddof=1) / math.sqrt(kept.size)
    if not far.any() or far.sum() > _FEW * kept.size or not shifted:
        return 0, rest
    return int(far.sum()), rest


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
    if np.isfinite(values).all():
        values -= values.mean() - whole
    return values


def takes_training_in(sizes: Sequence[int]) -> bool:
    """Whether intervals of pooled values can take the variation of trainings in, see :func:`with_training`.

    Parameters
    ----------
    sizes : number of test subjects of each fold

    Returns
    -------
    bool
        True for three to six folds of at least six subjects each. With more folds, the
        trainings differ too little from one another to tell how trainings vary.
    """
    least, most = FOLDS
    return least <= len(sizes) <= most and min(sizes) >= MINIMUM_SUBJECTS


def with_training(
    values: npt.ArrayLike, error: float = 0.0, *, training: Training = "deterministic", most: float = math.inf
) -> Floats:
    """Pseudo-values of the folds of a cross-validation whose standard error includes the trainings.

    Parameters
    ----------
    values : (K,) or (S, K) pseudo-values of a pooled statistic, with folds as units, of each of
        S seeds; they are averaged over the seeds
    error : standard error of the statistic for the trained models, from leaving out test
        subjects; 0 if it hardly depends on them, as for maps of weights
    training : what a training depends on: ``"none"`` if the statistic depends on no model, as
        for control maps; ``"deterministic"`` if the training subjects determine the model;
        ``"random"`` if initial weights and batches are random as well
    most : largest variance that trainings add, in multiples of that for the trained models or
        of that between folds, whichever is larger

    Returns
    -------
    (K,) float64
        The values, with a multiple of the distance from their mean; unchanged for ``"none"``.

    Notes
    -----
    The networks of two folds share most of their training subjects. If the statistic is
    about linear in the training subjects, as in the delete-a-group jackknife, the values
    of the folds differ by 1 / (K − 1) of what disjoint training sets would give. The
    variance of the mean is taken as T + (K − 1)² V w, with V of the folds and T = ``error``².
    V contains T, which must not be multiplied: w is the share of V that is due to the
    trainings, from 0 to 1. It is estimated as V⁴ / (V² + T²)², which is smoother than
    max(0, 1 − T / V), because V has few degrees of freedom.

    What random trainings differ by chance must not be multiplied either. With several
    seeds, its variance C is that of the seeds within folds, and T + C takes the place of T.
    With one seed it is not known. It is then assumed that disjoint training sets would add
    r = 4 times as much variance as chance, so that the factor (K − 1)² becomes
    (1 + r) / (1 + r / (K − 1)²), which is 2.5 for three folds and 4 for five.

    If values depend on test and training subjects in proportions of 1 : 0 to 1 : 8, intervals
    of five folds cover 1.00 to .90 for deterministic models. Intervals for the trained models only
    cover .95 to .51, and those of Nadeau & Bengio .99 to .81. For random trainings, with
    chance between an eighth of and eight times the effect of training subjects, intervals
    cover .91 to 1.00 (``benchmarks/intervals.py``).

    Two rows that are compared share their test subjects, so that their difference may depend on
    the trainings only, and an ``error`` would count twice. Comparisons therefore use values with
    ``error=0``: in simulated rows of equal true value, the paired test then has an error of .00 to
    .07 (.03 on average), whatever the shares. With the errors of the intervals it was up to .17.

    Predictions depend on the test subjects more than on which subjects the models were trained
    with: the variance that training subjects add is of lower order in their number (Bates et al.
    2024). With ``most=1``, SD / SE of simulated values is .7 to 1.0 if they add nothing, and 1.0
    to 1.3 if they add twice the variance of test subjects, for any chance of trainings; without
    the limit it is .4 to .8. Maps hardly depend on test subjects, so that nothing limits what
    trainings add.

    On eight cohorts of 205 real lesion masks, the standard deviation between cohorts is .8 to
    1.4 times the stated error for maps of three linear models by three methods, and for maps
    of two networks with one seed by two methods (root mean square). For R² with noise of .3, over
    three sets of regions, it is 1.02 (ridge), .78 (sparse linear), .81 (SVR-LSM) and 1.32
    (mass-univariate) times the error, and .39 times for the lesion field model, whose R² is near
    the bound that noise sets in every cohort alike. Without the limit it is .2 to .7 times
    (``benchmarks/coverage.py``). Without noise, a few patients with large scores decide R².

    References
    ----------
    Bates, Hastie & Tibshirani 2024, Cross-validation: what does it estimate and how well does it
    do it?, JASA 119:1434. Kott 2001, The delete-a-group jackknife, Journal of Official Statistics 17:521.
    Nadeau & Bengio 2003, Inference for the generalization error, Machine Learning 52:239.
    """
    of_seeds = np.atleast_2d(np.asarray(values, dtype=float))
    known: Floats = of_seeds.mean(axis=0)
    if training == "none" or not known.size or not np.isfinite(known).all():
        return known  # unchanged, or there is no interval
    seeds, count = of_seeds.shape
    centre, of_folds = known.mean(), float(known.var(ddof=1)) / count
    if not of_folds:
        return known
    fixed, factor = error**2, float((count - 1) ** 2)
    if training == "random" and seeds == 1:
        factor = (1 + _OVER_CHANCE) / (1 + _OVER_CHANCE / factor)
    elif training == "random":
        fixed += float(of_seeds.var(axis=0, ddof=1).mean()) / (seeds * count)
    share = of_folds**4 / (of_folds**2 + fixed**2) ** 2
    variance = fixed + min(factor * of_folds * share, most * max(fixed, of_folds))
    spread: Floats = centre + math.sqrt(variance / of_folds) * (known - centre)
    return spread


def jackknife_interval(
    values: npt.ArrayLike, estimate: float, *, range: Range = UNBOUNDED, level: float = 0.95
) -> Interval:
    """Interval of a pooled statistic from its pseudo-values.

    Parameters
    ----------
    values : (n,) pseudo-values, see :func:`pseudo_values`
    estimate : statistic of all units
    range : lowest and highest possible value, see :func:`bounded_interval`
    level : confidence level

    Returns
    -------
    Interval
        Bounds and standard error are NaN, with the reason, if there are fewer than two
        units, if a pseudo-value is not finite, or if leaving out any unit changes nothing,
        as for an AUC of 1: the sample then says nothing about the error.

    Notes
    -----
    In simulated AUC, R², r² and ICC of 12 to 50 subjects, this interval covers .93 to 1.00,
    and a BCa bootstrap .54 to .98 (``benchmarks/intervals.py``).
    """
    known = np.asarray(values, dtype=float)
    undefined = int(np.count_nonzero(~np.isfinite(known)))
    reason = ""
    if known.size < 2:
        reason = "an interval needs at least two subjects or folds"
    elif undefined or not math.isfinite(estimate):
        left_out = f" if one of {undefined} of {known.size} subjects or folds is left out" if undefined else ""
        reason = f"undefined{left_out}"
    elif np.ptp(known) <= 1e-12 * max(1.0, abs(estimate)):
        reason = "leaving out any subject or fold gives the same value"
    if reason:
        return Interval(estimate, math.nan, math.nan, math.nan, reason)
    error = float(known.std(ddof=1) / math.sqrt(known.size))
    return bounded_interval(estimate, error, known.size - 1, range=range, level=level)


def bootstrap_counts(
    rng: np.random.Generator, units: int, *, samples: int = BOOTSTRAP_SAMPLES
) -> npt.NDArray[np.int64]:
    """How often each unit occurs in each bootstrap sample, (samples, units)."""
    counts: npt.NDArray[np.int64] = rng.multinomial(units, np.full(units, 1 / units), size=samples)
    return counts


def bootstrap_interval(values: npt.ArrayLike, estimate: float, *, level: float = 0.95) -> Interval:
    """Percentile interval of a statistic from its bootstrap samples.

    Parameters
    ----------
    values : (B,) the statistic in samples of subjects, all of whose values are drawn together
        (cluster bootstrap); NaN where it is undefined
    estimate : the statistic of all subjects
    level : confidence level

    Returns
    -------
    Interval
        Bounds and standard error are NaN, with the reason, if the statistic is undefined in
        all subjects or in more than one of a hundred samples, or is the same in all samples.

    References
    ----------
    Efron & Tibshirani 1993, An introduction to the bootstrap, section 13.3.
    """
    _check_level(level)
    known = np.asarray(values, dtype=float)
    defined = known[np.isfinite(known)]
    reason = ""
    if not math.isfinite(estimate) or defined.size < 2 or defined.size < 0.99 * known.size:
        reason = f"undefined in {known.size - defined.size} of {known.size} bootstrap samples"
    elif np.ptp(defined) <= 1e-12 * max(1.0, abs(estimate)):
        reason = "all bootstrap samples give the same value"
    if reason:
        return Interval(estimate, math.nan, math.nan, math.nan, reason)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), float(defined.std(ddof=1)))


def paired_differences(
    values: npt.ArrayLike,
    *,
    best: int | None = None,
    higher_is_better: bool = True,
    level: float = 0.95,
    minimum: int = MINIMUM_SUBJECTS,
) -> Differences:
    """Paired comparison of each configuration with the best one.

    Parameters
    ----------
    values : (configurations, subjects), NaN where a subject has no value
    best : index of the best configuration; by default the one with the best mean
    higher_is_better : direction of the values
    level : simultaneous confidence level of all intervals; adjusted p values below
        1 − level are significant
    minimum : smallest number of pairs that are tested; with fewer, a difference has no interval

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
    The correction counts all pairs of configurations, because the best one is selected on
    the same values. Configurations with identical values count as one. With eight equal
    configurations, counting only the seven comparisons with the best finds a significant
    difference in 9 % (6 subjects) to 12 % (21 subjects) of simulated cohorts instead of
    5 %. Counting all pairs keeps the level (2 to 3 %). Bonferroni's correction is used
    although Holm's is more powerful, because it has intervals: unadjusted ones contradict
    the test in a quarter to a half of the tables without differences
    (``benchmarks/intervals.py``).

    References
    ----------
    Mohamad, Goeman & van Zwet 2019, Simultaneous confidence intervals for ranks with
    application to ranking institutions, arXiv:1812.05507 (intervals of ranks).
    """
    _check_level(level)
    table = np.atleast_2d(np.asarray(values, dtype=float))
    count = table.shape[0]
    if best is None:
        best = _best_row(table, higher_is_better)
    if not 0 <= best < count:
        raise OutOfRange(f"0 <= best < {count} must hold for the index of a configuration, got best={best}")

    pairs = list(combinations(range(count), 2))
    raw = {pair: _paired_test(table[pair[0]], table[pair[1]], minimum) for pair in pairs}
    different = {(table[i].tobytes(), table[j].tobytes()) for (i, j), one in raw.items() if math.isfinite(one)}
    tests = max(1, len({frozenset(pair) for pair in different if pair[0] != pair[1]}))
    adjusted = {pair: min(one * tests, 1.0) for pair, one in raw.items() if math.isfinite(one)}

    difference, low, high = np.zeros(count), np.full(count, math.nan), np.full(count, math.nan)
    p, p_adjusted, n = np.full(count, math.nan), np.full(count, math.nan), np.zeros(count, dtype=np.intp)
    for row in range(count):
        delta = _deltas(table[row], table[best])
        n[row] = delta.size
        if row != best:
            found = mean_interval(delta, level=1 - (1 - level) / tests)
            difference[row] = found.value
            if delta.size >= minimum:  # otherwise there is no test with which the interval could agree
                low[row], high[row] = found.low, found.high
            pair = (min(row, best), max(row, best))
            p[row], p_adjusted[row] = raw[pair], adjusted.get(pair, math.nan)
    same = ~(p_adjusted < 1 - level)  # also True for NaN
    ranks = _rank_bounds(table, [pair for pair, one in adjusted.items() if one < 1 - level], higher_is_better)
    return Differences(best, difference, low, high, p, p_adjusted, n, same, *ranks)


def _rank_bounds(
    table: Floats, significant: Sequence[tuple[int, int]], higher_is_better: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Bounds of the rank of each configuration, from the pairs that differ significantly."""
    better, worse = np.zeros(len(table), dtype=np.intp), np.zeros(len(table), dtype=np.intp)
    for one, other in significant:
        first_leads = (_deltas(table[one], table[other]).mean() > 0) == higher_is_better
        ahead, behind = (one, other) if first_leads else (other, one)
        better[behind] += 1
        worse[ahead] += 1
    return better + 1, len(table) - worse


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
    means = np.array([mean_interval(row).value for row in table])
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


def _paired_test(first: Floats, second: Floats, minimum: int) -> float:
    delta = _deltas(first, second)
    if delta.size < minimum:
        return math.nan
    mean, _, _, se, _ = mean_interval(delta)
    if se <= 1e-12 * abs(mean):
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / se, delta.size - 1))


def _finite(values: npt.ArrayLike) -> Floats:
    flat = np.asarray(values, dtype=float).ravel()
    kept: Floats = flat[np.isfinite(flat)]
    return kept


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OutOfRange(f"0 < level < 1 must hold, got level={level}")
