"""The leaderboard as an Arrow table; rows are ranked by :mod:`harness.pipeline.ranking`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import JSON, Score
from harness.pipeline.ranking import STRATA, Line, decided_by_few, ranked_lines, score_of, text_of_label
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.stats.intervals import VarianceComponents, variance_components

__all__ = [
    "GIVEN_MODELS",
    "VOLATILE",
    "WITH_TRAINING",
    "TableFacts",
    "build",
    "build_regions",
    "is_sound",
    "read_facts",
]

VOLATILE = ("train_s", "explain_s", "mlflow_run")
"""Columns that may differ when a command is repeated."""

_FACTS: Mapping[str, pa.DataType] = {
    "folds": pa.int64(),
    "seeds": pa.int64(),
    "subjects": pa.int64(),
    "train_s": pa.float64(),
    "explain_s": pa.float64(),
    "profile": pa.string(),
    "data": pa.string(),
    "command": pa.string(),
    "cohort": pa.string(),
    "code": pa.string(),
    "mlflow_run": pa.string(),
}
GIVEN_MODELS, WITH_TRAINING = "subjects, given the trained models", "subjects and trainings"
"""What intervals of the objective cover: the column ``interval_over``."""

_METADATA = b"harness"


@dataclass(frozen=True)
class TableFacts:
    """Description of a table, stored in its schema.

    Parameters
    ----------
    objective : name of the metric that ranks
    axes : names of the columns that are axes
    metrics : facts of the metric columns, in order
    strata : columns that separate rankings
    level : coverage of all intervals
    """

    objective: str
    axes: tuple[str, ...]
    metrics: tuple[MetricFacts, ...]
    strata: tuple[str, ...]
    level: float

    def metric(self, name: str) -> MetricFacts:
        """Facts of one metric."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise UnknownName("metric", name, [metric.name for metric in self.metrics])


def build(
    rows: Sequence[Row],
    metrics: Sequence[MetricFacts],
    objective: str,
    *,
    level: float = 0.95,
    strata: Sequence[str] = STRATA,
) -> pa.Table:
    """The leaderboard as an Arrow table.

    Parameters
    ----------
    rows : rows, in any order
    metrics : facts of the metric columns, in order
    objective : name of the metric that ranks; higher or lower must be better
    level : coverage of the intervals
    strata : columns that separate rankings (:func:`harness.pipeline.ranking.strata_of`)

    Returns
    -------
    pyarrow.Table
        Columns: ``rank`` (null if there is none), the axes under their names,
        ``attribution``, what explanations explain if it separates rankings, ``status``
        (``"ranked"`` or the reason why not), ``flags``; for each metric its value,
        ``_low``, ``_high``, ``_se``, ``_chance`` and ``_ceiling`` if known,
        ``_missing`` if subjects have no value, and ``_no_interval`` with the reason if a
        pooled value has none; for the objective ``difference`` (from the
        first row of the ranking, in the unit of the metric), its simultaneous interval,
        ``p_adjusted``, ``not_distinguishable_from_best``, the simultaneous interval of
        the rank, ``rank_low`` and ``rank_high``; if a ranking has a baseline model, ``gain``
        over it (positive if the row is better) with its interval, and ``gain_over``, the
        name of the baseline; ``median`` and ``worst`` over subjects
        (null if the value is pooled), ``seed_sd``, ``subject_sd``, and ``interval_over``,
        what the interval of the objective covers; the facts;
        ``configuration``. Rankings follow one another, each with ranked rows first,
        sorted by objective. The schema metadata contain a :class:`TableFacts`.

    Raises
    ------
    UnknownName
        If the objective is not one of the metrics.
    OutOfRange
        If the objective has no direction, a column would occur twice, or two rows have
        the same configuration and attribution.
    """
    by_name = {metric.name: metric for metric in metrics}
    if objective not in by_name:
        raise UnknownName("metric", objective, by_name)
    direction = by_name[objective].direction
    if direction not in ("higher", "lower"):
        raise OutOfRange(
            f"higher or lower must be better for the objective, got {objective!r}, direction {direction!r}"
        )
    _refuse_twins(rows)
    lines = ranked_lines(rows, metrics, objective, direction, level=level, strata=strata)
    axes = tuple(dict.fromkeys(name for row in rows for name in row.axes))
    facts = TableFacts(objective, axes, tuple(metrics), tuple(strata), level)
    return _table(lines, facts)


def build_regions(
    regions: Mapping[str, Sequence[Row]], metrics: Sequence[MetricFacts], *, level: float = 0.95
) -> pa.Table:
    """Scores per region, as a long table.

    Parameters
    ----------
    regions : rows with the values within each region, by region
    metrics : facts of the metrics, in order
    level : coverage of the intervals

    Returns
    -------
    pyarrow.Table
        One row per region, row and available metric. Columns: ``region``, the axes,
        ``attribution``, ``metric``, ``value``, ``low``, ``high``, ``se``,
        ``interval_over``, what the interval covers, ``no_interval``, the reason if a pooled
        value has none, ``subjects``, ``missing``, ``flags``, ``configuration``. There are no
        ranks per region.
    """
    axes = tuple(dict.fromkeys(name for rows in regions.values() for row in rows for name in row.axes))
    long = [
        (region, row, metric.name, score_of(row, metric, level))
        for region, rows in regions.items()
        for row in rows
        for metric in metrics
        if metric.name in row.values or metric.name in row.pooled
    ]
    columns: dict[str, pa.Array] = {"region": pa.array([line[0] for line in long], pa.string())}
    for name in axes:
        columns[name] = _labels([line[1].axes.get(name) for line in long])
    columns["attribution"] = pa.array([line[1].attribution for line in long], pa.string())
    columns["metric"] = pa.array([line[2] for line in long], pa.string())
    for name in ("value", "low", "high", "se"):
        columns[name] = _floats([getattr(line[3], name) for line in long])
    columns["interval_over"] = pa.array([_interval_over(line[1], line[2]) for line in long], pa.string())
    columns["no_interval"] = pa.array([line[3].reason for line in long], pa.string())
    columns["subjects"] = pa.array([line[3].n for line in long], pa.int64())
    columns["missing"] = pa.array([line[3].missing for line in long], pa.int64())
    columns["flags"] = pa.array(["; ".join(line[1].flags) for line in long], pa.string())
    columns["configuration"] = pa.array([line[1].configuration for line in long], pa.string())
    return pa.table(columns)


def read_facts(table: pa.Table) -> TableFacts:
    """Read the facts that :func:`build` stored in the schema of a table."""
    stored = json.loads(table.schema.metadata[_METADATA])
    metrics = tuple(
        MetricFacts(**{**metric, "range": tuple(metric["range"])})  # JSON knows no tuples
        for metric in stored["metrics"]
    )
    return TableFacts(stored["objective"], tuple(stored["axes"]), metrics, tuple(stored["strata"]), stored["level"])


def is_sound(line: Mapping[str, JSON]) -> bool:
    """Whether a row is ranked or could be with more subjects: not collapsed, failed or incomplete."""
    return line["rank"] is not None or str(line["status"]).startswith("undecided")


# From rows to lines


def _refuse_twins(rows: Sequence[Row]) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.configuration, row.attribution)
        if key in seen:
            raise OutOfRange(f"each configuration and attribution must occur once, got {key} twice")
        seen.add(key)


# From lines to the table


def _table(lines: Sequence[Line], facts: TableFacts) -> pa.Table:
    columns: list[tuple[str, pa.Array]] = [("rank", pa.array([line.rank for line in lines], pa.int64()))]
    columns += [(name, _labels([line.row.axes.get(name) for line in lines])) for name in facts.axes]
    columns.append(("attribution", pa.array([line.row.attribution for line in lines], pa.string())))
    explained = [name for name in facts.strata if any(name in line.row.explains for line in lines)]
    columns += [(name, _labels([line.row.explains.get(name) for line in lines])) for name in explained]
    columns.append(("status", pa.array([line.status for line in lines], pa.string())))
    flags = [(*line.row.flags, *decided_by_few(line.row, facts.objective)) for line in lines]
    columns.append(("flags", pa.array(["; ".join(one) for one in flags], pa.string())))
    for metric in facts.metrics:
        columns += _metric_columns(metric.name, [line.scores[metric.name] for line in lines])
    columns += _comparison_columns(lines, facts.metric(facts.objective))
    columns += _fact_columns(lines, facts)
    columns.append(("configuration", pa.array([line.row.configuration for line in lines], pa.string())))

    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OutOfRange(f"each column must occur once, got {', '.join(twice)} twice; rename the axis, metric or fact")
    metadata = {_METADATA: json.dumps(asdict(facts)).encode()}
    return pa.table([array for _, array in columns], names=names).replace_schema_metadata(metadata)


def _metric_columns(name: str, scores: Sequence[Score]) -> list[tuple[str, pa.Array]]:
    columns = [(name, _floats([score.value for score in scores]))]
    columns += [
        (f"{name}_{part}", _floats([getattr(score, part) for score in scores])) for part in ("low", "high", "se")
    ]
    for part in ("chance", "ceiling"):
        values = [getattr(score, part) for score in scores]
        if not all(math.isnan(value) for value in values):
            columns.append((f"{name}_{part}", _floats(values)))
    if any(score.reason for score in scores):
        columns.append((f"{name}_no_interval", pa.array([score.reason for score in scores], pa.string())))
    if any(score.missing for score in scores):
        columns.append((f"{name}_missing", pa.array([score.missing for score in scores], pa.int64())))
    return columns


def _comparison_columns(lines: Sequence[Line], objective: MetricFacts) -> list[tuple[str, pa.Array]]:
    numbers = ("difference", "difference_low", "difference_high", "p_adjusted")
    columns = [(name, _floats([line.comparison.get(name, math.nan) for line in lines])) for name in numbers]
    same = [line.comparison.get("not_distinguishable_from_best") for line in lines]
    columns.append(("not_distinguishable_from_best", pa.array(same, pa.bool_())))
    for name in ("rank_low", "rank_high"):
        columns.append((name, pa.array([line.comparison.get(name) for line in lines], pa.int64())))
    if any("gain_over" in line.comparison for line in lines):
        for name in ("gain", "gain_low", "gain_high"):
            columns.append((name, _floats([line.comparison.get(name, math.nan) for line in lines])))
        columns.append(("gain_over", pa.array([line.comparison.get("gain_over") for line in lines], pa.string())))
    extremes = [_extremes(line.row, objective) for line in lines]
    columns.append(("median", _floats([median for median, _ in extremes])))
    columns.append(("worst", _floats([worst for _, worst in extremes])))
    parts = [_components(line.row, objective.name) for line in lines]
    columns.append(("seed_sd", _floats([part.seed_sd for part in parts])))
    columns.append(("subject_sd", _floats([part.subject_sd for part in parts])))
    columns.append(("interval_over", pa.array([_interval_over(line.row, objective.name) for line in lines])))
    return columns


def _extremes(row: Row, metric: MetricFacts) -> tuple[float, float]:
    """Median and worst value over subjects; NaN if the value is pooled."""
    values = [value for value in subject_means(row, metric.name).values() if math.isfinite(value)]
    if metric.name in row.pooled or not values:
        return math.nan, math.nan
    return float(np.median(values)), min(values) if metric.direction == "higher" else max(values)


def _components(row: Row, metric: str) -> VarianceComponents:
    """Variance over subjects and seeds; NaN if the value is pooled."""
    if metric in row.pooled:
        return VarianceComponents(math.nan, math.nan)
    return variance_components(_by_seed(row, metric))


def _interval_over(row: Row, metric: str) -> str:
    """What the interval of a metric covers."""
    return WITH_TRAINING if metric in row.by_fold else GIVEN_MODELS


def _by_seed(row: Row, metric: str) -> npt.NDArray[np.float64]:
    """(subjects, seeds), NaN where a cell is missing."""
    values = row.values.get(metric, {})
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    table = [[values[subject].get(seed, math.nan) for seed in seeds] for subject in sorted(values)]
    return np.array(table, dtype=float).reshape(len(values), len(seeds))


def _fact_columns(lines: Sequence[Line], facts: TableFacts) -> list[tuple[str, pa.Array]]:
    given = {name for line in lines for name in line.row.facts}
    columns = []
    for name in [*_FACTS, *sorted(given - set(_FACTS))]:
        values = [line.row.facts.get(name) for line in lines]
        if name == "subjects":  # number of subjects with a value of the objective
            values = [line.scores[facts.objective].n for line in lines]
        elif name == "seeds":
            values = [
                value if value is not None else _by_seed(line.row, facts.objective).shape[1] or None
                for value, line in zip(values, lines, strict=True)
            ]
        if name in _FACTS:
            columns.append((name, pa.array(values, _FACTS[name])))
        else:
            columns.append((name, _labels(values)))
    return columns


def _labels(values: Sequence[JSON]) -> pa.Array:
    """Numbers, booleans or strings if all values have one type, otherwise text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    texts = [value if value is None or isinstance(value, str) else text_of_label(value) for value in values]
    return pa.array(texts, pa.string())


def _floats(values: Sequence[float]) -> pa.Array:
    """A column of floats with null for NaN, so that there is one kind of missing value."""
    return pa.array([None if math.isnan(value) else float(value) for value in values], pa.float64())
