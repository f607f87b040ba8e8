"""The commands of ``harness`` in this process and without Ray."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import harness
from harness.cli import commands
from harness.cli.api import rebuild
from harness.cli.console import console
from harness.core.errors import CohortError, RequestError, UnknownName
from harness.core.types import Sample
from harness.data import nifti, transforms
from harness.pipeline.leaderboard import read_facts
from harness.pipeline.prediction import Place, write_masks
from harness.report.wording import failure_lines, row_labels, verdict
from harness.storage.store import CellRecord
from harness.sweep.grammar import to_overrides


@pytest.fixture(scope="session")
def small(small_run: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of a small run with explanations, in this process."""
    return (*small_run, "attribution=saliency", "sequences=T2w,FLAIR", "ray=off", "mlflow=off")


# Rotated by 0.2 radians about the third axis and translated.
OBLIQUE = np.array([
    [np.cos(0.2), -np.sin(0.2), 0, 4.0],
    [np.sin(0.2), np.cos(0.2), 0, -7.0],
    [0, 0, 1, 11.0],
    [0, 0, 0, 1],
])  # fmt: skip


@pytest.fixture(scope="module")
def out(small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished small run."""
    folder = tmp_path_factory.mktemp("commands") / "out"
    assert commands.run([*small, f"out={folder}"]) == 0
    return folder


def test_help_imports_neither_torch_nor_ray() -> None:
    """``harness --help`` imports no heavy dependency."""
    code = (
        "import sys; from harness.cli import main; "
        "sys.exit(bool({'torch', 'ray', 'mlflow', 'monai', 'pyarrow', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_invalid_request_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    """An invalid request prints one message with suggestions, no traceback, and exits with code 2."""
    command = [sys.executable, "-m", "harness", "run", "task=epvs", "sequnces=T2w"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no key is named 'sequnces'. Near: sequences")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_plan_counts_cells_and_trains_nothing(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """``harness plan`` counts the cells and computes none."""
    assert commands.plan([*small, f"out={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr().out
    assert "30 cells to do, 0 done." in shown
    assert not (tmp_path / "out" / "store" / "train").exists()


def test_plan_of_a_finished_run_has_nothing_to_do(
    out: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells in the store are counted as done, in total and in the row of the configuration."""
    commands.plan([*small, f"out={out}"])
    shown = capsys.readouterr().out
    assert "0 cells to do, 30 done." in shown
    rows = [line.split() for line in shown.splitlines() if " unet " in line]
    assert [row[-2:] for row in rows] == [["15", "15"]] * 2


def test_leaderboard_is_rebuilt_from_the_store(out: Path, board_of: Callable[..., Path], tmp_path: Path) -> None:
    """The leaderboard rebuilt from the store equals the one written by the run, byte for byte."""
    assert commands.leaderboard(["task=epvs", f"out={out}", f"csv={tmp_path / 'again.csv'}"]) == 0
    assert (tmp_path / "again.csv").read_bytes() == board_of(out).read_bytes()


def test_leaderboard_names_its_run_and_other_runs(
    out: Path, small: tuple[str, ...], board_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """``harness leaderboard`` shows the latest run with its command, or an earlier one by name."""
    first = board_of(out).stem
    assert commands.run([*small, f"out={out}", "fold=0", "report=false"]) == 0
    second = board_of(out).stem
    for overrides, shown, other in (([], second, first), ([f"run={first}"], first, second)):
        capsys.readouterr()
        assert commands.leaderboard(["task=epvs", f"out={out}", *overrides]) == 0
        printed = capsys.readouterr().out
        assert f"run:         {shown}\n" in printed and f"other runs:  {other} (run=NAME shows one)" in printed
    assert f"command:     harness run {' '.join(small[:2])}" in printed
    assert commands.run([*small, f"out={out}"]) == 0


def test_report_contains_the_verdict(out: Path, board_of: Callable[..., Path]) -> None:
    """The report rebuilt from the store contains the verdict."""
    written = out / "reports" / "epvs" / board_of(out).stem / "index.html"
    written.unlink()
    assert commands.report(["task=epvs", f"out={out}"]) == 0
    page = html.unescape(written.read_text())
    assert verdict(harness.table(task="epvs", out=str(out))) in page


def test_leaderboard_of_a_task_without_runs_is_refused(tmp_path: Path) -> None:
    """Without any run of the task, the error names the command to run first."""
    with pytest.raises(RequestError, match=r"has no run of epvs; start one: harness run task=epvs"):
        commands.leaderboard(["task=epvs", f"out={tmp_path}"])


def test_few_subjects_are_shown_individually(
    out: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """With few subjects, the objective of each subject is shown."""
    assert commands.run([*small, f"out={out}"]) == 0
    shown = capsys.readouterr().out
    for subject in ("sub-01", "sub-02", "sub-03"):
        assert subject in shown


@pytest.fixture(scope="module")
def predicted(out: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """New subjects in LPS orientation on an oblique grid, and the folder of their predictions."""
    root = tmp_path_factory.mktemp("predicted") / "new"
    shutil.copytree(next((out / "phantoms").iterdir()), root)
    for path in root.glob("sub-*/anat/*.nii.gz"):
        array, affine = nifti.read(path)
        turned = np.diag([-1.0, -1.0, 1.0, 1.0])
        turned[:2, 3] = np.array(array.shape[:2]) - 1
        nifti.write(path, array[::-1, ::-1], OBLIQUE @ affine @ turned, dtype=np.float32)
    identity = next(iter((out / "store" / "configurations").glob("*.json"))).stem
    into = root.parent / "predictions"
    assert commands.predict([f"model={identity}", f"data={root}", f"out={out}", f"into={into}"]) == 0
    return root, into


def test_predictions_are_on_the_subjects_own_grid(predicted: tuple[Path, Path]) -> None:
    """Mask and probability have the grid of the subject's own image."""
    root, into = predicted
    image, affine = nifti.read(root / "sub-01/anat/sub-01_T2w.nii.gz")
    for name in ("mask", "probseg"):
        array, placed = nifti.read(into / f"sub-01/anat/sub-01_label-pvs_{name}.nii.gz")
        assert array.shape == image.shape
        np.testing.assert_allclose(placed, affine, atol=1e-5)
    assert 0 <= array.min() < array.max() <= 1


def test_prediction_keeps_its_world_coordinates(predicted: tuple[Path, Path], tmp_path: Path) -> None:
    """Each probability is written at its position in world coordinates, with zeros outside the predicted field."""
    root, _ = predicted
    file, affine = nifti.read(root / "sub-01/anat/sub-01_T2w.nii.gz")
    _, ras_affine = transforms.reorient(file, affine)
    probability = np.random.default_rng(0).random((9, 8, 3)).astype(np.float32)  # a crop that starts at voxel (5, 4, 2)
    corner = ras_affine @ np.array([[1, 0, 0, 5], [0, 1, 0, 4], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    sample = Sample("sub-01", "sub-01", {}, {}, {}, corner, transforms.spacing_of(corner))
    paths = write_masks(tmp_path, sample, probability, Place(file.shape, affine), "pvs")
    written, placed = nifti.read(paths[0])
    assert np.count_nonzero(written) == probability.size
    for voxel in np.argwhere(written > 0):
        world = placed @ [*voxel, 1]
        i, j, k, _ = np.rint(np.linalg.solve(corner, world)).astype(int)
        assert written[tuple(voxel)] == pytest.approx(probability[i, j, k], abs=1e-5)
    np.testing.assert_array_equal(nifti.read(paths[1])[0], written > 0.5)


def test_coarse_prediction_is_resampled_to_the_fine_grid(tmp_path: Path) -> None:
    """Resampling to a finer grid moves the centre of mass by at most 0.1 mm; masks use the nearest voxel."""
    coarse = OBLIQUE @ np.diag([3.0, 3.0, 3.0, 1.0])
    fine = OBLIQUE @ np.array([[1, 0, 0, -1.0], [0, 1, 0, -1.0], [0, 0, 1, -1.0], [0, 0, 0, 1]])
    probability = np.zeros((6, 6, 6), np.float32)
    probability[2:4, 1:4, 3] = 0.9
    sample = Sample("sub-01", "sub-01", {}, {}, {}, coarse, (3.0, 3.0, 3.0))
    paths = write_masks(tmp_path, sample, probability, Place((18, 18, 18), fine), "pvs")
    for path in paths:
        values, affine = nifti.read(path)
        np.testing.assert_allclose(_centre(values, affine), _centre(probability, coarse), atol=0.1)
    assert set(np.unique(nifti.read(paths[1])[0])) == {0, 1}
    assert nifti.read(paths[1])[0].sum() == 27 * 6


def test_sessions_have_separate_folders(tmp_path: Path) -> None:
    """Files of a session are written to the session's folder, as in BIDS."""
    sample = Sample("sub-01_ses-2", "sub-01", {}, {}, {}, np.eye(4), (1.0, 1.0, 1.0))
    paths = write_masks(tmp_path, sample, np.ones((3, 3, 3), np.float32), Place((3, 3, 3), np.eye(4)), "pvs")
    assert paths[0] == tmp_path / "sub-01/ses-2/anat/sub-01_ses-2_label-pvs_probseg.nii.gz"


def test_predictions_are_a_bids_derivative(predicted: tuple[Path, Path]) -> None:
    """The description of the predictions names the type, the networks and the source data set."""
    root, into = predicted
    facts = json.loads((into / "dataset_description.json").read_text())
    assert facts["DatasetType"] == "derivative" and facts["BIDSVersion"]
    assert facts["GeneratedBy"][0]["Name"] == "harness"
    assert len(facts["GeneratedBy"][0]["Parameters"]["networks"]) == 3
    assert facts["SourceDatasets"] == [{"URL": root.as_uri()}]


def test_predictions_are_not_written_into_another_data_set(out: Path, predicted: tuple[Path, Path]) -> None:
    """``harness predict`` refuses to write into a folder with another data set and leaves it unchanged."""
    root, _ = predicted
    before = sorted(root.rglob("*"))
    identity = next(iter((out / "store" / "configurations").glob("*.json"))).stem
    with pytest.raises(RequestError, match=r"holds another data set .*; nothing was written"):
        commands.predict([f"model={identity}", f"data={root}", f"out={out}", f"into={root}"])
    assert sorted(root.rglob("*")) == before


def _centre(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in mm."""
    voxels = np.argwhere(values > 0)
    weights = values[tuple(voxels.T)]
    return (affine @ np.r_[np.average(voxels, axis=0, weights=weights), 1])[:3]


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("report", ["task=epvs", "csv=a.csv"], r"harness report does not use csv=; it takes out=, run=, task=. "
         r"csv= is a key of: harness leaderboard$"),
        ("report", ["task=epvs", "seed=1"], r"does not use seed=.*is a key of: harness run, harness plan"),
        ("report", ["task=epvs", "recipe.lr=interval(0,1)"], r"does not use recipe\.lr=.*harness run"),
        ("report", ["task=epvs", "cvs=a"], r"no key of harness report is named 'cvs'\. All: out, run, task"),
        ("leaderboard", ["task=epvs", "sequences=T2w"], r"harness leaderboard does not use sequences="),
        ("leaderboard", ["task=epvs", "run=a,b"], r"takes one value of run, got run=a,b"),
        ("leaderboard", ["task=epvs", "experiment=ablation"], r"does not use experiment="),
        ("predict", ["model=a", "data=b", "label=pvs"], r"harness predict does not use label=.*harness data verify"),
        ("predict", ["model=a,b", "data=b"], r"harness predict takes one value of model, got model=a,b"),
        ("describe", ["task=epvs", "model=unet"], r"describe task=NAME does not use model=.*harness describe"),
        ("describe", ["model=unet", "split=k_fold"], r"exactly one key must be given, task=NAME or one of"),
        ("describe", ["task=epvs", "format=yaml"], r"no format is named 'yaml'.*All: json, text"),
        ("ui", ["port=5000", "task=epvs"], r"harness ui does not use task="),
        ("ui", ["port=true"], r"port must be a whole number >= 1 and <= 65535, got True"),
    ],
)  # fmt: skip
def test_options_that_a_command_does_not_use_are_refused(command: str, overrides: list[str], message: str) -> None:
    """A command refuses options that it does not use and names the commands that use them."""
    with pytest.raises(RequestError, match=message):
        getattr(commands, command)(overrides)


@pytest.mark.parametrize(
    ("action", "overrides", "message"),
    [
        ("make", ["task=epvs", "into=x", "seed=1"], r"harness data make does not use seed="),
        ("make", ["task=epvs", "into=x", "model.width=3"], r"harness data make does not use model\.width="),
        ("make", ["task=epvs", "into=x", "phantom_subjects=3,4"], r"takes one value of phantom_subjects"),
        ("verify", ["data=x", "out=y"], r"harness data verify does not use out=.*harness leaderboard"),
        ("verify", ["task=epvs", "sequences=T2w"], r"data= must be given; set data=DIR"),
        ("verify", ["task=epvs", "data=x", "cvs=a"], r"no key is named 'cvs'"),
        ("describe", ["task=epvs", "into=x"], r"no key is named 'into'"),
    ],
)
def test_data_actions_refuse_options_that_they_do_not_use(action: str, overrides: list[str], message: str) -> None:
    """``harness data`` refuses options that its action does not use."""
    with pytest.raises(RequestError, match=message):
        commands.data(action, overrides)


def test_predict_refuses_an_unknown_configuration(out: Path, tmp_path: Path) -> None:
    """An unknown configuration is refused."""
    with pytest.raises(RequestError, match=r"matches no training .*; configurations: [0-9a-f]{10} \(sequences=.*\); "):
        commands.predict(["model=zzzz", f"data={tmp_path}", f"out={out}"])


def test_generated_cohort_can_be_verified_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cohort from ``harness data make`` passes ``data verify`` and ``data describe``."""
    small = ("task=epvs", "phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000")
    root = tmp_path / "made"
    assert commands.data("make", [*small, f"into={root}"]) == 0
    assert commands.data("verify", [f"data={root}", "label=pvs", "sequences=T2w,SWI"]) == 0
    assert "3 subjects usable, 0 left out" in capsys.readouterr().out
    assert commands.data("describe", ["task=epvs", f"data={root}", f"out={tmp_path / 'out'}", "sequences=T2w"]) == 0


def test_making_a_cohort_never_overwrites(tmp_path: Path) -> None:
    """``harness data make`` refuses a folder that is not empty and leaves it unchanged."""
    (tmp_path / "mine.txt").write_text("content")
    with pytest.raises(RequestError, match="into= must be a new or empty folder, .* has files; nothing was written"):
        commands.data("make", ["task=epvs", f"into={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_faulty_cohort_trains_nothing_and_lists_all_faults(tmp_path: Path) -> None:
    """Faults of several subjects are listed in one message, and nothing is written to the store."""
    small = ("task=epvs", "phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000")
    root = tmp_path / "made"
    commands.data("make", [*small, f"into={root}"])
    for subject, value in (("sub-01", np.nan), ("sub-02", np.inf)):
        path = root / subject / "anat" / f"{subject}_T2w.nii.gz"
        array, affine = nifti.read(path)
        array[3, 3, 3] = value
        nifti.write(path, array, affine)
    with pytest.raises(CohortError) as caught:
        commands.run(["task=epvs", f"data={root}", "sequences=T2w", "ray=off", f"out={tmp_path / 'out'}"])
    message = str(caught.value)
    assert "sub-01_T2w.nii.gz" in message and "sub-02_T2w.nii.gz" in message
    assert "exclude=sub-01,sub-02" in message
    assert not (tmp_path / "out" / "store").exists()


def test_list_shows_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """``harness list`` shows the names of components of every kind."""
    assert commands.list_components("") == 0
    shown = capsys.readouterr().out
    for name in ("epvs", "unet", "integrated_gradients", "dice", "leave_one_subject_out"):
        assert name in shown


def test_list_of_an_unknown_kind_shows_suggestions() -> None:
    """An unknown kind raises an error with suggestions."""
    with pytest.raises(UnknownName, match="Near: metrics"):
        commands.list_components("metrcis")


def test_failures_are_grouped_by_configuration_and_error(out: Path) -> None:
    """Failures with the same configuration and error share one line that lists their folds and seeds."""
    table = harness.table(task="epvs", out=str(out))
    first, second = table["configuration"].to_pylist()[:2]

    def failed(configuration: str, fold: int, error: str) -> CellRecord:
        return CellRecord("identity", "train", "failed", configuration, fold, 0, error=error)

    records = [failed(first, 0, "a"), failed(first, 1, "a"), failed(first, 2, "b"), failed(second, 0, "a")]
    names = row_labels(table)[:2]
    assert failure_lines(records, table) == [
        f"failed: train {names[0]}, fold/seed 0/0, 1/0: a",
        f"failed: train {names[0]}, fold/seed 2/0: b",
        f"failed: train {names[1]}, fold/seed 0/0: a",
    ]


def test_explanations_without_an_objective_are_one_sentence(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no explanation has a value of the objective, a sentence replaces the table."""
    tables = rebuild(to_overrides(task="epvs", out=str(out)))[1]
    objective = read_facts(tables.explanation).objective
    commands._show_explanations(console(), tables.explanation)
    assert "Explanations" in capsys.readouterr().out
    index = tables.explanation.column_names.index(objective)
    empty = tables.explanation.set_column(index, objective, pa.nulls(tables.explanation.num_rows, pa.float64()))
    commands._show_explanations(console(), empty)
    assert f"no explanation has a value of {objective}" in capsys.readouterr().out
