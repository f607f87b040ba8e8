"""MLflow alone: one parent per configuration, one child per cell, never a twin, and no subject where none may be."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.core.errors import HarnessError
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.storage.store import CellRecord
from harness.tracking.tracker import Tracker, shown_uri, tracking_uri

CONFIGURATION = Configuration(
    {
        "name": "toy",
        "version": 1,
        "view": {"use": "axial_slices", "channels": "T2w"},
        "model": {"use": "unet", "width": 4},
        "recipe": {"use": "supervised", "lr": 0.01},
        "split": {"use": "leave_one_subject_out"},
    },
    {"sequences": "T2w"},
    "quick",
    "0123456789abcdef",
)
TRAIN = CellRecord(
    "train-1", "train", "done", CONFIGURATION.id, 0, 1, seconds=2.5, hardware={"machine": "x86", "gpu": ""}
)
SCORE = dataclasses.replace(TRAIN, identity="score-1", stage="score", label="saliency")
FAILED = dataclasses.replace(TRAIN, state="failed", error="ValueError: too wide (networks.py:7)")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, which takes seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def settings(empty_database: Path, tmp_path: Path) -> RunSettings:
    """A folder with an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return RunSettings(out=str(tmp_path))


@pytest.fixture
def client(settings: RunSettings) -> MlflowClient:
    """What a reader of the database uses."""
    return MlflowClient(tracking_uri=tracking_uri(settings))


@contextmanager
def tracking(settings: RunSettings, *, pool: bool = True, **options: Any) -> Iterator[Tracker]:
    """A tracker with the parent open; pooled and drained at the end."""
    tracker = Tracker(settings, "toy", **options)
    try:
        tracker.configuration(CONFIGURATION, {"cohort_name": "phantom"})
        yield tracker
        if pool:
            tracker.pooled(CONFIGURATION.id, {}, done=True)
        tracker.drain()
    finally:
        tracker.close()


def runs_of(client: MlflowClient) -> dict[str, Any]:
    """Identity → run; fails on twins."""
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    identities = [run.data.tags["harness.identity"] for run in found]
    assert len(set(identities)) == len(identities)
    return dict(zip(identities, found, strict=True))


def artifacts_of(client: MlflowClient, run: str, folder: str = "") -> list[str]:
    """Paths of all artifacts of a run."""
    found: list[str] = []
    for one in client.list_artifacts(run, folder):
        found += artifacts_of(client, run, one.path) if one.is_dir else [one.path]
    return sorted(found)


class TestRuns:
    """Which runs there are, and what they say."""

    def test_a_cell_stands_below_its_configuration(self, settings: RunSettings, client: MlflowClient) -> None:
        """By the tag that MLflow nests by; both say what they are."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {})
            tracker.cell(SCORE, {"ap": 0.5}, {})
            tracker.wait()
            parent = tracker.run_of(CONFIGURATION.id)
        runs = runs_of(client)
        assert set(runs) == {CONFIGURATION.id, "train-1", "score-1"}
        assert [runs[name].data.tags["mlflow.parentRunId"] for name in ("train-1", "score-1")] == [parent, parent]
        assert "mlflow.parentRunId" not in runs[CONFIGURATION.id].data.tags
        assert runs[CONFIGURATION.id].data.params == {
            "sequences": "T2w", "view.use": "axial_slices", "view.channels": "T2w", "model.use": "unet",
            "model.width": "4", "recipe.use": "supervised", "recipe.lr": "0.01", "split.use": "leave_one_subject_out",
        }  # fmt: skip
        assert runs["score-1"].data.params == {"stage": "score", "fold": "0", "seed": "1", "attribution": "saliency"}
        assert runs["score-1"].info.run_name == "score saliency fold 0 seed 1"
        assert {run.info.status for run in runs.values()} == {"FINISHED"}

    def test_metrics_and_curves(self, settings: RunSettings, client: MlflowClient) -> None:
        """Values at step 0, curves from epoch 1; what is not finite is left out."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5, "icc": float("nan")}, {"loss": [3.0, 2.0, 1.0]})
        run = runs_of(client)["train-1"]
        assert run.data.metrics == {"dice": 0.5, "seconds": 2.5, "loss": 1.0}
        points = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0), (3, 1.0)]

    def test_the_same_cell_again_is_no_twin(self, settings: RunSettings, client: MlflowClient) -> None:
        """Neither in one tracker nor in the next, which finds the runs by their identity."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.wait()
            first = tracker.run_of(CONFIGURATION.id)
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.wait()
            assert tracker.run_of(CONFIGURATION.id) == first
        runs = runs_of(client)
        assert set(runs) == {CONFIGURATION.id, "train-1"}
        assert len(client.get_metric_history(runs["train-1"].info.run_id, "dice")) == 1

    @pytest.mark.parametrize("again", ["the same tracker", "another tracker"])
    def test_a_failed_cell_that_is_done_later(self, settings: RunSettings, client: MlflowClient, again: str) -> None:
        """The same run says FAILED with its error, then FINISHED without."""
        with tracking(settings, pool=False) as tracker:
            tracker.cell(FAILED, {}, {})
            tracker.pooled(CONFIGURATION.id, {}, done=False)
            tracker.drain()
            failed = runs_of(client)
            assert {run.info.status for run in failed.values()} == {"FAILED"}
            assert failed["train-1"].data.tags["harness.error"] == "ValueError: too wide (networks.py:7)"
            if again == "the same tracker":
                tracker.cell(TRAIN, {"dice": 0.5}, {})
                tracker.pooled(CONFIGURATION.id, {}, done=True)
        if again == "another tracker":
            with tracking(settings) as tracker:
                tracker.cell(TRAIN, {"dice": 0.5}, {})
        done = runs_of(client)
        assert {run.info.status for run in done.values()} == {"FINISHED"}
        assert done["train-1"].info.run_id == failed["train-1"].info.run_id
        assert "harness.error" not in done["train-1"].data.tags and done["train-1"].data.metrics["dice"] == 0.5

    def test_a_changed_parameter_does_not_raise(self, settings: RunSettings, client: MlflowClient) -> None:
        """MLflow refuses to change a parameter: the run keeps the first one and goes on."""
        renamed = dataclasses.replace(CONFIGURATION, axes={"sequences": "T2w again"})
        assert renamed.id == CONFIGURATION.id
        with tracking(settings):
            pass
        with tracking(settings) as tracker:
            tracker.configuration(renamed, {})
            tracker.cell(TRAIN, {}, {})
        assert runs_of(client)[CONFIGURATION.id].data.params["sequences"] == "T2w"

    def test_a_run_that_is_broken_off_is_killed(self, settings: RunSettings, client: MlflowClient) -> None:
        """Not running for ever; the next one finishes it."""
        with tracking(settings, pool=False):
            pass
        assert runs_of(client)[CONFIGURATION.id].info.status == "KILLED"
        with tracking(settings):
            pass
        assert runs_of(client)[CONFIGURATION.id].info.status == "FINISHED"

    def test_more_than_mlflow_takes_at_once(self, settings: RunSettings, client: MlflowClient) -> None:
        """Nothing is cut off: 1,300 metrics and 130 parameters arrive."""
        wide = dataclasses.replace(CONFIGURATION, axes={f"axis{number}": number for number in range(130)})
        tracker = Tracker(settings, "toy")
        tracker.configuration(wide, {})
        tracker.pooled(wide.id, {f"metric{number}": number for number in range(1300)}, done=True)
        tracker.drain()
        tracker.close()
        run = runs_of(client)[wide.id]
        assert len(run.data.metrics) == 1300
        assert sum(name.startswith("axis") for name in run.data.params) == 130

    def test_metrics_go_in_batches(
        self, settings: RunSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two hundred values of a cell are one request."""
        sent: list[int] = []
        original = MlflowClient.log_batch

        def counted(self: MlflowClient, run: str, metrics: Any = (), **more: Any) -> Any:
            if metrics:
                sent.append(len(metrics))
            return original(self, run, metrics=metrics, **more)

        monkeypatch.setattr(MlflowClient, "log_batch", counted)
        monkeypatch.setattr(MlflowClient, "log_metric", lambda *given, **more: pytest.fail("one metric at a time"))
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {f"metric{number}": number for number in range(99)}, {"loss": [1.0] * 100})
        assert sent == [200]

    def test_names_that_mlflow_refuses(self, settings: RunSettings, client: MlflowClient) -> None:
        """Brackets and at-signs of labels are written as underscores."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"sensitivity@3mm[large]": 0.5}, {})
        assert runs_of(client)["train-1"].data.metrics["sensitivity_3mm_large_"] == 0.5


class TestPooled:
    """What a parent run gets at the end."""

    def test_files_become_artifacts(self, settings: RunSettings, client: MlflowClient, tmp_path: Path) -> None:
        """Under their relative paths, in the run's folder and not in the one we stand in."""
        folder = tmp_path / "pooled"
        for name in ("figures/training.png", "maps/saliency_mean.nii.gz"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(name.encode())
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {"dice": 0.5, "saliency/ap": 0.25}, folder, done=True)
        run = runs_of(client)[CONFIGURATION.id]
        assert run.data.metrics == {"dice": 0.5, "saliency/ap": 0.25}
        assert artifacts_of(client, run.info.run_id) == ["figures/training.png", "maps/saliency_mean.nii.gz"]
        assert run.info.artifact_uri.startswith((tmp_path / "mlflow-artifacts").as_uri())

    def test_the_same_is_not_written_twice(self, settings: RunSettings, client: MlflowClient, tmp_path: Path) -> None:
        """A digest tells, also to another tracker; another digest is written."""
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {"dice": 0.5}, done=True, digest="one")
            tracker.wait()
            assert tracker.is_pooled(CONFIGURATION.id, "one") and not tracker.is_pooled(CONFIGURATION.id, "two")
        with tracking(settings, pool=False) as tracker:
            tracker.wait()
            assert tracker.is_pooled(CONFIGURATION.id, "one")
            tracker.pooled(CONFIGURATION.id, {"dice": 0.6}, done=True, digest="one")
            tracker.wait()
            run = runs_of(client)[CONFIGURATION.id]
            assert run.data.metrics == {"dice": 0.5}
            tracker.pooled(CONFIGURATION.id, {"dice": 0.6}, done=True, digest="two")
        assert runs_of(client)[CONFIGURATION.id].data.metrics == {"dice": 0.6}
        assert runs_of(client)[CONFIGURATION.id].info.status == "FINISHED"

    def test_a_new_cell_opens_the_parent_again(self, settings: RunSettings, client: MlflowClient) -> None:
        """While cells are added to a finished configuration, it says RUNNING."""
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="one")
            tracker.cell(TRAIN, {}, {})
            tracker.wait()
            assert runs_of(client)[CONFIGURATION.id].info.status == "RUNNING"
            assert not tracker.is_pooled(CONFIGURATION.id, "one")
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="one")


class TestAnonymous:
    """``anonymous=true``: no name of a subject leaves this machine."""

    ERROR = "CellError: the map of sub-0042_ses-2 holds inf; also patient seven (and 1007) in /data/sub-0042/anat"

    def written(self, settings: RunSettings, tmp_path: Path) -> str:
        """Everything in the database, as text."""
        named = dataclasses.replace(CONFIGURATION, axes={"sequences": "T2w", "left_out": "sub-0042", "width": 1007})
        tracker = Tracker(settings, "toy", subjects=["sub-0042", "sub-0042_ses-2", "patient seven", "1007", "07"])
        tracker.configuration(named, {"cohort_name": "all but patient seven"})
        tracker.cell(dataclasses.replace(FAILED, configuration=named.id, error=self.ERROR), {"dice": 0.5}, {})
        tracker.pooled(named.id, {"dice": 0.5}, done=False)
        tracker.drain()
        tracker.close()
        return (tmp_path / "mlflow.db").read_bytes().decode(errors="replace")

    def test_no_name_is_anywhere_in_the_database(self, settings: RunSettings, tmp_path: Path) -> None:
        """In no tag, parameter, metric or run name; what is around the names stays."""
        found = self.written(dataclasses.replace(settings, anonymous=True), tmp_path)
        assert not [name for name in ("sub-0042", "ses-2", "patient seven") if name in found]
        assert "the map of [subject] holds inf; also [subject] (and [subject]) in /data/[subject]/anat" in found
        assert "all but [subject]" in found

    def test_a_number_that_is_an_option_stays(
        self, settings: RunSettings, tmp_path: Path, client: MlflowClient
    ) -> None:
        """A width of 1007 is no subject, though a subject is called 1007."""
        self.written(dataclasses.replace(settings, anonymous=True), tmp_path)
        assert runs_of(client)[CONFIGURATION.id].data.params["width"] == "1007"

    def test_otherwise_names_stay(self, settings: RunSettings, tmp_path: Path) -> None:
        """The error says whose map it was, unless it is asked not to."""
        assert self.ERROR in self.written(settings, tmp_path)

    def test_the_longer_name_goes_first(self, settings: RunSettings, client: MlflowClient) -> None:
        """Of ``pat1`` and ``pat12`` no rest stays, and a word that only begins like one is kept."""
        hidden = dataclasses.replace(settings, anonymous=True)
        with tracking(hidden, subjects=["pat1", "pat12"]) as tracker:
            tracker.cell(dataclasses.replace(FAILED, error="E: pat12, pat1, pat123 and path"), {}, {})
        error = runs_of(client)["train-1"].data.tags["harness.error"]
        assert error == "E: [subject], [subject], pat123 and path"


class TestTrouble:
    """A tracker that cannot write."""

    @pytest.fixture
    def unreachable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
        """A server that nobody runs, on a port that nobody may listen on."""
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        return RunSettings(out=str(tmp_path), mlflow="http://user:hidden@127.0.0.1:1")

    def test_a_server_that_does_not_answer_is_told_at_the_end(self, unreachable: RunSettings) -> None:
        """Cells are taken as before; the error says where, and what to do, without the password."""
        tracker = Tracker(unreachable, "toy")
        tracker.configuration(CONFIGURATION, {})
        tracker.cell(TRAIN, {"dice": 0.5}, {})
        tracker.pooled(CONFIGURATION.id, {"dice": 0.5}, done=True)
        with pytest.raises(
            HarnessError, match=r"MLflow at http://user:\*\*\*@127\.0\.0\.1:1 could not .* mlflow=off"
        ) as told:
            tracker.drain()
        assert "hidden" not in str(told.value)
        assert tracker.run_of(CONFIGURATION.id) == ""
        tracker.close()

    def test_trouble_is_known_early(self, unreachable: RunSettings) -> None:
        """Whoever asks need not wait for the end of the run."""
        tracker = Tracker(unreachable, "toy")
        assert tracker.trouble == ""
        tracker.configuration(CONFIGURATION, {})
        tracker.wait()
        assert tracker.trouble.startswith("MLflow at http://user:***@127.0.0.1:1 could not be written: ")
        tracker.close()

    def test_an_error_in_the_middle_stops_writing(
        self, settings: RunSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What came before is there, what comes after is not tried, and the error is kept."""
        with pytest.raises(HarnessError, match=r"disk is full\. The cells are safe"), tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {})
            tracker.wait()
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, "create_run", self._full)
                tracker.cell(SCORE, {}, {})
                tracker.wait()
            tracker.cell(dataclasses.replace(SCORE, identity="score-2"), {}, {})
        assert set(runs_of(client)) == {CONFIGURATION.id, "train-1"}

    @staticmethod
    def _full(*given: Any, **more: Any) -> Any:
        raise OSError("disk is full")


class TestPlace:
    """Where things go."""

    def test_automatic_place_is_the_output_folder(self, tmp_path: Path) -> None:
        """A database there; else what was said."""
        assert tracking_uri(RunSettings(out=str(tmp_path))) == f"sqlite:///{tmp_path / 'mlflow.db'}"
        assert tracking_uri(RunSettings(mlflow="http://host:5000")) == "http://host:5000"

    def test_name_of_the_folder_may_hold_anything(self, empty_database: Path, tmp_path: Path) -> None:
        """Runs are in the database of that very folder, artifacts beside it, and no other folder appears."""
        folder = tmp_path / "50% of #1 = why?" / "a%20b"
        folder.mkdir(parents=True)
        shutil.copy(empty_database, folder / "mlflow.db")
        settings = RunSettings(out=str(folder))
        with tracking(settings):
            pass
        run = runs_of(MlflowClient(tracking_uri=tracking_uri(settings)))[CONFIGURATION.id]
        assert run.info.artifact_uri.startswith((folder / "mlflow-artifacts").as_uri())
        assert sorted(path.name for path in (tmp_path, folder.parent) for path in path.iterdir()) == sorted(
            [folder.parent.name, folder.name]
        )

    def test_password_is_not_shown(self) -> None:
        """The user name and the host are."""
        assert shown_uri(RunSettings(mlflow="https://me:pass@host:5000")) == "https://me:***@host:5000"
        assert shown_uri(RunSettings(mlflow="https://host:5000")) == "https://host:5000"

    def test_artifacts_of_a_named_database_are_not_in_the_working_folder(
        self, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MLflow's own default is ``./mlruns``, wherever one happens to stand."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        shutil.copy(empty_database, tmp_path / "own.db")
        settings = RunSettings(out=str(tmp_path / "runs"), mlflow=f"sqlite:///{tmp_path / 'own.db'}")
        with tracking(settings) as tracker:
            tracker.wait()
        run = runs_of(MlflowClient(tracking_uri=tracking_uri(settings)))[CONFIGURATION.id]
        assert run.info.artifact_uri.startswith((tmp_path / "runs" / "mlflow-artifacts").as_uri())
        assert list(elsewhere.iterdir()) == []


def test_what_a_search_chose_is_a_tag_of_the_parent(settings: RunSettings, client: MlflowClient) -> None:
    """It can be read and searched beside the metrics, without a subject's name."""
    with tracking(settings, pool=False, subjects={"sub-07"}) as tracker:
        tracker.pooled(CONFIGURATION.id, {}, done=True, tags={"chosen.fold 0 seed 0": "recipe.lr=0.01"})
    assert runs_of(client)[CONFIGURATION.id].data.tags["chosen.fold 0 seed 0"] == "recipe.lr=0.01"
