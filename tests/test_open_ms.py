"""The road on real images: MS lesions, where the data lie beside the project."""

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

# Coarse voxels that keep small lesions, and so short a training that no network learns to say nothing.
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


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    screen: str
    out: Path

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """Sequences → row of the leaderboard."""
        (regions,) = (self.out / "leaderboards" / "epvs").glob("*-regions.csv")
        with regions.with_name(regions.name.replace("-regions", "")).open() as file:
            return {row["sequences"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The issue's command at a small size."""
    out, screen = tmp_path_factory.mktemp("open-ms") / "out", StringIO()
    words = ["task=epvs", f"data={DATA}", "label=lesion", f"sequences={','.join(SETS)}"]
    with redirect_stdout(screen):
        code = commands.run([*words, *SMALL, "ray=off", "mlflow=off", f"out={out}"])
    return Ran(code, re.sub(r"\s+", " ", screen.getvalue()), out)


def test_all_seven_sets_run(ran: Ran) -> None:
    """Every cell of every set is done."""
    assert ran.code == 0
    assert set(ran.rows) == set(SETS)


def test_the_others_are_named_and_left_out(ran: Ran) -> None:
    """All 27 subjects without images are named on the screen and in the report, with what they lack."""
    said = re.search(r"left out 27 \(no FLAIR, T1w, T2w; has label-lesion_mask\): ((?:sub-\d\d(?:, )?)+)", ran.screen)
    assert said is not None and tuple(said[1].split(", ")) == OTHERS
    (report,) = (ran.out / "reports" / "epvs").glob("*/index.html")
    page = report.read_text()
    assert [name for name in OTHERS if name not in page] == []


def test_how_validation_is_drawn_is_said(ran: Ran) -> None:
    """One subject trains, one selects, one is tested, and what so few give."""
    assert "3 subjects, 3 folds: train 1, validate 1 (they select the model), test 1" in ran.screen
    assert "Validation subjects are drawn at random from those not tested" in ran.screen
    assert "With only 3 subjects, intervals are wide" in ran.screen


def test_the_source_of_the_label_is_said(ran: Ran) -> None:
    """These data do not state on which sequence the lesions were drawn."""
    assert "truth drawn on: not stated by the data" in ran.screen


def test_three_subjects_are_never_ranked(ran: Ran) -> None:
    """However large a difference looks: a set is undecided, or flagged because a network said nothing."""
    assert {row["rank"] for row in ran.rows.values()} == {""}
    status = [row["status"] for row in ran.rows.values()]
    undecided = [text for text in status if text == "undecided: 3 subjects"]
    assert undecided and all(text in undecided or re.match(r"collapsed in [123] of 3 cells", text) for text in status)
    assert "undecided: 3 subjects, and fewer than 6 are not ranked; the best dice so far is that of " in ran.screen


def test_every_subject_has_its_line(ran: Ran) -> None:
    """With so few, the objective of each is shown: one row per set, one number per subject."""
    table = ran.screen.partition("dice of each subject")[2].partition("Value of each channel")[0]
    assert re.findall(r"sub-\d\d", table) == list(USED)
    shown = re.findall(r"(\S+) unet ([01]\.\d{3}) ([01]\.\d{3}) ([01]\.\d{3})", table)
    assert {sequences for sequences, *_ in shown} == set(SETS)
    assert any(float(value) > 0 for _, *values in shown for value in values)
