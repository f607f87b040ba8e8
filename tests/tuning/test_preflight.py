"""Checks of the nodes of a cluster before a run: what each of them sees, and what is told."""

from __future__ import annotations

import dataclasses
import platform
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from harness.core.errors import RequestError
from harness.core.settings import RunSettings
from harness.storage import bucket
from harness.storage.bucket import Bucket
from harness.tuning import preflight
from harness.tuning.access import asks_for_token
from harness.tuning.jobs import listening, session
from harness.tuning.preflight import (
    Seen,
    check_nodes,
    digest_of_data,
    faults_of,
    look,
    required_packages,
    why_no_gpu,
)

OWN = Seen("head", "abc", "", "89ab", "0123", {"Python": "3.11.7", "torch": "2.13.0"}, 32_000_000_000)


def told(seen: Seen, **more: Any) -> list[str]:
    """Faults of a node whose file arrives."""
    return faults_of(seen, OWN, **{"folder": "/shared/runs", "data": "/shared/bids", "returned": "abc", **more})


def test_an_equal_node_has_no_fault() -> None:
    """It sees what the driver sees."""
    assert told(dataclasses.replace(OWN, host="worker"), memory_bytes=1e9) == []


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"read": "error: No such file or directory"}, {}, r"out=/shared/runs is not what this machine sees \(No such"),
        ({"read": "other"}, {}, r"another folder of that name\); it must be one shared folder"),
        ({"wrote": "Read-only file system"}, {}, r"out=/shared/runs cannot be written \(Read-only file system\)"),
        ({}, {"returned": None}, r"what it writes to out=/shared/runs does not arrive here"),
        ({"data": "error: No such file or directory"}, {}, r"data=/shared/bids cannot be read there \(No such file"),
        (
            {"data": "cdef"},
            {},
            r"it sees another data=/shared/bids than this machine, .*; it must be one shared folder",
        ),
        (
            {"gpus": "torch 2.13.0+cpu, built for CPUs, finds none"},
            {},
            r"GPUs there that torch cannot use \(torch 2.13",
        ),
        ({"code": "4567"}, {}, r"its code of harness is 4567, here it is 0123; install the same version"),
        ({"versions": {"Python": "3.12.1", "torch": "2.13.0"}}, {}, r"it has Python 3\.12\.1 instead of 3\.11\.7"),
        ({}, {"memory_bytes": 64e9}, r"it has 32 GB of memory, a job needs about 64 GB"),
    ],
)
def test_each_fault_is_told_with_its_remedy(change: dict[str, Any], more: dict[str, Any], message: str) -> None:
    """One sentence for each fault."""
    (fault,) = told(dataclasses.replace(OWN, **change), **more)

    assert re.search(message, fault) and ";" in fault


def test_a_node_looks_at_folders(tmp_path: Path) -> None:
    """It reads the file of the driver, writes beside it, and looks for the images."""
    (tmp_path / "driver").write_text("abc")
    seen = look(str(tmp_path), str(tmp_path), "node")
    assert (seen.read, seen.wrote, seen.gpus) == ("abc", "", "") and (tmp_path / "node").read_text() == "abc"
    assert re.fullmatch(r"[0-9a-f]{16}", seen.data)
    away = look(str(tmp_path / "absent"), str(tmp_path / "absent"), "node")
    assert away.read == away.wrote.join(["error: ", ""]) == away.data == "error: No such file or directory"
    assert seen.code == away.code and seen.memory_bytes > 1e8


def test_packages_that_harness_requires_are_compared() -> None:
    """They are those of ``pyproject.toml``, and neither those of extras nor those of others."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert list(required_packages()) == [Requirement(one).name for one in project["dependencies"]]


def test_a_node_tells_the_versions_of_packages(tmp_path: Path) -> None:
    """Each is the version of the distribution, whether or not it can be imported."""
    seen = look(str(tmp_path), "", "node", packages=("numpy", "SimpleITK", "invented"))
    expected = {"numpy": np.__version__, "SimpleITK": metadata.version("SimpleITK"), "invented": "not installed"}
    assert seen.versions == {"Python": platform.python_version(), **expected}


def test_packages_with_other_versions_are_told_together() -> None:
    """With both versions of each."""
    here = dataclasses.replace(OWN, versions={"Python": "3.11.7", "scipy": "1.17.0", "monai": "1.6.0"})
    there = dataclasses.replace(OWN, versions={"Python": "3.11.7", "scipy": "1.17.1", "monai": "not installed"})
    (fault,) = faults_of(there, here, folder="", data="", returned="abc")
    assert fault.startswith("it has scipy 1.17.1 instead of 1.17.0, monai not installed instead of 1.6.0; install with")


def images(folder: Path) -> Path:
    """A small data set."""
    (folder / "sub-01").mkdir(parents=True)
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\n")
    (folder / "dataset_description.json").write_text('{"Name": "a"}')
    (folder / "README").write_text("one")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "participants.tsv").write_text("participant_id\tage\nsub-01\t62\n"),
        lambda top: (top / "dataset_description.json").write_text('{"Name": "b"}'),
        lambda top: (top / "README").write_text("four"),
        lambda top: (top / "README").unlink(),
        lambda top: (top / "sub-01").rename(top / "sub-02"),
        lambda top: (top / "sub-02").mkdir(),
    ],
    ids=["participants", "description", "size", "missing", "renamed", "more"],
)
def test_another_folder_of_images_has_another_digest(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    """Copies of one folder have one digest, and a difference at the top level changes it."""
    one, other = images(tmp_path / "one"), images(tmp_path / "other")
    (other / ".nfs0001").touch()
    assert digest_of_data(str(one)) == digest_of_data(str(other))
    change(other)
    assert digest_of_data(str(one)) != digest_of_data(str(other))


def test_digest_of_a_file_is_that_of_its_size(tmp_path: Path) -> None:
    """A file stands for itself, whose content is not read."""
    path = tmp_path / "images.h5"
    path.write_bytes(b"one")
    first = digest_of_data(str(path))
    path.write_bytes(b"two")
    assert digest_of_data(str(path)) == first
    path.write_bytes(b"four")
    assert digest_of_data(str(path)) != first


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        ("__version__ = '2.13.0+cpu'", "torch 2.13.0+cpu, built for CPUs, finds none"),
        (
            "raise ImportError('libcudart.so is missing')",
            "torch cannot be imported: ImportError: libcudart.so is missing",
        ),
        ("import os\ncuda.is_available = lambda: 'CUDA_VISIBLE_DEVICES' not in os.environ", ""),
    ],
    ids=["none", "broken", "hidden"],
)
def test_torch_is_asked_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, why: str) -> None:
    """Its answer is why there is none; GPUs that Ray hides from the asking task count."""
    stub = "from types import SimpleNamespace as N\ncuda, version = N(is_available=lambda: False), N(cuda=None)\n"
    (tmp_path / "torch.py").write_text(stub + torch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_gpu() == why


def test_a_node_looks_at_a_bucket(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the object of the driver, writes beside it, and makes its local folder."""
    Bucket(s3_url).replace("driver", b"abc")
    seen = look(str(tmp_path / "local"), "", "node", s3_url)
    assert (seen.read, seen.wrote, seen.data) == ("abc", "", "") and Bucket(s3_url).read("node") == b"abc"
    assert list((tmp_path / "local").iterdir()) == []
    (tmp_path / "file").touch()
    blocked = look(str(tmp_path / "file"), "", "node", s3_url)
    assert blocked.read == "abc" and f"the local folder {tmp_path / 'file'}: File exists" in blocked.wrote
    assert look(str(tmp_path), "", "node", f"{s3_url}/absent").read.startswith("error: ")
    own = look(str(tmp_path), "", "self", s3_url)
    monkeypatch.setattr(bucket, "has_extra", lambda: False)
    away = dataclasses.replace(OWN, read=look(str(tmp_path), "", "node", s3_url).read)
    assert own.read == "abc"
    (fault,) = told(away, folder="s3://lab/x", in_bucket=True)
    assert "out=s3://lab/x is not what this machine sees" in fault and "needs the extra s3" in fault
    assert "the same AWS_ENDPOINT_URL, AWS_REGION and keys as here" in fault and "NFS" not in fault


@pytest.mark.ray
def test_nodes_meet_in_a_bucket(nodes: list[dict[str, Any]], s3_url: str, tmp_path: Path) -> None:
    """What the node writes arrives; the folder of the images is not asked for, and nothing is left.

    The session started before this test, so its workers have not the keys of the test.
    """
    with pytest.raises(
        RequestError, match=r"out=s3://lab/.* is not what this machine sees .*set them before ray start"
    ):
        check_nodes(nodes, tmp_path, str(tmp_path / "absent"), bucket=s3_url)
    assert not Bucket(s3_url).files()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Nodes of a session on this machine."""
    settings = RunSettings(ray="local", out=str(tmp_path_factory.mktemp("out")))
    with session(settings):
        import ray

        yield ray.nodes()


@pytest.mark.ray
def test_nodes_of_a_session(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    """This machine has no fault, and nothing of the check is left."""
    check_nodes(nodes, tmp_path, str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == ["ray"]


@pytest.mark.ray
def test_versions_of_all_packages_are_compared(
    nodes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is asked for each package that harness requires; the driver is made to have another version of one."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "typer" else version(name))
    with pytest.raises(RequestError, match=rf"it has typer {re.escape(version('typer'))} instead of 0\.1; install"):
        check_nodes(nodes, tmp_path, "")


@pytest.mark.ray
def test_a_local_folder_of_the_same_name_is_found(
    nodes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is named; on this machine, the driver is made to see other images than the worker."""
    worker_sees = images(tmp_path / "bids")
    driver_sees = digest_of_data(str(tmp_path))
    monkeypatch.setattr(preflight, "digest_of_data", lambda data: driver_sees)
    with pytest.raises(RequestError, match=rf"{re.escape(nodes[0]['NodeManagerHostname'])} \(.*it sees another data="):
        check_nodes(nodes, tmp_path, str(worker_sees))


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_gpus_that_only_ray_counts_are_a_fault(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    """A node is asked if the request needs GPUs and the node says to have some."""
    boasting = {**nodes[0], "Resources": {**nodes[0]["Resources"], "GPU": 2.0}}
    check_nodes([boasting], tmp_path, "")
    check_nodes(nodes, tmp_path, "", gpus=True)
    with pytest.raises(RequestError, match=r"Ray counts GPUs there that torch cannot use .*start Ray there with"):
        check_nodes([boasting], tmp_path, "", gpus=True)


@pytest.mark.ray
def test_all_faults_of_all_nodes_are_told(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    """A missing folder, too little memory, and a node that is gone are in one error."""
    gone = {**nodes[0], "NodeID": "ab" * 28, "NodeManagerHostname": "gone"}
    with pytest.raises(RequestError) as caught:
        check_nodes([*nodes, gone], tmp_path, str(tmp_path / "absent"), memory_bytes=1e15)
    text = str(caught.value)
    assert text.startswith("the cluster has 3 faults; nothing was started:")
    assert "absent cannot be read there (No such file or directory)" in text and "a job needs about 1e+06 GB" in text
    assert "gone (" in text and "a task on it failed" in text


@pytest.mark.ray
def test_what_listens_is_told(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks for a token on a single machine, unless the user turns that off."""
    assert "answers only with a token" in listening() and "all network interfaces" in listening()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "ANSWERS EVERYONE" in listening()


@pytest.mark.ray
def test_a_cluster_with_a_token_refuses_callers_without(nodes: list[dict[str, Any]]) -> None:
    """The head of a session that asks for a token; ``test_access.py`` has one that does not."""
    import ray

    assert asks_for_token(ray.get_runtime_context().gcs_address) is True


@pytest.fixture
def listener() -> Iterator[str]:
    """Address at which something listens that is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Ray that does not connect, in a home without a token and settings of it."""
    import ray

    def refuse(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, r"sends no token \(RAY_AUTH_MODE is not token\)"),  # although there is a file
        ({"RAY_AUTH_MODE": "disabled"}, r"sends no token \(RAY_AUTH_MODE is not token\)"),
        ({"RAY_AUTH_MODE": "Token"}, r"sends the token in .*/\.ray/auth_token\."),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "absent"}, r"has no token \(there is no absent\)"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "sends the token of RAY_AUTH_TOKEN"),
    ],
)
def test_a_wrong_token_is_told(
    refused: pytest.MonkeyPatch, listener: str, tmp_path: Path, variables: dict[str, str], found: str
) -> None:
    """If the port answers and Ray does not connect, the token is named, not "no cluster"."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    for name, value in variables.items():
        refused.setenv(name, value)
    with pytest.raises(RequestError, match=rf"something answers at .*Failed to connect.*this program {found}.*copy it"):
        session(RunSettings(ray=listener)).__enter__()


def test_nobody_at_the_address_is_told(refused: pytest.MonkeyPatch) -> None:
    """Without a server, the address is named, not the token."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(RequestError, match="must be reachable"):
        session(RunSettings(ray=address)).__enter__()


# Ray reads the token once per process.
MISSING = """
import sys
from harness.core.errors import RequestError
from harness.core.settings import RunSettings
from harness.tuning.jobs import session
try:
    session(RunSettings(ray=sys.argv[1])).__enter__()
except RequestError as error:
    print(error)
"""


def without_token(address: str) -> str:
    """What is said of Ray that finds no token."""
    done = subprocess.run([sys.executable, "-c", MISSING, address], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_token_is_told(refused: pytest.MonkeyPatch, listener: str) -> None:
    """Ray is to send a token, and there is none."""
    refused.setenv("RAY_AUTH_MODE", "token")
    assert re.search(r"no authentication token was found\): this program has no token", without_token(listener))


def test_a_missing_file_of_a_token_is_told(refused: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray starts no session of its own, because it would create no file there."""
    refused.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    assert "Ray cannot be started on this machine (RAY_AUTH_TOKEN_PATH is set but file" in without_token("auto")
