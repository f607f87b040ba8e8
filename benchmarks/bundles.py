"""What running cells as Ray bundles costs, beside a loop and beside plain Ray Tune.

Prints the seconds of N trainings so small that only the machinery counts, with
every store write included, and what each further bundle costs. The plain Ray
Tune line is what a user would write without this project: one trial per
training, no store, no checkpoint, default settings but quiet.

    python benchmarks/bundles.py [bundles]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from harness.data.cohort import open_cohort
from harness.door.request import resolve
from harness.door.words import parse
from harness.settings import RunSettings
from harness.stages import execute
from harness.store import Store
from harness.sweep import Plan, prepare
from harness.tuning.bundles import run_here, run_on_ray, session

SMALL = "task=epvs phantom_subjects=4 phantom.shape=[16,16,8] phantom.density=8000 model.width=2 model.depth=1"
SMALL += " recipe.epochs=1 sequences=T2w attribution=none mlflow=off"


def plan_of(count: int, out: Path) -> Plan:
    """A plan of so many trainings: four folds, and as many seeds as that takes."""
    seeds = ",".join(str(seed) for seed in range((count + 3) // 4))
    return prepare(resolve(parse([*SMALL.split(), f"seed={seeds}" if "," in seeds else "seed=0", f"out={out}"])))


def timed(plan: Plan, store: Store, *, ray: bool) -> float:
    """Seconds of all bundles of a plan into an empty store."""
    paths = {key: group.path for key, group in plan.groups.items()}
    settings = plan.request.settings
    committed: list[str] = []
    started = time.perf_counter()
    todo = plan.bundles
    if ray:
        run_on_ray(
            "bench",
            todo,
            paths,
            store,
            settings,
            committed=lambda r: committed.append(r.identity),
            started=lambda b: None,
        )
    else:
        run_here(todo, paths, store, committed=lambda r: committed.append(r.identity), started=lambda b: None)
    took = time.perf_counter() - started
    assert len(committed) == sum(len(bundle.cells) for bundle in todo)
    return took


def plain_tune(plan: Plan) -> float:
    """Seconds of the same work as trials of Ray Tune, nothing kept."""
    from ray import tune

    path = next(iter(plan.groups.values())).path

    def trial(config: dict[str, int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            execute(plan.bundles[config["bundle"]], open_cohort(path), Store(Path(folder)), lambda done: None)
        tune.report({"done": 1})

    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"bundle": tune.grid_search(list(range(len(plan.bundles))))},
        run_config=tune.RunConfig(verbose=0),
    ).fit()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        few, many = plan_of(4, out / "few"), plan_of(count, out / "many")
        loop = timed(many, Store(out / "loop"), ray=False)
        with session(RunSettings(out=str(out))):
            timed(few, Store(out / "warm"), ray=True)
            small = timed(few, Store(out / "small"), ray=True)
            large = timed(many, Store(out / "large"), ray=True)
            each = (large - small) / (len(many.bundles) - len(few.bundles))
            print(f"{'what':<44}{'seconds':>9}{'ratio':>8}")
            print(f"{f'{count} bundles, Ray already started':<44}{large:>9.2f}{1:>8.2f}")
            print(f"{'each further bundle':<44}{each:>9.3f}")
            print(f"{'the same in a loop in one process':<44}{loop:>9.2f}{loop / large:>8.2f}", flush=True)
            # Last, because every trial starts a process that imports torch: minutes.
            plain = plain_tune(many)
    print(f"{'the same with plain Ray Tune, nothing kept':<44}{plain:>9.2f}{plain / large:>8.2f}")


if __name__ == "__main__":
    main()
