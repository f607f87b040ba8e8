"""Log runs in MLflow, from the driver process only.

Each task has two experiments. ``<task>`` has one run per configuration and no others,
so that trainings never push configurations off the first page. ``<task> trainings``
has one run per training (configuration, fold and seed), with the results of all cells
computed from it. Runs of trainings have the run of their configuration as parent; the
note of the configuration's run links to them.

Each run has its identity as a tag, so repeating a command continues the same runs
and creates no duplicates.
"""

from __future__ import annotations

import queue
import threading
import time
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.errors import HarnessError, first_line
from harness.core.identity import identify
from harness.core.passwords import without_password, without_passwords_of
from harness.core.paths import sqlite_uri
from harness.core.pseudonyms import Pseudonyms
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.storage.store import CellRecord
from harness.tracking.client import exclusive, open_client
from harness.tracking.pages import LATEST, LATEST_TIME, RUN, VIEW, SavedView, compare_page, compared, runs_page
from harness.tracking.reach import check_answers
from harness.tracking.redaction import Redaction
from harness.tracking.runs import IDENTITY, PARENT, Dataset, Run, Runs, legal, now_ms

__all__ = ["BY_EPOCH", "ParentRun", "Tracker", "shown_uri", "tracking_uri"]

BY_EPOCH = "by epoch"
"""Prefix of metrics with one value per epoch; MLflow groups charts by the prefix before the slash."""

_ERROR = "harness.error"  # prefix of the tags with the errors of failed cells of a training
_CELLS = "harness.cells"  # cells logged in the run of a training
_CURVE = "harness.curve"  # cell whose loss curve is logged
_POOLED = "harness.pooled"  # digest of the results pooled in the run of a configuration
_NOT_DRAWN = "harness.not_drawn"  # figures that could not be drawn
_NOTE = "mlflow.note.content"
_LONGEST_ERROR, _LONGEST_EXPERIMENT_TAG = 500, 20000  # characters
_PATIENCE_S = 5.0  # for one call, after which the server is asked whether it still answers
_SHORT = 8  # characters of an identity that distinguish the cells of a training


def tracking_uri(settings: RunSettings) -> str:
    """URI of the tracking server or database."""
    if settings.mlflow != "auto":
        return settings.mlflow
    return sqlite_uri(settings.folder / "mlflow.db")


def shown_uri(settings: RunSettings) -> str:
    """The tracking URI without its password, for display."""
    return without_password(tracking_uri(settings))


@dataclass(frozen=True)
class ParentRun:
    """Data of a configuration's MLflow run that are known before it is computed.

    Parameters
    ----------
    configuration : the configuration
    name : name of the MLflow run; starts with the axes in which configurations differ
    dataset : data set for training and test
    """

    configuration: Configuration
    name: str
    dataset: Dataset


class Tracker:
    """Writes runs to MLflow from one background thread, in the order of the calls.

    Parameters
    ----------
    settings : settings with the tracking URI, the folder, and whether subjects are anonymous
    task : name of the task, from which the experiments are named
    command : command line, shown with the latest run
    subjects : names of subjects to redact with ``anonymous=true``, see
        :class:`~harness.tracking.redaction.Redaction`
    pseudonyms : pseudonyms of subjects with ``pseudonymise=true``

    Notes
    -----
    An error of the tracker is raised only at the end of the run, because it must not
    prevent cells from being stored.
    """

    def __init__(
        self,
        settings: RunSettings,
        task: str,
        *,
        command: str = "harness run",
        subjects: Collection[str] = (),
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self._settings, self._task, self._command = settings, task, command
        self._redact = Redaction(subjects) if settings.anonymous else pseudonyms
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._error: BaseException | None = None
        self._stuck: HarnessError | None = None  # why the thread was not waited for
        self._since: float | None = None  # time at which the thread began its present call
        self._opened = threading.Event()
        self._client: Any = None
        self._experiment, self._trainings = "", ""
        self._parents: dict[str, ParentRun] = {}
        self._known: dict[str, Run] = {}  # by identity, of configurations and of trainings
        self._pending: dict[str, list[_Result]] = {}  # by identity of the training
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # Called by the driver

    def open(self, parents: Sequence[ParentRun], view: SavedView) -> None:
        """Open or continue the runs of all configurations of a harness run.

        Parameters
        ----------
        parents : data of the runs, one per configuration
        view : saved view of the table of configurations
        """
        self._opened.clear()
        self._queue.put(("_open", (tuple(parents), view)))

    def cell(self, record: CellRecord, metrics: Mapping[str, float], curve: Mapping[str, Sequence[float]]) -> None:
        """Log a cell that is done or failed in the run of its training.

        Parameters
        ----------
        record : record of the cell; its training is found by configuration, fold and seed
        metrics : values by name; those of a labelled cell are logged as ``label/name``
        curve : values per epoch, by name
        """
        self._queue.put(("_collect", (_Result(record, dict(metrics), dict(curve)),)))

    def describe(self, configuration: str, note: str, *, tags: Mapping[str, str] = MappingProxyType({})) -> None:
        """Set the note and other tags of a configuration's run, unless they are unchanged.

        Parameters
        ----------
        configuration : id of the configuration
        note : Markdown text; a link to the configuration's trainings is added to the first paragraph
        tags : tags by name, e.g. the rank or the result of a search
        """
        self._queue.put(("_write_description", (configuration, note, dict(tags))))

    def pooled(
        self,
        configuration: str,
        metrics: Mapping[str, float],
        folder: Path | None = None,
        *,
        done: bool,
        digest: str = "",
        not_drawn: str = "",
    ) -> None:
        """Log pooled metrics, figures and maps in a configuration's run and end it.

        Parameters
        ----------
        configuration : id of the configuration
        metrics : values by name; those that are not finite are left out
        folder : folder whose files become artifacts under their relative paths; it must
            exist until :meth:`wait` has returned
        done : whether all cells of the configuration are done
        digest : digest of the pooled results, see :meth:`is_pooled`
        not_drawn : figures that could not be drawn, with their errors
        """
        self._queue.put(("_write_pooled", (configuration, dict(metrics), folder, done, digest, not_drawn)))

    def is_pooled(self, configuration: str, digest: str) -> bool:
        """Whether the run already has the pooled results with this digest; call :meth:`wait` first."""
        run = self._known.get(configuration)
        return run is not None and bool(digest) and run.tags.get(_POOLED) == digest and run.status != "RUNNING"

    def run_of(self, configuration: str) -> str:
        """MLflow's id of a configuration's run; call :meth:`wait_for_runs` or :meth:`wait` first."""
        return self._known[configuration].id if configuration in self._known else ""

    @property
    def trouble(self) -> str:
        """Error that stopped the tracker, in one sentence; empty if there is none."""
        error = self._error or self._stuck
        if error is None:
            return ""
        cause = without_passwords_of(
            str(error) if isinstance(error, HarnessError) else first_line(error), [tracking_uri(self._settings)]
        )
        return f"cannot write to MLflow at {shown_uri(self._settings)}: {cause}"

    @property
    def stuck(self) -> bool:
        """Whether the thread was still waiting for a server that no longer answers, when last waited for."""
        return self._stuck is not None

    @property
    def remedy(self) -> str:
        """The error and what to do, for the end of a run; empty if there is none."""
        return self.trouble and (
            f"{self.trouble}. All finished cells are in the store; fix the cause or set mlflow=off, then repeat "
            "the command"
        )

    def again(self) -> None:
        """Connect anew after an error; whatever was not written must be logged again, runs included.

        Runs, cells and pooled results that were written before are found and not repeated.
        """
        self.wait()
        if self._stuck is not None:
            return  # the thread is still waiting for an answer
        self._error = self._client = None
        for state in (self._parents, self._known, self._pending):
            state.clear()

    def wait(self) -> None:
        """Wait until everything is written, an error has stopped the tracker, or its server no longer answers."""
        reached = threading.Event()
        self._queue.put(("_barrier", (reached,)))
        self._wait_for(reached)

    def wait_for_runs(self) -> None:
        """Wait as :meth:`wait` does, but only for the runs of configurations, not for their content."""
        self._wait_for(self._opened)

    def _wait_for(self, event: threading.Event) -> None:
        while self._thread.is_alive() and not event.wait(_PATIENCE_S):
            since = self._since
            if since is None or time.monotonic() - since < _PATIENCE_S:
                continue
            try:
                check_answers(tracking_uri(self._settings))
            except HarnessError as error:
                self._stuck = error
                return
        self._stuck = None

    def drain(self) -> None:
        """Wait until everything is written.

        Raises
        ------
        HarnessError
            If writing to MLflow failed.
        """
        self.wait()
        if self.remedy:
            raise HarnessError(self.remedy)

    def close(self, *, limit_s: float | None = None) -> None:
        """Stop the thread; runs of configurations that were not pooled are marked as KILLED.

        Parameters
        ----------
        limit_s : seconds to wait for it, for a process that must end; by default, as long as :meth:`wait` does.
            What it has not written by then is missing in MLflow until the command is repeated
        """
        self._queue.put(("_end_open", ()))
        if limit_s is None:
            self.wait()
            limit_s = 0.0 if self._stuck is not None else _PATIENCE_S
        self._queue.put(None)
        self._thread.join(limit_s)  # the end of the process ends it

    # Called in the thread

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            name, given = item
            self._since = time.monotonic()
            try:
                if self._error is None:
                    self._take(name, given)
            except Exception as error:  # raised by drain()
                self._error = error
            finally:
                self._since = None
                if name == "_open":
                    self._opened.set()
                if name == "_barrier":
                    given[0].set()

    def _take(self, name: str, given: tuple[Any, ...]) -> None:
        """Perform one call; consecutive cells are written together."""
        self._connect()
        if name != "_collect":
            self._flush()
        getattr(self, name)(*given)
        if self._queue.empty():
            self._flush()

    def _barrier(self, reached: threading.Event) -> None:
        """Do nothing; reached once all previous calls are written, or an error has stopped the tracker."""

    def _connect(self) -> None:
        if self._client is not None:
            return
        uri = tracking_uri(self._settings)
        with exclusive(self._settings.folder):
            client = open_client(uri)
            self._experiment = self._experiment_of(client, self._task)
            self._trainings = self._experiment_of(client, f"{self._task} trainings")
        self._client, self._runs = client, Runs(client, self._redact)

    def _experiment_of(self, client: Any, name: str) -> str:
        """Id of an experiment, which is created if needed."""
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        uri = tracking_uri(self._settings)
        served = urllib.parse.urlsplit(uri).scheme in {"http", "https", "databricks", "databricks-uc"}
        if served or uri == "databricks":
            return str(client.create_experiment(name))
        # Servers have a location for artifacts; with a database, they would be written to the working folder.
        location = (self._settings.folder / "mlflow-artifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=location))

    def _open(self, parents: Sequence[ParentRun], view: SavedView) -> None:
        latest = identify(sorted(one.configuration.id for one in parents))
        for parent in parents:
            self._open_parent(parent, latest)
        self._describe_experiments(view, latest, [self._known[one.configuration.id].id for one in parents])

    def _open_parent(self, parent: ParentRun, latest: str) -> None:
        configuration = parent.configuration
        identity = configuration.id
        tags = {
            RUN: latest,
            "harness.profile": configuration.profile,
            "mlflow.source.name": f"harness run task={self._task}",  # MLflow shows the text after the last slash
            "mlflow.source.type": "LOCAL",
        }
        with exclusive(self._settings.folder):  # another driver may create the same run
            run = self._runs.find(self._experiment, identity)
            made = run is None
            if run is None:
                run = self._runs.create(self._experiment, parent.name, {IDENTITY: identity, **tags})
            if not run.described:  # also of a process that was interrupted
                self._runs.log_dataset(run, parent.dataset)
                self._runs.log(run, params=_params(configuration))
        self._parents[identity], self._known[identity] = parent, run
        if not made:
            self._runs.log(run, tags=tags)
            self._known |= {one.tags[IDENTITY]: one for one in self._runs.below(self._trainings, run)}

    def _describe_experiments(self, view: SavedView, latest: str, runs: Sequence[str]) -> None:
        """Set the notes and views of the experiments, and the tags that ``harness ui`` reads."""
        pages = {f"Compare the latest run ({compared(len(runs))})": compare_page(self._experiment, runs)}
        pages |= {"All configurations": runs_page(self._experiment), "Trainings": runs_page(self._trainings)}
        links = " · ".join(f"[{label}]({page})" for label, page in pages.items() if page)
        back = f"[Configurations]({runs_page(self._experiment)})"
        command = self._runs.redacted(self._command)
        below = SavedView("Trainings", (*view.metrics[:1], f"{BY_EPOCH}/loss"), ("fold", "seed", *view.params))
        self._tag_experiment(self._trainings, {VIEW: below.to_tag(now_ms()), _NOTE: back})
        note = f"{links}\n\nLatest run: `{command}`"
        self._tag_experiment(self._experiment, {VIEW: view.to_tag(now_ms()), _NOTE: note, LATEST_TIME: str(now_ms())})
        # Written last, so that harness ui never finds a run without description.
        self._tag_experiment(self._experiment, {LATEST: latest})

    def _tag_experiment(self, experiment: str, tags: Mapping[str, str]) -> None:
        with exclusive(self._settings.folder):  # adding a tag from two drivers at once violates a database constraint
            for key, value in tags.items():
                if len(value) <= _LONGEST_EXPERIMENT_TAG:  # otherwise MLflow shows its default columns
                    self._client.set_experiment_tag(experiment, key, value)

    def _collect(self, result: _Result) -> None:
        if result.record.configuration not in self._known:
            raise HarnessError(f"no run was opened for configuration {result.record.configuration}")
        self._pending.setdefault(result.training, []).append(result)

    def _flush(self) -> None:
        while self._pending:
            identity = next(iter(self._pending))
            self._write_training(identity, self._pending.pop(identity))

    def _write_training(self, identity: str, results: Sequence[_Result]) -> None:
        """Write the new cells of a training, in one request."""
        run = self._known.get(identity)
        results = [one for one in results if run is None or not _holds(run, one)]
        if not results:
            if run is not None and run.status == "RUNNING":  # its process was interrupted before it could be ended
                self._end_training(run)
            return
        self._runs.begin(self._known[results[0].record.configuration])
        curve = next((one.short for one in results if one.curve), "")
        if run is not None and curve and run.tags.get(_CURVE, curve) != curve:
            # The network was trained again with other code. Two curves in one run could not be distinguished.
            self._runs.delete(run)
            run = None
        if run is None:
            run = self._open_training(identity, results[0].record)
        self._describe_training(run, results[0].record)
        for one in results:
            if not one.record.error:
                self._runs.untag(run, one.error_tag)
        errors = {one.error_tag: one.record.error for one in results if one.record.error}
        tags = {key: self._runs.redacted(error, foreign=True)[:_LONGEST_ERROR] for key, error in errors.items()}
        done = [*run.tags.get(_CELLS, "").split(), *(one.short for one in results if one.record.state == "done")]
        tags |= {_CELLS: " ".join(dict.fromkeys(done)), **({_CURVE: curve} if curve else {})}
        self._runs.log(run, points=[point for one in results for point in one.points], tags=tags)
        self._end_training(run)

    def _end_training(self, run: Run) -> None:
        self._runs.end(run, "FAILED" if any(key.startswith(_ERROR) for key in run.tags) else "FINISHED")

    def _open_training(self, identity: str, record: CellRecord) -> Run:
        """The run of a training, created unless another driver has done so."""
        parent = self._parents[record.configuration]
        tags = {IDENTITY: identity, PARENT: self._known[record.configuration].id}
        tags |= {f"harness.{key}": str(value) for key, value in record.hardware.items() if str(value)}
        where = f"fold {record.fold}" if record.fold >= 0 else "ensemble"
        name = f"{parent.name} {where} seed {record.seed}"
        with exclusive(self._settings.folder):
            run = self._runs.find(self._trainings, identity)
            if run is None:
                run = self._runs.create(self._trainings, name, tags, seconds=record.seconds)
        self._known[identity] = run
        return run

    def _describe_training(self, run: Run, record: CellRecord) -> None:
        """Write the parameters of a training's run, unless it has them."""
        if not run.described:
            axes = {key: str(value) for key, value in self._parents[record.configuration].configuration.axes.items()}
            self._runs.log(run, params={**axes, "fold": str(record.fold), "seed": str(record.seed)})

    def _write_description(self, configuration: str, note: str, tags: dict[str, str]) -> None:
        run = self._known[configuration]
        first, _, rest = note.partition("\n\n")
        link = f"[Trainings of this configuration]({runs_page(self._trainings, parent=run.id)})"
        self._runs.log(run, tags={**tags, _NOTE: f"{first} · {link}\n\n{rest}"})

    def _write_pooled(
        self,
        configuration: str,
        metrics: dict[str, float],
        folder: Path | None,
        done: bool,
        digest: str,
        not_drawn: str,
    ) -> None:
        run, status = self._known[configuration], "FINISHED" if done else "FAILED"
        if self.is_pooled(configuration, digest) and run.status == status:
            return
        self._runs.begin(run)
        tags = {_NOT_DRAWN: self._runs.redacted(not_drawn, foreign=True)[:_LONGEST_ERROR]} if not_drawn else {}
        if not tags:
            self._runs.untag(run, _NOT_DRAWN)
        self._runs.log(run, points=[(key, value, 0) for key, value in metrics.items()], tags=tags)
        if folder is not None:
            self._runs.log_files(run, folder)
        # Written last, so that a run that was interrupted before is pooled again.
        self._runs.log(run, tags={_POOLED: digest})
        self._runs.end(run, status)

    def _end_open(self) -> None:
        for configuration in self._parents:
            if self._known[configuration].status == "RUNNING":
                self._runs.end(self._known[configuration], "KILLED")


@dataclass(frozen=True)
class _Result:
    """A cell that is done or failed, with its values."""

    record: CellRecord
    metrics: Mapping[str, float]
    curve: Mapping[str, Sequence[float]]

    @property
    def training(self) -> str:
        """Identity of the run in which it is logged."""
        return f"{self.record.configuration}/{self.record.fold}/{self.record.seed}"

    @property
    def short(self) -> str:
        """Short identity, unique among the cells of a training."""
        return self.record.identity[:_SHORT]

    @property
    def name(self) -> str:
        """Readable name, e.g. ``explain saliency``."""
        return " ".join(filter(None, (self.record.stage, self.record.label)))

    @property
    def error_tag(self) -> str:
        """Name of the tag with its error."""
        return legal(f"{_ERROR}.{self.name}")

    @property
    def points(self) -> list[tuple[str, float, int]]:
        """Metrics as (name, value, step): values at step 0, curves from epoch 1."""
        start = f"{self.record.label}/" if self.record.label else ""
        found = [(f"{start}{key}", value, 0) for key, value in self.metrics.items()]
        found += [(f"seconds/{self.name}", self.record.seconds, 0)]
        for key, line in self.curve.items():
            found += [(f"{BY_EPOCH}/{key}", value, epoch) for epoch, value in enumerate(line, 1)]
        return found


def _holds(run: Run, result: _Result) -> bool:
    """Whether a finished cell is already logged in a run."""
    return result.record.state == "done" and result.short in run.tags.get(_CELLS, "").split()


def _params(configuration: Configuration) -> dict[str, str]:
    """Axes under their short names, then the options of all components except those of the data set."""
    params = {key: str(value) for key, value in configuration.axes.items()}
    described = configuration.task
    components = {name: options for name, options in described.items() if name not in ("cohort", "phantom")}
    components |= {f"targets.{label}": options for label, options in described.get("targets", {}).items()}
    for name, options in components.items():
        if isinstance(options, Mapping) and "use" in options:
            params |= {f"{name}.{key}": str(value) for key, value in options.items()}
    return params
