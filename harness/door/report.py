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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from harness.leaderboard import MetricFacts, TableFacts, interval_text, read_facts, replace_file, row_labels
from harness.statistics import MINIMUM_SUBJECTS
from harness.types import JSON, Ineligible, Source

__all__ = ["Figure", "write_report"]

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
    """

    title: str
    caption: str
    image: bytes | str
    broad: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI; an SVG in it can neither run scripts nor load anything."""
        data = self.image.encode() if isinstance(self.image, str) else self.image
        kind = "svg+xml" if isinstance(self.image, str) else "png"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class _Column:
    name: str
    css: str = ""
    hint: str = ""


@dataclass(frozen=True)
class _Cell:
    text: str
    css: str = ""
    range: str = ""
    flag: bool = False


@dataclass(frozen=True)
class _Line:
    cells: tuple[_Cell, ...]
    css: str


@dataclass(frozen=True)
class _Board:
    title: str
    columns: tuple[_Column, ...]
    lines: tuple[_Line, ...]
    note: str
    facts_columns: tuple[str, ...]
    facts_lines: tuple[tuple[str, ...], ...]


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
    verdict : what may be claimed, see :func:`harness.leaderboard.verdict`; a line each
    leaderboard : of :func:`harness.leaderboard.build`
    explanations : the same for attribution methods, if there are any
    figures : in order
    provenance : versions, seeds, hardware, command, …
    notes : what the reader must know
    ineligible : subjects left out

    Returns
    -------
    pathlib.Path
        The file.
    """
    boards = [_board("Leaderboard", leaderboard)]
    if explanations is not None:
        boards.append(_board("Explanations", explanations))
    tables = [leaderboard, *([explanations] if explanations is not None else [])]
    metrics = {metric.name: metric for table in tables for metric in read_facts(table).metrics}
    text = _template().render(
        title=title,
        question=question,
        source=str(source),
        verdict=[line for line in verdict.splitlines() if line.strip()],
        boards=boards,
        figures=figures,
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
        loader=jinja2.PackageLoader("harness.door", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _board(title: str, table: pa.Table) -> _Board:
    facts, lines, labels = read_facts(table), table.to_pylist(), row_labels(table, attribution=False)
    explained = any(line["attribution"] for line in lines)
    apart = [name for name in facts.apart if len({line.get(name) for line in lines}) > 1]
    metrics = sorted(facts.metrics, key=lambda metric: metric.name != facts.objective)  # the objective first
    extras = [name for name in ("p_holm", "seed_sd", "subject_sd") if any(line[name] is not None for line in lines)]

    columns = [_Column("configuration", "first"), _Column("rank", "number")]
    columns += [_Column(name) for name in apart]
    columns += [_Column("attribution")] if explained else []
    columns += [_Column("status")]
    for metric in metrics:
        columns += _metric_columns(metric, facts, table)
    columns += [_Column(name, "number", hint) for name, hint in _HINTS.items() if name in extras]

    rows: list[_Line] = []
    for line, label in zip(lines, labels, strict=True):
        cells = [_Cell(label, "first"), _Cell("–" if line["rank"] is None else str(line["rank"]), "number")]
        cells += [_Cell(_plain(line.get(name))) for name in apart]
        cells += [_Cell(line["attribution"])] if explained else []
        cells += [_status(line)]
        for metric in metrics:
            cells += _metric_cells(metric, facts, table, line)
        cells += [_p(line[name]) if name == "p_holm" else _number(line[name]) for name in _HINTS if name in extras]
        rows.append(_Line(tuple(cells), _css(line, rows)))

    made = [name for name in (*_MADE, *_others(table, facts)) if any(line.get(name) is not None for line in lines)]
    return _Board(
        title,
        tuple(columns),
        tuple(rows),
        _note(facts, lines),
        ("configuration", *("identity" if name == "configuration" else name for name in made)) if lines else (),
        tuple(
            (label, *(_plain(line.get(name)) for name in made))
            for line, label in zip(lines, row_labels(table), strict=True)
        ),
    )


_HINTS = {
    "p_holm": "p of the paired t test against the first, adjusted by Holm for all pairs of configurations",
    "seed_sd": "Standard deviation of the objective between seeds, within a subject",
    "subject_sd": "Standard deviation of the objective between subjects",
}


def _metric_columns(metric: MetricFacts, facts: TableFacts, table: pa.Table) -> list[_Column]:
    main = metric.name == facts.objective
    name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    hint = "; ".join(part for part in (metric.summary, f"{_BETTER[metric.direction]} is better", metric.source) if part)
    columns = [_Column(name, "number objective" if main else "number", hint)]
    if f"{metric.name}_chance" in table.column_names:
        columns.append(_Column("chance", "number", f"What no skill scores in {metric.name}"))
    if main:
        columns.append(_Column("difference", "number", "Paired difference from the first, with its interval"))
    return columns


def _metric_cells(metric: MetricFacts, facts: TableFacts, table: pa.Table, line: Mapping[str, Any]) -> list[_Cell]:
    cells = [_number(line[metric.name], line[f"{metric.name}_low"], line[f"{metric.name}_high"])]
    if f"{metric.name}_chance" in table.column_names:
        cells.append(_number(line[f"{metric.name}_chance"]))
    if metric.name == facts.objective:
        shown = line["difference_low"] is not None  # the first differs from itself by nothing
        cells.append(_number(*(line[f"difference{end}"] for end in ("", "_low", "_high"))) if shown else _number(None))
    return cells


def _number(value: float | None, low: float | None = None, high: float | None = None) -> _Cell:
    value_text, _, interval = interval_text(value, low, high).partition(" ")
    return _Cell(value_text.replace("-", "−"), "number", interval.replace("-", "−"))


def _p(value: float | None) -> _Cell:
    return _Cell("<0.001", "number") if value is not None and value < 0.001 else _number(value)


def _status(line: Mapping[str, Any]) -> _Cell:
    texts = [line["status"]] if line["rank"] is None else []
    texts += [flag for flag in line["flags"].split("; ") if flag and flag not in texts]
    if texts:
        return _Cell("; ".join(texts), flag=True)
    if line["rank"] == 1:
        return _Cell("first")
    return _Cell("not distinguishable" if line["not_distinguishable_from_best"] else "")


def _css(line: Mapping[str, Any], before: Sequence[_Line]) -> str:
    if line["rank"] is None:
        starts = bool(before) and not before[-1].css.startswith("unranked")
        return "unranked divider" if starts else "unranked"
    return "group" if line["rank"] == 1 or line["not_distinguishable_from_best"] else "ranked"


def _note(facts: TableFacts, lines: Sequence[Mapping[str, Any]]) -> str:
    text = f"Mean over subjects with a {100 * facts.level:.0f} % t interval"
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
