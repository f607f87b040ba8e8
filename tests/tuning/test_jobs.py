"""Jobs on Ray workers: stopping, resources, and third-party components."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import harness
from harness.core.errors import RequestError
from harness.pipeline.cell import Job
from harness.pipeline.leaderboard import VOLATILE
from harness.storage.store import CellRecord
from harness.sweep.grammar import parse
from harness.sweep.plan import prepare
from harness.sweep.request import resolve
from harness.sweep.run import run
from harness.tuning.jobs import _job_config, keep_to_granted_gpus

pytestmark = pytest.mark.ray

Overrides = tuple[str, ...]


def command(*overrides: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the console command."""
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", *overrides],
        cwd=cwd,
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment(path: Path | None = None) -> dict[str, str]:
    """Environment of a child process, optionally with a folder of installed packages."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(path)} if path else {})}


def steady(path: Path) -> list[dict[str, str]]:
    """Rows of a leaderboard without columns that may differ between runs."""
    with path.open() as file:
        return [{key: value for key, value in row.items() if key not in VOLATILE} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def small(small_run: Overrides) -> Overrides:
    """Overrides of a small run."""
    return (*small_run, "attribution=random,saliency", "report=false")


@pytest.fixture(scope="session")
def sweep(small: Overrides) -> Overrides:
    """Overrides of a small sweep with six trainings and 42 cells."""
    return (*small, "sequences=T2w,T2w+FLAIR")


@pytest.mark.parametrize(
    ("sent", "code", "more"),
    [(signal.SIGTERM, 143, []), (signal.SIGINT, 130, ["ray=off"])],
    ids=["SIGTERM with Ray", "SIGINT without Ray"],
)
def test_interrupted_run_can_be_resumed(
    sweep: Overrides, tmp_path: Path, sent: signal.Signals, code: int, more: list[str]
) -> None:
    """Ctrl-C and SIGTERM exit with a message about resuming, keep finished cells and leave no incomplete ones."""
    out = tmp_path / "out"
    overrides = [*sweep, "mlflow=off", f"out={out}", *more]
    driver = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", *overrides],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background jobs of a shell ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 200
    while not list((out / "store" / "train").glob("[!.]*/record.json")):
        assert driver.poll() is None, "the driver ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(sent)
    shown, _ = driver.communicate(timeout=120)
    assert driver.returncode == code
    assert "resume with the same command" in shown
    assert all((folder / "record.json").is_file() for folder in (out / "store" / "train").glob("[!.]*"))


def test_missing_cluster_raises(tmp_path: Path) -> None:
    """If no Ray cluster answers at the address, an error is raised."""
    with pytest.raises(RequestError, match="a Ray cluster must be reachable"):
        harness.run(
            task="epvs", sequences="T2w", fold=0, phantom_subjects=3, phantom__shape="[24,24,8]", phantom__density=4000,
            mlflow="off", ray="127.0.0.1:1", out=str(tmp_path / "out"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def fake_resources() -> Iterator[None]:
    """A local Ray with four CPUs and one GPU, whatever the machine has."""
    import ray

    # The job configuration of the program, so that workers also start if the path of the environment has a space.
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        job_config=_job_config(here=True),
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cpus=4096", "resources of one job, cpus=4096 and gpus=0; its nodes have 4 CPUs, 1 GPUs"),
        ("gpus=2", "resources of one job, cpus=1 and gpus=2; its nodes have 4 CPUs, 1 GPUs"),
    ],
)
@pytest.mark.usefixtures("fake_resources")
def test_request_above_the_resources_is_refused(small: Overrides, tmp_path: Path, override: str, message: str) -> None:
    """A request for more resources than the cluster has is refused before any job starts."""
    begun: list[Job] = []
    request = resolve(parse([*small, "sequences=T2w", "fold=0", "mlflow=off", override, f"out={tmp_path}"]))
    with pytest.raises(RequestError, match=message):
        run(prepare(request), started=begun.append)
    assert begun == [] and not (tmp_path / "ray").exists()


@pytest.mark.usefixtures("fake_resources")
def test_two_jobs_share_a_gpu(small_run: Overrides, tmp_path: Path) -> None:
    """With half a GPU each, two jobs run at once, and without CUDA they use the CPU."""
    overrides = [*small_run, "attribution=none", "recipe.copies=40", "sequences=T2w", "seed=0,1", "mlflow=off"]
    plan = prepare(resolve(parse([*overrides, "gpus=0.5", "fold=0,1", f"out={tmp_path}"])))
    of_training = {cell.identity: job.train for job in plan.jobs for cell in job.cells}
    running: dict[str, int] = {}
    at_once: list[int] = []

    def started(job: Job) -> None:
        running[job.train] = len(job.cells)
        at_once.append(len(running))

    def committed(record: CellRecord) -> None:
        assert record.state == "done", record.error
        assert bool(record.hardware["gpu"]) == torch.cuda.is_available()
        train = of_training[record.identity]
        running[train] -= 1
        if not running[train]:
            del running[train]

    run(plan, started=started, committed=committed)
    assert len(at_once) == 4 and max(at_once) == 2


@pytest.mark.usefixtures("fake_resources")
@pytest.mark.parametrize(("gpus", "visible"), [(0, ""), (0.5, "0")])
def test_worker_sees_only_its_gpus(gpus: float, visible: str) -> None:
    """A worker sees only the GPUs that Ray assigned to it."""
    import ray

    def seen() -> str:
        keep_to_granted_gpus()
        return os.environ["CUDA_VISIBLE_DEVICES"]

    runtime_env = {"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}}
    assert ray.get(ray.remote(num_gpus=gpus, runtime_env=runtime_env)(seen).remote()) == visible


PLUGIN = '''
"""A third-party task, model, attribution and metric."""

from dataclasses import replace
from functools import partial

import os
import threading
from pathlib import Path

import torch

from harness.metrics.register import metric
from harness.core.registry import ATTRIBUTIONS, MODELS
from harness.tasks.epvs import TASK as EPVS


@MODELS.register("one_convolution", source="ours")
def one_convolution(in_channels: int, outputs: int = 2, *, size: int = 3) -> torch.nn.Module:
    """One convolution."""
    return torch.nn.Conv2d(in_channels, outputs, size, padding=size // 2)


@MODELS.register("broken", source="ours")
def broken(in_channels: int, outputs: int = 2) -> torch.nn.Module:
    """A model that cannot be built."""
    raise ValueError("this network is broken")


@MODELS.register("dying", source="ours")
def dying(in_channels: int, outputs: int = 2) -> torch.nn.Module:
    """A model that takes its process with it, as the system does when memory runs out."""
    if threading.current_thread() is not threading.main_thread():  # the driver's probe lives
        os._exit(1)
    raise MemoryError("the probe ran out of memory")


@ATTRIBUTIONS.register("squared_input", source="ours")
def squared_input(model, inputs, targets):
    """The square of the input."""
    return [tuple(one**2 for one in inputs) for _ in targets]


@ATTRIBUTIONS.register("stumbling", source="ours")
def stumbling(model, inputs, targets):
    """Takes its process with it the first time, as a node that goes away does."""
    before = Path(os.environ["STUMBLED"])
    if not before.exists():
        before.touch()
        os._exit(1)
    handed = list(before.parent.glob("out/ray/tune-*/**/checkpoint_*"))
    before.write_text(f"{len(handed)} handed back, {sum(any(one.iterdir()) for one in handed)} still full")
    return squared_input(model, inputs, targets)


@metric("voxels_wrong", source="ours", direction="lower", range=(0, 1), empty="0")
def voxels_wrong(prediction, target) -> float:
    """Share of voxels that differ."""
    return float((prediction != target).mean())


TASK = replace(
    EPVS,
    name="mine",
    model=partial(one_convolution),
    explanations={"squared_input": partial(squared_input)},
    metrics={**EPVS.metrics, "voxels_wrong": partial(voxels_wrong)},
    objective="voxels_wrong",
    profiles={"quick": {"recipe.epochs": 1, "recipe.copies": 1, "recipe.augmentation": "none"}},
)
'''

PACKAGE = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "harness-third-party"
version = "1.0"

[project.entry-points."harness.plugins"]
third_party = "harness_third_party"

[project.entry-points."harness.tasks"]
mine = "harness_third_party:TASK"

[tool.setuptools]
py-modules = ["harness_third_party"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed third-party package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "harness_third_party.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(PACKAGE)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=120, capture_output=True)
    return site


@pytest.mark.slow
def test_third_party_components_run_on_workers(installed: Path, board_of: Callable[..., Path], tmp_path: Path) -> None:
    """Third-party tasks, models, attributions and metrics are found by entry point, also on workers."""
    small = ("phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000", "report=false", "mlflow=off")
    done = command(
        "task=mine",
        *small,
        "sequences=T2w",
        "model=one_convolution,broken,dying",
        "out=out",
        cwd=tmp_path,
        path=installed,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ValueError: this network is broken" in done.stdout
    board = board_of(tmp_path / "out", "mine")
    rows = {row["model"]: row for row in steady(board)}
    assert rows["one_convolution"]["status"].startswith("undecided: 3 subjects")
    assert rows["dying"]["rank"] == ""
    assert "its worker died" in rows["dying"]["status"]
    assert rows["broken"]["rank"] == ""
    assert rows["broken"]["status"].startswith("failed")
    explained = steady(board.with_name(f"{board.stem}-explanations.csv"))
    assert {row["attribution"] for row in explained} == {"squared_input"}


def test_a_worker_that_dies_after_its_training_is_replaced(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a worker dies in the job of an explanation, another one continues from the stored training."""
    monkeypatch.setenv("STUMBLED", str(tmp_path / "stumbled"))
    small = ("phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000", "report=false", "mlflow=off")
    overrides = ("task=mine", *small, "sequences=T2w", "fold=0", "attribution=stumbling", "out=out")
    done = command(*overrides, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 cells done, 0 failed" in done.stdout
    assert (tmp_path / "stumbled").read_text() == "0 handed back, 0 still full"


@pytest.mark.ray
def test_path_of_python_may_contain_a_space(small_run: tuple[str, ...], tmp_path: Path) -> None:
    """Ray workers start if the path of Python contains a space."""
    (tmp_path / "an environment").symlink_to(Path(sys.executable).parents[1], target_is_directory=True)
    python = tmp_path / "an environment" / "bin" / "python"
    overrides = [*small_run, "sequences=T2w", "fold=0", "attribution=none", "report=false", "mlflow=off", "out=out"]
    done = subprocess.run(
        [str(python), "-c", "from harness.cli.main import main; main()", "run", *overrides],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells done, 0 failed" in done.stdout
