"""MLflow, written by the driver alone and keyed by identity.

Two experiments per task: ``<task>`` has one run per configuration and nothing
else, so that no number of trainings can push a configuration off the first
page; ``<task> trainings`` has one run per training (configuration, fold and
seed), with the results of everything computed from it. The second kind names the
first as its parent, the note of the first links to the second.

Every run carries its identity as a tag, so the same command run again continues
the same runs and never opens twins.
"""

from __future__ import annotations

import queue
import threading
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.errors import HarnessError
from harness.core.identity import identify
from harness.core.paths import sqlite_uri
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.storage.store import CellRecord
from harness.tracking.client import exclusive, open_client
from harness.tracking.pages import LATEST, LATEST_TIME, RUN, VIEW, SavedView, compare_page, compared, runs_page
from harness.tracking.redaction import Redaction
from harness.tracking.runs import IDENTITY, PARENT, Dataset, Run, Runs, legal, now_ms

__all__ = ["BY_EPOCH", "ParentRun", "Tracker", "shown_uri", "tracking_uri"]

BY_EPOCH = "by epoch"
"""Begins the names of metrics with a value per epoch; MLflow sorts its charts by what comes before the slash."""

_ERROR = "harness.error"  # begins the name of a tag for each failed cell of a training
_CELLS = "harness.cells"  # the cells that the run of a training holds
_CURVE = "harness.curve"  # the cell whose curve it shows
_POOLED = "harness.pooled"  # digest of what was pooled into the run of a configuration
_NOT_DRAWN = "harness.not_drawn"  # pictures that failed
_NOTE = "mlflow.note.content"
_LONGEST_ERROR, _LONGEST_EXPERIMENT_TAG = 500, 20000  # characters
_SHORT = 8  # characters of an identity that tell the cells of one training apart


def tracking_uri(settings: RunSettings) -> str:
    """Where runs are tracked."""
    if settings.mlflow != "auto":
        return settings.mlflow
    return sqlite_uri(settings.folder / "mlflow.db")


def shown_uri(settings: RunSettings) -> str:
    """The same to be shown: without a password."""
    uri = tracking_uri(settings)
    secret = _secret(uri)
    return uri.replace(secret, "***") if secret else uri


@dataclass(frozen=True)
class ParentRun:
    """What is known of a configuration before it is computed.

    Parameters
    ----------
    configuration : itself
    name : of its MLflow run; begins with what differs from its neighbours
    dataset : on which it is trained and tested
    """

    configuration: Configuration
    name: str
    dataset: Dataset


class Tracker:
    """Writes runs from one background thread, in the order in which they come.

    Parameters
    ----------
    settings : where to, and whether names of subjects are left out
    task : names the experiments
    command : the command line, shown with the latest run
    subjects : names that no text may hold if the settings say ``anonymous``; see
        :class:`~harness.tracking.redaction.Redaction`

    Notes
    -----
    A tracker that fails stops the run only at its end: cells in the store are
    worth more than their log.
    """

    def __init__(
        self, settings: RunSettings, task: str, *, command: str = "harness run", subjects: Collection[str] = ()
    ) -> None:
        self._settings, self._task, self._command = settings, task, command
        self._redact = Redaction(subjects) if settings.anonymous else None
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._error: BaseException | None = None
        self._client: Any = None
        self._experiment, self._trainings = "", ""
        self._parents: dict[str, ParentRun] = {}
        self._known: dict[str, Run] = {}  # by identity, of configurations and of trainings
        self._pending: dict[str, list[_Result]] = {}  # by identity of the training
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # What the driver calls

    def open(self, parents: Sequence[ParentRun], view: SavedView) -> None:
        """Open or continue the runs of all configurations of a harness run.

        Parameters
        ----------
        parents : one per configuration
        view : how the table of configurations is first seen
        """
        self._queue.put(("_open", (tuple(parents), view)))

    def cell(self, record: CellRecord, metrics: Mapping[str, float], curve: Mapping[str, Sequence[float]]) -> None:
        """Write a cell that ended to the run of its training.

        Parameters
        ----------
        record : of the cell; its training is found by configuration, fold and seed
        metrics : name → value; those of a labelled cell are written as ``label/name``
        curve : name → one value per epoch
        """
        self._queue.put(("_collect", (_Result(record, dict(metrics), dict(curve)),)))

    def describe(self, configuration: str, note: str, *, tags: Mapping[str, str] = MappingProxyType({})) -> None:
        """Set the note and further tags of a configuration's run, where they differ.

        Parameters
        ----------
        configuration : id
        note : Markdown; a link to the configuration's trainings is added to the first paragraph
        tags : name → text, e.g. the rank, or what a search chose
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
        """Write pooled metrics, figures and maps to a configuration's run and end it.

        Parameters
        ----------
        configuration : id
        metrics : name → value; those that are not finite are left out
        folder : whatever lies in it becomes an artifact under its relative path; it
            must stay until :meth:`wait` returned
        done : whether all its cells are
        digest : of what went in; see :meth:`is_pooled`
        not_drawn : pictures that failed, with their errors
        """
        self._queue.put(("_write_pooled", (configuration, dict(metrics), folder, done, digest, not_drawn)))

    def is_pooled(self, configuration: str, digest: str) -> bool:
        """Whether a run holds what was pooled from the same already, once :meth:`wait` returned."""
        run = self._known.get(configuration)
        return run is not None and bool(digest) and run.tags.get(_POOLED) == digest and run.status != "RUNNING"

    def run_of(self, configuration: str) -> str:
        """MLflow's id of a configuration's run, once :meth:`wait` returned."""
        return self._known[configuration].id if configuration in self._known else ""

    @property
    def trouble(self) -> str:
        """Why nothing is written any more, in one sentence; empty while all is well."""
        if self._error is None:
            return ""
        cause = str(self._error).strip().partition("\n")[0] or type(self._error).__name__
        secret = _secret(tracking_uri(self._settings))
        return (
            f"MLflow at {shown_uri(self._settings)} could not be written: "
            f"{cause.replace(secret, '***') if secret else cause}"
        )

    def wait(self) -> None:
        """Wait until everything is written, or cannot be."""
        self._queue.put(("_barrier", ()))
        self._queue.join()

    def drain(self) -> None:
        """The same, and tell what went wrong.

        Raises
        ------
        HarnessError
            If MLflow could not be written to.
        """
        self.wait()
        if self.trouble:
            raise HarnessError(
                f"{self.trouble}. The cells are safe; fix it (or set mlflow=off) and run the same command again"
            )

    def close(self) -> None:
        """End the thread; runs of configurations that were not pooled are marked as killed."""
        self._queue.put(("_end_open", ()))
        self._queue.put(None)
        self._thread.join()

    # The thread

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._take(*item)
            except Exception as error:  # told by drain()
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _take(self, name: str, given: tuple[Any, ...]) -> None:
        """Do what was asked; cells that come together are written together."""
        self._connect()
        if name != "_collect":
            self._flush()
        getattr(self, name)(*given)
        if self._queue.empty():
            self._flush()

    def _barrier(self) -> None:
        """Does nothing; everything before it is written when it is reached."""

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
        """Id of an experiment, which is created if there is none."""
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        uri = tracking_uri(self._settings)
        served = urllib.parse.urlsplit(uri).scheme in {"http", "https", "databricks", "databricks-uc"}
        if served or uri == "databricks":
            return str(client.create_experiment(name))
        # A server has a place of its own for artifacts; a database would put them into the working folder.
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
            "mlflow.source.name": f"harness run task={self._task}",  # MLflow shows what follows the last slash
            "mlflow.source.type": "LOCAL",
        }
        with exclusive(self._settings.folder):  # another driver may be about to create the same run
            run = self._runs.find(self._experiment, identity)
            made = run is None
            if run is None:
                run = self._runs.create(self._experiment, parent.name, {IDENTITY: identity, **tags})
        self._parents[identity], self._known[identity] = parent, run
        if made:
            self._runs.log(run, params=_params(configuration))
            self._runs.log_dataset(run, parent.dataset)
        else:
            self._runs.log(run, tags=tags)
            self._known |= {one.tags[IDENTITY]: one for one in self._runs.below(self._trainings, run)}

    def _describe_experiments(self, view: SavedView, latest: str, runs: Sequence[str]) -> None:
        """What a reader finds at the top of the experiments, and where ``harness ui`` leads."""
        pages = {f"Compare the latest run ({compared(len(runs))})": compare_page(self._experiment, runs)}
        pages |= {"All configurations": runs_page(self._experiment), "Trainings": runs_page(self._trainings)}
        links = " · ".join(f"[{label}]({page})" for label, page in pages.items() if page)
        back = f"[Configurations]({runs_page(self._experiment)})"
        command = self._runs.redacted(self._command)
        below = SavedView("Trainings", (*view.metrics[:1], f"{BY_EPOCH}/loss"), ("fold", "seed", *view.params))
        self._tag_experiment(self._trainings, {VIEW: below.to_tag(now_ms()), _NOTE: back})
        note = f"{links}\n\nLatest run: `{command}`"
        self._tag_experiment(self._experiment, {VIEW: view.to_tag(now_ms()), _NOTE: note, LATEST_TIME: str(now_ms())})
        # The last to be written: harness ui finds a run that is described.
        self._tag_experiment(self._experiment, {LATEST: latest})

    def _tag_experiment(self, experiment: str, tags: Mapping[str, str]) -> None:
        with exclusive(self._settings.folder):  # two drivers that add one tag at once break the database's rule
            for key, value in tags.items():
                if len(value) <= _LONGEST_EXPERIMENT_TAG:  # else MLflow shows its own columns
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
        """Write what is new of the cells of one training, in one request."""
        run = self._known.get(identity)
        results = [one for one in results if run is None or not _holds(run, one)]
        if not results:
            return
        self._runs.begin(self._known[results[0].record.configuration])
        curve = next((one.short for one in results if one.curve), "")
        if run is not None and curve and run.tags.get(_CURVE, curve) != curve:
            # The network was trained again with other code: two curves in one run could not be told apart.
            self._runs.delete(run)
            run = None
        run = run or self._open_training(identity, results[0].record)
        for one in results:
            if not one.record.error:
                self._runs.untag(run, one.error_tag)
        errors = {one.error_tag: one.record.error for one in results if one.record.error}
        tags = {key: self._runs.redacted(error, foreign=True)[:_LONGEST_ERROR] for key, error in errors.items()}
        done = [*run.tags.get(_CELLS, "").split(), *(one.short for one in results if one.record.state == "done")]
        tags |= {_CELLS: " ".join(dict.fromkeys(done)), **({_CURVE: curve} if curve else {})}
        self._runs.log(run, points=[point for one in results for point in one.points], tags=tags)
        self._runs.end(run, "FAILED" if any(key.startswith(_ERROR) for key in run.tags) else "FINISHED")

    def _open_training(self, identity: str, record: CellRecord) -> Run:
        """The run of a training, which another driver may have created meanwhile."""
        parent = self._parents[record.configuration]
        tags = {IDENTITY: identity, PARENT: self._known[record.configuration].id}
        tags |= {f"harness.{key}": str(value) for key, value in record.hardware.items() if str(value)}
        where = f"fold {record.fold}" if record.fold >= 0 else "ensemble"
        name = f"{parent.name} {where} seed {record.seed}"
        with exclusive(self._settings.folder):
            run = self._runs.find(self._trainings, identity)
            made = run is None
            if run is None:
                run = self._runs.create(self._trainings, name, tags, seconds=record.seconds)
        self._known[identity] = run
        if made:
            axes = {key: str(value) for key, value in parent.configuration.axes.items()}
            self._runs.log(run, params={**axes, "fold": str(record.fold), "seed": str(record.seed)})
        return run

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
        # The last to be written: a run that was stopped before is pooled again.
        self._runs.log(run, tags={_POOLED: digest})
        self._runs.end(run, status)

    def _end_open(self) -> None:
        for configuration in self._parents:
            if self._known[configuration].status == "RUNNING":
                self._runs.end(self._known[configuration], "KILLED")


@dataclass(frozen=True)
class _Result:
    """A cell that ended, with what is shown of it."""

    record: CellRecord
    metrics: Mapping[str, float]
    curve: Mapping[str, Sequence[float]]

    @property
    def training(self) -> str:
        """Identity of the run that it is written to."""
        return f"{self.record.configuration}/{self.record.fold}/{self.record.seed}"

    @property
    def short(self) -> str:
        """Tells the cells of one training apart."""
        return self.record.identity[:_SHORT]

    @property
    def name(self) -> str:
        """Tells them apart for people, e.g. ``explain saliency``."""
        return " ".join(filter(None, (self.record.stage, self.record.label)))

    @property
    def error_tag(self) -> str:
        """The tag that shows its error."""
        return legal(f"{_ERROR}.{self.name}")

    @property
    def points(self) -> list[tuple[str, float, int]]:
        """Its metrics (name, value, step): values at step 0, curves from epoch 1."""
        start = f"{self.record.label}/" if self.record.label else ""
        found = [(f"{start}{key}", value, 0) for key, value in self.metrics.items()]
        found += [(f"seconds/{self.name}", self.record.seconds, 0)]
        for key, line in self.curve.items():
            found += [(f"{BY_EPOCH}/{key}", value, epoch) for epoch, value in enumerate(line, 1)]
        return found


def _holds(run: Run, result: _Result) -> bool:
    """Whether a run shows a finished cell already."""
    return result.record.state == "done" and result.short in run.tags.get(_CELLS, "").split()


def _params(configuration: Configuration) -> dict[str, str]:
    """The axes by their own names, then the options of what is trained; how data were read is told by the data set."""
    params = {key: str(value) for key, value in configuration.axes.items()}
    described = configuration.task
    components = {name: options for name, options in described.items() if name not in ("cohort", "phantom")}
    components |= {f"targets.{label}": options for label, options in described.get("targets", {}).items()}
    for name, options in components.items():
        if isinstance(options, Mapping) and "use" in options:
            params |= {f"{name}.{key}": str(value) for key, value in options.items()}
    return params


def _secret(uri: str) -> str:
    """The password in a URI, empty if there is none."""
    try:
        return urllib.parse.urlsplit(uri).password or ""
    except ValueError:
        return ""
