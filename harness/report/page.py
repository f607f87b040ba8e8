"""The report: one HTML file that needs nothing else.

Styles and figures are inside the file, there are no scripts, and every text
that came from a user, a file name or a plug-in is escaped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa

from harness.core.types import JSON, Ineligible, Source
from harness.pipeline.leaderboard import read_facts
from harness.pipeline.rows import MetricFacts
from harness.report.boards import BETTER, Board, board_of_ranking, board_of_table
from harness.report.elements import Figure, ReportTable
from harness.report.wording import interval_text, plain_text, typographic
from harness.storage.files import replace_file

__all__ = ["write_list_of_runs", "write_report"]


@dataclass
class _Section:
    title: str
    boards: list[Board] = field(default_factory=list)
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
    run: str = "",
    explanations: pa.Table | None = None,
    figures: Sequence[Figure] = (),
    tables: Sequence[ReportTable] = (),
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
    verdict : what may be claimed, see :func:`harness.report.wording.verdict`; a line each
    leaderboard : of :func:`harness.pipeline.leaderboard.build`
    run : its name; the page then leads to the list of runs, one folder up
    explanations : the same for attribution methods, if there are any
    figures, tables : in order; their sections stand in the order of their first appearance
    shown : metrics of the leaderboard beside the objective, the others are folded away; all by default
    provenance : versions, seeds, hardware, command, …
    notes : what the reader must know
    ineligible : subjects left out

    Returns
    -------
    pathlib.Path
        The file.
    """
    boards = [leaderboard, *([explanations] if explanations is not None else [])]
    metrics = {metric.name: metric for table in boards for metric in read_facts(table).metrics}
    return _write(
        path,
        title=title,
        question=question,
        source=source,
        run=run,
        verdict=[line for line in verdict.splitlines() if line.strip()],
        sections=_sections(leaderboard, explanations, figures, tables, shown),
        glossary=[_entry(metric) for metric in metrics.values()],
        provenance=[(name, plain_text(value)) for name, value in (provenance or {}).items()],
        notes=notes,
        ineligible=ineligible,
    )


def write_list_of_runs(
    path: str | os.PathLike[str], *, title: str, question: str, source: Source | str, runs: ReportTable
) -> Path:
    """Write the page that leads to the reports of a task, whole or not at all.

    Parameters
    ----------
    path : the HTML file; its folder is made if needed
    title, question : of the task
    source : the paper
    runs : a line per run, its first cell with a link
    """
    section = _Section("Runs", [replace(board_of_table(runs), title="")])
    nothing: list[str] = []
    return _write(
        path,
        title=title,
        question=question,
        source=source,
        sections=[section],
        run="",
        verdict=nothing,
        glossary=nothing,
        provenance=nothing,
        notes=nothing,
        ineligible=nothing,
    )


def _write(path: str | os.PathLike[str], *, source: Source | str, **content: Any) -> Path:
    target = Path(path)
    replace_file(target, _template().render(source=str(source), **content))
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
    tables: Sequence[ReportTable],
    shown: Sequence[str],
) -> list[_Section]:
    """The leaderboard's section, those that figures and tables name, and that of the explanations."""
    named = ("Leaderboard", *(one.section for one in figures), *(one.section for one in tables))
    order = [name for name in dict.fromkeys(named) if name != "Explanations"]
    if explanations is not None or "Explanations" in named:
        order.append("Explanations")
    sections = {name: _Section(name) for name in order}
    sections["Leaderboard"].boards += [board_of_ranking(leaderboard, shown)]
    if explanations is not None:
        sections["Explanations"].boards += [board_of_ranking(explanations)]
    for one in tables:
        sections[one.section].boards.append(board_of_table(one))
    for figure in figures:
        sections[figure.section].figures.append(figure)
    return list(sections.values())


def _entry(metric: MetricFacts) -> dict[str, str]:
    ends = ["−∞" if end == -math.inf else "∞" if end == math.inf else typographic(f"{end:g}") for end in metric.range]
    return {
        "name": f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
        "summary": metric.summary,
        "better": BETTER[metric.direction],
        "range": f"{ends[0]} to {ends[1]}",
        "chance": interval_text(metric.chance),
        "ceiling": interval_text(metric.ceiling),
        "level": "pooled" if metric.level == "pooled" else "mean of subjects",
        "source": metric.source,
    }
