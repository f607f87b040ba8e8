"""A study that uses all interfaces runs by the console command, with and without Ray, and resumes after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.pipeline.leaderboard import VOLATILE

SOURCE = Path(__file__).parent / "portraits.py"
COMMAND = "from harness.cli.main import main; main()"
GATE, SMILES = "gate", "smiles"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package and its entry points."""
    folder = tmp_path_factory.mktemp("site")
    package, metadata = folder / "portraits_study", folder / "portraits_study-0.1.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").touch()
    shutil.copyfile(SOURCE, package / "task.py")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: portraits-study\nVersion: 0.1\n")
    groups = ("harness.tasks", "harness.plugins")
    points = [f"[{group}]\nportraits = portraits_study.task" for group in groups]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    return folder


def environment(site: Path) -> dict[str, str]:
    """Environment of a process that has the package installed."""
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(site: Path, folder: Path, *overrides: str) -> str:
    """Run the console command in a folder and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", "task=portraits", *overrides],
        cwd=folder, env=environment(site), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(folder: Path, end: str = "") -> list[dict[str, str]]:
    """Rows of the leaderboard without columns that may differ between runs."""
    path = folder / "harness-runs" / "leaderboards" / "portraits" / f"default{end}.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


def records(folder: Path, stage: str) -> list[dict[str, object]]:
    """Records of a stage in the store."""
    found = (folder / "harness-runs" / "store" / stage).rglob("record.json")
    return [json.loads(path.read_text()) for path in sorted(found)]


@pytest.fixture(scope="module")
def finished(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the default command without Ray."""
    folder = tmp_path_factory.mktemp("a study, 50% done")
    run(site, folder, "ray=off")
    return folder


def test_three_kinds_of_targets_share_one_network(finished: Path) -> None:
    """A number, a binary and a classes target have their metrics in one row."""
    (row,) = table(finished)
    assert all(row[name] for name in ("r2", "auroc", "balanced_accuracy", "brier"))


def test_fixed_test_set_is_predicted_by_all_folds_averaged(finished: Path) -> None:
    """One predict cell averages both networks, and the row has values of test and validation samples."""
    networks = sorted(one["facts"]["networks"] for one in records(finished, "predict"))  # type: ignore[index]
    (row,) = table(finished)
    assert networks == [1, 1, 2]
    assert row["auroc"] and row["auroc_validation"]


def test_both_samples_of_a_subject_are_in_the_same_set(finished: Path) -> None:
    """Both samples of a subject are in the same set of a split."""
    for record in records(finished, "train"):
        folder = finished / "harness-runs" / "store" / "train" / str(record["identity"])
        split = json.loads((folder / "split.json").read_text())
        subjects = {side: {name.partition("_")[0] for name in names} for side, names in split.items()}
        assert not subjects["train"] & subjects["validation"]
        assert len(split["train"]) == 2 * len(subjects["train"])


def test_explanations_of_chosen_samples(finished: Path) -> None:
    """With a rule, at most three samples of each fold are explained, and otherwise more."""
    chosen = [one["facts"]["samples"] for one in records(finished, "explain") if one["label"] == SMILES]  # type: ignore[index]
    all_samples = [one["facts"]["samples"] for one in records(finished, "explain") if one["label"] == GATE]  # type: ignore[index]
    assert chosen and all(1 <= len(one) <= 3 for one in chosen)
    assert all(len(one) > 3 for one in all_samples)


def test_exposed_scalar_is_explained(finished: Path) -> None:
    """The exposed gate has maps with one combined channel."""
    facts = [one["facts"] for one in records(finished, "explain") if one["label"] == GATE]
    assert {(tuple(one["outputs"]), tuple(one["channels"])) for one in facts} == {(("gate",), ("all",))}  # type: ignore[index]


def test_probe_metric_ranks_explanations(finished: Path) -> None:
    """The probe metric has a value for every explanation."""
    rows = table(finished, "-explanations")
    assert {row["attribution"] for row in rows} == {"gate", "random", "saliency", "smiles"}
    assert all(float(row["fall_when_masked"]) >= 0 for row in rows)


def test_explanations_are_ranked_within_a_scalar(finished: Path) -> None:
    """Explanations of the gate, of one logit of chosen samples, and of all targets are ranked separately."""
    ranked: dict[tuple[str, str], list[str]] = {}
    for row in table(finished, "-explanations"):
        ranked.setdefault((row["explained_scalar"], row["explained_samples"]), []).append(row["attribution"])
    assert {key: sorted(labels) for key, labels in ranked.items()} == {
        ("all targets", "tested"): ["random", "saliency"],
        ("gate", "tested"): ["gate"],
        ("smile", "correct by smile, at most 3"): ["smiles"],
    }


def test_pooled_metric_of_a_probe(finished: Path) -> None:
    """The ROC area of masked images has a value for explanations of the smile, and none for the gate."""
    rows = {row["attribution"]: row["auroc_when_masked"] for row in table(finished, "-explanations")}
    assert rows["gate"] == "" and 0 <= float(rows["saliency"]) <= 1 and 0 <= float(rows["random"]) <= 1


def test_inversion_evaluates_the_target_beside_the_scalar(finished: Path) -> None:
    """Voxel inversion of a map of the gate changes the logit of the smile, on validation and test samples."""
    rows = {row["attribution"]: row for row in table(finished, "-explanations")}
    for label in ("gate", "saliency", "random"):
        row = rows[label]
        assert 0 <= float(row["inversion_area"]) <= 1 and 0 <= float(row["random_inversion_area"]) <= 1
        assert -1 <= float(row["masked_mean_correlation"]) <= 1
    without = {rows[label]["auroc_without_inversion"] for label in ("gate", "saliency", "random")}
    assert len(without) == 1  # the images without a mask are the same for all maps
    assert "inverted_logits" not in rows["gate"] and 0 < float(rows["gate"]["masked_mean_p"]) <= 1


def test_each_target_has_lines_of_its_metrics(finished: Path) -> None:
    """The table of regions has a line for each target and metric of its predictions."""
    rows = [row for row in table(finished, "-regions") if not row["attribution"]]
    assert {("age", "r2"), ("smile", "auroc"), ("hair", "balanced_accuracy")} <= {
        (row["region"], row["metric"]) for row in rows
    }
    assert ("age", "auroc") not in {(row["region"], row["metric"]) for row in rows}


def test_one_fold_gives_validation_values_without_a_rank(finished: Path, site: Path) -> None:
    """Without the other fold there is no ensemble, so that the row has no test values and no rank."""
    run(site, finished, "ray=off", "fold=0", "mlflow=off", "report=false")
    (path,) = (finished / "harness-runs" / "leaderboards" / "portraits").glob("*-[0-9a-f]*[0-9a-f].csv")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["rank"], row["auroc"]) == ("", "") and row["auroc_validation"]
    assert row["status"] == "incomplete: no ensemble on the fixed test set, which needs all folds"


def test_run_ends_in_mlflow_and_report(finished: Path) -> None:
    """The MLflow database contains the configuration, and the report its metrics."""
    out = finished / "harness-runs"
    with sqlite3.connect(out / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select name from runs")}
    database.close()
    assert any("gated" in name for name in names)
    assert "balanced_accuracy" in (out / "reports" / "portraits" / "default" / "index.html").read_text()


def test_repeated_command_computes_nothing(finished: Path, site: Path) -> None:
    """Repeating the command computes no cell."""
    before = {str(path): path.stat().st_mtime_ns for path in (finished / "harness-runs" / "store").rglob("record.json")}
    output = run(site, finished, "ray=off")
    after = {str(path): path.stat().st_mtime_ns for path in (finished / "harness-runs" / "store").rglob("record.json")}
    assert before == after
    assert ", 0 to do" in output


def test_killed_run_resumes_to_the_same_table(finished: Path, site: Path, tmp_path: Path) -> None:
    """After SIGKILL, repeating the command gives the same tables as an uninterrupted run."""
    command = [sys.executable, "-c", COMMAND, "run", "task=portraits", "ray=off"]
    started = subprocess.Popen(command, cwd=tmp_path, env=environment(site), stdout=subprocess.DEVNULL)
    store = tmp_path / "harness-runs" / "store"
    deadline = time.monotonic() + 300
    while not list(store.glob("explain/*/record.json")) and time.monotonic() < deadline:
        assert started.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    partial = len(list(store.glob("explain/*/record.json")))
    run(site, tmp_path, "ray=off")
    assert partial < len(records(finished, "explain"))
    assert (table(tmp_path), table(tmp_path, "-explanations")) == (table(finished), table(finished, "-explanations"))


@pytest.mark.ray
def test_ray_gives_the_same_table(finished: Path, site: Path, tmp_path: Path) -> None:
    """A run with Ray gives the same tables."""
    run(site, tmp_path, "ray=auto", "workers=2", "mlflow=off", "report=false")
    assert _without_run(table(tmp_path)) == _without_run(table(finished))
    assert _without_run(table(tmp_path, "-explanations")) == _without_run(table(finished, "-explanations"))


def test_new_pictures_are_predicted_by_all_networks(finished: Path, site: Path, tmp_path: Path) -> None:
    """Predictions of new pictures have a number, a probability and a probability of each class."""
    configuration = records(finished, "train")[0]["configuration"]
    (pictures,) = (finished / "harness-runs" / "phantoms").iterdir()
    data = pictures.relative_to(finished)
    overrides = [f"model={configuration}", f"data={data}", f"into={tmp_path / 'new'}"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "predict", *overrides],
        cwd=finished, env=environment(site), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 trained networks")
    with (tmp_path / "new" / "predictions.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 36
    hair = [float(value) for key, value in rows[0].items() if key.startswith("hair_probability_")]
    assert sum(hair) == pytest.approx(1, abs=1e-4) and 0 <= float(rows[0]["smile_probability"]) <= 1
    assert {"participant_id", "age", "hair_probability_red"} <= set(rows[0])


@pytest.mark.ray
@pytest.mark.slow
def test_ensemble_of_searched_networks(site: Path, tmp_path: Path) -> None:
    """The ensemble averages networks of different width, as chosen by the search of each fold."""
    overrides = ("search=optuna", "trials=2", "model.width=interval(2,40)", "attribution=random")
    run(site, tmp_path, *overrides, "mlflow=off", "report=false")
    sizes = {one["facts"]["parameters"] for one in records(tmp_path, "train")}  # type: ignore[index]
    networks = sorted(one["facts"]["networks"] for one in records(tmp_path, "predict"))  # type: ignore[index]
    assert (len(sizes), networks) == (2, [1, 1, 2])
    (path,) = (tmp_path / "harness-runs" / "leaderboards" / "portraits").glob("*-[0-9a-f]*[0-9a-f].csv")
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    # No network has the task's own width, so that the command must not set it.
    assert "width" not in row and row["searched"].startswith("model.width in [2, 40]") and row["auroc"]
    assert " width=" not in row["command"]


def _without_run(rows: list[Mapping[str, str]]) -> list[dict[str, str]]:  # type: ignore[type-arg]
    """Rows without the command, which differs with Ray."""
    return [{key: value for key, value in row.items() if key != "command"} for row in rows]
