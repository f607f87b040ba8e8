"""What is known of one configuration: its values, and what its metrics' numbers mean."""

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
    "score_from_json",
    "number_of",
    "null_of",
    "subject_means",
    "score_to_json",
]

Values = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass(frozen=True)
class MetricFacts:
    """What a metric's numbers mean.

    Parameters
    ----------
    name : column name
    direction : which end is better; ``"zero"`` for a bias, ``"none"`` for a mere description
    range : lowest and highest possible value
    chance, ceiling : what no skill and a perfect answer score, NaN if unknown
    level : ``"subject"`` (one value each, averaged) or ``"pooled"`` (one value of all)
    source : citation
    summary : one line for the reader
    unit : of the values, empty for a pure number
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
    """Everything known about one configuration (× attribution).

    Parameters
    ----------
    configuration : its identity
    axes : what it is, by the names of the sweep's axes; JSON-able labels
    attribution : label of the explanation method, empty if the row is about predictions
    values : metric → subject → seed → value; NaN where the metric is undefined
    pooled : metric → score over all subjects
    facts : folds, seeds, train_s, explain_s, profile, data, command, cohort
        (fingerprint), code (version), mlflow_run, and any other (sizes in mm and
        voxels); each becomes a column
    complete : whether every cell is done
    flags : what the reader must know; see :data:`harness.pipeline.ranking.BLOCKING`
    """

    configuration: str
    axes: Mapping[str, JSON]
    attribution: str = ""
    values: Values = field(default_factory=dict)
    pooled: Mapping[str, Score] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)
    complete: bool = True
    flags: tuple[str, ...] = ()


def subject_means(row: Row, metric: str) -> dict[str, float]:
    """Subject → mean over its seeds, NaN if none has a value; sorted, so that sums repeat exactly.

    Parameters
    ----------
    row : of one configuration
    metric : label; one that the row lacks gives an empty dict
    """
    means = {}
    for subject, seeds in sorted(row.values.get(metric, {}).items()):
        kept = [float(seeds[seed]) for seed in sorted(seeds) if math.isfinite(seeds[seed])]
        means[subject] = math.fsum(kept) / len(kept) if kept else math.nan
    return means


def score_to_json(score: Score) -> dict[str, JSON]:
    """A score as plain JSON, which has no NaN: ``None`` stands for it."""
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
