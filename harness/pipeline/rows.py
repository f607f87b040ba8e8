"""Rows of results of one configuration, and facts about metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.types import JSON, Direction, Score

__all__ = [
    "MetricFacts",
    "Row",
    "Values",
    "null_of",
    "number_of",
    "score_from_json",
    "score_to_json",
    "subject_means",
]

Values = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass(frozen=True)
class MetricFacts:
    """Facts about a metric.

    Parameters
    ----------
    name : name of the column
    direction : which values are better; ``"zero"`` for a bias, ``"none"`` for a descriptive metric
    range : lowest and highest possible value
    chance, ceiling : scores without skill and of a perfect answer; NaN if unknown
    level : ``"subject"`` (averaged over subjects), ``"pooled"`` (one value over all
        subjects), or ``"mixed"`` (pooled for explanations that are scored as a sum)
    source : citation
    summary : description in one line
    unit : unit of the values; empty for a pure number
    """

    name: str
    direction: Direction = "higher"
    range: tuple[float, float] = (-math.inf, math.inf)
    chance: float = math.nan
    ceiling: float = math.nan
    level: str = "subject"
    source: str = ""
    summary: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """Results of one configuration, or of one of its explanations.

    Parameters
    ----------
    configuration : id of the configuration
    axes : values of the sweep's axes, by name; JSON-serialisable
    attribution : label of the explanation; empty for predictions
    values : values by metric, subject and seed; NaN where the metric is undefined
    pooled : scores over all subjects, by metric
    facts : folds, seeds, train_s, explain_s, profile, data, command, cohort
        (fingerprint), code (version), mlflow_run, and others (sizes in mm and voxels);
        each becomes a column
    explains : what an explanation explains, by name: ``explained_scalar``,
        ``explained_samples`` and, if its samples are chosen by predictions,
        ``samples_chosen_by``, the configuration that chose them. Ranks hold among
        explanations of the same scalar and samples
    by_fold : pooled metrics whose intervals include the variation of trainings; their values
        are pseudo-values of folds (:func:`harness.stats.intervals.with_training`)
    baseline : name of the model if it is a baseline, from which the gain of the other rows is
        computed
    complete : whether all cells are done
    flags : warnings for the reader, see :data:`harness.pipeline.ranking.BLOCKING`
    """

    configuration: str
    axes: Mapping[str, JSON]
    attribution: str = ""
    values: Values = field(default_factory=dict)
    pooled: Mapping[str, Score] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)
    explains: Mapping[str, JSON] = field(default_factory=dict)
    by_fold: frozenset[str] = frozenset()
    baseline: str = ""
    complete: bool = True
    flags: tuple[str, ...] = ()


def subject_means(row: Row, metric: str) -> dict[str, float]:
    """Mean over seeds by subject, NaN if no seed has a value; sorted, so that sums are reproducible.

    Parameters
    ----------
    row : row of one configuration
    metric : label of the metric; if the row does not have it, the result is empty
    """
    means = {}
    for subject, seeds in sorted(row.values.get(metric, {}).items()):
        kept = [float(seeds[seed]) for seed in sorted(seeds) if math.isfinite(seeds[seed])]
        means[subject] = math.fsum(kept) / len(kept) if kept else math.nan
    return means


def score_to_json(score: Score) -> dict[str, JSON]:
    """A score as plain JSON, with ``None`` for NaN."""
    return {key: null_of(value) for key, value in dataclasses.asdict(score).items()}


def score_from_json(read: Mapping[str, JSON]) -> Score:
    """The inverse of :func:`score_to_json`."""
    values: dict[str, Any] = {key: number_of(value) for key, value in read.items()}
    return Score(**values)


def null_of(value: float) -> JSON:
    """A number, or ``None`` for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def number_of(value: JSON) -> float:
    """The inverse of :func:`null_of`."""
    return math.nan if value is None else value
