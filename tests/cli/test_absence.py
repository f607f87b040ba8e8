"""MLflow is away during a run: what it missed is written when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

import harness
from harness.cli import api
from harness.cli.api import Silent, _Absence, carry_out
from harness.sweep.grammar import to_overrides
from harness.tracking.runs import IDENTITY

Overrides = Callable[..., dict[str, Any]]


class Said(Silent):
    """An observer that keeps messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        """Keep a message."""
        self.texts.append(text)


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits at the end of runs, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(api, "time", SimpleNamespace(sleep=found.append, monotonic=time.monotonic))
    return found


@pytest.fixture
def out(empty_database: Path, tmp_path: Path) -> Path:
    """An output folder with an MLflow database."""
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    return folder


class Away:
    """Lets MLflow fail in some of its calls that create runs or write to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        self.fails: Callable[[int], bool] = lambda number: False
        for name in ("create_run", "log_batch", "set_terminated", "log_artifacts"):
            monkeypatch.setattr(MlflowClient, name, self._wrapped(getattr(MlflowClient, name)))

    def _wrapped(self, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls.append(len(self.calls))
            if self.fails(self.calls[-1]):
                raise ConnectionError("server is away")
            return method(*given, **named)

        return call


def logged(out: Path) -> dict[str, tuple[str, dict[str, float], frozenset[str]]]:
    """Status, metrics and names of parameters of each run, by its identity, of which each must be unique."""
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    runs = {
        run.data.tags[IDENTITY]: (
            run.info.status,
            {key: value for key, value in run.data.metrics.items() if not key.startswith("seconds")},
            frozenset(run.data.params),
        )
        for run in found
    }
    assert len(runs) == len(found)
    return runs


@pytest.fixture(scope="module")
def undisturbed(
    tiny_overrides: Overrides, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], int]:
    """Runs in MLflow after an undisturbed run, and the number of calls that it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "runs"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        away = Away(patch)
        harness.run(**tiny_overrides(folder, mlflow="auto"))
        return logged(folder), len(away.calls)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_what_was_missed_is_written_at_the_end(
    share: float,
    tiny_overrides: Overrides,
    out: Path,
    undisturbed: tuple[dict[str, Any], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever one call fails, the same run writes everything before it ends, once."""
    expected, calls = undisturbed
    away = Away(monkeypatch)
    away.fails = lambda number: number == int(share * calls)
    result = carry_out(to_overrides(**tiny_overrides(out, mlflow="auto")), (), Silent())
    assert result.complete and result.trouble == ""
    assert logged(out) == expected


def test_what_was_missed_is_written_by_the_same_command(
    tiny_overrides: Overrides,
    out: Path,
    undisturbed: tuple[dict[str, Any], int],
    waited: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If MLflow does not return, the run says so once and ends with its tables; the same command writes the rest."""
    expected, calls = undisturbed
    away, said = Away(monkeypatch), Said()
    away.fails = lambda number: number >= calls // 2
    overrides = to_overrides(**tiny_overrides(out, mlflow="auto"))
    result = carry_out(overrides, (), said)
    assert waited == [1.0, 5.0, 10.0]
    assert result.complete and result.csv.is_file() and "server is away" in result.trouble
    assert sum("The run continues" in text for text in said.texts) <= 1
    away.fails = lambda number: False
    assert carry_out(overrides, (), Silent()).trouble == ""
    assert logged(out) == expected


def test_mlflow_is_tried_again_during_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error, MLflow is tried again between cells, each time after twice as long; the user is told once."""
    now, logs, said = [0.0], list[float](), Said()
    monkeypatch.setattr(api.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(api, "_log_again", lambda tracker, made: logs.append(now[0]))
    absence = _Absence(SimpleNamespace(trouble="cannot write"), None, said)  # type: ignore[arg-type]
    for seconds in range(0, 600, 10):
        now[0] = float(seconds)
        absence.check()
    assert logs == [60.0, 190.0, 440.0]
    assert said.texts == [
        "cannot write. The run continues; its cells are kept in the store, and are logged when MLflow is back"
    ]


def test_reachable_mlflow_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error, and without MLflow, nothing is said or tried."""
    monkeypatch.setattr(api, "_log_again", pytest.fail)
    for tracker in (SimpleNamespace(trouble=""), None):
        absence = _Absence(tracker, None, Silent())  # type: ignore[arg-type]
        absence.check()
