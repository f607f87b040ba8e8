"""A study of pictures in memory: three targets of different kinds, a scalar input, two visits per subject."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.core.overrides import override
from harness.core.task import Configuration, Task, describe
from harness.core.types import Cohort, Folds, NetworkSpec, Sample
from harness.pipeline.cell import Job, ensembles, jobs, reads_of
from harness.pipeline.job import execute
from harness.storage.store import CellRecord, Store
from harness.sweep.plan import draw_folds

_STUDY = Path(__file__).parents[1] / "study" / "portraits.py"


@pytest.fixture(scope="session")
def portraits() -> ModuleType:
    """The module of the study, imported like a third-party package."""
    if "portraits" not in sys.modules:
        spec = importlib.util.spec_from_file_location("portraits", _STUDY)
        assert spec is not None and spec.loader is not None
        sys.modules["portraits"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["portraits"]


@pytest.fixture(scope="session")
def study(portraits: ModuleType) -> Task:
    """The task of the study with a network of a few hundred weights, trained for two epochs."""
    task: Task = portraits.TASK
    for key, value in {"recipe.epochs": 2, "model.width": 2}.items():
        task = override(task, key, value)
    return task


@pytest.fixture(scope="session")
def people(
    study: Task, in_memory: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Cohort]:
    """A function that makes a cohort with two pictures per subject and the targets of the study."""

    def cohort(subjects: int) -> Cohort:
        made = [picture for number in range(subjects) for picture in study.phantom(0, number)]
        samples = tuple(
            Sample(
                one.id,
                one.subject,
                {"rgb": in_memory(one.image)},
                {"target": in_memory(one.mask)},
                one.covariates,
            )
            for one in made
        )
        found = Cohort("people", samples)
        for component in study.targets.values():
            found = component(found, tmp_path_factory.getbasetemp())
        return found

    return cohort


@pytest.fixture(scope="session")
def crowd(people: Callable[[int], Cohort]) -> Cohort:
    """Twelve subjects with two pictures each."""
    return people(12)


@pytest.fixture(scope="session")
def crowd_spec(study: Task, crowd: Cohort) -> NetworkSpec:
    """A spec with a picture and a height as inputs, and age, smile and hair as targets."""
    spec: NetworkSpec = study.adapter().spec(crowd)
    return spec


@pytest.fixture(scope="session")
def crowd_folds(study: Task, crowd: Cohort) -> Folds:
    """Two folds and a fixed test set."""
    return draw_folds(study, crowd)


@pytest.fixture(scope="session")
def studied(crowd: Cohort) -> Callable[..., Configuration]:
    """A function that makes the configuration of a task on a cohort, by default ``crowd``."""

    def configure(task: Task, cohort: Cohort = crowd) -> Configuration:
        adapter = task.adapter()
        reads = reads_of(adapter, adapter.spec(cohort))["probe"]
        return Configuration(json.loads(json.dumps(describe(task))), {}, "quick", cohort.fingerprint(reads))

    return configure


@pytest.fixture(scope="session")
def study_run(
    study: Task,
    studied: Callable[..., Configuration],
    crowd: Cohort,
    crowd_folds: Folds,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Job], Store, dict[str, CellRecord]]:
    """Jobs of two folds and their ensemble, the store, which tests must not change, and records by identity."""
    store = Store(tmp_path_factory.mktemp("study") / "store")
    made = list(jobs(studied(study), crowd, crowd_folds, (0,)))
    made += ensembles(made, crowd, crowd_folds.test)
    records: list[CellRecord] = []
    for job in made:
        execute(job, crowd, store, lambda folder: records.append(store.commit(folder)))
    return made, store, {record.identity: record for record in records}
