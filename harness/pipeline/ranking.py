"""Ranks and paired comparisons of rows, within one problem.

A row is not ranked if

- it is incomplete, or one of its cells failed or collapsed (:data:`BLOCKING`);
- it lacks the value of a subject for which another row of its ranking has one, because
  means over different subjects are not comparable;
- fewer than six subjects have a value (status "undecided").

Such rows stay in the table with their values and the reason, but are not compared. Scores
of summed or pooled explanations whose intervals are given the trained models are ranked
by their values, but not compared either: another training can change them more than
other subjects do. Rows that differ in a stratum (the profile, the data, an axis that poses the problem, or for
explanations the explained scalar and samples) are ranked and compared separately.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.core.types import JSON, Direction, Score
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.stats.intervals import FOLDS, MINIMUM_SUBJECTS, Differences, few_decide, mean_score, paired_differences

__all__ = ["BLOCKING", "STRATA", "Line", "decided_by_few", "ranked_lines", "score_of", "strata_of", "text_of_label"]

BLOCKING = ("collapsed", "failed", "incomplete", "oracle", "stopped")
"""Prefixes of the flags that exclude a row from the ranking."""

STRATA = ("profile", "data")
"""Facts that separate rankings in every table."""


_NAMED = 6  # number of missing subjects that a status names


@dataclass
class Line:
    """A row with its scores and rank, used while a table is built.

    Parameters
    ----------
    row : the row
    scores : scores by metric
    objective : mean over seeds of the ranking metric, by subject, or its pseudo-values by
        subject, fold or block
    stratum : values of the strata, in sortable form
    status : ``"ranked"``, or the reason why it is not
    rank : rank from 1; ``None`` if it is not ranked
    comparison : paired difference from the first row of its ranking, and gain over the
        baseline, by column
    """

    row: Row
    scores: Mapping[str, Score]
    objective: Mapping[str, float]
    stratum: tuple[tuple[int, float, str], ...]
    status: str = ""
    rank: int | None = None
    comparison: dict[str, Any] = field(default_factory=dict)


def strata_of(rows: Sequence[Row], poses: Callable[[str], bool]) -> tuple[str, ...]:
    """Columns that separate rankings: the profile, the data, and what else poses the problem and varies.

    Parameters
    ----------
    rows : rows of one run
    poses : whether an axis poses the problem (:meth:`harness.core.task.Task.poses`)

    Returns
    -------
    tuple of str
        Names of facts, axes, and for explanations what they explain
        (:attr:`harness.pipeline.rows.Row.explains`).
    """
    axes = dict.fromkeys(name for row in rows for name in row.axes if poses(name))
    varying = [name for name in axes if len({_sortable(row.axes.get(name)) for row in rows}) > 1]
    explained = dict.fromkeys(name for row in rows for name in row.explains)
    varying += [name for name in explained if len({row.explains[name] for row in rows if name in row.explains}) > 1]
    return (*STRATA, *varying)


def ranked_lines(
    rows: Sequence[Row],
    metrics: Sequence[MetricFacts],
    objective: str,
    direction: Direction,
    *,
    level: float,
    strata: Sequence[str],
) -> list[Line]:
    """Rank rows and compare them within their rankings.

    Parameters
    ----------
    rows : the rows
    metrics : facts of the metrics to score
    objective, direction : the ranking metric, and its direction
    level : coverage of the intervals
    strata : facts and axes that separate rankings

    Returns
    -------
    list of Line
        Rankings follow one another, each with ranked rows first, sorted by objective.
        Rows with equal values share the better rank.
    """
    lines = [
        Line(
            row,
            {metric.name: score_of(row, metric, level) for metric in metrics},
            subject_means(row, objective),
            tuple(_sortable({**row.axes, **row.explains, **row.facts}.get(name)) for name in strata),
        )
        for row in rows
    ]
    for stratum in dict.fromkeys(line.stratum for line in lines):
        _rank([line for line in lines if line.stratum == stratum], objective, direction, level)
    return sorted(lines, key=lambda line: _order(line, objective, direction))


def score_of(row: Row, metric: MetricFacts, level: float) -> Score:
    """Score of a metric over the subjects of a row, or the pooled score.

    Notes
    -----
    The chance level is the first known of: the mean of the metric ``<metric>_chance``,
    the chance level of the pooled score, that of the metric's facts.
    """
    subjects = subject_means(row, metric.name)
    pooled = row.pooled.get(metric.name)
    own = mean_score(list(subject_means(row, f"{metric.name}_chance").values())).value
    chance = _first_known(own, pooled.chance if pooled else math.nan, metric.chance)
    ceiling = _first_known(pooled.ceiling if pooled else math.nan, metric.ceiling)
    if pooled is not None:  # also if there are pseudo-values, whose mean may differ slightly
        return dataclasses.replace(pooled, chance=chance, ceiling=ceiling)
    if subjects:
        values = list(subjects.values())
        return mean_score(values, range=metric.range, level=level, chance=chance, ceiling=ceiling)
    return Score(math.nan, math.nan, math.nan, 0, chance=chance, ceiling=ceiling)


def decided_by_few(row: Row, metric: str) -> tuple[str, ...]:
    """Flag of a row if a few subjects decide the mean of a metric, see :func:`~harness.stats.intervals.few_decide`.

    Pooled values have no flag.
    """
    if metric in row.pooled:
        return ()
    values = list(subject_means(row, metric).values())
    count, rest = few_decide(values)
    if not count:
        return ()
    decide, them = ("decides", "it") if count == 1 else ("decide", "them")
    return (f"{count} of {len(values)} subjects {decide} the mean of {metric}, which is {rest:.3g} without {them}",)


def _first_known(*values: float) -> float:
    return next((value for value in values if not math.isnan(value)), math.nan)


def _rank(lines: Sequence[Line], objective: str, direction: Direction, level: float) -> None:
    """Set status, rank and comparison of the rows of one ranking."""
    for line in lines:
        line.status = _blocked(line, objective)
    candidates = [line for line in lines if not line.status]
    # Pseudo-values of folds and of subjects, if splits differ, have no common units.
    mixed = len({objective in line.row.by_fold for line in candidates}) > 1
    known = {subject for line in candidates for subject in _valued(line)} if not mixed else set()
    most = max((line.scores[objective].n for line in candidates), default=0)
    for line in candidates:
        lost = sorted(known - _valued(line)) if line.objective else []
        if lost:
            more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
            line.status = f"no {objective} for {', '.join(lost[:_NAMED])}{more}, where others have one"
        elif objective in line.row.pooled and line.scores[objective].n < most:
            line.status = f"{objective} of {line.scores[objective].n} subjects, where others have {most}"
        elif line.scores[objective].n < MINIMUM_SUBJECTS:
            n = line.scores[objective].n
            line.status = f"undecided: {n} subject{'s' if n != 1 else ''}"
    ranked = [line for line in candidates if not line.status]
    undecided = [line for line in candidates if line.status.startswith("undecided")]

    badness = [_rounded(_badness(line.scores[objective].value, direction)) for line in ranked]
    for line, rank in zip(ranked, stats.rankdata(badness, method="min"), strict=True):
        line.status, line.rank = "ranked", int(rank)
    _compare(ranked or undecided, objective, direction, level)


def _valued(line: Line) -> set[str]:
    """Subjects with a value of the objective."""
    return {subject for subject, value in line.objective.items() if math.isfinite(value)}


def _blocked(line: Line, objective: str) -> str:
    flags = [flag for flag in line.row.flags if flag.lower().startswith(BLOCKING)]
    if flags:
        return flags[0]
    if not line.row.complete:
        return "incomplete"
    if not math.isfinite(line.scores[objective].value):
        return f"no {objective}"
    return ""


def _compare(lines: Sequence[Line], objective: str, direction: Direction, level: float) -> None:
    """Set paired differences from the best row; with fewer than six subjects, without tests."""
    if not lines or not all(line.objective for line in lines):
        return  # a pooled objective has no pairs
    by_fold = {objective in line.row.by_fold for line in lines}
    if len(by_fold) > 1:
        return  # splits differ, so that there are no pairs
    if by_fold == {False} and any(line.row.attribution and objective in line.row.pooled for line in lines):
        return  # intervals are given the trained models
    subjects = sorted({subject for line in lines for subject in line.objective})
    values = np.array([[line.objective.get(subject, math.nan) for subject in subjects] for line in lines])
    # The first row in the order of the table, so that ties are resolved consistently.
    best = min(range(len(lines)), key=lambda index: _order(lines[index], objective, direction))
    minimum = FOLDS[0] if True in by_fold else MINIMUM_SUBJECTS
    _set_gains(lines, values, direction, level, minimum)
    differences = paired_differences(
        values, best=best, higher_is_better=direction == "higher", level=level, minimum=minimum
    )
    for index, line in enumerate(lines):
        line.comparison |= _comparison(differences, index)
        if line.rank is None:
            line.comparison |= dict.fromkeys(("not_distinguishable_from_best", "rank_low", "rank_high"))


def _set_gains(
    lines: Sequence[Line], values: npt.NDArray[np.float64], direction: Direction, level: float, minimum: int
) -> None:
    """Set the gain of each row over the first baseline; positive is better.

    The baseline is known before the results, so that the interval of each gain is not
    adjusted for the number of rows.
    """
    baselines = [index for index, line in enumerate(lines) if line.row.baseline]
    if not baselines:
        return
    first = baselines[0]
    sign = 1.0 if direction == "higher" else -1.0
    for index, line in enumerate(lines):
        if index != first:
            pair = sign * values[[index, first]]
            found = paired_differences(pair, best=1, level=level, minimum=minimum)
            line.comparison |= {
                "gain": float(found.difference[0]),
                "gain_low": float(found.low[0]),
                "gain_high": float(found.high[0]),
                "gain_over": lines[first].row.baseline,
            }


def _comparison(differences: Differences, index: int) -> dict[str, Any]:
    return {
        "difference": float(differences.difference[index]),
        "difference_low": float(differences.low[index]),
        "difference_high": float(differences.high[index]),
        "p_adjusted": float(differences.p_adjusted[index]),
        "not_distinguishable_from_best": bool(differences.indistinguishable[index]),
        "rank_low": int(differences.rank_low[index]),
        "rank_high": int(differences.rank_high[index]),
    }


def _badness(value: float, direction: Direction) -> float:
    """Sort key that is lower for better values; missing values come last."""
    if math.isnan(value):
        return math.inf
    return -value if direction == "higher" else value


def _rounded(value: float) -> float:
    """Round to twelve significant digits, so that means that differ only by rounding are ties."""
    return float(f"{value:.12g}")


def _order(line: Line, objective: str, direction: Direction) -> tuple[Any, ...]:
    return (
        line.stratum,
        math.inf if line.rank is None else line.rank,
        _rounded(_badness(line.scores[objective].value, direction)),
        text_of_label(dict(line.row.axes)),
        line.row.attribution,
        line.row.configuration,
    )


def _sortable(value: JSON) -> tuple[int, float, str]:
    """Sort key of a label: missing labels first, then numbers by size, then text."""
    if isinstance(value, int | float):
        return 1, float(value), ""
    return (0, 0.0, "") if value is None else (2, 0.0, value if isinstance(value, str) else text_of_label(value))


def text_of_label(value: JSON) -> str:
    """Any label as JSON text; equal labels give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
