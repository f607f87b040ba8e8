"""Where the console command writes: below ``out`` as it was read, wherever Ray, MLflow and their threads stand."""

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
def here(tmp_path: Path) -> Path:
    """A working folder with a name that URIs, shells and globs read as something else."""
    folder = tmp_path / "50% of #1 = why?"
    folder.mkdir()
    return folder


def ran(here: Path, *words: str) -> str:
    """What the console command says."""
    done = subprocess.run(
        [PROGRAM, "run", *words],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def printed(screen: str, name: str) -> str:
    """A place that the command ends with."""
    found = re.search(rf"^{name}: +(.+)$", screen, flags=re.MULTILINE)
    assert found is not None, screen
    return found[1]


def tracked(uri: str) -> list[str]:
    """States of the runs in a database of MLflow."""
    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.fixture
def words(small_run: tuple[str, ...]) -> tuple[str, ...]:
    """Words of a run of one training."""
    return (*small_run, "sequences=T2w", "fold=0", "attribution=none", "report=false")


@pytest.mark.parametrize(("word", "folder"), [((), "harness-runs"), (("out=a/../runs",), "runs")])
def test_database_that_is_printed_holds_the_runs(
    here: Path, words: tuple[str, ...], word: tuple[str, ...], folder: str
) -> None:
    """With the default and with a relative ``out``: nothing is written anywhere else."""
    screen = ran(here, *words, "ray=off", *word)
    assert printed(screen, "leaderboard").startswith(f"{here / folder}/")
    states = tracked(printed(screen, "MLflow"))
    assert states and set(states) == {"FINISHED"}
    assert [path.name for path in here.iterdir()] == [folder]
    assert (here / folder / "mlflow.db").is_file() and not (here / folder / folder).exists()


@pytest.mark.ray
def test_database_that_is_printed_holds_the_runs_of_ray(here: Path, words: tuple[str, ...]) -> None:
    """Starting Ray beside the tracker's thread changes no place."""
    screen = ran(here, *words)
    assert f"{CELLS} cells done, 0 failed" in screen
    states = tracked(printed(screen, "MLflow"))
    assert states and set(states) == {"FINISHED"}
    assert [path.name for path in here.iterdir()] == ["harness-runs"]
    assert not (here / "harness-runs" / "harness-runs").exists()
