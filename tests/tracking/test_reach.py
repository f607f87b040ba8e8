"""A server that is away is found within seconds, and holds up neither the end of a run nor that of a process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core.errors import HarnessError
from harness.core.settings import RunSettings
from harness.tracking import reach, tracker
from harness.tracking.reach import check_answers
from harness.tracking.tracker import Tracker


@pytest.fixture
def refused() -> str:
    """An address on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that accepts connections and never answers."""
    monkeypatch.setattr(reach, "LIMIT_S", 0.5)
    monkeypatch.setattr(tracker, "_PATIENCE_S", 0.5)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(64)
        yield f"127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[str]:
    """An address that answers any connection with an error of a web server, or a byte, and closes it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(8)

        def serve() -> None:
            while True:
                try:
                    connection, _ = one.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(0.2)
                    try:
                        asked = connection.recv(1000)
                    except TimeoutError:  # MySQL's client waits for the server
                        asked = b""
                    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n" if asked.startswith(b"GET") else b"N")

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{one.getsockname()[1]}"
        one.shutdown(socket.SHUT_RDWR)


SCHEMES = ["http", "postgresql", "postgresql+psycopg", "mysql+pymysql"]


@pytest.mark.parametrize("scheme", [*SCHEMES, "https", "mssql+pymssql"])
def test_refused_connections_are_told_at_once(scheme: str, refused: str) -> None:
    """One sentence with the address, without the password."""
    start = time.monotonic()
    with pytest.raises(HarnessError, match=f"nothing answers at {refused} .*refused") as raised:
        check_answers(f"{scheme}://me:S3CRET@{refused}/d?password=S3CRET")
    assert time.monotonic() - start < 15 and "S3CRET" not in str(raised.value)


@pytest.mark.parametrize("scheme", [*SCHEMES, "https"])
def test_silent_servers_are_told_within_seconds(scheme: str, silent: str) -> None:
    """A connection alone is no answer."""
    with pytest.raises(HarnessError, match=f"{silent} does not answer within"):
        check_answers(f"{scheme}://me@{silent}/d")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_answer_is_one(scheme: str, answering: str) -> None:
    """Whether MLflow may log in is for MLflow to find out."""
    check_answers(f"{scheme}://me@{answering}/d")


@pytest.mark.parametrize(
    "uri",
    ["sqlite:////a/b.db", "databricks", "databricks://profile", "postgresql:///d", "postgresql://me@/d?host=/run/postgresql",
     "postgresql://a:1,b:2/d"],
)  # fmt: skip
def test_addresses_without_one_server_are_not_checked(uri: str) -> None:
    """Files, sockets and lists of servers are left to their drivers."""
    check_answers(uri)


def test_postgresql_answers(postgresql: str) -> None:
    """Without a password being sent."""
    check_answers(postgresql)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_tracker_knows_at_once_that_mlflow_is_away(scheme: str, refused: str, tmp_path: Path) -> None:
    """MLflow's own tries would take 100 s for a database."""
    one = Tracker(RunSettings(out=str(tmp_path), mlflow=f"{scheme}://me:S3CRET@{refused}/d"), "toy")
    one.wait()
    start = time.monotonic()
    one.again()
    one.wait()
    assert f"cannot write to MLflow at {scheme}://me:***@{refused}/d: nothing answers at" in one.trouble
    one.close()
    assert time.monotonic() - start < 30 and not one.stuck


def test_server_that_falls_silent_is_not_waited_for(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a call waits for its answer, the tracker says so, does not connect anew, and ends when it is told to."""
    answer = threading.Event()
    monkeypatch.setattr(Tracker, "_connect", lambda self: answer.wait() and None)
    one = Tracker(RunSettings(out=str(tmp_path), mlflow=f"http://{silent}"), "toy")
    start = time.monotonic()
    one.wait()
    assert one.stuck and "does not answer within" in one.trouble
    one.again()
    assert one.stuck
    assert time.monotonic() - start < 15
    answer.set()
    one.wait()
    assert not one.stuck and one.trouble == ""
    answer.clear()
    one.close()
    assert one.stuck and time.monotonic() - start < 30
    answer.set()


def test_process_that_must_end_does_not_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal, also if the server answers but is slow."""
    answer = threading.Event()
    monkeypatch.setattr(Tracker, "_connect", lambda self: answer.wait() and None)
    one = Tracker(RunSettings(out=str(tmp_path)), "toy")
    start = time.monotonic()
    one.close(limit_s=0.2)
    assert time.monotonic() - start < 10
    answer.set()
