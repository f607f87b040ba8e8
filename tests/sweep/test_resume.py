"""Results of older code are adopted together with the results from which they were computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.pipeline import cell as cell_module
from harness.storage.store import write_record
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.sweep.resume import adopt_older

ADOPTED = {"train", "predict", "explain"}


@pytest.fixture
def edited(
    finished: Path, tiny_overrides: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Plan]:
    """A function that prepares a finished run after a change of code, so that all cells are missing."""
    monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
    return lambda: prepare(resolve(to_overrides(**tiny_overrides(finished))))


def held(plan: Plan) -> dict[int, set[str]]:
    """Stages of the stored cells of each fold."""
    return {
        job.fold: {cell.stage for cell in job.cells if plan.store.get(cell.stage, cell.identity, group=cell.group)}
        for job in plan.jobs
    }


def test_results_of_older_code_are_adopted(edited: Callable[[], Plan]) -> None:
    """Trainings, predictions and explanations of older code are adopted, and values are not."""
    plan = edited()
    assert held(plan) == {0: set(), 1: set(), 2: set()}
    adopt_older(plan)
    assert held(plan) == {0: ADOPTED, 1: ADOPTED, 2: ADOPTED}
    cell = plan.cells[1]
    record = plan.store.get(cell.stage, cell.identity)
    assert record is not None and record.reused_code
    assert (record.code, record.parents) == (cell.code, cell.parents)


def test_results_of_another_network_are_not_adopted(edited: Callable[[], Plan], tmp_path: Path) -> None:
    """Explanations and predictions of a network that was trained again are not adopted."""
    plan = edited()
    trained = plan.cells[0]
    older = next(one for one in plan.store.records("train") if one.body == trained.body)
    folder = tmp_path / "made"
    folder.mkdir()
    for name in older.artifacts:
        (folder / name).write_text("another network")
    write_record(folder, dataclasses.replace(older, identity=trained.identity, code=trained.code))
    plan.store.commit(folder)
    adopt_older(plan)
    assert held(plan) == {0: {"train"}, 1: ADOPTED, 2: ADOPTED}


def test_one_of_several_older_results_is_adopted(edited: Callable[[], Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several results of older code for a training, one is adopted."""
    adopt_older(edited())
    monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited again {stage}")
    plan = edited()
    adopt_older(plan)
    assert held(plan) == {0: ADOPTED, 1: ADOPTED, 2: ADOPTED}
    assert len(list(plan.store.records("train"))) == 9
