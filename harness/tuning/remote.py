"""Run a command on the head of a cluster as a job of Ray Jobs, and follow it.

Source: Ray 2.60, ``ray.job_submission`` (https://docs.ray.io/en/latest/cluster/running-applications/job-submission).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import HarnessError, RequestError, first_line
from harness.core.identity import identify
from harness.core.passwords import without_password

__all__ = ["Followed", "entrypoint", "follow", "is_remote", "job_name"]

# Where ray_cluster.yaml installs the program on the nodes, if it is not on the path of Ray's processes.
_INSTALLED = "~/harness-env/bin/harness"
_PREFIX = "harness-"
_DIGITS = 16
_TRIES = 3
_PAUSE_S = 2.0


@dataclass(frozen=True)
class Followed:
    """A job that was followed to its end.

    Parameters
    ----------
    name : its id in Ray Jobs
    status : its last status, such as ``SUCCEEDED``
    code : exit code of the command on the cluster; 1 if Ray does not know it
    message : what Ray says about its end, one line
    """

    name: str
    status: str
    code: int
    message: str


def is_remote(address: str) -> bool:
    """Whether an address is that of Ray Jobs, ``http://HOST:PORT``."""
    return address.startswith(("http://", "https://"))


def job_name(texts: Sequence[str]) -> str:
    """Name of the job of a request: the same overrides in any order, and any address, have the same name.

    Parameters
    ----------
    texts : overrides as typed

    Returns
    -------
    str
        ``harness-`` and 16 hexadecimal digits. A job that resumes another one has a number
        behind it, ``-2`` for the second.
    """
    return _PREFIX + identify(sorted(_without_ray(texts)))[:_DIGITS]


def entrypoint(texts: Sequence[str]) -> str:
    """The shell command that runs a request on the head: the same overrides, with the address of its own cluster.

    Parameters
    ----------
    texts : overrides as typed
    """
    program = f"$(command -v harness || echo {_INSTALLED})"
    # Ray sets RAY_ADDRESS for every job, to HOST:PORT of its cluster.
    return f'{program} run {shlex.join(_without_ray(texts))} "ray=$RAY_ADDRESS"'


def _without_ray(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text.partition("=")[0].strip() != "ray"]


def follow(
    address: str,
    texts: Sequence[str],
    *,
    say: Callable[[str], None],
    write: Callable[[str], None],
    attached: Callable[[str], None] = lambda name: None,
) -> Followed:
    """Submit a request as a job, or find its job that is still running, and stream its output until it ends.

    Parameters
    ----------
    address : address of Ray Jobs, ``http://HOST:PORT``
    texts : overrides as typed
    say : called with messages, whole lines
    write : called with pieces of the output of the job
    attached : called with the name of the job once it runs on the cluster

    Returns
    -------
    Followed
        The job. If an exception, such as ``KeyboardInterrupt``, ends this function, the
        job goes on.

    Raises
    ------
    RequestError
        If Ray Jobs does not answer at the address, or refuses the token.
    HarnessError
        If the connection is lost repeatedly, or the output cannot be written; the job goes on.

    Notes
    -----
    A job that ended is never restarted under its name, because Ray refuses a name that
    exists. The next number is used, and the command resumes from its store.
    """
    with _understood(address):
        client = _client(address)
        name, is_new = _attach(client, texts)
        attached(name)
        say(f"submitted as job {name}" if is_new else f"job {name} is already running; its output from the start:")
        _stream(client, name, write)
        info = client.get_job_info(name)
    code = info.driver_exit_code if isinstance(info.driver_exit_code, int) else int(info.status != "SUCCEEDED")
    # The message repeats the end of the output.
    message = str(info.message or "").partition("\n")[0].partition(", last available logs")[0]
    return Followed(name, str(info.status), code, message)


def _attach(client: Any, texts: Sequence[str]) -> tuple[str, bool]:
    """Name of the running job of a request, which is submitted if there is none; and whether it was submitted."""
    base = job_name(texts)
    pattern = re.compile(rf"{re.escape(base)}(?:-(\d+))?")
    while True:
        jobs = {str(job.submission_id): job.status for job in client.list_jobs() if job.submission_id}
        numbers = {int(found[1] or 1): name for name in jobs if (found := pattern.fullmatch(name))}
        running = [name for name in numbers.values() if not jobs[name].is_terminal()]
        if running:
            return running[0], False
        number = max(numbers, default=0) + 1
        name = base if number == 1 else f"{base}-{number}"
        try:
            client.submit_job(entrypoint=entrypoint(texts), submission_id=name, runtime_env=_environment())
        except (RuntimeError, ValueError) as error:
            if "already exists" not in str(error):
                raise
            continue  # the same command was given elsewhere in this moment; its job is found now
        return name, True


def _environment() -> Mapping[str, Any]:
    """Variables of the job: plain output of full width, and token authentication as here."""
    variables = {"COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    variables |= {key: os.environ[key] for key in ("RAY_AUTH_MODE", "OMP_NUM_THREADS") if key in os.environ}
    return {"env_vars": variables}


def _stream(client: Any, name: str, write: Callable[[str], None]) -> None:
    """Write the output of a job until it ends.

    A connection that is lost, or closed before the job has ended, is opened again, without
    repeating what was seen. The last of several tries without new output raises its error.
    """
    seen, failures, left_off = 0, 0, threading.Event()

    async def tail() -> None:
        nonlocal seen
        position = 0
        async for piece in client.tail_job_logs(name):
            if left_off.is_set():
                return
            start, position = position, position + len(piece)
            if position > seen:
                _write(write, piece[max(0, seen - start) :])
                seen = position

    lost: tuple[type[Exception], ...] = (RuntimeError, *_lost_connections())
    while True:
        before = seen
        try:
            _in_thread(lambda: asyncio.run(tail()), left_off)
            if _has_ended(client, name):
                return
            failures = 0
        except lost:
            failures = 1 if seen > before else failures + 1
            if failures < _TRIES:
                time.sleep(_PAUSE_S)
            elif client.get_job_status(name).is_terminal():
                return  # its output can no longer be read
            else:
                raise


def _write(write: Callable[[str], None], text: str) -> None:
    """Write output here; an error is none of the connection."""
    try:
        write(text)
    except OSError as error:
        raise HarnessError(f"the output of the job cannot be written here ({first_line(error)})") from None


def _has_ended(client: Any, name: str) -> bool:
    """Whether a job has ended; its output may end a moment before its status changes."""
    for _ in range(5):
        if client.get_job_status(name).is_terminal():
            return True
        time.sleep(_PAUSE_S / 5)
    return False


def _lost_connections() -> tuple[type[Exception], ...]:
    """What a lost connection raises: ``requests`` kinds of ``OSError``, ``aiohttp`` its own."""
    if importlib.util.find_spec("aiohttp") is None:
        return (OSError,)
    from aiohttp import ClientError

    return (OSError, ClientError)


def _in_thread(work: Callable[[], None], left_off: threading.Event) -> None:
    """Run a function in a thread and wait for it, so that Ctrl-C ends the wait at once, and sets an event.

    In the main thread, ``asyncio`` turns Ctrl-C into a cancellation, which what is awaited may swallow.
    """
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, name="output of the job", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        left_off.set()
        raise
    if failed:
        raise failed[0]


def _client(address: str) -> Any:
    """A client of Ray Jobs.

    Raises
    ------
    RequestError
        If packages of the extra ``jobs`` are missing, or nothing answers at the address.
    """
    if absent := [name for name in ("aiohttp", "requests") if importlib.util.find_spec(name) is None]:
        raise RequestError(
            f"ray={without_password(address)} needs Ray Jobs, which cannot be used without {' and '.join(absent)}; "
            "install the extra: pip install -c constraints.txt -e '.[jobs]'"
        )
    from ray.job_submission import JobSubmissionClient

    # Ray would report each end of the stream in the middle of the output.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except ConnectionError:
        raise RequestError(
            f"Ray Jobs must answer at ray={without_password(address)}, but nothing does. The head needs ray[default] "
            "and --include-dashboard=true; from another machine, open a tunnel: ray dashboard ray_cluster.yaml"
        ) from None


@contextlib.contextmanager
def _understood(address: str) -> Iterator[None]:
    """Translate errors of Ray Jobs into one sentence with the next step."""
    from ray.exceptions import AuthenticationError

    address = without_password(address)
    hint = "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token of the cluster to this machine"
    try:
        yield
    except AuthenticationError as error:
        found = "no token was sent" if str(error).startswith("Authentication required") else "the token is wrong"
        raise RequestError(f"the cluster at ray={address} requires its token, but {found}; {hint}") from None
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if re.search(r"\b40[13]\b", text):
            raise RequestError(f"the cluster at ray={address} refuses the token; {hint}") from None
        raise HarnessError(f"Ray Jobs at ray={address} failed: {text[:500]}") from None
    except _lost_connections() as error:
        # Texts of requests and aiohttp may have the URL, with its password.
        raise HarnessError(f"the connection to Ray Jobs at ray={address} was lost ({type(error).__name__})") from None
