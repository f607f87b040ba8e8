"""A run on real images, if the open-ms data are beside the project."""

from __future__ import annotations

import csv
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.cli import commands

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "open-ms"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs the open-ms sample in {DATA.parent.name}/ beside the project"
)

SETS = ("T1w", "T2w", "FLAIR", "T1w+T2w", "T1w+FLAIR", "T2w+FLAIR", "T1w+T2w+FLAIR")
USED = ("sub-07", "sub-19", "sub-26")
OTHERS = tuple(name for name in (f"sub-{number:02d}" for number in range(1, 31)) if name not in USED)

# Large voxels that keep small lesions, and a training so short that no network predicts only background.
SMALL = (
    "cohort.spacing_mm=[2.5,2.5,3]",
    "cohort.size=[56,68,16]",
    "cohort.occupied=0.1",
    "model.width=4",
    "model.output_bias=0",
    "recipe.epochs=1",
    "recipe.copies=2",
    "recipe.lr=0.001",
    "recipe.lesion_weight=100",
    "recipe.select=last",
    "attribution=none",
)


class Result(NamedTuple):
    """Exit code, output and folder of a command."""

    code: int
    screen: str
    out: Path

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """Rows of the leaderboard by sequences."""
        (regions,) = (self.out / "leaderboards" / "epvs").glob("*-regions.csv")
        with regions.with_name(regions.name.replace("-regions", "")).open() as file:
            return {row["sequences"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The command of the ablation with small images and networks."""
    out, screen = tmp_path_factory.mktemp("open-ms") / "out", StringIO()
    overrides = ["task=epvs", f"data={DATA}", "label=lesion", f"sequences={','.join(SETS)}"]
    with redirect_stdout(screen):
        code = commands.run([*overrides, *SMALL, "ray=off", "mlflow=off", f"out={out}"])
    return Result(code, re.sub(r"\s+", " ", screen.getvalue()), out)


def test_all_seven_sets_run(result: Result) -> None:
    """All seven sets of sequences have a row."""
    assert result.code == 0
    assert set(result.rows) == set(SETS)


def test_subjects_without_images_are_left_out_and_named(result: Result) -> None:
    """The 27 subjects without images are named in the output and in the report, with the reason."""
    match = re.search(
        r"left out 27 \(no FLAIR, T1w, T2w; has label-lesion_mask\): ((?:sub-\d\d(?:, )?)+)", result.screen
    )
    assert match is not None and tuple(match[1].split(", ")) == OTHERS
    (report,) = (result.out / "reports" / "epvs").glob("*/index.html")
    page = report.read_text()
    assert [name for name in OTHERS if name not in page] == []


def test_split_is_described(result: Result) -> None:
    """The output states how subjects are split, and that intervals of three subjects are wide."""
    assert "3 subjects, 3 folds: train 1, validate 1 (to select the epoch), test 1" in result.screen
    assert "Validation subjects are drawn at random from those not tested" in result.screen
    assert "With only 3 subjects, intervals are wide" in result.screen


def test_source_of_the_label_is_described(result: Result) -> None:
    """The output states that the data do not name the sequence on which lesions were drawn."""
    assert "source of the truth: not stated by the data" in result.screen


def test_three_subjects_are_not_ranked(result: Result) -> None:
    """Rows of three subjects are not ranked, and are undecided or collapsed."""
    assert {row["rank"] for row in result.rows.values()} == {""}
    status = [row["status"] for row in result.rows.values()]
    undecided = [text for text in status if text == "undecided: 3 subjects"]
    assert undecided and all(text in undecided or re.match(r"collapsed in [123] of 3 cells", text) for text in status)
    assert "undecided: 3 subjects, and fewer than 6 are not ranked; the best dice so far is that of " in result.screen


def test_every_subject_is_shown(result: Result) -> None:
    """With few subjects, the objective of each is shown, one row per set."""
    table = result.screen.partition("dice of each subject")[2].partition("Value of each channel")[0]
    assert re.findall(r"sub-\d\d", table) == list(USED)
    shown = re.findall(r"(\S+) unet ([01]\.\d{3}) ([01]\.\d{3}) ([01]\.\d{3})", table)
    assert {sequences for sequences, *_ in shown} == set(SETS)
    assert any(float(value) > 0 for _, *values in shown for value in values)
