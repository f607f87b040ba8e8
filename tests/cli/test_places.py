"""The console command writes below ``out``, whatever the working folder of Ray, MLflow and their threads."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from mlflow import MlflowClient

PROGRAM = Path(sysconfig.get_path("scripts")) / "harness"
CELLS = 3  # a training, its predictions and their score


@pytest.fixture
def working_folder(tmp_path: Path) -> Path:
    """A working folder whose name contains special characters of URIs, shells and globs."""
    folder = tmp_path / "50% of #1 = why?"
    folder.mkdir()
    return folder


def run_command(working_folder: Path, *overrides: str) -> str:
    """Run the console command and return its output."""
    done = subprocess.run(
        [PROGRAM, "run", *overrides],
        cwd=working_folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def printed(screen: str, name: str) -> str:
    """A path that is printed at the end of the run."""
    found = re.search(rf"^{name}: +(.+)$", screen, flags=re.MULTILINE)
    assert found is not None, screen
    return found[1]


def tracked(uri: str) -> list[str]:
    """Statuses of the runs in an MLflow database."""
    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.fixture
def overrides(small_run: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of a run with one training."""
    return (*small_run, "sequences=T2w", "fold=0", "attribution=none", "report=false")


def test_printed_database_holds_the_runs(working_folder: Path, overrides: tuple[str, ...]) -> None:
    """With a relative ``out``, the printed database holds the runs and nothing is written elsewhere."""
    screen = run_command(working_folder, *overrides, "ray=off", "out=a/../runs")
    assert printed(screen, "leaderboard").startswith(f"{working_folder / 'runs'}/")
    states = tracked(printed(screen, "MLflow"))
    assert states and set(states) == {"FINISHED"}
    assert [path.name for path in working_folder.iterdir()] == ["runs"]
    assert (working_folder / "runs" / "mlflow.db").is_file() and not (working_folder / "runs" / "runs").exists()


@pytest.mark.ray
def test_printed_database_holds_the_runs_with_ray(working_folder: Path, overrides: tuple[str, ...]) -> None:
    """With the default ``out`` and Ray, the printed database holds the runs and nothing is written elsewhere."""
    screen = run_command(working_folder, *overrides)
    assert f"{CELLS} cells done, 0 failed" in screen
    states = tracked(printed(screen, "MLflow"))
    assert states and set(states) == {"FINISHED"}
    assert [path.name for path in working_folder.iterdir()] == ["harness-runs"]
    assert not (working_folder / "harness-runs" / "harness-runs").exists()
