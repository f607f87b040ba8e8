"""MLflow, written by the driver alone and keyed by identity.

One experiment per task, one parent run per configuration, one child per cell.
Every run carries its identity as a tag, so the same command run again continues
the same runs and never opens twins.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.settings import RunSettings
from harness.spec import Configuration
from harness.store import CellRecord
from harness.types import JSON

__all__ = ["Tracker", "tracking_uri"]

_IDENTITY = "harness.identity"
_LONGEST = 500  # characters of a parameter that every MLflow backend takes


def tracking_uri(settings: RunSettings) -> str:
    """Where runs are tracked."""
    if settings.mlflow != "auto":
        return settings.mlflow
    return f"sqlite:///{settings.folder / 'mlflow.db'}"


class Tracker:
    """Writes runs from one background thread, in the order in which they come.

    Parameters
    ----------
    settings : where to
    task : names the experiment

    Notes
    -----
    The database is made here, once: several processes that open a new one crash
    in its migration. A tracker that fails stops the run only at its end: cells
    in the store are worth more than their log.
    """

    def __init__(self, settings: RunSettings, task: str) -> None:
        self._settings, self._task = settings, task
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._parents: dict[str, str] = {}
        self._error: BaseException | None = None
        self._client: Any = None
        self._experiment = ""
        self._known: dict[str, Any] = {}
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
        self, configuration: str, metrics: Mapping[str, float], files: Mapping[str, Path], *, done: bool
    ) -> None:
        """Write pooled metrics and figures to a parent run and end it.

        Parameters
        ----------
        files : artifact folder → file
        done : whether all its cells are
        """
        self._queue.put(("_write_pooled", (configuration, dict(metrics), dict(files), done)))

    def run_of(self, configuration: str) -> str:
        """The parent run of a configuration, once :meth:`drain` returned."""
        return self._parents.get(configuration, "")

    def drain(self) -> None:
        """Wait until everything is written.

        Raises
        ------
        HarnessError
            If MLflow could not be written to.
        """
        self._queue.put(("_barrier", ()))
        self._queue.join()
        if self._error is not None:
            raise HarnessError(
                f"MLflow at {tracking_uri(self._settings)} could not be written: {self._error}. "
                "The cells are safe; mend it (or say mlflow=off) and run the same command again"
            )

    def close(self) -> None:
        """End the thread."""
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
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient
            from mlflow.entities import ViewType

            self._settings.folder.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(tracking_uri=tracking_uri(self._settings))
            found = client.get_experiment_by_name(self._task)
            artifacts = (self._settings.folder / "mlflow-artifacts").as_uri()
            # A server has a place of its own for artifacts; a database has none.
            own: dict[str, Any] = {"artifact_location": artifacts} if self._settings.mlflow == "auto" else {}
            self._experiment = found.experiment_id if found else client.create_experiment(self._task, **own)
            token = None
            while True:
                page = client.search_runs([self._experiment], run_view_type=ViewType.ACTIVE_ONLY, page_token=token)
                for run in page:
                    if _IDENTITY in run.data.tags:
                        self._known[run.data.tags[_IDENTITY]] = run.info
                token = page.token
                if not token:
                    break
        self._client = client

    def _open_parent(self, configuration: Configuration, facts: dict[str, JSON]) -> None:
        if configuration.id in self._known:
            self._parents[configuration.id] = self._known[configuration.id].run_id
            return
        name = " ".join(f"{key}={value}" for key, value in configuration.axes.items()) or self._task
        tags = {"harness.profile": configuration.profile, "harness.cohort": configuration.fingerprint}
        tags |= {f"harness.{key}": str(value) for key, value in facts.items() if str(value)}
        params = {key: str(value) for key, value in configuration.axes.items()}
        for part in ("view", "model", "recipe", "split"):
            params |= {_legal(f"{part}.{key}"): str(value) for key, value in configuration.task[part].items()}
        self._parents[configuration.id] = self._start(configuration.id, name, tags, params, parent="")

    def _write_cell(self, record: CellRecord, metrics: dict[str, float], curve: dict[str, list[float]]) -> None:
        from mlflow.entities import Metric

        known = self._known.get(record.identity)
        if known is not None and known.status == "FINISHED":
            return
        if known is None:
            name = f"{record.stage} {record.label} fold {record.fold} seed {record.seed}".replace("  ", " ")
            params = {"stage": record.stage, "fold": str(record.fold), "seed": str(record.seed)}
            params |= {"attribution": record.label} if record.label else {}
            tags = {f"harness.{key}": str(value) for key, value in record.hardware.items() if str(value)}
            run = self._start(record.identity, name, tags, params, parent=self._parents[record.configuration])
        else:
            run = known.run_id
            self._client.update_run(run, status="RUNNING")
        if record.error:
            self._client.set_tag(run, "harness.error", record.error[:_LONGEST])
        now = _now()
        batch = [Metric(_legal(key), value, now, 0) for key, value in {**metrics, "seconds": record.seconds}.items()]
        for key, values in curve.items():
            batch += [Metric(_legal(key), value, now, step) for step, value in enumerate(values, 1)]
        for start in range(0, len(batch), 1000):
            self._client.log_batch(run, metrics=batch[start : start + 1000], synchronous=True)
        self._client.set_terminated(run, "FINISHED" if record.state == "done" else "FAILED")
        self._known[record.identity] = _Ended(run, "FINISHED" if record.state == "done" else "FAILED")

    def _write_pooled(self, configuration: str, metrics: dict[str, float], files: dict[str, Path], done: bool) -> None:
        from mlflow.entities import Metric

        run = self._parents[configuration]
        now = _now()
        batch = [Metric(_legal(key), value, now, 0) for key, value in metrics.items() if value == value]
        if batch:
            self._client.log_batch(run, metrics=batch[:1000], synchronous=True)
        for where, path in files.items():
            self._client.log_artifact(run, str(path), where)
        self._client.set_terminated(run, "FINISHED" if done else "FAILED")

    def _start(self, identity: str, name: str, tags: dict[str, str], params: dict[str, str], *, parent: str) -> str:
        from mlflow.entities import Param

        tags = {**tags, _IDENTITY: identity, **({"mlflow.parentRunId": parent} if parent else {})}
        run = self._client.create_run(self._experiment, run_name=name, tags={k: v[:5000] for k, v in tags.items()})
        listed = [Param(key, value[:_LONGEST]) for key, value in params.items()]
        self._client.log_batch(run.info.run_id, params=listed[:100], synchronous=True)
        return str(run.info.run_id)


class _Ended:
    """The two facts of a run that are needed again."""

    def __init__(self, run_id: str, status: str) -> None:
        self.run_id, self.status = run_id, status


def _now() -> int:
    return int(time.time() * 1000)


def _legal(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_ - . / space``."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
