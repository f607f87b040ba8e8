"""Names, data sets, columns, ranks and notes of the configurations in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.core.registry import METRICS
from harness.core.space import text_of
from harness.core.types import JSON
from harness.pipeline.cell import explanations_of, restored
from harness.pipeline.leaderboard import read_facts
from harness.report.wording import interval_text
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan
from harness.tracking.pages import SavedView
from harness.tracking.runs import Dataset
from harness.tracking.tracker import ParentRun

__all__ = ["note_of", "parent_runs", "rank_of", "run_names", "saved_view"]


def parent_runs(plan: Plan) -> list[ParentRun]:
    """Data of the MLflow run of each configuration that are known before it is computed, in the order of the plan."""
    names = run_names({one.id: one.axes for one in plan.configurations})
    source = str(plan.request.settings.data_folder or "generated images")
    found = []
    for configuration in plan.configurations:
        cohort = plan.groups[configuration.id].cohort
        counts = {"num_rows": len(cohort.samples), "subjects": len(cohort.subjects), "left_out": len(cohort.ineligible)}
        dataset = Dataset(cohort.name, configuration.fingerprint, source, counts)
        found.append(ParentRun(configuration, names[configuration.id] or plan.request.task.name, dataset))
    return found


def run_names(axes: Mapping[str, Mapping[str, JSON]]) -> dict[str, str]:
    """Short names that start with the axes in which configurations differ: ``T1w+FLAIR unet``, ``noise 0.1 cnn``.

    Parameters
    ----------
    axes : axes of each configuration, by its id

    Returns
    -------
    dict
        Names by id; empty names for configurations without axes. Axes that differ come
        first, text before numbers, which are preceded by the name of the axis. MLflow's
        table truncates names after 18 letters.
    """
    keys = dict.fromkeys(key for one in axes.values() for key in one)
    differing = {key for key in keys if len({json.dumps(one.get(key)) for one in axes.values()}) > 1}

    def text(key: str, value: JSON) -> str:
        return value if isinstance(value, str) else f"{key.rpartition('.')[2]} {text_of(value)}"

    def name(one: Mapping[str, JSON]) -> str:
        known = [key for key in keys if one.get(key) is not None]
        known.sort(key=lambda key: (key not in differing, not isinstance(one[key], str)))
        return " ".join(text(key, one[key]) for key in known)

    return {identity: name(one) for identity, one in axes.items()}


def saved_view(plan: Plan) -> SavedView:
    """The saved view of the table of runs: ranking metrics as columns, the best run on top."""
    task = plan.request.task
    labels = dict.fromkeys(label for one in plan.configurations for label in explanations_of(restored(one)))
    metrics = [f"{task.objective}{end}" for end in ("", "_low", "_high")]
    metrics += [*task.shown, *(f"{label}/{task.explanation_objective}" for label in labels)]
    direction = METRICS.get(METRICS.name_of(task.metrics[task.objective].func)).facts["direction"]
    return SavedView(
        "Configurations",
        tuple(dict.fromkeys(metrics)),
        tuple(dict.fromkeys(key for one in plan.configurations for key in one.axes)),
        ("rank",),
        order_by=task.objective,
        ascending=direction == "lower",
    )


def rank_of(tables: Tables, identity: str, *, anonymous: bool = False) -> str:
    """Rank of a configuration, e.g. ``3 of 8``, or the reason why it is not ranked.

    Parameters
    ----------
    tables : tables of the latest run
    identity : id of the configuration
    anonymous : whether to leave out text that may contain names of subjects
    """
    found = _standings(tables.prediction, identity, anonymous=anonymous)
    return found[0].rank if found else "not computed yet"


def note_of(tables: Tables, identity: str, *, command: str, report: Path | None = None, anonymous: bool = False) -> str:
    """Summary of a configuration, in Markdown.

    Parameters
    ----------
    tables : tables of the latest run
    identity : id of the configuration
    command : command of that run
    report : path of its report
    anonymous : whether to leave out text that may contain names of subjects

    Returns
    -------
    str
        Rank and value with interval, the report, the commands of this configuration and
        of the run in which it was ranked, and a table of its attributions.
    """
    found = [
        one
        for table in (tables.prediction, tables.explanation)
        for one in _standings(table, identity, anonymous=anonymous)
    ]
    texts = [_headline(found[0]) if found else "Not computed yet"]
    texts += [f"Report: `{report}`"] if report else []
    texts += [f"Command of this configuration: `{found[0].command}`"] if found else []
    texts += [f"Ranked in: `{command}`"]
    if found[1:]:
        lines = [f"| {one.attribution} | {one.metric} | {one.value} | {one.rank} |" for one in found[1:]]
        texts.append("\n".join(["| attribution | metric | value and interval | rank |", "|---|---|---|---|", *lines]))
    return "\n\n".join(texts)


@dataclass(frozen=True)
class _Standing:
    """A row of a leaderboard as text."""

    attribution: str
    metric: str
    value: str
    rank: str
    ranked: bool
    command: str


def _headline(one: _Standing) -> str:
    ranked = f"Rank {one.rank}" if one.ranked else f"Not ranked ({one.rank})"
    return f"**{ranked}** by {one.metric}: **{one.value}**"


def _standings(table: pa.Table, identity: str, *, anonymous: bool) -> list[_Standing]:
    """The rows of a configuration in a leaderboard."""
    facts, lines = read_facts(table), table.to_pylist()
    found = []
    for line in lines:
        if line["configuration"] != identity:
            continue
        value = interval_text(*(line.get(f"{facts.objective}{end}") for end in ("", "_low", "_high")))
        rank = _rank(line, lines, facts.strata, anonymous=anonymous)
        ranked = line["rank"] is not None
        found.append(_Standing(line["attribution"], facts.objective, value, rank, ranked, line["command"]))
    return found


def _rank(
    line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], strata: Sequence[str], *, anonymous: bool
) -> str:
    """Rank such as ``3 of 8``, or the status of a row without rank."""
    if line["rank"] is None:
        status = str(line["status"])
        return re.split(r":| for ", status)[0] if anonymous else status
    group = [one for one in lines if all(one.get(name) == line.get(name) for name in strata)]
    return f"{line['rank']} of {sum(one['rank'] is not None for one in group)}"
