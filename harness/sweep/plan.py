"""From a request to a plan: configurations, their cohorts, folds, jobs and cells."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.core.errors import RequestError, UnknownName
from harness.core.identity import identify
from harness.core.registry import COHORTS, TARGETS
from harness.core.settings import RunSettings
from harness.core.space import Dimension
from harness.core.task import Configuration, Task, describe, describe_component
from harness.core.types import JSON, Adapter, Cohort, Folds, NetworkSpec, Reads, Split, SplitSample
from harness.data.splits import check_test_set, describe_validation
from harness.metrics.register import kinds_of
from harness.pipeline.cell import Cell, Job, ensembles, jobs, missing, reads_of
from harness.storage.store import Store
from harness.sweep.cohorts import Group, images_of, read_cohort, root_of, saved, set_apart, with_targets
from harness.sweep.grid import at, columns_of, points
from harness.tuning.nested import Search, plan_search
from harness.tuning.search import as_chosen, recorded
from harness.tuning.spaces import describe_space, fit_space

__all__ = ["Plan", "Request", "draw_folds", "prepare"]


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
                found += [rest.only(cells) for cells in _by_label(rest.cells)]
        return tuple(found)


def _by_label(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Cells that need each other, together: each explanation with its values, once its samples are predicted."""
    if any(cell.stage == "predict" for cell in cells):
        yield list(cells)
        return
    for label in dict.fromkeys(cell.label for cell in cells):
        yield [cell for cell in cells if cell.label == label]


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
    store = Store(request.settings.folder / "store")
    tasks = [(point, at(request.task, point)) for point in points(request.task, request.axes)]
    groups = _Groups(request, images_of([task for _, task in tasks]), say)
    searches: dict[str, Search] = {}
    configurations: list[Configuration] = []
    by_configuration: dict[str, Group] = {}
    all_jobs: list[Job] = []
    sentence = ""
    for point, task in tasks:
        group, tuning = groups.of(task)
        configuration = _configuration(request, task, point, group.cohort)
        if configuration.id in by_configuration:
            raise RequestError(
                f"two points of the grid are the same configuration: {configuration.axes} repeats an earlier one; "
                "leave one of them out"
            )
        folds = draw_folds(task, group.cohort)
        sentence = sentence or describe_validation(folds, [(s.id, s.subject) for s in group.cohort.samples])
        _check_folds(request.folds, folds.folds)
        configurations.append(configuration)
        by_configuration[configuration.id] = group
        own: list[Job] = []
        for job in jobs(configuration, group.cohort, folds, request.seeds, only_folds=request.folds):
            if request.search:
                job = _searched_job(job, request, group, tuning, store, searches)
                by_configuration[job.configuration.id] = group
            own.append(job)
        # An ensemble needs all folds.
        if request.folds is None:
            own += ensembles(own, group.cohort, folds.test)
        all_jobs += own
    return Plan(
        request,
        tuple(configurations),
        by_configuration,
        tuple(all_jobs),
        store,
        sentence,
        tuple(searches.values()),
    )


@dataclass
class _Groups:
    """Cohorts that were read, by what determines them."""

    request: Request
    images: tuple[str, ...]
    say: Callable[[str], None]
    read: dict[str, Cohort] = field(default_factory=dict)
    groups: dict[str, tuple[Group, Group]] = field(default_factory=dict)

    def of(self, task: Task) -> tuple[Group, Group]:
        """The cohort that is evaluated, and the one on which searches run."""
        settings = self.request.settings
        read_as = identify([describe_component(COHORTS, task.cohort), str(root_of(task, settings))])
        key = identify([read_as, {label: describe_component(TARGETS, one) for label, one in task.targets.items()}])
        if key not in self.groups:
            if read_as not in self.read:
                self.read[read_as] = read_cohort(task, self.images, settings, self.say)
            group = saved(with_targets(task, self.read[read_as], settings), settings)
            apart = bool(self.request.search and settings.search_subjects)
            self.groups[key] = set_apart(group, settings) if apart else (group, group)
        return self.groups[key]


def _configuration(request: Request, task: Task, point: Mapping[str, JSON], cohort: Cohort) -> Configuration:
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    _refuse_metrics(task, spec)
    reads = reads_of(adapter, spec)
    everything = Reads(
        reads["probe"].images, reads["probe"].masks, reads["probe"].covariates, tuple(one.name for one in spec.targets)
    )
    return Configuration(
        json.loads(json.dumps({**describe(task), **_searched(request, task)})),
        {**columns_of(task, [one.key for one in request.space]), **point},
        request.profile,
        cohort.fingerprint(everything),
    )


def _refuse_metrics(task: Task, spec: NetworkSpec) -> None:
    """Refuse metrics that are for no target of the task.

    Raises
    ------
    RequestError
        With every such metric, the kinds it is for, and the targets that there are.
    """
    kinds = {target.kind for target in spec.targets}
    wrong = {label: kinds_of(one) for label, one in task.metrics.items() if not kinds.intersection(kinds_of(one))}
    if wrong:
        listed = "; ".join(f"{label} is for {' or '.join(own) or 'no kind'}" for label, own in wrong.items())
        targets = ", ".join(f"{target.name} ({target.kind})" for target in spec.targets)
        raise RequestError(f"every metric must be for a kind of target that the task has ({targets}): {listed}")


def draw_folds(task: Task, cohort: Cohort) -> Folds:
    """The folds of a cohort; the same for every seed, so that seeds differ in training alone."""
    samples = [SplitSample(one.id, one.subject, one.targets, one.covariates) for one in cohort.samples]
    folds: Folds = task.split(samples, seed=0)
    check_test_set(folds, {one.id: one.subject for one in cohort.samples})
    return folds


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


def _searched_job(
    job: Job, request: Request, group: Group, tuning: Group, store: Store, searches: dict[str, Search]
) -> Job:
    """The job with what its search chose, or waiting for the search, which is added to those to be made."""
    search = _search_of(job, request, tuning)
    chosen = recorded(store, search, accept_code=request.settings.accept_code)
    if chosen is None:
        searches[search.identity] = search
        return job.awaiting(search.identity)
    return job.settled(as_chosen(job.configuration, chosen), group.cohort)


def _searched(request: Request, task: Task) -> dict[str, JSON]:
    """What a searched configuration says of itself; it tells the row from one that was not searched."""
    if not request.search:
        return {}
    fit_space(task, request.space)
    settings = request.settings
    return {"searched": describe_space(request.space, trials=settings.trials, subjects=settings.search_subjects)}


def _check_folds(asked: tuple[int, ...] | None, folds: Sequence[Split]) -> None:
    for fold in asked or ():
        if not 0 <= fold < len(folds):
            raise UnknownName("fold", str(fold), [str(number) for number in range(len(folds))])
