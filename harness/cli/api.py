"""The API for notebooks and scripts, on which the command line is built."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from harness.cli.keys import refuse_unused
from harness.core.errors import RequestError
from harness.pipeline.artifacts import summary_of
from harness.pipeline.cell import Job, is_done, records_of
from harness.pipeline.rows import Row
from harness.report.csv_files import write_tables
from harness.report.listing import note_of, parent_runs, rank_of, saved_view
from harness.report.output import make_report, shapley_of, undone
from harness.report.runs import chosen_tags, pooled_files, pooled_metrics, pooled_of
from harness.report.wording import verdict
from harness.storage.store import CellRecord, Store
from harness.sweep.collect import Tables, collect
from harness.sweep.estimate import Estimate, estimate
from harness.sweep.grammar import Words, texts_of, to_words
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve, settings_of
from harness.sweep.resume import recall
from harness.sweep.run import run as run_cells
from harness.tracking.tracker import Tracker, shown_uri

__all__ = ["LIMIT_S", "Observer", "Result", "carry_out", "plan", "plan_of", "rebuild", "run", "table", "write_all"]

LIMIT_S = 12 * 3600.0
"""Estimated seconds above which a run asks for ``yes=true``."""


class Observer(Protocol):
    """Receives the events of a run; the console implements it."""

    def said(self, text: str) -> None:
        """A sentence for the user."""

    def planned(self, plan: Plan, todo: int) -> None:
        """The plan is made; ``todo`` cells are missing."""

    def started(self, job: Job) -> None:
        """A job began."""

    def committed(self, record: CellRecord, objective: float) -> None:
        """A cell ended; ``objective`` is NaN unless it scored predictions."""

    def ended(self) -> None:
        """No more cells."""


class Silent:
    """An observer for notebooks and tests that shows nothing."""

    def said(self, text: str) -> None:
        """Nothing."""

    def planned(self, plan: Plan, todo: int) -> None:
        """Nothing."""

    def started(self, job: Job) -> None:
        """Nothing."""

    def committed(self, record: CellRecord, objective: float) -> None:
        """Nothing."""

    def ended(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Parameters
    ----------
    leaderboard : one row per configuration
    explanations : one row per configuration and attribution
    regions : long table, one line per region or target, configuration and metric
    verdict : what may be claimed, a sentence per ranking
    failures : cells that failed
    missing : number of cells that are neither done nor failed
    csv : the leaderboard's file
    shapley : value of each input channel, if every set of channels was run
    report, mlflow : where they are; empty if not written
    shown : metrics to show beside the objective
    rows : the configurations with every subject's values
    subjects : number in the cohort
    """

    leaderboard: pa.Table
    explanations: pa.Table
    regions: pa.Table
    verdict: str
    failures: tuple[CellRecord, ...]
    missing: int
    csv: Path
    shapley: pa.Table | None = None
    report: Path | None = None
    mlflow: str = ""
    shown: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    subjects: int = 0

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return not self.failures and not self.missing


def run(**overrides: Any) -> Result:
    """Train, explain, score and rank, as ``harness run`` does.

    Parameters
    ----------
    overrides : as on the command line; a tuple is swept, ``__`` in a name stands for a dot

    Examples
    --------
    >>> harness.run(task="epvs", sequences=("T2w", "FLAIR"), seed=(0, 1))  # doctest: +SKIP
    """
    read = to_words(**overrides)
    return carry_out(read, texts_of(read), Silent())


def plan(**overrides: Any) -> Estimate:
    """What a run would do, with an estimate of time, memory and disk."""
    return plan_of(to_words(**overrides), Silent())[1]


def table(**overrides: Any) -> pa.Table:
    """The leaderboard of a run, from the store alone: of the latest run of ``task``, or of ``run``."""
    read = to_words(**overrides)
    refuse_unused(read, "harness.table")
    return rebuild(read)[1].prediction


def plan_of(words: Words, observer: Observer) -> tuple[Plan, Estimate]:
    """The plan and what it costs; trains nothing."""
    made = prepare(resolve(words), say=observer.said)
    return made, estimate(made)


def carry_out(words: Words, texts: tuple[str, ...], observer: Observer) -> Result:
    """A whole run: plan, compute, pool, write.

    Raises
    ------
    RequestError
        If the request is wrong, or the estimate is above 12 hours without ``yes=true``.
    CohortError
        If the data have faults.
    """
    request = resolve(words, texts=texts)
    made = prepare(request, say=observer.said)
    cost = estimate(made)
    if cost.seconds > LIMIT_S and not request.settings.yes:
        more = " (with ray=ADDRESS on a cluster)" if request.settings.ray in ("auto", "off") else ""
        raise RequestError(
            f"this would take about {cost.time_text} on {cost.where}, {cost.workers} at a time "
            f"({cost.cells} cells are missing). Set yes=true to start it anyway{more}, or profile=quick"
        )
    observer.said(made.sentence)
    tracker = _tracker(made)
    try:
        _track_known(tracker, made)
        observer.planned(made, cost.cells)

        troubles: list[str] = []

        def committed(record: CellRecord) -> None:
            objective = _track_cell(tracker, made, record)
            if tracker is not None and tracker.trouble and not troubles:
                troubles.append(tracker.trouble)
                observer.said(f"{tracker.trouble}. The run goes on; its cells are kept in the store")
            observer.committed(record, objective)

        made = run_cells(
            made, seconds=cost.of_training, started=observer.started, committed=committed, say=observer.said
        )
        observer.ended()
        observer.said("pooling, drawing and writing")
        return write_all(made, tracker)
    finally:
        observer.ended()
        if tracker is not None:
            tracker.close()


def rebuild(words: Words) -> tuple[Plan, Tables]:
    """Plan and tables of a run of a task, of the latest unless ``run=`` names one, from the store alone."""
    if "task" not in words.values:
        raise RequestError("which task? Set task=NAME")
    settings = settings_of(Words({key: value for key, value in words.values.items() if key == "out"}))
    made = recall(str(words.values["task"]), settings, name=str(words.values.get("run", "")))
    return made, collect(made)


def write_all(made: Plan, tracker: Tracker | None) -> Result:
    """Leaderboards, report and parent runs, from the store."""
    settings = made.request.settings
    if tracker is not None:
        tracker.wait()  # errors are raised at the end, so that tables and report are written in any case
    runs = {one.id: tracker.run_of(one.id) for one in made.configurations} if tracker else {}
    tables = collect(made, mlflow_runs=runs)
    shapley = shapley_of(made, tables)
    csv = write_tables(made, tables, shapley)
    failures, missing = undone(made)
    report = None
    if settings.report:
        report = make_report(made, tables)
    if tracker is not None:
        _track_pooled(tracker, made, tables, report)
        tracker.drain()
    return Result(
        leaderboard=tables.prediction,
        explanations=tables.explanation,
        regions=tables.regions,
        verdict=verdict(tables.prediction),
        failures=failures,
        missing=missing,
        shapley=shapley,
        csv=csv,
        report=report,
        mlflow="" if tracker is None else shown_uri(settings),
        shown=made.request.task.shown,
        rows=tuple(one.prediction for one in tables.pooled.values()),
        subjects=len(made.cohort.subjects),
    )


def _track_known(tracker: Tracker | None, made: Plan) -> None:
    """Open or continue the parents, and write what the store holds already."""
    if tracker is None:
        return
    tracker.open(parent_runs(made), saved_view(made))
    for cell in made.cells:
        wanted = set(dict(cell.metrics).values())
        for record in records_of(cell, made.store):
            kept = {label: identity for label, identity in record.metrics.items() if identity in wanted}
            if kept or not record.metrics:  # else all its values are of older code, or not asked for
                # Two configurations may share a training, whose record names the first of them.
                own = dataclasses.replace(record, configuration=cell.configuration, metrics=kept)
                _track_cell(tracker, made, own)


def _track_cell(tracker: Tracker | None, made: Plan, record: CellRecord) -> float:
    """Send a record to MLflow; its objective, if it scored predictions."""
    values, curve = _numbers(made.store, record)
    if tracker is not None:
        tracker.cell(record, values, curve)
    objective = made.request.task.objective
    return values.get(objective, math.nan) if record.stage == "score" and not record.label else math.nan


def _numbers(store: Store, record: CellRecord) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Mean metrics of a score cell; loss curves of a training."""
    if record.state != "done":
        return {}, {}
    if record.metrics:
        return {label: value for label, value in summary_of(store, record).items() if label in record.metrics}, {}
    if record.stage == "train":
        history = json.loads(store.artifact(record, "history.json").read_text())
        curves = {name: [epoch[name] for epoch in history] for name in ("loss", "validation")}
        return {}, {name: curve for name, curve in curves.items() if None not in curve}
    return {}, {}


def _track_pooled(tracker: Tracker, made: Plan, tables: Tables, report: Path | None) -> None:
    """Note, metrics, figures and maps of each configuration to its run; nothing where they are there already."""
    anonymous, command = made.request.settings.anonymous, made.request.command
    for configuration in made.configurations:
        identity = configuration.id
        note = note_of(tables, identity, command=command, report=report, anonymous=anonymous)
        rank = rank_of(tables, identity, anonymous=anonymous)
        tracker.describe(identity, note, tags={"rank": rank, **chosen_tags(made, identity)})
        metrics = pooled_metrics(tables, identity)
        done, digest = _is_complete(made, identity), pooled_of(made, identity, metrics)
        if tracker.is_pooled(identity, digest):
            continue
        # One at a time: maps at full resolution of a hundred configurations would fill the disk twice.
        with tempfile.TemporaryDirectory(prefix="harness-pooled-") as name:
            not_drawn = "; ".join(pooled_files(made, tables, identity, Path(name)))
            tracker.pooled(identity, metrics, Path(name), done=done, digest=digest, not_drawn=not_drawn)
            tracker.wait()


def _tracker(made: Plan) -> Tracker | None:
    """A tracker that knows which names it may not say."""
    settings = made.request.settings
    if settings.mlflow == "off":
        return None
    names = {*settings.exclude, *settings.search_subjects}
    for group in made.groups.values():
        names |= {name for sample in group.cohort.samples for name in (sample.id, sample.subject)}
        names |= {one.subject for one in group.cohort.ineligible}
    return Tracker(settings, made.request.task.name, command=made.request.command, subjects=names)


def _is_complete(made: Plan, configuration: str) -> bool:
    """Whether every cell of a configuration is done."""
    own = [cell for cell in made.cells if cell.configuration == configuration]
    return all(is_done(cell, made.store) for cell in own)
