"""A new kind of target needs its two classes and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.targets import KINDS, Kept, Target, TargetKind
from harness.core.task import Configuration, Task
from harness.core.types import Array, Cohort, Folds, Sample
from harness.models.heads import HEADS, Head
from harness.pipeline.artifacts import read_predictions, read_values
from harness.pipeline.cell import ensembles, jobs
from harness.pipeline.job import execute, load_member
from harness.pipeline.predict import outputs_of
from harness.storage.store import CellRecord, Store


class Count(TargetKind):
    """A count with the logarithm of its rate as output."""

    truth_inputs = frozenset({"target_score"})
    prediction_inputs = frozenset({"predicted_score"})

    def kept(self, output: Array) -> dict[str, Array]:
        return {"rate": np.exp(output[0])}

    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        return {"rate": np.asarray(np.mean([one["rate"] for one in predictions]))}

    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        return {"target_score": sample.targets[target.name]}

    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        return {"predicted_score": float(prediction["rate"])}

    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        return len({float(one["rate"]) for one in predictions}) == 1

    def columns(self, target: Target, prediction: Kept) -> dict[str, float]:
        return {f"{target.name}_rate": float(prediction["rate"])}


class CountHead(Head):
    """Poisson loss."""

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.poisson_nll_loss(output[:, 0], target, reduction="none")


def test_a_new_kind_runs_from_training_to_values(
    study: Task,
    crowd: Cohort,
    crowd_folds: Folds,
    studied: Callable[..., Configuration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Networks with a target of a new kind are trained, averaged, explained and evaluated."""
    monkeypatch.setitem(KINDS, "count", Count())  # type: ignore[arg-type]
    monkeypatch.setitem(HEADS, "count", CountHead())  # type: ignore[arg-type]
    age, smile, hair = crowd.targets
    cohort = dataclasses.replace(crowd, targets=(dataclasses.replace(age, kind="count"), smile, hair))  # type: ignore[arg-type]
    store, records = Store(tmp_path / "store"), list[CellRecord]()
    made = list(jobs(studied(study, cohort), cohort, crowd_folds, (0,)))
    made += ensembles(made, cohort, crowd_folds.test)
    for job in made:
        execute(job, cohort, store, lambda folder: records.append(store.commit(folder)))
    assert {record.state for record in records} == {"done"}

    known = {record.identity: record for record in records}
    sample = next(one for one in cohort.samples if one.id == crowd_folds.test[0])
    cells = {cell.stage: cell for cell in made[-1].cells if not cell.label}
    found = read_predictions(store, known[cells["predict"].identity])[sample.id]["age"]
    loaded = [load_member(study, store, known[name]) for name in made[-1].trainings]
    logs = [float(outputs_of(one, spec, sample, batch_size=8)["age"][0, 0]) for one, spec in loaded]
    assert set(found) == {"rate"} and len(set(logs)) == 2
    assert float(found["rate"]) == pytest.approx(np.mean(np.exp(logs)), rel=1e-6)

    values = {one["label"]: one["values"] for one in read_values(store, known[cells["score"].identity]).values()}
    assert values["predicted_score"][sample.id]["targets"] == {"age": pytest.approx(float(found["rate"]))}
    assert values["target_score"][sample.id]["targets"] == {"age": sample.targets["age"]}
    assert any("age" in record.facts["outputs"] for record in records if record.stage == "explain")
