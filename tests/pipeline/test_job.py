"""Execution of a whole job in this process: cells done, failed and skipped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.overrides import override
from harness.core.registry import ATTRIBUTIONS, MODELS
from harness.core.targets import KINDS
from harness.core.task import Configuration, Task
from harness.core.types import Cohort, Folds, NetworkSpec, Split
from harness.data.maps import read_maps, read_sums
from harness.metrics import segmentation
from harness.pipeline.artifacts import read_predictions, read_values
from harness.pipeline.cell import Job, jobs, missing
from harness.pipeline.explain import Explained, explain
from harness.pipeline.job import _Work, execute, load_member
from harness.pipeline.predict import predict
from harness.storage.store import CellRecord, Store

SPLIT = Split(("sub-01", "sub-02"), ("sub-03",), ("sub-04",))


StudyRun = tuple[list[Job], Store, dict[str, CellRecord]]


def broken_model(in_channels: int, outputs: int) -> torch.nn.Module:
    """A model that cannot be built."""
    raise ValueError("no such width\nsecond line")


def broken_map(model: Any, inputs: Any, targets: Any) -> Any:
    """An attribution that raises."""
    raise RuntimeError("no gradient")


def committed(job: Job, cohort: Cohort, store: Store) -> list[CellRecord]:
    """Execute a job, commit its cells and return the records in order."""
    records: list[CellRecord] = []
    execute(job, cohort, store, lambda folder: records.append(store.commit(folder)))
    return records


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def run(toy_cohort: Cohort, store: Store) -> Callable[..., list[CellRecord]]:
    """A function that executes and commits the missing cells of a job and returns the records."""

    def execute_missing(job: Job, *, cohort: Cohort = toy_cohort) -> list[CellRecord]:
        rest = missing(job, store)
        return [] if rest is None else committed(rest, cohort, store)

    return execute_missing


@pytest.fixture
def job_of(configured: Callable[[Task], Configuration], toy_cohort: Cohort) -> Callable[..., Job]:
    """A function that makes the job of a task on one fold of the toy cohort."""
    return lambda task, split=SPLIT, seed=0: next(jobs(configured(task), toy_cohort, Folds((split,)), (seed,)))


@pytest.fixture
def job(toy_task: Task, job_of: Callable[..., Job]) -> Job:
    """A job of the toy task."""
    return job_of(toy_task)


@pytest.fixture
def broken_components() -> Iterator[dict[str, Any]]:
    """A model and an attribution that raise."""
    MODELS.register("broken_model")(broken_model)
    ATTRIBUTIONS.register("broken_map")(broken_map)
    yield {"model": partial(broken_model), "attribution": partial(broken_map)}
    del MODELS._entries["broken_model"], ATTRIBUTIONS._entries["broken_map"]


def states_of(records: list[CellRecord]) -> list[tuple[str, str, str]]:
    """Stage, label and state of each record."""
    return [(record.stage, record.label, record.state) for record in records]


def test_whole_job(run: Callable, job: Job, store: Store) -> None:
    """All cells of a job are done in order, each with its artifacts and facts."""
    records = run(job)
    assert states_of(records) == [
        ("train", "", "done"),
        ("predict", "", "done"),
        ("score", "", "done"),
        ("explain", "random", "done"),
        ("score", "random", "done"),
        ("explain", "gradients", "done"),
        ("score", "gradients", "done"),
    ]
    assert [sorted(record.artifacts) for record in records] == [
        ["history.json", "split.json", "weights.safetensors"],
        ["predictions.npz"],
        ["values.json"],
        ["map_sub-04.nii.gz"],
        ["values.json"],
        ["map_sub-04.nii.gz"],
        ["values.json"],
    ]
    assert records[0].facts["epochs"] == 2 and records[0].facts["parameters"] > 100
    assert all(record.seconds > 0 and record.hardware["torch"] == torch.__version__ for record in records)
    assert [record.identity for record in records] == [cell.identity for cell in job.cells]


def test_contents_of_artifacts(run: Callable, job: Job, store: Store, toy_cohort: Cohort) -> None:
    """Artifacts contain predictions and maps on the subject's own grid, the history and the split."""
    train, predicted, _, explained = run(job)[:4]
    shape = toy_cohort.samples[3].masks["target"].shape
    with np.load(store.artifact(predicted, "predictions.npz")) as file:
        assert {name: array.dtype for name, array in file.items()} == {"sub-04,target,probability": np.float16}
    predictions = read_predictions(store, predicted)
    assert list(predictions) == ["sub-04"] and list(predictions["sub-04"]) == ["target"]
    assert predictions["sub-04"]["target"]["probability"].shape == shape
    maps = read_maps(store, explained)
    assert maps["sub-04"].shape == (1, *shape) and maps["sub-04"].dtype == np.float32
    assert explained.facts["samples"] == ["sub-04"] and explained.facts["outputs"] == ["target"]
    history = json.loads(store.artifact(train, "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    split = json.loads(store.artifact(train, "split.json").read_text())
    assert Split(**{key: tuple(value) for key, value in split.items()}) == SPLIT


def test_values_are_kept_by_the_identity_of_their_metric(run: Callable, job: Job, store: Store) -> None:
    """Each metric has a label, values per sample and target, and values per region if it is regional."""
    score = run(job)[2]
    values = read_values(store, score)
    assert set(values) == set(score.metrics.values())
    by_label = {one["label"]: one for one in values.values()}
    assert set(by_label) == {"dice", "sensitivity", "true_count", "predicted_count"}
    assert by_label["true_count"]["values"]["sub-04"]["targets"]["target"] > 0
    assert set(by_label["dice"]["values"]["sub-04"]["regions"]) == {"left", "right"}
    assert by_label["true_count"]["values"]["sub-04"]["regions"] == {}


def test_stored_weights_give_the_stored_prediction(
    run: Callable, job: Job, store: Store, toy_task: Task, toy_cohort: Cohort
) -> None:
    """Loading the stored weights reproduces the stored prediction."""
    train, predicted = run(job)[:2]
    member, spec = load_member(toy_task, store, train)
    assert spec == toy_task.adapter().spec(toy_cohort)
    again = predict([member], spec, toy_cohort.samples[3], batch_size=4)["target"]["probability"]
    kept = read_predictions(store, predicted)["sub-04"]["target"]["probability"]
    np.testing.assert_allclose(again, kept, atol=1e-3)


def test_same_job_gives_the_same_bytes(toy_cohort: Cohort, job: Job, tmp_path: Path) -> None:
    """Two executions of a job give equal checksums of all artifacts."""
    made = []
    for name in ("one", "two"):
        made.append([dict(record.artifacts) for record in committed(job, toy_cohort, Store(tmp_path / name))])
    assert made[0] == made[1]


def test_finished_job_runs_nothing(run: Callable, job: Job) -> None:
    """Executing a finished job runs nothing."""
    run(job)
    assert run(job) == []


def test_missing_explanation_is_made_without_training(
    run: Callable, job: Job, toy_task: Task, job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new attribution uses the stored weights, and only its cells are executed."""
    run(job)
    monkeypatch.setattr("harness.pipeline.job.train", _never)
    more = job_of(override(toy_task, "attributions.saliency", "saliency"))
    assert states_of(run(more)) == [("explain", "saliency", "done"), ("score", "saliency", "done")]


def test_explanation_of_a_loaded_network_is_the_same(
    run: Callable, job: Job, tmp_path: Path, toy_cohort: Cohort
) -> None:
    """Maps of a loaded network equal those made right after training."""
    whole = {record.identity: record.artifacts for record in run(job)}
    apart = Store(tmp_path / "apart")
    parts = (job.cells[:1], job.cells[1:2], job.cells[5:6], job.cells[6:], job.cells[2:3])
    kept = [record for cells in parts for record in committed(job.only(cells), toy_cohort, apart)]
    assert {record.state for record in kept} == {"done"} and len(kept) == 5
    assert all(whole[record.identity] == record.artifacts for record in kept)


def test_scores_are_computed_from_files(
    run: Callable, job: Job, toy_task: Task, job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing an option of a metric evaluates only that metric, without building a network."""
    run(job)
    for name in ("train", "build_network", "load_member", "explain", "predict"):
        monkeypatch.setattr(f"harness.pipeline.job.{name}", _never)
    records = run(job_of(override(toy_task, "metrics.sensitivity.tolerance_mm", 1.0)))
    assert states_of(records) == [("score", "", "done")]
    assert list(records[0].metrics) == ["sensitivity"]


def test_new_metric_is_computed_alone(
    run: Callable, job: Job, toy_task: Task, job_of: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new metric is evaluated alone, and its values are stored beside the others."""
    held = run(job)[2]
    monkeypatch.setattr("harness.pipeline.job.predict", _never)
    metrics = {**toy_task.metrics, "similarity": partial(segmentation.volumetric_similarity)}
    records = run(job_of(dataclasses.replace(toy_task, metrics=metrics)))
    assert [(record.stage, list(record.metrics)) for record in records] == [("score", ["similarity"])]
    assert {record.identity for record in store.evaluations("score", held.group)} == {
        held.identity,
        records[0].identity,
    }
    (values,) = read_values(store, records[0]).values()
    assert values["label"] == "similarity" and list(values["values"]) == ["sub-04"]


def test_maps_are_read_one_sample_at_a_time(
    run: Callable, toy_task: Task, job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New metrics of an explanation in the store read one map after the other."""
    asked: list[Any] = []

    def counted(store: Store, record: CellRecord, samples: Any = None, *, output: str = "") -> Any:
        asked.append(list(samples))
        return read_maps(store, record, samples, output=output)

    split = Split(("sub-01",), ("sub-02",), ("sub-03", "sub-04"))
    run(job_of(toy_task, split))
    monkeypatch.setattr("harness.pipeline.job.read_maps", counted)
    records = run(job_of(override(toy_task, "metrics.relevance_ap.sign", "absolute"), split))
    assert states_of(records) == [("score", "random", "done"), ("score", "gradients", "done")]
    assert asked == 2 * [["sub-03"], ["sub-04"]]


@pytest.mark.parametrize(("cells", "held"), [(slice(3, 4), []), (slice(3, 5), ["sub-04"])])
def test_maps_are_held_only_for_later_cells(
    run: Callable, job: Job, store: Store, toy_cohort: Cohort, tmp_path: Path, cells: slice, held: list[str]
) -> None:
    """Maps are kept in memory only if another cell of the job evaluates them."""
    run(job.only(job.cells[:1]))
    work = _Work(job.only(job.cells[cells]), toy_cohort, store)
    assert work.run(job.cells[3], tmp_path).state == "done"
    assert [list(found) for found in work.maps.values()] == [held]


def test_model_that_raises(
    run: Callable, store: Store, toy_task: Task, job_of: Any, broken_components: dict[str, Any]
) -> None:
    """A failed training records the first line of its error with the location, and no other cell is executed."""
    job = job_of(dataclasses.replace(toy_task, model=broken_components["model"]))
    records = run(job)
    assert states_of(records) == [("train", "", "failed")]
    assert records[0].error.startswith("ValueError: no such width (test_job.py:")
    assert "second line" not in records[0].error
    failure = store.failure(job.train)
    assert failure is not None and failure.error == records[0].error
    assert "second line" in (store.root / "failed" / f"{job.train}.txt").read_text()
    assert store.get("train", job.train) is None


def test_failed_attribution_does_not_affect_others(
    run: Callable, toy_task: Task, job_of: Any, broken_components: dict[str, Any]
) -> None:
    """A failed explanation skips its score, and other explanations are done."""
    task = dataclasses.replace(
        toy_task,
        explanations={"broken": broken_components["attribution"], "random": toy_task.explanations["random"]},
    )
    assert states_of(run(job_of(task))) == [
        ("train", "", "done"),
        ("predict", "", "done"),
        ("score", "", "done"),
        ("explain", "broken", "failed"),
        ("explain", "random", "done"),
        ("score", "random", "done"),
    ]


def test_failed_cell_is_executed_again(run: Callable, job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executing a job again runs failed cells, and success removes the recorded failure."""
    with monkeypatch.context() as patch:
        patch.setattr("harness.pipeline.job.train", _never)
        assert states_of(run(job)) == [("train", "", "failed")]
    assert len(run(job)) == 7
    assert store.failure(job.train) is None


def test_prediction_that_is_not_finite_fails(run: Callable, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction with NaN fails and is not scored, while explanations are done."""

    def broken(members: Any, spec: Any, sample: Any, *, batch_size: int) -> Any:
        return {"target": {"probability": np.full(sample.shape, np.nan, np.float32)}}

    monkeypatch.setattr("harness.pipeline.job.predict", broken)
    records = run(job)
    assert states_of(records)[:2] == [("train", "", "done"), ("predict", "", "failed")]
    assert "the prediction of target for sub-04 is not finite; try a smaller recipe.lr" in records[1].error
    assert [record.stage for record in records] == ["train", "predict", "explain", "explain"]


def test_damaged_weights_fail_the_explanation(
    run: Callable, job: Job, store: Store, toy_task: Task, job_of: Any
) -> None:
    """Weights that changed after they were written are refused."""
    run(job)
    path = store.folder("train", job.train) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    records = run(job_of(override(toy_task, "attributions.saliency", "saliency")))
    assert states_of(records) == [("explain", "saliency", "failed")]
    assert "StoreError: " in records[0].error and "has changed since it was written" in records[0].error


def test_cell_of_other_code_is_refused(run: Callable, job: Job) -> None:
    """A cell whose identity differs from the worker's code is refused."""
    cell = dataclasses.replace(job.cells[0], identity="0" * 20)
    records = run(dataclasses.replace(job, cells=(cell,)))
    assert records[0].state == "failed"
    assert "this worker runs another version of the code than the driver; install the same" in records[0].error


def test_values_of_other_code_are_refused(run: Callable, job: Job) -> None:
    """A score cell whose identity differs from the worker's code is refused."""
    run(job.only(job.cells[:2]))
    score = job.cells[2].only(job.cells[2].metrics[:1])
    other = dataclasses.replace(score, identity="0" * 20, metrics=((score.metrics[0][0], "1" * 20),))
    records = run(job.only([other]))
    assert records[0].state == "failed" and "another version of the code than the driver" in records[0].error


def test_leaking_split_is_refused(run: Callable, toy_task: Task, job_of: Any) -> None:
    """A split with a subject in both training and test fails the training."""
    leak = Split(("sub-01", "sub-04"), ("sub-03",), ("sub-04",))
    assert states_of(run(job_of(toy_task, leak))) == [("train", "", "failed")]


def test_cell_collapses_only_with_all_its_subjects(
    run: Callable, toy_task: Task, job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell is collapsed only if the predictions of all its subjects are."""
    split = Split(("sub-01",), ("sub-02",), ("sub-03", "sub-04"))

    def flags(empty: set[str], seed: int) -> Any:
        def made(members: Any, spec: Any, sample: Any, *, batch_size: int) -> Any:
            probability = np.zeros(sample.masks["target"].shape, np.float32)
            if sample.id not in empty:
                probability[0, 0, 0] = 1
            return {"target": {"probability": probability}}

        monkeypatch.setattr("harness.pipeline.job.predict", made)
        job = job_of(toy_task, split, seed)
        return run(job.only(job.cells[:3]))[2].facts["flags"]

    assert flags({"sub-03"}, 0) == []
    assert flags({"sub-03", "sub-04"}, 1) == ["collapsed"]


def test_flat_maps_are_flagged(run: Callable, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant map is flagged, and one differing voxel is enough to avoid it."""

    def flat(members: Any, spec: Any, sample: Any, explanation: Any, **named: Any) -> Explained:
        maps = np.full((1, 1, *sample.shape), 2.0, np.float32)
        maps[0, 0, 0, 0, 0] = 2.0 if explanation.attribution.keywords else 3.0
        return Explained(("target",), maps)

    monkeypatch.setattr("harness.pipeline.job.explain", flat)
    flags = {record.label: record.facts["flags"] for record in run(job) if record.stage == "explain"}
    assert flags == {"random": [], "gradients": ["flat map"]}


def test_threads_and_random_state_are_restored(run: Callable, toy_task: Task, job_of: Any) -> None:
    """The number of threads and the random state are restored after a job."""
    torch.manual_seed(4)
    before = torch.get_num_threads(), torch.get_rng_state()
    job = job_of(override(override(toy_task, "recipe.threads", 2), "recipe.epochs", 1))
    run(job.only(job.cells[:1]))
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_same_method_under_another_label_gives_the_same_map(
    toy_task: Task, job_of: Any, tmp_path: Path, toy_cohort: Cohort
) -> None:
    """The random map of an attribution does not depend on its label."""
    maps = []
    for label in ("random", "chance"):
        task = dataclasses.replace(toy_task, explanations={label: toy_task.explanations["random"]})
        records = committed(job_of(task), toy_cohort, Store(tmp_path / label))
        maps.append(records[3].artifacts["map_sub-04.nii.gz"])
    assert maps[0] == maps[1]


class TestSeveralTargets:
    """Ensembles, chosen samples, sums and probes in a study of pictures."""

    def test_every_cell_is_done(self, study_run: StudyRun) -> None:
        """All cells of folds and ensemble are done."""
        made, _, records = study_run
        assert {record.state for record in records.values()} == {"done"}
        assert {identity for job in made for identity in (cell.identity for cell in job.cells)} == set(records)

    def test_an_ensemble_predicts_the_average_of_its_networks(
        self, study_run: StudyRun, study: Task, crowd: Cohort, crowd_spec: NetworkSpec, crowd_folds: Folds
    ) -> None:
        """On the fixed test set, the ensemble averages the predictions of its networks by kind of target."""
        made, store, records = study_run
        cell = made[-1].cells[0]
        assert (cell.stage, records[cell.identity].facts["networks"]) == ("predict", 2)
        kept = read_predictions(store, records[cell.identity])
        assert tuple(kept) == crowd_folds.test
        members = [load_member(study, store, records[name])[0] for name in made[-1].trainings]
        sample = next(one for one in crowd.samples if one.id == crowd_folds.test[0])
        apart = [predict([one], crowd_spec, sample, batch_size=8) for one in members]
        for target in crowd_spec.targets:
            expected = KINDS[target.kind].average([one[target.name] for one in apart])
            for name, value in expected.items():
                np.testing.assert_allclose(kept[sample.id][target.name][name], value, rtol=1e-6)
            assert not np.array_equal(*(next(iter(one[target.name].values())) for one in apart))

    def test_an_ensemble_explains_by_the_average_of_its_networks(
        self, study_run: StudyRun, study: Task, crowd: Cohort, crowd_spec: NetworkSpec, crowd_folds: Folds
    ) -> None:
        """Each network explains the class that the ensemble predicts, and the maps are averaged."""
        made, store, records = study_run
        cell = next(one for one in made[-1].cells if (one.stage, one.label) == ("explain", "saliency"))
        sample = next(one for one in crowd.samples if one.id == crowd_folds.test[0])
        members = [load_member(study, store, records[name])[0] for name in made[-1].trainings]
        hair = crowd_spec.targets[2]
        classes = {"hair": KINDS[hair.kind].predicted_class(predict(members, crowd_spec, sample, batch_size=8)["hair"])}
        whole = study.explained["saliency"]
        apart = [
            explain([one], crowd_spec, sample, whole, seed=0, classes=classes).maps.astype(float) for one in members
        ]
        for number, output in enumerate(("age", "smile", "hair")):
            kept = read_maps(store, records[cell.identity], output=output)[sample.id]
            np.testing.assert_allclose(kept, np.mean([one[number] for one in apart], axis=0), rtol=1e-5, atol=1e-9)

    def test_a_fold_beside_a_fixed_test_set_predicts_its_validation_samples(
        self, study_run: StudyRun, crowd_folds: Folds
    ) -> None:
        """Beside a fixed test set, each fold predicts its own validation samples."""
        made, store, records = study_run
        for job, split in zip(made, crowd_folds.folds, strict=False):
            predicted = records[next(cell.identity for cell in job.cells if cell.stage == "predict")]
            assert tuple(read_predictions(store, predicted)) == split.validation
            assert not set(split.validation) & set(crowd_folds.test)

    def test_sums_are_those_of_the_maps_that_are_kept(self, study_run: StudyRun) -> None:
        """With maps and sums, the blocks sum to the total of all maps."""
        made, store, records = study_run
        job = made[0]
        cell = next(one for one in job.cells if (one.stage, one.label) == ("explain", "saliency"))
        record = records[cell.identity]
        assert record.facts["outputs"] == ["age", "smile", "hair"] and record.facts["channels"] == ["all"]
        sums = read_sums(store.artifact(record, "blocks.npz"))
        assert len(sums) == 4
        for number, output in enumerate(record.facts["outputs"]):
            maps = read_maps(store, record, output=output)
            assert list(maps) == list(job.evaluated)
            expected = np.sum(list(maps.values()), axis=0)
            np.testing.assert_allclose(sums.sum(0)[number], expected, rtol=2e-3, atol=1e-7)

    def test_chosen_samples_are_those_that_fit_their_predictions(
        self, study_run: StudyRun, crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """At most three samples whose smile is predicted correctly are explained."""
        made, store, records = study_run
        samples, smile = {one.id: one for one in crowd.samples}, crowd_spec.targets[1]
        for job in made:
            by_stage = {(cell.stage, cell.label): records[cell.identity] for cell in job.cells}
            predicted = read_predictions(store, by_stage["predict", ""])
            right = [
                name
                for name, one in predicted.items()
                if KINDS[smile.kind].predicted_class(one["smile"]) == samples[name].targets["smile"]
            ]
            chosen = by_stage["explain", "smiles"].facts["samples"]
            assert len(chosen) == min(3, len(right)) and set(chosen) <= set(right)
            assert list(read_maps(store, by_stage["explain", "smiles"])) == chosen

    def test_values_of_maps_and_probes_are_of_the_explained_samples(self, study_run: StudyRun) -> None:
        """Only explained samples have values, one for each explained scalar."""
        made, store, records = study_run
        cells = {(cell.stage, cell.label): cell for cell in made[0].cells}
        for label, outputs in (("smiles", ["smile"]), ("gate", ["gate"]), ("random", ["age", "smile", "hair"])):
            explained = records[cells["explain", label].identity].facts["samples"]
            for stage in ("score", "probe"):
                found = list(read_values(store, records[cells[stage, label].identity]).values())
                assert len(found) == len(cells[stage, label].metrics) > 0
                for values in found:
                    assert list(values["values"]) == explained
                    # Inverted images are classified, so scalars of other targets than the smile have no value.
                    inverted = values["label"].endswith("inverted_logits")
                    expected = [name for name in outputs if name in ("smile", "gate")] if inverted else outputs
                    assert all(list(one["targets"]) == expected for one in values["values"].values())

    def test_probe_of_stored_artifacts_is_the_same(self, study_run: StudyRun, crowd: Cohort, tmp_path: Path) -> None:
        """A probe of stored maps and networks gives the same artifacts as one right after training."""
        made, store, records = study_run
        for job in (made[0], made[-1]):
            for label in ("random", "smiles"):
                cell = next(one for one in job.cells if (one.stage, one.label) == ("probe", label))
                apart = Store(tmp_path / f"{job.fold}-{label}")
                # Copy all other stages, so that only this cell is computed.
                apart.root.mkdir()
                for stage in ("train", "predict", "explain"):
                    (apart.root / stage).symlink_to(store.root / stage)
                (again,) = committed(job.only([cell]), crowd, apart)
                assert again.artifacts == records[cell.identity].artifacts

    def test_an_ensemble_of_other_code_is_refused(self, study_run: StudyRun, crowd: Cohort, tmp_path: Path) -> None:
        """An ensemble cell whose identity differs from the worker's code is refused."""
        made, _, _ = study_run
        cell = dataclasses.replace(made[-1].cells[0], identity="0" * 20)
        store = Store(tmp_path / "store")
        (record,) = committed(made[-1].only([cell]), crowd, store)
        assert record.state == "failed" and "another version of the code than the driver" in record.error

    def test_an_ensemble_without_a_training_fails_by_name(
        self, study_run: StudyRun, crowd: Cohort, tmp_path: Path
    ) -> None:
        """An ensemble with a missing training fails, and the error names the training."""
        made, _, _ = study_run
        store = Store(tmp_path / "store")
        (record,) = committed(made[-1].only(made[-1].cells[:1]), crowd, store)
        assert f"the train cell {made[-1].trainings[0]} that it needs is not in the store" in record.error

    def test_explanation_without_samples_fails(
        self,
        study_run: StudyRun,
        study: Task,
        studied: Any,
        crowd: Cohort,
        crowd_folds: Folds,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If no sample fits the rule, the explanation fails, and the error suggests a remedy."""
        store = Store(tmp_path / "store")
        shutil.copytree(study_run[1].root, store.root)
        monkeypatch.setattr("harness.pipeline.job.choose_samples", lambda *given: [])
        task = override(study, "explanations.smiles.at_most", 2)
        job = missing(next(jobs(studied(task), crowd, crowd_folds, (0,))), store)
        assert job is not None
        (record,) = committed(job, crowd, store)
        assert (record.stage, record.label, record.state) == ("explain", "smiles", "failed")
        assert "no sample fits samples=correct of 8; set explanations.smiles.samples=tested" in record.error


def _never(*given: Any, **named: Any) -> Any:
    raise AssertionError("this must not be called")
