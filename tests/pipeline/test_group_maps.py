"""Explanations scored as sums over subjects, from end to end on a few lesion maps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, r2_score

from harness.attribution.controls import input_itself, random_map, weights
from harness.attribution.gradients import input_x_gradient, saliency
from harness.attribution.occlusion import occlusion
from harness.core.errors import CellError
from harness.core.explanations import Explanation
from harness.core.overrides import override
from harness.core.registry import METRICS, MODELS
from harness.core.task import Configuration, Task, describe
from harness.core.types import Cohort, Folds, Reads, Score
from harness.data.lesions import lesions
from harness.data.maps import read_maps, read_sums
from harness.data.targets.scores import scores
from harness.metrics.localisation import channel_share
from harness.metrics.register import metric
from harness.pipeline import items
from harness.pipeline.aggregate import Pooled, _Aggregate, metric_facts, pool
from harness.pipeline.artifacts import read_predictions
from harness.pipeline.cell import Cell, Job, ensembles, explanations_of, jobs
from harness.pipeline.explain import explain
from harness.pipeline.group_maps import exact_group_map, group_sums, group_values, mask_counts, target_mask, training_of
from harness.pipeline.job import execute, load_member
from harness.pipeline.leaderboard import build
from harness.pipeline.networks import Member, build_network
from harness.pipeline.score import LOW_SPREAD, level_of
from harness.pipeline.train import train
from harness.report.wording import console_rows
from harness.storage.store import CellRecord, Store
from harness.sweep.catalogue import load_task
from harness.sweep.plan import draw_folds

Executed = tuple[Configuration, list[Job], Store]


class Mean(torch.nn.Module):
    """A network that predicts the same values for every lesion map."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean.expand(len(x), -1)


def mean_only(in_channels: int, outputs: int) -> torch.nn.Module:
    """Build a network that predicts the mean."""
    return Mean(outputs)


class Faint(torch.nn.Module):
    """A network whose output is a tiny fraction of the lesion volume."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((outputs,), 1e-5), requires_grad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 + x.flatten(1).sum(1, keepdim=True) * self.scale


def faint(in_channels: int, outputs: int) -> torch.nn.Module:
    """Build a network whose output hardly varies."""
    return Faint(outputs)


def largest(explanation: np.ndarray) -> float:
    """The largest value of a map; for a sum of maps, this is not the mean over samples."""
    return float(explanation.max())


@pytest.fixture
def peak() -> Iterator[partial[float]]:
    """A registered metric of explanations that needs no truth."""
    yield partial(
        metric("peak", source="this test", direction="higher", range=(-np.inf, np.inf), level="explanation")(largest)
    )
    del METRICS._entries["peak"]


@pytest.fixture(scope="module")
def lsm() -> Task:
    """The lesion-symptom task with three attributions and a ridge model, which is fitted quickly."""
    task = load_task("lsm")
    task = dataclasses.replace(
        task,
        explanations={
            "occlusion": Explanation(partial(occlusion, window=3, stride=2), keep="sums"),
            "gradient": Explanation(partial(input_x_gradient), keep="sums"),
            "weights": Explanation(partial(weights), keep="sums"),
        },
    )
    for key, value in {"model": "ridge", "model.minimum": 2, "split.folds": 3, "recipe.epochs": 1}.items():
        task = override(task, key, value)
    return task


@pytest.fixture(scope="module")
def cohort(lesion_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Fourteen lesion maps with three simulated scores."""
    cache = tmp_path_factory.mktemp("cache")
    return scores(lesions(lesion_root, cache, box="native"), cache, patients=3, size=3, noise=0.1)


@pytest.fixture(scope="module")
def executed(
    lsm: Task, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Configuration, list[Job], Store]:
    """Configuration, jobs and store of a run with ridge."""
    return run(lsm, cohort, tmp_path_factory.mktemp("store"))


def run(task: Task, cohort: Cohort, folder: Path) -> Executed:
    """Execute every cell of a task on a cohort."""
    store = Store(folder / "store")
    described = json.loads(json.dumps(describe(task)))
    configuration = Configuration(described, {"model": "it"}, "quick", cohort.fingerprint(Reads(masks=("lesion",))))
    made = list(jobs(configuration, cohort, draw_folds(task, cohort), (0,)))
    for job in made:
        execute(job, cohort, store, store.commit)
    return configuration, made, store


@pytest.fixture(scope="module")
def pooled(executed: Any, cohort: Cohort) -> Pooled:
    """Pooled rows of the run with ridge."""
    configuration, made, store = executed
    return pool(configuration, made, cohort, store, facts={})


def finished(cells: Sequence[Cell], store: Store) -> dict[Cell, CellRecord]:
    """Cells with their records."""
    return {cell: record for cell in cells if (record := store.get(cell.stage, cell.identity)) is not None}


def predictions(executed: Any) -> dict[str, np.ndarray]:
    """Predicted scores of each subject, read from the store."""
    _, made, store = executed
    found: dict[str, np.ndarray] = {}
    for job in made:
        (predict,) = (cell for cell in job.cells if cell.stage == "predict")
        kept = read_predictions(store, store.get("predict", predict.identity))
        found |= {sample: np.array([one["value"] for one in of.values()]) for sample, of in kept.items()}
    return found


def names(cohort: Cohort) -> tuple[str, ...]:
    """Names of the scores."""
    return tuple(target.name for target in cohort.targets)


def loaded(task: Task, job: Job, store: Store) -> Member:
    """The network of a training with its adapter."""
    return load_member(task, store, store.get("train", job.train))[0]  # type: ignore[arg-type]


def test_r2_of_each_score_agrees_with_sklearn(executed: Any, pooled: Pooled, cohort: Cohort) -> None:
    """R² of each score agrees with scikit-learn over the subjects of all folds, and the row has their mean."""
    found = predictions(executed)
    values = []
    for index, name in enumerate(names(cohort)):
        target = [sample.targets[name] for sample in cohort.samples]
        value = r2_score(target, [found[sample.id][index] for sample in cohort.samples])
        assert pooled.regions[name][0].pooled["r2"].value == pytest.approx(value)
        values.append(value)
    assert pooled.prediction.pooled["r2"].value == pytest.approx(np.mean(values))


def test_the_ceiling_of_r2_is_that_of_the_noise(pooled: Pooled, cohort: Cohort) -> None:
    """The ceiling of R² is the squared correlation of noisy and clean scores."""
    target, clean = (
        np.array([getattr(one, which)["score_1"] for one in cohort.samples]) for which in ("targets", "clean")
    )
    assert pooled.regions["score_1"][0].pooled["r2"].ceiling == pytest.approx(np.corrcoef(target, clean)[0, 1] ** 2)


def test_group_maps_are_sums_over_all_tested_subjects(executed: Any, lsm: Task, cohort: Cohort) -> None:
    """For a linear model, the group map of input × gradient is Σ w·x over the test subjects of each fold."""
    _, made, store = executed
    cells = [cell for job in made for cell in job.cells if cell.stage == "explain" and cell.label == "gradient"]
    outputs, sums = group_sums(finished(cells, store), store)
    assert outputs == names(cohort)
    expected = np.zeros(sums.shape[1:])
    lesion = {sample.id: sample.masks["lesion"].load() for sample in cohort.samples}
    for job in made:
        learned = loaded(lsm, job, store).network.weight_map().detach().numpy()
        expected += learned * np.sum([lesion[name] for name in job.split.test], axis=0)
    rounding = 2.0**-11 * np.abs(sums).sum(0) + 1e-6 * np.abs(expected).max()  # sums are stored in half precision
    assert np.all(np.abs(sums.sum(0) - expected) <= rounding)


def test_average_precision_is_that_of_the_summed_map(executed: Any, pooled: Pooled, cohort: Cohort) -> None:
    """Average precision agrees with scikit-learn on the summed map."""
    _, made, store = executed
    cells = [cell for job in made for cell in job.cells if cell.stage == "explain" and cell.label == "occlusion"]
    _, sums = group_sums(finished(cells, store), store)
    assert cohort.truth is not None
    expected = average_precision_score(
        target_mask(cohort.truth, "score_2").ravel(), sums.sum(0, dtype=np.float64)[1, 0].ravel()
    )
    row = next(row for row in pooled.regions["score_2"] if row.attribution == "occlusion")
    assert row.pooled["relevance_ap"].value == pytest.approx(expected)


def test_the_geometric_ceiling_of_a_map_is_that_of_an_exact_model(lsm: Task, pooled: Pooled, cohort: Cohort) -> None:
    """The ceiling is the average precision of an exact model: 1 for input × gradient, less for occlusion."""
    by_label = {row.attribution: row.pooled["relevance_ap"].ceiling for row in pooled.explanations}
    assert by_label["gradient"] == pytest.approx(1)
    assert cohort.truth is not None
    expected = np.mean(
        [
            average_precision_score(
                target_mask(cohort.truth, name).ravel(),
                exact_group_map(cohort.truth, name, lsm.attributions["occlusion"]).ravel(),
            )
            for name in names(cohort)
        ]
    )
    assert by_label["occlusion"] == pytest.approx(expected) and expected < 1


def test_attributions_have_values_in_the_same_blocks(lsm: Task, pooled: Pooled) -> None:
    """With few subjects, intervals are over blocks, given the trained models: there are ranks, and no comparisons."""
    table = build(list(pooled.explanations), metric_facts(lsm, ("explanation",)), "relevance_ap")
    blocks = {row.attribution: set(row.values["relevance_ap"]) for row in pooled.explanations}
    assert len(blocks["gradient"]) == 12 and len({frozenset(one) for one in blocks.values()}) == 1
    for rows in pooled.regions.values():  # the same for each score
        assert all(len(row.values["relevance_ap"]) == 12 for row in rows if row.attribution)
    assert table.column("rank").to_pylist()[0] == 1
    assert set(table.column("difference").to_pylist()) == {None}
    # The table shows the average precision of the summed map and the number of subjects.
    shown = {line["attribution"]: line for line in table.to_pylist()}
    for row in pooled.explanations:
        assert shown[row.attribution]["relevance_ap"] == pytest.approx(row.pooled["relevance_ap"].value)
        assert shown[row.attribution]["subjects"] == 14
    header, lines = console_rows(table)
    assert {"chance", "ceiling", "s a fold"} <= set(header) and all(line[header.index("s a fold")] for line in lines)


def test_intervals_by_fold_leave_out_maps_of_whole_folds(lsm: Task, executed: Executed, cohort: Cohort) -> None:
    """The variance is that of blocks of subjects, and a share of that of the maps without one fold, times (K − 1)²."""
    _, made, store = executed
    records = finished([cell for job in made for cell in job.cells if cell.label == "gradient"], store)
    records = {cell: record for cell, record in records.items() if cell.stage == "explain"}
    values = group_values(lsm, "gradient", records, cohort, cohort, store, ["relevance_ap"], by_fold=True)[
        "relevance_ap"
    ]
    assert list(values["paired"]) == ["fold 00", "fold 01", "fold 02"]
    parts = [group_sums({cell: one}, store)[1] for cell, one in sorted(records.items(), key=lambda one: one[0].fold)]
    folds = [part.sum(0, dtype=np.float64) for part in parts]
    blocks = np.concatenate(parts)
    assert cohort.truth is not None
    for index, name in enumerate(names(cohort)):
        target = target_mask(cohort.truth, name).ravel()
        variances = []
        for units in (folds, blocks):
            without = [average_precision_score(target, (sum(folds) - one)[index, 0].ravel()) for one in units]
            variances.append((len(units) - 1) * np.var(without))
        of_folds, of_blocks = variances
        share = of_folds**4 / (of_folds**2 + of_blocks**2) ** 2
        found = values["outputs"][name]["se"]
        own = [float(one) for one in values["paired_outputs"][name].values()]
        # Comparisons with other maps of the same test subjects
        assert np.std(own, ddof=1) / np.sqrt(3) == pytest.approx(2 * np.sqrt(of_folds), rel=1e-3)
        assert found == pytest.approx(np.sqrt(of_blocks + 4 * of_folds * share), rel=1e-3)


def test_trainings_of_networks_are_random_and_controls_have_none(lsm: Task) -> None:
    """The interval of a control takes no training in, whatever the model."""
    network = override(lsm, "model", "cnn")
    assert (training_of(lsm), training_of(lsm, "gradient")) == ("deterministic", "deterministic")
    assert (training_of(network), training_of(network, "gradient")) == ("random", "random")
    prevalence = Explanation(partial(input_itself), keep="sums")
    assert training_of(dataclasses.replace(network, explanations={"prevalence": prevalence}), "prevalence") == "none"


def test_only_a_whole_cross_validation_has_intervals_by_fold(
    executed: Executed, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fold missing, whether not planned or not finished, intervals are given the trained models."""
    monkeypatch.setattr("harness.pipeline.aggregate.takes_training_in", lambda sizes: True)
    monkeypatch.setattr("harness.pipeline.group_maps.takes_training_in", lambda sizes: True)
    configuration, made, store = executed
    fewer = Store(shutil.copytree(store.root, tmp_path / "store"))
    shutil.rmtree(fewer.folder("predict", made[2].cells[1].identity))
    planned = {"all": (made, store), "two": (made[:2], store), "unfinished": (made, fewer)}
    found = {name: pool(configuration, some, cohort, where, facts={}) for name, (some, where) in planned.items()}
    by_fold = {name: "r2" in one.prediction.by_fold for name, one in found.items()}
    assert by_fold == {"all": True, "two": False, "unfinished": False}
    maps = {name: "relevance_ap" in one.explanations[0].by_fold for name, one in found.items()}
    assert maps == by_fold
    assert list(found["all"].prediction.values["r2"]) == ["fold 00", "fold 01", "fold 02"]
    assert len(found["two"].prediction.values["r2"]) == found["two"].prediction.pooled["r2"].n < 14


def test_model_without_weights_has_no_weights_explanation(lsm: Task) -> None:
    """``weights`` is an explanation of ridge and not of a CNN."""
    assert explanations_of(lsm) == ["occlusion", "gradient", "weights"]
    assert explanations_of(override(lsm, "model", "cnn")) == ["occlusion", "gradient"]


def test_an_oracle_is_flagged_and_has_no_rank(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """The matched filter, which knows the size of the regions, is flagged as an oracle and not ranked."""
    task = dataclasses.replace(override(lsm, "model", "matched_filter"), explanations={})
    task = override(override(task, "targets.scores.size", 3), "targets.scores.patients", 3)  # as for the cohort
    network = build_network(task, task.adapter().spec(cohort))
    assert network.region.shape == (3, 3, 3)
    configuration, made, store = run(task, cohort, tmp_path)
    row = pool(configuration, made, cohort, store, facts={}).prediction
    table = build([row], metric_facts(task, ("subject", "pool")), "r2")
    assert table.column("rank").to_pylist() == [None]
    assert table.column("status").to_pylist()[0].startswith("oracle")


def test_measured_score_has_no_average_precision(lsm: Task, lesion_root: Path, tmp_path: Path) -> None:
    """Explanations of a measured score have no average precision and no ceiling."""
    cohort = scores(lesions(lesion_root, tmp_path / "cache", box="native"), tmp_path / "cache", column="severity")
    configuration, made, store = run(lsm, cohort, tmp_path)
    rows = pool(configuration, made, cohort, store, facts={})
    assert np.isnan([row.pooled["relevance_ap"].value for row in rows.explanations]).all()
    assert np.isfinite(rows.prediction.pooled["r2"].value)
    assert np.isnan(rows.prediction.pooled["r2"].ceiling)


def test_a_constant_prediction_is_collapsed(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """A network with the same prediction for all subjects is flagged as collapsed."""
    MODELS.register("mean_only")(mean_only)
    try:
        task = dataclasses.replace(override(lsm, "model", "mean_only"), explanations={})
        configuration, made, store = run(task, cohort, tmp_path)
        flags = pool(configuration, made, cohort, store, facts={}).prediction.flags
    finally:
        del MODELS._entries["mean_only"]
    assert "collapsed in 3 of 3 cells" in flags


@pytest.mark.parametrize(("folds", "where"), [(2, "in 2 of 2 cells"), (7, "over all folds")])
def test_a_prediction_that_hardly_varies_is_flagged_and_ranked(
    lsm: Task, cohort: Cohort, tmp_path: Path, folds: int, where: str
) -> None:
    """A network with a low spread is flagged with its explanations, also in small folds; the flag excludes nothing."""
    MODELS.register("faint")(faint)
    try:
        task = override(override(override(lsm, "model", "faint"), "split.folds", folds), "recipe.lr", 1e-9)
        task = dataclasses.replace(task, explanations={"gradient": lsm.explanations["gradient"]})
        configuration, made, store = run(task, cohort, tmp_path)
        rows = pool(configuration, made, cohort, store, facts={})
    finally:
        del MODELS._entries["faint"]
    for row in (rows.prediction, *rows.explanations):
        assert row.flags == (f"{LOW_SPREAD} {where}",)
    table = build([rows.prediction], metric_facts(task, ("subject", "pool")), "r2")
    assert table["status"].to_pylist() == ["ranked"]


def test_decoding_by_batch_trains_the_same_network(lsm: Task, cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding lesion maps for each batch gives the same weights as keeping them in memory."""
    task = override(override(lsm, "model", "cnn"), "model.kernel", 3)
    task = override(task, "model.stride", 2)
    spec = task.adapter().spec(cohort)

    def trained() -> dict[str, torch.Tensor]:
        return train(
            lambda: build_network(task, spec), task.recipe(), task.adapter(), spec, cohort.samples, (), seed=3
        ).weights

    held = trained()
    monkeypatch.setattr(items, "HELD_BYTES", 0)
    streamed = trained()
    assert all(torch.equal(held[name], streamed[name]) for name in held)


def test_maps_are_post_processed_before_they_are_summed(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """Postprocessing is applied to the map of each subject, and the ceiling is still computed."""
    task = override(lsm, "postprocessing", "rectified")
    configuration, made, store = run(task, cohort, tmp_path)
    cells = [cell for job in made for cell in job.cells if cell.stage == "explain" and cell.label == "gradient"]
    sums = group_sums(finished(cells, store), store)[1].sum(0)
    expected = np.zeros_like(sums, dtype=np.float64)
    lesion = {sample.id: sample.masks["lesion"].load() for sample in cohort.samples}
    for job in made:
        learned = loaded(task, job, store).network.weight_map().detach().numpy()
        expected += sum(np.maximum(learned * lesion[name], 0) for name in job.split.test)
    np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-5 * expected.max())
    by_label = {row.attribution: row.pooled for row in pool(configuration, made, cohort, store, facts={}).explanations}
    assert by_label["gradient"]["relevance_ap"].ceiling == pytest.approx(1)


def test_unit_mass_has_no_ceiling(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """With ``unit_mass``, which weights subjects differently, no ceiling is computed."""
    configuration, made, store = run(override(lsm, "postprocessing", "unit_mass"), cohort, tmp_path)
    rows = pool(configuration, made, cohort, store, facts={}).explanations
    assert all(np.isfinite(row.pooled["relevance_ap"].value) for row in rows)
    assert all(np.isnan(row.pooled["relevance_ap"].ceiling) for row in rows)
    assert all(np.isnan(row.pooled["ap_of_ceiling"].value) for row in rows)


@pytest.mark.parametrize("control", ["regress_behaviour", "regress_lesion", "regress_both"])
def test_volume_is_regressed_by_the_training_subjects_of_each_fold(
    lsm: Task, cohort: Cohort, tmp_path: Path, control: Any
) -> None:
    """Predictions agree with a network on residuals of the training subjects, with the volume effect added back."""
    task = override(dataclasses.replace(lsm, explanations={}), "volume_control", control)
    _, made, store = run(task, cohort, tmp_path)
    found = predictions((None, made, store))
    for job in made:
        split = job.split
        training, tested = ([one for one in cohort.samples if one.id in ids] for ids in (split.train, split.test))
        masks = [np.asarray(one.masks["lesion"].load(), np.float64) for one in training]
        volumes = np.array([mask.sum() for mask in masks])
        targets = np.array([list(one.targets.values()) for one in training])
        member = loaded(task, job, store)
        assert set(member.adapter.state) >= {"low", "high"}
        values = np.c_[targets, np.reshape(masks, (len(masks), -1))]
        lines = np.linalg.lstsq(np.c_[np.ones(len(volumes)), volumes], values)[0]
        for one in tested:
            mask = np.asarray(one.masks["lesion"].load(), np.float64)
            volume_effect = np.array([1, mask.sum()]) @ lines
            seen = mask - volume_effect[3:].reshape(mask.shape) if control != "regress_behaviour" else mask
            with torch.no_grad():
                own = member.network(torch.from_numpy(seen.astype(np.float32))[None, None]).numpy()[0]
            expected = own + volume_effect[:3] if control != "regress_lesion" else own
            np.testing.assert_allclose(found[one.id], expected, atol=1e-4)


def test_unfitted_adapter_is_refused(lsm: Task, cohort: Cohort) -> None:
    """An adapter that regresses volume must be fitted before use."""
    adapter = override(lsm, "volume_control", "regress_both").adapter()
    with pytest.raises(CellError, match="must be fitted to training subjects"):
        adapter.inputs(cohort.samples[0])


def test_explained_input_of_residuals_is_the_lesion(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """With regressed voxels, input × gradient is the lesion, not the residual, times the gradient."""
    task = override(lsm, "volume_control", "regress_both")
    configuration, made, store = run(task, cohort, tmp_path)
    job = made[0]
    member, spec = loaded(task, job, store), task.adapter().spec(cohort)
    sample = next(one for one in cohort.samples if one.id == job.split.test[0])
    lesion = sample.masks["lesion"].load()
    ((image, on_top),) = member.adapter.explained(sample)
    np.testing.assert_allclose(image + on_top, member.adapter.inputs(sample)[0], atol=1e-6)
    assert np.array_equal(image[0, 0], lesion)
    found = explain([member], spec, sample, task.explained["gradient"], seed=0).maps
    np.testing.assert_allclose(found[:, 0], member.network.weight_map()[:, 0].numpy() * lesion, rtol=1e-4, atol=1e-6)
    # Occlusion is zero in windows without a lesion, here as well.
    covered = explain([member], spec, sample, Explanation(partial(occlusion, window=3, stride=3)), seed=0).maps
    assert (covered[:, 0][:, ndimage.maximum_filter(lesion, 5) == 0] == 0).all() and covered.any()
    rows = {row.attribution: row.pooled for row in pool(configuration, made, cohort, store, facts={}).explanations}
    assert np.isnan(rows["gradient"]["relevance_ap"].ceiling)


def test_t_test_refuses_images_that_are_not_masks(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """The t test is refused for images that are not masks, and the regression is not."""
    task = override(dataclasses.replace(lsm, explanations={}), "model", "mass_univariate")
    task = override(override(task, "model.minimum", 2), "volume_control", "direct_total_lesion_volume")
    for statistic, states in (("t", {"failed"}), ("regression", {"done"})):
        _, made, store = run(override(task, "model.statistic", statistic), cohort, tmp_path / statistic)
        trainings = [job.train for job in made]
        found = {"done" if store.get("train", one) else "failed" for one in trainings}
        assert found == states
    failure = store_failure(tmp_path / "t", task, cohort)
    assert "MassUnivariate reads the images of the cohort unchanged, but the adapter changes lesion" in failure


def store_failure(folder: Path, task: Task, cohort: Cohort) -> str:
    """The error of the first training of a failed run."""
    _, made, store = run(override(task, "model.statistic", "t"), cohort, folder)
    record = store.failure(made[0].train)
    assert record is not None
    return str(record.error)


def test_exact_maps_depend_on_the_attribution(lsm: Task, cohort: Cohort) -> None:
    """The exact map is weights times lesions, weights alone, or ``None``, depending on the attribution."""
    truth = dataclasses.replace(cohort.truth, weights={"s": {"roi1": 0.0, "roi2": 0.9, "roi3": 0.1}, "other": {}})
    masks = [truth.rois[name].load() for name in ("roi2", "roi3")]
    of_weights = exact_group_map(truth, "s", lsm.attributions["weights"])
    shares = np.array([of_weights[mask].sum() for mask in masks])
    assert shares / shares.sum() == pytest.approx([0.9, 0.1])
    products = exact_group_map(truth, "s", lsm.attributions["gradient"])
    loads = np.array([truth.counts.load()[mask].mean() for mask in masks]) * [0.9, 0.1]
    shares = np.array([products[mask].sum() for mask in masks])
    assert shares / shares.sum() == pytest.approx(loads / loads.sum())
    assert exact_group_map(truth, "s", partial(saliency)) is None
    assert exact_group_map(truth, "s", partial(occlusion, window=3, stride=2, baseline=1.0)) is None
    assert exact_group_map(dataclasses.replace(truth, linear=False), "s", lsm.attributions["gradient"]) is None


def test_target_mask_of_a_single_score_covers_all_regions(cohort: Cohort) -> None:
    """A single score covers all of its regions, and each of several scores its main region."""
    weights = {"roi1": 0.5, "roi2": 0.3, "roi3": 0.2}
    whole = np.any([cohort.truth.rois[name].load() for name in weights], axis=0)
    assert np.array_equal(target_mask(dataclasses.replace(cohort.truth, weights={"s": weights}), "s"), whole)
    two = dataclasses.replace(cohort.truth, weights={"s": weights, "t": weights})
    assert np.array_equal(target_mask(two, "s"), cohort.truth.rois["roi1"].load())


def test_ceiling_of_one_fold_uses_its_own_lesions(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """With one fold, the ceiling is computed from the lesions of its test subjects."""
    configuration, made, store = run(lsm, cohort, tmp_path)
    rows = {row.attribution: row.pooled for row in pool(configuration, made[:1], cohort, store, facts={}).explanations}
    assert rows["occlusion"]["relevance_ap"].n == len(made[0].split.test) < len(cohort.samples)
    counts = sum(one.masks["lesion"].load() for one in cohort.samples if one.id in made[0].split.test)
    expected = np.mean(
        [
            average_precision_score(
                target_mask(cohort.truth, name).ravel(),
                exact_group_map(cohort.truth, name, lsm.attributions["occlusion"], counts).ravel(),
            )
            for name in names(cohort)
        ]
    )
    assert rows["occlusion"]["relevance_ap"].ceiling == pytest.approx(expected)


def test_each_score_must_have_a_plausible_r2(executed: Executed, cohort: Cohort) -> None:
    """A mean over scores hides one that fails, so each score must pass the check of R²."""
    configuration, made, store = executed
    scores_of = [Score(value, value, value, 9) for value in (-0.77, 0.6, 0.5, -3.4)]
    row = _Aggregate(configuration, made, cohort, store, {})
    assert row._known([{"r2": one} for one in scores_of])
    assert not row._known([{"r2": one} for one in scores_of[:3]])


def test_new_metric_of_explanations_is_computed_alone(
    lsm: Task, executed: Executed, cohort: Cohort, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new metric of explanations is computed, and values of others on summed maps are read from the store."""
    configuration, made, store = executed
    task = dataclasses.replace(lsm, metrics={**lsm.metrics, "mass": lsm.metrics["roi_mass"]})
    task = override(task, "metrics.mass.sign", "absolute")
    other = dataclasses.replace(configuration, task=json.loads(json.dumps(describe(task))))
    assert other.id == configuration.id
    computed: list[list[str]] = []
    true_values = group_values

    def watched(*given: Any, **named: Any) -> Any:
        computed.append(list(given[-1]))
        return true_values(*given, **named)

    monkeypatch.setattr("harness.pipeline.group_maps.group_values", watched)
    rows = pool(other, made, cohort, store, facts={}).explanations
    assert computed == [["mass"]] * 3
    for before, after in zip(pooled.explanations, rows, strict=True):
        assert np.isfinite(after.pooled["mass"].value)
        assert {name: repr(after.pooled[name]) for name in before.pooled} == {
            name: repr(score) for name, score in before.pooled.items()
        }


def test_scores_of_sums_depend_on_the_folds(lsm: Task, executed: Executed, cohort: Cohort) -> None:
    """Another set of folds gives another value, and both are kept."""
    configuration, made, store = executed
    whole, part, again = (
        pool(configuration, some, cohort, store, facts={}).explanations[0].pooled["relevance_ap"]
        for some in (made, made[:2], made)
    )
    assert whole == again and whole != part and part.n < whole.n


def test_maps_and_sums_are_judged_as_asked(lsm: Task, cohort: Cohort, peak: partial[float], tmp_path: Path) -> None:
    """Labels that keep maps and sums are scored per sample or as a sum, as asked, from one set of maps."""
    both, sums = dataclasses.replace(lsm.explained["gradient"], keep="maps+sums"), lsm.explained["gradient"]
    task = dataclasses.replace(
        lsm,
        explanations={"each": both, "sum": dataclasses.replace(both, judged="sums"), "only": sums},
        metrics={
            **{label: one for label, one in lsm.metrics.items() if level_of(one) != "explanation"},
            "peak": peak,
        },
        explanation_objective="peak",
        hypotheses=(),
    )
    configuration, made, store = run(task, cohort, tmp_path)
    explain = {cell.label: cell.identity for cell in made[0].cells if cell.stage == "explain"}
    assert explain["each"] == explain["sum"] != explain["only"]
    each, whole, only = pool(configuration, made, cohort, store, facts={}).explanations
    assert set(each.values["peak"]) == {sample.subject for sample in cohort.samples} and not each.pooled
    assert set(whole.values["peak"]) == {f"block {number:02d}" for number in range(12)}
    assert (whole.values, repr(whole.pooled)) == (only.values, repr(only.pooled))
    assert metric_facts(task, ("explanation",))[0].level == "mixed"


@pytest.mark.parametrize(("keep", "expected"), [("maps", "subject"), ("sums", "pooled"), ("maps+sums", "subject")])
def test_level_of_metrics_follows_what_is_judged(lsm: Task, keep: str, expected: str) -> None:
    """Metrics of explanations are pooled if all explanations are scored as sums."""
    explanations = {"one": dataclasses.replace(lsm.explained["gradient"], keep=keep)}
    facts = metric_facts(dataclasses.replace(lsm, explanations=explanations), ("explanation", "subject"))
    assert {one.level for one in facts if one.name == "relevance_ap"} == {expected}
    assert {one.level for one in facts if one.name == "target_score"} == {"subject"}


def test_sums_of_pictures_are_over_blocks_of_subjects(study_run: Any, crowd: Cohort) -> None:
    """Each stored sum is that of the maps of some subjects, of which no other sum has a sample."""
    _, store, records = study_run
    found = [one for one in records.values() if one.stage == "explain" and one.label == "saliency"]
    assert len(found) == 3
    subjects = {sample.id: sample.subject for sample in crowd.samples}
    for record in found:
        sums = read_sums(store.artifact(record, "blocks.npz"))[:, 0]
        maps = read_maps(store, record)
        own = dict.fromkeys(subjects[name] for name in record.facts["samples"])
        blocks = np.array_split(np.array(list(own)), min(4, len(own)))
        assert len(maps) == 2 * len(own)
        expected = [sum(one for name, one in maps.items() if subjects[name] in block) for block in blocks]
        np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.fixture
def summed_pictures(
    study: Task, studied: Any, crowd: Cohort, crowd_folds: Folds, peak: partial[float], tmp_path: Path
) -> Pooled:
    """Pooled rows of pictures with two samples per subject and three channels, whose maps are scored as sums."""
    saliency_map = Explanation(partial(saliency), of="smile", keep="sums")
    shares = {f"share_{name}": partial(channel_share, channel=name) for name in ("red", "green", "blue")}
    task = dataclasses.replace(
        study,
        explanations={
            "saliency": saliency_map,
            "random": dataclasses.replace(saliency_map, attribution=partial(random_map)),
        },
        metrics={**study.metrics, "peak": peak, **shares},
        explanation_objective="peak",
    )
    configuration = studied(task)
    store = Store(tmp_path / "store")
    made = list(jobs(configuration, crowd, crowd_folds, (0,)))
    made += ensembles(made, crowd, crowd_folds.test)
    for job in made:
        execute(job, crowd, store, store.commit)
    return pool(configuration, made, crowd, store, facts={})


def test_sums_of_pictures_are_scored(summed_pictures: Pooled) -> None:
    """Sums of pictures have metrics with intervals; without a known truth, metrics that need it have no value."""
    assert [row.attribution for row in summed_pictures.explanations] == ["saliency", "random"]
    for row in summed_pictures.explanations:
        assert row.complete and row.pooled["peak"].value > 0 and row.pooled["peak"].n == 12
        assert np.isfinite([row.pooled["peak"].low, row.pooled["peak"].high]).all()
        assert np.isnan(row.pooled["relevance_ap"].value)


def test_channels_of_sums_have_their_names(summed_pictures: Pooled) -> None:
    """Metrics of one channel find it in a sum of three, and the shares of all channels add up to one."""
    for row in summed_pictures.explanations:
        shares = [row.pooled[f"share_{name}"].value for name in ("red", "green", "blue")]
        assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1)


def test_counts_are_of_the_mask_that_has_the_truth(cohort: Cohort) -> None:
    """Counts over samples are those of the named mask, which may have any name."""
    assert cohort.truth is not None and cohort.truth.mask == "lesion"
    renamed = tuple(dataclasses.replace(one, masks={"tumour": one.masks["lesion"]}) for one in cohort.samples)
    counts = mask_counts(dataclasses.replace(cohort, samples=renamed), "tumour")
    np.testing.assert_allclose(counts, cohort.truth.counts.load(), atol=1e-6)


def test_maps_on_different_grids_are_not_summed(lsm: Task, cohort: Cohort, tmp_path: Path) -> None:
    """If one sample has another affine, sums are refused with the names of two samples, and maps are not."""
    *others, last = cohort.samples
    moved = dataclasses.replace(last, affine=last.grid.affine + np.diag([0.5, 0, 0, 0]))
    task = override(lsm, "explanations.gradient.keep", "maps")
    _, made, store = run(task, dataclasses.replace(cohort, samples=(*others, moved)), tmp_path)
    cells = {cell.label: cell.identity for cell in made[0].cells if cell.stage == "explain"}
    failure = store.failure(cells["weights"])
    assert failure is not None and store.get("explain", cells["gradient"]) is not None
    assert f"one grid for all samples, but sub-01 and {last.id} have different affines" in failure.error
