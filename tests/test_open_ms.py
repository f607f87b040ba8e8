"""The road on real images: MS lesions, where the data lie beside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from harness.door.api import Result

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "open-ms"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs the open-ms sample in {DATA.parent.name}/ beside the project"
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of two sequence sets at a small size."""
    return harness.run(
        task="epvs",
        data=str(DATA),
        label="lesion",
        sequences=("FLAIR", "T2w"),
        cohort__size=[48, 56, 12],
        model__width=2,
        recipe__epochs=1,
        attribution="saliency",
        ray="off",
        mlflow="off",
        out=str(tmp_path_factory.mktemp("open-ms") / "out"),
    )


def test_three_subjects_run_and_the_others_are_left_out(result: Result) -> None:
    """The three subjects with images are used; every cell is done."""
    assert result.complete
    assert result.subjects == 3
    assert {subject for row in result.rows for subject in row.values["dice"]} == {"sub-07", "sub-19", "sub-26"}


def test_three_subjects_are_never_ranked(result: Result) -> None:
    """However large a difference looks, three subjects leave it undecided."""
    assert result.leaderboard.column("rank").to_pylist() == [None, None]
    assert "undecided" in result.verdict or "nothing is ranked" in result.verdict


def test_report_names_who_was_left_out(result: Result) -> None:
    """All 27 subjects without images are named in the report."""
    assert result.report is not None
    page = result.report.read_text()
    assert "sub-01" in page and "sub-30" in page
