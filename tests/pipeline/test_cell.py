"""The identity of a cell changes exactly with what determines its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.adapters.axial_slices import AxialSlices
from harness.core.explanations import Explanation
from harness.core.overrides import override
from harness.core.registry import METRICS
from harness.core.targets import Target
from harness.core.task import Configuration, Task
from harness.core.types import Array, Cohort, Folds, NetworkSpec, Split
from harness.metrics import segmentation
from harness.metrics.register import metric
from harness.pipeline import cell as module
from harness.pipeline.cell import (
    ENSEMBLE,
    Cell,
    Job,
    cells_of,
    digest,
    ensembles,
    explanations_of,
    is_done,
    jobs,
    missing,
    records_of,
)
from harness.storage.store import CellRecord, Store, write_json, write_record
from harness.sweep.catalogue import load_task

SPLIT = Split(("sub-01", "sub-02"), ("sub-03",), ("sub-04",))

Named = dict[tuple[str, str], Cell]


@pytest.fixture
def cells(configured: Callable[..., Configuration], toy_cohort: Cohort) -> Callable[..., Named]:
    """A function that makes the cells of a training by (stage, label)."""

    def named(
        task: Task,
        *,
        cohort: Cohort = toy_cohort,
        split: Split = SPLIT,
        fold: int = 0,
        seed: int = 0,
        **changes: Any,
    ) -> Named:
        configuration = dataclasses.replace(configured(task, cohort), **changes)
        return by_stage(cells_of(configuration, cohort, split, fold, seed))

    return named


def by_stage(found: tuple[Cell, ...]) -> Named:
    """Cells by (stage, label)."""
    return {(cell.stage, cell.label): cell for cell in found}


def edited(cohort: Cohort, number: int, **changes: Any) -> Cohort:
    """The cohort with one sample changed."""
    samples = list(cohort.samples)
    samples[number] = dataclasses.replace(samples[number], **changes)
    return dataclasses.replace(cohort, samples=tuple(samples))


def metrics_of(found: Named) -> dict[tuple[str, str, str], str]:
    """Identities of metric values by (stage, label, metric)."""
    return {(*key, label): identity for key, cell in found.items() for label, identity in cell.metrics}


ALL = {
    ("train", ""),
    ("predict", ""),
    ("score", ""),
    *((stage, label) for stage in ("explain", "score") for label in ("random", "gradients")),
}


def changed(one: Named, two: Named) -> set[tuple[str, str]]:
    """Keys of the cells whose identity differs."""
    assert one.keys() == two.keys()
    return {key for key in one if one[key].identity != two[key].identity}


def test_cells_of_a_training(cells: Callable[..., Named], toy_task: Task) -> None:
    """A training has predictions, and each attribution an explanation, with values; each cell names its parents."""
    found = cells(toy_task)
    assert set(found) == ALL
    assert len({cell.identity for cell in found.values()}) == len(ALL)
    train, predict = found["train", ""].identity, found["predict", ""].identity
    assert {key: cell.parents for key, cell in found.items()} == {
        ("train", ""): (),
        ("predict", ""): (train,),
        ("score", ""): (predict,),
        ("explain", "random"): (train,),
        ("score", "random"): (found["explain", "random"].identity, predict),
        ("explain", "gradients"): (train,),
        ("score", "gradients"): (found["explain", "gradients"].identity, predict),
    }


def test_group_of_values_is_the_evaluated_cell(cells: Callable[..., Named], toy_task: Task) -> None:
    """The group of a score cell is the cell that it evaluates; other cells have none."""
    found = cells(toy_task)
    assert found["score", ""].group == found["predict", ""].identity
    assert found["score", "random"].group == found["explain", "random"].identity
    assert {found[key].group for key in ALL if key[0] != "score"} == {""}


def test_parents_come_before_their_children(studied: Any, study: Task, crowd: Cohort, crowd_folds: Folds) -> None:
    """Parents come before their children, also with chosen samples and probes."""
    seen: set[str] = set()
    found = cells_of(studied(study), crowd, crowd_folds.folds[0], 0, 0)
    for cell in found:
        assert seen.issuperset(cell.parents)
        seen.add(cell.identity)
    assert {cell.stage for cell in found} == {"train", "predict", "explain", "score", "probe"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe.lr", 0.5),
        ("recipe.epochs", 3),
        ("recipe.threads", 2),
        ("model.width", 3),
        ("model", "basic_unet"),
        ("sequences", "FLAIR"),
    ],
)
def test_options_of_a_training_change_all_cells(
    cells: Callable[..., Named], toy_task: Task, key: str, value: Any
) -> None:
    """Changing recipe, model or adapter changes all cells."""
    assert changed(cells(toy_task), cells(override(toy_task, key, value))) == ALL


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"split": Split(("sub-01",), ("sub-02", "sub-03"), ("sub-04",))},
        {"split": Split(("sub-02", "sub-01"), ("sub-03",), ("sub-04",))},
    ],
)
def test_seed_and_samples_of_the_fold_change_all_cells(
    cells: Callable[..., Named], toy_task: Task, change: Any
) -> None:
    """Changing the seed, or the samples of the fold or their order, changes all cells."""
    assert changed(cells(toy_task), cells(toy_task, **change)) == ALL


def test_test_samples_do_not_change_the_training(cells: Callable[..., Named], toy_task: Task) -> None:
    """The identity of a training does not depend on the test samples."""
    other = cells(toy_task, split=Split(SPLIT.train, SPLIT.validation, ()))
    assert changed(cells(toy_task), other) == ALL - {("train", "")}


def test_samples_outside_the_fold_change_nothing(
    cells: Callable[..., Named], toy_task: Task, toy_cohort: Cohort
) -> None:
    """A subject outside the fold changes no cell."""
    more = (*toy_cohort.samples, dataclasses.replace(toy_cohort.samples[0], id="sub-09", subject="sub-09"))
    assert changed(cells(toy_task), cells(toy_task, cohort=dataclasses.replace(toy_cohort, samples=more))) == set()


@pytest.mark.parametrize(
    ("number", "what", "name", "stages"),
    [
        (0, "images", "T2w", {"train", "predict", "explain", "score"}),
        (2, "images", "T2w", {"train", "predict", "explain", "score"}),
        (3, "images", "T2w", {"predict", "explain", "score"}),
        (0, "images", "FLAIR", set()),
        (0, "masks", "target", {"train", "predict", "explain", "score"}),
        (3, "masks", "target", {"score"}),
        (3, "masks", "brain", {"score"}),
        (3, "masks", "regions", {"score"}),
        (0, "masks", "brain", set()),
    ],
)
def test_images_and_masks_change_the_cells_that_read_them(
    cells: Callable[..., Named],
    toy_task: Task,
    toy_cohort: Cohort,
    in_memory: Callable[..., Any],
    number: int,
    what: str,
    name: str,
    stages: set[str],
) -> None:
    """Editing an image or mask of a sample changes exactly the cells that read it."""
    images: Mapping[str, Any] = getattr(toy_cohort.samples[number], what)
    cohort = edited(toy_cohort, number, **{what: {**images, name: in_memory(images[name].load() * 0)}})
    found = changed(cells(toy_task), cells(toy_task, cohort=cohort))
    assert {key[0] for key in found} == stages
    assert found == {key for key in ALL if key[0] in stages}


@pytest.mark.parametrize(
    ("number", "change", "stages"),
    [
        (0, {"spacing_mm": (1.0, 1.5, 2.0)}, {"train", "predict", "explain", "score"}),
        (3, {"spacing_mm": (1.0, 1.5, 2.0)}, {"explain", "score"}),
        (3, {"affine": np.eye(4)}, {"explain", "score"}),
    ],
)
def test_grid_changes_the_cells_that_read_it(
    cells: Callable[..., Named],
    toy_task: Task,
    toy_cohort: Cohort,
    number: int,
    change: dict[str, Any],
    stages: set[str],
) -> None:
    """The grid of a training sample changes all cells; that of a test sample its maps and values."""
    found = changed(cells(toy_task), cells(toy_task, cohort=edited(toy_cohort, number, **change)))
    assert {key[0] for key in found} == stages


def test_voxel_size_changes_all_values_and_the_affine_only_those_of_maps(
    cells: Callable[..., Named], toy_task: Task, toy_cohort: Cohort
) -> None:
    """Metrics of predictions read voxel sizes, but no affine."""
    one = cells(toy_task)
    size = cells(toy_task, cohort=edited(toy_cohort, 3, spacing_mm=(1.0, 1.5, 2.0)))
    affine = cells(toy_task, cohort=edited(toy_cohort, 3, affine=np.eye(4)))
    assert ("score", "") in changed(one, size) and ("score", "") not in changed(one, affine)


@pytest.mark.parametrize(("number", "stages"), [(0, set()), (2, set()), (3, {"score"})])
def test_clean_values_change_values_alone(
    cells: Callable[..., Named], toy_task: Task, toy_cohort: Cohort, number: int, stages: set[str]
) -> None:
    """Clean values are read by metrics of the sample's prediction, and by no training."""
    found = changed(cells(toy_task), cells(toy_task, cohort=edited(toy_cohort, number, clean={"target": 1.0})))
    assert {key[0] for key in found} == stages


def test_validation_samples_change_a_training_only_if_it_selects_an_epoch(
    cells: Callable[..., Named], toy_task: Task, toy_cohort: Cohort, in_memory: Callable[..., Any]
) -> None:
    """With ``select=last``, neither the validation samples of a fold nor their data change a cell."""
    images = toy_cohort.samples[2].images
    cohort = edited(toy_cohort, 2, images={**images, "T2w": in_memory(images["T2w"].load() * 0)})
    split = dataclasses.replace(SPLIT, validation=())
    for select, expected in (("mean_iou", ALL), ("last", set())):
        task = override(toy_task, "recipe.select", select)
        assert changed(cells(task), cells(task, cohort=cohort)) == expected
        assert changed(cells(task), cells(task, split=split)) == expected


def test_spec_of_the_network_changes_all_cells(
    cells: Callable[..., Named], toy_task: Task, toy_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training follows the spec of its network, which the adapter may derive from samples outside the fold."""
    spec = AxialSlices.spec
    more = (*toy_cohort.samples, dataclasses.replace(toy_cohort.samples[0], id="sub-09", subject="sub-09"))

    def by_count(self: AxialSlices, cohort: Cohort) -> NetworkSpec:
        found = spec(self, cohort)
        shape = (len(cohort.samples), 16)
        return dataclasses.replace(found, inputs=(dataclasses.replace(found.inputs[0], shape=shape),))

    monkeypatch.setattr(AxialSlices, "spec", by_count)
    assert changed(cells(toy_task), cells(toy_task, cohort=dataclasses.replace(toy_cohort, samples=more))) == ALL


def test_facts_of_targets_change_only_trainings_of_oracles(
    configured: Callable[..., Configuration], toy_cohort: Cohort, in_memory: Callable[..., Any]
) -> None:
    """The size of simulated regions is part of the training of an oracle, and of no other model."""
    lesion = in_memory(np.ones((4, 4, 4), np.float32))
    samples = [
        dataclasses.replace(one, images={}, masks={"lesion": lesion}, targets={"score_1": 1.0})
        for one in toy_cohort.samples
    ]
    cohort = dataclasses.replace(toy_cohort, samples=tuple(samples), targets=(Target("score_1", "number"),))

    def training(model: str, size: int) -> str:
        task = override(override(load_task("lsm"), "model", model), "targets.scores.size", size)
        return cells_of(configured(task, cohort), cohort, SPLIT, 0, 0)[0].identity

    assert training("matched_filter", 3) != training("matched_filter", 5)
    assert training("ridge", 3) == training("ridge", 5)


def test_version_of_the_task_changes_all_cells(cells: Callable[..., Named], toy_task: Task) -> None:
    """Another version of the task changes all cells."""
    assert changed(cells(toy_task), cells(dataclasses.replace(toy_task, version=2))) == ALL


def test_attribution_option_changes_its_explanation_and_score(cells: Callable[..., Named], toy_task: Task) -> None:
    """An option of an attribution changes only its explanation and score."""
    other = override(toy_task, "attributions.gradients.steps", 3)
    assert changed(cells(toy_task), cells(other)) == {("explain", "gradients"), ("score", "gradients")}


def test_metric_option_changes_its_own_values_alone(cells: Callable[..., Named], toy_task: Task) -> None:
    """An option of a metric changes only the values of that metric."""
    before, after = cells(toy_task), cells(override(toy_task, "metrics.sensitivity.tolerance_mm", 1.0))
    assert changed(before, after) == {("score", "")}
    one, two = metrics_of(before), metrics_of(after)
    assert {key for key in one if one[key] != two[key]} == {("score", "", "sensitivity")}


def test_new_metric_adds_one_identity_and_changes_no_other(cells: Callable[..., Named], toy_task: Task) -> None:
    """A new metric adds one identity and changes no other."""
    more = dataclasses.replace(toy_task, metrics={**toy_task.metrics, "jaccard": partial(segmentation.auc)})
    before, after = cells(toy_task), cells(more)
    assert changed(before, after) == {("score", "")}
    one, two = metrics_of(before), metrics_of(after)
    assert set(two) - set(one) == {("score", "", "jaccard")}
    assert {key: two[key] for key in one} == one


def test_new_pooled_metric_changes_no_cell(cells: Callable[..., Named], toy_task: Task, epvs: Task) -> None:
    """A new pooled metric changes no cell, since pooled values follow from those of samples."""
    more = dataclasses.replace(toy_task, metrics={**toy_task.metrics, "bias": epvs.metrics["count_bias"]})
    assert changed(cells(toy_task), cells(more)) == set()


def test_regional_metric_changes_its_own_values_alone(cells: Callable[..., Named], toy_task: Task) -> None:
    """Computing a metric per region changes only the values of that metric."""
    before, after = cells(toy_task), cells(dataclasses.replace(toy_task, regional=("dice", "sensitivity")))
    assert changed(before, after) == {("score", "")}
    one, two = metrics_of(before), metrics_of(after)
    assert {key for key in one if one[key] != two[key]} == {("score", "", "sensitivity")}


def test_label_of_a_metric_changes_no_identity(cells: Callable[..., Named], toy_task: Task) -> None:
    """The label of a metric is not part of its identity."""
    more = dataclasses.replace(toy_task, metrics={**toy_task.metrics, "overlap": toy_task.metrics["true_count"]})
    found = metrics_of(cells(more))
    assert found["score", "", "overlap"] == found["score", "", "true_count"]


def test_another_attribution_changes_no_other_cell(cells: Callable[..., Named], toy_task: Task) -> None:
    """A new attribution adds two cells and changes no other."""
    more = cells(override(toy_task, "attributions.saliency", "saliency"))
    assert set(more) - ALL == {("explain", "saliency"), ("score", "saliency")}
    assert changed(cells(toy_task), {key: more[key] for key in ALL}) == set()


def test_presentation_changes_no_identity(cells: Callable[..., Named], toy_task: Task) -> None:
    """Question, axes, columns, shown metrics, objective and profile are part of no identity."""
    other = dataclasses.replace(
        toy_task,
        question="Why?",
        axes={**toy_task.axes, "inputs": "adapter.channels"},
        columns=("model",),
        shown=("dice",),
        objective="sensitivity",
        phantom_subjects=99,
    )
    found = cells(other, axes={"sequences": "another label"}, profile="paper", fold=7)
    assert changed(cells(toy_task), found) == set()


def test_label_of_an_attribution_changes_no_identity(cells: Callable[..., Named], toy_task: Task) -> None:
    """The label of an attribution is not part of its identity."""
    other = cells(override(toy_task, "attributions.chance", "random"))
    for stage in ("explain", "score"):
        assert other[stage, "chance"].identity == other[stage, "random"].identity


@pytest.mark.parametrize(
    ("field", "value", "again"),
    [("of", "target", True), ("combine", "sum", True), ("keep", "maps+sums", True), ("at_most", 0, False)],
)
def test_fields_of_an_explanation_are_part_of_its_identity(
    cells: Callable[..., Named], toy_task: Task, field: str, value: Any, again: bool
) -> None:
    """Changing a field of an explanation changes that explanation, unless the value is the default."""
    other = cells(override(toy_task, f"explanations.gradients.{field}", value))
    expected = {("explain", "gradients"), ("score", "gradients")} if again else set()
    assert changed(cells(toy_task), other) == expected


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("model", {"train", "predict", "explain", "score"}),
        ("recipe", {"train", "predict", "explain", "score"}),
        ("attribution", {"explain", "score"}),
        ("metric", {"score"}),
    ],
)
def test_code_changes_its_stage_and_those_below(
    cells: Callable[..., Named], toy_task: Task, monkeypatch: pytest.MonkeyPatch, kind: str, stages: set[str]
) -> None:
    """Editing a component changes the cells that run it and those below, but not their bodies."""
    part = {
        "model": toy_task.model,
        "recipe": toy_task.recipe,
        "attribution": toy_task.attributions["gradients"],
        "metric": toy_task.metrics["sensitivity"],
    }[kind]
    before, true_digest = cells(toy_task), module.digest_of
    monkeypatch.setattr(
        module, "digest_of", lambda one, registry: true_digest(one, registry) + "edited" * (one.func is part.func)
    )
    after = cells(toy_task)
    found = changed(before, after)
    assert {key[0] for key in found} == stages
    if kind in ("attribution", "metric"):
        assert {key[1] for key in found} == {"gradients" if kind == "attribution" else ""}
    assert [cell.body for cell in before.values()] == [cell.body for cell in after.values()]


def likely_relevance(explanation: Array, probability: Array) -> float:
    """Relevance weighted by the predicted probability."""
    return float((explanation * probability).sum())


@pytest.fixture
def likely() -> Iterator[Any]:
    """A metric of explanations that reads the prediction."""
    register = metric("likely_relevance", source="", direction="higher", range=(0, np.inf), level="explanation")
    yield partial(register(likely_relevance))
    del METRICS._entries["likely_relevance"]


def test_code_of_predictions_changes_values_of_maps_that_read_them(
    cells: Callable[..., Named], toy_task: Task, monkeypatch: pytest.MonkeyPatch, likely: Any
) -> None:
    """Editing the predict stage changes metrics of predictions, and those of maps that read the prediction."""
    task = dataclasses.replace(toy_task, metrics={**toy_task.metrics, "likely": likely})
    before, true_digest = cells(task), module.digest
    monkeypatch.setattr(
        module, "digest", lambda stage, *more: true_digest(stage, *more) + "edited" * (stage == "predict")
    )
    one, two = metrics_of(before), metrics_of(cells(task))
    assert {key for key in one if key[1] and one[key] != two[key]} == {
        ("score", "random", "likely"),
        ("score", "gradients", "likely"),
    }
    assert all(one[key] != two[key] for key in one if not key[1])


def test_digest_of_explanations_is_that_of_their_method(toy_task: Task) -> None:
    """Methods in different modules have different digests."""
    assert digest("explain", toy_task, "random") != digest("explain", toy_task, "gradients")


def test_score_cells_have_no_body(cells: Callable[..., Named], toy_task: Task) -> None:
    """Score cells have no body, so that values of older code are computed again."""
    assert {key[0] for key, cell in cells(toy_task).items() if not cell.body} == {"score"}


def test_jobs_are_folds_times_seeds(configured: Any, toy_task: Task, toy_cohort: Cohort) -> None:
    """There is a job for every fold and seed, or only for the folds selected."""
    folds = Folds((SPLIT, Split(("sub-04", "sub-02"), ("sub-03",), ("sub-01",))))
    found = list(jobs(configured(toy_task), toy_cohort, folds, (0, 5)))
    assert [(one.fold, one.seed) for one in found] == [(0, 0), (0, 5), (1, 0), (1, 5)]
    assert len({one.train for one in found}) == 4
    assert [one.fold for one in jobs(configured(toy_task), toy_cohort, folds, (0,), only_folds=(1,))] == [1]


@pytest.mark.parametrize(("test", "evaluated"), [(("sub-04",), ("sub-04",)), ((), ("sub-03",))])
def test_a_fold_without_a_test_set_is_evaluated_on_its_validation_samples(
    configured: Any, toy_task: Task, toy_cohort: Cohort, test: tuple[str, ...], evaluated: tuple[str, ...]
) -> None:
    """A fold without test samples is evaluated on its validation samples."""
    folds = Folds((dataclasses.replace(SPLIT, test=test),))
    assert next(jobs(configured(toy_task), toy_cohort, folds, (0,))).evaluated == evaluated


@pytest.fixture
def job(configured: Any, toy_task: Task, toy_cohort: Cohort) -> Job:
    """A job of the toy task."""
    return next(jobs(configured(toy_task), toy_cohort, Folds((SPLIT,)), (0,)))


@pytest.fixture
def hold(tmp_path: Path) -> Callable[..., Store]:
    """A function that puts cells into a store, with values of their metrics."""

    def put(*cells: Cell) -> Store:
        store = Store(tmp_path / "store")
        for number, cell in enumerate(cells):
            folder = tmp_path / f"work-{number}-{cell.identity}"
            folder.mkdir(exist_ok=True)
            if cell.metrics:
                write_json(folder / "values.json", {identity: {"label": label} for label, identity in cell.metrics})
            record = CellRecord(
                cell.identity, cell.stage, "done", cell.configuration, cell.fold, cell.seed, cell.label,
                group=cell.group, metrics=dict(cell.metrics),
            )  # fmt: skip
            write_record(folder, record)
            store.commit(folder)
        return store

    return put


def test_missing_cells_are_those_not_in_the_store(job: Job, hold: Callable[..., Store]) -> None:
    """``missing`` returns the cells that are not in the store, or ``None`` if all are done."""
    rest = missing(job, hold(job.cells[0]))
    assert isinstance(rest, Job) and rest.cells == job.cells[1:]
    assert missing(job, hold(*job.cells)) is None


def test_missing_narrows_values_to_metrics_that_the_store_lacks(job: Job, hold: Callable[..., Store]) -> None:
    """If one metric of a score cell is missing, only that metric is computed, under another identity."""
    whole = job.cells[2]
    assert whole.stage == "score" and len(whole.metrics) == 4
    held = whole.only(whole.metrics[:3])
    rest = missing(job, hold(*job.cells[:2], held, *job.cells[3:]))
    assert rest is not None and len(rest.cells) == 1
    assert rest.cells[0].metrics == whole.metrics[3:]
    assert rest.cells[0].parents == whole.parents
    assert len({rest.cells[0].identity, held.identity, whole.identity}) == 3


def test_values_are_done_when_several_records_hold_them_together(job: Job, hold: Callable[..., Store]) -> None:
    """A score cell is done if several records together contain all of its metrics."""
    whole = job.cells[2]
    store = hold(whole.only(whole.metrics[:3]))
    assert not is_done(whole, store)
    store = hold(whole.only(whole.metrics[3:]))
    assert is_done(whole, store) and missing(job.only([whole]), store) is None
    assert [set(record.metrics.values()) for record in records_of(whole, store)].count(
        {identity for _, identity in whole.metrics[3:]}
    ) == 1
    assert len(records_of(whole, store)) == 2


def test_records_of_a_training_are_its_one_record(job: Job, hold: Callable[..., Store]) -> None:
    """A cell without metrics has at most one record."""
    store = hold(job.cells[0])
    assert [record.identity for record in records_of(job.cells[0], store)] == [job.train]
    assert records_of(job.cells[1], store) == ()


def test_row_is_not_part_of_the_identity(configured: Any, toy_task: Task, toy_cohort: Cohort) -> None:
    """The row in which a cell is shown is not part of its identity."""
    one = cells_of(configured(toy_task), toy_cohort, SPLIT, 0, 0)
    two = cells_of(configured(toy_task), toy_cohort, SPLIT, 0, 0, row="elsewhere")
    assert [cell.identity for cell in one] == [cell.identity for cell in two]
    assert {cell.configuration for cell in two} == {"elsewhere"}


class TestSeveralTargets:
    """Cells of a study of pictures: covariates, ensembles and chosen samples."""

    @pytest.fixture
    def fold(self, crowd_folds: Folds) -> Split:
        """The first fold, which is evaluated on its validation samples."""
        return crowd_folds.folds[0]

    @pytest.fixture
    def named(self, studied: Any, study: Task, fold: Split) -> Callable[..., Named]:
        """A function that makes the cells of the first fold on a cohort by (stage, label)."""
        return lambda cohort: by_stage(cells_of(studied(study, cohort), cohort, fold, 0, 0))

    @pytest.mark.parametrize("side", ["train", "validation", "test"])
    @pytest.mark.parametrize(
        ("what", "name", "tested"),
        [
            ("covariates", "height", {"train", "predict", "explain", "score", "probe"}),
            ("targets", "age", {"train", "predict", "explain", "score", "probe"}),
            ("weights", "smile", {"train", "predict", "explain", "score", "probe"}),
            ("covariates", "hair", set()),
        ],
    )
    def test_values_of_a_sample_change_the_cells_that_read_them(
        self,
        named: Callable[..., Named],
        crowd: Cohort,
        crowd_folds: Folds,
        fold: Split,
        side: str,
        what: str,
        name: str,
        tested: set[str],
    ) -> None:
        """Values that a fold reads change its cells; unused covariates and the fixed test set do not."""
        ids = {"train": fold.train, "validation": fold.validation, "test": crowd_folds.test}[side]
        number = [one.id for one in crowd.samples].index(ids[0])
        values = getattr(crowd.samples[number], what)
        other = edited(crowd, number, **{what: {**values, name: 1.75}})
        found = changed(named(crowd), named(other))
        assert {key[0] for key in found} == (set() if side == "test" else tested)

    def test_target_of_a_test_sample_changes_its_values_and_no_training(
        self, studied: Any, study: Task, crowd: Cohort, fold: Split
    ) -> None:
        """A changed target of a test sample changes values and chosen samples, but no training or prediction."""
        split = Split(fold.train, fold.validation[2:], fold.validation[:2])

        def named(cohort: Cohort) -> Named:
            return by_stage(cells_of(studied(study, cohort), cohort, split, 0, 0))

        number = [one.id for one in crowd.samples].index(split.test[0])
        other = edited(crowd, number, targets={**crowd.samples[number].targets, "age": 99.0})
        found = changed(named(crowd), named(other))
        # Samples are chosen by predictions and true values.
        expected = {key for key in named(crowd) if key[0] in ("score", "probe")} | {("explain", "smiles")}
        assert found == expected

    def test_covariate_of_a_test_sample_changes_its_prediction_and_no_training(
        self, studied: Any, study: Task, crowd: Cohort, fold: Split
    ) -> None:
        """A changed covariate of a test sample changes all cells except the training."""
        split = Split(fold.train, fold.validation[2:], fold.validation[:2])

        def named(cohort: Cohort) -> Named:
            return by_stage(cells_of(studied(study, cohort), cohort, split, 0, 0))

        number = [one.id for one in crowd.samples].index(split.test[0])
        other = edited(crowd, number, covariates={**crowd.samples[number].covariates, "height": 2.0})
        assert changed(named(crowd), named(other)) == set(named(crowd)) - {("train", "")}

    def test_explanations_that_use_predictions_have_them_as_parent(
        self, named: Callable[..., Named], crowd: Cohort
    ) -> None:
        """Explanations of chosen samples or of the predicted class have the predictions as last parent, others not."""
        found = named(crowd)
        train, predict = found["train", ""].identity, found["predict", ""].identity
        assert {found["explain", label].parents for label in ("smiles", "saliency", "random")} == {(train, predict)}
        assert found["explain", "gate"].parents == (train,)

    def test_explanation_of_one_class_uses_no_predictions(
        self, studied: Any, study: Task, crowd: Cohort, fold: Split
    ) -> None:
        """The logit of a given class is explained without predictions, that of the predicted class with them."""
        for of, count in (("hair:red", 1), ("hair", 2), ("age", 1)):
            found = by_stage(cells_of(studied(override(study, "explanations.saliency.of", of)), crowd, fold, 0, 0))
            assert len(found["explain", "saliency"].parents) == count

    @pytest.mark.parametrize("field", [{"at_most": 2}, {"samples": "true_positive"}])
    def test_the_rule_that_chooses_is_part_of_the_identity(
        self, studied: Any, study: Task, crowd: Cohort, fold: Split, field: dict[str, Any]
    ) -> None:
        """The rule for choosing samples is part of the identity of its explanation."""
        chosen = study.explanations["smiles"]
        assert isinstance(chosen, Explanation)
        explanations = {**study.explanations, "smiles": dataclasses.replace(chosen, **field)}
        one, two = (
            by_stage(cells_of(studied(task), crowd, fold, 0, 0))
            for task in (study, dataclasses.replace(study, explanations=explanations))
        )
        assert changed(one, two) == {(stage, "smiles") for stage in ("explain", "score", "probe")}

    def test_probes_need_maps_predictions_and_networks(self, named: Callable[..., Named], crowd: Cohort) -> None:
        """A probe has the explanation, the predictions and the training as its parents."""
        found = named(crowd)
        assert found["probe", "gate"].parents == tuple(
            found[key].identity for key in (("explain", "gate"), ("predict", ""), ("train", ""))
        )
        assert [label for label, _ in found["probe", "gate"].metrics] == [
            "fall_when_masked",
            "score_when_masked",
            "inverted_logits",
            "random_inverted_logits",
            "masked_means",
        ]

    def test_sums_have_no_cells_of_values(self, studied: Any, study: Task, crowd: Cohort, fold: Split) -> None:
        """An explanation that keeps only sums has no score or probe cells."""
        task = override(study, "explanations.gate.keep", "sums")
        found = by_stage(cells_of(studied(task), crowd, fold, 0, 0))
        assert {key[0] for key in found if key[1] == "gate"} == {"explain"}

    @pytest.mark.parametrize(
        ("judged", "stages"), [("maps", {"explain", "score", "probe"}), ("sums", {"explain", "probe"})]
    )
    def test_what_is_judged_changes_no_explanation(
        self, studied: Any, study: Task, crowd: Cohort, fold: Split, judged: str, stages: set[str]
    ) -> None:
        """Maps and sums are kept once, however they are judged; sums have no values per sample."""
        kept = override(study, "explanations.gate.keep", "maps+sums")
        one, two = (
            by_stage(cells_of(studied(task), crowd, fold, 0, 0))
            for task in (kept, override(kept, "explanations.gate.judged", judged))
        )
        assert {key[0] for key in two if key[1] == "gate"} == stages
        assert all(one[key].identity == cell.identity for key, cell in two.items())

    def test_what_is_judged_is_kept(self, studied: Any, study: Task, crowd: Cohort, fold: Split) -> None:
        """An explanation that is judged as a sum is the one that keeps maps and sums."""
        one, two = (
            by_stage(cells_of(studied(override(study, f"explanations.gate.{key}", value)), crowd, fold, 0, 0))
            for key, value in (("judged", "sums"), ("keep", "maps+sums"))
        )
        assert one["explain", "gate"].identity == two["explain", "gate"].identity

    def test_ensembles_need_all_trainings(self, studied: Any, study: Task, crowd: Cohort, crowd_folds: Folds) -> None:
        """Each seed has one ensemble on the fixed test set, whose parents are the trainings of all folds."""
        trained = list(jobs(studied(study), crowd, crowd_folds, (0, 7)))
        found = list(ensembles(trained, crowd, crowd_folds.test))
        assert [(one.fold, one.seed, one.is_ensemble) for one in found] == [(ENSEMBLE, 0, True), (ENSEMBLE, 7, True)]
        for one in found:
            own = tuple(job.train for job in trained if job.seed == one.seed)
            cells = by_stage(one.cells)
            assert one.trainings == own and len(own) == 2
            assert one.evaluated == crowd_folds.test
            assert cells["predict", ""].parents == own
            assert cells["explain", "saliency"].parents == (*own, cells["predict", ""].identity)
            assert cells["explain", "gate"].parents == own
            assert cells["probe", "saliency"].parents[2:] == own
            assert ("train", "") not in cells

    def test_an_ensemble_follows_each_of_its_trainings(
        self, studied: Any, study: Task, crowd: Cohort, crowd_folds: Folds
    ) -> None:
        """A changed training sample of one fold changes all cells of the ensemble."""
        number = [one.id for one in crowd.samples].index(crowd_folds.folds[0].train[0])
        other = edited(crowd, number, targets={**crowd.samples[number].targets, "age": 99.0})
        one, two = (
            by_stage(next(ensembles(list(jobs(studied(study, cohort), cohort, crowd_folds, (0,))), cohort,
                                    crowd_folds.test)).cells)
            for cohort in (crowd, other)
        )  # fmt: skip
        assert changed(one, two) == set(one)

    def test_without_a_fixed_test_set_there_is_no_ensemble(
        self, studied: Any, study: Task, crowd: Cohort, crowd_folds: Folds
    ) -> None:
        """Without a fixed test set there is no ensemble."""
        assert list(ensembles(list(jobs(studied(study), crowd, crowd_folds, (0,))), crowd, ())) == []


def test_unsupported_explanations_are_left_out(study: Task) -> None:
    """Explanations that the model does not support are left out, and the others keep their order."""
    task = override(study, "attributions.own", "weights")
    assert "own" in task.explanations
    assert explanations_of(task) == ["saliency", "smiles", "gate", "random"]
