"""Check this machine: what is installed, what is missing, and how to fix it.

Versions are read from the metadata of installed packages: nothing heavy is
imported but torch, which alone knows of GPUs.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.errors import first_line
from harness.core.machine import usable_cores
from harness.core.paths import absolute
from harness.core.settings import RunSettings

__all__ = ["Check", "State", "examine"]

State = Literal["ok", "warn", "missing"]

_PYTHONS = ((3, 11), (3, 13))  # oldest and newest tested versions
_GB = 1e9
_LOW_DISK_GB = 5.0
_LOW_MEMORY_GB = 4.0
_LOW_SHM_GB = 1.0  # with less, Ray puts its object store into /tmp
_REINSTALL = "pip install -c constraints.txt -e ."

# Distribution, display name, purpose.
_NEEDED = (
    ("ray", "Ray", "parallel runs and clusters"),
    ("mlflow", "MLflow", "tracking"),
    ("optuna", "Optuna", "search=optuna"),
    ("captum", "captum", "gradient attributions"),
    ("monai", "MONAI", "network architectures"),
    ("SimpleITK", "SimpleITK", "resampling and bias correction"),
    ("nibabel", "nibabel", "NIfTI"),
)

# Distribution, purpose, how to install it.
_OPTIONAL = (
    ("jupyterlab", "notebooks", "pip install jupyterlab"),
    ("aiohttp-cors", "Ray's dashboard", "pip install -c constraints.txt 'ray[default]'"),
    ("boto3", "an MLflow server that keeps artifacts on S3", "pip install boto3"),
    ("obstore", "results in a bucket (out=s3://…)", "pip install -c constraints.txt -e '.[s3]'"),
    ("psycopg", "tracking in PostgreSQL", "pip install -c constraints.txt -e '.[postgres]'"),
    ("pytest", "the tests", "make test"),
)


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Parameters
    ----------
    name : what was checked
    value : what was found
    state : ``ok``; ``warn`` if it works with limitations; ``missing`` if it is required and absent
    remedy : next step, empty if none is needed
    """

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


def examine(out: str | Path = RunSettings.out) -> list[Check]:
    """Check everything that a run depends on.

    Parameters
    ----------
    out : output folder of runs; need not exist

    Returns
    -------
    list of Check
        Required software, then hardware, then optional packages.
    """
    return [
        _python(sys.version_info[:2]),
        _harness(),
        *_torch(),
        *(_package(*one) for one in _NEEDED),
        _torchvision(),
        _cores(),
        _memory(),
        _disk(absolute(out, "out")),
        *_shared_memory(Path("/dev/shm")),
        *(_optional(*one) for one in _OPTIONAL),
    ]


def _python(version: tuple[int, int]) -> Check:
    low, high = _PYTHONS
    fits = low <= version <= high
    remedy = "" if fits else "create the environment with Python 3.11, 3.12 or 3.13"
    return Check("Python", f"{platform.python_version()} ({sys.executable})", "ok" if fits else "missing", remedy)


def _harness() -> Check:
    version = _version("harness")
    if version is None:
        return Check("harness", "not installed", "missing", f"run in the root of the clone: {_REINSTALL}")
    return Check("harness", f"{version} ({Path(__file__).parents[1]})")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken installation raises not only ImportError but OSError and others
        yield Check("torch", first_line(error), "missing", _REINSTALL)
        return
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    yield Check("torch", f"{torch.__version__}, {build}")
    count = torch.cuda.device_count()
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        yield Check(f"GPU {number}", f"{gpu.name}, {gpu.total_memory / _GB:.0f} GB")
    if not count:
        yield _no_gpu(build_has_cuda=torch.version.cuda is not None)


def _no_gpu(*, build_has_cuda: bool) -> Check:
    driver = shutil.which("nvidia-smi") is not None
    if driver and not build_has_cuda:
        remedy = "nvidia-smi is installed: install the CUDA build of torch (pytorch.org, Get Started)"
        return Check("GPU", "none that torch can use", "warn", remedy)
    if build_has_cuda and driver:
        return Check("GPU", "none visible", "warn", "check nvidia-smi, and CUDA_VISIBLE_DEVICES if it is set")
    return Check("GPU", "none")


def _package(distribution: str, name: str, purpose: str) -> Check:
    version = _version(distribution)
    if version is None:
        return Check(name, f"not installed ({purpose})", "missing", _REINSTALL)
    return Check(name, version)


def _torchvision() -> Check:
    """Check for a CUDA build of torchvision with a CPU build of torch: it fails on import, as do packages using it."""
    there, torch = _version("torchvision"), _version("torch") or ""
    if there is None:
        return Check("torchvision", "not installed, not needed")
    if _is_cpu(torch) and not _is_cpu(there):
        remedy = "pip uninstall torchvision: it cannot be imported with a CPU build of torch, nor packages that use it"
        return Check("torchvision", f"{there} with torch {torch}", "warn", remedy)
    return Check("torchvision", f"{there}, not needed")


def _is_cpu(version: str) -> bool:
    return version.endswith("+cpu")


def _cores() -> Check:
    return Check("CPU cores", f"{usable_cores()} usable of {os.cpu_count()}")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / _GB:.1f} GB free of {memory.total / _GB:.1f} GB"
    if memory.available / _GB < _LOW_MEMORY_GB:
        return Check("memory", value, "warn", "close other programs, or run fewer jobs at a time: workers=1")
    return Check("memory", value)


def _disk(out: Path) -> Check:
    there = next(one for one in (out, *out.parents) if one.exists())
    free = shutil.disk_usage(there).free / _GB
    value = f"{free:.1f} GB free at {out}"
    if not os.access(there, os.W_OK):
        return Check("disk", f"{out} is not writable", "missing", "set out=DIR")
    if free < _LOW_DISK_GB:
        return Check("disk", value, "warn", "free disk space, or set out=DIR")
    return Check("disk", value)


def _shared_memory(folder: Path) -> Iterator[Check]:
    """Check the size of Ray's shared memory, often 64 MB in containers; only Linux has this folder."""
    if not folder.is_dir():
        return
    size = shutil.disk_usage(folder).total / _GB
    remedy = "" if size >= _LOW_SHM_GB else "start the container with --shm-size=2g; until then Ray uses /tmp"
    yield Check("shared memory", f"{size:.2g} GB at {folder}", "warn" if remedy else "ok", remedy)


def _optional(distribution: str, purpose: str, how: str) -> Check:
    version = _version(distribution)
    if version is None:
        return Check(f"optional: {distribution}", f"not installed; for {purpose}", "ok", how)
    return Check(f"optional: {distribution}", version)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
