"""Overhead of running cells as Ray jobs, compared with a loop and with plain Ray Tune.

Prints the seconds of N trainings that are so small that only the overhead counts,
including all writes to the store, and the cost of each further job. Every run of Ray
Tune starts new workers, and the time includes their imports of Ray Tune, torch and
this project. In the first run of a session, this process also imports Ray Tune.

The rows of plain Ray Tune show a script without this project: one trial per training,
without store or checkpoints, and with default settings except for log output. If each
trial starts a process, only a few are run, as noted in the row. The last row is the
time of the same number of trials that only import torch.

    python benchmarks/jobs.py [jobs]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ray import tune

from harness.core.settings import RunSettings
from harness.data.table import open_cohort
from harness.pipeline.cell import Job
from harness.pipeline.job import execute
from harness.storage.patience import Patience
from harness.storage.store import Store
from harness.sweep.grammar import parse
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.tuning.jobs import run_here, run_on_ray, session

SMALL = "task=epvs phantom_subjects=4 phantom.shape=[16,16,8] phantom.density=8000 model.width=2 model.depth=1"
SMALL += " recipe.epochs=1 sequences=T2w attribution=none mlflow=off"
FEW = 4  # trials of plain Ray Tune if each starts a process


def plan_of(count: int, out: Path) -> Plan:
    """A plan with a number of trainings: four folds, and the required number of seeds."""
    seeds = ",".join(str(seed) for seed in range((count + 3) // 4))
    return prepare(resolve(parse([*SMALL.split(), f"seed={seeds}" if "," in seeds else "seed=0", f"out={out}"])))


def timed(plan: Plan, store: Store, *, on_ray: bool) -> float:
    """Seconds to run all jobs of a plan with an empty store."""
    paths = {key: group.path for key, group in plan.groups.items()}
    settings, todo = plan.request.settings, plan.jobs
    committed: list[str] = []
    began = time.perf_counter()
    if on_ray:
        run_on_ray(
            "bench",
            todo,
            paths,
            store,
            settings,
            committed=lambda record: committed.append(record.identity),
            started=lambda job: None,
            patience=Patience(store.root, print),
        )
    else:
        run_here(
            todo,
            paths,
            store,
            committed=lambda record: committed.append(record.identity),
            started=lambda job: None,
            patience=Patience(store.root, print),
        )
    took = time.perf_counter() - began
    assert len(committed) == sum(len(job.cells) for job in todo)
    return took


def plain_tune(plan: Plan, jobs: tuple[Job, ...], *, reuse_actors: bool) -> float:
    """Seconds of the same work as trials of plain Ray Tune, without storing results."""
    path = next(iter(plan.groups.values())).path

    def trial(config: dict[str, int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            execute(jobs[config["job"]], open_cohort(path), Store(Path(folder)), lambda done: None)
        tune.report({"done": 1})

    began = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"job": tune.grid_search(list(range(len(jobs))))},
        tune_config=tune.TuneConfig(reuse_actors=reuse_actors),
        run_config=tune.RunConfig(verbose=0),
    ).fit()
    assert results.num_terminated == len(jobs)
    return time.perf_counter() - began


def idle_tune(count: int) -> float:
    """Seconds of a number of Ray Tune trials that only import torch."""

    def trial(config: dict[str, int]) -> None:
        import torch

        tune.report({"done": float(torch.ones(1))})

    began = time.perf_counter()
    tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(verbose=0),
    ).fit()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        few, many = plan_of(FEW, out / "few"), plan_of(count, out / "many")
        loop = timed(many, Store(out / "loop"), on_ray=False)
        with session(RunSettings(out=str(out))):
            first = timed(few, Store(out / "first"), on_ray=True)
            small = timed(few, Store(out / "small"), on_ray=True)
            large = timed(many, Store(out / "large"), on_ray=True)
            each = (large - small) / (len(many.jobs) - len(few.jobs))

            def line(what: str, seconds: float, digits: int = 2) -> None:
                ratio = "" if digits > 2 else f"{seconds / large:>8.2f}"
                print(f"{what:<66}{seconds:>9.{digits}f}{ratio}", flush=True)

            print(f"{'what':<66}{'seconds':>9}{'ratio':>8}")
            line(f"{count} jobs, Ray already started", large)
            line(f"{FEW} jobs, mostly imports of the workers", small)
            line(f"{FEW} jobs, the first run of a session", first)
            line("each further job", each, 3)
            line("the same in a loop in one process", loop)
            reused = plain_tune(many, many.jobs, reuse_actors=True)
            line("plain Ray Tune with reuse_actors=True, nothing stored", reused)
            plain = plain_tune(many, many.jobs[:FEW], reuse_actors=False) * count / FEW
            line(f"plain Ray Tune with reuse_actors=False, from {FEW} trials, × {count / FEW:g}", plain)
            line(f"{count} trials that only import torch, reuse_actors=True", idle_tune(count))


if __name__ == "__main__":
    main()
