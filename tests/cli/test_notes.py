"""What is inferred, cut off or lost is told by every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
from harness.cli import commands
from harness.cli.prediction import predict_folder
from harness.core.errors import UnknownName
from harness.data import nifti
from harness.sweep.grammar import to_overrides

MOCO = "T2w is rec-moco_T2w in 1 of 3 subjects (sub-02), else T2w"


@pytest.fixture(scope="module")
def root(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated subjects, one with another reconstruction, one with a prediction of this program."""
    root = Path(shutil.copytree(phantom_root, tmp_path_factory.mktemp("notes") / "data"))
    shutil.rmtree(root / "sub-04")
    table = root / "participants.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    (root / "sub-02/anat/sub-02_T2w.nii.gz").rename(root / "sub-02/anat/sub-02_rec-moco_T2w.nii.gz")
    return root


@pytest.fixture(scope="module")
def small(root: Path, tiny_overrides: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A function that makes overrides of a small run on these subjects, with a field that is too small."""

    def overrides(out: Path, **more: Any) -> dict[str, Any]:
        changes = {"data": root, "exclude": None, "cohort.size": [12, 12, 4], "report": True}
        return tiny_overrides(out, **{**changes, **more})

    return overrides


def typed(overrides: dict[str, Any]) -> list[str]:
    """Overrides as on the command line."""
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in overrides.items()}
    return [f"{key}={text}".replace(" ", "") for key, text in texts.items()]


@pytest.mark.parametrize("command", ["verify", "describe", "plan"])
def test_notes_are_printed(
    command: str, small: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained."""
    words = typed(small(tmp_path))
    assert (commands.plan(words) if command == "plan" else commands.data(command, words)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "rec-moco_T2w in 1 of 3 subjects (sub-02)" in shown
    assert "of the label volume lies outside" in shown
    assert "your own data: cohort.crop='none' cohort.brain=if_present (override" in shown


def test_results_among_the_images_are_told(
    small: Callable[..., dict[str, Any]], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of results within the data set changes it."""
    for out, told in ((root / "derivatives" / "runs", True), (tmp_path, False)):
        assert commands.plan(typed(small(out))) == 0
        assert ("results are written among the images" in " ".join(capsys.readouterr().out.split())) == told


def test_notes_are_printed_for_files_as_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """data verify without a task."""
    assert commands.data("verify", [f"data={root}", "label=pvs", "sequences=T2w"]) == 0
    assert MOCO in capsys.readouterr().out


def test_choices_of_files_can_be_verified(root: Path) -> None:
    """The options that remedies name are options of this command, too."""
    words = [f"data={root}", "label=pvs", "sequences=T2w"]
    assert commands.data("verify", [*words, "cohort.truth=raw", "cohort.session=first", "cohort.space=native"]) == 0
    with pytest.raises(UnknownName, match=r"no space is named 'MNI152'.*native"):
        commands.data("verify", [*words, "cohort.space=MNI152"])


def test_run_report_and_predict_tell_the_notes(
    small: Callable[..., dict[str, Any]], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And predict tells of new subjects in other voxel sizes, slices out of view, and files that it chose."""
    words = typed(small(tmp_path / "out"))
    assert commands.run(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert MOCO in shown and "of the label volume lies outside" in shown
    (page,) = (tmp_path / "out/reports/epvs").glob("*/index.html")
    assert f"Data: {MOCO}." in page.read_text() and "of the label volume lies outside" in page.read_text()

    new = Path(shutil.copytree(root, tmp_path / "new"))
    path = new / "sub-01/anat/sub-01_T2w.nii.gz"
    image, affine = nifti.read(path)
    nifti.write(path, np.repeat(image, 2, axis=0), affine @ np.diag([0.5, 1, 1, 1]))
    configuration = harness.table(task="epvs", out=str(tmp_path / "out")).to_pylist()[0]["configuration"]
    said: list[str] = []
    overrides = {"model": configuration, "data": str(new), "out": str(tmp_path / "out"), "into": str(tmp_path / "into")}
    predict_folder(to_overrides(**overrides), say=said.append)
    told = "\n".join(said)
    assert MOCO in told
    assert "sub-01 has" in told and "resampled to" in told
    assert "slices are outside the field of view of the networks" in told


def test_notes_of_a_faulty_cohort_are_printed(
    root: Path, tmp_path: Path, small: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """They may explain the fault; subjects that are left out are listed, too."""
    faulty = Path(shutil.copytree(root, tmp_path / "data"))
    (faulty / "sub-03/anat/sub-03_T2w.nii.gz").write_bytes(b"")
    overrides = small(tmp_path / "out", data=faulty, exclude="sub-01")
    assert commands.data("verify", typed(overrides)) == 1
    printed = capsys.readouterr().out
    assert "T2w is T2w in 1 of 2 subjects (sub-03), else rec-moco_T2w" in printed
    assert "left out 1 (excluded by request): sub-01" in printed and "empty-file" in printed
