"""Addresses of pages in MLflow's web interface."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.tracking.pages import SavedView, compare_page, pages_of, runs_page
from harness.tracking.runs import Dataset
from harness.tracking.tracker import ParentRun, Tracker, tracking_uri

CONFIGURATIONS = tuple(
    Configuration({"recipe": {"use": "supervised", "lr": lr}}, {"lr": lr}, "quick", "ab") for lr in (0.1, 0.2, 0.3)
)


@pytest.fixture
def settings(empty_database: Path, tmp_path: Path) -> RunSettings:
    """Settings of a folder with an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return RunSettings(out=str(tmp_path))


def track(settings: RunSettings, task: str, *configurations: Configuration) -> list[str]:
    """Open the runs of configurations and return their ids."""
    tracker = Tracker(settings, task)
    parents = [ParentRun(one, f"lr {one.axes['lr']}", Dataset("phantom", "ab", "")) for one in configurations]
    tracker.open(parents, SavedView("Configurations"))
    tracker.drain()
    tracker.close()
    return [tracker.run_of(one.id) for one in configurations]


def parts_of(page: str) -> tuple[str, dict[str, str]]:
    """Path and decoded query of an address."""
    path, _, query = page.removeprefix("#").partition("?")
    return path, dict(urllib.parse.parse_qsl(query))


def test_the_table_of_runs_opens_in_the_machine_learning_view() -> None:
    """The table of runs opens in the machine-learning view with the saved columns."""
    path, query = parts_of(runs_page("7"))
    assert path == "/experiments/7/runs"
    assert query == {"workflowType": "machine_learning", "viewStateShareKey": "harness"}


def test_trainings_are_selected_by_a_filter() -> None:
    """Trainings of a configuration are selected by an encoded MLflow filter."""
    assert parts_of(runs_page("7", parent="abc"))[1] == {
        "workflowType": "machine_learning",
        "searchFilter": "tags.`mlflow.parentRunId` = 'abc'",
    }


def test_runs_are_compared_by_their_ids() -> None:
    """Runs are compared by two JSON lists of ids, and a single run has no comparison."""
    path, query = parts_of(compare_page("7", ["a", "b"]))
    assert path == "/compare-runs"
    assert (json.loads(query["runs"]), json.loads(query["experiments"])) == (["a", "b"], ["7"])
    assert compare_page("7", ["a"]) == compare_page("7", []) == ""
    assert len(json.loads(parts_of(compare_page("7", list(map(str, range(500)))))[1]["runs"])) == 100


def test_a_saved_view_has_its_columns_in_order_and_is_sorted() -> None:
    """A saved view has its columns and sort order in MLflow's format, a named state with JSON inside."""
    view = SavedView("Best", ("dice", "dice_low"), ("sequences",), ("rank",), order_by="dice", ascending=True)
    stored = json.loads(view.to_tag(5))
    state = json.loads(stored["state"])
    assert (stored["name"], stored["createdAt"], stored["updatedAt"]) == ("Best", 5, 5)
    columns = ["tags.`rank`", "metrics.`dice`", "metrics.`dice_low`", "params.`sequences`"]
    assert state["selectedColumns"][:4] == state["columnOrder"][:4] == columns
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`dice`", True)


def test_saved_view_of_an_address_exists(settings: RunSettings) -> None:
    """The saved view of an address exists in both experiments."""
    track(settings, "toy", *CONFIGURATIONS[:2])
    client = MlflowClient(tracking_uri=tracking_uri(settings))
    for name in ("toy", "toy trainings"):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        key = parts_of(runs_page(experiment.experiment_id))[1]["viewStateShareKey"]
        assert json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["name"]


def test_the_latest_run_is_compared(settings: RunSettings) -> None:
    """The comparison shows the configurations of the latest run only."""
    first = track(settings, "toy", *CONFIGURATIONS[:2])
    (pages,) = pages_of(tracking_uri(settings))
    assert set(json.loads(parts_of(pages.compare)[1]["runs"])) == set(first)
    second = track(settings, "toy", *CONFIGURATIONS[1:])
    (pages,) = pages_of(tracking_uri(settings))
    assert set(json.loads(parts_of(pages.compare)[1]["runs"])) == set(second)
    assert (pages.task, pages.configurations) == ("toy", 2)
    assert second[0] == first[1]


def test_the_latest_task_comes_first(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are sorted by the time of their latest run."""
    for number, task in enumerate(("one", "two", "one")):
        monkeypatch.setattr("harness.tracking.tracker.now_ms", lambda number=number: 1000 + number)
        track(settings, task, CONFIGURATIONS[0])
    pages = pages_of(tracking_uri(settings))
    assert [one.task for one in pages] == ["one", "two"]
    assert [one.compare for one in pages] == ["", ""]


def test_a_database_without_runs_has_no_pages(settings: RunSettings) -> None:
    """A database without runs of the harness has no pages."""
    assert pages_of(tracking_uri(settings)) == []


def test_note_of_an_experiment(settings: RunSettings) -> None:
    """The note of an experiment contains the links to comparison and trainings, and the command."""
    runs = track(settings, "toy", *CONFIGURATIONS)
    experiment = MlflowClient(tracking_uri=tracking_uri(settings)).get_experiment_by_name("toy")
    assert experiment is not None
    note = experiment.tags["mlflow.note.content"]
    assert f"[Compare the latest run (3 configurations)]({compare_page(experiment.experiment_id, runs)})" in note
    assert note.endswith("Latest run: `harness run`")
