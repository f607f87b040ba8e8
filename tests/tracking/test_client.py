"""Databases of MLflow are complete or absent, whatever happens while they are created."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from harness.core.errors import HarnessError
from harness.core.paths import sqlite_uri
from harness.tracking.client import _refuse_percent, check_uri, open_client


def test_process_killed_while_creating_a_database_leaves_none(tmp_path: Path) -> None:
    """After SIGKILL in the middle of the migrations, the next client creates the database."""
    path = tmp_path / "50% off" / "mlflow.db"
    new = path.with_name("mlflow.db.new")
    command = f"from harness.tracking.client import open_client; open_client({sqlite_uri(path)!r})"
    started = subprocess.Popen([sys.executable, "-c", command], env=dict(os.environ), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (new.exists() and new.stat().st_size) and time.monotonic() < deadline:
        assert started.poll() is None, "the database was complete before the process could be killed"
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not path.exists() and new.exists()
    client = open_client(sqlite_uri(path))
    assert client.get_experiment(client.create_experiment("after")).name == "after"
    assert [one.name for one in path.parent.glob("*.db*")] == ["mlflow.db"]


def test_incomplete_database_is_refused_with_the_next_step(empty_database: Path, tmp_path: Path) -> None:
    """The temporary table of an unfinished migration is an error that says what to do."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE _alembic_tmp_tags (key TEXT)")
    with pytest.raises(HarnessError, match=r"mlflow\.db is incomplete: .* Move it away and repeat the command"):
        open_client(sqlite_uri(path))


def test_existing_database_is_kept(empty_database: Path, tmp_path: Path) -> None:
    """A second client finds the experiments of the first."""
    uri = sqlite_uri(Path(shutil.copy(empty_database, tmp_path)))
    made = open_client(uri).create_experiment("kept")
    assert open_client(uri).get_experiment_by_name("kept").experiment_id == made


def test_an_installation_below_a_percent_sign_is_told() -> None:
    """MLflow would fail with an error about interpolation; a server does not need its migrations here."""
    package = Path("/home/me/50% off/.venv/mlflow")
    with pytest.raises(HarnessError, match=r"below a folder with % in its name \(/home/me/50% off/\.venv/mlflow\)"):
        _refuse_percent("sqlite:////data/mlflow.db", package)
    _refuse_percent("http://127.0.0.1:5000", package)
    _refuse_percent("sqlite:////data/50%25/mlflow.db", Path("/home/me/.venv/mlflow"))


def test_a_percent_sign_is_told_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a database is refused at its start, not when its results are written."""
    place = ModuleSpec("mlflow", None, origin="/home/me/50% off/.venv/mlflow/__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: place)
    for uri in ("auto", "sqlite:////data/mlflow.db"):
        with pytest.raises(HarnessError, match="clone or install into another folder, or set mlflow=off"):
            check_uri(uri)
    for uri in ("off", "http://127.0.0.1:5000", "databricks"):
        check_uri(uri)
