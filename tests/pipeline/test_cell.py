"""Cells: their identity changes with exactly what determines their result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from harness.core.task import Configuration, Task, override
from harness.core.types import Split
from harness.pipeline import cell as module
from harness.pipeline.cell import Cell, Job, cells_of, digest, jobs, missing
from harness.storage.store import CellRecord, Store

SPLIT = Split(("sub-01", "sub-02"), ("sub-03",), ("sub-04",))

Named = dict[tuple[str, str], Cell]


@pytest.fixture
def cells(configured: Callable[[Task], Configuration]) -> Callable[..., Named]:
    """(stage, label) → cell of a task's training."""

    def named(task: Task, *, split: Split = SPLIT, fold: int = 0, seed: int = 0, **changes: Any) -> Named:
        configuration = dataclasses.replace(configured(task), **changes)
        found = cells_of(configuration, split, fold, seed)
        return {(cell.stage, cell.label): cell for cell in found}

    return named


ALL = {
    ("train", ""),
    ("score", ""),
    *((stage, label) for stage in ("explain", "score") for label in ("random", "gradients")),
}


def changed(one: Named, two: Named) -> set[tuple[str, str]]:
    """Cells whose identity differs."""
    assert one.keys() == two.keys()
    return {key for key in one if one[key].identity != two[key].identity}


def test_cells_of_a_training(cells: Callable[..., Named], toy_task: Task) -> None:
    """One training, its score, and one explanation with its score per attribution; each names its parent."""
    found = cells(toy_task)
    assert set(found) == ALL
    assert len({cell.identity for cell in found.values()}) == len(ALL)
    train = found["train", ""].identity
    parents = {key: cell.parent for key, cell in found.items()}
    assert parents == {
        ("train", ""): "",
        ("score", ""): train,
        ("explain", "random"): train,
        ("score", "random"): found["explain", "random"].identity,
        ("explain", "gradients"): train,
        ("score", "gradients"): found["explain", "gradients"].identity,
    }


def test_cells_come_in_an_order_in_which_they_can_be_computed(configured: Any, toy_task: Task) -> None:
    """Every parent stands before its children."""
    seen = {""}
    for cell in cells_of(configured(toy_task), SPLIT, 0, 0):
        assert cell.parent in seen
        seen.add(cell.identity)


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
def test_what_determines_a_training_changes_everything(
    cells: Callable[..., Named], toy_task: Task, key: str, value: Any
) -> None:
    """Recipe, model and view change the training and all that is made of it."""
    assert changed(cells(toy_task), cells(override(toy_task, key, value))) == ALL


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"fingerprint": "another"},
        {"split": Split(("sub-01",), ("sub-02", "sub-03"), ("sub-04",))},
        {"split": Split(("sub-01", "sub-02"), ("sub-03",), ("sub-05",))},
    ],
)
def test_seed_cohort_and_members_of_the_fold_change_everything(
    cells: Callable[..., Named], toy_task: Task, change: Any
) -> None:
    """The same network on other subjects, or from other numbers, is another result."""
    assert changed(cells(toy_task), cells(toy_task, **change)) == ALL


def test_version_of_the_task_changes_everything(cells: Callable[..., Named], toy_task: Task) -> None:
    """A task that means something else has other results."""
    assert changed(cells(toy_task), cells(dataclasses.replace(toy_task, version=2))) == ALL


def test_attribution_option_changes_its_explanation_and_score(cells: Callable[..., Named], toy_task: Task) -> None:
    """Other attributions and the training are not computed again."""
    other = override(toy_task, "attributions.gradients.steps", 3)
    assert changed(cells(toy_task), cells(other)) == {("explain", "gradients"), ("score", "gradients")}


def test_metric_option_changes_scores_alone(cells: Callable[..., Named], toy_task: Task) -> None:
    """Scores are cheap; nothing is trained or explained again."""
    other = override(toy_task, "metrics.sensitivity.tolerance_mm", 1.0)
    assert changed(cells(toy_task), cells(other)) == {key for key in ALL if key[0] == "score"}


@pytest.mark.parametrize("regional", [(), ("dice", "sensitivity")])
def test_regional_metrics_change_scores_alone(
    cells: Callable[..., Named], toy_task: Task, regional: tuple[str, ...]
) -> None:
    """What is computed per region is part of a score."""
    other = dataclasses.replace(toy_task, regional=regional)
    assert changed(cells(toy_task), cells(other)) == {key for key in ALL if key[0] == "score"}


def test_another_attribution_changes_no_other_cell(cells: Callable[..., Named], toy_task: Task) -> None:
    """Adding a method adds two cells."""
    more = cells(override(toy_task, "attributions.saliency", "saliency"))
    assert set(more) - ALL == {("explain", "saliency"), ("score", "saliency")}
    assert changed(cells(toy_task), {key: more[key] for key in ALL}) == set()


def test_what_a_person_reads_changes_nothing(cells: Callable[..., Named], toy_task: Task) -> None:
    """Question, source, axes, columns, shown metrics, objective, profile and labels are in no identity."""
    other = dataclasses.replace(
        toy_task,
        question="Why?",
        axes={**toy_task.axes, "inputs": "view.channels"},
        columns=("model",),
        shown=("dice",),
        objective="sensitivity",
        phantom_subjects=99,
    )
    found = cells(other, axes={"sequences": "another label"}, profile="paper", fold=7)
    assert changed(cells(toy_task), found) == set()


def test_label_of_an_attribution_changes_nothing(cells: Callable[..., Named], toy_task: Task) -> None:
    """The same method with the same options under another label is the same result."""
    other = cells(override(toy_task, "attributions.chance", "random"))
    for stage in ("explain", "score"):
        assert other[stage, "chance"].identity == other[stage, "random"].identity


@pytest.mark.parametrize(
    ("kind", "stages"),
    [("model", {"train", "explain", "score"}), ("attribution", {"explain", "score"}), ("metric", {"score"})],
)
def test_code_changes_its_stage_and_those_below(
    cells: Callable[..., Named], toy_task: Task, monkeypatch: pytest.MonkeyPatch, kind: str, stages: set[str]
) -> None:
    """Editing a module changes the cells that run it, while their bodies stay the same."""
    before = cells(toy_task)
    part = {
        "model": toy_task.model,
        "attribution": toy_task.attributions["gradients"],
        "metric": toy_task.metrics["sensitivity"],
    }[kind]
    edited = part.func.__module__
    monkeypatch.setattr(module, "_digest", lambda modules: str(sorted(modules)))
    same = cells(toy_task)
    monkeypatch.setattr(module, "_digest", lambda modules: str(sorted(modules)) + "edited" * (edited in modules))
    after = cells(toy_task)
    assert {key[0] for key in changed(same, after)} == stages
    assert [cell.body for cell in before.values()] == [cell.body for cell in after.values()]


def test_digest_of_explanations_is_their_method_s(toy_task: Task) -> None:
    """Methods in different modules have digests of their own."""
    assert digest("explain", toy_task, "random") != digest("explain", toy_task, "gradients")


def test_jobs_are_folds_times_seeds(configured: Any, toy_task: Task) -> None:
    """Every fold is trained with every seed, or only the folds that were asked for."""
    folds = (SPLIT, Split(("sub-04", "sub-02"), ("sub-03",), ("sub-01",)))
    found = list(jobs(configured(toy_task), folds, (0, 5)))
    assert [(one.fold, one.seed) for one in found] == [(0, 0), (0, 5), (1, 0), (1, 5)]
    assert len({one.train for one in found}) == 4
    assert [one.fold for one in jobs(configured(toy_task), folds, (0,), only_folds=(1,))] == [1]


def test_missing_is_what_the_store_does_not_hold(configured: Any, toy_task: Task, tmp_path: Any) -> None:
    """A job shrinks to its missing cells and to nothing when all are done."""
    job = next(jobs(configured(toy_task), (SPLIT,), (0,)))
    held: set[str] = {job.train}

    class Held(Store):
        def get(self, stage: str, identity: str) -> CellRecord | None:
            return CellRecord(identity, "train", "done", "", 0, 0) if identity in held else None

    rest = missing(job, Held(tmp_path))
    assert isinstance(rest, Job)
    assert [cell.identity for cell in rest.cells] == [cell.identity for cell in job.cells[1:]]
    held |= {cell.identity for cell in job.cells}
    assert missing(job, Held(tmp_path)) is None


def test_row_is_in_no_identity(configured: Any, toy_task: Task) -> None:
    """Where a cell is shown does not change what it is."""
    one = cells_of(configured(toy_task), SPLIT, 0, 0)
    two = cells_of(configured(toy_task), SPLIT, 0, 0, row="elsewhere")
    assert [cell.identity for cell in one] == [cell.identity for cell in two]
    assert {cell.configuration for cell in two} == {"elsewhere"}
