"""The leaderboard: rows of results → a table that says no more than the subjects allow.

What keeps a row from having a rank:

- it is incomplete, or one of its cells failed or collapsed (:data:`BLOCKING`);
- it has no value for a subject for which another row of its ranking has one: a
  mean that skips the hard subjects is not comparable;
- fewer than six subjects have a value. Its status says "undecided".

Such rows stay in the table with their values and their reason, and enter no
comparison. Rows that differ in one of the facts named by ``apart`` (by default
the profile and the data) are ranked separately.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import JSON, Direction, Score
from harness.stats.intervals import MINIMUM_SUBJECTS, Differences, mean_score, paired_differences, variance_components
from harness.storage.files import replace_file

__all__ = [
    "BLOCKING",
    "MetricFacts",
    "Row",
    "TableFacts",
    "VOLATILE",
    "build",
    "build_regions",
    "interval_text",
    "is_sound",
    "read_facts",
    "row_labels",
    "subject_means",
    "to_console_rows",
    "verdict",
    "write_csv",
]

BLOCKING = ("collapsed", "failed", "incomplete", "oracle", "stopped")
"""First words of the flags that keep a row out of the ranking."""

VOLATILE = ("train_s", "explain_s", "mlflow_run")
"""Columns that may differ when the same command is run again."""

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
_METADATA = b"harness"

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
    flags : what the reader must know; see :data:`BLOCKING`
    """

    configuration: str
    axes: Mapping[str, JSON]
    attribution: str = ""
    values: Values = field(default_factory=dict)
    pooled: Mapping[str, Score] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)
    complete: bool = True
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableFacts:
    """What a table says about itself, kept in its schema.

    Parameters
    ----------
    objective : the metric that ranks
    axes : columns that are axes
    metrics : facts of the metric columns, in order
    apart : columns that separate rankings
    level : coverage of all intervals
    """

    objective: str
    axes: tuple[str, ...]
    metrics: tuple[MetricFacts, ...]
    apart: tuple[str, ...]
    level: float

    def metric(self, name: str) -> MetricFacts:
        """Facts of one metric."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise UnknownName("metric", name, [metric.name for metric in self.metrics])


@dataclass
class _Line:
    """A row while the table is made."""

    row: Row
    scores: dict[str, Score]
    objective: dict[str, float]  # subject → mean over seeds
    group: tuple[str, ...]
    status: str = ""
    rank: int | None = None
    comparison: dict[str, Any] = field(default_factory=dict)


def build(
    rows: Sequence[Row],
    metrics: Sequence[MetricFacts],
    objective: str,
    *,
    level: float = 0.95,
    apart: Sequence[str] = ("profile", "data"),
) -> pa.Table:
    """The leaderboard as an Arrow table.

    Parameters
    ----------
    rows : in any order
    metrics : the metric columns, in order
    objective : name of the metric that ranks; higher or lower must be better
    level : coverage of the intervals
    apart : facts that separate rankings

    Returns
    -------
    pyarrow.Table
        Columns: ``rank`` (null if there is none), the axes by their own names,
        ``attribution``, ``status`` (``"ranked"`` or why not), ``flags``; of each
        metric its value, ``_low``, ``_high``, ``_se``, where known ``_chance`` and
        ``_ceiling``, and ``_missing`` where a subject has no value; of the
        objective ``difference`` (from the first of the ranking, in the metric's
        unit), its interval, ``p_holm``, ``not_distinguishable_from_best``,
        ``seed_sd``, ``subject_sd``; the facts; ``configuration``. One ranking
        after the other, ranked rows first, then by objective. Schema metadata
        hold a :class:`TableFacts`.

    Raises
    ------
    UnknownName
        If the objective is not one of the metrics.
    OutOfRange
        If neither end of the objective is better, a column would occur twice, or two
        rows are of the same configuration and attribution.

    Notes
    -----
    Equal values share the lower rank. Subject values are means over seeds. The
    chance of a metric is, in this order, that of a per-row metric named
    ``<metric>_chance``, of the row's pooled score, of the metric's facts.
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

    lines = [
        _Line(
            row,
            {metric.name: _score(row, metric, level) for metric in metrics},
            subject_means(row, objective),
            tuple(str(row.facts.get(name, "")) for name in apart),
        )
        for row in rows
    ]
    for group in sorted({line.group for line in lines}):
        _rank([line for line in lines if line.group == group], objective, direction, level)
    lines.sort(key=lambda line: _order(line, objective, direction))

    axes = tuple(dict.fromkeys(name for row in rows for name in row.axes))
    facts = TableFacts(objective, axes, tuple(metrics), tuple(apart), level)
    return _table(lines, facts)


def build_regions(
    regions: Mapping[str, Sequence[Row]], metrics: Sequence[MetricFacts], *, level: float = 0.95
) -> pa.Table:
    """Scores per region, one line per region, row and metric.

    Parameters
    ----------
    regions : region → rows whose values are those within the region
    metrics : which metrics, in order; one that a row lacks has no line
    level : coverage of the intervals

    Returns
    -------
    pyarrow.Table
        Columns ``region``, the axes, ``attribution``, ``metric``, ``value``,
        ``low``, ``high``, ``se``, ``subjects``, ``missing``, ``flags``,
        ``configuration``. There are no ranks by region.
    """
    axes = tuple(dict.fromkeys(name for rows in regions.values() for row in rows for name in row.axes))
    long = [
        (region, row, metric.name, _score(row, metric, level))
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
    columns["subjects"] = pa.array([line[3].n for line in long], pa.int64())
    columns["missing"] = pa.array([line[3].missing for line in long], pa.int64())
    columns["flags"] = pa.array(["; ".join(line[1].flags) for line in long], pa.string())
    columns["configuration"] = pa.array([line[1].configuration for line in long], pa.string())
    return pa.table(columns)


def read_facts(table: pa.Table) -> TableFacts:
    """What :func:`build` wrote into the schema of its table."""
    stored = json.loads(table.schema.metadata[_METADATA])
    metrics = tuple(
        MetricFacts(**{**metric, "range": tuple(metric["range"])})  # JSON knows no tuples
        for metric in stored["metrics"]
    )
    return TableFacts(stored["objective"], tuple(stored["axes"]), metrics, tuple(stored["apart"]), stored["level"])


def row_labels(table: pa.Table, *, attribution: bool = True) -> list[str]:
    """A short name of each row: the axes that vary, and the attribution.

    One varying axis gives its bare label ("T2w+FLAIR"), several
    "model=a, noise=0.1"; if none varies, the attribution alone, or all axes.

    Parameters
    ----------
    table : of :func:`build`
    attribution : whether to name it too
    """
    facts, lines = read_facts(table), table.to_pylist()
    varying = [name for name in facts.axes if len({_json(line[name]) for line in lines}) > 1]
    labels = []
    for line in lines:
        explained = [line["attribution"]] if attribution and line["attribution"] else []
        names = varying or ([] if explained else list(facts.axes))
        names = [name for name in names if line[name] is not None]  # an option that this row's parts lack
        parts = [str(line[name]) if len(names) == 1 else f"{name}={line[name]}" for name in names]
        labels.append(", ".join([*parts, *explained]) or line["configuration"])
    return labels


def verdict(table: pa.Table) -> str:
    """What may be claimed, one sentence per ranking.

    Names the first of the ranking and all that are not distinguishable from
    it; says "undecided" with fewer than six subjects, however large the
    differences are, and why where nothing can be ranked at all.
    """
    facts = read_facts(table)
    lines = [{**line, "label": label} for line, label in zip(table.to_pylist(), row_labels(table), strict=True)]
    keys = [tuple(line.get(name) or "" for name in facts.apart) for line in lines]
    groups = list(dict.fromkeys(keys))
    sentences = []
    for group in groups:
        said = _sentence([line for line, key in zip(lines, keys, strict=True) if key == group], facts)
        name = ", ".join(str(part) for part in group if part)
        sentences.append(f"{name}: {said}" if len(groups) > 1 else said)
    return "\n".join(sentences) or "nothing to rank: no configuration has a result yet."


def interval_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """``0.74 [0.70, 0.78]``, with as many decimals as the largest part needs; "–" if there is no value."""
    if value is None or not math.isfinite(value):
        return "–"
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    parts = [value, low, high] if known else [value]
    largest = max(abs(part) for part in parts if part is not None)
    # Two decimals for numbers around one, and two digits at least for small ones.
    decimals = 2 if largest == 0 else min(max(1 - math.floor(math.log10(largest)), 2), 9) if largest < 10 else 1
    decimals = 0 if largest >= 100 else decimals
    texts = [f"{round(part or 0.0, decimals) + 0.0:.{decimals}f}" for part in parts]  # + 0.0: no "-0.00"
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if known else texts[0]


def to_console_rows(table: pa.Table, *, shown: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """A short table of text for the screen.

    Parameters
    ----------
    shown : further metrics, as bare values; those that the table lacks, or no row has, are left out

    Returns
    -------
    header, rows
        Rank, axes, attribution (if any), the objective, its chance level and the
        highest value that can be reached where they are known, the difference from
        the first, further metrics, the seconds that an attribution takes for a fold,
        and the status unless all rows are ranked;
        ``=`` marks what is not distinguishable from the first.
    """
    facts, lines = read_facts(table), table.to_pylist()
    explained = any(line["attribution"] for line in lines)
    apart = [name for name in facts.apart if len({line.get(name) for line in lines}) > 1]
    header = ["rank", *apart, *facts.axes, *(["attribution"] if explained else []), facts.objective]
    known = [name for name in table.column_names if any(line[name] is not None for line in lines)]
    more = [name for name in shown if name != facts.objective and name in known]
    status = any(line["status"] != "ranked" for line in lines)
    bounds = [word for word in ("chance", "ceiling") if _varies(lines, f"{facts.objective}_{word}")]
    costs = explained and any(line.get("explain_s") is not None for line in lines)
    header += [*bounds, "difference", *more, *(["s a fold"] if costs else []), *(["status"] if status else [])]
    rows = []
    for line in lines:
        same = line["not_distinguishable_from_best"] and line["difference"] != 0
        cells = ["" if line["rank"] is None else str(line["rank"]) + (" =" if same else "")]
        cells += ["" if line.get(name) is None else str(line[name]) for name in (*apart, *facts.axes)]
        cells += [line["attribution"]] if explained else []
        cells += [_cell(line, facts.objective)]
        cells += [interval_text(line[f"{facts.objective}_{word}"]) for word in bounds]
        cells += [_cell(line, "difference") if line["difference"] is not None else ""]
        cells += [interval_text(line[name]) for name in more]
        seconds = line.get("explain_s")
        cells += ["" if seconds is None or math.isnan(seconds) else f"{seconds:.1f}"] if costs else []
        rows.append([*cells, *([line["status"]] if status else [])])
    return header, rows


def _varies(lines: Sequence[Mapping[str, JSON]], name: str) -> bool:
    """Whether a bound is worth a column: some line has it, and not all have the end of the metric's range."""
    known = {line.get(name) for line in lines} - {None}
    return bool(known) and known != {1.0}


def write_csv(table: pa.Table, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV, whole or not at all.

    Parameters
    ----------
    table : :func:`build` or :func:`build_regions`
    path : the file; its folder is made if needed

    Returns
    -------
    pathlib.Path
        The file. Floats have six significant digits, nulls and NaN are empty,
        lines end in a bare newline: equal tables give equal bytes.
    """
    target = Path(path)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    for line in table.to_pylist():
        writer.writerow([_csv_cell(line[name]) for name in table.column_names])
    replace_file(target, buffer.getvalue())
    return target


# From rows to lines


def _refuse_twins(rows: Sequence[Row]) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.configuration, row.attribution)
        if key in seen:
            raise OutOfRange(f"each configuration and attribution must occur once, got {key} twice")
        seen.add(key)


def is_sound(line: Mapping[str, JSON]) -> bool:
    """Whether a line of :func:`build` is ranked, or would be with more subjects: not collapsed, failed, incomplete."""
    return line["rank"] is not None or str(line["status"]).startswith("undecided")


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


def _score(row: Row, metric: MetricFacts, level: float) -> Score:
    subjects = subject_means(row, metric.name)
    pooled = row.pooled.get(metric.name)
    own = mean_score(list(subject_means(row, f"{metric.name}_chance").values())).value
    chance = _first_known(own, pooled.chance if pooled else math.nan, metric.chance)
    ceiling = _first_known(pooled.ceiling if pooled else math.nan, metric.ceiling)
    if pooled is not None:  # also where there are pseudo-values to compare by, whose mean is not quite this
        return Score(
            pooled.value, pooled.low, pooled.high, pooled.n, pooled.se, pooled.missing, chance=chance, ceiling=ceiling
        )
    if subjects:
        return mean_score(list(subjects.values()), level=level, chance=chance, ceiling=ceiling)
    return Score(math.nan, math.nan, math.nan, 0, chance=chance, ceiling=ceiling)


def _first_known(*values: float) -> float:
    return next((value for value in values if not math.isnan(value)), math.nan)


# Ranking


def _rank(lines: Sequence[_Line], objective: str, direction: Direction, level: float) -> None:
    """Give the lines of one ranking their status, rank and comparison."""
    for line in lines:
        line.status = _blocked(line, objective)
    candidates = [line for line in lines if not line.status]
    known = {subject for line in candidates for subject, value in line.objective.items() if math.isfinite(value)}
    for line in candidates:
        lost = [subject for subject, value in line.objective.items() if subject in known and math.isnan(value)]
        if lost:
            line.status = f"no {objective} for {', '.join(lost)}, where others have one"
        elif line.scores[objective].n < MINIMUM_SUBJECTS:
            n = line.scores[objective].n
            line.status = f"undecided: {n} subject{'s' if n != 1 else ''}"
    ranked = [line for line in candidates if not line.status]
    undecided = [line for line in candidates if line.status.startswith("undecided")]

    badness = [_rounded(_badness(line.scores[objective].value, direction)) for line in ranked]
    for line, rank in zip(ranked, stats.rankdata(badness, method="min"), strict=True):
        line.status, line.rank = "ranked", int(rank)
    _compare(ranked or undecided, objective, direction, level)


def _blocked(line: _Line, objective: str) -> str:
    flags = [flag for flag in line.row.flags if flag.lower().startswith(BLOCKING)]
    if flags:
        return flags[0]
    if not line.row.complete:
        return "incomplete"
    if not math.isfinite(line.scores[objective].value):
        return f"no {objective}"
    return ""


def _compare(lines: Sequence[_Line], objective: str, direction: Direction, level: float) -> None:
    """Paired differences with the best; below six subjects the differences alone."""
    if not lines or not all(line.objective for line in lines):
        return  # a pooled objective has no pairs
    subjects = sorted({subject for line in lines for subject in line.objective})
    values = np.array([[line.objective.get(subject, math.nan) for subject in subjects] for line in lines])
    # The first in the table's own order, so that ties are settled the same way.
    best = min(range(len(lines)), key=lambda index: _order(lines[index], objective, direction))
    differences = paired_differences(values, best=best, level=level)
    for index, line in enumerate(lines):
        line.comparison = _comparison(differences, index)
        if line.rank is None:
            line.comparison["not_distinguishable_from_best"] = None


def _comparison(differences: Differences, index: int) -> dict[str, Any]:
    return {
        "difference": float(differences.difference[index]),
        "difference_low": float(differences.low[index]),
        "difference_high": float(differences.high[index]),
        "p_holm": float(differences.p_adjusted[index]),
        "not_distinguishable_from_best": bool(differences.indistinguishable[index]),
    }


def _badness(value: float, direction: Direction) -> float:
    """Lower is better, whatever the direction; no value comes last."""
    if math.isnan(value):
        return math.inf
    return -value if direction == "higher" else value


def _rounded(value: float) -> float:
    """Twelve significant digits: means that differ by rounding alone are ties."""
    return float(f"{value:.12g}")


def _order(line: _Line, objective: str, direction: Direction) -> tuple[Any, ...]:
    return (
        line.group,
        math.inf if line.rank is None else line.rank,
        _rounded(_badness(line.scores[objective].value, direction)),
        _json(dict(line.row.axes)),
        line.row.attribution,
        line.row.configuration,
    )


# From lines to the table


def _table(lines: Sequence[_Line], facts: TableFacts) -> pa.Table:
    columns: list[tuple[str, pa.Array]] = [("rank", pa.array([line.rank for line in lines], pa.int64()))]
    columns += [(name, _labels([line.row.axes.get(name) for line in lines])) for name in facts.axes]
    columns.append(("attribution", pa.array([line.row.attribution for line in lines], pa.string())))
    columns.append(("status", pa.array([line.status for line in lines], pa.string())))
    columns.append(("flags", pa.array(["; ".join(line.row.flags) for line in lines], pa.string())))
    for metric in facts.metrics:
        columns += _metric_columns(metric.name, [line.scores[metric.name] for line in lines])
    columns += _comparison_columns(lines, facts.objective)
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
    if any(score.missing for score in scores):
        columns.append((f"{name}_missing", pa.array([score.missing for score in scores], pa.int64())))
    return columns


def _comparison_columns(lines: Sequence[_Line], objective: str) -> list[tuple[str, pa.Array]]:
    numbers = ("difference", "difference_low", "difference_high", "p_holm")
    columns = [(name, _floats([line.comparison.get(name, math.nan) for line in lines])) for name in numbers]
    same = [line.comparison.get("not_distinguishable_from_best") for line in lines]
    columns.append(("not_distinguishable_from_best", pa.array(same, pa.bool_())))
    parts = [variance_components(_by_seed(line.row, objective)) for line in lines]
    columns.append(("seed_sd", _floats([part.seed_sd for part in parts])))
    columns.append(("subject_sd", _floats([part.subject_sd for part in parts])))
    return columns


def _by_seed(row: Row, metric: str) -> npt.NDArray[np.float64]:
    """(subjects, seeds), NaN where a cell is missing."""
    values = row.values.get(metric, {})
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    table = [[values[subject].get(seed, math.nan) for seed in seeds] for subject in sorted(values)]
    return np.array(table, dtype=float).reshape(len(values), len(seeds))


def _fact_columns(lines: Sequence[_Line], facts: TableFacts) -> list[tuple[str, pa.Array]]:
    given = {name for line in lines for name in line.row.facts}
    columns = []
    for name in [*_FACTS, *sorted(given - set(_FACTS))]:
        values = [line.row.facts.get(name) for line in lines]
        if name == "subjects":  # those that the objective really has
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
    """Numbers, truth values and strings as they are if all are of one kind, else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    texts = [value if value is None or isinstance(value, str) else _json(value) for value in values]
    return pa.array(texts, pa.string())


def _floats(values: Sequence[float]) -> pa.Array:
    """NaN becomes null: a table has one way to say that there is no value."""
    return pa.array([None if math.isnan(value) else float(value) for value in values], pa.float64())


def _json(value: JSON) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


# From the table to words


def _sentence(lines: Sequence[Mapping[str, Any]], facts: TableFacts) -> str:
    objective = facts.objective
    ranked = [line for line in lines if line["rank"] is not None]
    if not ranked:
        return _undecided(lines, objective)
    first = [line["label"] for line in ranked if line["rank"] == 1]
    score = _cell(ranked[0], objective)
    lead = f"{' and '.join(first)} lead{'s' if len(first) == 1 else ''} ({objective} {score})"
    others = [line for line in ranked if line["rank"] != 1]
    if not others:
        return f"{lead}." if len(ranked) > 1 else f"{lead}; nothing else is ranked."
    if any(line["not_distinguishable_from_best"] is None for line in others):
        return f"{lead}; {objective} is pooled over subjects, so no paired comparison says whether the others differ."
    same = [line["label"] for line in others if line["not_distinguishable_from_best"]]
    if same:
        return f"{lead}; not distinguishable from {'it' if len(first) == 1 else 'them'}: {', '.join(same)}."
    return f"{lead} and differs from {'the other' if len(others) == 1 else f'all {len(others)} others'}."


def _undecided(lines: Sequence[Mapping[str, Any]], objective: str) -> str:
    waiting = [line for line in lines if line["status"].startswith("undecided")]
    if not waiting:
        return "nothing is ranked: every configuration is incomplete, failed or collapsed."
    n = max(line["subjects"] for line in waiting)
    said = f"undecided: {n} subject{'s' if n != 1 else ''}, and fewer than {MINIMUM_SUBJECTS} are not ranked"
    best = waiting[0]
    return f"{said}; the best {objective} so far is that of {best['label']}, {_cell(best, objective)}."


def _cell(line: Mapping[str, Any], name: str) -> str:
    return interval_text(line[name], line.get(f"{name}_low"), line.get(f"{name}_high"))


def _csv_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value + 0.0:.6g}"
    return str(value)
