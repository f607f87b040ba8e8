"""Jobs whose worker process died without an error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import StoreError
from harness.pipeline.cell import Job
from harness.storage.patience import Patience
from harness.storage.store import CellRecord, Store
from harness.sweep.collect import collect
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.tuning.jobs import _driver, _record_death, fit
from harness.tuning.watch import TimeLimit


@pytest.fixture
def planned(tiny_overrides: Callable[..., dict[str, Any]], finished: Path) -> Plan:
    """The plan of a finished run."""
    plan = prepare(resolve(to_overrides(**tiny_overrides(finished))))
    assert plan.missing() == ()
    return plan


def job_without(plan: Plan, *wanted: tuple[str, str]) -> Job:
    """The first job, after removing some of its cells from the store."""
    job = plan.jobs[0]
    for cell in job.cells:
        if (cell.stage, cell.label) in wanted:
            folder = plan.store.folder(cell.stage, cell.identity, group=cell.group)
            folder.rename(folder.with_name(f".gone-{folder.name}"))
    return job


def recorded(job: Job, store: Store) -> list[CellRecord]:
    """Records of a died worker."""
    records: list[CellRecord] = []
    _record_death(job, store, records.append, Patience(store.root, print))
    return records


def test_failure_is_recorded_for_the_first_missing_cell(planned: Plan) -> None:
    """The failure is recorded for the first cell in order that is not done."""
    job = job_without(planned, ("explain", "random"), ("score", "random"))
    (record,) = recorded(job, planned.store)
    assert (record.stage, record.label, record.state) == ("explain", "random", "failed")
    assert "its worker died three times without an exception" in record.error
    (row,) = collect(planned).explanation.to_pylist()
    assert row["status"].startswith("failed: 2 of") or row["status"].startswith("failed: 1 of")
    assert "its worker died" in row["status"]


def test_exception_outside_of_a_cell_is_recorded(planned: Plan) -> None:
    """Where the worker raised, for example because its disk is full, the record has the first line of that error."""
    job = job_without(planned, ("explain", "random"))
    records: list[CellRecord] = []
    _record_death(
        job,
        planned.store,
        records.append,
        Patience(planned.store.root, print),
        cause=OSError(28, "No space left on device"),
    )
    assert [one.error for one in records] == [
        "its worker failed three times outside of the cell: OSError: [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize("error", [EOFError(), pickle.UnpicklingError("pickle data was truncated")])
def test_incomplete_files_of_tune_are_one_message(error: Exception, tmp_path: Path) -> None:
    """Tune cannot read its own files if the disk was full when it wrote them."""

    class Tuner:
        """A tuner whose files are incomplete."""

        def fit(self) -> None:
            """Raise what unpickling raises."""
            raise error

    with pytest.raises(
        StoreError, match=rf"files written to {tmp_path} are incomplete, with \d+ MB free there; finish"
    ):
        fit(Tuner(), tmp_path)


def test_failed_values_name_their_group_and_metrics(planned: Plan) -> None:
    """A failure of values is recorded with their group and metrics."""
    job = job_without(planned, ("score", ""))
    (record,) = recorded(job, planned.store)
    cell = next(one for one in job.cells if (one.stage, one.label) == ("score", ""))
    assert (record.identity, record.group, record.metrics) == (cell.identity, cell.group, dict(cell.metrics))
    kept = json.loads((planned.store.root / "failed" / f"{cell.identity}.json").read_text())
    assert kept["group"] == cell.group
    assert collect(planned).prediction.to_pylist()[0]["status"].startswith("failed: 1 of 9 cells, its worker died")


def test_finished_job_has_no_failure(planned: Plan) -> None:
    """If all cells of the job are done, no failure is recorded."""
    assert recorded(planned.jobs[0], planned.store) == []


def test_each_attempt_is_named_with_its_reason(planned: Plan, tmp_path: Path) -> None:
    """An attempt whose worker died is told, although the job goes on: which cell, and the limit if it was ended."""
    job = job_without(planned, ("explain", "random"), ("score", "random"))
    cell = next(one for one in job.cells if (one.stage, one.label) == ("explain", "random"))
    said: list[str] = []
    limit = TimeLimit(60, tmp_path / "ended")
    driver = _driver([job], planned.store, print, print, Patience(tmp_path, print), said.append, limit)
    trial = SimpleNamespace(config={"job": 0}, run_metadata=SimpleNamespace(num_failures=1))
    driver.on_trial_recover(0, [], trial)
    limit.notes.mkdir()
    (limit.notes / cell.identity).touch()
    driver.on_trial_recover(0, [], trial)
    start, end = f"attempt 1 failed: explain random fold {cell.fold} seed 0: ", "; the job goes on with another worker"
    assert said == [
        f"{start}its worker or node died (killed, out of memory, or crashed){end}",
        f"{start}{limit.failure_of(cell)}{end}",
    ]
