"""Tests of the hypotheses of a paper, by paired differences between configurations.

A hypothesis may consist of several pairs. It is *supported* if every pair is
supported. This is an intersection-union test, so the level is not adjusted for the
number of pairs. It is *not supported* if any interval lies on the opposite side;
here a single pair is sufficient, so the intervals are Bonferroni-corrected for the
number of pairs. Otherwise it is *undecided*, as are all hypotheses with fewer than
:data:`~harness.stats.intervals.MINIMUM_SUBJECTS` subjects.

References
----------
Berger 1982, Multiparameter hypothesis testing and acceptance sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Literal, NamedTuple

import numpy as np

from harness.core.hypotheses import Hypothesis, Relation, label_key
from harness.core.types import Array, Direction
from harness.stats.intervals import (
    MINIMUM_SUBJECTS,
    UNBOUNDED,
    Range,
    jackknife_interval,
    mean_score,
    paired_differences,
    pseudo_values,
)

__all__ = ["Contrast", "Estimate", "Finding", "Outcome", "Pair", "judge", "mean_contrast", "pooled_contrast"]

Outcome = Literal["supported", "not supported", "undecided"]


class Estimate(NamedTuple):
    """A difference or a single value, with its interval and number of subjects."""

    value: float
    low: float
    high: float
    n: int


Contrast = Callable[[str, str, float], Estimate]
"""Estimate from (first, second, level): first − second over common subjects, or first alone if second is empty."""


@dataclass(frozen=True)
class Pair:
    """One comparison of a hypothesis.

    Parameters
    ----------
    first, second : labels; the first should be better. ``second`` is empty for
        ``"reaches"`` and ``"below"``
    difference : first − second in the unit of the metric, or the value of first
    outcome : result of this pair
    slack : distance of the interval from the bound of the hypothesis, in the unit of the
        metric; positive if the whole interval is on the side of the hypothesis; NaN if
        there is no interval
    """

    first: str
    second: str
    difference: Estimate
    outcome: Outcome
    slack: float


@dataclass(frozen=True)
class Finding:
    """Result of the test of one hypothesis.

    Parameters
    ----------
    hypothesis : the hypothesis
    pairs : pairs with both labels present; if a whole group is absent, the groups before
        and after it are compared
    absent : labels without data
    outcome : result of the whole hypothesis
    reason : explanation as text
    """

    hypothesis: Hypothesis
    pairs: tuple[Pair, ...]
    absent: tuple[str, ...]
    outcome: Outcome
    reason: str

    @property
    def decisive(self) -> Pair:
        """The pair that determines the outcome: the one with the smallest slack."""
        alike = [pair for pair in self.pairs if pair.outcome == self.outcome] or list(self.pairs)
        known = [pair for pair in alike if not math.isnan(pair.slack)]
        return min(known, key=lambda pair: pair.slack) if known else alike[0]


def judge(
    hypothesis: Hypothesis,
    present: Collection[str],
    contrast: Contrast,
    *,
    direction: Direction,
    level: float = 0.95,
    minimum: int = MINIMUM_SUBJECTS,
) -> Finding | None:
    """Test one hypothesis.

    Parameters
    ----------
    hypothesis : the hypothesis
    present : labels with data
    contrast : :func:`mean_contrast` or :func:`pooled_contrast`
    direction : direction of the metric
    level : confidence level of the intervals; equivalence is tested at 1 − level on each
        side, so that its interval has the level 2·level − 1
    minimum : smallest number of subjects, or of folds if the values are pseudo-values of
        folds, with which a hypothesis is decided

    Returns
    -------
    Finding or None
        ``None`` if no pair can be compared, so that the hypothesis does not apply.

    Notes
    -----
    The order of names joined by ``+`` in a label does not matter. A hypothesis with an
    absent label is never *supported*.
    """
    by_key = {label_key(label): label for label in present}
    known = [[by_key[label_key(label)] for label in group if label_key(label) in by_key] for group in hypothesis.groups]
    absent = tuple(label for group in hypothesis.groups for label in group if label_key(label) not in by_key)
    wanted = _pairs(hypothesis.relation, [group for group in known if group])
    if not wanted:
        return None
    sign = -1.0 if direction == "lower" else 1.0
    pairs = tuple(_compare(hypothesis, one, two, contrast, sign, level, len(wanted), minimum) for one, two in wanted)
    outcomes = [pair.outcome for pair in pairs]
    outcome: Outcome = "undecided"
    if "not supported" in outcomes:
        outcome = "not supported"
    elif set(outcomes) == {"supported"} and not absent:
        outcome = "supported"
    return Finding(hypothesis, pairs, absent, outcome, _reason(outcome, pairs, absent, minimum))


def mean_contrast(
    values: Mapping[str, Mapping[str, float]],
    *,
    range: Range = UNBOUNDED,
    pooled: Mapping[str, float] | None = None,
) -> Contrast:
    """Mean differences over subjects, with t intervals.

    Parameters
    ----------
    values : values by label and subject; NaN where the metric is undefined
    range : lowest and highest possible value of the metric
    pooled : value of a pooled statistic by label, whose pseudo-values the values are
    """
    subjects = sorted({subject for by_subject in values.values() for subject in by_subject})
    columns = {
        label: np.array([by_subject.get(subject, math.nan) for subject in subjects], dtype=float)
        for label, by_subject in values.items()
    }

    def contrast(first: str, second: str, level: float) -> Estimate:
        if not second:
            column = columns[first]
            if pooled is not None:
                alone = jackknife_interval(column, pooled[first], range=range, level=level)
                return Estimate(alone.value, alone.low, alone.high, int(np.isfinite(column).sum()))
            score = mean_score(column, range=range, level=level)
            return Estimate(score.value, score.low, score.high, score.n)
        found = paired_differences([columns[first], columns[second]], best=1, level=level)
        n = int(found.n[0])
        # Without common subjects the difference is undefined, not zero.
        value = float(found.difference[0]) if n else math.nan
        return Estimate(value, float(found.low[0]), float(found.high[0]), n)

    return contrast


def pooled_contrast(
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    statistic: Callable[[Mapping[str, Array]], float],
    *,
    range: Range = UNBOUNDED,
) -> Contrast:
    """Differences of a pooled statistic, with jackknife intervals over subjects.

    Parameters
    ----------
    values : values by label, column and subject
    statistic : computes one number from the columns, (n,) each
    range : lowest and highest possible value of the metric

    Notes
    -----
    The interval of a difference is that of the differences of pseudo-values of the same
    subjects, so that the comparison is paired.
    """
    subjects = sorted({name for columns in values.values() for column in columns.values() for name in column})
    arrays = {
        label: {name: np.array([column.get(one, math.nan) for one in subjects]) for name, column in columns.items()}
        for label, columns in values.items()
    }

    def of(label: str, chosen: Array) -> float:
        return statistic({name: column[chosen] for name, column in arrays[label].items()})

    def contrast(first: str, second: str, level: float) -> Estimate:
        labels = [label for label in (first, second) if label]
        columns = [column for label in labels for column in arrays[label].values()]
        common = np.flatnonzero(np.all(np.isfinite(columns), axis=0))

        def difference(kept: Array) -> float:
            return of(first, common[kept]) - (of(second, common[kept]) if second else 0.0)

        value = difference(np.arange(common.size)) if common.size else math.nan
        if common.size < MINIMUM_SUBJECTS:
            return Estimate(value, math.nan, math.nan, int(common.size))
        pseudo = pseudo_values(difference, common.size)
        found = jackknife_interval(pseudo, value, range=UNBOUNDED if second else range, level=level)
        return Estimate(value, found.low, found.high, int(common.size))

    return contrast


def _pairs(relation: Relation, groups: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    if relation in ("reaches", "below"):
        return [(label, "") for group in groups for label in group]
    if relation == "equivalent":
        return [pair for group in groups for pair in combinations(group, 2)]
    return [pair for better, worse in pairwise(groups) for pair in product(better, worse)]


def _compare(
    hypothesis: Hypothesis,
    first: str,
    second: str,
    contrast: Contrast,
    sign: float,
    level: float,
    count: int,
    minimum: int,
) -> Pair:
    shown = contrast(first, second, level)
    slack, against = _sides(hypothesis, shown, sign)
    if hypothesis.relation == "equivalent":
        inner = contrast(first, second, 2 * level - 1)
        slack = hypothesis.margin - max(abs(inner.low), abs(inner.high))
    if against and count > 1:  # the corrected interval is wider, so it is needed only here
        _, against = _sides(hypothesis, contrast(first, second, 1 - (1 - level) / count), sign)
    outcome: Outcome = "undecided"
    if shown.n >= minimum:
        outcome = "supported" if slack > 0 else "not supported" if against else "undecided"
    return Pair(first, second, shown, outcome, slack)


def _sides(hypothesis: Hypothesis, estimate: Estimate, sign: float) -> tuple[float, bool]:
    """Slack of an interval, and whether the whole interval is on the opposite side."""
    if hypothesis.relation == "below":
        return hypothesis.margin - estimate.high, estimate.low >= hypothesis.margin
    low, high = (estimate.low, estimate.high) if sign > 0 else (-estimate.high, -estimate.low)
    if hypothesis.relation == "equivalent":
        return hypothesis.margin - max(abs(low), abs(high)), low >= hypothesis.margin or high <= -hypothesis.margin
    # A value to reach changes sign with the direction of the metric; the margin of a difference does not.
    bound = sign * hypothesis.margin if hypothesis.relation == "reaches" else hypothesis.margin
    return low - bound, high < bound


def _reason(outcome: Outcome, pairs: tuple[Pair, ...], absent: tuple[str, ...], minimum: int) -> str:
    def count(wanted: Callable[[Pair], bool]) -> str:
        return f"{sum(map(wanted, pairs))} of {len(pairs)}"

    if outcome == "supported":
        return f"{len(pairs)} of {len(pairs)}"
    if outcome == "not supported":
        return f"the opposite in {count(lambda pair: pair.outcome == 'not supported')}"
    few = min(pairs, key=lambda pair: pair.difference.n)
    if few.difference.n < minimum:
        of = f"{few.first} and {few.second} share" if few.second else f"{few.first} has"
        unit = "subject" if minimum == MINIMUM_SUBJECTS else "fold"
        return f"{of} {few.difference.n} {unit}{'s' if few.difference.n != 1 else ''}, fewer than {minimum}"
    reasons = [f"{count(lambda pair: pair.outcome == 'supported')} supported"]
    if absent:
        reasons.append(f"without {', '.join(absent)}")
    return "; ".join(reasons)
