"""``harness doctor`` reports what is installed, what is missing and known problems."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.cli import doctor
from harness.cli.doctor import Check, examine

Fake = Callable[..., None]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Pretend that distributions are installed in a version, or with ``None`` that they are missing."""
    real = importlib.metadata.version

    def pretend(**known: str | None) -> None:
        def version(name: str) -> str:
            found = known[name] if name in known else real(name)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Pretend that every disk has this many bytes in total and free."""

    def pretend(total: float, free: float) -> None:
        usage = SimpleNamespace(total=total, used=total - free, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return pretend


def find(name: str, out: Path | str = ".") -> Check:
    """Return the one line with this name."""
    return next(one for one in examine(out) if one.name == name)


def test_test_environment_meets_all_requirements() -> None:
    """In the test environment, every requirement is met."""
    assert [one for one in examine() if one.state == "missing"] == []


def test_versions_are_those_of_the_installed_packages() -> None:
    """An installed package is shown with the version from its metadata."""
    assert find("Ray").value == importlib.metadata.version("ray")


def test_every_line_has_a_unique_name() -> None:
    """Every line has a unique name."""
    names = [one.name for one in examine()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [("ray", "Ray"), ("mlflow", "MLflow"), ("captum", "captum"), ("SimpleITK", "SimpleITK"), ("harness", "harness")],
)
def test_a_missing_required_package_is_reported(versions: Fake, distribution: str, name: str) -> None:
    """A missing required package is reported with the command to install it."""
    versions(**{distribution: None})
    one = find(name)
    assert (one.state, "pip install -c constraints.txt" in one.remedy) == ("missing", True)


def test_a_missing_optional_package_is_not_a_fault(versions: Fake) -> None:
    """A missing optional package is not a fault, and the line explains how to install it."""
    versions(jupyterlab=None)
    one = find("optional: jupyterlab")
    assert (one.state, one.remedy) == ("ok", "pip install jupyterlab")


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "missing"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "missing")]
)
def test_python_must_be_a_supported_version(version: tuple[int, int], state: str) -> None:
    """Python 3.11 to 3.13 are accepted, both ends included."""
    assert doctor._python(version).state == state


@pytest.mark.parametrize(
    ("vision", "build", "state"),
    [
        (None, "2.13.0+cpu", "ok"),
        ("0.28.0", "2.13.0+cpu", "warn"),
        ("0.28.0+cpu", "2.13.0+cpu", "ok"),
        ("0.28.0", "2.13.0", "ok"),
    ],
)
def test_only_a_mismatched_torchvision_is_warned_of(versions: Fake, vision: str | None, build: str, state: str) -> None:
    """Only a torchvision build that does not match a CPU build of torch gives a warning."""
    versions(torchvision=vision, torch=build)
    assert find("torchvision").state == state


def test_a_torch_that_fails_to_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that fails to import is reported with its error, and the other checks continue."""
    monkeypatch.setitem(sys.modules, "torch", None)
    one = find("torch")
    assert (one.state, "ModuleNotFoundError" in one.value) == ("missing", True)


def test_each_gpu_has_a_line_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two GPUs has a line with its name and memory in GB."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="Card", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert [one.value for one in examine() if one.name.startswith("GPU")] == ["Card, 24 GB", "Card, 24 GB"]


@pytest.mark.parametrize(
    ("cuda", "driver", "state"),
    [(False, False, "ok"), (False, True, "warn"), (True, False, "ok"), (True, True, "warn")],
)
def test_a_gpu_that_torch_cannot_use_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, driver: bool, state: str
) -> None:
    """A GPU driver without a GPU visible to torch gives a warning with a remedy."""
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    assert doctor._no_gpu(build_has_cuda=cuda).state == state


def test_disk_of_a_folder_that_does_not_exist_yet_is_measured(tmp_path: Path) -> None:
    """For a folder that does not exist yet, the disk of its nearest parent is measured and nothing is created."""
    out = tmp_path / "a" / "b"
    assert (find("disk", out).state, (tmp_path / "a").exists()) == ("ok", False)


def test_little_disk_is_warned_of(disk: Fake, tmp_path: Path) -> None:
    """Less than 5 GB of free disk gives a warning that suggests another folder."""
    disk(total=100e9, free=4.9e9)
    assert find("disk", tmp_path) == Check(
        "disk", f"4.9 GB free at {tmp_path}", "warn", "free disk space, or set out=DIR"
    )


def test_a_folder_without_write_permission_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without write permission is reported as a fault."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert find("disk", tmp_path).state == "missing"


@pytest.mark.parametrize(("size", "state"), [(64e6, "warn"), (2e9, "ok")])
def test_small_shared_memory_is_warned_of(disk: Fake, tmp_path: Path, size: float, state: str) -> None:
    """Shared memory of 64 MB, a container's default, is too small for Ray's object store and gives a warning."""
    disk(total=size, free=size)
    assert [one.state for one in doctor._shared_memory(tmp_path)] == [state]


def test_shared_memory_is_optional(tmp_path: Path) -> None:
    """Without /dev/shm there is no line about shared memory."""
    assert list(doctor._shared_memory(tmp_path / "absent")) == []


def test_checks_import_neither_ray_nor_mlflow() -> None:
    """The checks import neither Ray nor MLflow; versions are read from metadata."""
    script = (
        "import sys; from harness.cli.doctor import examine; examine(); print({'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
