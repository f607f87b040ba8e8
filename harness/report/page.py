"""The report: one HTML file that needs nothing else.

Styles and figures are inside the file, there are no scripts, and every text
that came from a user, a file name or a plug-in is escaped.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from harness.core.types import JSON, Ineligible, Source
from harness.pipeline.leaderboard import MetricFacts, TableFacts, interval_text, read_facts, row_labels
from harness.stats.intervals import MINIMUM_SUBJECTS
from harness.storage.files import replace_file

__all__ = ["Cell", "Figure", "ReportTable", "write_report"]

_BETTER = {"higher": "higher", "lower": "lower", "zero": "nearer to zero", "none": "neither"}
_MADE = ("folds", "seeds", "subjects", "train_s", "explain_s", "profile", "data", "command", "cohort", "code")


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    Parameters
    ----------
    title : what it shows
    caption : how to read it
    image : PNG bytes, or the text of an SVG
    broad : whether it takes the page's full width
    section : heading under which it stands; "Leaderboard" and "Explanations" hold their tables too
    """

    title: str
    caption: str
    image: bytes | str
    broad: bool = False
    section: str = "Figures"

    @property
    def uri(self) -> str:
        """The picture as a data URI; an SVG in it can neither run scripts nor load anything."""
        data = self.image.encode() if isinstance(self.image, str) else self.image
        kind = "svg+xml" if isinstance(self.image, str) else "png"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Parameters
    ----------
    text : what it says
    css : classes: ``number`` aligns right, ``wrap`` may break, ``first`` stays in sight
    range : said after it in a softer colour
    flag : whether it warns
    mark : ``good``, ``bad`` or ``open``: said in a box of that colour
    """

    text: str
    css: str = ""
    range: str = ""
    flag: bool = False
    mark: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A plain table with its words.

    Parameters
    ----------
    title : what it holds
    columns : headings
    lines : as many fields as there are columns; the first names the line
    note : how to read it
    section : see :class:`Figure`
    folded : a longer table that opens on demand
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    section: str = "Leaderboard"
    folded: ReportTable | None = None


@dataclass(frozen=True)
class _Column:
    name: str
    css: str = ""
    hint: str = ""


@dataclass(frozen=True)
class _Line:
    cells: tuple[Cell, ...]
    css: str = ""


@dataclass(frozen=True)
class _Board:
    title: str
    columns: tuple[_Column, ...]
    lines: tuple[_Line, ...]
    note: str = ""
    folds: tuple[_Board, ...] = ()


@dataclass
class _Section:
    title: str
    boards: list[_Board] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    question: str,
    source: Source | str,
    verdict: str,
    leaderboard: pa.Table,
    explanations: pa.Table | None = None,
    figures: Sequence[Figure] = (),
    sheets: Sequence[ReportTable] = (),
    shown: Sequence[str] = (),
    provenance: Mapping[str, JSON] | None = None,
    notes: Sequence[str] = (),
    ineligible: Sequence[Ineligible] = (),
) -> Path:
    """Write the report of one task, whole or not at all.

    Parameters
    ----------
    path : the HTML file; its folder is made if needed
    title, question : of the task
    source : the paper
    verdict : what may be claimed, see :func:`harness.pipeline.leaderboard.verdict`; a line each
    leaderboard : of :func:`harness.pipeline.leaderboard.build`
    explanations : the same for attribution methods, if there are any
    figures, sheets : in order; their sections stand in the order of their first appearance
    shown : metrics of the leaderboard beside the objective, the others are folded away; all by default
    provenance : versions, seeds, hardware, command, …
    notes : what the reader must know
    ineligible : subjects left out

    Returns
    -------
    pathlib.Path
        The file.
    """
    sections = _sections(leaderboard, explanations, figures, sheets, shown)
    tables = [leaderboard, *([explanations] if explanations is not None else [])]
    metrics = {metric.name: metric for table in tables for metric in read_facts(table).metrics}
    text = _template().render(
        title=title,
        question=question,
        source=str(source),
        verdict=[line for line in verdict.splitlines() if line.strip()],
        sections=sections,
        glossary=[_entry(metric) for metric in metrics.values()],
        provenance=[(name, _plain(value)) for name, value in (provenance or {}).items()],
        notes=notes,
        ineligible=ineligible,
    )
    target = Path(path)
    replace_file(target, text)
    return target


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _sections(
    leaderboard: pa.Table,
    explanations: pa.Table | None,
    figures: Sequence[Figure],
    sheets: Sequence[ReportTable],
    shown: Sequence[str],
) -> list[_Section]:
    """The leaderboard's section, those that figures and sheets name, and that of the explanations."""
    named = ("Leaderboard", *(one.section for one in figures), *(one.section for one in sheets))
    order = [name for name in dict.fromkeys(named) if name != "Explanations"]
    if explanations is not None or "Explanations" in named:
        order.append("Explanations")
    sections = {name: _Section(name) for name in order}
    sections["Leaderboard"].boards += [_board("", leaderboard, shown)]
    if explanations is not None:
        sections["Explanations"].boards += [_board("", explanations)]
    for sheet in sheets:
        sections[sheet.section].boards.append(_plain_board(sheet))
    for figure in figures:
        sections[figure.section].figures.append(figure)
    return list(sections.values())


def _plain_board(sheet: ReportTable) -> _Board:
    lines = [[Cell(one) if isinstance(one, str) else one for one in line] for line in sheet.lines]
    lines = [[replace(line[0], css=f"{line[0].css} first".strip()), *line[1:]] for line in lines]
    css = [lines[0][index].css if lines else "" for index in range(len(sheet.columns))]
    columns = [_Column(name, kind.replace("wrap", "").strip()) for name, kind in zip(sheet.columns, css, strict=True)]
    folds = (_plain_board(sheet.folded),) if sheet.folded is not None else ()
    return _Board(sheet.title, tuple(columns), tuple(_Line(tuple(line)) for line in lines), sheet.note, folds)


def _board(title: str, table: pa.Table, shown: Sequence[str] = ()) -> _Board:
    facts, lines = read_facts(table), table.to_pylist()
    metrics = sorted(facts.metrics, key=lambda metric: metric.name != facts.objective)  # the objective first
    known = {facts.objective, *(one.name for one in metrics if any(line[one.name] is not None for line in lines))}
    metrics = [one for one in metrics if one.name in known or not lines]  # of a real score no truth is known
    wanted = [facts.objective, *(name for name in shown if name != facts.objective)]
    main = [facts.metric(name) for name in wanted if name in {one.name for one in metrics}] if shown else metrics
    folds = []
    if len(main) < len(metrics):
        folds.append(_measured(f"All {len(metrics)} metrics", table, metrics))
    made = [name for name in (*_MADE, *_others(table, facts)) if any(line.get(name) is not None for line in lines)]
    if lines:
        folds.append(
            _Board(
                "How each row was made",
                (
                    _Column("configuration", "first"),
                    *(_Column("identity" if n == "configuration" else n) for n in made),
                ),
                tuple(
                    _Line((Cell(label, "first"), *(Cell(_plain(line.get(name))) for name in made)))
                    for line, label in zip(lines, row_labels(table), strict=True)
                ),
            )
        )
    board = _measured(title, table, main, ranked=True)
    return replace(board, note=_note(facts, lines), folds=tuple(folds))


def _measured(title: str, table: pa.Table, metrics: Sequence[MetricFacts], *, ranked: bool = False) -> _Board:
    """Rows with some of their metrics; ``ranked`` adds rank, status and comparison."""
    facts, lines, labels = read_facts(table), table.to_pylist(), row_labels(table, attribution=False)
    explained = any(line["attribution"] for line in lines)
    apart = [name for name in facts.apart if len({line.get(name) for line in lines}) > 1]
    extras = [name for name in _HINTS if ranked and any(line[name] is not None for line in lines)]

    columns = [_Column("configuration", "first")]
    columns += [_Column("rank", "number")] if ranked else []
    columns += [_Column(name) for name in apart]
    columns += [_Column("attribution")] if explained else []
    columns += [_Column("status")] if ranked else []
    for metric in metrics:
        columns += _metric_columns(metric, facts, table, ranked=ranked)
    columns += [_Column(name, "number", _HINTS[name]) for name in extras]

    rows: list[_Line] = []
    for line, label in zip(lines, labels, strict=True):
        cells = [Cell(label, "first")]
        cells += [Cell("–" if line["rank"] is None else str(line["rank"]), "number")] if ranked else []
        cells += [Cell(_plain(line.get(name))) for name in apart]
        cells += [Cell(line["attribution"])] if explained else []
        cells += [_status(line)] if ranked else []
        for metric in metrics:
            cells += _metric_cells(metric, facts, table, line, ranked=ranked)
        cells += [_p(line[name]) if name == "p_holm" else _number(line[name]) for name in extras]
        rows.append(_Line(tuple(cells), _css(line, rows) if ranked else ""))
    return _Board(title, tuple(columns), tuple(rows))


_HINTS = {
    "p_holm": "p of the paired t test against the first, adjusted by Holm for all pairs of configurations",
    "seed_sd": "Standard deviation of the objective between seeds, within a subject",
    "subject_sd": "Standard deviation of the objective between subjects",
}


def _metric_columns(metric: MetricFacts, facts: TableFacts, table: pa.Table, *, ranked: bool) -> list[_Column]:
    main = ranked and metric.name == facts.objective
    name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    hint = "; ".join(part for part in (metric.summary, f"{_BETTER[metric.direction]} is better", metric.source) if part)
    columns = [_Column(name, "number objective" if main else "number", hint)]
    if f"{metric.name}_chance" in table.column_names:
        columns.append(_Column("chance", "number", f"What no skill scores in {metric.name}"))
    if main:
        columns.append(_Column("difference", "number", "Paired difference from the first, with its interval"))
    return columns


def _metric_cells(
    metric: MetricFacts, facts: TableFacts, table: pa.Table, line: Mapping[str, Any], *, ranked: bool
) -> list[Cell]:
    cells = [_number(line[metric.name], line[f"{metric.name}_low"], line[f"{metric.name}_high"])]
    if f"{metric.name}_chance" in table.column_names:
        cells.append(_number(line[f"{metric.name}_chance"]))
    if ranked and metric.name == facts.objective:
        shown = line["difference_low"] is not None  # the first differs from itself by nothing
        cells.append(_number(*(line[f"difference{end}"] for end in ("", "_low", "_high"))) if shown else _number(None))
    return cells


def _number(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    value_text, _, interval = interval_text(value, low, high).partition(" ")
    return Cell(value_text.replace("-", "−"), "number", interval.replace("-", "−"))


def _p(value: float | None) -> Cell:
    return Cell("<0.001", "number") if value is not None and value < 0.001 else _number(value)


def _status(line: Mapping[str, Any]) -> Cell:
    texts = [line["status"]] if line["rank"] is None else []
    texts += [flag for flag in line["flags"].split("; ") if flag and flag not in texts]
    if texts:
        return Cell("; ".join(texts), flag=True)
    if line["rank"] == 1:
        return Cell("first")
    return Cell("not distinguishable" if line["not_distinguishable_from_best"] else "")


def _css(line: Mapping[str, Any], before: Sequence[_Line]) -> str:
    if line["rank"] is None:
        starts = bool(before) and not before[-1].css.startswith("unranked")
        return "unranked divider" if starts else "unranked"
    return "group" if line["rank"] == 1 or line["not_distinguishable_from_best"] else "ranked"


def _note(facts: TableFacts, lines: Sequence[Mapping[str, Any]]) -> str:
    level, pooled = 100 * facts.level, facts.metric(facts.objective).level == "pooled"
    text = f"Mean over subjects with a {level:.0f} % t interval"
    if pooled and any(line["attribution"] for line in lines):
        text = f"Of the sum over subjects, with {level:.0f} % intervals by leaving out one block of subjects at a time"
    elif pooled:
        text = f"Pooled over subjects, with {level:.0f} % intervals by the jackknife or, of few subjects, the bootstrap"
    if any(line["rank"] is not None for line in lines):
        text += (
            f"; ranked by {facts.objective}. Tinted rows are not distinguishable from the first "
            "(paired t tests, Holm-adjusted over all pairs)"
        )
    text += "."
    if any(line["rank"] is None for line in lines):
        text += f" Grey rows have no rank: incomplete, failed, collapsed, or fewer than {MINIMUM_SUBJECTS} subjects."
    return text


def _others(table: pa.Table, facts: TableFacts) -> list[str]:
    """Columns that are facts of the row and not shown otherwise, in the table's order."""
    names = list(table.column_names)
    return [name for name in names[names.index("subject_sd") + 1 :] if name not in _MADE and name not in facts.axes]


def _entry(metric: MetricFacts) -> dict[str, str]:
    ends = [
        "−∞" if end == -math.inf else "∞" if end == math.inf else f"{end:g}".replace("-", "−") for end in metric.range
    ]
    return {
        "name": f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
        "summary": metric.summary,
        "better": _BETTER[metric.direction],
        "range": f"{ends[0]} to {ends[1]}",
        "chance": interval_text(metric.chance),
        "ceiling": interval_text(metric.ceiling),
        "level": "pooled" if metric.level == "pooled" else "mean of subjects",
        "source": metric.source,
    }


def _plain(value: JSON) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
