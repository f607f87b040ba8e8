"""Serve MLflow's web interface, and print the addresses of the pages that show the runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.errors import RequestError
from harness.tracking.pages import TaskPages, compared, pages_of

__all__ = ["address_lines", "command_for_others", "serve"]

_HOST = "127.0.0.1"
_PATIENCE_S = 60.0
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def serve(uri: str, artifacts: Path, port: int, *, open_browser: bool, say: Callable[[str], None]) -> int:
    """Run MLflow's server on the loopback interface until it ends, or until Ctrl-C or a termination signal.

    Parameters
    ----------
    uri : URI of the database
    artifacts : folder of the artifacts
    port : port to listen on
    open_browser : whether to open the pages of the latest task once the server responds
    say : called with each message for the user

    Returns
    -------
    int
        Exit code of the server; 0 if it was stopped.

    Raises
    ------
    RequestError
        If another program listens on the port.
    """
    _refuse_taken(port)
    pages = pages_of(uri)
    server = f"http://{_HOST}:{port}/"
    for line in address_lines(pages, server):
        say(line)
    say("Only this machine can reach these pages. Press Ctrl-C to stop.")
    say(f"To open them to others, with passwords: {command_for_others(uri, artifacts, port)}")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(artifacts), "--serve-artifacts"]
    command += ["--host", _HOST, "--port", str(port), "--workers", "1"]
    # In a separate session, so that the server and its worker can be stopped together.
    process = subprocess.Popen(command, env={**os.environ, **_QUIET}, start_new_session=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if open_browser:
            _open_pages(process, pages, server, say)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(process)


def command_for_others(uri: str, artifacts: Path, port: int) -> str:
    """The command that serves the runs on all interfaces, with users and passwords, for a named host.

    Notes
    -----
    MLflow's basic authentication needs ``pip install 'mlflow[auth]'``. It has no default
    password, so that of its first user, ``admin``, is asked for. Users are kept in
    ``basic_auth.db`` of the working folder. Passwords cross the network unencrypted unless a
    proxy adds TLS.
    """
    words = ["mlflow", "server", "--app-name", "basic-auth", "--host", "0.0.0.0", "--port", str(port)]
    words += ["--allowed-hosts", f"{socket.gethostname()}:{port}"]
    words += ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts), "--serve-artifacts"]
    words += ["--workers", "1"]  # several would create the database of the users at once
    given = "MLFLOW_AUTH_ADMIN_PASSWORD=$password MLFLOW_FLASK_SERVER_SECRET_KEY=$(openssl rand -hex 32)"
    return (
        f"echo 'Password for the user admin (12 characters or more):'; read -rs password; {given} {shlex.join(words)}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.terminate()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def address_lines(pages: Sequence[TaskPages], server: str) -> list[str]:
    """Messages with the addresses of each task's table of runs and comparison of its latest run.

    Parameters
    ----------
    pages : pages of each task, the latest task first
    server : address of the server, with a trailing slash
    """
    if not pages:
        return [f"MLflow: {server}"]
    lines = []
    for one in pages:
        lines += [one.task, f"  all configurations: {server}{one.runs}"]
        if one.compare:
            lines.append(f"  the latest run, {compared(one.configurations)} compared: {server}{one.compare}")
    return lines


def _open_pages(
    process: subprocess.Popen[bytes], pages: Sequence[TaskPages], server: str, say: Callable[[str], None]
) -> None:
    """Open the pages of the latest task in the browser; the table of runs is opened last, so that it is in front."""
    if not _answers(process, server):
        return
    latest = [page for page in (pages[0].compare, pages[0].runs) if page] if pages else [""]
    if not all([webbrowser.open(f"{server}{page}") for page in latest]):
        say("No browser was found; open the addresses above manually.")


def _answers(process: subprocess.Popen[bytes], server: str) -> bool:
    """Wait until the server responds; ``False`` if it exits or does not respond in time."""
    until = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{server}health", timeout=5).close()
            return True
        time.sleep(0.3)
    return False


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that just exited is free
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise RequestError(f"port {port} is used by another program; set port= to a free one") from None
