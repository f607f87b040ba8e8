"""The commands as a user runs them, in this process and without Ray."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
from harness import leaderboard as boards
from harness.data import nifti
from harness.door import commands
from harness.errors import CohortError, RequestError, UnknownName

SMALL = (
    "task=epvs",
    "phantom_subjects=3",
    "phantom.shape=[24,24,8]",
    "phantom.density=4000",
    "model.width=2",
    "model.depth=2",
    "model.output_bias=0",
    "recipe.epochs=1",
    "attribution=saliency",
    "sequences=T2w,FLAIR",
    "ray=off",
    "mlflow=off",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out folder of a finished small run."""
    folder = tmp_path_factory.mktemp("commands") / "out"
    assert commands.run([*SMALL, f"out={folder}"]) == 0
    return folder


def test_help_imports_neither_torch_nor_ray() -> None:
    """``harness --help`` answers at once because nothing heavy is imported."""
    code = (
        "import sys; from harness.door import cli; "
        "sys.exit(bool({'torch', 'ray', 'mlflow', 'monai', 'pyarrow', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_word_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    """A request that is wrong ends with code 2, the near names and no traceback."""
    words = [sys.executable, "-m", "harness", "run", "task=epvs", "sequnces=T2w"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no key is named 'sequnces'. Near: sequences")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_plan_counts_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan names configurations and cells and leaves no cell behind."""
    assert commands.plan([*SMALL, f"out={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr().out
    assert "24 cells to do, 0 done." in shown
    assert not (tmp_path / "out" / "store" / "train").exists()


def test_plan_of_a_finished_run_has_nothing_to_do(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the store holds is not planned again."""
    commands.plan([*SMALL, f"out={out}"])
    assert "0 cells to do, 24 done." in capsys.readouterr().out


def test_leaderboard_is_rebuilt_from_the_store_alone(out: Path, tmp_path: Path) -> None:
    """With cohort folder and tables gone, the table is the same byte for byte."""
    assert commands.leaderboard(["task=epvs", f"out={out}", f"csv={tmp_path / 'again.csv'}"]) == 0
    assert (tmp_path / "again.csv").read_bytes() == (out / "leaderboards" / "epvs.csv").read_bytes()


def test_report_is_one_page_with_the_verdict(out: Path) -> None:
    """The page is rebuilt from the store and says what the table allows to say."""
    (out / "reports" / "epvs" / "index.html").unlink()
    assert commands.report(["task=epvs", f"out={out}"]) == 0
    page = html.unescape((out / "reports" / "epvs" / "index.html").read_text())
    assert boards.verdict(harness.table(task="epvs", out=str(out))) in page


def test_leaderboard_of_a_task_never_run_says_what_to_do(tmp_path: Path) -> None:
    """An empty store is an error with the next step."""
    with pytest.raises(RequestError, match=r"holds no run of epvs; run it first: harness run task=epvs"):
        commands.leaderboard(["task=epvs", f"out={tmp_path}"])


def test_three_subjects_are_shown_one_by_one(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With few subjects the screen shows every subject's objective."""
    assert commands.run([*SMALL, f"out={out}"]) == 0
    shown = capsys.readouterr().out
    for subject in ("sub-01", "sub-02", "sub-03"):
        assert subject in shown


def test_predict_writes_masks_on_the_subjects_grid(out: Path, tmp_path: Path) -> None:
    """New subjects get a mask and a probability in NIfTI, where their images are."""
    root = next((out / "phantoms").iterdir())
    identity = next(iter((out / "store" / "configurations").glob("*.json"))).stem
    words = [f"model={identity}", f"data={root}", f"out={out}", f"into={tmp_path / 'predictions'}"]
    assert commands.predict(words) == 0
    probability, affine = nifti.read(tmp_path / "predictions/sub-01/anat/sub-01_label-pvs_probseg.nii.gz")
    mask, _ = nifti.read(tmp_path / "predictions/sub-01/anat/sub-01_label-pvs_mask.nii.gz")
    truth, truth_affine = nifti.read(root / "sub-01/anat/sub-01_label-pvs_mask.nii.gz")
    np.testing.assert_array_equal(mask, probability > 0.5)
    assert 0 <= probability.min() <= probability.max() <= 1
    # Both hold the same box of the world, though the network works in RAS+.
    corners = np.array([[0, 0, 0, 1], [*(np.array(truth.shape) - 1), 1]]).T
    ours = np.sort((affine @ corners)[:3], axis=1)
    theirs = np.sort((truth_affine @ corners)[:3], axis=1)
    np.testing.assert_allclose(ours, theirs, atol=2.0)


def test_predict_without_a_model_lists_what_there_is(out: Path, tmp_path: Path) -> None:
    """An id that names nothing shows the configurations of the store."""
    with pytest.raises(RequestError, match="names no training"):
        commands.predict(["model=zzzz", f"data={tmp_path}", f"out={out}"])


def test_made_cohort_verifies_and_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``data make`` writes what ``data verify`` passes and ``data describe`` counts."""
    small = ("task=epvs", "phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000")
    root = tmp_path / "made"
    assert commands.data("make", [*small, f"into={root}"]) == 0
    assert commands.data("verify", [f"data={root}", "label=pvs", "sequences=T2w,SWI"]) == 0
    assert "3 subjects usable, 0 left out" in capsys.readouterr().out
    assert commands.data("describe", ["task=epvs", f"data={root}", f"out={tmp_path / 'out'}", "sequences=T2w"]) == 0


def test_making_a_cohort_never_overwrites(tmp_path: Path) -> None:
    """A folder that is not empty stays as it is."""
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RequestError, match="is not empty; nothing was written"):
        commands.data("make", ["task=epvs", f"into={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_faulty_cohort_trains_nothing_and_lists_all_faults(tmp_path: Path) -> None:
    """Two faults in two subjects are both in the one message, and nothing is written to the store."""
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
    """Tasks, models, attributions and metrics are listed by name."""
    assert commands.list_parts("") == 0
    shown = capsys.readouterr().out
    for name in ("epvs", "unet", "integrated_gradients", "dice", "leave_one_subject_out"):
        assert name in shown


def test_list_of_an_unknown_kind_shows_the_near_ones() -> None:
    """A misspelt kind is an error with the near ones."""
    with pytest.raises(UnknownName, match="Near: metrics"):
        commands.list_parts("metrcis")


def test_describe_shows_keys_values_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """A task's description shows what may be set and what must hold."""
    assert commands.describe(["task=epvs"]) == 0
    shown = capsys.readouterr().out
    assert "recipe.lr" in shown and "lr > 0" in shown and "ablation" in shown


def test_describe_of_a_part_shows_its_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    """``describe metric=dice`` shows docstring, source and signature."""
    assert commands.describe(["metric=dice"]) == 0
    assert "dice(prediction" in capsys.readouterr().out
