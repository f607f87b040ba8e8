"""Run a plan: first searches, then trainings, then ensembles of trainings."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from harness.pipeline.cell import Job, ensembles
from harness.storage.patience import Patience
from harness.storage.store import CellRecord, Store, write_record
from harness.sweep.plan import Plan
from harness.sweep.resume import adopt_older, write_plan
from harness.tuning.access import access
from harness.tuning.jobs import listening, run_here, run_on_ray, session, share_cohorts
from harness.tuning.nested import Search
from harness.tuning.preflight import check_cluster
from harness.tuning.resources import cluster, room
from harness.tuning.search import Chosen, as_chosen, perform
from harness.tuning.spaces import describe_space
from harness.tuning.watch import time_limit_s

__all__ = ["run"]

_FEW = 2  # trainings per worker, below which explanations are separate jobs


def run(
    plan: Plan,
    *,
    seconds: Mapping[str, float] | None = None,
    started: Callable[[Job], None] = lambda job: None,
    committed: Callable[[CellRecord], None] = lambda record: None,
    say: Callable[[str], None] = lambda text: None,
    memory_bytes: float = 0.0,
) -> Plan:
    """Compute all missing cells; returns when none is left that can be computed.

    Parameters
    ----------
    plan : the plan
    seconds : estimated seconds of each training, by its identity; the longest start
        first, so that no worker is left with a long one at the end
    started : called with each job that starts
    committed : called with each record added to the store, including failures
    say : called with messages for the user, such as each result of a search
    memory_bytes : estimated memory of a job, which the nodes of a cluster must have

    Returns
    -------
    Plan
        The plan that was run: jobs with a search have the values that it chose. If a
        search failed, its jobs are unchanged and their trainings are recorded as failed.

    Raises
    ------
    StoreError
        If results could not be written for a while, see :class:`~harness.storage.patience.Patience`.
    """
    once = _once(say)  # workers and this process may find the same folder full
    patience = Patience(plan.request.settings.folder, once)
    patience(plan.store.sweep)
    patience(lambda: write_plan(plan))
    settings = plan.request.settings
    if settings.accept_code:
        adopt_older(plan)
    if not plan.missing():
        return plan
    with contextlib.nullcontext() if settings.ray == "off" else session(settings, say=say):
        if settings.ray in ("auto", "local"):
            say(listening())
        elif settings.ray != "off":
            say(access(settings.ray))
            check_cluster(settings, memory_bytes=memory_bytes)
            tables = [group.path for group in plan.groups.values()] + [search.cohort for search in plan.searches]
            share_cohorts(tables, plan.store, settings, say=say)
        if plan.searches:
            plan = found = _search(plan, committed, say, patience)
            patience(lambda: write_plan(found))
            if settings.accept_code:
                adopt_older(plan)
        # Ensembles need the trainings of all folds, so they run in a second wave.
        for choose in (_is_training, _is_ready_ensemble):
            wave = partial(
                _run_wave, plan, seconds or {}, committed=committed, started=started, patience=patience, say=once
            )
            todo = _todo(plan, choose)
            if settings.ray != "off" and len(todo) < _FEW * room(cluster(), settings):
                # Workers would wait for the longest job: first without explanations, which are then jobs of their own.
                wave([job.only(own) for job in todo if (own := [cell for cell in job.cells if not cell.label])])
                todo = [job for job in _todo(plan, choose) if job.cells[0].label]
            wave(todo)
    return plan


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that passes on each sentence once."""
    said: set[str] = set()

    def say_new(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return say_new


def _todo(plan: Plan, choose: Callable[[Job, Store], bool]) -> list[Job]:
    """Missing jobs of one kind that await no search."""
    return [job for job in plan.missing() if not job.search and choose(job, plan.store)]


def _run_wave(
    plan: Plan,
    seconds: Mapping[str, float],
    todo: Sequence[Job],
    *,
    committed: Callable[[CellRecord], None],
    started: Callable[[Job], None],
    patience: Patience,
    say: Callable[[str], None],
) -> None:
    """Run jobs in this process or on Ray, the longest first."""
    settings, store = plan.request.settings, plan.store
    limit_s = time_limit_s(settings, seconds)
    ordered = sorted(todo, key=lambda job: -seconds.get(job.train, 0.0))
    paths = {key: group.path for key, group in plan.groups.items()}
    if not ordered:
        return
    if settings.ray == "off":
        run_here(ordered, paths, store, committed=committed, started=started, patience=patience, limit_s=limit_s)
    else:
        name = plan.request.task.name
        run_on_ray(
            name, ordered, paths, store, settings,
            committed=committed, started=started, patience=patience, limit_s=limit_s, say=say,
        )  # fmt: skip


def _is_training(job: Job, store: Store) -> bool:
    return not job.is_ensemble


def _is_ready_ensemble(job: Job, store: Store) -> bool:
    """Whether all trainings of an ensemble are done; otherwise it stays missing and its row incomplete."""
    return job.is_ensemble and all(store.get("train", identity) is not None for identity in job.trainings)


def _search(
    plan: Plan, committed: Callable[[CellRecord], None], say: Callable[[str], None], patience: Patience
) -> Plan:
    """Run the missing searches and return the plan with the values they chose."""
    settings, seen = plan.request.settings, 0

    def found(search: Search, chosen: Chosen) -> None:
        nonlocal seen
        seen += 1
        point = " ".join(f"{key}={value}" for key, value in search.configuration.axes.items())
        where = f"fold {search.fold} seed {search.seed}" if search.fold >= 0 else "all folds"
        say(f"search {seen} of {len(plan.searches)}, {point}, {where}: {chosen} in {chosen.seconds:.1f} s")

    say(f"searching {describe_space(plan.request.space, trials=settings.trials, subjects=settings.search_subjects)}")
    results = perform(plan.searches, plan.store, settings, found=found, patience=patience)
    groups, made = dict(plan.groups), []
    for job in plan.jobs:
        chosen = results.get(job.search)
        if chosen is not None and chosen.error:
            committed(_failed(plan.store, job, chosen, patience))
        elif chosen is not None:
            group = groups[job.configuration.id]
            job = job.settled(as_chosen(job.configuration, chosen), group.cohort)
            groups[job.configuration.id] = group
        made.append(job)
    return dataclasses.replace(plan, groups=groups, jobs=tuple(_with_ensembles(made, plan)), searches=())


def _with_ensembles(jobs: Sequence[Job], plan: Plan) -> Iterator[Job]:
    """The jobs, with ensembles rebuilt from the trainings after the searches."""
    yield from (job for job in jobs if not job.is_ensemble)
    for old in (job for job in jobs if job.is_ensemble):
        own = [job for job in jobs if not job.is_ensemble and (job.row, job.seed) == (old.row, old.seed)]
        yield from ensembles(own, plan.groups[old.configuration.id].cohort, old.split.test)


def _failed(store: Store, job: Job, chosen: Chosen, patience: Patience) -> CellRecord:
    """Record that a training failed because its search did."""
    record = CellRecord(job.train, "train", "failed", job.row, job.fold, job.seed, error=chosen.error)
    with tempfile.TemporaryDirectory(prefix="harness-cell-") as name:
        write_record(Path(name), record)
        return patience(lambda: store.commit(Path(name)))
