"""Many cells: from a request to configurations, bundles and pooled rows."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import leaderboard
from harness.cell import Bundle, Cell, bundles, digest, missing
from harness.data.bids import write_phantom
from harness.data.cohort import open_cohort, save
from harness.data.splits import describe_validation
from harness.errors import RequestError, UnknownName
from harness.identity import code_digest, identify
from harness.pooling import Pooled, metric_facts, pool
from harness.seeding import generator
from harness.settings import RunSettings
from harness.space import grid
from harness.spec import Configuration, Task, describe, describe_part, modules_of, override, restore
from harness.registry import COHORTS, KINDS
from harness.store import CellRecord, Store, write_json
from harness.tuning.bundles import run_here, run_on_ray, session
from harness.types import JSON, Cohort, Split, View

__all__ = ["Group", "Plan", "Request", "Tables", "collect", "prepare", "recall", "run"]


@dataclass(frozen=True)
class Request:
    """What was asked for, resolved.

    Parameters
    ----------
    task : profile and single values applied
    axes : the grid
    seeds : of the trainings
    folds : indices to run; ``None`` for all
    profile : ``quick`` or ``paper``
    settings : how to run
    words : those that a row's own command repeats
    """

    task: Task
    axes: Mapping[str, tuple[JSON, ...]]
    seeds: tuple[int, ...]
    folds: tuple[int, ...] | None
    profile: str
    settings: RunSettings
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """One cohort and the folds drawn on it.

    Parameters
    ----------
    path : its table, which workers open
    cohort : opened
    """

    path: Path
    cohort: Cohort


@dataclass(frozen=True)
class Plan:
    """Everything a run will do.

    Parameters
    ----------
    request : what was asked for
    configurations : in the order of the grid
    groups : configuration id → cohort
    bundles : every training with all its cells, done or not
    store : where they go
    sentence : how validation subjects are drawn
    """

    request: Request
    configurations: tuple[Configuration, ...]
    groups: Mapping[str, Group]
    bundles: tuple[Bundle, ...]
    store: Store
    sentence: str

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort of the first configuration."""
        return self.groups[self.configurations[0].id].cohort

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of every bundle."""
        return tuple(cell for bundle in self.bundles for cell in bundle.cells)

    def missing(self) -> tuple[Bundle, ...]:
        """What the store does not hold.

        Where a training exists, each missing explanation is a bundle of its own.
        """
        found: list[Bundle] = []
        for bundle in self.bundles:
            rest = missing(bundle, self.store)
            if rest is None:
                continue
            if rest.cells[0].stage == "train":
                found.append(rest)
            else:
                labels = dict.fromkeys(cell.label for cell in rest.cells)
                found += [rest.only([cell for cell in rest.cells if cell.label == label]) for label in labels]
        return tuple(found)


@dataclass(frozen=True)
class Tables:
    """What a run is judged by.

    Parameters
    ----------
    prediction, explanation, regions : Arrow tables, see :mod:`harness.leaderboard`
    pooled : configuration id → its rows
    """

    prediction: object
    explanation: object
    regions: object
    pooled: Mapping[str, Pooled]


def prepare(request: Request, *, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Read the cohort, verify it, draw the folds and name every cell.

    Parameters
    ----------
    say : is told what takes time

    Raises
    ------
    CohortError
        With all faults.
    RequestError
        If the request does not fit the data.
    """
    tasks = [(point, _at(request.task, point)) for point in grid(request.axes)]
    read = _sequences([task for _, task in tasks])
    groups: dict[str, Group] = {}
    configurations: list[Configuration] = []
    by_configuration: dict[str, Group] = {}
    all_bundles: list[Bundle] = []
    sentence = ""
    for point, task in tasks:
        key = identify(describe_part(COHORTS, task.cohort))
        if key not in groups:
            groups[key] = _open(task, read, request.settings, say)
        group = groups[key]
        view: View = task.view()
        configuration = Configuration(
            json.loads(json.dumps(describe(task))),
            {**_columns(task), **point},
            request.profile,
            group.cohort.fingerprint(view.images, view.masks),
        )
        if configuration.id in by_configuration:
            raise RequestError(
                f"two points of the grid are the same configuration: {configuration.axes} repeats an earlier one; "
                "leave one of them out"
            )
        folds = draw_folds(task, group.cohort)
        sentence = sentence or describe_validation(folds, [(s.id, s.subject) for s in group.cohort.samples])
        _check_folds(request.folds, folds)
        configurations.append(configuration)
        by_configuration[configuration.id] = group
        all_bundles += bundles(configuration, folds, request.seeds, only_folds=request.folds)
    store = Store(request.settings.folder / "store")
    return Plan(request, tuple(configurations), by_configuration, tuple(all_bundles), store, sentence)


def run(
    plan: Plan,
    *,
    started: Callable[[Bundle], None] = lambda bundle: None,
    committed: Callable[[CellRecord], None] = lambda record: None,
) -> None:
    """Compute whatever is missing; returns when nothing more can be.

    Parameters
    ----------
    started : is told each bundle that begins
    committed : is told each record that is in the store
    """
    plan.store.sweep()
    _write_plan(plan)
    if plan.request.settings.accept_code:
        _adopt_older(plan)
    todo = plan.missing()
    if not todo:
        return
    paths = {key: group.path for key, group in plan.groups.items()}
    settings = plan.request.settings
    if settings.ray == "off":
        run_here(todo, paths, plan.store, committed=committed, started=started)
        return
    with session(settings):
        run_on_ray(
            plan.request.task.name, todo, paths, plan.store, settings, committed=committed, started=started
        )


def collect(plan: Plan, *, mlflow_runs: Mapping[str, str] | None = None) -> Tables:
    """Pool everything that is in the store."""
    pooled = {}
    for configuration in plan.configurations:
        own = [bundle for bundle in plan.bundles if bundle.configuration.id == configuration.id]
        facts = _facts(plan, configuration, (mlflow_runs or {}).get(configuration.id, ""))
        pooled[configuration.id] = pool(configuration, own, plan.store, facts=facts)
    task = plan.request.task
    rows = [one.prediction for one in pooled.values()]
    explained = [row for one in pooled.values() for row in one.explanations]
    names = dict.fromkeys(name for one in pooled.values() for name in one.regions)
    regions = {name: [one.regions[name] for one in pooled.values() if name in one.regions] for name in names}
    measured = metric_facts(task, ("subject", "pool"))
    return Tables(
        leaderboard.build(rows, measured, task.objective),
        leaderboard.build(explained, metric_facts(task, ("explanation",)), task.explanation_objective),
        leaderboard.build_regions(regions, [facts for facts in measured if facts.name in task.regional]),
        pooled,
    )


def recall(task_name: str, settings: RunSettings) -> Plan:
    """The plan of the latest run of a task, from the store alone.

    Raises
    ------
    RequestError
        If the store holds no run of this task.
    """
    store = Store(settings.folder / "store")
    latest = store.root / "plans" / f"{task_name}.json"
    if not latest.is_file():
        raise RequestError(f"{store.root} holds no run of {task_name}; run it first: harness run task={task_name}")
    saved = json.loads(latest.read_text())
    configurations = tuple(store.configuration(identity) for identity in saved["configurations"])
    groups = {key: Group(Path(path), open_cohort(Path(path))) for key, path in saved["cohorts"].items()}
    by_id = {configuration.id: configuration for configuration in configurations}
    found = tuple(
        Bundle(
            by_id[one["configuration"]],
            Split(**{key: tuple(value) for key, value in one["split"].items()}),
            one["fold"],
            one["seed"],
            one["train"],
            tuple(Cell(**cell) for cell in one["cells"]),
        )
        for one in saved["bundles"]
    )
    settings = dataclasses.replace(settings, data=saved["data"])
    request = Request(
        restore(configurations[0].task), {}, tuple(saved["seeds"]), None, saved["profile"], settings, tuple(saved["words"])
    )
    return Plan(request, configurations, groups, found, store, saved["sentence"])


def draw_folds(task: Task, cohort: Cohort) -> tuple[Split, ...]:
    """The folds of a cohort; the same for every seed, so that seeds differ in training alone."""
    samples = [(sample.id, sample.subject) for sample in cohort.samples]
    folds: tuple[Split, ...] = task.split(samples, seed=0)
    return folds


def _at(task: Task, point: Mapping[str, JSON]) -> Task:
    for key, value in point.items():
        task = override(task, key, value)
    return task


def _columns(task: Task) -> dict[str, JSON]:
    """The axes that every row shows, with their present values."""
    described = describe(task)
    found: dict[str, JSON] = {}
    for name in task.columns:
        part, _, option = task.axes.get(name, name).partition(".")
        found[name] = described[part][option] if option else described[part]["use"]
    return found


def _sequences(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Every image that any configuration reads, so that all share one cohort."""
    return tuple(sorted({name for task in tasks for name in task.view().images}))


def _open(task: Task, sequences: tuple[str, ...], settings: RunSettings, say: Callable[[str], None]) -> Group:
    root = settings.data_folder
    if root is None:
        root = phantom_folder(task, settings)
        if not root.exists():
            say(f"generating {task.phantom_subjects} subjects with known truth in {root}")
            generate(task, root)
    say(f"reading and verifying {root}")
    cohort: Cohort = task.cohort(
        root, settings.folder / "cache", sequences=sequences, exclude=settings.exclude, minimum=3
    )
    content = "\n".join([cohort.name, cohort.fingerprint(sequences, ("target", "brain", "regions"))])
    path = settings.folder / "cohorts" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(cohort, path)
    return Group(path, cohort)


def phantom_folder(task: Task, settings: RunSettings) -> Path:
    """Where a task's generated cohort lies; named by all that determines it."""
    what = {
        "phantom": describe_part(KINDS["phantom"], task.phantom),
        "subjects": task.phantom_subjects,
        "seed": task.phantom_seed,
        "code": code_digest(modules_of(task.phantom)),
    }
    return settings.folder / "phantoms" / f"{task.name}-{identify(what)[:10]}"


def generate(task: Task, root: Path) -> None:
    """Write a task's generated cohort as a BIDS folder."""
    subjects = (task.phantom(task.phantom_seed, number) for number in range(task.phantom_subjects))
    described = describe_part(KINDS["phantom"], task.phantom)
    write_phantom(root, subjects, name=f"{task.name} phantom", generated_by={"Name": "harness", "Parameters": described})


def _check_folds(asked: tuple[int, ...] | None, folds: Sequence[Split]) -> None:
    for fold in asked or ():
        if not 0 <= fold < len(folds):
            raise UnknownName("fold", str(fold), [str(number) for number in range(len(folds))])


def _facts(plan: Plan, configuration: Configuration, mlflow_run: str) -> dict[str, JSON]:
    sample = plan.groups[configuration.id].cohort.samples[0]
    x, y, z = sample.masks["target"].shape
    words = [f"{key}={_word(value)}" for key, value in configuration.axes.items()]
    given = [word for word in plan.request.words if word.partition("=")[0] not in configuration.axes]
    version = importlib.metadata.version("harness")
    return {
        "subjects": len(plan.groups[configuration.id].cohort.subjects),
        "profile": configuration.profile,
        "data": plan.groups[configuration.id].cohort.name,
        "voxels": f"{x}x{y}x{z}",
        "spacing_mm": "x".join(f"{side:g}" for side in sample.spacing_mm),
        "command": " ".join(["harness run", *given, *words]),
        "cohort": configuration.fingerprint,
        "code": f"{version}+{digest('train', plan.request.task)[:8]}",
        "mlflow_run": mlflow_run,
    }


def _word(value: JSON) -> str:
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return f"'{text}'" if any(letter in text for letter in " ,()[]{}") else text


def _write_plan(plan: Plan) -> None:
    """Write down what was asked for, so that the table can be rebuilt from the store alone."""
    for configuration in plan.configurations:
        plan.store.remember(configuration)
    content: dict[str, JSON] = {
        "configurations": [configuration.id for configuration in plan.configurations],
        "cohorts": {key: str(group.path) for key, group in plan.groups.items()},
        "bundles": [
            {
                "configuration": bundle.configuration.id,
                "split": dataclasses.asdict(bundle.split),
                "fold": bundle.fold,
                "seed": bundle.seed,
                "train": bundle.train,
                "cells": [dataclasses.asdict(cell) for cell in bundle.cells],
            }
            for bundle in plan.bundles
        ],
        "seeds": list(plan.request.seeds),
        "profile": plan.request.profile,
        "data": plan.request.settings.data,
        "words": list(plan.request.words),
        "sentence": plan.sentence,
    }
    write_json(plan.store.root / "plans" / f"{plan.request.task.name}.json", content)


def _adopt_older(plan: Plan) -> None:
    """Take records of older code for cells of today's, flagged."""
    for stage in ("train", "explain", "score"):
        older = {record.body: record for record in plan.store.records(stage)}
        for cell in plan.cells:
            if cell.stage == stage and plan.store.get(stage, cell.identity) is None and cell.body in older:
                plan.store.adopt(older[cell.body], cell.identity)


def cells_of(plan: Plan, configuration: Configuration) -> Iterator[Cell]:
    """The cells of one configuration."""
    return (cell for cell in plan.cells if cell.configuration == configuration.id)
