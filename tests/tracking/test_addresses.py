"""Tracking URIs: refused before anything starts if they cannot work; PostgreSQL works as SQLite does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.core.errors import RequestError
from harness.tracking.client import check_uri

Overrides = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "uri",
    ["auto", "off", "http://host:5000", "https://me:pass@host", "databricks", "databricks://profile", "sqlite:///a.db",
     "sqlite+pysqlite:////a%25.db"],
)  # fmt: skip
def test_servers_and_databases_are_accepted(uri: str) -> None:
    """Nothing is connected to."""
    check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgres://me:secret@host/db", r"must be written postgresql://…, got postgres://me:\*\*\*@host/db"),
        ("s3://bucket/runs", r"must be auto, off, or the URI .*, got s3://bucket/runs; artifacts on s3:// belong"),
        ("file:///tmp/mlruns", "must be auto, off, or the URI of a server or database"),
        ("mlruns", "must be auto, off, or the URI of a server or database"),
        ("oracle://host/db", "must be auto, off, or the URI of a server or database"),
    ],
)
def test_other_addresses_are_refused(uri: str, message: str) -> None:
    """The message says what is accepted, without the password."""
    with pytest.raises(RequestError, match=message):
        check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://me:secret@host/db", r"postgresql://me:\*\*\*@host/db needs the package psycopg,.*\[postgres\]"),
        ("postgresql+pg8000://host/db", "needs the package pg8000, which is not installed: pip install pg8000"),
        ("mysql://host/db", "needs the package MySQLdb.*pip install mysqlclient"),
    ],
)
def test_missing_driver(monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    """The extra is named before anything is computed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=message):
        check_uri(uri)


def test_a_run_is_refused_before_it_reads_data(tiny_overrides: Overrides, tmp_path: Path) -> None:
    """Otherwise the error would come at the end of the run."""
    with pytest.raises(RequestError, match="mlflow must be auto, off"):
        harness.run(**tiny_overrides(tmp_path / "runs", mlflow="s3://bucket/x"))
    assert not (tmp_path / "runs").exists()


def test_runs_are_tracked_in_postgresql(postgresql: str, tiny_overrides: Overrides, tmp_path: Path) -> None:
    """A run has one MLflow run per configuration, repeating it makes no second one, and no file has the password."""
    from mlflow import MlflowClient

    overrides = tiny_overrides(tmp_path / "runs", mlflow=postgresql, report=True)
    for _ in range(2):
        result = harness.run(**overrides)
        assert result.complete and result.mlflow.startswith("postgresql://harness:***@127.0.0.1:")
    client = MlflowClient(tracking_uri=postgresql)
    found = {}
    for name in ("epvs", "epvs trainings"):
        experiment = client.get_experiment_by_name(name)
        found[name] = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert found == {"epvs": ["FINISHED"], "epvs trainings": ["FINISHED"] * 3}
    run = client.search_runs([client.get_experiment_by_name("epvs").experiment_id])[0]
    assert run.data.metrics["dice"] == pytest.approx(result.leaderboard.column("dice")[0].as_py())
    texts = [*run.data.tags.values(), *run.data.params.values()]
    assert not [text for text in texts if "pa%25ss" in text]
    held = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"pa%25ss" in path.read_bytes()]
    assert held == []
    assert not (tmp_path / "runs" / "mlflow.db").exists()
