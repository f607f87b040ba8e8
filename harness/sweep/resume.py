"""Save and load the plans of runs, and adopt results of older code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import RequestError, StoreError, UnknownName, first_line
from harness.core.passwords import command_of, without_password
from harness.core.settings import RunSettings
from harness.core.task import Configuration, restore
from harness.core.types import JSON, Split
from harness.data.table import open_cohort
from harness.pipeline.cell import Cell, Job
from harness.storage.store import CellRecord, Stage, Store, open_store
from harness.sweep.cohorts import Group
from harness.sweep.plan import Plan, Request

__all__ = ["KnownRun", "adopt_older", "known_runs", "latest_run", "recall", "run_names", "write_plan"]

_LATEST = "latest"  # file beside the plans that names the latest run


@dataclass(frozen=True)
class KnownRun:
    """A run whose plan is in the store.

    Parameters
    ----------
    name : name of its tables, report and plan
    command : command that repeats it
    profile : ``quick`` or ``paper``
    configurations : number of configurations
    """

    name: str
    command: str
    profile: str
    configurations: int


def recall(task_name: str, settings: RunSettings, *, name: str = "") -> Plan:
    """Load the plan of a run from the store.

    Parameters
    ----------
    task_name : name of the task
    settings : settings with the folder of the store
    name : name of the run; by default, the latest run of the task

    Raises
    ------
    RequestError
        If the store has no run of this task.
    UnknownName
        If it has runs of this task, but none with this name.
    StoreError
        If the plan cannot be read.
    """
    store = open_store(settings)
    names = run_names(store, task_name)
    if not names:
        raise RequestError(f"{store} has no run of {task_name}; start one: harness run task={task_name}")
    name = name or latest_run(store, task_name)
    if name not in names:
        raise UnknownName(f"run of {task_name} in {store}", name, names)
    try:
        return _plan_of(json.loads(store.place.read(_plan_name(task_name, name))), settings, store, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise StoreError(
            f"{store.place.locate(_plan_name(task_name, name))} cannot be read ({first_line(error)}); repeat the "
            "command of the run, which writes it again"
        ) from error


def _plan_of(saved: JSON, settings: RunSettings, store: Store, name: str) -> Plan:
    """The plan that :func:`write_plan` saved."""
    by_id = {identity: Configuration(**one) for identity, one in saved["configurations"].items()}
    configurations = tuple(by_id[identity] for identity in saved["rows"])
    groups = {key: Group(Path(path), open_cohort(Path(path))) for key, path in saved["cohorts"].items()}
    found = tuple(
        Job(
            by_id[one["configuration"]],
            Split(**{key: tuple(value) for key, value in one["split"].items()}),
            one["fold"],
            one["seed"],
            tuple(one["trainings"]),
            tuple(_cell(cell) for cell in one["cells"]),
            one["search"],
        )
        for one in saved["jobs"]
    )
    settings = dataclasses.replace(settings, data=saved["data"], pseudonymise=saved.get("pseudonymise", False))
    request = Request(
        restore(configurations[0].task),
        (),
        tuple(saved["seeds"]),
        None,
        saved["profile"],
        settings,
        tuple(map(without_password, saved["shared"])),
        name=saved["name"],
        typed=tuple(map(without_password, saved["typed"])),  # earlier versions kept some passwords
    )
    return Plan(
        request, configurations, groups, found, store, saved["sentence"], remarks=tuple(saved.get("remarks", ()))
    )


def _cell(saved: JSON) -> Cell:
    lists = {"parents": tuple(saved["parents"]), "metrics": tuple((label, one) for label, one in saved["metrics"])}
    return Cell(**{**saved, **lists})


def run_names(store: Store, task_name: str) -> list[str]:
    """Names of the runs of a task whose plans are in a store, in alphabetical order."""
    found = store.place.names(f"plans/{task_name}")
    return [name.removesuffix(".json") for name in found if name.endswith(".json")]


def known_runs(store: Store, task_name: str) -> list[KnownRun]:
    """The runs of a task whose plans are in a store, in alphabetical order of their names."""
    found = []
    for name in run_names(store, task_name):
        saved = json.loads(store.place.read(_plan_name(task_name, name)))
        command = command_of(saved["typed"])
        found.append(KnownRun(name, command, saved["profile"], len(saved["rows"])))
    return found


def latest_run(store: Store, task_name: str) -> str:
    """Name of the most recently started run of a task; empty if there is none."""
    try:
        return store.place.read(f"plans/{task_name}/{_LATEST}").strip()
    except FileNotFoundError:
        return ""


def _plan_name(task_name: str, name: str) -> str:
    return f"plans/{task_name}/{name}.json"


def write_plan(plan: Plan) -> None:
    """Save a plan, so that the tables can be rebuilt from the store alone."""
    configurations = {one.id: one for one in (*plan.configurations, *(job.configuration for job in plan.jobs))}
    for configuration in configurations.values():
        plan.store.remember(configuration)
    for job in plan.jobs:
        if "search" in job.configuration.task:
            # Its cells have the id of the row; loading the weights requires the options that the search chose.
            plan.store.keep(f"configurations/{job.train}.json", dataclasses.asdict(job.configuration))
    content: dict[str, JSON] = {
        "rows": [configuration.id for configuration in plan.configurations],
        # In full, because another run may share a configuration with other metrics and attributions.
        "configurations": {identity: dataclasses.asdict(one) for identity, one in configurations.items()},
        "cohorts": {key: str(group.path) for key, group in plan.groups.items()},
        "jobs": [
            {
                "configuration": job.configuration.id,
                "split": dataclasses.asdict(job.split),
                "fold": job.fold,
                "seed": job.seed,
                "trainings": job.trainings,
                "cells": [dataclasses.asdict(cell) for cell in job.cells],
                "search": job.search,
            }
            for job in plan.jobs
        ],
        "seeds": list(plan.request.seeds),
        "profile": plan.request.profile,
        "data": plan.request.settings.data,
        "pseudonymise": plan.request.settings.pseudonymise,
        "shared": list(plan.request.shared),
        "name": plan.request.name,
        "typed": list(plan.request.typed),
        "sentence": plan.sentence,
        "remarks": list(plan.remarks),
    }
    task_name = plan.request.task.name
    plan.store.keep(_plan_name(task_name, plan.request.name), content)
    plan.store.place.replace(
        f"plans/{task_name}/{_LATEST}", f"{plan.request.name}\n"
    )  # last, so that it never names a missing plan


def adopt_older(plan: Plan) -> None:
    """Adopt results of older code for missing cells, with a flag.

    A result is adopted only together with the results it was computed from: maps of an
    older training do not belong to a network that was trained again. Of several older
    results, the most recent is adopted.
    """
    stages = {cell.identity: cell.stage for cell in plan.cells}
    for stage in ("train", "predict", "explain"):
        older: dict[str, list[CellRecord]] = {}
        for record in sorted(plan.store.records(stage), key=plan.store.written, reverse=True):
            older.setdefault(record.body, []).append(record)
        for cell in plan.cells:
            if cell.stage == stage and plan.store.get(stage, cell.identity) is None:
                parents = [(stages[identity], identity) for identity in cell.parents]
                fitting = [one for one in older.get(cell.body, ()) if _came_from(plan.store, one, parents)]
                if fitting:
                    plan.store.adopt(fitting[0], cell.identity, code=cell.code, parents=cell.parents)


def _came_from(store: Store, record: CellRecord, parents: Sequence[tuple[Stage, str]]) -> bool:
    """Whether a record was computed from the same artifacts as those of its present parents."""
    if len(parents) != len(record.parents):
        return False
    for (stage, identity), before in zip(parents, record.parents, strict=True):
        now, then = store.get(stage, identity), store.get(stage, before)
        if now is None or then is None or dict(now.artifacts) != dict(then.artifacts):
            return False
    return True
