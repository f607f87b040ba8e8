"""Small cohorts and runs that many tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.targets import Target
from harness.core.types import Array, Cohort, Sample
from harness.testing import ArrayImage


def _sample(number: int, shape: tuple[int, int, int]) -> Sample:
    """A subject with lesions that are visible on T2w and invisible on FLAIR."""
    rng = np.random.default_rng(number)
    target = np.zeros(shape, bool)
    for _ in range(6):
        x, y, z = (int(rng.integers(2, side - 2)) for side in shape)
        target[x - 1 : x + 2, y - 1 : y + 2, z] = True
    t2w = (rng.normal(0, 0.2, shape) + 4.0 * target).astype(np.float32)
    flair = rng.normal(0, 1, shape).astype(np.float32)
    regions = np.ones(shape, np.int16)
    regions[shape[0] // 2 :] = 2
    affine = np.array([[0.0, -1.5, 0, 3], [1.2, 0, 0, -5], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    return Sample(
        id=f"sub-{number:02d}",
        subject=f"sub-{number:02d}",
        images={"FLAIR": ArrayImage(flair), "T2w": ArrayImage(t2w)},
        masks={
            "target": ArrayImage(target),
            "brain": ArrayImage(np.ones(shape, bool)),
            "regions": ArrayImage(regions),
        },
        covariates={},
        affine=affine,
        spacing_mm=(1.2, 1.5, 2.0),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files with tests that start Ray evenly among the others.

    They use more than one core and often wait. ``make test`` keeps this order, so that other
    tests run beside them.
    """
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    files = list(dict.fromkeys(item.path for item in items))
    rank: dict[Path, float] = {}
    for group in ([one for one in files if one in with_ray], [one for one in files if one not in with_ray]):
        rank |= {path: (number + 0.5) / len(group) for number, path in enumerate(group)}
    items.sort(key=lambda item: rank[item.path])


@pytest.fixture(scope="session")
def in_memory() -> Callable[[Array], ArrayImage]:
    """A function that makes an in-memory image from an array."""
    return ArrayImage


@pytest.fixture(scope="session")
def toy_cohort() -> Cohort:
    """Four subjects in memory, on grids of different size."""
    shapes = [(16, 16, 6), (16, 14, 6), (12, 16, 5), (16, 16, 6)]
    return Cohort(
        "toy",
        tuple(_sample(number, shape) for number, shape in enumerate(shapes, 1)),
        regions={1: "left", 2: "right"},
        targets=(Target("target", "mask"),),
    )


@pytest.fixture(scope="session")
def epvs() -> Any:
    """The ePVS task as declared."""
    from harness.sweep.catalogue import load_task

    return load_task("epvs")


@pytest.fixture(scope="session")
def toy_task(epvs: Any) -> Any:
    """The ePVS task with a network of a few hundred weights and few components."""
    from harness.attribution.controls import random_map
    from harness.attribution.gradients import integrated_gradients
    from harness.core.overrides import override

    task = dataclasses.replace(
        epvs,
        explanations={"random": partial(random_map), "gradients": partial(integrated_gradients, steps=2)},
        metrics={
            label: epvs.metrics[label]
            for label in ("dice", "sensitivity", "true_count", "predicted_count", "icc_count", "relevance_ap")
        },
        regional=("dice",),
        hypotheses=(),
        published=(),
    )
    small = {
        "sequences": "T2w",
        "model.width": 2,
        "model.depth": 1,
        "recipe.epochs": 2,
        "recipe.batch_size": 4,
        "recipe.copies": 1,
        "recipe.augmentation": "none",
        "recipe.lr": 0.01,
    }
    for key, value in small.items():
        task = override(task, key, value)
    return task


@pytest.fixture(scope="session")
def lesion_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen lesion masks of 20 × 24 × 18 voxels of 2 mm in one space, all but one with a score."""
    from harness.data import nifti

    root = tmp_path_factory.mktemp("lesions") / "masks"
    affine = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -30], [0, 0, 2, -10], [0, 0, 0, 1]])
    rows = ["participant_id\tseverity"]
    for number in range(1, 15):
        rng, name = np.random.default_rng(number), f"sub-{number:02d}"
        mask = np.zeros((20, 24, 18), np.uint8)
        x, y, z = 3 + rng.integers(0, 6), 5 + rng.integers(0, 6), 4 + rng.integers(0, 5)
        edge = 4 + number % 5
        mask[x : x + edge, y : y + edge, z : z + edge] = 1
        nifti.write(root / name / "anat" / f"{name}_space-MNI152_label-lesion_mask.nii.gz", mask, affine)
        rows.append(f"{name}\t{'n/a' if number == 14 else number % 7}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "dataset_description.json").write_text('{"Name": "masks", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture(scope="session")
def configured(toy_cohort: Cohort) -> Callable[..., Any]:
    """A function that makes the configuration of a task on a cohort, by default ``toy_cohort``."""
    import json

    from harness.core.task import Configuration, describe
    from harness.pipeline.cell import reads_of

    def configure(task: Any, cohort: Cohort = toy_cohort) -> Configuration:
        adapter = task.adapter()
        reads = reads_of(adapter, adapter.spec(cohort))["probe"]
        return Configuration(json.loads(json.dumps(describe(task))), {}, "quick", cohort.fingerprint(reads))

    return configure


@pytest.fixture(scope="session")
def phantom_root(epvs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four generated subjects of 24 × 24 × 8 voxels in a BIDS folder."""
    from harness.core.overrides import override
    from harness.sweep.cohorts import generate

    task = epvs
    for key, value in {"phantom_subjects": 4, "phantom.shape": [24, 24, 8], "phantom.density": 3000}.items():
        task = override(task, key, value)
    root = tmp_path_factory.mktemp("cohort") / "phantom"
    generate(task, root)
    return root


@pytest.fixture(scope="session")
def board_of() -> Callable[..., Path]:
    """A function that finds the CSV file of the latest run of a task in an output folder."""

    def find(out: Path, task: str = "epvs") -> Path:
        name = (out / "store" / "plans" / task / "latest").read_text().strip()
        return out / "leaderboards" / task / f"{name}.csv"

    return find


@pytest.fixture(scope="session")
def small_run() -> tuple[str, ...]:
    """Overrides of a run that trains networks of a few hundred weights on three generated subjects."""
    return (
        "task=epvs",
        "phantom_subjects=3",
        "phantom.shape=[24,24,8]",
        "phantom.density=4000",
        "model.width=2",
        "model.depth=2",
        "model.output_bias=0",
        "recipe.epochs=1",
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database; creating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


# A network with few weights and three test subjects: enough to find lesions within a second.
_TINY = {
    "task": "epvs",
    "sequences": "T2w",
    "attribution": "random",
    "recipe.epochs": 1,
    "model.width": 4,
    "model.depth": 1,
    "model.output_bias": 0.0,
    "recipe.lesion_weight": 30.0,
    "recipe.lr": 0.02,
    "recipe.copies": 10,
    "recipe.select": "last",
    "exclude": ("sub-04",),
    # The grid of the phantom, which the profile for users' data would change.
    "cohort.crop": "none",
    "cohort.brain": "if_present",
    "cohort.size": [],
    "ray": "off",
    "mlflow": "off",
    "report": False,
}


@pytest.fixture(scope="session")
def tiny_overrides(phantom_root: Path) -> Callable[..., dict[str, Any]]:
    """A function that makes overrides for ``harness.run``; keywords add overrides and ``None`` removes them."""

    def overrides(out: Path, **more: Any) -> dict[str, Any]:
        more = {key.replace("__", "."): value for key, value in more.items()}
        given = {**_TINY, "data": phantom_root, "out": out, **more}
        return {key: value for key, value in given.items() if value is not None}

    return overrides


@pytest.fixture(scope="session")
def _finished_once(tiny_overrides: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import harness

    out = tmp_path_factory.mktemp("finished") / "runs"
    harness.run(**tiny_overrides(out))
    return out


@pytest.fixture
def finished(_finished_once: Path, tmp_path: Path) -> Path:
    """A copy, for this test only, of the output folder of a finished tiny run."""
    shutil.copytree(_finished_once, tmp_path / "runs")
    return tmp_path / "runs"


# A mock of S3 in a process of its own. It honours conditional writes, which test_bucket.py
# verifies with concurrent writers, but not keys: it accepts any.
_S3_SERVER = """
import sys, urllib.request
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/lab", method="PUT")).read()
print(port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def _s3_address() -> Iterator[str]:
    """Address of the mock, which has the bucket ``lab``."""
    for package in ("moto", "obstore"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it is part of the extra dev")
    command = [sys.executable, "-W", "ignore", "-c", _S3_SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture
def s3_url(_s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty prefix of a bucket on the mock, which the environment names."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"s3cr3t-{uuid.uuid4().hex}")  # must stand nowhere
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    return f"s3://lab/{uuid.uuid4().hex}"


def unprivileged() -> list[str]:
    """Words before a command that must not run as root."""
    return [] if os.geteuid() else ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@pytest.fixture
def postgresql(_postgresql: str) -> str:
    """URI of a new database in PostgreSQL on loopback; skipped where PostgreSQL or its driver is absent."""
    import psycopg

    name = f"db{uuid.uuid4().hex}"
    with psycopg.connect(f"{_postgresql}/postgres", autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return f"{_postgresql}/{name}"


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[str]:
    pytest.importorskip("psycopg")
    if None in [shutil.which(name) for name in ("initdb", "postgres", "pg_ctl")]:
        pytest.skip("PostgreSQL is not installed (initdb, postgres and pg_ctl on the path)")
    if not os.geteuid() and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is absent")
    # Not below pytest's folder, which only this user may enter, and whose name is too long for a socket.
    with contextlib.ExitStack() as stack:
        words = [*unprivileged(), "mktemp", "-d", "/tmp/harness-postgresql-XXXXXX"]
        made = subprocess.run(words, capture_output=True, text=True, check=True)
        home = Path(made.stdout.strip())
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        _call("initdb", "-D", str(home / "db"), "-U", "harness", "--auth=trust", "--no-sync", "--encoding=UTF8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        _call("pg_ctl", "-D", str(home / "db"), "-l", str(home / "log"), "-w", "-o", options, "start")
        stack.callback(_call, "pg_ctl", "-D", str(home / "db"), "-m", "immediate", "-w", "stop")
        yield f"postgresql://harness:pa%25ss@127.0.0.1:{port}"


def _call(*words: str) -> None:
    done = subprocess.run([*unprivileged(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, cwd="/", timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, words
