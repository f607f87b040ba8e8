"""Whom a cluster answers, as found by a caller without a token."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import RequestError
from harness.core.settings import RunSettings
from harness.tuning.access import access, asks_for_token


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """A server that gives one answer and ends the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answer", "asks", "says"),
    [
        (b"....grpc-status\x0216....", True, "answers only with a token"),
        (b"....grpc-status\x010", False, "ANSWERS EVERYONE who reaches it"),
        (b"....grpc-status\x0212", False, "start each node with RAY_AUTH_MODE=token"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, "does not say whether it asks for a token"),
        (b"", None, "does not say whether it asks for a token"),
    ],
)
def test_the_status_tells_who_is_answered(answer: bytes, asks: bool | None, says: str) -> None:
    """Only a refusal for want of a token counts as one."""
    with server(answer) as address:
        assert asks_for_token(address) is asks
    with server(answer) as address:
        assert says in access(f"ray://{address}")


def test_nobody_answers() -> None:
    """A closed port and an address without a port say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    assert asks_for_token(address) is None and asks_for_token("head") is None


def test_a_run_says_whom_its_cluster_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once, before the nodes are checked."""
    module = importlib.import_module("harness.sweep.run")  # the package has a function of this name

    def stop(*_: object, **__: object) -> None:
        raise RequestError("the nodes are checked now")

    settings = RunSettings(ray="10.0.0.1:6379", out=str(tmp_path))
    plan: Any = SimpleNamespace(
        request=SimpleNamespace(settings=settings), store=SimpleNamespace(sweep=list), missing=lambda: ["a job"]
    )
    monkeypatch.setattr(module, "write_plan", lambda plan: None)
    monkeypatch.setattr(module, "session", lambda settings, say: nullcontext())
    monkeypatch.setattr(module, "check_cluster", stop)
    monkeypatch.setattr(module, "access", lambda address: f"whom {address} answers")
    said: list[str] = []
    with pytest.raises(RequestError, match="checked now"):
        module.run(plan, say=said.append)
    assert said == ["whom 10.0.0.1:6379 answers"]


@pytest.mark.ray
def test_a_cluster_without_a_token_answers_everyone() -> None:
    """A head started with ``RAY_AUTH_MODE=disabled``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="r")  # Ray's sockets allow no long paths
    main = "from ray.scripts.scripts import main; main()"
    options = f"--head --block --port={port} --num-cpus=0 --include-dashboard=false --disable-usage-stats"
    head = subprocess.Popen(
        [sys.executable, "-c", main, "start", *options.split(), f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while (asks := asks_for_token(f"127.0.0.1:{port}")) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert asks is False
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
