"""A worker that dies without an error of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.pipeline.cell import Job
from harness.storage.store import CellRecord, Store
from harness.sweep.collect import collect
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.tuning.jobs import _record_death


@pytest.fixture
def planned(tiny_words: Callable[..., dict[str, Any]], finished: Path) -> Plan:
    """A finished run, one explanation and one value of whose first training are taken away."""
    plan = prepare(resolve(to_overrides(**tiny_words(finished))))
    assert plan.missing() == ()
    return plan


def lost(plan: Plan, *wanted: tuple[str, str]) -> Job:
    """The first job, after cells of it were removed from the store."""
    job = plan.jobs[0]
    for cell in job.cells:
        if (cell.stage, cell.label) in wanted:
            folder = plan.store.folder(cell.stage, cell.identity, group=cell.group)
            folder.rename(folder.with_name(f".gone-{folder.name}"))
    return job


def recorded(job: Job, store: Store) -> list[CellRecord]:
    """What is recorded of a death."""
    records: list[CellRecord] = []
    _record_death(job, store, records.append)
    return records


def test_first_cell_that_is_not_done_has_failed(planned: Plan) -> None:
    """Values that are done are passed over, though they lie below what they judge."""
    job = lost(planned, ("explain", "random"), ("score", "random"))
    (record,) = recorded(job, planned.store)
    assert (record.stage, record.label, record.state) == ("explain", "random", "failed")
    assert "its worker died three times without an exception" in record.error
    (row,) = collect(planned).explanation.to_pylist()
    assert row["status"].startswith("failed: 2 of") or row["status"].startswith("failed: 1 of")
    assert "its worker died" in row["status"]


def test_failed_values_name_their_group_and_metrics(planned: Plan) -> None:
    """So that the failure is told of what was to be measured."""
    job = lost(planned, ("score", ""))
    (record,) = recorded(job, planned.store)
    cell = next(one for one in job.cells if (one.stage, one.label) == ("score", ""))
    assert (record.identity, record.group, record.metrics) == (cell.identity, cell.group, dict(cell.metrics))
    kept = json.loads((planned.store.root / "failed" / f"{cell.identity}.json").read_text())
    assert kept["group"] == cell.group
    assert collect(planned).prediction.to_pylist()[0]["status"].startswith("failed: 1 of 9 cells, its worker died")


def test_job_that_was_done_before_its_worker_died_has_no_failure(planned: Plan) -> None:
    """Its cells are in the store."""
    assert recorded(planned.jobs[0], planned.store) == []
