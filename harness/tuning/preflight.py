"""Checks of the nodes of a cluster before anything starts: shared folders, code, versions, memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.core.errors import RequestError
from harness.core.settings import RunSettings

__all__ = ["Seen", "check_cluster", "check_nodes", "faults_of", "look"]

_PACKAGES = ("ray", "torch", "numpy", "captum", "nibabel", "pyarrow")
_WAIT_S = 120.0


@dataclass(frozen=True)
class Seen:
    """What a node has.

    Parameters
    ----------
    host : name of the machine
    read : content of the file of the driver, or why it cannot be read
    wrote : empty, or why the node cannot write beside it
    data : whether the folder of the images is there; ``True`` without one
    code : digest of the package, see :func:`digest_of_package`
    versions : version of Python and of the packages that compute
    memory_bytes : memory of the machine
    """

    host: str
    read: str
    wrote: str
    data: bool
    code: str
    versions: Mapping[str, str]
    memory_bytes: int


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


def look(folder: str, data: str, name: str) -> Seen:
    """What this node sees.

    Parameters
    ----------
    folder : folder in which the driver wrote the file ``driver``
    data : folder of the images; empty for none
    name : name of the file that this node writes there
    """
    import psutil

    try:
        read = (Path(folder) / "driver").read_text("utf-8")
    except OSError as error:
        read = f"error: {error.strerror or error}"
    wrote = ""
    try:
        (Path(folder) / name).write_text(read, "utf-8")
    except OSError as error:
        wrote = error.strerror or str(error)
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return Seen(
        socket.gethostname(),
        read,
        wrote,
        not data or Path(data).is_dir(),
        digest_of_package(),
        versions,
        psutil.virtual_memory().total,
    )


def faults_of(
    seen: Seen, own: Seen, *, folder: str, data: str, returned: str | None, memory_bytes: float = 0.0
) -> list[str]:
    """What is wrong with a node, each with value, expectation and remedy.

    Parameters
    ----------
    seen, own : what the node and the driver have; ``own.read`` is the content of the driver's file
    folder, data : the output folder and that of the images
    returned : content of the file of the node, as the driver reads it; ``None`` if there is none
    memory_bytes : memory that a job needs
    """
    faults: list[str] = []
    shared = "it must be one shared folder with the same path on all nodes (NFS)"
    if seen.read != own.read:
        why = seen.read.removeprefix("error: ") if seen.read.startswith("error: ") else "another folder of that name"
        faults.append(f"out={folder} is not what this machine sees ({why}); {shared}")
    elif seen.wrote:
        faults.append(f"out={folder} cannot be written ({seen.wrote}); give the user of the node the right to write")
    elif returned != own.read:
        faults.append(f"what it writes to out={folder} does not arrive here; {shared}")
    if not seen.data:
        faults.append(f"data={data} is no folder there; {shared}")
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
    return faults


def check_cluster(settings: RunSettings, *, memory_bytes: float = 0.0) -> None:
    """Check the nodes of the Ray session for a run; see :func:`check_nodes`."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    check_nodes(nodes, settings.folder, settings.data, memory_bytes=memory_bytes)


def check_nodes(nodes: Sequence[Mapping[str, Any]], out: Path, data: str, *, memory_bytes: float = 0.0) -> None:
    """Check every node of the Ray session from within, by a task on it.

    Parameters
    ----------
    nodes : nodes of ``ray.nodes()`` that may run jobs
    out : output folder
    data : folder of the images; empty for generated images, which are in the output folder
    memory_bytes : memory that a job needs

    Raises
    ------
    RequestError
        With all faults of all nodes.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    out = out.absolute()
    folder = out / "ray" / f"check-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    content = secrets.token_hex(16)
    (folder / "driver").write_text(content, "utf-8")
    try:
        own = look(str(folder), data, "self")
        task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
        asked = {
            node["NodeID"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(folder), data, node["NodeID"])
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
            path = folder / key
            returned = path.read_text("utf-8") if path.is_file() else None
            found = faults_of(seen, own, folder=str(out), data=data, returned=returned, memory_bytes=memory_bytes)
            faults += [f"{name}: {one}" for one in found]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if faults:
        many = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        lines = [f"the cluster has {many}; nothing was started:", *(f"  {n}. {one}" for n, one in enumerate(faults, 1))]
        raise RequestError("\n".join(lines))
