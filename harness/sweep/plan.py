"""Turn a request into a plan: configurations, their cohorts, folds, jobs and cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.core.errors import RequestError, UnknownName
from harness.core.identity import identify
from harness.core.passwords import command_of
from harness.core.pseudonyms import Pseudonyms
from harness.core.registry import COHORTS, SPLITS, TARGETS
from harness.core.settings import RunSettings
from harness.core.space import Dimension, Grid
from harness.core.task import INITIAL_WEIGHTS, Configuration, Task, describe, describe_component
from harness.core.types import JSON, Adapter, Cohort, Folds, Remarks, Split, SplitSample
from harness.data.splits import check_test_set, describe_validation
from harness.metrics.register import kinds_of
from harness.pipeline.cell import Cell, Job, covariates_of_metrics, ensembles, jobs, missing, reads_of, restored
from harness.pipeline.explain import method_of
from harness.pipeline.initial_weights import check_initial_weights
from harness.pipeline.networks import check_inputs
from harness.storage.files import check_writable
from harness.storage.secret import secret_key
from harness.storage.store import Store, open_store
from harness.sweep.catalogue import declared
from harness.sweep.cohorts import Group, images_of, read_cohort, root_of, saved, separate_search_subjects, with_targets
from harness.sweep.grid import at, columns_of, points
from harness.tuning.nested import Search, plan_search
from harness.tuning.search import as_chosen, recorded
from harness.tuning.spaces import describe_space, fit_space

__all__ = ["Plan", "Request", "draw_folds", "prepare"]

_MOST_LABELS = 8  # largest number of metrics that a note names


@dataclass(frozen=True)
class Request:
    """A resolved request.

    Parameters
    ----------
    task : task with the profile and single-valued overrides applied
    grids : grids whose union is run, see :func:`harness.sweep.grid.points`
    seeds : seeds of the trainings
    folds : indices of the folds to run; ``None`` for all
    profile : ``quick`` or ``paper``
    settings : how and where to run
    shared : overrides that are repeated in the command of each leaderboard row
    space : dimensions of the search space, with full keys
    search : ``optuna``, or empty for none
    name : name of the tables, report and plan (:func:`harness.sweep.naming.run_name`)
    typed : all overrides of the command, as typed
    without : models of the experiment that are left out, because they know the truth of
        generated subjects and the user gives others
    remarks : sentences for the user on overrides
    """

    task: Task
    grids: tuple[Grid, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...] | None
    profile: str
    settings: RunSettings
    shared: tuple[str, ...] = ()
    space: tuple[Dimension, ...] = ()
    search: str = ""
    name: str = ""
    typed: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def axes(self) -> dict[str, tuple[JSON, ...]]:
        """All values of each axis over all grids."""
        found: dict[str, list[JSON]] = {}
        for grid in self.grids:
            for key, values in grid.items():
                found.setdefault(key, []).extend(one for one in values if one not in found[key])
        return {key: tuple(values) for key, values in found.items()}

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        return command_of(self.typed)

    @property
    def leaderboard_path(self) -> Path:
        """CSV file of the leaderboard; other tables of the run are in the same folder, ``<name>-<what>.csv``."""
        return self.settings.folder / "leaderboards" / self.task.name / f"{self.name}.csv"

    @property
    def report_folder(self) -> Path:
        """Folder of the report: ``index.html`` and its figures."""
        return self.settings.folder / "reports" / self.task.name / self.name


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Parameters
    ----------
    request : the request
    configurations : configurations, in the order of the grid
    groups : cohort of each configuration, by its id, including configurations chosen by a search
    jobs : all trainings with all their cells, done or not
    store : store of the results
    sentence : description of how validation subjects are drawn
    remarks : sentences for the user: data that adapters cannot use, files from which networks start
    searches : missing searches; their jobs are :meth:`~harness.pipeline.cell.Job.awaiting` them
    """

    request: Request
    configurations: tuple[Configuration, ...]
    groups: Mapping[str, Group]
    jobs: tuple[Job, ...]
    store: Store
    sentence: str
    searches: tuple[Search, ...] = ()
    remarks: tuple[str, ...] = ()

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort of the first configuration."""
        return self.groups[self.configurations[0].id].cohort

    @cached_property
    def pseudonyms(self) -> Pseudonyms | None:
        """Pseudonyms of subjects with ``pseudonymise=true``, or ``None``; the key is created if there is none."""
        settings = self.request.settings
        return Pseudonyms(secret_key(settings.key_file), self.names) if settings.pseudonymise else None

    @property
    def names(self) -> list[tuple[str, str]]:
        """Ids of all samples with their subjects, and subjects that are left out."""
        found = {(name, name) for name in (*self.request.settings.exclude, *self.request.settings.search_subjects)}
        for group in self.groups.values():
            found |= {(sample.id, sample.subject) for sample in group.cohort.samples}
            found |= {(one.subject, one.subject) for one in group.cohort.ineligible}
        return sorted(found)

    def shown(self, text: str) -> str:
        """Text as it is shown and shared: with pseudonyms of subjects, if they were asked for."""
        return text if self.pseudonyms is None else self.pseudonyms(text)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the data of all cohorts, and remarks."""
        found = [note for group in self.groups.values() for note in group.cohort.notes]
        return tuple(dict.fromkeys([*found, *self.remarks]))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of every job."""
        return tuple(cell for job in self.jobs for cell in job.cells)

    def missing(self) -> tuple[Job, ...]:
        """Jobs with cells that are not in the store.

        If the training is done, missing explanations are separate jobs, those by one method together.
        """
        found: list[Job] = []
        for job in self.jobs:
            rest = missing(job, self.store)
            if rest is None:
                continue
            if rest.cells[0].stage == "train":
                found.append(rest)
            else:
                found += [rest.only(cells) for cells in _by_method(restored(job.configuration), rest.cells)]
        return tuple(found)


def _by_method(task: Task, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Group dependent cells: explanations by one method with their metrics, or all if predictions are missing."""
    if any(cell.stage == "predict" for cell in cells):
        yield list(cells)
        return
    methods = {cell.label: method_of(task.explained[cell.label]) if cell.label else "" for cell in cells}
    for method in dict.fromkeys(methods.values()):
        yield [cell for cell in cells if methods[cell.label] == method]


def prepare(request: Request, *, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Read and verify the cohort, draw the folds and derive all cells.

    Parameters
    ----------
    request : the request
    say : called with a message before each slow step

    Raises
    ------
    CohortError
        If the data are faulty; lists all faults.
    RequestError
        If the request does not fit the data, or the output folder cannot be written to.

    Notes
    -----
    Results of searches in the store are applied here. A command that was run before
    therefore gives the same plan again.
    """
    check_writable(request.settings.folder, "out")
    store = open_store(request.settings, say=say)
    if store.bucket is not None:
        store.bucket.check()
    tasks = [(point, at(request.task, point)) for point in points(request.task, request.grids)]
    groups = _Groups(request, images_of([task for _, task in tasks]), say)
    searches: dict[str, Search] = {}
    configurations: list[Configuration] = []
    by_configuration: dict[str, Group] = {}
    all_jobs: list[Job] = []
    remarks = list(request.remarks)
    said: set[str] = set()
    sentence = ""
    for point, task in tasks:
        group, tuning = groups.of(task)
        configuration, remark, left_out = _configuration(request, task, point, group.cohort)
        remarks += remark
        if left_out and (note := _left_out(left_out, group.cohort)) not in said:
            said.add(note)
            say(note)
        if configuration.id in by_configuration:
            raise RequestError(
                f"two points of the grid are the same configuration: {configuration.axes} repeats an earlier one; "
                "leave one of them out"
            )
        folds = draw_folds(task, group.cohort)
        fixed = bool(SPLITS.get(SPLITS.name_of(task.split.func)).facts.get("fixed"))
        pairs = [(one.id, one.subject) for one in group.cohort.samples]
        sentence = sentence or describe_validation(folds, pairs, fixed=fixed)
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
        tuple(dict.fromkeys(remarks)),
    )


@dataclass
class _Groups:
    """Cohorts that were read, by the digest of the options that determine them."""

    request: Request
    images: tuple[str, ...]
    say: Callable[[str], None]
    read: dict[str, Cohort] = field(default_factory=dict)
    groups: dict[str, tuple[Group, Group]] = field(default_factory=dict)

    def of(self, task: Task) -> tuple[Group, Group]:
        """The cohort that is evaluated, and the cohort used by searches."""
        settings = self.request.settings
        read_as = identify([describe_component(COHORTS, task.cohort), str(root_of(task, settings))])
        key = identify([read_as, {label: describe_component(TARGETS, one) for label, one in task.targets.items()}])
        if key not in self.groups:
            if read_as not in self.read:
                self.read[read_as] = read_cohort(task, self.images, settings, self.say)
            group = saved(with_targets(task, self.read[read_as], settings), settings)
            separate = bool(self.request.search and settings.search_subjects)
            self.groups[key] = separate_search_subjects(group, settings) if separate else (group, group)
        return self.groups[key]


def _left_out(labels: Sequence[str], cohort: Cohort) -> str:
    """Note on metrics that do not apply to the targets of a cohort."""
    targets = ", ".join(f"{target.name} ({target.kind})" for target in cohort.targets)
    shown = ", ".join(labels[:_MOST_LABELS])
    more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    return f"{len(labels)} metrics do not apply to {targets} and are left out: {shown}{more}"


def _configuration(
    request: Request, task: Task, point: Mapping[str, JSON], cohort: Cohort
) -> tuple[Configuration, list[str], list[str]]:
    """The configuration of a grid point, remarks for the user, and the metrics that do not apply to its targets."""
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    task, left_out = _with_metrics_that_apply(task, cohort)
    check_inputs(task, spec)
    initial = check_initial_weights(task, spec)
    more = {INITIAL_WEIGHTS: initial.digest} if initial else {}
    remarks = [*(adapter.notes(cohort) if isinstance(adapter, Remarks) else ()), *([initial.note] if initial else [])]
    made = Configuration(
        json.loads(json.dumps({**describe(task), **_searched(request, task), **more})),
        {**columns_of(task, [one.key for one in request.space]), **point},
        request.profile,
        cohort.fingerprint(reads_of(adapter, spec, covariates_of_metrics(task))["all"]),
    )
    return made, remarks, left_out


def _with_metrics_that_apply(task: Task, cohort: Cohort) -> tuple[Task, list[str]]:
    """Leave out metrics that apply to no target of the cohort, whichever of them a configuration predicts.

    Returns
    -------
    task : Task
        With the metrics whose kinds of targets the task has, and whose columns are there.
    left_out : list of str
        Labels of all others.

    Raises
    ------
    RequestError
        If one of them ranks configurations or explanations, listing metrics that could; is
        not one that the task declares, but was added by the user; or applies to no kind of
        target.
    """
    never = [label for label, one in task.metrics.items() if not kinds_of(one)]
    if never:
        raise RequestError(f"no kind of target has all inputs of the metrics {', '.join(never)}; remove them")
    kinds = {target.kind for target in cohort.targets}
    kept = {label: one for label, one in task.metrics.items() if kinds.intersection(kinds_of(one))}
    left_out = [label for label in task.metrics if label not in kept]
    if not left_out:
        return task, []
    targets = ", ".join(f"{target.name} ({target.kind})" for target in cohort.targets)
    added = [label for label in left_out if label not in declared(task).metrics]
    if added:
        listed = "; ".join(f"{label} is for {' or '.join(kinds_of(task.metrics[label]))}" for label in added)
        raise RequestError(f"every metric must be for a kind of target that the task has ({targets}): {listed}")
    for key in ("objective", "explanation_objective"):
        label = getattr(task, key)
        if label not in kept:
            explains = task.of_explanations(label)
            able = [one for one in kept if task.can_rank(one) and task.of_explanations(one) == explains]
            own = " or ".join(kinds_of(task.metrics[label]))
            raise RequestError(
                f"the {key} must apply to a target that is predicted, {targets}, but {label} is for {own} targets; "
                f"set {key}= to one of {', '.join(able) or 'none'}"
            )
    shown, regional = (tuple(one for one in labels if one in kept) for labels in (task.shown, task.regional))
    without = dataclasses.replace(task, metrics=kept, hypotheses=(), published=(), shown=shown, regional=regional)
    return without, left_out


def draw_folds(task: Task, cohort: Cohort) -> Folds:
    """Draw the folds of a cohort. They do not depend on the seed, so seeds differ in training only."""
    samples = [SplitSample(one.id, one.subject, one.targets, one.covariates) for one in cohort.samples]
    folds: Folds = task.split(samples, seed=0)
    check_test_set(folds, {one.id: one.subject for one in cohort.samples})
    return folds


def _search_of(job: Job, request: Request, group: Group) -> Search:
    """The search that chooses the options of a training: one per fold and seed, or one for all."""
    once = bool(request.settings.search_subjects)
    samples = [sample.id for sample in group.cohort.samples] if once else job.split.train
    return plan_search(
        job.configuration,
        request.space,
        group.cohort,
        group.path,
        samples,
        fold=-1 if once else job.fold,
        # A search shared by all trainings has one seed.
        seed=0 if once else job.seed,
        trials=request.settings.trials,
    )


def _searched_job(
    job: Job, request: Request, group: Group, tuning: Group, store: Store, searches: dict[str, Search]
) -> Job:
    """The job with the options chosen by its search; if the search is missing, add it and mark the job as waiting."""
    search = _search_of(job, request, tuning)
    chosen = recorded(store, search, accept_code=request.settings.accept_code)
    if chosen is None:
        searches[search.identity] = search
        return job.awaiting(search.identity)
    return job.settled(as_chosen(job.configuration, chosen), group.cohort)


def _searched(request: Request, task: Task) -> dict[str, JSON]:
    """Description of the search, which distinguishes searched from other configurations."""
    if not request.search:
        return {}
    fit_space(task, request.space)
    settings = request.settings
    return {"searched": describe_space(request.space, trials=settings.trials, subjects=settings.search_subjects)}


def _check_folds(asked: tuple[int, ...] | None, folds: Sequence[Split]) -> None:
    for fold in asked or ():
        if not 0 <= fold < len(folds):
            raise UnknownName("fold", str(fold), [str(number) for number in range(len(folds))])
