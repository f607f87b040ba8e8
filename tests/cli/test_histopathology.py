"""The histopathology task from the command to its tables and report: generated patches, PatchCamelyon, a folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import harness
from harness.cli import commands
from harness.data.pictures import write_picture
from harness.pipeline.artifacts import EXAMPLES, read_parts
from harness.simulation.histology import histology_phantom
from harness.storage.store import CellRecord, Store

TINY: dict[str, Any] = {
    "task": "histopathology",
    "model": "small_cnn",
    "model.width": 4,
    "recipe.epochs": 2,
    "attribution": ("multiscale_w1", "occlusion", "random"),
    "attributions.multiscale_w1.levels": [4, 9],
    "attributions.multiscale_w1.per_segment": 2,
    # Networks that are trained for seconds have few true positives
    "explanations.multiscale_w1.samples": "tested",
    "explanations.occlusion.samples": "tested",
    "explanations.random.samples": "tested",
    "ray": "off",
    "mlflow": "off",
}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SLIDES: dict[str, Any] = {
    "task": "histopathology",
    "phantom.patches": 8,
    "phantom.size": 64,
    "phantom_subjects": 12,
    "model.width": 4,
    "recipe.epochs": 3,
    "ray": "off",
    "mlflow": "off",
}
SPLITS = {"train": 4, "valid": 2, "test": 2}  # slides


def lines_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def store_of(result: Any) -> Store:
    """The store of a run."""
    return Store(Path(result.csv).parents[2] / "store")


def explained(result: Any, label: str) -> CellRecord:
    """Record of the maps of an explanation."""
    return next(one for one in store_of(result).records("explain") if one.label == label)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on generated slides."""
    out = tmp_path_factory.mktemp("generated")
    return harness.run(**TINY, **{"phantom_subjects": 8, "phantom.patches": 6}, out=str(out))


@pytest.fixture(scope="module")
def pcam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated patches in the files of PatchCamelyon."""
    root = tmp_path_factory.mktemp("pcam")
    number = 0
    for split, slides in SPLITS.items():
        made = [one for slide in range(slides) for one in histology_phantom(3, number + slide, patches=5)]
        number += slides
        labels = [int(float(str(one.covariates["label"]))) for one in made]
        start = f"camelyonpatch_level_2_split_{split}"
        for name, key, array in (
            ("x", "x", np.stack([one.image for one in made])),
            ("y", "y", np.array(labels, np.uint8).reshape(-1, 1, 1, 1)),
        ):
            with h5py.File(root / f"{start}_{name}.h5", "w") as file:
                file[key] = array
        rows = [f"{one.subject},{bool(label)}" for one, label in zip(made, labels, strict=True)]
        (root / f"{start}_meta.csv").write_text("\n".join(["wsi,center_tumor_patch", *rows, ""]))
    return root


def test_generated_slides_are_split_as_a_whole(generated: Any) -> None:
    """Two of eight slides are tested; all of their patches have maps."""
    record = explained(generated, "occlusion")
    slides = {name.rpartition("_")[0] for name in record.facts["samples"]}
    assert len(slides) == 2 and len(record.facts["samples"]) == 12


def test_maps_of_each_scale_are_kept_for_some_patches(generated: Any) -> None:
    """Those of the first patches by name, for the report."""
    store, record = store_of(generated), explained(generated, "multiscale_w1")
    parts = read_parts(store, record, record.facts["outputs"][0])
    assert sorted(parts) == sorted(record.facts["samples"])[:EXAMPLES]
    for of in parts.values():
        assert list(of) == ["1: 4 segments", "2: 9 segments"]
        assert all(one.shape == (96, 96) and 0 <= one.min() <= one.max() <= 1 for one in of.values())
    other = explained(generated, "random")
    assert read_parts(store, other, other.facts["outputs"][0]) == {}


def test_the_report_shows_patches_with_their_maps(generated: Any) -> None:
    """All methods for some patches, and the scales of multi-scale LIME."""
    text = Path(generated.report).read_text("utf-8")
    assert "Pictures with maps of tumour, small_cnn" in text
    assert "Scales of multiscale_w1, small_cnn" in text and "Scales of occlusion" not in text


def test_patchcamelyon_is_tested_on_its_official_split(pcam: Path, tmp_path: Path) -> None:
    """Predictions are those of the test files, of which each slide is a subject."""
    options = {**TINY, "attribution": "none", "cohort": "patchcamelyon", "data": str(pcam)}
    for key in [key for key in options if key.startswith(("attributions.", "explanations."))]:
        del options[key]
    result = harness.run(**options, out=str(tmp_path))
    (record,) = store_of(result).records("predict")
    assert sorted(record.facts["samples"]) == [f"test_{number:06d}" for number in range(10)]
    (line,) = lines_of(Path(result.csv))
    assert float(line["accuracy"]) >= 0 and line["data"] == pcam.name


def test_a_folder_without_slides_is_read_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan says that patches of a slide may be on both sides, before anything is trained."""
    lines = ["file,label"]
    for one in histology_phantom(3, 0, patches=8):
        write_picture(tmp_path / "patches" / "images" / f"{one.id}.png", one.image)
        lines.append(f"images/{one.id}.png,{one.covariates['label']}")
    (tmp_path / "patches" / "labels.csv").write_text("\n".join([*lines, ""]))
    request = ["task=histopathology", f"data={tmp_path / 'patches'}", f"out={tmp_path / 'out'}"]
    assert commands.plan([*request, "attribution=none", "model=colour_histogram"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "labels.csv has no column for the subject, patient or slide: each of the 8 pictures" in said


def test_explanations_have_truth_fills_and_fit(tmp_path: Path) -> None:
    """LIME, its scales and controls are in one table with the truth, every fill and the quality of the fit."""
    labels = ("lime", "multiscale_w2", "squares_w1", "occlusion", "random", "whole_patch")
    made = harness.run(
        **SLIDES, attribution=labels, attributions__lime__segments=9, attributions__multiscale_w2__levels=[4, 9],
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
    options = {key: value for key, value in SLIDES.items() if key != "model.width"}
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
