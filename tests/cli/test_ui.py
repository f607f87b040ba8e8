"""``harness ui``: the addresses that it prints and opens lead to the runs, and it ends what it started."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
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
    """A folder in which a task with two configurations was tracked, and their runs."""
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
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(address: str) -> Any:
    """The answer of MLflow's interface for programs."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_printed_and_opened_addresses_lead_to_the_runs(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The console command serves the experiment and the runs that its addresses name, and leaves nothing behind."""
    out, runs = tracked
    port, opened = free_port(), tmp_path / "opened"
    browser = tmp_path / "browser.py"
    browser.write_text(f"import sys\nwith open({str(opened)!r}, 'a') as file: file.write(sys.argv[1] + chr(10))\n")
    server = subprocess.Popen(
        [sys.executable, "-m", "harness", "ui", f"out={out}", f"port={port}", "open=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "BROWSER": f"{sys.executable} {browser} %s"},
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
        assert asked(f"{api}/experiments/get?experiment_id={experiment}")["experiment"]["name"] == "toy"
        query = dict(urllib.parse.parse_qsl(compared.partition("?")[2]))
        assert set(json.loads(query["runs"])) == set(runs)
        assert asked(f"{api}/runs/get?run_id={runs[0]}")["run"]["info"]["run_name"] == "lr 1"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_for(server: subprocess.Popen[str], path: Path, *, lines: int) -> None:
    """Until a file has as many lines, or the server ended; MLflow takes half a minute on a busy machine."""
    until = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < until:
        if path.is_file() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.1)


def test_each_task_has_its_pages() -> None:
    """The table of runs, and the comparison where there is one."""
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


def test_a_database_without_runs_is_served_all_the_same() -> None:
    """Its first page is said."""
    assert ui.address_lines([], "http://host/") == ["MLflow: http://host/"]


def test_without_a_browser_the_user_opens_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server without a screen the command goes on and says so."""
    monkeypatch.setattr(ui, "_answers", lambda process, server: True)
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    said: list[str] = []
    ui._open_pages(None, [PAGES], "http://host/", said.append)  # type: ignore[arg-type]
    assert said == ["No browser was found; open the addresses above manually."]


def test_a_port_that_is_taken_is_refused(tracked: tuple[Path, list[str]]) -> None:
    """Else the addresses would lead to another program."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=rf"port {port} is used by another program; set port= to a free one"):
            commands.ui([f"out={tracked[0]}", f"port={port}"])


def test_open_is_yes_or_no(tmp_path: Path) -> None:
    """Nothing else is taken for one of them."""
    with pytest.raises(OutOfRange, match="open"):
        commands.ui([f"out={tmp_path}", "open=maybe"])
