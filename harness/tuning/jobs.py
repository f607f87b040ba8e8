"""Run jobs: in this process, or as trials of Ray Tune."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pickle
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import RequestError, StoreError, first_line
from harness.core.identity import Code, codes_read, remember
from harness.core.machine import usable_cores
from harness.core.settings import RunSettings
from harness.core.types import Cohort
from harness.data.sharing import open_shared, share
from harness.data.table import open_cohort
from harness.pipeline.cell import Job, is_done
from harness.pipeline.job import execute, unlimited
from harness.storage.bucket import Bucket
from harness.storage.patience import Patience
from harness.storage.process import Process
from harness.storage.store import CellRecord, Store, write_record
from harness.tuning.guard import guarded
from harness.tuning.token import keep_private, token_file
from harness.tuning.watch import Deadline, TimeLimit, end_with

__all__ = [
    "Committed",
    "check_resources",
    "fit",
    "keep_to_granted_gpus",
    "listening",
    "run_here",
    "opened",
    "run_on_ray",
    "session",
    "share_cohorts",
    "storage",
]

Committed = Callable[[CellRecord], None]
Started = Callable[[Job], None]

# What workers report: a finished cell, a sentence for the user, or why they cannot go on.
_CELLS, _RECORD, _SAYS, _GIVES_UP = "cells", "record", "says", "gives_up"
_LOCK = "running.lock"


def run_here(
    jobs: Sequence[Job],
    cohorts: dict[str, Path],
    store: Store,
    *,
    committed: Committed,
    started: Started,
    patience: Patience,
    limit_s: float | None = None,
) -> None:
    """Run jobs one after the other in this process.

    Parameters
    ----------
    jobs : jobs to run
    cohorts : file of the cohort's table for each configuration, by its id
    store : store for the results
    committed : called with each record once it is in the store
    started : called with each job that starts
    patience : repeats what cannot be written for a while
    limit_s : seconds that a cell may take
    """
    limit = unlimited if limit_s is None else Deadline(limit_s)
    opened = {path: open_cohort(path) for path in sorted(set(cohorts.values()))}
    for job in jobs:
        started(job)
        cohort = opened[cohorts[job.configuration.id]]
        execute(job, cohort, store, lambda folder: committed(patience(lambda: store.commit(folder))), limit=limit)


def run_on_ray(
    name: str,
    jobs: Sequence[Job],
    cohorts: dict[str, Path],
    store: Store,
    settings: RunSettings,
    *,
    committed: Committed,
    started: Started,
    patience: Patience,
    limit_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run each job as a trial of Ray Tune; Ray must have been started.

    Parameters
    ----------
    name : name of the task, under which the trainable is registered
    jobs : jobs to run
    cohorts : file of the cohort's table for each configuration, by its id; on storage
        that every node can read
    store : store for the results
    settings : settings of the run
    committed : called with each record once it is in the store
    started : called with each job that starts
    patience : repeats what cannot be written for a while
    limit_s : seconds that a cell may take; its worker is then ended
    say : called with what workers say

    Raises
    ------
    StoreError
        If a worker or this process could not write to the output folder for a while.

    Notes
    -----
    Workers return finished cells as checkpoints, and this process commits them. Files
    are therefore only renamed on this machine. If the store is in a bucket, workers commit
    cells themselves and return the records: the condition with which an object is created
    holds for all of them, and maps need not travel through this machine. Trial ids are not
    used as keys.
    """
    from ray import tune

    check_resources(settings)
    with contextlib.ExitStack() as held:
        folder = patience(lambda: held.enter_context(storage(settings.folder / "ray")))
        notes = shared_notes(store, settings) or folder / "ended"
        limit = None if limit_s is None else TimeLimit(limit_s, notes)
        trainable = tune.with_parameters(
            _run_job,
            jobs=list(jobs),
            cohorts={key: str(path) for key, path in cohorts.items()},
            store=store,
            codes=codes_read(),
            driver=Process.current(),
            limit=limit,
        )
        wanted = tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus})
        tune.register_trainable(name, wanted)
        reported: set[str] = set()

        def arrived(record: CellRecord) -> None:
            reported.add(record.identity)
            committed(record)

        callback = _driver(jobs, store, arrived, started, patience, say, limit)
        tuner = tune.Tuner(
            name,
            param_space={"job": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=settings.workers or None,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder),
                verbose=0,
                callbacks=[callback],
                # An exception in a cell is recorded and does not end its trial. A trial
                # fails only if its node or worker died, so it is retried.
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        results = fit(tuner, settings.folder)
        for result in (results[number] for number in range(len(results))):
            if result.error is not None and result.config is not None:
                cause = getattr(result.error, "cause", None)
                _record_death(jobs[result.config["job"]], store, arrived, patience, cause=cause, limit=limit)
        if store.bucket is not None:
            _report_others(jobs, store, reported, committed)


def fit(tuner: Any, folder: Path) -> Any:
    """Run trials.

    Parameters
    ----------
    tuner : a tuner of Ray Tune
    folder : output folder of the run

    Raises
    ------
    StoreError
        If Tune cannot read what it has written itself, which happens on a full disk.
    """
    try:
        with _keys_kept_here():
            return tuner.fit()
    except (EOFError, pickle.UnpicklingError):
        free_mb = shutil.disk_usage(folder).free / 1e6
        raise StoreError(
            f"files written to {folder} are incomplete, with {free_mb:.0f} MB free there; finished cells are kept. "
            "Free space, then repeat the command"
        ) from None


def _report_others(jobs: Sequence[Job], store: Store, reported: set[str], committed: Committed) -> None:
    """Report cells whose worker died after it had committed them, before this process knew."""
    for cell in (cell for job in jobs for cell in job.cells if cell.identity not in reported):
        record = store.get(cell.stage, cell.identity, group=cell.group)
        if record is not None:
            committed(record)


def shares_no_folder(settings: RunSettings) -> bool:
    """Whether nodes may have the bucket of the run in common, and nothing else."""
    return bool(settings.bucket) and settings.ray not in ("auto", "local", "off")


def shared_notes(store: Store, settings: RunSettings) -> Bucket | None:
    """Where workers note cells that took too long; ``None`` if they share a folder."""
    if store.bucket is None or not shares_no_folder(settings):
        return None
    return store.bucket.below(f"ended/{secrets.token_hex(8)}")


def share_cohorts(tables: Sequence[Path], store: Store, settings: RunSettings, *, say: Callable[[str], None]) -> None:
    """Write cohorts to the bucket, if nodes share nothing else."""
    if store.bucket is not None and shares_no_folder(settings):
        bucket = _cohorts_in(store.bucket)
        if count := share(tables, settings.folder, bucket):
            say(f"{count} files of prepared images were written to {bucket}, from which all nodes read them")


def opened(table: Path, store: Store) -> Cohort:
    """A cohort on a worker, whose files are read from the bucket if they are missing there."""
    if store.bucket is None:
        return open_cohort(table)
    return open_shared(table, store.root.parent, _cohorts_in(store.bucket))


def _cohorts_in(bucket: Bucket) -> Bucket:
    return bucket.below("cohorts")


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[Path]:
    """A temporary folder for one run of Ray Tune; also removes folders in ``folder`` left by killed runs.

    Notes
    -----
    A run holds a lock in its folder, which the system releases when the process ends,
    even if it is killed. A second lock, on ``folder``, is held while folders are created
    and removed, so that no other run finds a folder that is not locked yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with (folder / _LOCK).open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for other in folder.glob("tune-*"):
                if not _is_locked(other / _LOCK):
                    shutil.rmtree(other, ignore_errors=True)
            own = Path(tempfile.mkdtemp(prefix="tune-", dir=folder))
            fcntl.flock(held.enter_context((own / _LOCK).open("w")), fcntl.LOCK_EX)
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # partly removed
        pass
    return False


@contextlib.contextmanager
def session(settings: RunSettings, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Start or connect to Ray for the duration of a ``with`` block, without log output.

    With ``say``, the file of Ray's token is made readable by its owner only, and it tells if it was not.

    Raises
    ------
    RequestError
        If no cluster responds at the address.
    """
    import ray

    # An existing session, e.g. of a notebook or test, is used and left running.
    ours = contextlib.nullcontext() if ray.is_initialized() else _started(settings, say)
    with ours, _silent_tune():
        yield


@contextlib.contextmanager
def _started(settings: RunSettings, say: Callable[[str], None] | None) -> Iterator[None]:
    """Ray, started or connected to as the settings say, and shut down at the end of the block."""
    import ray
    from ray.exceptions import AuthenticationError

    # "local" starts a new session even if another one runs on this machine.
    address = "local" if settings.ray == "auto" else settings.ray
    here: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()} if address == "local" else {}
    try:
        _check_reachable(address)
    except OSError as error:
        raise RequestError(
            f"a Ray cluster must be reachable at ray={address}, got {error}; start one, or set ray=auto"
        ) from None
    if say is not None and (exposed := keep_private(create=bool(here))):
        say(exposed)
    with guarded(os.getpid(), Path(ray.__file__).resolve().parent) if here else contextlib.nullcontext():
        try:
            with _own_handler(), _unnamed_entrypoint():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    job_config=_job_config(here=bool(here)),
                    **here,
                )
        except (OSError, AuthenticationError) as error:
            raise RequestError(_not_connected(address, error)) from None
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _silent_tune() -> Iterator[None]:
    """Failures of trials are recorded in the store; tracebacks of Tune itself would bury the messages of the run."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _not_connected(address: str, error: Exception) -> str:
    """Why Ray could not be started or connected to, with the next step.

    Parameters
    ----------
    error : an ``AuthenticationError`` if the mode asks for a token that is missing or wrong
    """
    # The text of an AuthenticationError has a paragraph of help behind it.
    reason = getattr(error, "message", "") or first_line(error)
    if address == "local":
        return f"Ray cannot be started on this machine ({reason}); correct this, or set ray=off"
    return (
        f"something answers at ray={address}, but this program cannot connect to it ({reason}): {_token_text()}. If "
        "the cluster has a token, copy it from its head (~/.ray/auth_token) and set RAY_AUTH_MODE=token; or it is no "
        "Ray cluster of this version"
    )


def _token_text() -> str:
    """Which token this program sends to an address; without a mode, Ray sends none, even if there is a file."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "this program sends no token (RAY_AUTH_MODE is not token)"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "this program sends the token of RAY_AUTH_TOKEN"
    if not (file := token_file()).is_file():
        return f"this program has no token (there is no {file})"
    return f"this program sends the token in {file}"


def listening() -> str:
    """What Ray opens on this machine, and for whom, as a sentence; within a session."""
    import ray

    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        asks = "answers only with a token"
    else:
        asks = "ANSWERS EVERYONE who reaches this machine, who can then run programs as you: unset RAY_AUTH_MODE"
    return (
        f"Ray listens on all network interfaces of {ray.util.get_node_ip_address()} and {asks}; ray=off opens no port"
    )


@contextlib.contextmanager
def _keys_kept_here() -> Iterator[None]:
    """Keep Tune from sending this process's keys of AWS to the workers.

    Notes
    -----
    Tune 2.60 makes them part of the runtime environment of its workers, which Ray writes to
    the logs of each node, in plain text. Workers on this machine inherit them in any case;
    other nodes have their own.
    """
    from ray.tune.execution import class_cache

    sent = class_cache.ENV_VARS_TO_PROPAGATE
    keys = {name for name in sent if name.startswith("AWS_")}
    sent -= keys
    try:
        yield
    finally:
        sent |= keys


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep this program's handler of SIGTERM, which ``ray.init`` replaces by one that exits at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _unnamed_entrypoint() -> Iterator[None]:
    """Keep the command line of this process out of Ray's table of jobs, which everyone on a cluster can read.

    ``ray.init`` records it in full, with passwords in URIs and names of subjects. With
    Ray 2.60, no setting prevents it.
    """
    from ray._private import utils

    before = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: "harness run"
    try:
        yield
    finally:
        utils.get_entrypoint_name = before


def _job_config(*, here: bool) -> Any:
    """Ray's job configuration: workers import from the working folder only if this process does.

    Parameters
    ----------
    here : whether Ray is started on this machine, with the Python of this process

    Notes
    -----
    Ray puts the driver's working folder first on the import path of its workers, even
    if the driver does not import from it, as is the case for the console script.
    Started in a folder that contains another ``harness``, its workers would import
    that one.

    With Ray 2.60, marking the job as one of Ray's client is the only setting that
    leaves the working folder out and keeps the folder of the user's script.
    ``PYTHONSAFEPATH`` in a runtime environment has no effect, and neither has
    ``code_search_path``, which only adds folders. An empty ``working_dir`` works, but
    also drops the script's folder, takes a second per worker, and conflicts with the
    one of ``ray job submit``. The trainable cannot correct the path itself: a worker
    has already imported ``harness`` when it unpickles the trainable. With this
    setting, a local ``py_modules`` in the runtime environment would not be uploaded;
    none is used here.
    """
    from ray.job_config import JobConfig

    imports_from_here = bool({"", str(Path.cwd())} & set(sys.path))
    quoted = shlex.quote(sys.executable)
    # Ray passes this path to a shell unquoted.
    environment = {"py_executable": quoted} if here and quoted != sys.executable else None
    return JobConfig(runtime_env=environment, _client_job=not imports_from_here)


def _check_reachable(address: str) -> None:
    """Check that an address accepts connections; Ray itself would retry for minutes.

    Raises
    ------
    OSError
        If ``host:port`` or ``ray://host:port`` does not accept a connection.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _run_job(
    config: dict[str, Any],
    jobs: list[Job],
    cohorts: dict[str, str],
    store: Store,
    codes: Mapping[str, Code],
    driver: Process,
    limit: TimeLimit | None,
) -> None:
    """The trainable: run one job on a worker, whose actor is reused by other jobs."""
    from ray import tune

    end_with(driver)
    keep_to_granted_gpus()
    remember(codes)
    job = jobs[config["job"]]
    cohort = opened(Path(cohorts[job.configuration.id]), store)

    def says(text: str) -> None:
        tune.report({_SAYS: text})

    patience, store = Patience(store.root.parent, says), store.telling(says)

    def hand_back(folder: Path) -> None:
        try:
            if store.bucket is not None:
                record = patience(lambda: store.commit(folder))
                tune.report({_RECORD: json.dumps(dataclasses.asdict(record))})
                return
            checkpoint = tune.Checkpoint.from_directory(folder)
            patience(lambda: tune.report({_CELLS: folder.name}, checkpoint=checkpoint))
        except StoreError as error:
            tune.report({_GIVES_UP: str(error)})
            raise _GivenUp from None

    with contextlib.suppress(_GivenUp):  # the driver ends the run; Ray would print a traceback
        execute(job, cohort, store, hand_back, limit=limit or unlimited)


class _GivenUp(Exception):
    """A worker cannot return its results."""


def keep_to_granted_gpus() -> None:
    """Hide the GPUs of the machine from a worker that was granted none, as Ray leaves all of them visible.

    Must be called before torch initialises CUDA.
    """
    import ray

    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _record_death(
    job: Job,
    store: Store,
    committed: Committed,
    patience: Patience,
    *,
    cause: BaseException | None = None,
    limit: TimeLimit | None = None,
) -> None:
    """Record a failure of the first unfinished cell when a worker dies without reporting.

    Parameters
    ----------
    cause : exception of the worker outside of the cell, e.g. when it returned a result
    limit : limit that may have ended the worker
    """
    cell = next((cell for cell in job.cells if not is_done(cell, store)), None)
    if cell is None:
        return
    error = "its worker died three times without an exception; check the memory (harness doctor), or try ray=off"
    if cause is not None:
        error = f"its worker failed three times outside of the cell: {first_line(cause)}"
    if limit is not None:
        error = limit.failure_of(cell) or error
    failed = CellRecord(
        cell.identity, cell.stage, "failed", cell.configuration, cell.fold, cell.seed, cell.label,
        error=error, group=cell.group, metrics=dict(cell.metrics),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder), failed)
        committed(patience(lambda: store.commit(Path(folder))))


def _driver(
    jobs: Sequence[Job],
    store: Store,
    committed: Committed,
    started: Started,
    patience: Patience,
    say: Callable[[str], None],
    limit: TimeLimit | None = None,
) -> Any:
    """The driver's callback; a factory function, because its base class needs Ray.

    Notes
    -----
    Tune goes on after an error in most callbacks, without a word; only one that is raised
    at the end of a step ends the run.
    """
    from ray import tune

    fatal: list[Exception] = []

    class Driver(tune.Callback):
        """Commits the cells that workers return."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            started(jobs[trial.config["job"]])

        def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
            with checkpoint.as_directory() as folder:
                try:
                    committed(patience(lambda: store.commit(Path(folder))))
                except (OSError, StoreError) as error:
                    fatal.append(error)
                    raise
                # num_to_keep would make Tune save the state of all trials every few cells, so files are deleted here.
                # The folder is kept: a trial whose worker died is restored from it.
                for file in Path(folder).iterdir():
                    with contextlib.suppress(OSError):
                        file.unlink()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if _RECORD in result:
                try:
                    committed(CellRecord(**json.loads(result[_RECORD])))
                except (OSError, StoreError) as error:
                    fatal.append(error)
            if _GIVES_UP in result:
                fatal.append(StoreError(result[_GIVES_UP]))
            if _SAYS in result:
                say(result[_SAYS])

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            say(_attempt(jobs[trial.config["job"]], store, trial.run_metadata.num_failures, limit))

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if fatal:
                raise fatal[0]

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            """Replace the callback when Tune pickles it to restore a run; runs are resumed from the store instead."""
            return tune.Callback, ()

    return Driver()


def _attempt(job: Job, store: Store, number: int, limit: TimeLimit | None) -> str:
    """A sentence on an attempt of a job whose worker died."""
    cell = next((cell for cell in job.cells if not is_done(cell, store)), job.cells[-1])
    where = " ".join(filter(None, (cell.stage, cell.label, f"fold {cell.fold} seed {cell.seed}")))
    reason = limit.failure_of(cell) if limit is not None else ""
    reason = reason or "its worker or node died (killed, out of memory, or crashed)"
    return f"attempt {number} failed: {where}: {reason}; the job goes on with another worker"


def _trial_name(trial: Any) -> str:
    return f"job-{trial.config['job']:05d}"


def check_resources(settings: RunSettings) -> None:
    """Refuse resources that no worker could be granted; the trials would never start.

    Raises
    ------
    RequestError
        If no node of the Ray session has the CPUs and GPUs of one job.

    Notes
    -----
    Nodes that an autoscaler could add are not considered, because it does not report
    them: not even with ``ray up`` does Ray 2.60 know its node types.
    """
    wanted = {"CPU": settings.cpus, "GPU": settings.gpus}
    nodes = _nodes()
    if not any(all(node.get(what, 0.0) >= number for what, number in wanted.items()) for node in nodes):
        known = "; ".join(dict.fromkeys(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes))
        raise RequestError(
            f"a node of the cluster must have the resources of one job, cpus={settings.cpus:g} and "
            f"gpus={settings.gpus:g}; its nodes have {known or 'none'}. Request less, or add a node; if an autoscaler "
            "adds such nodes, start one first (min_workers), because Ray does not know which it may add"
        )


def _nodes() -> list[dict[str, float]]:
    """Resources of each node of the Ray session."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
