"""The report: one self-contained HTML file.

Styles and figures are embedded, there are no scripts, and all text from users, file
names or plug-ins is escaped.
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
    by_target: Mapping[str, tuple[pa.Table, pa.Table | None]] | None = None,
    figures: Sequence[Figure] = (),
    tables: Sequence[ReportTable] = (),
    shown: Sequence[str] = (),
    provenance: Mapping[str, JSON] | None = None,
    notes: Sequence[str] = (),
    ineligible: Sequence[Ineligible] = (),
) -> Path:
    """Write the report of a run, atomically.

    Parameters
    ----------
    path : path of the HTML file; its folder is created if needed
    title, question : name and question of the task
    source : publication
    verdict : conclusions, one per line, see :func:`harness.report.wording.verdict`
    leaderboard : leaderboard from :func:`harness.pipeline.leaderboard.build`
    run : name of the run; if given, the page links to the list of runs in the parent folder
    explanations : leaderboard of the attribution methods, if there are any
    by_target : leaderboards of predictions and explanations of single targets, by target
    figures, tables : figures and tables; sections are in the order of their first appearance
    shown : metrics to show in addition to the objective, the others are collapsed; all by default
    provenance : versions, seeds, hardware, command, …
    notes : notes for the reader
    ineligible : subjects that were left out

    Returns
    -------
    pathlib.Path
        Path of the file.
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
        sections=_sections(leaderboard, explanations, by_target or {}, figures, tables, shown),
        glossary=[_entry(metric) for metric in metrics.values()],
        provenance=[(name, plain_text(value)) for name, value in (provenance or {}).items()],
        notes=notes,
        ineligible=ineligible,
    )


def write_list_of_runs(
    path: str | os.PathLike[str], *, title: str, question: str, source: Source | str, runs: ReportTable
) -> Path:
    """Write the page that lists the reports of a task, atomically.

    Parameters
    ----------
    path : path of the HTML file; its folder is created if needed
    title, question : name and question of the task
    source : publication
    runs : table with one row per run, whose first cell has a link
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
    by_target: Mapping[str, tuple[pa.Table, pa.Table | None]],
    figures: Sequence[Figure],
    tables: Sequence[ReportTable],
    shown: Sequence[str],
) -> list[_Section]:
    """Sections of the page: the leaderboard, those named by figures and tables, and the explanations."""
    named = ("Leaderboard", *(one.section for one in figures), *(one.section for one in tables))
    order = [name for name in dict.fromkeys(named) if name != "Explanations"]
    if explanations is not None or "Explanations" in named:
        order.append("Explanations")
    sections = {name: _Section(name) for name in order}
    sections["Leaderboard"].boards += [board_of_ranking(leaderboard, shown)]
    if explanations is not None:
        sections["Explanations"].boards += [board_of_ranking(explanations)]
    for target, (predicted, explained) in by_target.items():
        sections["Leaderboard"].boards.append(replace(board_of_ranking(predicted, shown), title=target))
        if explained is not None and explanations is not None:
            sections["Explanations"].boards.append(replace(board_of_ranking(explained), title=target))
    for one in tables:
        sections[one.section].boards.append(board_of_table(one))
    for figure in figures:
        sections[figure.section].figures.append(figure)
    return list(sections.values())


_LEVELS = {"subject": "mean of subjects", "pooled": "pooled", "mixed": "mean of subjects, or pooled for summed maps"}


def _entry(metric: MetricFacts) -> dict[str, str]:
    ends = ["−∞" if end == -math.inf else "∞" if end == math.inf else typographic(f"{end:g}") for end in metric.range]
    return {
        "name": f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
        "summary": metric.summary,
        "better": BETTER[metric.direction],
        "range": f"{ends[0]} to {ends[1]}",
        "chance": interval_text(metric.chance),
        "ceiling": interval_text(metric.ceiling),
        "level": _LEVELS[metric.level],
        "source": metric.source,
    }
