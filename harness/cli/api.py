"""The API for notebooks and scripts, on which the command line is built."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import pyarrow as pa

from harness.cli.keys import refuse_unused
from harness.core.errors import HarnessError, RequestError
from harness.core.settings import RunSettings
from harness.pipeline.artifacts import summary_of
from harness.pipeline.cell import Job, is_done, records_of
from harness.pipeline.rows import Row
from harness.report.csv_files import write_tables
from harness.report.figures.results import Results
from harness.report.listing import note_of, parent_runs, rank_of, saved_view
from harness.report.output import make_report, shapley_of, undone
from harness.report.remarks import remarks
from harness.report.runs import chosen_tags, pooled_files, pooled_metrics, pooled_of
from harness.report.wording import verdict
from harness.storage.bucket import Bucket
from harness.storage.files import check_writable
from harness.storage.lease import leased
from harness.storage.lock import only_run
from harness.storage.patience import Patience
from harness.storage.publication import publish
from harness.storage.store import CellRecord, ReadOnce, Store
from harness.sweep.collect import Tables, collect
from harness.sweep.estimate import Estimate, estimate
from harness.sweep.grammar import Overrides, texts_of, to_overrides
from harness.sweep.plan import Plan, Request, prepare
from harness.sweep.request import defaults_for_data, resolve, settings_of
from harness.sweep.resume import recall
from harness.sweep.run import run as run_cells
from harness.tracking.client import check_uri
from harness.tracking.tracker import Tracker, shown_uri
from harness.tuning.resources import check_request
from harness.tuning.studies import check_optuna

__all__ = ["LIMIT_S", "Observer", "Result", "carry_out", "plan", "plan_of", "rebuild", "run", "table", "write_all"]

LIMIT_S = 12 * 3600.0
"""Estimated seconds above which a run asks for ``yes=true``."""

_AGAIN_S = 60.0  # after an error, MLflow is tried again during a run; each time after twice as long
_STOP_S = 3.0  # for MLflow, if the run is stopped or fails
_LAST_WAITS_S = (1.0, 5.0, 10.0)  # before each of the last tries at the end


class Observer(Protocol):
    """Receives the events of a run; the console implements it."""

    def message(self, text: str) -> None:
        """Receive a message for the user."""

    def planned(self, plan: Plan, todo: int) -> None:
        """Called once the plan is complete; ``todo`` is the number of missing cells."""

    def started(self, job: Job) -> None:
        """Called when a job starts."""

    def committed(self, record: CellRecord, objective: float) -> None:
        """Called when a cell is done or failed; ``objective`` is NaN unless the cell scored predictions."""

    def ended(self) -> None:
        """Called when no more cells will follow; may be called repeatedly."""


class Silent:
    """An observer that shows nothing, for notebooks and tests."""

    def message(self, text: str) -> None:
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
    leaderboard : table with one row per configuration
    explanations : table with one row per configuration and attribution
    regions : long table with one row per region or target, configuration and metric
    verdict : conclusion that the statistics support, one sentence per ranking, and remarks on
        what it cannot say
    failures : cells that failed
    missing : number of cells that are neither done nor failed
    csv : CSV file of the leaderboard
    shapley : value of each input channel, if every set of channels was run
    report : HTML file of the report; ``None`` if not written
    mlflow : address of the MLflow server or database; empty if not written
    trouble : why MLflow could not be written, and what to do; empty if it was
    shown : metrics to show in addition to the objective
    rows : pooled results of the configurations, with the values of each subject
    subjects : number of subjects in the cohort
    targets : if configurations predict different sets of targets, the leaderboard of each
        target, by target
    bucket : address of the bucket with the results, of which the files are local copies;
        empty without one
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
    trouble: str = ""
    shown: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    subjects: int = 0
    bucket: str = ""
    targets: Mapping[str, pa.Table] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return not self.failures and not self.missing


def run(**overrides: Any) -> Result:
    """Train, explain, score and rank, like ``harness run``.

    Parameters
    ----------
    overrides : overrides as on the command line; a tuple is a sweep, ``__`` in a name stands for a dot

    Raises
    ------
    HarnessError
        If the run cannot be carried out, or MLflow could not be written; in the latter
        case, tables and report are complete.

    Examples
    --------
    >>> harness.run(task="epvs", sequences=("T2w", "FLAIR"), seed=(0, 1))  # doctest: +SKIP
    """
    read = to_overrides(**overrides)
    result = carry_out(read, texts_of(read), Silent())
    if result.trouble:
        raise HarnessError(result.trouble)
    return result


def plan(**overrides: Any) -> Estimate:
    """Estimate the number of cells, time, memory and disk space of a run, without training."""
    return plan_of(to_overrides(**overrides), Silent())[1]


def table(**overrides: Any) -> pa.Table:
    """The leaderboard of a run, rebuilt from the store: by default of the latest run of ``task``, or of ``run``."""
    read = to_overrides(**overrides)
    refuse_unused(read, "harness.table")
    return rebuild(read)[1].prediction


def plan_of(overrides: Overrides, observer: Observer) -> tuple[Plan, Estimate]:
    """The plan of a run and its estimated cost, without training."""
    request = resolve(overrides)
    check_request(request.settings)
    _say_defaults(request, observer)
    made = prepare(request, say=observer.message)
    if request.settings.bucket:
        observer.message(_bucket_sentence(made))
    return made, estimate(made, observer.message)


def _say_defaults(request: Request, observer: Observer) -> None:
    """Name the options whose defaults differ from those for generated images, and results among the images."""
    check_writable(request.settings.folder, "out")  # before it is said that results will be there
    if values := defaults_for_data(request):
        observer.message(f"your own data: {values} (override them to change this)")
    out, data = request.settings.folder.resolve(), Path(request.settings.data).expanduser().resolve()
    if request.settings.data and out.is_relative_to(data):
        observer.message(f"results are written among the images, into {out}; set out= to keep data={data} as it is")


def _check_memory(settings: RunSettings, cost: Estimate) -> None:
    """Refuse networks that do not fit into the memory of this machine, whose workers the system would end."""
    needed, has = cost.memory_bytes * cost.workers, psutil.virtual_memory().total
    if settings.ray not in ("auto", "off", "local") or settings.gpus or settings.yes or needed <= has:
        return
    raise RequestError(
        f"the networks need about {needed / 1e9:.3g} GB of memory ({cost.workers} jobs at a time), and this "
        f"machine has {has / 1e9:.3g} GB. Use a smaller network or fewer jobs (workers=1), or set yes=true to start"
    )


def carry_out(overrides: Overrides, texts: tuple[str, ...], observer: Observer) -> Result:
    """Perform a run: plan, compute, pool and write the results, once no other run uses the output folder.

    Raises
    ------
    RequestError
        If the request is wrong, or the estimate exceeds 12 hours or the memory of this
        machine without ``yes=true``.
    CohortError
        If the data are faulty.
    """
    request = resolve(overrides, texts=texts)
    check_request(request.settings)
    check_uri(request.settings.mlflow)
    check_optuna(request.settings)
    _say_defaults(request, observer)
    made = prepare(request, say=observer.message)
    with contextlib.ExitStack() as held:
        command = made.shown(request.command)  # others can read the lock
        held.enter_context(only_run(request.settings.folder, command, say=observer.message))
        if not request.settings.bucket:
            return _compute(made, observer)
        bucket = Bucket(request.settings.bucket, observer.message)
        observer.message(_bucket_sentence(made))
        lease = held.enter_context(leased(bucket, command, say=observer.message))
        result = _compute(made, observer, still_ours=lease.check)
        lease.check()
        publish_results(made, bucket)
        return result


def _bucket_sentence(made: Plan) -> str:
    """Where the parts of a run are, if results are in a bucket."""
    settings = made.request.settings
    tracked = {"auto": f"; MLflow's database is in {settings.folder}, because it cannot be in a bucket"}
    return (
        f"cells, tables and report are in {settings.bucket}; {settings.folder} has copies of them and the prepared "
        "images"
        f"{tracked.get(settings.mlflow, '')}"
    )


def publish_results(made: Plan, bucket: Bucket) -> None:
    """Copy the tables and the report of a run to its bucket."""
    request = made.request
    tables = sorted(request.leaderboard_path.parent.glob("*.csv"))
    own = [path for path in tables if path.stem == request.name or path.stem.startswith(f"{request.name}-")]
    folder = request.report_folder
    lists = [one for one in (folder.parent / "index.html",) if one.is_file()]
    publish(bucket, request.settings.folder, [*own, *lists], [folder] if folder.is_dir() else [])


def _compute(made: Plan, observer: Observer, still_ours: Callable[[], None] = lambda: None) -> Result:
    """Compute the missing cells of a plan and write the results."""
    request = made.request
    cost = estimate(made, observer.message)
    if cost.seconds > LIMIT_S and not request.settings.yes:
        more = " (with ray=ADDRESS on a cluster)" if request.settings.ray in ("auto", "off") else ""
        raise RequestError(
            f"this run would take about {cost.time_text} on {cost.where}, with {cost.workers} jobs at a time "
            f"({cost.cells} cells are missing). Set yes=true to start it anyway{more}, or profile=quick"
        )
    _check_memory(request.settings, cost)
    if cost.unknown:
        observer.message(f"some networks could not be timed, so that the time of the run is unknown: {cost.unknown}")
    observer.message(made.sentence)
    if made.pseudonyms is not None:
        observer.message(
            f"subjects have pseudonyms in leaderboards, reports and MLflow. The key is in {request.settings.key_file}; "
            "keep it, and do not share it or the folders cache, cohorts, phantoms, ray and store, which name subjects"
        )
    tracker = _tracker(made)
    try:
        _track_known(tracker, made)
        observer.planned(made, cost.cells)

        absence = _Absence(tracker, made, observer)

        def committed(record: CellRecord) -> None:
            still_ours()
            objective = _track_cell(tracker, made, record)
            absence.check()
            observer.committed(record, objective)

        made = run_cells(
            made, seconds=cost.of_training, started=observer.started, committed=committed, say=observer.message,
            memory_bytes=cost.memory_bytes,
        )  # fmt: skip
        observer.ended()
        observer.message("pooling results and writing tables and report")
        patience = Patience(request.settings.folder, observer.message)
        result = patience(lambda: write_all(made, tracker, say=observer.message))
    except BaseException:  # also Ctrl-C and SIGTERM, after which a batch system waits for seconds
        observer.ended()
        if tracker is not None:
            tracker.close(limit_s=_STOP_S)
        raise
    if tracker is not None:
        tracker.close()
    return result


def rebuild(overrides: Overrides) -> tuple[Plan, Tables]:
    """Rebuild plan and tables from the store: of the latest run of a task, or of the run named by ``run=``."""
    if "task" not in overrides.values:
        raise RequestError("task= must be given; set task=NAME")
    settings = settings_of(Overrides({key: value for key, value in overrides.values.items() if key == "out"}))
    made = _read_once(recall(str(overrides.values["task"]), settings, name=str(overrides.values.get("run", ""))))
    return made, collect(made)


def _read_once(made: Plan) -> Plan:
    """The plan after the run: tables, report and MLflow read each record once."""
    return dataclasses.replace(made, store=ReadOnce(made.store.root, made.store.bucket))


def write_all(made: Plan, tracker: Tracker | None, *, say: Callable[[str], None] = lambda text: None) -> Result:
    """Write leaderboards, report and MLflow runs of the configurations from the store.

    Parameters
    ----------
    made : plan of the run
    tracker : tracker of the run; ``None`` without MLflow
    say : called if MLflow is away, once tables and report are written
    """
    settings = made.request.settings
    made = _read_once(made)
    if tracker is not None:
        tracker.wait_for_runs()
    runs = _runs_of(tracker, made)
    tables = collect(made, mlflow_runs=runs)
    shapley = shapley_of(made, tables)
    csv = write_tables(made, tables, shapley)
    failures, missing = undone(made)
    run = Results(made, tables)
    report = make_report(run) if settings.report else None
    if tracker is not None:
        _finish_tracking(tracker, run, report, say)
        if (found := _runs_of(tracker, made)) != runs and not tracker.trouble:  # MLflow has come back
            tables = collect(made, mlflow_runs=found)
            csv = write_tables(made, tables, shapley)
            report = make_report(Results(made, tables)) if settings.report else None
    return Result(
        leaderboard=tables.prediction,
        explanations=tables.explanation,
        regions=tables.regions,
        targets=tables.predictions_by_target,
        verdict="\n".join([verdict(tables.prediction, tables.predictions_by_target), *remarks(made, tables)]),
        failures=failures,
        missing=missing,
        shapley=shapley,
        csv=csv,
        report=report,
        mlflow="" if tracker is None or tracker.trouble else shown_uri(settings),
        trouble="" if tracker is None else tracker.remedy,
        shown=made.request.task.shown,
        rows=tuple(one.prediction for one in tables.pooled.values()),
        subjects=len(made.cohort.subjects),
        bucket=settings.bucket,
    )


def _runs_of(tracker: Tracker | None, made: Plan) -> dict[str, str]:
    """MLflow's ids of the runs of all configurations, as far as they are known."""
    return {one.id: tracker.run_of(one.id) for one in made.configurations} if tracker else {}


def _finish_tracking(tracker: Tracker, run: Results, report: Path | None, say: Callable[[str], None]) -> None:
    """Log the pooled results; if MLflow is away, try a few times to log all that it missed."""
    _track_pooled(tracker, run, report)
    tracker.wait()
    if not tracker.trouble:
        return
    say(
        f"tables and report are written, but MLflow is away: {tracker.trouble}. It is tried again for up to a minute; "
        "what it misses then is written when the command is repeated"
    )
    for wait_s in (0.0, *_LAST_WAITS_S):
        if wait_s:
            time.sleep(wait_s)
        _log_again(tracker, run.plan)
        _track_pooled(tracker, run, report)
        tracker.wait()
        if not tracker.trouble or tracker.stuck:
            return


class _Absence:
    """Tries to reach MLflow again during a run, and then logs what it missed."""

    def __init__(self, tracker: Tracker | None, made: Plan, observer: Observer) -> None:
        self._tracker, self._made, self._observer = tracker, made, observer
        self._said = False
        self._wait_s, self._again_s = _AGAIN_S, math.inf

    def check(self) -> None:
        """Called after each cell."""
        if self._tracker is None or not self._tracker.trouble:
            return
        now_s = time.monotonic()
        if not self._said:
            self._said = True
            self._observer.message(
                f"{self._tracker.trouble}. The run continues; its cells are kept in the store, and are logged when "
                "MLflow is back"
            )
        if math.isinf(self._again_s):
            self._again_s = now_s + self._wait_s
        elif now_s >= self._again_s:
            self._again_s, self._wait_s = math.inf, 2 * self._wait_s
            _log_again(self._tracker, self._made)


def _log_again(tracker: Tracker, made: Plan) -> None:
    """Connect to MLflow anew, and log whatever it missed."""
    tracker.again()
    if not tracker.stuck:
        _track_known(tracker, made, failed=True)


def _track_known(tracker: Tracker | None, made: Plan, *, failed: bool = False) -> None:
    """Open the MLflow runs of the configurations, and log the records that are already in the store.

    Parameters
    ----------
    failed : whether to log failures, which are otherwise computed again
    """
    if tracker is None:
        return
    tracker.open(parent_runs(made), saved_view(made))
    for cell in made.cells:
        wanted = set(dict(cell.metrics).values())
        for record in records_of(cell, made.store):
            kept = {label: identity for label, identity in record.metrics.items() if identity in wanted}
            if kept or not record.metrics:  # otherwise all its values are of older code, or not requested
                # Configurations may share a training, whose record has the id of the first of them.
                own = dataclasses.replace(record, configuration=cell.configuration, metrics=kept)
                _track_cell(tracker, made, own)
        failure = made.store.failure(cell.identity) if failed else None
        if failure is not None:
            _track_cell(tracker, made, dataclasses.replace(failure, configuration=cell.configuration))


def _track_cell(tracker: Tracker | None, made: Plan, record: CellRecord) -> float:
    """Log a record in MLflow; return its objective if it scored predictions, else NaN."""
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
        history = json.loads(store.artifact(record, "history.json").read_text("utf-8"))
        curves = {name: [epoch[name] for epoch in history] for name in ("loss", "validation")}
        return {}, {name: curve for name, curve in curves.items() if None not in curve}
    return {}, {}


def _track_pooled(tracker: Tracker, run: Results, report: Path | None) -> None:
    """Log note, metrics, figures and maps of each configuration, unless they are already logged."""
    made, tables = run.plan, run.tables
    anonymous, command = made.request.settings.anonymous, made.request.command
    tracker.wait()
    for configuration in made.configurations:
        if tracker.trouble:
            return  # its figures would be drawn for nothing
        identity = configuration.id
        note = note_of(tables, identity, command=command, report=report, anonymous=anonymous)
        rank = rank_of(tables, identity, anonymous=anonymous)
        tracker.describe(identity, note, tags={"rank": rank, **chosen_tags(made, identity)})
        metrics = pooled_metrics(tables, identity)
        done, digest = _is_complete(made, identity), pooled_of(made, identity, metrics)
        if tracker.is_pooled(identity, digest):
            continue
        # One configuration at a time, so that temporary copies of full-resolution maps do not fill the disk.
        with tempfile.TemporaryDirectory(prefix="harness-pooled-") as name:
            not_drawn = "; ".join(pooled_files(run, identity, Path(name)))
            tracker.pooled(identity, metrics, Path(name), done=done, digest=digest, not_drawn=not_drawn)
            tracker.wait()


def _tracker(made: Plan) -> Tracker | None:
    """The tracker of a run, with the names of subjects that it must redact; ``None`` for ``mlflow=off``."""
    settings = made.request.settings
    if settings.mlflow == "off":
        return None
    names = {name for pair in made.names for name in pair}
    return Tracker(
        settings,
        made.request.task.name,
        command=made.request.command,
        subjects=names,
        pseudonyms=made.pseudonyms,
    )


def _is_complete(made: Plan, configuration: str) -> bool:
    """Whether all cells of a configuration are done."""
    own = [cell for cell in made.cells if cell.configuration == configuration]
    return all(is_done(cell, made.store) for cell in own)
