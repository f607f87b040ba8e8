"""A whole job in this process, without Ray: cells done, failed, and not tried."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.registry import ATTRIBUTIONS, MODELS
from harness.core.task import Configuration, Task, override
from harness.core.types import Cohort, Split
from harness.data.maps import read_maps
from harness.pipeline.cell import Job, jobs, missing
from harness.pipeline.job import execute, load_trained
from harness.pipeline.train import Epoch
from harness.storage.store import CellRecord, Store

SPLIT = Split(("sub-01", "sub-02"), ("sub-03",), ("sub-04",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def run(toy_cohort: Cohort, store: Store) -> Callable[..., list[CellRecord]]:
    """Execute what is missing of a job and commit it; the records, in order."""

    def execute_missing(job: Job, *, cohort: Cohort = toy_cohort, progress: Any = None) -> list[CellRecord]:
        records: list[CellRecord] = []
        rest = missing(job, store)
        if rest is not None:
            execute(rest, cohort, store, lambda folder: records.append(store.commit(folder)), progress=progress)
        return records

    return execute_missing


@pytest.fixture
def job(toy_task: Task, configured: Callable[[Task], Configuration]) -> Job:
    """The toy task's job."""
    return next(jobs(configured(toy_task), (SPLIT,), (0,)))


@pytest.fixture
def broken_parts() -> Iterator[dict[str, Any]]:
    """A model and an attribution that raise when they are used."""

    def broken_model(in_channels: int, outputs: int) -> torch.nn.Module:
        """A model that cannot be built."""
        raise ValueError("no such width\nsecond line")

    def broken_map(model: Any, inputs: Any, targets: Any) -> Any:
        """An attribution that cannot be computed."""
        raise RuntimeError("no gradient")

    MODELS.register("broken_model")(broken_model)
    ATTRIBUTIONS.register("broken_map")(broken_map)
    yield {"model": partial(broken_model), "attribution": partial(broken_map)}
    del MODELS._entries["broken_model"], ATTRIBUTIONS._entries["broken_map"]


def told(records: list[CellRecord]) -> list[tuple[str, str, str]]:
    """Stage, label and state of each record."""
    return [(record.stage, record.label, record.state) for record in records]


def test_whole_job(run: Callable, job: Job, store: Store) -> None:
    """Training, scores and explanations are done in order, each with its files and facts."""
    records = run(job)
    assert told(records) == [
        ("train", "", "done"),
        ("score", "", "done"),
        ("explain", "random", "done"),
        ("score", "random", "done"),
        ("explain", "gradients", "done"),
        ("score", "gradients", "done"),
    ]
    assert [sorted(record.artifacts) for record in records] == [
        ["history.json", "predictions.npz", "split.json", "weights.safetensors"],
        ["values.json"],
        ["map_sub-04.nii.gz"],
        ["values.json"],
        ["map_sub-04.nii.gz"],
        ["values.json"],
    ]
    assert records[0].facts["epochs"] == 2 and records[0].facts["parameters"] > 100
    assert all(record.seconds > 0 and record.hardware["torch"] == torch.__version__ for record in records)
    assert [record.identity for record in records] == [cell.identity for cell in job.cells]


def test_artifacts_hold_what_they_should(run: Callable, job: Job, store: Store, toy_cohort: Cohort) -> None:
    """Probabilities and maps of the test subject, in its own space; the history; the split."""
    train, score, explain = run(job)[:3]
    shape = toy_cohort.samples[3].masks["target"].shape
    with np.load(store.artifact(train, "predictions.npz")) as file:
        assert file.files == ["sub-04"]
        assert file["sub-04"].shape == shape and file["sub-04"].dtype == np.float16
    maps = read_maps(store, explain)
    assert maps["sub-04"].shape == (1, *shape) and maps["sub-04"].dtype == np.float32
    history = json.loads(store.artifact(train, "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert (
        Split(**{k: tuple(v) for k, v in json.loads(store.artifact(train, "split.json").read_text()).items()}) == SPLIT
    )
    values = json.loads(store.artifact(score, "values.json").read_text())["sub-04"]
    assert values["subject"] == "sub-04"
    assert values["values"]["true_count"] > 0 and set(values["regions"]) == {"left", "right"}


def test_stored_weights_give_the_stored_prediction(
    run: Callable, job: Job, store: Store, toy_task: Task, toy_cohort: Cohort
) -> None:
    """Predictions can be made again from the weights alone."""
    train = run(job)[0]
    network, view = load_trained(toy_task, toy_task.view(), store, train)
    inputs = torch.from_numpy(toy_task.view().items(toy_cohort.samples[3]).inputs)
    with torch.inference_mode():
        again = view.prediction(network(inputs).numpy(), toy_cohort.samples[3])["probability"]
    with np.load(store.artifact(train, "predictions.npz")) as file:
        np.testing.assert_allclose(again, file["sub-04"], atol=1e-3)


def test_same_job_gives_the_same_bytes(toy_cohort: Cohort, job: Job, tmp_path: Path) -> None:
    """Two executions of one job agree in every artifact."""
    made = []
    for name in ("one", "two"):
        store, records = Store(tmp_path / name), []
        execute(job, toy_cohort, store, lambda folder, s=store, r=records: r.append(s.commit(folder)))
        made.append([dict(record.artifacts) for record in records])
    assert made[0] == made[1]


def test_finished_job_runs_nothing(run: Callable, job: Job) -> None:
    """The same command again has nothing to do."""
    run(job)
    assert run(job) == []


def test_missing_explanation_is_made_without_training(
    run: Callable, job: Job, toy_task: Task, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further attribution uses the weights in the store, and the other cells stay."""
    run(job)
    monkeypatch.setattr("harness.pipeline.job.train", _never)
    more = next(jobs(configured(override(toy_task, "attributions.saliency", "saliency")), (SPLIT,), (0,)))
    assert told(run(more)) == [("explain", "saliency", "done"), ("score", "saliency", "done")]


def test_explanation_from_the_store_is_that_of_one_go(
    run: Callable, job: Job, toy_task: Task, configured: Any, tmp_path: Path, toy_cohort: Cohort
) -> None:
    """Maps do not depend on whether the network was trained a moment ago or loaded."""
    whole = {record.identity: record.artifacts for record in run(job)}
    apart = Store(tmp_path / "apart")
    kept: list[CellRecord] = []
    for cells in (job.cells[:1], job.cells[4:], job.cells[1:2]):
        execute(job.only(cells), toy_cohort, apart, lambda folder: kept.append(apart.commit(folder)))
    assert {record.state for record in kept} == {"done"} and len(kept) == 4
    assert all(whole[record.identity] == record.artifacts for record in kept)


def test_scores_come_from_files_alone(
    run: Callable, job: Job, toy_task: Task, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another metric option rescores without building a network."""
    run(job)
    for name in ("train", "build_network", "load_trained", "explain"):
        monkeypatch.setattr(f"harness.pipeline.job.{name}", _never)
    other = next(jobs(configured(override(toy_task, "metrics.sensitivity.tolerance_mm", 1.0)), (SPLIT,), (0,)))
    assert told(run(other)) == [("score", label, "done") for label in ("", "random", "gradients")]


def test_model_that_raises(
    run: Callable, store: Store, toy_task: Task, configured: Any, broken_parts: dict[str, Any]
) -> None:
    """The training fails with its first error line and place; nothing below it is tried."""
    task = dataclasses.replace(toy_task, model=broken_parts["model"])
    job = next(jobs(configured(task), (SPLIT,), (0,)))
    records = run(job)
    assert told(records) == [("train", "", "failed")]
    assert records[0].error.startswith("ValueError: no such width (test_job.py:")
    assert "second line" not in records[0].error
    failure = store.failure(job.train)
    assert failure is not None and failure.error == records[0].error
    assert "second line" in (store.root / "failed" / f"{job.train}.txt").read_text()
    assert store.get("train", job.train) is None


def test_attribution_that_raises_spoils_no_other(
    run: Callable, toy_task: Task, configured: Any, broken_parts: dict[str, Any]
) -> None:
    """Its explanation fails, its score is not tried, and the others are done."""
    task = dataclasses.replace(
        toy_task,
        attributions={"broken": broken_parts["attribution"], "random": toy_task.attributions["random"]},
    )
    assert told(run(next(jobs(configured(task), (SPLIT,), (0,))))) == [
        ("train", "", "done"),
        ("score", "", "done"),
        ("explain", "broken", "failed"),
        ("explain", "random", "done"),
        ("score", "random", "done"),
    ]


def test_failed_cell_is_tried_again(
    run: Callable, toy_task: Task, configured: Any, job: Job, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command runs what failed, and success removes the failure."""
    with monkeypatch.context() as patch:
        patch.setattr("harness.pipeline.job.train", _never)
        assert told(run(job)) == [("train", "", "failed")]
    assert len(run(job)) == 6
    assert store.failure(job.train) is None


def test_map_that_is_not_finite_fails(
    run: Callable, toy_task: Task, configured: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map with a NaN is no map."""
    monkeypatch.setattr("harness.pipeline.job.explain", lambda *given, **named: np.full((1, 1, 2, 2, 2), np.nan))
    failed = [record for record in run(job) if record.state == "failed"]
    assert [record.label for record in failed] == ["random", "gradients"]
    assert "CellError: the random map of sub-04 holds values that are not finite" in failed[0].error


def test_damaged_weights_fail_the_explanation(
    run: Callable, job: Job, store: Store, toy_task: Task, configured: Any
) -> None:
    """Weights that changed since they were written are not used."""
    run(job)
    path = store.folder("train", job.train) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    more = next(jobs(configured(override(toy_task, "attributions.saliency", "saliency")), (SPLIT,), (0,)))
    records = run(more)
    assert told(records) == [("explain", "saliency", "failed")]
    assert "StoreError: " in records[0].error and "has changed since it was written" in records[0].error


def test_cell_of_other_code_is_refused(run: Callable, job: Job) -> None:
    """A worker with another version of the code says so instead of computing something else."""
    cell = dataclasses.replace(job.cells[0], identity="0" * 20)
    records = run(dataclasses.replace(job, cells=(cell,)))
    assert records[0].state == "failed"
    assert "this worker runs another version of the code than the driver; install the same" in records[0].error


def test_leaking_split_is_refused(run: Callable, toy_task: Task, configured: Any) -> None:
    """A subject on two sides of a fold fails the training, whoever made the split."""
    leak = Split(("sub-01", "sub-04"), ("sub-03",), ("sub-04",))
    records = run(next(jobs(configured(toy_task), (leak,), (0,))))
    assert told(records) == [("train", "", "failed")]


def test_progress_is_told(run: Callable, job: Job) -> None:
    """Every epoch comes with its cell."""
    seen: list[tuple[str, int]] = []

    def progress(cell: Any, epoch: Epoch) -> None:
        seen.append((cell.stage, epoch.epoch))

    run(job.only(job.cells[:1]), progress=progress)
    assert seen == [("train", 1), ("train", 2)]


def test_cell_collapses_only_with_all_its_subjects(
    run: Callable, toy_task: Task, configured: Any, store: Store, toy_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two test subjects without a prediction is no collapse; both are."""
    split = Split(("sub-01",), ("sub-02",), ("sub-03", "sub-04"))

    def flags(empty: set[str], seed: int) -> Any:
        def infer(network: Any, view: Any, sample: Any, *, batch_size: int) -> dict[str, Any]:
            probability = np.zeros(sample.masks["target"].shape, np.float32)
            if sample.id not in empty:
                probability[0, 0, 0] = 1
            return {"probability": probability}

        monkeypatch.setattr("harness.pipeline.job.infer", infer)
        job = next(jobs(configured(toy_task), (split,), (seed,)))
        return run(job.only(job.cells[:2]))[1].facts["flags"]

    assert flags({"sub-03"}, 0) == []
    assert flags({"sub-03", "sub-04"}, 1) == ["collapsed"]


def test_threads_and_random_numbers_are_put_back(run: Callable, toy_task: Task, configured: Any) -> None:
    """An actor that is used again starts every cell alike."""
    torch.manual_seed(4)
    before = torch.get_num_threads(), torch.get_rng_state()
    task = override(override(toy_task, "recipe.threads", 2), "recipe.epochs", 1)
    job = next(jobs(configured(task), (SPLIT,), (0,)))
    run(job.only(job.cells[:1]))
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_same_method_under_another_label_gives_the_same_map(
    run: Callable, toy_task: Task, configured: Any, store: Store, tmp_path: Path, toy_cohort: Cohort
) -> None:
    """An identity knows no labels, so a random method must not draw by one."""
    maps = []
    for label in ("random", "chance"):
        task = dataclasses.replace(toy_task, attributions={label: toy_task.attributions["random"]})
        apart = Store(tmp_path / label)
        records: list[CellRecord] = []
        execute(
            next(jobs(configured(task), (SPLIT,), (0,))),
            toy_cohort,
            apart,
            lambda folder, s=apart, r=records: r.append(s.commit(folder)),
        )
        maps.append(records[2].artifacts["map_sub-04.nii.gz"])
    assert maps[0] == maps[1]


def _never(*given: Any, **named: Any) -> Any:
    raise AssertionError("this must not be called")
