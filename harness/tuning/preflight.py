"""Checks of the nodes of a cluster before anything starts: shared folders, images, code, versions, memory, GPUs."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.core.errors import HarnessError, RequestError
from harness.core.settings import RunSettings
from harness.storage.bucket import Bucket
from harness.storage.files import PART

__all__ = ["Seen", "check_cluster", "check_nodes", "digest_of_data", "faults_of", "look", "required_packages"]

_WAIT_S = 120.0
_WAITS_S = (1.0, 2.0)  # of a node whose server does not answer

_DESCRIPTIONS = ("participants.tsv", "dataset_description.json")
_ERROR = "error: "

# Prints why torch finds no GPU, and nothing if it finds one. A process of its own, so that the worker, which
# goes on to other tasks, keeps no context on the GPU.
_ASK_TORCH = """
import torch
if not torch.cuda.is_available():
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    print(f"torch {torch.__version__}, {built}, finds none")
"""
_ASK_S = 90.0  # torch may be on a slow shared folder


@dataclass(frozen=True)
class Seen:
    """What a node has.

    Parameters
    ----------
    host : name of the machine
    read : content of the file of the driver, or why it cannot be read
    wrote : empty, or why the node cannot write beside it
    data : digest of the images, see :func:`digest_of_data`, or ``error: …``; empty without images
    code : digest of the package, see :func:`digest_of_package`
    versions : version of Python and of the packages that harness requires
    memory_bytes : memory of the machine
    gpus : why torch finds no GPU; empty if it finds one, or was not asked
    """

    host: str
    read: str
    wrote: str
    data: str
    code: str
    versions: Mapping[str, str]
    memory_bytes: int
    gpus: str = ""


def digest_of_package() -> str:
    """Digest of the source files of this installation, with their relative paths.

    Tasks and search spaces are left out, because they are in other folders in a clone than in
    a wheel; workers compare what they use of them with the driver for each cell.
    """
    found = hashlib.sha256()
    root = Path(harness.__file__).parent
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in ("tasks", "search_spaces"):
            found.update(f"{relative}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def required_packages() -> tuple[str, ...]:
    """Names of the distributions that this installation of harness requires, without those of extras."""
    required = (one.partition(";") for one in importlib.metadata.requires("harness") or ())
    return tuple(re.split(r"[^\w.-]", name, maxsplit=1)[0] for name, _, marker in required if "extra" not in marker)


def digest_of_data(data: str) -> str:
    """What tells one folder of images from another of the same name, without reading the images.

    Parameters
    ----------
    data : folder or file

    Returns
    -------
    str
        Digest of the names at the top level, the sizes of the files there, and the content of
        ``participants.tsv`` and ``dataset_description.json``; of a file, its size. Hidden files are
        left out, because servers and desktops write them at any time. ``error: …`` if it cannot be read.
    """
    found = hashlib.sha256()
    top = Path(data)
    try:
        for path in sorted(top.iterdir()) if not top.is_file() else [top]:
            if path.name.startswith("."):
                continue
            size = path.stat().st_size if path.is_file() else -1
            content = path.read_bytes() if size >= 0 and path.name in _DESCRIPTIONS else b""
            found.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape") + content + b"\0")
    except OSError as error:
        return f"{_ERROR}{error.strerror or error}"
    return found.hexdigest()[:16]


def why_no_gpu() -> str:
    """Why torch finds no GPU on this node; empty if it finds one."""
    hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    # Ray can be told to hide GPUs in this way from tasks that ask for none, such as this one.
    environment = {name: value for name, value in os.environ.items() if value or name not in hidden}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], env=environment, timeout=_ASK_S, capture_output=True, text=True,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"torch could not be asked: {error}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"torch cannot be imported: {last}"
    return done.stdout.strip()


def look(
    folder: str, data: str, name: str, bucket: str = "", *, packages: Sequence[str] = (), gpus: bool = False
) -> Seen:
    """What this node sees.

    Parameters
    ----------
    folder : folder in which the driver wrote the file ``driver``; with a bucket, the local
        folder of the run, which the node creates
    data : folder of the images; empty for none
    name : name of the file that this node writes there
    bucket : bucket and prefix below which the driver wrote the object ``driver``; empty
        if the output is a folder
    packages : names of the distributions whose versions are compared
    gpus : whether torch is asked for GPUs, which takes seconds
    """
    import psutil

    read, wrote = _exchange_objects(bucket, name, Path(folder)) if bucket else _exchange_files(Path(folder), name)
    versions = {"Python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return Seen(
        socket.gethostname(),
        read,
        wrote,
        digest_of_data(data) if data else "",
        digest_of_package(),
        versions,
        psutil.virtual_memory().total,
        why_no_gpu() if gpus else "",
    )


def _exchange_files(folder: Path, name: str) -> tuple[str, str]:
    """What the driver wrote to a folder, or ``error: …``, and why this node cannot write there; empty if it can."""
    wrote = ""
    try:
        read = (folder / "driver").read_text("utf-8")
    except OSError as error:
        read = f"{_ERROR}{error.strerror or error}"
    try:
        (folder / name).write_text(read, "utf-8")
    except OSError as error:
        wrote = error.strerror or str(error)
    return read, wrote


def _exchange_objects(bucket: str, name: str, folder: Path) -> tuple[str, str]:
    """The same with a bucket; the local folder of the run must be writable, too."""
    try:
        place = Bucket(bucket, waits_s=_WAITS_S)
        read = place.read("driver").decode("utf-8", "replace")
    except (OSError, HarnessError) as error:
        return f"{_ERROR}{error}", ""
    try:
        place.replace(name, read.encode())
    except HarnessError as error:
        return read, str(error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=PART, dir=folder).cleanup()
    except OSError as error:
        return read, f"the local folder {folder}: {error.strerror or error}"
    return read, ""


def faults_of(
    seen: Seen,
    own: Seen,
    *,
    folder: str,
    data: str,
    returned: str | None,
    memory_bytes: float = 0.0,
    in_bucket: bool = False,
) -> list[str]:
    """What is wrong with a node, each with value, expectation and remedy.

    Parameters
    ----------
    seen, own : what the node and the driver have; ``own.read`` is the content of the driver's file
    folder, data : the output folder and that of the images
    returned : content of the file of the node, as the driver reads it; ``None`` if there is none
    memory_bytes : memory that a job needs
    in_bucket : whether the output is a bucket
    """
    faults: list[str] = []
    shared = "it must be one shared folder with the same path on all nodes (NFS)"
    if in_bucket:
        shared = (
            "Ray's processes on that node need the extra s3, and the same AWS_ENDPOINT_URL, AWS_REGION and keys as "
            "here (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a role; set them before ray start"
        )
    if seen.read != own.read:
        why = seen.read.removeprefix(_ERROR) if seen.read.startswith(_ERROR) else "another folder of that name"
        faults.append(f"out={folder} is not what this machine sees ({why}); {shared}")
    elif seen.wrote:
        faults.append(f"out={folder} cannot be written ({seen.wrote}); give the user of the node the right to write")
    elif returned != own.read:
        faults.append(f"what it writes to out={folder} does not arrive here; {shared}")
    if seen.data.startswith(_ERROR):
        faults.append(f"data={data} cannot be read there ({seen.data.removeprefix(_ERROR)}); {shared}")
    elif seen.data != own.data:
        faults.append(
            f"it sees another data={data} than this machine, with other names, sizes or participants; {shared}"
        )
    if seen.code != own.code:
        faults.append(
            f"its code of harness is {seen.code}, here it is {own.code}; install the same version on all nodes"
        )
    other = [
        f"{name} {seen.versions[name]} instead of {one}"
        for name, one in own.versions.items()
        if seen.versions[name] != one
    ]
    if other:
        faults.append(f"it has {', '.join(other)}; install with the same constraints.txt on all nodes")
    if seen.memory_bytes < memory_bytes:
        faults.append(
            f"it has {seen.memory_bytes / 1e9:.3g} GB of memory, a job needs about {memory_bytes / 1e9:.3g} GB; use a "
            "smaller network, or another node"
        )
    if seen.gpus:
        faults.append(
            f"Ray counts GPUs there that torch cannot use ({seen.gpus}); install the build of torch with CUDA and the "
            "driver (nvidia-smi, and harness doctor on that node, tell more), or start Ray there with --num-gpus=0"
        )
    return faults


def check_cluster(settings: RunSettings, *, memory_bytes: float = 0.0) -> None:
    """Check the nodes of the Ray session for a run; see :func:`check_nodes`."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    check_nodes(
        nodes, settings.folder, settings.data,
        memory_bytes=memory_bytes, bucket=settings.bucket, gpus=settings.gpus > 0,
    )  # fmt: skip


def check_nodes(
    nodes: Sequence[Mapping[str, Any]],
    out: Path,
    data: str,
    *,
    memory_bytes: float = 0.0,
    bucket: str = "",
    gpus: bool = False,
) -> None:
    """Check every node of the Ray session from within, by a task on it.

    Parameters
    ----------
    nodes : nodes of ``ray.nodes()`` that may run jobs
    out : output folder; with a bucket, the local folder of the run
    data : folder of the images; empty for generated images, which are in the output folder.
        With a bucket, nodes do not read it, see :mod:`harness.data.sharing`
    memory_bytes : memory that a job needs
    bucket : bucket and prefix of the output; empty if it is a folder
    gpus : whether jobs need GPUs; nodes that say to have some are then asked whether torch finds them

    Raises
    ------
    RequestError
        With all faults of all nodes.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    meeting = _InBucket(bucket, out.absolute()) if bucket else _InFolder(out.absolute())
    data = "" if bucket else data
    content = secrets.token_hex(16)
    meeting.write(content)
    try:
        packages = required_packages()
        own = look(meeting.folder, data, "self", meeting.bucket, packages=packages)
        task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
        asked = {
            node["NodeID"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(
                meeting.folder,
                data,
                node["NodeID"],
                meeting.bucket,
                packages=packages,
                gpus=gpus and node["Resources"].get("GPU", 0) > 0,
            )
            for node in nodes
        }
        faults: list[str] = []
        for node in nodes:
            name, key = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", node["NodeID"]
            try:
                seen = ray.get(asked[key], timeout=_WAIT_S)
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
                faults.append(f"{name}: a task on it failed ({reason}); is harness installed there, for the same user?")
                continue
            found = faults_of(
                seen, own, folder=bucket or str(out.absolute()), data=data, returned=meeting.read(key),
                memory_bytes=memory_bytes, in_bucket=bool(bucket),
            )  # fmt: skip
            faults += [f"{name}: {one}" for one in found]
    finally:
        meeting.end()
    if faults:
        many = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        lines = [f"the cluster has {many}; nothing was started:", *(f"  {n}. {one}" for n, one in enumerate(faults, 1))]
        raise RequestError("\n".join(lines))


class _InFolder:
    """A new folder in the output folder, in which the driver and the nodes leave files for each other."""

    bucket = ""

    def __init__(self, out: Path) -> None:
        self._path = out / "ray" / f"check-{secrets.token_hex(8)}"
        self._path.mkdir(parents=True)
        self.folder = str(self._path)

    def write(self, content: str) -> None:
        (self._path / "driver").write_text(content, "utf-8")

    def read(self, name: str) -> str | None:
        path = self._path / name
        return path.read_text("utf-8") if path.is_file() else None

    def end(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


class _InBucket:
    """The same with objects below a new prefix."""

    def __init__(self, url: str, out: Path) -> None:
        self._place = Bucket(url).below(f"ray/check-{secrets.token_hex(8)}")
        self.bucket, self.folder = self._place.url, str(out)

    def write(self, content: str) -> None:
        self._place.replace("driver", content.encode())

    def read(self, name: str) -> str | None:
        try:
            return self._place.read(name).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def end(self) -> None:
        with contextlib.suppress(HarnessError):
            self._place.delete(*self._place.files())
