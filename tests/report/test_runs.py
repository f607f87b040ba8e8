"""Metrics, figures and group maps of a configuration in MLflow, and errors of the MLflow server."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
from harness.cli import api
from harness.cli.api import Silent, carry_out, rebuild, write_all
from harness.core.errors import HarnessError, StoreError
from harness.data.maps import GroupMap, read_map, read_maps, write_sums
from harness.pipeline.cell import Cell
from harness.report import plots, runs
from harness.report.figures.results import Results
from harness.report.runs import pooled_files, pooled_metrics, pooled_of
from harness.storage.store import RECORD, CellRecord, Store, write_record
from harness.sweep.collect import Tables, collect
from harness.sweep.grammar import parse, to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.sweep.run import run as run_cells

Overrides = Callable[..., dict[str, Any]]
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


@pytest.fixture
def run(finished: Path) -> tuple[Plan, Tables]:
    """Plan and tables of a run with three subjects, one configuration and one attribution."""
    return rebuild(parse(["task=epvs", f"out={finished}"]))


@pytest.fixture
def recorded_plots(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Any]]:
    """Replace the plots by a recorder of their arguments."""
    calls: dict[str, tuple[Any, Any]] = {}

    def instead(name: str) -> Callable[..., bytes]:
        def draw(*given: Any, **options: Any) -> bytes:
            calls[name] = (given, options)
            return name.encode()

        return draw

    for name in set(plots.__all__) - {"Bars"}:
        monkeypatch.setattr(plots, name, instead(name))
    return calls


def on_one_grid(plan: Plan, **settings: Any) -> Plan:
    """The same plan with all subjects on one grid."""
    groups = {
        key: dataclasses.replace(
            group,
            cohort=dataclasses.replace(
                group.cohort,
                samples=tuple(dataclasses.replace(sample, affine=AFFINE) for sample in group.cohort.samples),
            ),
        )
        for key, group in plan.groups.items()
    }
    request = dataclasses.replace(plan.request, settings=dataclasses.replace(plan.request.settings, **settings))
    return dataclasses.replace(plan, groups=groups, request=request)


def written(folder: Path) -> list[str]:
    """Relative paths of all files in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_metrics_of_predictions_and_of_each_attribution(run: tuple[Plan, Tables]) -> None:
    """Metrics are those of the tables, with the name of the attribution for those of explanations."""
    plan, tables = run
    found = pooled_metrics(tables, plan.configurations[0].id)
    row, explained = tables.prediction.to_pylist()[0], tables.explanation.to_pylist()[0]
    assert (found["dice"], found["dice_low"]) == (row["dice"], row["dice_low"])
    assert found["random/relevance_ap"] == explained["relevance_ap"]
    assert pooled_metrics(tables, "another") == {}


def test_tables_and_report_read_each_record_once(run: tuple[Plan, Tables], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, agreement, figures and report need the same records and read each file once."""
    plan, _ = run
    read: list[Path] = []
    original = Path.read_text

    def watched(path: Path, *given: Any, **named: Any) -> str:
        if path.name == RECORD and path.exists():
            read.append(path)
        return original(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", watched)
    assert write_all(plan, None).report is not None
    assert len(read) == len(set(read)) > 5


def test_figures_of_one_configuration(
    run: tuple[Plan, Tables], recorded_plots: dict[str, tuple[Any, Any]], tmp_path: Path
) -> None:
    """A configuration has figures of its trainings, subjects and agreement."""
    plan, tables = run
    assert pooled_files(Results(plan, tables), plan.configurations[0].id, tmp_path) == []
    # Figures are at the top level, since MLflow does not compare files in folders.
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [
        "count-bland-altman.png", "count-scatter.png", "subjects.png", "training.png", "volume-bland-altman.png",
        "volume-scatter.png",
    ]  # fmt: skip
    curves = recorded_plots["training_curves"][0][0]["loss"]
    assert {name: len(line) for name, line in curves.items()} == {f"fold {fold} seed 0": 1 for fold in range(3)}
    dots = recorded_plots["subject_dots"][0][0]
    assert next(iter(dots)) == "dice" and set(dots["dice"]) == {"sub-01", "sub-02", "sub-03"}


def test_group_map_is_the_mean_of_the_stored_maps(
    run: tuple[Plan, Tables], recorded_plots: dict[str, tuple[Any, Any]], tmp_path: Path
) -> None:
    """The group map is the mean of the maps of all subjects, as a NIfTI file with an image."""
    plan, tables = on_one_grid(run[0]), run[1]
    pooled_files(Results(plan, tables), plan.configurations[0].id, tmp_path)
    assert written(tmp_path / "maps") == ["random_mean.nii.gz", "random_mean.png"]
    maps = [
        one
        for cell in plan.cells
        if cell.stage == "explain"
        for one in read_maps(plan.store, plan.store.get("explain", cell.identity)).values()  # type: ignore[arg-type]
    ]
    assert len(maps) == 3
    assert np.allclose(read_map(tmp_path / "maps" / "random_mean.nii.gz"), np.mean(maps, axis=0), atol=1e-6)


def test_channels_of_a_map_are_named_beside_it(tmp_path: Path) -> None:
    """In a JSON file, because the header has no text; a map of one channel needs none."""
    runs._write_named(tmp_path / "two_mean", np.ones((2, 3, 4, 5)), AFFINE, ("T2w", "FLAIR"))
    runs._write_named(tmp_path / "one_mean", np.ones((1, 3, 4, 5)), AFFINE, ("T2w",))
    assert written(tmp_path) == ["one_mean.nii.gz", "two_mean.json", "two_mean.nii.gz"]
    assert json.loads((tmp_path / "two_mean.json").read_text()) == {"channels": ["T2w", "FLAIR"]}


def test_no_group_map_without_a_common_grid(
    run: tuple[Plan, Tables], recorded_plots: dict[str, tuple[Any, Any]], tmp_path: Path
) -> None:
    """Without a common grid there is no group map, and a text file gives the reason."""
    pooled_files(Results(*run), run[0].configurations[0].id, tmp_path)
    assert written(tmp_path / "maps") == ["none.txt"]
    text = (tmp_path / "maps" / "none.txt").read_text()
    assert text == "random: no common grid: sub-01 and sub-02 have different affines\n"


def test_anonymous_files_name_no_subject(
    run: tuple[Plan, Tables], recorded_plots: dict[str, tuple[Any, Any]], tmp_path: Path
) -> None:
    """With ``anonymous``, neither figures, reasons nor file names contain the name of a subject."""
    plan, folder = run[0], tmp_path / "files"
    folder.mkdir()
    settings = dataclasses.replace(plan.request.settings, anonymous=True)
    hidden = dataclasses.replace(plan, request=dataclasses.replace(plan.request, settings=settings))
    pooled_files(Results(hidden, run[1]), plan.configurations[0].id, folder)
    assert recorded_plots["subject_dots"][1] == {"named": False}
    assert (folder / "maps" / "none.txt").read_text() == "random: no common grid\n"
    assert not [name for name in written(folder) if "sub-" in name]


def test_subject_dots_can_be_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    """``subject_dots`` shows names of subjects only if ``named`` is true."""
    texts: list[str] = []
    original = plots.subjects.png_of

    def listen(figure: Any) -> bytes:
        texts.extend(text.get_text() for axes in figure.axes for text in axes.get_yticklabels())
        texts.extend(axes.get_ylabel() for axes in figure.axes)
        return original(figure)

    monkeypatch.setattr(plots.subjects, "png_of", listen)
    values = {"dice": {"sub-01": [0.5, 0.6], "sub-02": [0.4]}, "auc": {"sub-01": [0.9]}}
    plots.subject_dots(values, named=False)
    assert not any("sub-" in text for text in texts) and "2 subjects" in texts
    plots.subject_dots(values)
    assert {"sub-01", "sub-02"} <= set(texts)


def test_failed_figure_leaves_other_files(
    run: tuple[Plan, Tables],
    recorded_plots: dict[str, tuple[Any, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If drawing a figure fails, its error is returned with the file name, and other files are written."""

    def broken(*given: Any, **options: Any) -> bytes:
        raise ValueError("no font")

    monkeypatch.setattr(plots, "subject_dots", broken)
    monkeypatch.setattr(runs, "draw_map", broken)
    folder = tmp_path / "to"
    folder.mkdir()
    failed = pooled_files(Results(on_one_grid(run[0]), run[1]), run[0].configurations[0].id, folder)
    assert failed == ["subjects.png: ValueError: no font", "map of random: ValueError: no font"]
    assert written(folder) == [
        "count-bland-altman.png", "count-scatter.png", "maps/random_mean.nii.gz", "training.png",
        "volume-bland-altman.png", "volume-scatter.png",
    ]  # fmt: skip


def test_damaged_store_raises(run: tuple[Plan, Tables], tmp_path: Path) -> None:
    """A damaged store raises an error instead of skipping a figure."""
    plan = run[0]
    train = next(cell for cell in plan.cells if cell.stage == "train")
    (plan.store.folder("train", train.identity) / "history.json").write_text("[]")
    with pytest.raises(StoreError, match=r"history.json is missing or has changed"):
        pooled_files(Results(plan, run[1]), plan.configurations[0].id, tmp_path)


def test_one_image_per_attribution(
    run: tuple[Plan, Tables],
    recorded_plots: dict[str, tuple[Any, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Maps of all outputs are written, and one image per attribution."""
    found = GroupMap(np.ones((1, 4, 4, 4), np.float32), AFFINE, 3)
    means = [(f"{label}_{output}", runs._Mean(found, label, (), output)) for label in "ab" for output in ("x", "y")]
    monkeypatch.setattr(runs, "_means", lambda plan, identity: iter(means))
    pooled_files(Results(*run), run[0].configurations[0].id, tmp_path)
    assert written(tmp_path / "maps") == [
        "a_x_mean.nii.gz", "a_x_mean.png", "a_y_mean.nii.gz", "b_x_mean.nii.gz", "b_x_mean.png", "b_y_mean.nii.gz",
    ]  # fmt: skip


def test_digest_changes_with_what_is_shown(run: tuple[Plan, Tables]) -> None:
    """The digest changes with values, cells and the ``anonymous`` setting."""
    plan, tables = run
    identity = plan.configurations[0].id
    metrics = pooled_metrics(tables, identity)
    one = pooled_of(plan, identity, metrics)
    assert pooled_of(plan, identity, dict(metrics)) == one
    fewer = dataclasses.replace(plan, jobs=plan.jobs[:2])
    others = {
        pooled_of(plan, identity, {**metrics, "dice": 0.125}),
        pooled_of(fewer, identity, metrics),
        pooled_of(on_one_grid(plan, anonymous=True), identity, metrics),
    }
    assert len(others - {one}) == 3


def test_anonymous_run_is_tracked(
    tiny_overrides: Overrides,
    finished: Path,
    empty_database: Path,
    recorded_plots: dict[str, tuple[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An anonymous run is tracked with its trainings and figures and without the name of a subject, once only."""
    shutil.copy(empty_database, finished / "mlflow.db")
    overrides = tiny_overrides(finished, mlflow="auto", anonymous=True)
    assert harness.run(**overrides).complete
    with sqlite3.connect(finished / "mlflow.db") as database:
        states = [state for (state,) in database.execute("select status from runs")]
        columns = {
            "tags": "value", "params": "value", "latest_metrics": "key", "runs": "name", "experiment_tags": "value",
            "datasets": "name || dataset_source || dataset_profile",
        }  # fmt: skip
        texts = [text for table in columns for (text,) in database.execute(f"select {columns[table]} from {table}")]
    database.close()
    assert states == ["FINISHED"] * 4
    assert any("subjects" in text for text in texts)
    assert not [text for text in texts if "sub-" in text]
    files = written(finished / "mlflow-artifacts")
    assert len(files) == 7 and not [name for name in files if "sub-" in name]
    assert not [name for name in files if b"sub-" in (finished / "mlflow-artifacts" / name).read_bytes()]
    recorded_plots.clear()
    assert harness.run(**overrides).complete
    assert recorded_plots == {}


def test_tables_are_written_without_an_mlflow_server(
    tiny_overrides: Overrides, finished: Path, board_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the MLflow server does not respond, tables are written and the result has the error, which Python raises."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(api, "_LAST_WAITS_S", (0.0,))
    shutil.rmtree(finished / "leaderboards")
    overrides = tiny_overrides(finished, mlflow="http://127.0.0.1:1")
    result = carry_out(to_overrides(**overrides), (), Silent())
    assert re.match(r"cannot write to MLflow at http://127\.0\.0\.1:1: .* mlflow=off", result.trouble)
    assert result.complete and result.mlflow == "" and board_of(finished).is_file()
    with pytest.raises(HarnessError, match=re.escape(result.trouble[:60])):
        harness.run(**overrides)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.training_curves({"loss": {"fold 0": [3.0, 1.0], "fold 1": [2.0, 1.5]}, "validation": {}}),
        lambda: plots.training_curves({"loss": {f"fold {fold}": [1.0] for fold in range(20)}}),
        lambda: plots.training_curves({}),
        lambda: plots.subject_dots({"dice": {f"sub-{number}": [0.1 * number] for number in range(50)}}),
        lambda: plots.subject_dots({"dice": {"sub-01": []}}),
        lambda: plots.subject_dots({}),
    ],
    ids=["curves", "many", "none", "dots", "without a value", "no subjects"],
)
def test_figures_are_reproducible(draw: Callable[[], bytes]) -> None:
    """Equal data give identical PNG files, also for one epoch, many subjects or no data."""
    content = draw()
    assert content.startswith(b"\x89PNG") and content == draw()


def stored_sums(store: Store, folder: Path, cell: Cell, sums: Any, samples: list[str]) -> CellRecord:
    """Store an explain cell with the sums of two outputs, and return its record."""
    folder = folder / cell.identity
    folder.mkdir(parents=True)
    write_sums(folder / "blocks.npz", sums)
    facts = {"outputs": ["one", "two"], "samples": samples}
    write_record(
        folder, CellRecord(cell.identity, "explain", "done", "conf", cell.fold, cell.seed, cell.label, facts=facts)
    )
    return store.commit(folder)


# Folds and seeds of explain cells, with the samples that they explain; ``a`` has two samples.
IN_FOLDS = [(0, 0, ["a1", "a2", "b"]), (1, 0, ["c", "d"]), (0, 1, ["a1", "a2", "b"]), (1, 1, ["c", "d"])]
SUBJECTS = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d", "unused": "e"}


def test_sums_of_blocks_become_means(tmp_path: Path) -> None:
    """Sums of two folds, two seeds and two outputs are divided by the number of explained samples and seeds."""
    store = Store(tmp_path / "store")
    cells, expected = {}, np.zeros((2, 1, 4, 3, 2))
    for number, (fold, seed, samples) in enumerate(IN_FOLDS):
        sums = np.random.default_rng(number).normal(size=(2, 2, 1, 4, 3, 2)).astype(np.float32)
        expected += sums.sum(axis=0) / 10
        cell = Cell("explain", f"cell{number}", "", "conf", fold, seed, "saliency")
        cells[cell] = stored_sums(store, tmp_path, cell, sums, samples)
    found = runs._of_sums(store, cells, AFFINE, SUBJECTS)
    assert list(found) == ["one", "two"]
    for number, name in enumerate(found):
        assert np.allclose(found[name].values, expected[number], atol=1e-3)


def test_mean_of_sums_counts_subjects(tmp_path: Path) -> None:
    """The number of subjects of a mean map counts a subject with two samples, or explained by two seeds, once."""
    store, cells = Store(tmp_path / "store"), {}
    for number, (fold, seed, samples) in enumerate(IN_FOLDS):
        cell = Cell("explain", f"cell{number}", "", "conf", fold, seed, "saliency")
        cells[cell] = stored_sums(store, tmp_path, cell, np.ones((1, 2, 1, 2, 2, 2)), samples)
    assert {one.subjects for one in runs._of_sums(store, cells, AFFINE, SUBJECTS).values()} == {4}


@pytest.fixture
def lsm_overrides(lesion_root: Path, tmp_path: Path) -> dict[str, Any]:
    """A run with sums of lesion maps, a fixed test set and two folds, on fourteen small masks."""
    return {
        "task": "lsm", "data": str(lesion_root), "box": "native", "cohort.spacing_mm": [], "model": "total_volume",
        "attribution": ("prevalence",), "roi_size": 3, "targets.scores.patients": 3,
        "split": "stratified_k_fold", "split.folds": 2, "split.test": 0.25,
        "ray": "off", "mlflow": "off", "report": False, "out": str(tmp_path / "out"),
    }  # fmt: skip


@pytest.mark.parametrize(("choice", "number"), [({}, 14), ({"fold": 0}, 5)], ids=["ensemble", "one fold"])
def test_mean_map_with_a_fixed_test_set(lsm_overrides: dict[str, Any], choice: dict[str, Any], number: int) -> None:
    """With a fixed test set, a mean map is that of all samples explained by the folds and by the ensemble."""
    plan = run_cells(prepare(resolve(to_overrides(**lsm_overrides, **choice))))
    (configuration,) = plan.configurations
    records = [plan.store.get("explain", cell.identity) for cell in plan.cells if cell.stage == "explain"]
    explained = {name for record in records for name in record.facts["samples"]}  # type: ignore[union-attr]
    assert len(explained) == number
    ((_, first), *_) = runs._means(plan, configuration.id)
    cohort = plan.groups[configuration.id].cohort
    lesions = [sample.masks["lesion"].load() for sample in cohort.samples if sample.id in explained]
    assert first.found.subjects == number
    np.testing.assert_allclose(first.found.values[0], np.mean(lesions, axis=0), atol=1e-3)  # type: ignore[index]


def test_mean_maps_of_maps_beside_sums(lsm_overrides: dict[str, Any], tmp_path: Path) -> None:
    """Each explanation has the mean of what it is judged on, also if others keep only sums."""
    overrides = {**lsm_overrides, "attribution": ("prevalence", "random"), "explanations.prevalence.keep": "maps"}
    plan = run_cells(prepare(resolve(to_overrides(**overrides))))
    assert pooled_files(Results(plan, collect(plan)), plan.configurations[0].id, tmp_path) == []
    assert [name for name in written(tmp_path / "maps") if name.endswith(".nii.gz")] == [
        "prevalence_mean.nii.gz", "random_score_1_mean.nii.gz", "random_score_2_mean.nii.gz",
        "random_score_3_mean.nii.gz",
    ]  # fmt: skip
