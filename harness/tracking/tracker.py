"""MLflow, written by the driver alone and keyed by identity.

One experiment per task, one parent run per configuration, one child per cell.
Every run carries its identity as a tag, so the same command run again continues
the same runs and never opens twins.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import threading
import time
import urllib.parse
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.errors import HarnessError
from harness.core.paths import sqlite_uri
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.storage.store import CellRecord

__all__ = ["Tracker", "shown_uri", "tracking_uri"]

_IDENTITY, _PARENT, _ERROR, _POOLED = "harness.identity", "mlflow.parentRunId", "harness.error", "harness.pooled"
_LONGEST = 500  # characters of a parameter that every MLflow backend takes
_LONGEST_TAG = 5000
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100  # MLflow takes no more in a request
_BIDS = r"sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?"


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


class Tracker:
    """Writes runs from one background thread, in the order in which they come.

    Parameters
    ----------
    settings : where to, and whether names of subjects are left out
    task : names the experiment
    subjects : names that no text may hold if the settings say ``anonymous``; those as
        in BIDS are found without being listed. A mere number is looked for in error
        messages alone: elsewhere it is far more likely an option's value

    Notes
    -----
    The database is made here, once: several processes that open a new one crash
    in its migration. A tracker that fails stops the run only at its end: cells
    in the store are worth more than their log.
    """

    def __init__(self, settings: RunSettings, task: str, *, subjects: Collection[str] = ()) -> None:
        self._settings, self._task = settings, task
        self._names = _names(subjects) if settings.anonymous else None
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._parents: dict[str, str] = {}
        self._error: BaseException | None = None
        self._client: Any = None
        self._experiment = ""
        self._known: dict[str, _Known] = {}
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def configuration(self, configuration: Configuration, facts: Mapping[str, JSON]) -> None:
        """Open or adopt the parent run of a configuration."""
        self._queue.put(("_open_parent", (configuration, dict(facts))))

    def cell(self, record: CellRecord, metrics: Mapping[str, float], curve: Mapping[str, list[float]]) -> None:
        """Write the child run of a cell that ended.

        Parameters
        ----------
        metrics : name → value
        curve : name → one value per epoch
        """
        self._queue.put(("_write_cell", (record, dict(metrics), dict(curve))))

    def pooled(
        self,
        configuration: str,
        metrics: Mapping[str, float],
        folder: Path | None = None,
        *,
        done: bool,
        digest: str = "",
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write pooled metrics, figures and maps to a parent run and end it.

        Parameters
        ----------
        metrics : name → value; those that are not finite are left out
        folder : whatever lies in it becomes an artifact under its relative path; it
            must stay until :meth:`wait` returned
        done : whether all its cells are
        digest : of what went in; see :meth:`is_pooled`
        tags : name → text, e.g. what a search chose
        """
        self._queue.put(("_write_pooled", (configuration, dict(metrics), folder, done, digest, dict(tags))))

    def is_pooled(self, configuration: str, digest: str) -> bool:
        """Whether a parent run holds what was pooled from the same already, once :meth:`wait` returned."""
        known = self._known.get(configuration)
        return known is not None and bool(digest) and known.digest == digest and known.status != "RUNNING"

    def run_of(self, configuration: str) -> str:
        """The parent run of a configuration, once :meth:`wait` returned."""
        return self._parents.get(configuration, "")

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
                f"{self.trouble}. The cells are safe; mend it (or say mlflow=off) and run the same command again"
            )

    def close(self) -> None:
        """End the thread; parent runs that were not pooled are marked as killed."""
        self._queue.put(("_end_open", ()))
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._connect()
                    getattr(self, item[0])(*item[1])
            except Exception as error:  # told by drain()
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _barrier(self) -> None:
        """Does nothing; the queue is empty when it was reached."""

    def _connect(self) -> None:
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it would tell each step of making a database
        # MLflow's own seven tries keep the end of a run waiting for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient
            from mlflow.entities import ViewType

            self._settings.folder.mkdir(parents=True, exist_ok=True)
            uri = tracking_uri(self._settings)
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(self._task)
            artifacts = (self._settings.folder / "mlflow-artifacts").as_uri()
            # A server has a place of its own for artifacts; a database would put them into the working folder.
            served = urllib.parse.urlsplit(uri).scheme in {"http", "https", "databricks", "databricks-uc"}
            own: dict[str, Any] = {} if served or uri == "databricks" else {"artifact_location": artifacts}
            self._experiment = found.experiment_id if found else client.create_experiment(self._task, **own)
            token = None
            while True:
                page = client.search_runs([self._experiment], run_view_type=ViewType.ACTIVE_ONLY, page_token=token)
                for run in page:
                    tags = run.data.tags
                    if _IDENTITY in tags:
                        self._known[tags[_IDENTITY]] = _Known(
                            run.info.run_id, run.info.status, _ERROR in tags, tags.get(_POOLED, "")
                        )
                token = page.token
                if not token:
                    break
        self._client = client

    def _open_parent(self, configuration: Configuration, facts: dict[str, JSON]) -> None:
        if configuration.id in self._known:
            self._parents[configuration.id] = self._known[configuration.id].run
            return
        name = " ".join(f"{key}={value}" for key, value in configuration.axes.items()) or self._task
        tags = {"harness.profile": configuration.profile, "harness.cohort": configuration.fingerprint}
        tags |= {f"harness.{key}": str(value) for key, value in facts.items() if str(value)}
        params = {_legal(key): str(value) for key, value in configuration.axes.items()}
        for part in ("adapter", "model", "recipe", "split"):
            params |= {_legal(f"{part}.{key}"): str(value) for key, value in configuration.task[part].items()}
        self._parents[configuration.id] = self._start(configuration.id, name, tags, params, parent="")

    def _write_cell(self, record: CellRecord, metrics: dict[str, float], curve: dict[str, list[float]]) -> None:
        known = self._known.get(record.identity)
        if known is not None and known.status == "FINISHED":
            return
        parent = self._parents[record.configuration]
        self._begin(self._known[record.configuration])
        if known is None:
            name = f"{record.stage} {record.label} fold {record.fold} seed {record.seed}".replace("  ", " ")
            params = {"stage": record.stage, "fold": str(record.fold), "seed": str(record.seed)}
            params |= {"attribution": record.label} if record.label else {}
            tags = {f"harness.{key}": str(value) for key, value in record.hardware.items() if str(value)}
            self._start(record.identity, name, tags, params, parent=parent)
            known = self._known[record.identity]
        self._begin(known)
        if record.error:
            self._client.set_tag(known.run, _ERROR, self._said(record.error, free=True)[:_LONGEST])
        elif known.failed:
            self._client.delete_tag(known.run, _ERROR)
        known.failed = bool(record.error)
        points = [(key, value, 0) for key, value in {**metrics, "seconds": record.seconds}.items()]
        points += [(key, value, step) for key, values in curve.items() for step, value in enumerate(values, 1)]
        self._log(known.run, points)
        self._end(known, "FINISHED" if record.state == "done" else "FAILED")

    def _write_pooled(
        self,
        configuration: str,
        metrics: dict[str, float],
        folder: Path | None,
        done: bool,
        digest: str,
        tags: dict[str, str],
    ) -> None:
        known, status = self._known[configuration], "FINISHED" if done else "FAILED"
        if self.is_pooled(configuration, digest) and known.status == status:
            return
        self._begin(known)
        self._log(known.run, [(key, value, 0) for key, value in metrics.items()])
        for key, value in tags.items():
            self._client.set_tag(known.run, _legal(key), self._said(value)[:_LONGEST_TAG])
        if folder is not None and any(folder.iterdir()):
            self._client.log_artifacts(known.run, str(folder))
        # The last to be written: a run that was stopped before is pooled again.
        self._client.set_tag(known.run, _POOLED, digest)
        known.digest = digest
        self._end(known, status)

    def _end_open(self) -> None:
        for configuration in self._parents:
            if self._known[configuration].status == "RUNNING":
                self._end(self._known[configuration], "KILLED")

    def _begin(self, known: _Known) -> None:
        if known.status != "RUNNING":
            self._client.update_run(known.run, status="RUNNING")
            known.status = "RUNNING"

    def _end(self, known: _Known, status: str) -> None:
        self._client.set_terminated(known.run, status)
        known.status = status

    def _log(self, run: str, points: Sequence[tuple[str, float, int]]) -> None:
        """Metrics (name, value, step), in as few requests as MLflow allows: one costs as much as forty metrics."""
        from mlflow.entities import Metric

        now = _now()
        batch = [Metric(_legal(key), value, now, step) for key, value, step in points if math.isfinite(value)]
        for part in _parts(batch, _METRICS_AT_ONCE):
            self._client.log_batch(run, metrics=part, synchronous=True)

    def _start(self, identity: str, name: str, tags: dict[str, str], params: dict[str, str], *, parent: str) -> str:
        from mlflow.entities import Param

        said = {key: self._said(value)[:_LONGEST_TAG] for key, value in tags.items()}
        said |= {_IDENTITY: identity, **({_PARENT: parent} if parent else {})}
        run = str(self._client.create_run(self._experiment, run_name=self._said(name), tags=said).info.run_id)
        self._known[identity] = _Known(run, "RUNNING")
        for part in _parts(
            [Param(key, self._said(value)[:_LONGEST]) for key, value in params.items()], _PARAMS_AT_ONCE
        ):
            self._client.log_batch(run, params=part, synchronous=True)
        return run

    def _said(self, text: str, *, free: bool = False) -> str:
        """A text as it may leave this machine; ``free`` for one that may name a subject by a mere number."""
        if self._names is None:
            return text
        return self._names[free].sub("[subject]", text)


@dataclass
class _Known:
    """What of a run is needed again.

    Parameters
    ----------
    run : MLflow's id
    status : RUNNING, FINISHED, FAILED or KILLED
    failed : whether it says an error
    digest : of what was pooled into it
    """

    run: str
    status: str
    failed: bool = False
    digest: str = ""


def _names(subjects: Collection[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds the names in texts of our own making, and in any text."""
    # Longer names first, each as a whole word: sub-1 must not leave the 2 of sub-12.
    longest = sorted(filter(None, subjects), key=lambda name: (-len(name), name))

    def finds(names: Collection[str]) -> re.Pattern[str]:
        return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join([*map(re.escape, names), _BIDS])})(?![A-Za-z0-9])")

    return finds([name for name in longest if not name.isdigit()]), finds(longest)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _now() -> int:
    return int(time.time() * 1000)


def _secret(uri: str) -> str:
    """The password in a URI, empty if there is none."""
    try:
        return urllib.parse.urlsplit(uri).password or ""
    except ValueError:
        return ""


def _legal(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_ - . / space``."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
