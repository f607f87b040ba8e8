"""Tables of the HTML report: columns with tooltips, rows with CSS classes, and collapsed longer tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from harness.pipeline.leaderboard import GIVEN_MODELS, WITH_TRAINING, TableFacts, read_facts
from harness.pipeline.rows import MetricFacts
from harness.report.elements import Cell, ReportTable, interval_cell
from harness.report.wording import plain_text, row_labels, varying_strata
from harness.stats.intervals import MINIMUM_SUBJECTS

__all__ = ["BETTER", "Board", "Column", "Line", "board_of_ranking", "board_of_table"]

BETTER = {"higher": "higher", "lower": "lower", "zero": "nearer to zero", "none": "neither"}
"""Text for each direction of a metric."""

_MADE = ("folds", "seeds", "subjects", "train_s", "explain_s", "profile", "data", "command", "cohort", "code")


@dataclass(frozen=True)
class Column:
    """Heading of a column, its CSS classes and its tooltip."""

    name: str
    css: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """Cells of a row and its CSS classes."""

    cells: tuple[Cell, ...]
    css: str = ""


@dataclass(frozen=True)
class Board:
    """A table with its note, and the collapsed tables below it."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""
    folds: tuple[Board, ...] = ()


def board_of_table(table: ReportTable) -> Board:
    """A plain table; its first column stays visible when scrolling."""
    lines = [[Cell(one) if isinstance(one, str) else one for one in line] for line in table.lines]
    lines = [[replace(line[0], css=f"{line[0].css} first".strip()), *line[1:]] for line in lines]
    css = [lines[0][index].css if lines else "" for index in range(len(table.columns))]
    columns = [Column(name, kind.replace("wrap", "").strip()) for name, kind in zip(table.columns, css, strict=True)]
    folds = (board_of_table(table.folded),) if table.folded is not None else ()
    return Board(table.title, tuple(columns), tuple(Line(tuple(line)) for line in lines), table.note, folds)


def board_of_ranking(table: pa.Table, shown: Sequence[str] = ()) -> Board:
    """A leaderboard with rank, status and comparison, and collapsed tables of all metrics and of provenance.

    Parameters
    ----------
    table : leaderboard from :func:`harness.pipeline.leaderboard.build`
    shown : metrics to show in addition to the objective; all by default
    """
    facts, lines = read_facts(table), table.to_pylist()
    metrics = sorted(facts.metrics, key=lambda metric: metric.name != facts.objective)  # the objective first
    known = {facts.objective, *(one.name for one in metrics if any(line[one.name] is not None for line in lines))}
    metrics = [one for one in metrics if one.name in known or not lines]  # measured scores have no known truth
    wanted = [facts.objective, *(name for name in shown if name != facts.objective)]
    main = [facts.metric(name) for name in wanted if name in {one.name for one in metrics}] if shown else metrics
    folds = [_measured(f"All {len(metrics)} metrics", table, metrics)] if len(main) < len(metrics) else []
    folds += [_provenance(table, facts)] if lines else []
    return replace(_measured("", table, main, ranked=True), note=_note(table), folds=tuple(folds))


def _provenance(table: pa.Table, facts: TableFacts) -> Board:
    """Provenance of each row: the columns that are not shown in the main table."""
    lines = table.to_pylist()
    made = [name for name in (*_MADE, *_others(table, facts)) if any(line.get(name) is not None for line in lines)]
    names = ["identity" if name == "configuration" else name for name in made]
    rows = [
        Line((Cell(label, "first"), *(Cell(plain_text(line.get(name))) for name in made)))
        for line, label in zip(lines, row_labels(table), strict=True)
    ]
    return Board("Provenance of each row", (Column("configuration", "first"), *map(Column, names)), tuple(rows))


def _measured(title: str, table: pa.Table, metrics: Sequence[MetricFacts], *, ranked: bool = False) -> Board:
    """Rows with some of their metrics; ``ranked`` adds rank, status and comparison."""
    facts, lines, labels = read_facts(table), table.to_pylist(), row_labels(table, attribution=False)
    explained = any(line["attribution"] for line in lines)
    strata = varying_strata(table)
    beside = [name for name in strata if name not in facts.axes]  # axes are in the labels
    extras = [name for name in _HINTS if ranked and any(line[name] is not None for line in lines)]

    columns = [Column("configuration", "first")]
    columns += [Column("rank", "number")] if ranked else []
    columns += [Column(name) for name in beside]
    columns += [Column("attribution")] if explained else []
    columns += [Column("status")] if ranked else []
    for metric in metrics:
        columns += _metric_columns(metric, facts, table, ranked=ranked)
    columns += [Column(name, "number", _HINTS[name]) for name in extras]

    rows: list[Line] = []
    for line, label, before in zip(lines, labels, [None, *lines], strict=False):
        cells = [Cell(label, "first")]
        cells += [_rank_cell(line)] if ranked else []
        cells += [Cell(plain_text(line.get(name))) for name in beside]
        cells += [Cell(line["attribution"])] if explained else []
        cells += [_status(line)] if ranked else []
        for metric in metrics:
            cells += _metric_cells(metric, facts, table, line, ranked=ranked)
        cells += [_p(line[name]) if name == "p_adjusted" else interval_cell(line[name]) for name in extras]
        rows.append(Line(tuple(cells), _css(line, before, strata) if ranked else ""))
    return Board(title, tuple(columns), tuple(rows))


_HINTS = {
    "median": "Median of the objective over subjects",
    "worst": "Worst value of the objective over subjects",
    "p_adjusted": "p value of the paired t test against the first, times the number of pairs of configurations",
    "seed_sd": "Standard deviation of the objective between seeds, within a subject",
    "subject_sd": "Standard deviation of the objective between subjects",
}


def _metric_columns(metric: MetricFacts, facts: TableFacts, table: pa.Table, *, ranked: bool) -> list[Column]:
    main = ranked and metric.name == facts.objective
    name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    hint = "; ".join(part for part in (metric.summary, f"{BETTER[metric.direction]} is better", metric.source) if part)
    columns = [Column(name, "number objective" if main else "number", hint)]
    if f"{metric.name}_chance" in table.column_names:
        columns.append(Column("chance", "number", f"Chance level of {metric.name}"))
    if main:
        hint = "Paired difference from the first; its interval excludes 0 if the two are distinguishable"
        columns.append(Column("difference", "number", hint))
    return columns


def _metric_cells(
    metric: MetricFacts, facts: TableFacts, table: pa.Table, line: Mapping[str, Any], *, ranked: bool
) -> list[Cell]:
    cells = [interval_cell(line[metric.name], line[f"{metric.name}_low"], line[f"{metric.name}_high"])]
    if f"{metric.name}_chance" in table.column_names:
        cells.append(interval_cell(line[f"{metric.name}_chance"]))
    if ranked and metric.name == facts.objective:
        # The first row has no difference.
        ends = ("", "_low", "_high") if line["difference_low"] is not None else ()
        cells.append(interval_cell(*(line[f"difference{end}"] for end in ends)) if ends else interval_cell(None))
    return cells


def _rank_cell(line: Mapping[str, Any]) -> Cell:
    """Rank with its interval; a dash for rows that are not ranked."""
    if line["rank"] is None:
        return Cell("–", "number")
    low, high = line["rank_low"], line["rank_high"]
    return Cell(f"{line['rank']}" if low is None else f"{line['rank']} [{low}–{high}]", "number")


def _p(value: float | None) -> Cell:
    return Cell("<0.001", "number") if value is not None and value < 0.001 else interval_cell(value)


def _status(line: Mapping[str, Any]) -> Cell:
    status = line["status"]
    if line["rank"] is not None:
        status = "first" if line["rank"] == 1 else "not distinguishable" * bool(line["not_distinguishable_from_best"])
    # The status of a row without a rank repeats its first flag.
    flags = line["flags"].replace(line["status"], "", 1).removeprefix("; ")
    flagged = bool(flags) or line["rank"] is None
    return Cell("; ".join(filter(None, (status, flags))), flag=flagged)


def _css(line: Mapping[str, Any], before: Mapping[str, Any] | None, strata: Sequence[str]) -> str:
    """CSS classes of a row: its kind, and a divider if a new ranking or the unranked rows start here."""
    kind = "ranked"
    if line["rank"] is None:
        kind = "unranked"
    elif line["rank"] == 1 or line["not_distinguishable_from_best"]:
        kind = "group"
    if before is None:
        return kind
    another = any(line[name] != before[name] for name in strata)
    return f"{kind} divider" if another or (line["rank"] is None and before["rank"] is not None) else kind


def _note(table: pa.Table) -> str:
    facts, lines, strata = read_facts(table), table.to_pylist(), varying_strata(table)
    level, pooled = 100 * facts.level, facts.metric(facts.objective).level == "pooled"
    text = f"Mean over subjects with {level:.0f} % t interval"
    over = {line["interval_over"] for line in lines}
    summed = f"maps summed over subjects, with {level:.0f} % jackknife intervals"
    if facts.metric(facts.objective).level == "mixed":
        text += f", or scores of {summed}"
    elif pooled and any(line["attribution"] for line in lines):
        text = f"Scores of {summed}"
    elif pooled:
        text = f"Pooled over subjects, with {level:.0f} % jackknife intervals"
    text += ", given the trained models" if over <= {GIVEN_MODELS} else f" over {WITH_TRAINING}"
    text += f" where interval_over says so, otherwise {GIVEN_MODELS}" if len(over) > 1 else ""
    if any(line["rank"] is not None for line in lines):
        within = f" among rows with the same {' and '.join(strata)}" if strata else ""
        text += (
            f"; ranked by {facts.objective}{within}. Tinted rows are not distinguishable from the first "
            "(paired t tests, Bonferroni-adjusted over all pairs, as are the intervals of differences and ranks); "
            "the first was selected on these subjects, so expect a lower value on others"
        )
    text += "."
    text += _missing_intervals(facts.objective, lines)
    if any(line["rank"] is None for line in lines):
        text += (
            " Grey rows are not ranked, for the reason in their status: incomplete, failed, collapsed, an oracle, "
            f"a control, or fewer than {MINIMUM_SUBJECTS} subjects."
        )
    return text


def _missing_intervals(objective: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Sentences on values of the objective without an interval, with the reason."""
    reasons = Counter(reason for line in lines if (reason := line.get(f"{objective}_no_interval")))
    return "".join(
        f" {count} of {len(lines)} values of {objective} {'has' if count == 1 else 'have'} no interval: {reason}."
        for reason, count in reasons.items()
    )


def _others(table: pa.Table, facts: TableFacts) -> list[str]:
    """Columns with provenance that are not shown elsewhere, in the order of the table."""
    names = list(table.column_names)
    return [name for name in names[names.index("subject_sd") + 1 :] if name not in _MADE and name not in facts.axes]
