"""Collect the tables of a run from the store."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from harness.core.space import text_of
from harness.core.task import Configuration, Task
from harness.core.types import JSON, Adapter
from harness.pipeline import leaderboard
from harness.pipeline.aggregate import Pooled, has_fixed_test, metric_facts, pool
from harness.pipeline.cell import digest, explanations_of, restored
from harness.pipeline.group_maps import agreement
from harness.pipeline.ranking import strata_of
from harness.pipeline.rows import MetricFacts, Row
from harness.sweep.plan import Plan

__all__ = ["Tables", "TargetTables", "agreements", "collect", "regions_of_interest"]


@dataclass(frozen=True)
class TargetTables:
    """Rankings of all configurations that predict one target.

    Parameters
    ----------
    prediction, explanation : Arrow tables, see :mod:`harness.pipeline.leaderboard`; the
        latter is ``None`` if there are no explanations
    """

    prediction: pa.Table
    explanation: pa.Table | None


@dataclass(frozen=True)
class Tables:
    """Result tables of a run.

    Parameters
    ----------
    prediction, explanation, regions : Arrow tables, see :mod:`harness.pipeline.leaderboard`
    pooled : rows of each configuration, by its id
    by_target : if configurations predict different sets of targets, the rankings of those
        that predict each target, by target; a network with several outputs has a row in
        each of them
    """

    prediction: pa.Table
    explanation: pa.Table
    regions: pa.Table
    pooled: Mapping[str, Pooled]
    by_target: Mapping[str, TargetTables] = field(default_factory=dict)

    @property
    def predictions_by_target(self) -> dict[str, pa.Table]:
        """Rankings of predictions in :attr:`by_target`."""
        return {target: one.prediction for target, one in self.by_target.items()}


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
    posed, asked = strata_of(rows, task.poses), _strata_of_maps(task, explained)
    return Tables(
        leaderboard.build(rows, measured, task.objective, strata=posed),
        leaderboard.build(explained, of_maps, task.explanation_objective, strata=asked),
        leaderboard.build_regions(regions, by_region),
        pooled,
        _by_target(plan, pooled, [one for one in measured if one.name in {*divided, task.objective}], of_maps),
    )


def _strata_of_maps(task: Task, explained: Sequence[Row]) -> tuple[str, ...]:
    """Columns that separate rankings of explanations."""
    found = strata_of(explained, task.poses)
    return tuple(name for name in found if name != "explained_scalar" or not task.ranks_scalars_together)


def _by_target(
    plan: Plan, pooled: Mapping[str, Pooled], measured: Sequence[MetricFacts], of_maps: Sequence[MetricFacts]
) -> dict[str, TargetTables]:
    """Rankings for each target that several configurations predict, beside different other targets.

    Options of the adapter can choose targets, but cannot change their values. So they do not
    pose another problem for a target that is predicted in any case.
    """
    targets = {one.id: _targets(plan, one) for one in plan.configurations}
    if len(set(targets.values())) < 2:
        return {}
    task, found = plan.request.task, {}

    def poses(axis: str) -> bool:
        return task.poses(axis) and not task.axes.get(axis, axis).startswith("adapter.")

    for name in dict.fromkeys(name for names in targets.values() for name in names):
        own = [key for key, names in targets.items() if name in names]
        if len(own) < 2:
            continue
        rows = [row for key in own for row in _rows_of_target(pooled[key], name, targets[key])]
        predicted, explained = ([row for row in rows if bool(row.attribution) is maps] for maps in (False, True))
        found[name] = TargetTables(
            leaderboard.build(predicted, measured, task.objective, strata=strata_of(predicted, poses)),
            leaderboard.build(explained, of_maps, task.explanation_objective, strata=strata_of(explained, poses))
            if explained
            else None,
        )
    return found


def _targets(plan: Plan, configuration: Configuration) -> tuple[str, ...]:
    """Names of the predicted targets with one value per sample."""
    adapter: Adapter = restored(configuration).adapter()
    spec = adapter.spec(plan.groups[configuration.id].cohort)
    return tuple(target.name for target in spec.targets if target.of_sample)


def _rows_of_target(pooled: Pooled, target: str, targets: Sequence[str]) -> Sequence[Row]:
    """Rows of one target: those of the configuration if it is the only one, otherwise those of the target alone."""
    rows = (pooled.prediction, *pooled.explanations) if len(targets) == 1 else pooled.regions.get(target, ())
    return [dataclasses.replace(row, explains={**row.explains, **_scalar(row, target)}) for row in rows]


def _scalar(row: Row, target: str) -> dict[str, JSON]:
    return {"explained_scalar": target} if "explained_scalar" in row.explains else {}


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
