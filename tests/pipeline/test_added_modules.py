"""Adding a module with a component changes the identity of no cell of the built-in tasks."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.core.registry import KINDS
from harness.core.targets import Target
from harness.core.task import Configuration, describe
from harness.core.types import Array, Cohort, Sample, Split
from harness.pipeline.cell import cells_of
from harness.sweep.catalogue import load_task

ROOT = Path(__file__).parents[2]

COMPONENT = """
from harness.core.registry import KINDS


@KINDS["{kind}"].register("added_{kind}")
def added(x=None, *, width: int = 1):
    return x
"""
METRIC = """
from harness.metrics.register import metric


@metric("added_metric", source="", direction="higher", range=(0, 1))
def added(prediction, target):
    return float((prediction == target).mean())
"""
TASK = """
import dataclasses

from harness.tasks import epvs

TASK = dataclasses.replace(epvs.TASK, name="added")
"""


@dataclass(frozen=True)
class FingerprintOnly:
    """An image with a fingerprint and no voxels."""

    fingerprint: str
    shape: tuple[int, ...] = (4, 4, 4)

    def load(self) -> Array:
        """Not needed for identities."""
        raise NotImplementedError

    def voxels(self) -> tuple[Array, Array]:
        """Not needed for identities."""
        raise NotImplementedError


def _cohort(target: Target) -> Cohort:
    """Four subjects."""
    names = ("sub-01", "sub-02", "sub-03", "sub-04")
    images, masks = (
        {"T2w": FingerprintOnly("t2w")},
        {"target": FingerprintOnly("target"), "lesion": FingerprintOnly("lesion")},
    )
    samples = (Sample(name, name, images, masks, {}, targets={target.name: 1.0}) for name in names)
    return Cohort("four", tuple(samples), targets=(target,))


def _identities() -> dict[str, str]:
    """Identities of all cells of the built-in tasks and of their metrics, by stage, label and metric."""
    split = Split(("sub-01", "sub-02"), ("sub-03",), ("sub-04",))
    found = {}
    for name, target in (("epvs", Target("target", "mask")), ("lsm", Target("score_1", "number"))):
        task = json.loads(json.dumps(describe(load_task(name))))
        for cell in cells_of(Configuration(task, {}, "quick", "fingerprint"), _cohort(target), split, 0, 0):
            found[f"{name} {cell.stage} {cell.label}"] = cell.identity
            found |= {f"{name} {cell.stage} {cell.label} {metric}": identity for metric, identity in cell.metrics}
    return found


def _report(modules: list[str]) -> None:
    """Print what a process with a copy of the package finds; run as a script."""
    for module in modules:
        importlib.import_module(module)
    names = [name for registry in KINDS.values() for name in registry.names() if name.startswith("added")]
    found = {"file": harness.__file__, "names": names, "task": load_task("added").name, "identities": _identities()}
    sys.stdout.write(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a process with a copy of the package that has one more module per kind of component."""
    folder = tmp_path_factory.mktemp("copy")
    for source, home in (
        ("harness", "harness"),
        ("tasks", "harness/tasks"),
        ("search_spaces", "harness/search_spaces"),
    ):
        shutil.copytree(ROOT / source, folder / home, ignore=shutil.ignore_patterns("__pycache__"))
    modules = []
    for kind, registry in KINDS.items():
        home = folder.joinpath(*registry.home.split("."))
        home = home if home.is_dir() else home.parent
        (home / f"added_{kind}.py").write_text(METRIC if kind == "metric" else COMPONENT.format(kind=kind))
        modules.append(".".join([*home.relative_to(folder).parts, f"added_{kind}"]))
    (folder / "harness" / "tasks" / "added.py").write_text(TASK)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["file"] == str(folder / "harness" / "__init__.py")
    return report


def test_added_components_are_found(found: dict[str, Any]) -> None:
    """The new modules register their components, and the new task is found by name."""
    assert found["names"] == [f"added_{kind}" for kind in KINDS]
    assert found["task"] == "added"


def test_added_components_change_no_identity(found: dict[str, Any]) -> None:
    """Every cell of the built-in tasks keeps its identity."""
    assert found["identities"] == _identities()


if __name__ == "__main__":
    _report(sys.argv[1:])
