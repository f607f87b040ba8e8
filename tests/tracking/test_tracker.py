"""The MLflow tracker: one run per configuration and per training, without duplicates or names of subjects."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
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
from harness.tracking.pages import SavedView
from harness.tracking.runs import Dataset
from harness.tracking.tracker import ParentRun, Tracker, shown_uri, tracking_uri

CONFIGURATION = Configuration(
    {
        "name": "toy",
        "version": 1,
        "adapter": {"use": "axial_slices", "channels": "T2w"},
        "model": {"use": "unet", "width": 4},
        "recipe": {"use": "supervised", "lr": 0.01},
        "split": {"use": "leave_one_subject_out"},
        "cohort": {"use": "bids", "label": "pvs"},
        "targets": {"lesions": {"use": "mask", "weight": 1.0}},
    },
    {"sequences": "T2w"},
    "quick",
    "0123456789abcdef",
)
VIEW = SavedView("Configurations", ("dice",), ("sequences",), ("rank",), order_by="dice")
TRAINING = f"{CONFIGURATION.id}/0/1"
TRAIN = CellRecord(
    "train-1", "train", "done", CONFIGURATION.id, 0, 1, seconds=2.5, hardware={"machine": "x86", "gpu": ""}
)
SCORE = dataclasses.replace(TRAIN, identity="score-1", stage="score", label="saliency")
FAILED = dataclasses.replace(TRAIN, state="failed", error="ValueError: too wide (networks.py:7)")


@pytest.fixture
def settings(empty_database: Path, tmp_path: Path) -> RunSettings:
    """Settings of a folder with an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return RunSettings(out=str(tmp_path))


@pytest.fixture
def client(settings: RunSettings) -> MlflowClient:
    """A client that reads the database."""
    return MlflowClient(tracking_uri=tracking_uri(settings))


def parent_of(configuration: Configuration, name: str = "T2w unet") -> ParentRun:
    """The run of a configuration with four subjects."""
    return ParentRun(
        configuration, name, Dataset("phantom", configuration.fingerprint, "/data/phantom", {"subjects": 4})
    )


@contextmanager
def tracking(settings: RunSettings, *, pool: bool = True, **options: Any) -> Iterator[Tracker]:
    """A tracker with one open configuration, which is finished and drained at the end."""
    tracker = Tracker(settings, "toy", **options)
    try:
        tracker.open([parent_of(CONFIGURATION)], VIEW)
        yield tracker
        if pool:
            tracker.pooled(CONFIGURATION.id, {}, done=True)
        tracker.drain()
    finally:
        tracker.close()


def listed(client: MlflowClient, experiment: str) -> list[Any]:
    """The runs of an experiment."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def runs_of(client: MlflowClient) -> dict[str, Any]:
    """Runs of both experiments by identity; fails on duplicates."""
    found = [*listed(client, "toy"), *listed(client, "toy trainings")]
    identities = [run.data.tags["harness.identity"] for run in found]
    assert len(set(identities)) == len(identities)
    return dict(zip(identities, found, strict=True))


def artifacts_of(client: MlflowClient, run: str, folder: str = "") -> list[str]:
    """Paths of all artifacts of a run."""
    found: list[str] = []
    for one in client.list_artifacts(run, folder):
        found += artifacts_of(client, run, one.path) if one.is_dir else [one.path]
    return sorted(found)


class TestConfigurations:
    """Runs of configurations."""

    def test_configurations_and_trainings_are_separate(self, settings: RunSettings, client: MlflowClient) -> None:
        """Configurations and trainings are in separate experiments, and a training has its parent as a tag."""
        with tracking(settings) as tracker:
            for fold in range(3):
                tracker.cell(dataclasses.replace(TRAIN, identity=f"train-{fold}", fold=fold), {}, {})
            tracker.wait()
            parent = tracker.run_of(CONFIGURATION.id)
        assert [run.info.run_id for run in listed(client, "toy")] == [parent]
        assert [run.data.tags["mlflow.parentRunId"] for run in listed(client, "toy trainings")] == [parent] * 3

    def test_facts_before_the_first_result(self, settings: RunSettings, client: MlflowClient) -> None:
        """A configuration has name, parameters, source and data set before anything is computed."""
        with tracking(settings):
            pass
        run = runs_of(client)[CONFIGURATION.id]
        assert run.info.run_name == "T2w unet"
        assert run.data.params == {
            "sequences": "T2w", "adapter.use": "axial_slices", "adapter.channels": "T2w", "model.use": "unet",
            "model.width": "4", "recipe.use": "supervised", "recipe.lr": "0.01", "split.use": "leave_one_subject_out",
            "targets.lesions.use": "mask", "targets.lesions.weight": "1.0",
        }  # fmt: skip
        assert run.data.tags["mlflow.source.name"] == "harness run task=toy"
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("phantom", "0123456789abcdef")
        assert json.loads(used.dataset.source) == {"uri": "/data/phantom"}
        assert json.loads(used.dataset.profile) == {"subjects": 4}

    def test_the_note_leads_to_the_trainings(self, settings: RunSettings, client: MlflowClient) -> None:
        """The first paragraph of the note links to the trainings, and tags are set."""
        with tracking(settings) as tracker:
            tracker.describe(CONFIGURATION.id, "**Rank 1 of 8**\n\nReport: `x`", tags={"rank": "1 of 8"})
            tracker.wait()
            parent = tracker.run_of(CONFIGURATION.id)
        run = runs_of(client)[CONFIGURATION.id]
        first, second = run.data.tags["mlflow.note.content"].split("\n\n")
        trainings = client.get_experiment_by_name("toy trainings")
        assert trainings is not None
        assert first.startswith(
            f"**Rank 1 of 8** · [Trainings of this configuration](#/experiments/{trainings.experiment_id}/"
        )
        assert parent in first and second == "Report: `x`"
        assert run.data.tags["rank"] == "1 of 8"

    def test_unchanged_note_is_not_written_again(
        self, settings: RunSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unchanged note is not written again, also by another tracker."""
        with tracking(settings) as tracker:
            tracker.describe(CONFIGURATION.id, "same", tags={"rank": "1 of 2"})
        with tracking(settings) as tracker:
            tracker.wait()
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, "log_batch", lambda *given, **more: pytest.fail("written twice"))
                tracker.describe(CONFIGURATION.id, "same", tags={"rank": "1 of 2"})
                tracker.wait()
            assert tracker.trouble == ""

    def test_a_changed_parameter_does_not_raise(self, settings: RunSettings, client: MlflowClient) -> None:
        """A changed parameter keeps its first value, since MLflow does not allow a change."""
        renamed = dataclasses.replace(CONFIGURATION, axes={"sequences": "T2w again"})
        assert renamed.id == CONFIGURATION.id
        with tracking(settings):
            pass
        with tracking(settings) as tracker:
            tracker.open([parent_of(renamed)], VIEW)
            tracker.cell(TRAIN, {}, {})
        assert runs_of(client)[CONFIGURATION.id].data.params["sequences"] == "T2w"

    def test_interrupted_run_is_killed(self, settings: RunSettings, client: MlflowClient) -> None:
        """An interrupted run is KILLED, and repeating the command finishes it."""
        with tracking(settings, pool=False):
            pass
        assert runs_of(client)[CONFIGURATION.id].info.status == "KILLED"
        with tracking(settings):
            pass
        assert runs_of(client)[CONFIGURATION.id].info.status == "FINISHED"

    def test_limits_of_mlflow_requests(self, settings: RunSettings, client: MlflowClient) -> None:
        """Numbers of metrics, parameters and tags above MLflow's limits per request are written completely."""
        wide = dataclasses.replace(CONFIGURATION, axes={f"axis{number}": number for number in range(130)})
        tracker = Tracker(settings, "toy")
        tracker.open([parent_of(wide)], VIEW)
        tracker.pooled(wide.id, {f"metric{number}": number for number in range(1300)}, done=True)
        tracker.describe(wide.id, "", tags={f"tag{number}": str(number) for number in range(130)})
        tracker.drain()
        tracker.close()
        run = runs_of(client)[wide.id]
        assert len(run.data.metrics) == 1300
        assert sum(name.startswith("axis") for name in run.data.params) == 130
        assert sum(name.startswith("tag") for name in run.data.tags) == 130


class TestTrainings:
    """Runs of trainings."""

    def test_cells_of_one_training_share_a_run(self, settings: RunSettings, client: MlflowClient) -> None:
        """Metrics of an explanation have its label as a prefix, and times the name of the cell."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {"loss": [2.0, 1.0]})
            tracker.cell(dataclasses.replace(TRAIN, identity="score-0", stage="score"), {"dice": 0.75}, {})
            tracker.cell(SCORE, {"ap": 0.5}, {})
        (run,) = listed(client, "toy trainings")
        assert run.data.metrics == {
            "by epoch/loss": 1.0, "dice": 0.75, "saliency/ap": 0.5, "seconds/train": 2.5, "seconds/score": 2.5,
            "seconds/score saliency": 2.5,
        }  # fmt: skip
        assert run.data.params == {"sequences": "T2w", "fold": "0", "seed": "1"}
        assert run.data.tags["harness.machine"] == "x86" and "harness.gpu" not in run.data.tags
        assert (run.info.run_name, run.info.status) == ("T2w unet fold 0 seed 1", "FINISHED")

    def test_an_ensemble_has_a_separate_run(self, settings: RunSettings, client: MlflowClient) -> None:
        """An ensemble of folds has a separate run, named "ensemble"."""
        with tracking(settings) as tracker:
            tracker.cell(dataclasses.replace(SCORE, fold=-1), {"ap": 0.5}, {})
        (run,) = listed(client, "toy trainings")
        assert run.info.run_name == "T2w unet ensemble seed 1"

    def test_metrics_and_curves(self, settings: RunSettings, client: MlflowClient) -> None:
        """Values are logged at step 0 and curves from epoch 1, without NaN."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5, "icc": float("nan")}, {"loss": [3.0, 2.0, 1.0]})
        run = runs_of(client)[TRAINING]
        assert run.data.metrics == {"dice": 0.5, "seconds/train": 2.5, "by epoch/loss": 1.0}
        points = client.get_metric_history(run.info.run_id, "by epoch/loss")
        assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0), (3, 1.0)]

    def test_duration_is_that_of_the_training(self, settings: RunSettings, client: MlflowClient) -> None:
        """The duration of a run is that of the training."""
        with tracking(settings) as tracker:
            tracker.cell(dataclasses.replace(TRAIN, seconds=3600.0), {}, {})
        info = runs_of(client)[TRAINING].info
        assert 3600 <= (info.end_time - info.start_time) / 1000 < 3660

    def test_repeated_cell_makes_no_duplicate(self, settings: RunSettings, client: MlflowClient) -> None:
        """Logging a cell again, in the same or another tracker, makes no second run and no second value."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.wait()
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.wait()
            first = tracker.run_of(CONFIGURATION.id)
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"dice": 0.5}, {})
            tracker.wait()
            assert tracker.run_of(CONFIGURATION.id) == first
        runs = runs_of(client)
        assert set(runs) == {CONFIGURATION.id, TRAINING}
        assert len(client.get_metric_history(runs[TRAINING].info.run_id, "dice")) == 1

    def test_a_later_command_adds_to_a_training(self, settings: RunSettings, client: MlflowClient) -> None:
        """A new attribution is logged to the existing run of its training."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {"loss": [1.0]})
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {"loss": [1.0]})
            tracker.cell(SCORE, {"ap": 0.5}, {})
        (run,) = listed(client, "toy trainings")
        assert {"by epoch/loss", "saliency/ap"} <= set(run.data.metrics)

    @pytest.mark.parametrize("again", ["the same tracker", "another tracker"])
    def test_a_failed_cell_that_succeeds_later(self, settings: RunSettings, client: MlflowClient, again: str) -> None:
        """A run with a failed cell is FAILED, and FINISHED once the cell succeeds."""
        with tracking(settings, pool=False) as tracker:
            tracker.cell(FAILED, {}, {})
            tracker.pooled(CONFIGURATION.id, {}, done=False)
            tracker.drain()
            failed = runs_of(client)
            assert {run.info.status for run in failed.values()} == {"FAILED"}
            assert failed[TRAINING].data.tags["harness.error.train"] == "ValueError: too wide (networks.py:7)"
            if again == "the same tracker":
                tracker.cell(TRAIN, {"dice": 0.5}, {})
                tracker.pooled(CONFIGURATION.id, {}, done=True)
        if again == "another tracker":
            with tracking(settings) as tracker:
                tracker.cell(TRAIN, {"dice": 0.5}, {})
        done = runs_of(client)
        assert {run.info.status for run in done.values()} == {"FINISHED"}
        assert done[TRAINING].info.run_id == failed[TRAINING].info.run_id
        assert "harness.error.train" not in done[TRAINING].data.tags and done[TRAINING].data.metrics["dice"] == 0.5

    def test_failed_explanation_keeps_other_results(self, settings: RunSettings, client: MlflowClient) -> None:
        """With a failed explanation, the run is FAILED and keeps the metrics of others."""
        explain = dataclasses.replace(FAILED, identity="explain-1", stage="explain", label="lime", error="E: no")
        with tracking(settings, pool=False) as tracker:
            tracker.cell(TRAIN, {}, {"loss": [1.0]})
            tracker.cell(explain, {}, {})
            tracker.cell(SCORE, {"ap": 0.5}, {})
            tracker.pooled(CONFIGURATION.id, {}, done=False)
        (run,) = listed(client, "toy trainings")
        assert run.info.status == "FAILED" and run.data.metrics["saliency/ap"] == 0.5
        assert {key: value for key, value in run.data.tags.items() if "error" in key} == {
            "harness.error.explain lime": "E: no"
        }

    def test_a_repeated_training_has_one_curve(self, settings: RunSettings, client: MlflowClient) -> None:
        """A training of other code replaces the run of the older one."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {}, {"loss": [3.0, 2.0]})
            tracker.cell(SCORE, {"ap": 0.5}, {})
        with tracking(settings) as tracker:
            tracker.cell(dataclasses.replace(TRAIN, identity="train-2"), {}, {"loss": [9.0, 8.0]})
        (run,) = listed(client, "toy trainings")
        points = client.get_metric_history(run.info.run_id, "by epoch/loss")
        assert [point.value for point in points] == [9.0, 8.0] and "saliency/ap" not in run.data.metrics

    def test_waiting_cells_are_written_in_one_request(
        self, settings: RunSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten waiting cells of two trainings are written in two requests."""
        sent: list[int] = []
        original, connect, waiting = MlflowClient.log_batch, MlflowClient.get_experiment_by_name, threading.Event()

        def counted(self: MlflowClient, run: str, metrics: Any = (), **more: Any) -> Any:
            sent.extend([len(metrics)] if metrics else [])
            return original(self, run, metrics=metrics, **more)

        def late(self: MlflowClient, name: str) -> Any:
            waiting.wait()
            return connect(self, name)

        monkeypatch.setattr(MlflowClient, "log_batch", counted)
        monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
        with tracking(settings) as tracker:
            for number in range(10):
                record = dataclasses.replace(TRAIN, identity=f"{number}-cell", fold=number % 2, label=f"a{number}")
                tracker.cell(record, {f"metric{number}": number for number in range(19)}, {"loss": [1.0] * 20})
            waiting.set()
        assert sent == [200, 200]

    def test_names_that_mlflow_refuses(self, settings: RunSettings, client: MlflowClient) -> None:
        """Characters that MLflow refuses in names become underscores."""
        with tracking(settings) as tracker:
            tracker.cell(TRAIN, {"sensitivity@3mm[large]": 0.5}, {})
        assert runs_of(client)[TRAINING].data.metrics["sensitivity_3mm_large_"] == 0.5

    def test_a_cell_of_an_unknown_configuration_is_refused(self, settings: RunSettings) -> None:
        """A cell of an unknown configuration is refused."""
        with (
            pytest.raises(HarnessError, match=r"no run was opened for configuration another"),
            tracking(settings) as tracker,
        ):
            tracker.cell(dataclasses.replace(TRAIN, configuration="another"), {}, {})


class TestTwoDrivers:
    """Two processes with one output folder."""

    def test_a_run_created_by_the_other_process_is_continued(self, settings: RunSettings, client: MlflowClient) -> None:
        """A run that the other process created is continued."""
        with tracking(settings, pool=False) as one, tracking(settings) as other:
            for tracker in (one, other):
                tracker.wait()
            for tracker in (one, other):
                tracker.cell(TRAIN, {"dice": 0.5}, {})
                tracker.wait()
            assert one.run_of(CONFIGURATION.id) == other.run_of(CONFIGURATION.id)
        assert set(runs_of(client)) == {CONFIGURATION.id, TRAINING}

    def test_both_start_at_once_without_a_database(self, tmp_path: Path) -> None:
        """Two processes that start without a database make one, and no duplicate run."""
        script = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
            "from test_tracker import TRAIN, tracking, RunSettings\n"
            "with tracking(RunSettings(out=sys.argv[1])) as tracker: tracker.cell(TRAIN, {'dice': 0.5}, {})\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
        drivers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        assert [(driver.communicate()[1], driver.returncode) for driver in drivers] == [("", 0), ("", 0)]
        client = MlflowClient(tracking_uri=tracking_uri(RunSettings(out=str(tmp_path))))
        assert set(runs_of(client)) == {CONFIGURATION.id, TRAINING}


class TestPooled:
    """Pooled metrics and artifacts of a configuration."""

    def test_files_become_artifacts(self, settings: RunSettings, client: MlflowClient, tmp_path: Path) -> None:
        """Files are logged as artifacts under their relative paths, within the output folder."""
        folder = tmp_path / "pooled"
        for name in ("training.png", "maps/saliency_mean.nii.gz"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {"dice": 0.5, "saliency/ap": 0.25}, folder, done=True)
        run = runs_of(client)[CONFIGURATION.id]
        assert run.data.metrics == {"dice": 0.5, "saliency/ap": 0.25}
        assert artifacts_of(client, run.info.run_id) == ["maps/saliency_mean.nii.gz", "training.png"]
        assert run.info.artifact_uri.startswith((tmp_path / "mlflow-artifacts").as_uri())

    def test_failed_figure_is_a_tag(self, settings: RunSettings, client: MlflowClient) -> None:
        """A figure that failed is a tag until the run is written again, and the run is FINISHED."""
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="one", not_drawn="figures: no font")
        run = runs_of(client)[CONFIGURATION.id]
        assert (run.info.status, run.data.tags["harness.not_drawn"]) == ("FINISHED", "figures: no font")
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="two")
        assert "harness.not_drawn" not in runs_of(client)[CONFIGURATION.id].data.tags

    def test_unchanged_values_are_not_written_again(
        self, settings: RunSettings, client: MlflowClient, tmp_path: Path
    ) -> None:
        """Pooled values with the same digest are not written again, also by another tracker."""
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
        """A new cell sets a finished configuration to RUNNING."""
        with tracking(settings, pool=False) as tracker:
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="one")
            tracker.cell(TRAIN, {}, {})
            tracker.wait()
            assert runs_of(client)[CONFIGURATION.id].info.status == "RUNNING"
            assert not tracker.is_pooled(CONFIGURATION.id, "one")
            tracker.pooled(CONFIGURATION.id, {}, done=True, digest="one")


class TestAnonymous:
    """With ``anonymous=true``, no name of a subject is written."""

    ERROR = "CellError: the map of sub-0042_ses-2 holds inf; also patient seven (and 1007) in /data/sub-0042/anat"

    def written(self, settings: RunSettings, tmp_path: Path) -> str:
        """The content of the database as text."""
        named = dataclasses.replace(CONFIGURATION, axes={"sequences": "T2w", "left_out": "sub-0042", "width": 1007})
        subjects = ["sub-0042", "sub-0042_ses-2", "patient seven", "1007", "07"]
        tracker = Tracker(settings, "toy", command="harness run exclude=sub-0042", subjects=subjects)
        cohort = Dataset("all but patient seven", "ab", "/data/sub-0042", {"subjects": 4, "first": "sub-0042"})
        tracker.open([ParentRun(named, "all but sub-0042", cohort)], VIEW)
        tracker.cell(dataclasses.replace(FAILED, configuration=named.id, error=self.ERROR), {"dice": 0.5}, {})
        tracker.describe(named.id, "no dice for sub-0042", tags={"rank": "no dice for sub-0042"})
        tracker.pooled(named.id, {"dice": 0.5}, done=False, not_drawn="subjects: KeyError: 'patient seven'")
        tracker.drain()
        tracker.close()
        return (tmp_path / "mlflow.db").read_bytes().decode(errors="replace")

    def test_database_contains_no_names(self, settings: RunSettings, tmp_path: Path) -> None:
        """Names of subjects are replaced in all tags, parameters and names, and the text around them is kept."""
        found = self.written(dataclasses.replace(settings, anonymous=True), tmp_path)
        assert not [name for name in ("sub-0042", "ses-2", "patient seven") if name in found]
        assert "the map of [subject] holds inf; also [subject] (and [subject]) in /data/[subject]/anat" in found
        assert "all but [subject]" in found

    def test_values_of_options_are_kept(self, settings: RunSettings, tmp_path: Path, client: MlflowClient) -> None:
        """The value of an option is kept, even if a subject has the same name."""
        self.written(dataclasses.replace(settings, anonymous=True), tmp_path)
        assert runs_of(client)[CONFIGURATION.id].data.params["width"] == "1007"

    def test_names_are_kept_by_default(self, settings: RunSettings, tmp_path: Path) -> None:
        """Without ``anonymous``, errors contain the name of the subject."""
        assert self.ERROR in self.written(settings, tmp_path)

    def test_longer_names_are_replaced_first(self, settings: RunSettings, client: MlflowClient) -> None:
        """Of ``pat1`` and ``pat12``, the longer name is replaced first, and other words are kept."""
        hidden = dataclasses.replace(settings, anonymous=True)
        with tracking(hidden, subjects=["pat1", "pat12"]) as tracker:
            tracker.cell(dataclasses.replace(FAILED, error="E: pat12, pat1, pat123 and path"), {}, {})
        error = runs_of(client)[TRAINING].data.tags["harness.error.train"]
        assert error == "E: [subject], [subject], pat123 and path"


def test_twins_are_removed(settings: RunSettings, client: MlflowClient) -> None:
    """Of two runs with one identity, as two processes with one server can create them, the oldest is continued."""
    with tracking(settings):
        pass
    run = runs_of(client)[CONFIGURATION.id]
    later = client.create_run(
        run.info.experiment_id, start_time=run.info.start_time + 1, tags={"harness.identity": CONFIGURATION.id}
    )
    with tracking(settings):
        pass
    assert runs_of(client)[CONFIGURATION.id].info.run_id == run.info.run_id
    assert client.get_run(later.info.run_id).info.lifecycle_stage == "deleted"


def test_training_that_was_logged_but_not_ended_is_ended(settings: RunSettings, client: MlflowClient) -> None:
    """If a process was killed between writing a training's results and ending its run, the next one ends it."""
    with tracking(settings) as tracker:
        tracker.cell(TRAIN, {}, {})
    run = runs_of(client)[TRAINING]
    client.update_run(run.info.run_id, status="RUNNING")
    with tracking(settings) as tracker:
        tracker.cell(TRAIN, {}, {})
    assert runs_of(client)[TRAINING].info.status == "FINISHED"


class TestTrouble:
    """A tracker that cannot write."""

    @pytest.fixture
    def unreachable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
        """Settings with an MLflow server on a port without one."""
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        return RunSettings(out=str(tmp_path), mlflow="http://user:hidden@127.0.0.1:1")

    def test_unreachable_server_raises_at_the_end(self, unreachable: RunSettings) -> None:
        """The error after the run names the server without the password and suggests a remedy."""
        tracker = Tracker(unreachable, "toy")
        tracker.open([parent_of(CONFIGURATION)], VIEW)
        tracker.cell(TRAIN, {"dice": 0.5}, {})
        tracker.pooled(CONFIGURATION.id, {"dice": 0.5}, done=True)
        with pytest.raises(
            HarnessError, match=r"cannot write to MLflow at http://user:\*\*\*@127\.0\.0\.1:1: .* mlflow=off"
        ) as caught:
            tracker.drain()
        assert "hidden" not in str(caught.value)
        assert tracker.run_of(CONFIGURATION.id) == ""
        tracker.close()

    def test_trouble_can_be_read_early(self, unreachable: RunSettings) -> None:
        """The error can be read before the end of the run."""
        tracker = Tracker(unreachable, "toy")
        assert tracker.trouble == ""
        tracker.open([parent_of(CONFIGURATION)], VIEW)
        tracker.wait()
        assert tracker.trouble.startswith("cannot write to MLflow at http://user:***@127.0.0.1:1: ")
        tracker.close()

    def test_an_error_in_the_middle_stops_writing(
        self, settings: RunSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After an error, nothing more is written, and the error is kept."""
        with (
            pytest.raises(HarnessError, match=r"disk is full\. All finished cells are in the store"),
            tracking(settings) as tracker,
        ):
            tracker.cell(TRAIN, {}, {})
            tracker.wait()
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, "create_run", self._full)
                tracker.cell(dataclasses.replace(TRAIN, identity="train-2", fold=1), {}, {})
                tracker.wait()
            tracker.cell(dataclasses.replace(TRAIN, identity="train-3", fold=2), {}, {})
        assert set(runs_of(client)) == {CONFIGURATION.id, TRAINING}

    @staticmethod
    def _full(*given: Any, **more: Any) -> Any:
        raise OSError("disk is full")


class TestLocation:
    """Where runs and artifacts are stored."""

    def test_default_location_is_the_output_folder(self, tmp_path: Path) -> None:
        """By default, the database is in the output folder."""
        assert tracking_uri(RunSettings(out=str(tmp_path))) == f"sqlite:///{tmp_path / 'mlflow.db'}"
        assert tracking_uri(RunSettings(mlflow="http://host:5000")) == "http://host:5000"

    def test_name_of_the_folder_may_contain_any_character(self, empty_database: Path, tmp_path: Path) -> None:
        """Runs and artifacts are in the output folder, whatever characters its name contains."""
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
        """The password of an address is not shown."""
        assert shown_uri(RunSettings(mlflow="https://me:pass@host:5000")) == "https://me:***@host:5000"
        assert shown_uri(RunSettings(mlflow="https://host:5000")) == "https://host:5000"

    def test_artifacts_of_a_named_database_are_not_in_the_working_folder(
        self, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Artifacts of a database given by address are not in the working folder, MLflow's default."""
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


def test_result_of_a_search_is_a_tag(settings: RunSettings, client: MlflowClient) -> None:
    """The result of a search is a tag of the configuration."""
    with tracking(settings, pool=False, subjects={"sub-07"}) as tracker:
        tracker.describe(CONFIGURATION.id, "", tags={"chosen.fold 0 seed 0": "recipe.lr=0.01"})
    assert runs_of(client)[CONFIGURATION.id].data.tags["chosen.fold 0 seed 0"] == "recipe.lr=0.01"
