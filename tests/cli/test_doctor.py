"""The doctor finds what is there, what is missing and what is a trap."""

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
    """Pretend that distributions are installed at a version, or (``None``) are not."""
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
    """Pretend that every disk has so many bytes in all and free."""

    def pretend(total: float, free: float) -> None:
        usage = SimpleNamespace(total=total, used=total - free, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return pretend


def find(name: str, out: Path | str = ".") -> Check:
    """The one line about something."""
    return next(one for one in examine(out) if one.name == name)


def test_nothing_is_missing_where_the_tests_run() -> None:
    """An environment that runs the tests has all that is needed."""
    assert [one for one in examine() if one.state == "missing"] == []


def test_versions_are_those_of_the_installed_packages() -> None:
    """A needed package shows the version that its metadata give."""
    assert find("Ray").value == importlib.metadata.version("ray")


def test_every_line_has_a_name_of_its_own() -> None:
    """No two lines speak of the same thing."""
    names = [one.name for one in examine()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [("ray", "Ray"), ("mlflow", "MLflow"), ("captum", "captum"), ("SimpleITK", "SimpleITK"), ("harness", "harness")],
)
def test_a_needed_package_that_is_absent_is_missing(versions: Fake, distribution: str, name: str) -> None:
    """What is needed and not installed is missing, and the remedy is an installation."""
    versions(**{distribution: None})
    one = find(name)
    assert (one.state, "pip install -c constraints.txt" in one.remedy) == ("missing", True)


def test_an_optional_package_that_is_absent_is_no_fault(versions: Fake) -> None:
    """An optional part that is absent is fine; the line says how to get it."""
    versions(jupyterlab=None)
    one = find("optional: jupyterlab")
    assert (one.state, one.remedy) == ("ok", "pip install jupyterlab")


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "missing"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "missing")]
)
def test_python_must_be_one_that_is_tested(version: tuple[int, int], state: str) -> None:
    """3.11 to 3.13 are accepted, both ends included."""
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
def test_torchvision_is_a_trap_only_beside_a_cpu_torch(
    versions: Fake, vision: str | None, build: str, state: str
) -> None:
    """A torchvision whose build does not match a CPU torch is warned of, and of nothing else."""
    versions(torchvision=vision, torch=build)
    assert find("torchvision").state == state


def test_a_torch_that_does_not_import_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that raises when imported is reported with its error, and the examination goes on."""
    monkeypatch.setitem(sys.modules, "torch", None)
    one = find("torch")
    assert (one.state, "ModuleNotFoundError" in one.value) == ("missing", True)


def test_each_gpu_has_a_line_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs give two lines, each with name and memory in GB."""
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
    """Where a driver is installed but torch sees no GPU, something can be done about it."""
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    assert doctor._no_gpu(build_has_cuda=cuda).state == state


def test_a_folder_that_does_not_exist_yet_is_measured_where_it_would_be(tmp_path: Path) -> None:
    """Free disk is that of the nearest folder above that exists; nothing is made."""
    out = tmp_path / "a" / "b"
    assert (find("disk", out).state, (tmp_path / "a").exists()) == ("ok", False)


def test_little_disk_is_warned_of(disk: Fake, tmp_path: Path) -> None:
    """Below 5 GB free the remedy names another folder."""
    disk(total=100e9, free=4.9e9)
    assert find("disk", tmp_path) == Check(
        "disk", f"4.9 GB free at {tmp_path}", "warn", "free disk space, or set out=DIR"
    )


def test_a_folder_that_cannot_be_written_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A place where nothing can be written stops every run."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert find("disk", tmp_path).state == "missing"


@pytest.mark.parametrize(("size", "state"), [(64e6, "warn"), (2e9, "ok")])
def test_small_shared_memory_is_warned_of(disk: Fake, tmp_path: Path, size: float, state: str) -> None:
    """The 64 MB of a container are too few for Ray's object store."""
    disk(total=size, free=size)
    assert [one.state for one in doctor._shared_memory(tmp_path)] == [state]


def test_a_system_without_shared_memory_folder_has_no_line(tmp_path: Path) -> None:
    """Where there is no /dev/shm, nothing is said of it."""
    assert list(doctor._shared_memory(tmp_path / "absent")) == []


def test_the_examination_loads_neither_ray_nor_mlflow() -> None:
    """Versions come from metadata: the answer takes a torch import and no more."""
    script = (
        "import sys; from harness.cli.doctor import examine; examine(); print({'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
