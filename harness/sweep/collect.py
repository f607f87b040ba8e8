"""Collect the tables of a run from the store."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from harness.core.space import text_of
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.pipeline import leaderboard
from harness.pipeline.aggregate import Pooled, has_fixed_test, metric_facts, pool
from harness.pipeline.cell import digest, explanations_of, restored
from harness.pipeline.group_maps import agreement
from harness.pipeline.ranking import strata_of
from harness.sweep.plan import Plan

__all__ = ["Tables", "agreements", "collect", "regions_of_interest"]


@dataclass(frozen=True)
class Tables:
    """Result tables of a run.

    Parameters
    ----------
    prediction, explanation, regions : Arrow tables, see :mod:`harness.pipeline.leaderboard`
    pooled : rows of each configuration, by its id
    """

    prediction: pa.Table
    explanation: pa.Table
    regions: pa.Table
    pooled: Mapping[str, Pooled]


def collect(plan: Plan, *, mlflow_runs: Mapping[str, str] | None = None) -> Tables:
    """Pool the results of all configurations, as far as they are in the store."""
    pooled = {}
    for configuration in plan.configurations:
        own = [job for job in plan.jobs if job.row == configuration.id]
        facts = _facts(plan, configuration, (mlflow_runs or {}).get(configuration.id, ""))
        cohort = plan.groups[configuration.id].cohort
        pooled[configuration.id] = pool(configuration, own, cohort, plan.store, facts=facts)
    task, fixed = plan.request.task, has_fixed_test(plan.jobs)
    rows = [one.prediction for one in pooled.values()]
    explained = [row for one in pooled.values() for row in one.explanations]
    names = dict.fromkeys(name for one in pooled.values() for name in one.regions)
    regions = {name: [row for one in pooled.values() for row in one.regions.get(name, ())] for name in names}
    measured, of_maps = (
        metric_facts(task, ("subject", "pool"), fixed_test=fixed),
        metric_facts(task, ("explanation", "probe")),
    )
    divided = task.regional or [facts.name for facts in measured if facts.direction != "none"]
    by_region = [facts for facts in measured if facts.name in divided]
    by_region += of_maps if any(row.attribution for rows in regions.values() for row in rows) else ()
    posed, asked = strata_of(rows, task.poses), strata_of(explained, task.poses)
    return Tables(
        leaderboard.build(rows, measured, task.objective, strata=posed),
        leaderboard.build(explained, of_maps, task.explanation_objective, strata=asked),
        leaderboard.build_regions(regions, by_region),
        pooled,
    )


def agreements(plan: Plan) -> pa.Table | None:
    """Similarity of the group maps of each pair of attributions; ``None`` if all maps are scored per sample.

    Returns
    -------
    pyarrow.Table
        Columns: the axes, ``output``, ``first``, ``second``, ``pearson``, ``configuration``.
    """
    lines = []
    for configuration in plan.configurations:
        task = restored(configuration)
        labels = [label for label in explanations_of(task) if task.explained[label].judged_as_sum]
        own = [job for job in plan.jobs if job.row == configuration.id]
        cells = [cell for job in own for cell in job.cells if cell.stage == "explain"]
        for one in agreement(configuration, cells, plan.store, labels=labels):
            lines.append({**configuration.axes, **dataclasses.asdict(one), "configuration": configuration.id})
    return pa.Table.from_pylist(lines) if lines else None


def regions_of_interest(plan: Plan) -> pa.Table | None:
    """Regions that carry the signal of simulated scores; ``None`` for measured targets.

    Returns
    -------
    pyarrow.Table
        One row per region: name, centre, size, loads, number of patients with a lesion in
        it, and Spearman's ρ of its load and the total lesion volume.
    """
    known: dict[str, list[dict[str, JSON]]] = {}
    for configuration in plan.configurations:
        truth = plan.groups[configuration.id].cohort.truth
        if truth is not None:
            rows = [{key: _joined(value) for key, value in line.items()} for line in truth.table]
            known.setdefault(json.dumps(rows, sort_keys=True), rows)
    lines = [line for rows in known.values() for line in rows]
    return pa.Table.from_pylist(lines) if lines else None


def _joined(value: JSON) -> JSON:
    return " ".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else value


def _facts(plan: Plan, configuration: Configuration, mlflow_run: str) -> dict[str, JSON]:
    sample = plan.groups[configuration.id].cohort.samples[0]
    own = [shlex.quote(f"{key}={text_of(value)}") for key, value in configuration.axes.items()]
    shared = [shlex.quote(text) for text in plan.request.shared if text.partition("=")[0] not in configuration.axes]
    version = importlib.metadata.version("harness")
    return {
        "subjects": len(plan.groups[configuration.id].cohort.subjects),
        "profile": configuration.profile,
        "data": plan.groups[configuration.id].cohort.name,
        "voxels": "x".join(map(str, sample.shape)),
        "spacing_mm": "x".join(f"{side:g}" for side in sample.spacing_mm or ()),
        "command": " ".join(["harness run", *shared, *own]),
        "cohort": configuration.fingerprint,
        "code": f"{version}+{digest('train', restored(configuration))[:8]}",
        "searched": _searched_text(plan, configuration),
        "mlflow_run": mlflow_run,
    }


def _searched_text(plan: Plan, configuration: Configuration) -> str:
    """Searched options of a row, empty without a search, and whether older code searched them."""
    own = [job.configuration.task.get("search", {}) for job in plan.jobs if job.row == configuration.id]
    older = any(search.get("reused_code") for search in own)
    return str(configuration.task.get("searched", "")) + ("; older code accepted" if older else "")
