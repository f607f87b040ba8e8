"""The histopathology task from the command to its tables, on a few small slides."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import harness

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TINY: dict[str, Any] = {
    "task": "histopathology",
    "phantom.patches": 8,
    "phantom.size": 64,
    "phantom_subjects": 12,
    "model.width": 4,
    "recipe.epochs": 3,
    "ray": "off",
    "mlflow": "off",
}


def lines_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_explanations_have_truth_fills_and_fit(tmp_path: Path) -> None:
    """LIME, its scales and controls are in one table with the truth, every fill and the quality of the fit."""
    labels = ("lime", "multiscale_w2", "squares_w1", "occlusion", "random", "whole_patch")
    made = harness.run(
        **TINY, attribution=labels, attributions__lime__segments=9, attributions__multiscale_w2__levels=[4, 9],
        attributions__squares_w1__levels=[4, 9], explanations__lime__samples="tested", out=str(tmp_path),
        **{f"explanations__{label}__samples": "tested" for label in labels if label != "lime"},
    )  # fmt: skip
    table = lines_of(made.csv.with_name(f"{made.csv.stem}-explanations.csv"))
    lines = {line["attribution"]: line for line in table if line["model"] == "small_cnn"}
    assert set(lines) == set(labels)
    for label, line in lines.items():
        assert 0 <= float(line["relevance_ap"]) <= 1
        for fill in ("black", "white", "mean", "blur", "background"):
            assert 0 <= float(line[f"ea_{fill}"]) <= 1 and 0 <= float(line[f"ea_{fill}_chance"]) <= 1
            assert float(line[f"blank_{fill}"]) == pytest.approx(float(lines["random"][f"blank_{fill}"]))
        assert bool(line["weighted_r2"]) == (label in ("lime", "multiscale_w2", "squares_w1"))
    assert float(lines["whole_patch"]["share_shown"]) == 1
    # Showing the whole patch is the prediction itself, for any fill.
    assert len({lines["whole_patch"][f"ea_{fill}"] for fill in ("black", "white", "blur")}) == 1
    page = (made.csv.parents[2] / "reports" / "histopathology" / made.csv.stem / "index.html").read_text()
    assert "Agreement with relevance_ap" in page and "ea_black" in page


def test_colours_alone_are_a_row(tmp_path: Path) -> None:
    """What colours tell without shapes stands in the leaderboard as a baseline."""
    options = {key: value for key, value in TINY.items() if key != "model.width"}
    made = harness.run(**options, model="colour_histogram", attribution="none", report=False, out=str(tmp_path))
    (line,) = lines_of(made.csv)
    assert line["model"] == "colour_histogram" and 0 <= float(line["auroc"]) <= 1


@pytest.mark.parametrize(
    ("name", "positive", "said"),
    [
        ("breakhis-sample", "malignant", "Only 5 of 13 subjects are negative"),
        ("pcam-sample", "1", "Only 5 of 15 subjects are positive"),
    ],
)
def test_real_patches(tmp_path: Path, name: str, positive: str, said: str) -> None:
    """The samples run from their folders, and the verdict says that so few patches carry no conclusion."""
    if not (SHARED / name).is_dir():
        pytest.skip("needs the samples in shared/ beside the project")
    made = harness.run(
        task="histopathology", data=str(SHARED / name), targets__tumour__positive=positive,
        model="small_cnn", model__width=4, recipe__epochs=1, attribution="none",
        ray="off", mlflow="off", report=False, out=str(tmp_path),
    )  # fmt: skip
    assert said in made.verdict
