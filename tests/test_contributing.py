"""The third-party package in CONTRIBUTING.md works as shown."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))

Run = Callable[..., str]
COMMAND = "from harness.cli.main import main; main()"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package and its entry points."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "my_study" / "__init__.py").touch()
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    metadata = folder / f"my_study-{project['version']}.dist-info"
    metadata.mkdir()
    stated = ("Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}")
    (metadata / "METADATA").write_text("\n".join(stated))
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{a} = {b}" for a, b in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def python(package: Path, tmp_path: Path) -> Run:
    """A function that runs Python with the package installed, in another folder, and returns its output."""

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_page_contains_every_file_of_the_package() -> None:
    """The page contains every file of the package."""
    own = {f"my_study/{name}.py" for name in ("components", "segmentation", "classification")}
    assert set(FILES) == {"pyproject.toml", "test_my_components.py", *own}


def test_the_components_conform(python: Run, package: Path) -> None:
    """The tests on the page pass."""
    output = python("-m", "pytest", "-q", "--import-mode=importlib", str(package / "test_my_components.py"))
    assert "5 passed" in output


def test_the_segmentation_runs(python: Run, board_of: Callable[..., Path], tmp_path: Path) -> None:
    """The task is found by name, and its leaderboards contain the package's model, metric and attribution."""
    small = ["sequences=T2w", "attribution=squared_gradient", "phantom_subjects=4", "fold=0", "recipe.epochs=1"]
    python("-c", COMMAND, "run", "task=my_epvs", *small, "ray=off", "mlflow=off", "report=false", "out=runs")
    path = board_of(tmp_path / "runs", "my_epvs")
    board, explained = path.read_text(), path.with_name(f"{path.stem}-explanations.csv").read_text()
    assert "missed_volume" in board and "two_layers" in board and "squared_gradient" in explained


def test_the_classification_runs(python: Run, board_of: Callable[..., Path], tmp_path: Path) -> None:
    """The package's target and adapter are trained, and its probe metric has a value."""
    small = ["phantom.shape=[24,24,8]", "phantom.density=3000", "recipe.epochs=1", "targets.burden.volume_mm3=60"]
    python("-c", COMMAND, "run", "task=my_burden", *small, "ray=off", "mlflow=off", "report=false", "out=runs")
    path = board_of(tmp_path / "runs", "my_burden")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    with path.with_name(f"{path.stem}-explanations.csv").open(newline="") as file:
        (explained,) = csv.DictReader(file)
    assert 0 < float(row["brier"]) < 1
    assert float(explained["change_when_hidden"]) > 0
