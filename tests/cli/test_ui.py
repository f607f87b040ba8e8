"""``harness ui`` prints and opens addresses of the runs, and stops the server that it started."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.cli import commands, ui
from harness.core.errors import OutOfRange, RequestError
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.tracking.pages import SavedView, TaskPages
from harness.tracking.runs import Dataset
from harness.tracking.tracker import ParentRun, Tracker

PAGES = TaskPages("epvs", "#/runs", "#/compare", 8)


@pytest.fixture
def tracked(empty_database: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with a tracked task of two configurations, and the ids of their runs."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(empty_database, out / "mlflow.db")
    tracker = Tracker(RunSettings(out=str(out)), "toy")
    configurations = [Configuration({"recipe": {"use": "a", "lr": lr}}, {"lr": lr}, "quick", "ab") for lr in (1, 2)]
    dataset = Dataset("phantom", "ab", "generated images")
    tracker.open([ParentRun(one, f"lr {one.axes['lr']}", dataset) for one in configurations], SavedView("All"))
    tracker.drain()
    tracker.close()
    return out, [tracker.run_of(one.id) for one in configurations]


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def response_of(address: str) -> Any:
    """The response of MLflow's REST API."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_printed_and_opened_addresses_lead_to_the_runs(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The printed and opened addresses show the experiment and the runs, and the server stops on SIGTERM."""
    out, runs = tracked
    port, opened = free_port(), tmp_path / "opened"
    browser = tmp_path / "browser.py"
    browser.write_text(f"import sys\nwith open({str(opened)!r}, 'a') as file: file.write(sys.argv[1] + chr(10))\n")
    server = subprocess.Popen(
        [sys.executable, "-m", "harness", "ui", f"out={out}", f"port={port}", "open=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "BROWSER": f"{shlex.join([sys.executable, str(browser)])} %s"},
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(4)]
        table, compared = (re.findall(r"http\S+", line)[0] for line in lines[1:3])
        assert lines[0] == "toy\n"
        _wait_for(server, opened, lines=2)
        assert opened.read_text().split() == [compared, table]
        api = f"http://127.0.0.1:{port}/api/2.0/mlflow"
        experiment = re.findall(r"experiments/(\d+)/", table)[0]
        assert response_of(f"{api}/experiments/get?experiment_id={experiment}")["experiment"]["name"] == "toy"
        query = dict(urllib.parse.parse_qsl(compared.partition("?")[2]))
        assert set(json.loads(query["runs"])) == set(runs)
        assert response_of(f"{api}/runs/get?run_id={runs[0]}")["run"]["info"]["run_name"] == "lr 1"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_for(server: subprocess.Popen[str], path: Path, *, lines: int) -> None:
    """Wait until the file has this many lines or the server has ended; MLflow may need half a minute to start."""
    until = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < until:
        if path.is_file() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.1)


def test_command_for_others_has_passwords_and_hosts(tmp_path: Path) -> None:
    """Opened to others only on request: with basic authentication, and for named hosts."""
    command = ui.command_for_others("sqlite:////a b/mlflow.db", tmp_path, 5000)
    words = shlex.split(command.partition(") ")[2])
    assert words[:2] == ["mlflow", "server"]
    options = dict(zip(words[2::2], words[3::2], strict=False))
    assert options["--app-name"] == "basic-auth" and options["--backend-store-uri"] == "sqlite:////a b/mlflow.db"
    assert options["--allowed-hosts"].endswith(":5000") and "*" not in options["--allowed-hosts"]
    listed = subprocess.run([sys.executable, "-m", "mlflow", "server", "--help"], capture_output=True, text=True)
    assert listed.returncode == 0
    assert [word for word in words if word.startswith("--") and word not in listed.stdout] == []


def test_server_for_others_asks_for_a_password_and_for_its_name(empty_database: Path, tmp_path: Path) -> None:
    """The printed command, as it is but for the interface: who has no password, or another host, gets nothing."""
    pytest.importorskip("flask_wtf", reason="basic authentication needs mlflow[auth]")
    if shutil.which("openssl") is None or shutil.which("bash") is None:
        pytest.skip("the command needs openssl and bash")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    port, host = free_port(), socket.gethostname()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = ui.command_for_others(uri, tmp_path / "files", port).replace("--host 0.0.0.0", "--host 127.0.0.1")
    assert "--host 127.0.0.1" in command
    folder = str(Path(sys.executable).parent)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path,
            env={**os.environ, **ui._QUIET, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    try:
        assert server.stdin is not None
        server.stdin.write(b"correct horse battery\n")
        server.stdin.close()
        assert ui._answers(server, f"http://127.0.0.1:{port}/"), (tmp_path / "log").read_text()
        status = partial(status_of, f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0")
        assert status(host=f"{host}:{port}") == 401
        assert status(host=f"{host}:{port}", password="wrong horse battery") == 401
        assert status(host=f"{host}:{port}", password="correct horse battery") == 200
        assert status(host="elsewhere.example", password="correct horse battery") == 403
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def status_of(address: str, *, host: str, password: str = "") -> int:
    """Status of a request to a host, by the user admin if there is a password."""
    headers = {"Host": host}
    if password:
        headers["Authorization"] = f"Basic {base64.b64encode(f'admin:{password}'.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_addresses_of_each_task() -> None:
    """Each task has an address of all its configurations and, if there are several, one that compares them."""
    alone = TaskPages("lsm", "#/other", "", 1)
    assert ui.address_lines([PAGES, alone], "http://host/") == [
        "epvs",
        "  all configurations: http://host/#/runs",
        "  the latest run, 8 configurations compared: http://host/#/compare",
        "lsm",
        "  all configurations: http://host/#/other",
    ]
    many = ui.address_lines([dataclasses.replace(PAGES, configurations=120)], "http://host/")
    assert many[2] == "  the latest run, 100 of 120 configurations compared: http://host/#/compare"


def test_database_without_runs_has_a_start_page() -> None:
    """Without runs, the address of the start page is shown."""
    assert ui.address_lines([], "http://host/") == ["MLflow: http://host/"]


def test_without_a_browser_the_user_opens_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a browser, a message asks the user to open the addresses."""
    monkeypatch.setattr(ui, "_answers", lambda process, server: True)
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    messages: list[str] = []
    ui._open_pages(None, [PAGES], "http://host/", messages.append)  # type: ignore[arg-type]
    assert messages == ["No browser was found; open the addresses above manually."]


def test_a_port_in_use_is_refused(tracked: tuple[Path, list[str]]) -> None:
    """A port that is in use is refused."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=rf"port {port} is used by another program; set port= to a free one"):
            commands.ui([f"out={tracked[0]}", f"port={port}"])


def test_open_must_be_boolean(tmp_path: Path) -> None:
    """``open`` accepts only boolean values."""
    with pytest.raises(OutOfRange, match="open"):
        commands.ui([f"out={tmp_path}", "open=maybe"])
