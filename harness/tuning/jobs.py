"""Run jobs: in this process, or as trials of Ray Tune."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import RequestError
from harness.core.identity import Code, codes_read, remember
from harness.core.machine import usable_cores
from harness.core.settings import RunSettings
from harness.data.table import open_cohort
from harness.pipeline.cell import Job, is_done
from harness.pipeline.job import execute
from harness.storage.store import CellRecord, Store, write_record

__all__ = ["Committed", "check_resources", "keep_to_granted_gpus", "run_here", "run_on_ray", "session", "storage"]

Committed = Callable[[CellRecord], None]
Started = Callable[[Job], None]

_CELLS = "cells"
_LOCK = "running.lock"


def run_here(
    jobs: Sequence[Job], cohorts: dict[str, Path], store: Store, *, committed: Committed, started: Started
) -> None:
    """Run jobs one after the other in this process.

    Parameters
    ----------
    cohorts : configuration id → cohort table
    committed : is told each record once it is in the store
    started : is told each job that begins
    """
    opened = {path: open_cohort(path) for path in sorted(set(cohorts.values()))}
    for job in jobs:
        started(job)
        cohort = opened[cohorts[job.configuration.id]]
        execute(job, cohort, store, lambda folder: committed(store.commit(folder)))


def run_on_ray(
    name: str,
    jobs: Sequence[Job],
    cohorts: dict[str, Path],
    store: Store,
    settings: RunSettings,
    *,
    committed: Committed,
    started: Started,
) -> None:
    """Run each job as one trial of Ray Tune; Ray must have been started.

    Parameters
    ----------
    name : of the task; the trainable is registered under it
    cohorts : configuration id → cohort table, on storage that every node sees
    committed : is told each record once it is in the store

    Notes
    -----
    Workers hand finished cells back as checkpoints and this process commits
    them, so that a rename never crosses hosts. Nothing is keyed by a trial's id.
    """
    from ray import tune

    check_resources(settings)
    trainable = tune.with_parameters(
        _run_job,
        jobs=list(jobs),
        cohorts={key: str(path) for key, path in cohorts.items()},
        store=store,
        codes=codes_read(),
    )
    wanted = tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus})
    tune.register_trainable(name, wanted)
    callback = _driver(jobs, store, committed, started)
    with storage(settings.folder / "ray") as folder:
        results = tune.Tuner(
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
                # A cell that raises is recorded and does not end its trial; what
                # does is the death of a node or worker, which is worth another try.
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        ).fit()
        for result in (results[number] for number in range(len(results))):
            if result.error is not None and result.config is not None:
                _record_death(jobs[result.config["job"]], store, committed)


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[Path]:
    """A folder for one run of Ray Tune; what runs that were killed left in ``folder`` is removed.

    Notes
    -----
    A run holds a lock in its folder, which ends with its process however that
    ends. A second lock, on ``folder``, is held while folders are made and
    removed, so that no other run sees one that is not locked yet.
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
    except FileNotFoundError:  # half removed
        pass
    return False


@contextlib.contextmanager
def session(settings: RunSettings) -> Iterator[None]:
    """Start or join Ray for the time of a block, quietly.

    Raises
    ------
    RequestError
        If the address does not answer.
    """
    import ray

    # A session that somebody else started (a notebook, a test) is used and left running.
    ours = not ray.is_initialized()
    if ours:
        # "local" starts a session of its own even where another runs on this machine.
        address = "local" if settings.ray == "auto" else settings.ray
        here: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()} if address == "local" else {}
        try:
            _knock(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=_job_config(here=bool(here)),
                **here,
            )
        except OSError as error:
            raise RequestError(f"no Ray cluster answers at {address!r} ({error}); start one, or set ray=auto") from None
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _job_config(*, here: bool) -> Any:
    """Ray's settings of a run: workers import from the working folder only if this process does.

    Parameters
    ----------
    here : whether Ray is started on this machine, with this process's Python

    Notes
    -----
    Ray puts the driver's working folder first on the path of its workers, even
    where the driver does not import from it. The console script does not:
    started in a folder that holds another ``harness``, its workers would import
    that one.

    With Ray 2.60, what Ray does for the jobs of its client is the only setting
    that leaves the working folder out and keeps the folder of the user's script.
    ``PYTHONSAFEPATH`` in a runtime environment changes nothing, and neither does
    ``code_search_path``, which only adds folders. An empty ``working_dir`` works,
    but also drops the script's folder, takes a second for each worker, and
    clashes with the one of ``ray job submit``. The trainable cannot fix its
    path itself: to unpickle it, a worker has already imported ``harness``. A
    local ``py_modules`` in the runtime environment would not be uploaded for
    such a job; we have none.
    """
    from ray.job_config import JobConfig

    imports_from_here = bool({"", str(Path.cwd())} & set(sys.path))
    quoted = shlex.quote(sys.executable)
    # A worker is started by a shell, to which Ray hands this path as it is.
    environment = {"py_executable": quoted} if here and quoted != sys.executable else None
    return JobConfig(runtime_env=environment, _client_job=not imports_from_here)


def _knock(address: str) -> None:
    """Check that an address answers; Ray itself would try for minutes.

    Raises
    ------
    OSError
        If ``host:port`` or ``ray://host:port`` does not take a connection.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _run_job(
    config: dict[str, Any], jobs: list[Job], cohorts: dict[str, str], store: Store, codes: Mapping[str, Code]
) -> None:
    """The trainable: one job on a worker, whose actor other jobs use before and after."""
    from ray import tune

    keep_to_granted_gpus()
    remember(codes)
    job = jobs[config["job"]]
    cohort = open_cohort(Path(cohorts[job.configuration.id]))

    def hand_back(folder: Path) -> None:
        tune.report({_CELLS: folder.name}, checkpoint=tune.Checkpoint.from_directory(folder))

    execute(job, cohort, store, hand_back)


def keep_to_granted_gpus() -> None:
    """Hide the GPUs of the machine from a worker that was granted none: Ray leaves all of them visible.

    Must be called before torch first looks for a GPU.
    """
    import ray

    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _record_death(job: Job, store: Store, committed: Committed) -> None:
    """Record a failure when a worker dies without reporting: of the first cell that is not done."""
    cell = next((cell for cell in job.cells if not is_done(cell, store)), None)
    if cell is None:
        return
    error = "its worker died three times without an error of its own; look at memory (harness doctor), or try ray=off"
    failed = CellRecord(
        cell.identity, cell.stage, "failed", cell.configuration, cell.fold, cell.seed, cell.label,
        error=error, group=cell.group, metrics=dict(cell.metrics),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder), failed)
        committed(store.commit(Path(folder)))


def _driver(jobs: Sequence[Job], store: Store, committed: Committed, started: Started) -> Any:
    """The driver's callback; a factory because its base class needs Ray."""
    from ray import tune

    class Driver(tune.Callback):
        """Commits what workers hand back."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            started(jobs[trial.config["job"]])

        def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
            with checkpoint.as_directory() as folder:
                committed(store.commit(Path(folder)))
                # Not by num_to_keep, which makes Tune write the state of all trials again for every few cells.
                # The folder stays: a trial whose worker dies goes on from it, and it must be there.
                for file in Path(folder).iterdir():
                    with contextlib.suppress(OSError):
                        file.unlink()

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            """Tune pickles callbacks to restore a run; we resume from our own store instead."""
            return tune.Callback, ()

    return Driver()


def _trial_name(trial: Any) -> str:
    return f"job-{trial.config['job']:05d}"


def check_resources(settings: RunSettings) -> None:
    """Refuse what no worker could ever be granted; a trial would wait for it for ever.

    Raises
    ------
    RequestError
        If a job asks for more CPUs or GPUs than Ray has.
    """
    import ray

    there = ray.cluster_resources()
    for what, wanted in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        if wanted > there.get(what, 0.0):
            raise RequestError(
                f"each job asks for {what.lower()}s={wanted:g}, the cluster has {there.get(what, 0.0):g}; "
                f"ask for less, or add a node"
            )
