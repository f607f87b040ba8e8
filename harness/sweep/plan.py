"""Many cells: from a request to configurations, jobs and pooled rows."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.identity import code_digest, identify
from harness.core.registry import COHORTS, KINDS, OUTCOMES
from harness.core.settings import RunSettings
from harness.core.space import Dimension, grid, text_of
from harness.core.task import (
    Configuration,
    Task,
    allowed,
    describe,
    describe_part,
    modules_of,
    override,
    preset,
    restore,
)
from harness.core.types import JSON, Cohort, Split, View
from harness.data.bids import write_phantom
from harness.data.cohort import open_cohort, save
from harness.data.splits import describe_validation
from harness.pipeline import leaderboard
from harness.pipeline.aggregate import Pooled, metric_facts, pool
from harness.pipeline.cell import Cell, Job, attributions_of, digest, is_grouped, jobs, missing, restored
from harness.pipeline.group_maps import agreement
from harness.pipeline.ranking import strata_of
from harness.storage.files import replace_file
from harness.storage.store import CellRecord, Store, write_json, write_record
from harness.tuning.jobs import run_here, run_on_ray, session
from harness.tuning.nested import Search, plan_search
from harness.tuning.search import Chosen, as_chosen, perform, recorded
from harness.tuning.spaces import describe_space, fit_space

__all__ = [
    "Group",
    "Plan",
    "Request",
    "Tables",
    "agreements",
    "at",
    "collect",
    "idle_error",
    "idle_options",
    "latest_run",
    "prepare",
    "recall",
    "regions_of_interest",
    "run",
    "run_names",
]

_LATEST = "latest"  # file beside the plans that names the latest run


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
    space : dimensions of the search, by full keys
    search : ``optuna``, or empty for none
    name : of its tables, report and plan (:func:`harness.sweep.naming.run_name`)
    typed : all overrides of the command, as they were typed
    """

    task: Task
    axes: Mapping[str, tuple[JSON, ...]]
    seeds: tuple[int, ...]
    folds: tuple[int, ...] | None
    profile: str
    settings: RunSettings
    words: tuple[str, ...] = ()
    space: tuple[Dimension, ...] = ()
    search: str = ""
    name: str = ""
    typed: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command, to be repeated."""
        return shlex.join(["harness", "run", *self.typed])

    @property
    def leaderboard_path(self) -> Path:
        """The CSV file of the leaderboard; other tables of the run lie beside it, ``<name>-<what>.csv``."""
        return self.settings.folder / "leaderboards" / self.task.name / f"{self.name}.csv"

    @property
    def report_folder(self) -> Path:
        """The folder of the report, ``index.html`` and its figures."""
        return self.settings.folder / "reports" / self.task.name / self.name


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
    groups : configuration id → cohort, also of those that a search has chosen
    jobs : every training with all its cells, done or not
    store : where they go
    sentence : how validation subjects are drawn
    searches : that must still be made; their jobs are :meth:`~harness.pipeline.cell.Job.awaiting` them
    """

    request: Request
    configurations: tuple[Configuration, ...]
    groups: Mapping[str, Group]
    jobs: tuple[Job, ...]
    store: Store
    sentence: str
    searches: tuple[Search, ...] = ()

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort of the first configuration."""
        return self.groups[self.configurations[0].id].cohort

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of every job."""
        return tuple(cell for job in self.jobs for cell in job.cells)

    def missing(self) -> tuple[Job, ...]:
        """What the store does not hold.

        Where a training exists, each missing explanation is a job of its own.
        """
        found: list[Job] = []
        for job in self.jobs:
            rest = missing(job, self.store)
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
    prediction, explanation, regions : Arrow tables, see :mod:`harness.pipeline.leaderboard`
    pooled : configuration id → its rows
    """

    prediction: pa.Table
    explanation: pa.Table
    regions: pa.Table
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

    Notes
    -----
    Searches that the store holds are applied here, so that the plan of a
    command that was run before is the plan that was run.
    """
    settings, store = request.settings, Store(request.settings.folder / "store")
    tasks = [(point, at(request.task, point)) for point in points(request.task, request.axes)]
    read = _sequences([task for _, task in tasks])
    cohorts: dict[str, Cohort] = {}
    groups: dict[str, Group] = {}
    tuning: dict[str, Group] = {}
    searches: dict[str, Search] = {}
    configurations: list[Configuration] = []
    by_configuration: dict[str, Group] = {}
    all_jobs: list[Job] = []
    sentence = ""
    for point, task in tasks:
        read_as = identify([describe_part(COHORTS, task.cohort), str(_root(task, settings))])
        key = identify([read_as, None if task.outcome is None else describe_part(OUTCOMES, task.outcome)])
        if key not in groups:
            if read_as not in cohorts:
                cohorts[read_as] = _open(task, read, settings, say)
            groups[key] = tuning[key] = _saved(_with_outcome(task, cohorts[read_as], settings), settings, read)
            if request.search and settings.search_subjects:
                groups[key], tuning[key] = _apart(groups[key], settings, read)
        group = groups[key]
        view: View = task.view()
        configuration = Configuration(
            json.loads(json.dumps({**describe(task), **_searched(request, task)})),
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
        for job in jobs(configuration, folds, request.seeds, only_folds=request.folds):
            if request.search:
                search = _search_of(job, request, tuning[key])
                chosen = recorded(store, search, accept_code=settings.accept_code)
                if chosen is None:
                    searches[search.identity] = search
                    job = job.awaiting(search.identity)
                else:
                    job = job.settled(as_chosen(configuration, chosen))
                by_configuration[job.configuration.id] = group
            all_jobs.append(job)
    return Plan(
        request,
        tuple(configurations),
        by_configuration,
        tuple(all_jobs),
        store,
        sentence,
        tuple(searches.values()),
    )


def run(
    plan: Plan,
    *,
    seconds: Mapping[str, float] | None = None,
    started: Callable[[Job], None] = lambda job: None,
    committed: Callable[[CellRecord], None] = lambda record: None,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compute whatever is missing; returns when nothing more can be.

    Parameters
    ----------
    seconds : what each training is thought to take, by its identity; the longest begin
        first, so that no worker is left with a long one at the end
    started : is told each job that begins
    committed : is told each record that is in the store, and each failure
    say : is told what a search has found

    Returns
    -------
    Plan
        The plan that was run: searches come first, and their jobs get the
        values that they chose. A search that failed leaves its jobs as they
        were, with the failure on their trainings.
    """
    plan.store.sweep()
    _write_plan(plan)
    settings = plan.request.settings
    if settings.accept_code:
        _adopt_older(plan)
    if not plan.missing():
        return plan
    with contextlib.nullcontext() if settings.ray == "off" else session(settings):
        if plan.searches:
            plan = _search(plan, committed, say)
            _write_plan(plan)
            if settings.accept_code:
                _adopt_older(plan)
        guess = seconds or {}
        todo = [job for job in plan.missing() if not job.search]
        todo.sort(key=lambda job: -guess.get(job.train, 0.0))
        paths = {key: group.path for key, group in plan.groups.items()}
        if todo and settings.ray == "off":
            run_here(todo, paths, plan.store, committed=committed, started=started)
        elif todo:
            run_on_ray(plan.request.task.name, todo, paths, plan.store, settings, committed=committed, started=started)
    return plan


def collect(plan: Plan, *, mlflow_runs: Mapping[str, str] | None = None) -> Tables:
    """Pool everything that is in the store."""
    pooled = {}
    for configuration in plan.configurations:
        own = [job for job in plan.jobs if job.row == configuration.id]
        facts = _facts(plan, configuration, (mlflow_runs or {}).get(configuration.id, ""))
        cohort = plan.groups[configuration.id].cohort
        pooled[configuration.id] = pool(configuration, own, cohort, plan.store, facts=facts)
    task = plan.request.task
    rows = [one.prediction for one in pooled.values()]
    explained = [row for one in pooled.values() for row in one.explanations]
    names = dict.fromkeys(name for one in pooled.values() for name in one.regions)
    regions = {name: [row for one in pooled.values() for row in one.regions.get(name, ())] for name in names}
    measured, of_maps = metric_facts(task, ("subject", "pool")), metric_facts(task, ("explanation",))
    by_region = [facts for facts in measured if facts.name in task.regional]
    by_region += of_maps if is_grouped(task) else ()
    strata = strata_of(rows, task.poses)
    return Tables(
        leaderboard.build(rows, measured, task.objective, strata=strata),
        leaderboard.build(explained, of_maps, task.explanation_objective, strata=strata),
        leaderboard.build_regions(regions, by_region),
        pooled,
    )


def agreements(plan: Plan) -> pa.Table | None:
    """How alike the group maps of every two attributions are; ``None`` where maps are judged one by one.

    Returns
    -------
    pyarrow.Table
        The axes, ``output``, ``first``, ``second``, ``pearson``, ``configuration``.
    """
    if not is_grouped(plan.request.task):
        return None
    lines = []
    for configuration in plan.configurations:
        labels = list(attributions_of(restored(configuration)))
        own = [job for job in plan.jobs if job.row == configuration.id]
        cells = [cell for job in own for cell in job.cells if cell.stage == "explain"]
        for one in agreement(configuration, cells, plan.store, labels=labels):
            lines.append({**configuration.axes, **dataclasses.asdict(one), "configuration": configuration.id})
    return pa.Table.from_pylist(lines) if lines else None


def regions_of_interest(plan: Plan) -> pa.Table | None:
    """Where the signal of simulated scores lies; ``None`` where there is no such truth.

    Returns
    -------
    pyarrow.Table
        One line per region: name, centre, size, loads, how many patients touch it,
        Spearman's ρ of its load and the total volume.
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


def recall(task_name: str, settings: RunSettings, *, name: str = "") -> Plan:
    """The plan of a run, from the store alone.

    Parameters
    ----------
    task_name : of the task
    settings : say where the store is
    name : of the run; the latest of the task by default

    Raises
    ------
    RequestError
        If the store holds no run of this task.
    UnknownName
        If it holds others, but none of this name.
    """
    store = Store(settings.folder / "store")
    plans, names = store.root / "plans" / task_name, run_names(store, task_name)
    if not names:
        raise RequestError(f"{store.root} holds no run of {task_name}; run it first: harness run task={task_name}")
    name = name or latest_run(store, task_name)
    if name not in names:
        raise UnknownName(f"run of {task_name} in {store.root}", name, names)
    saved = json.loads((plans / f"{name}.json").read_text())
    by_id = {identity: Configuration(**one) for identity, one in saved["configurations"].items()}
    configurations = tuple(by_id[identity] for identity in saved["rows"])
    groups = {key: Group(Path(path), open_cohort(Path(path))) for key, path in saved["cohorts"].items()}
    found = tuple(
        Job(
            by_id[one["configuration"]],
            Split(**{key: tuple(value) for key, value in one["split"].items()}),
            one["fold"],
            one["seed"],
            one["train"],
            tuple(Cell(**cell) for cell in one["cells"]),
            one.get("search", ""),
        )
        for one in saved["jobs"]
    )
    settings = dataclasses.replace(settings, data=saved["data"])
    request = Request(
        restore(configurations[0].task),
        {},
        tuple(saved["seeds"]),
        None,
        saved["profile"],
        settings,
        tuple(saved["words"]),
        name=saved["name"],
        typed=tuple(saved["typed"]),
    )
    return Plan(request, configurations, groups, found, store, saved["sentence"])


def run_names(store: Store, task_name: str) -> list[str]:
    """Names of the runs of a task whose plans a store holds, in alphabetical order."""
    plans = store.root / "plans" / task_name
    return sorted(path.name.removesuffix(".json") for path in plans.glob("[!.]*.json"))


def latest_run(store: Store, task_name: str) -> str:
    """Name of the run of a task that was started last; empty if there is none."""
    path = store.root / "plans" / task_name / _LATEST
    return path.read_text().strip() if path.is_file() else ""


def draw_folds(task: Task, cohort: Cohort) -> tuple[Split, ...]:
    """The folds of a cohort; the same for every seed, so that seeds differ in training alone."""
    samples = [(sample.id, sample.subject) for sample in cohort.samples]
    folds: tuple[Split, ...] = task.split(samples, seed=0)
    return folds


def points(task: Task, axes: Mapping[str, tuple[JSON, ...]]) -> list[dict[str, JSON]]:
    """The points of a grid, each without the options that the part chosen there does not have.

    ``model=cnn,mass_univariate model.statistic=t,welch`` is three points: one of the
    CNN, and two of the other. Of a measured score nothing is simulated.

    Raises
    ------
    UnknownName
        If no part that is chosen anywhere has an option.
    RequestError
        If an option of simulated scores meets measured ones only.
    """
    found: list[dict[str, JSON]] = []
    wanted = set(axes)
    for point in grid(axes):
        own = {key: value for key, value in point.items() if _applies(task, point, key)}
        idle = idle_options(at(task, own))
        own = {key: value for key, value in own.items() if task.axes.get(key, key) not in idle}
        wanted -= set(own)
        if own not in found or len(own) == len(point):
            found.append(own)
    if wanted:  # says which options there are
        at(task, next(iter(grid(axes))))
        raise idle_error(wanted)
    return found


def idle_error(keys: Iterable[str]) -> RequestError:
    """What is said of words that :func:`idle_options` names."""
    return RequestError(
        f"{', '.join(sorted(keys))} must be left out (or the experiment that sets it): a measured score is what it is, "
        "and only simulated ones have regions, noise and designs"
    )


def idle_options(task: Task) -> frozenset[str]:
    """Options of the outcome, as ``outcome.NAME``, that mean nothing where it is measured."""
    if task.outcome is None:
        return frozenset()
    facts = OUTCOMES.get(OUTCOMES.name_of(task.outcome.func)).facts
    described, measured = describe_part(OUTCOMES, task.outcome), facts.get("measured", "")
    if not measured or not described[measured]:
        return frozenset()
    return frozenset(
        f"outcome.{name}" for name in described if name not in ("use", measured, *facts.get("of_measured", ()))
    )


def _applies(task: Task, point: Mapping[str, JSON], key: str) -> bool:
    """Whether what is set at a point exists there."""
    head, _, option = task.axes.get(key, key).partition(".")
    chosen = [name for name in point if task.axes.get(name, name) == head]
    if not option or not chosen:
        return True
    return option in allowed(getattr(override(task, chosen[0], point[chosen[0]]), head))


def at(task: Task, point: Mapping[str, JSON]) -> Task:
    """The task at a point of the grid; a part is chosen before its options are set."""
    parts = [key for key in point if "." not in task.axes.get(key, key)]
    for key in parts:
        task = override(task, key, point[key])
    task = preset(task, but=[task.axes.get(key, key) for key in point])
    for key in point:
        if key not in parts:
            task = override(task, key, point[key])
    return task


def _columns(task: Task) -> dict[str, JSON]:
    """The axes that every row shows, with their present values."""
    described, idle = describe(task), idle_options(task)
    found: dict[str, JSON] = {}
    for name in task.columns:
        key = task.axes.get(name, name)
        part, _, option = key.partition(".")
        if key not in idle:
            found[name] = described[part][option] if option else described[part]["use"]
    return found


def _sequences(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Every image that any configuration reads, so that all share one cohort."""
    return tuple(sorted({name for task in tasks for name in task.view().images}))


def _open(task: Task, sequences: tuple[str, ...], settings: RunSettings, say: Callable[[str], None]) -> Cohort:
    root = _root(task, settings)
    if settings.data_folder is None and not root.exists():
        say(f"generating {task.phantom_subjects} subjects with known truth in {root}")
        try:
            generate(task, root)
        except OSError:
            if not root.exists():  # else another run has made the same cohort meanwhile
                raise
    say(f"reading and verifying {root}")
    cohort: Cohort = task.cohort(
        root, settings.folder / "cache", sequences=sequences, exclude=settings.exclude, minimum=3
    )
    return cohort


def _with_outcome(task: Task, cohort: Cohort, settings: RunSettings) -> Cohort:
    """The cohort with the numbers to predict, if the task predicts numbers."""
    if task.outcome is None:
        return cohort
    made: Cohort = task.outcome(cohort, settings.folder / "cache")
    return made


def _saved(cohort: Cohort, settings: RunSettings, sequences: tuple[str, ...]) -> Group:
    """Write a cohort's table where workers find it."""
    masks = tuple(sorted({name for sample in cohort.samples for name in sample.masks}))
    clean = identify([dict(sample.clean) for sample in cohort.samples])
    truth = cohort.truth.fingerprint if cohort.truth else ""
    content = "\n".join([cohort.name, cohort.fingerprint(sequences, masks), clean, truth])
    path = settings.folder / "cohorts" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(cohort, path)
    return Group(path, cohort)


def _apart(group: Group, settings: RunSettings, sequences: tuple[str, ...]) -> tuple[Group, Group]:
    """The cohort that is evaluated, and the subjects on which the search runs."""
    known = group.cohort.subjects
    wished = [name if name in known or name.startswith("sub-") else f"sub-{name}" for name in settings.search_subjects]
    for name in wished:
        if name not in known:
            raise UnknownName("subject of the cohort (search_subjects)", name, known)
    samples = group.cohort.samples
    chosen = tuple(sample for sample in samples if sample.subject in wished)
    rest = tuple(sample for sample in samples if sample.subject not in wished)
    if len(known) - len(set(wished)) < 3:
        raise OutOfRange(
            f"subjects >= 3 must be left for the evaluation, got {len(known) - len(set(wished))} of {len(known)} "
            f"without search_subjects={','.join(wished)}; name fewer, or leave the word out to search within each fold"
        )
    evaluated, tuning = (dataclasses.replace(group.cohort, samples=part) for part in (rest, chosen))
    return _saved(evaluated, settings, sequences), _saved(tuning, settings, sequences)


def _search_of(job: Job, request: Request, group: Group) -> Search:
    """The search that chooses the options of a training: its fold's own, or the one that serves all."""
    once = bool(request.settings.search_subjects)
    samples = [sample.id for sample in group.cohort.samples] if once else job.split.train
    return plan_search(
        job.configuration,
        request.space,
        group.cohort,
        group.path,
        samples,
        fold=-1 if once else job.fold,
        # Seeds repeat trainings; one search that serves all has one of its own.
        seed=0 if once else job.seed,
        trials=request.settings.trials,
    )


def _searched(request: Request, task: Task) -> dict[str, JSON]:
    """What a searched configuration says of itself; it tells the row from one that was not searched."""
    if not request.search:
        return {}
    fit_space(task, request.space)
    settings = request.settings
    return {"searched": describe_space(request.space, trials=settings.trials, subjects=settings.search_subjects)}


def _searched_text(plan: Plan, configuration: Configuration) -> str:
    """What was searched for a row, empty for nothing, and whether older code did it."""
    own = [job.configuration.task.get("search", {}) for job in plan.jobs if job.row == configuration.id]
    older = any(search.get("reused_code") for search in own)
    return str(configuration.task.get("searched", "")) + ("; older code accepted" if older else "")


def _search(plan: Plan, committed: Callable[[CellRecord], None], say: Callable[[str], None]) -> Plan:
    """Make the missing searches; the same plan with what they chose."""
    settings, seen = plan.request.settings, 0

    def found(search: Search, chosen: Chosen) -> None:
        nonlocal seen
        seen += 1
        point = " ".join(f"{key}={value}" for key, value in search.configuration.axes.items())
        where = f"fold {search.fold} seed {search.seed}" if search.fold >= 0 else "all folds"
        say(f"search {seen} of {len(plan.searches)}, {point}, {where}: {chosen} in {chosen.seconds:.1f} s")

    say(f"searching {describe_space(plan.request.space, trials=settings.trials, subjects=settings.search_subjects)}")
    results = perform(plan.searches, plan.store, settings, found=found)
    groups, made = dict(plan.groups), []
    for job in plan.jobs:
        chosen = results.get(job.search)
        if chosen is not None and chosen.error:
            committed(_failed(plan.store, job, chosen))
        elif chosen is not None:
            group = groups[job.configuration.id]
            job = job.settled(as_chosen(job.configuration, chosen))
            groups[job.configuration.id] = group
        made.append(job)
    return dataclasses.replace(plan, groups=groups, jobs=tuple(made), searches=())


def _failed(store: Store, job: Job, chosen: Chosen) -> CellRecord:
    """The failure of a training whose options no search could choose."""
    record = CellRecord(job.train, "train", "failed", job.row, job.fold, job.seed, error=chosen.error)
    with tempfile.TemporaryDirectory(prefix="harness-cell-") as name:
        write_record(Path(name), record)
        return store.commit(Path(name))


def _root(task: Task, settings: RunSettings) -> Path:
    """The folder that a task's cohort is read from."""
    return settings.data_folder or phantom_folder(task, settings)


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
    phantoms = KINDS["phantom"]
    described = describe_part(phantoms, task.phantom)
    facts = phantoms.get(described["use"]).facts
    sources = {facts["target"]: (facts["label_source"],)} if "label_source" in facts else {}
    write_phantom(
        root,
        subjects,
        name=f"{task.name} phantom",
        label_sources=sources,
        generated_by={"Name": "harness", "Parameters": described},
    )


def _check_folds(asked: tuple[int, ...] | None, folds: Sequence[Split]) -> None:
    for fold in asked or ():
        if not 0 <= fold < len(folds):
            raise UnknownName("fold", str(fold), [str(number) for number in range(len(folds))])


def _facts(plan: Plan, configuration: Configuration, mlflow_run: str) -> dict[str, JSON]:
    sample = plan.groups[configuration.id].cohort.samples[0]
    x, y, z = sample.shape
    words = [shlex.quote(f"{key}={text_of(value)}") for key, value in configuration.axes.items()]
    given = [shlex.quote(word) for word in plan.request.words if word.partition("=")[0] not in configuration.axes]
    version = importlib.metadata.version("harness")
    return {
        "subjects": len(plan.groups[configuration.id].cohort.subjects),
        "profile": configuration.profile,
        "data": plan.groups[configuration.id].cohort.name,
        "voxels": f"{x}x{y}x{z}",
        "spacing_mm": "x".join(f"{side:g}" for side in sample.spacing_mm),
        "command": " ".join(["harness run", *given, *words]),
        "cohort": configuration.fingerprint,
        "code": f"{version}+{digest('train', restored(configuration))[:8]}",
        "searched": _searched_text(plan, configuration),
        "mlflow_run": mlflow_run,
    }


def _write_plan(plan: Plan) -> None:
    """Write down what was asked for, so that the table can be rebuilt from the store alone."""
    configurations = {one.id: one for one in (*plan.configurations, *(job.configuration for job in plan.jobs))}
    for configuration in configurations.values():
        plan.store.remember(configuration)
    for job in plan.jobs:
        if "search" in job.configuration.task:
            # Its cells carry the row's id; who opens its weights needs the options that were chosen for them.
            write_json(plan.store.root / "configurations" / f"{job.train}.json", dataclasses.asdict(job.configuration))
    content: dict[str, JSON] = {
        "rows": [configuration.id for configuration in plan.configurations],
        # In full: another run may share a configuration and have other metrics and attributions.
        "configurations": {identity: dataclasses.asdict(one) for identity, one in configurations.items()},
        "cohorts": {key: str(group.path) for key, group in plan.groups.items()},
        "jobs": [
            {
                "configuration": job.configuration.id,
                "split": dataclasses.asdict(job.split),
                "fold": job.fold,
                "seed": job.seed,
                "train": job.train,
                "cells": [dataclasses.asdict(cell) for cell in job.cells],
                "search": job.search,
            }
            for job in plan.jobs
        ],
        "seeds": list(plan.request.seeds),
        "profile": plan.request.profile,
        "data": plan.request.settings.data,
        "words": list(plan.request.words),
        "name": plan.request.name,
        "typed": list(plan.request.typed),
        "sentence": plan.sentence,
    }
    plans = plan.store.root / "plans" / plan.request.task.name
    write_json(plans / f"{plan.request.name}.json", content)
    replace_file(plans / _LATEST, f"{plan.request.name}\n")  # last, so that it never names a plan that is not there


def _adopt_older(plan: Plan) -> None:
    """Take records of older code for cells of today's, flagged."""
    for stage in ("train", "explain", "score"):
        older = {record.body: record for record in plan.store.records(stage)}
        for cell in plan.cells:
            if cell.stage == stage and plan.store.get(stage, cell.identity) is None and cell.body in older:
                plan.store.adopt(older[cell.body], cell.identity)
