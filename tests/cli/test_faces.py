"""The faces task from the command to its tables and report, on generated faces and on a folder like UTKFace."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image as Picture

import harness
from harness.core.errors import RequestError
from harness.models.resnet import resnet18
from harness.simulation.faces import GROUPS, faces_phantom

TOGETHER = "age+sex+ethnicity"
TINY: dict[str, Any] = {
    "task": "faces",
    "phantom.size": 32,
    "phantom_subjects": 50,
    "model.width": 4,
    "model.hidden": 8,
    "recipe.epochs": 2,
    "attributions.gradient_shap.samples": 2,
    "attributions.gradient_shap.options": {"samples": 2},
    "attributions.occlusion.window": 8,
    "attribution": ("gradient_shap", "occlusion", "picture", "random"),
    "ray": "off",
    "mlflow": "off",
}


def lines_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def beside(result: Any, what: str) -> list[dict[str, str]]:
    """Rows of another table of a run."""
    return lines_of(result.csv.with_name(f"{result.csv.stem}-{what}.csv"))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three networks with one output and one with three."""
    return harness.run(**TINY, out=str(tmp_path_factory.mktemp("faces")))


def test_single_and_multi_are_compared_for_each_target(result: Any) -> None:
    """Each target has a ranking of the two networks that predict it, with its metric, interval and chance."""
    lines = beside(result, "targets")
    metric = {"age": "mse", "sex": "accuracy", "ethnicity": "balanced_accuracy"}
    assert {(one["target"], one["predicted"]) for one in lines} == {
        (target, predicted) for target in metric for predicted in (target, TOGETHER)
    }
    for one in lines:
        name = metric[one["target"]]
        if one[f"{name}_low"] or not one.get(f"{name}_no_interval"):  # there is none for a constant prediction
            low, value, high = (float(one[key]) for key in (f"{name}_low", name, f"{name}_high"))
            assert low <= value <= high
        assert float(one[f"{name}_chance"]) > 0 and float(one["skill"]) <= 1
        assert all(one[other] == "" for other in metric.values() if other != name)
        assert one["difference"] != ""
    chance = {one["target"]: float(one[f"{metric[one['target']]}_chance"]) for one in lines}
    assert chance["ethnicity"] == pytest.approx(0.25, abs=0.09) and 0.5 <= chance["sex"] < 0.8
    assert 100 < chance["age"] < 600  # a uniform distribution over 60 years has a variance of 300 years²


def test_maps_are_judged_by_the_region_of_their_target(result: Any) -> None:
    """The chance level is the share of the pixels of the explained target, and of the three for all together."""
    singles = {one["predicted"]: one for one in beside(result, "explanations") if one["attribution"] == "random"}
    chance = {name: float(one["relevance_ap_chance"]) for name, one in singles.items()}
    shares = {name: 0.0 for name in ("age", "sex", "ethnicity")}
    made = [faces_phantom(0, number, size=32)[0] for number in range(50)]
    for name in shares:
        shares[name] = sum(float(one.masks[f"truth_{name}"].mean()) for one in made) / 50
        assert chance[name] == pytest.approx(shares[name], rel=0.15)
    assert chance[TOGETHER] == pytest.approx(sum(shares.values()) / 3, rel=0.15)
    nuisance = sum(float(one.masks["nuisance"].mean()) for one in made) / 50
    assert float(singles["age"]["nuisance_mass_chance"]) == pytest.approx(nuisance, rel=0.15)
    of_targets = {
        (one["target"], one["predicted"], one["attribution"]) for one in beside(result, "targets-explanations")
    }
    assert len(of_targets) == 3 * 2 * 4


def test_report_shows_generated_faces(result: Any) -> None:
    """Examples and mean maps of each target are in the report."""
    titles = [path.stem for path in result.report.parent.glob("*.png")]
    for target in ("age", "sex", "ethnicity"):
        assert any(f"mean-maps-of-{target}" in one for one in titles)
        assert any(f"pictures-with-maps-of-{target}" in one for one in titles)


def test_regression_in_the_hypotheses(result: Any) -> None:
    """The hypotheses of the paper are tested on the networks that they name."""
    text = result.report.read_text()
    assert "recognises sex better" in text and "predicts age worse" in text


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder named like UTKFace with generated faces, one of others and one with an incomplete name."""
    root = tmp_path_factory.mktemp("UTKFace")
    for number in range(60):
        (one,) = faces_phantom(3, number, size=40)
        facts = one.covariates
        sex, group = int(facts["sex"] == "female"), GROUPS.index(str(facts["ethnicity"]))
        name = f"{int(float(facts['age']))}_{sex}_{group}_20170109{number:09d}.jpg.chip.jpg"
        Picture.fromarray(one.image).save(root / name)
    Picture.fromarray(one.image).save(root / "50_1_4_20170109999999999.jpg.chip.jpg")
    Picture.fromarray(one.image).save(root / "50_1_20170109999999999.jpg.chip.jpg")
    return root


def real(faces: Path, out: Path, **more: Any) -> Any:
    """A run on the folder."""
    given = {key: value for key, value in TINY.items() if not key.startswith("phantom")}
    return harness.run(**given, **more, data=str(faces), predicted=TOGETHER, **{"cohort.side": 32}, out=str(out))


def test_real_faces_are_not_shown(faces: Path, tmp_path: Path) -> None:
    """UTKFace is read by default for data; the report states its terms and shows no face, not even their mean."""
    made = real(faces, tmp_path)
    text = made.report.read_text()
    assert "non-commercial research" in text and "1 pictures of the fifth ethnicity" in text
    assert "50_1_20170109999999999.jpg.chip.jpg" in text and "3 fields" in text
    assert "Pictures of this data set are not shown" in text
    titles = [path.stem for path in made.report.parent.glob("*.png")]
    assert any("mean-maps-of-age" in one for one in titles)
    assert not any("pictures-with-maps" in one for one in titles)
    (line,) = lines_of(made.csv)
    assert line["skill"] and line["worst_group"] == "" and line["subjects"] == "12"
    shown = real(faces, tmp_path, show_images=True)
    titles = [path.stem for path in shown.report.parent.glob("*.png")]
    assert any("pictures-with-maps-of-age" in one for one in titles)
    assert "Pictures of this data set are not shown" not in shown.report.read_text()


def test_scales_of_the_age_are_in_years(tmp_path: Path) -> None:
    """The error of a network is in years², whatever the scale on which it was trained."""
    options = {key: value for key, value in TINY.items() if key != "attribution"} | {"recipe.lr": 0.01, "report": False}
    made = harness.run(**options, experiment="age_scale", predicted="age", out=str(tmp_path))
    errors = {one["age_scale"]: float(one["mse"]) for one in lines_of(made.csv)}
    assert set(errors) == {"standardised", "100.0", "1.0"} or set(errors) == {"standardised", "100", "1"}
    assert all(50 < one < 5000 for one in errors.values())


def test_initial_weights_from_a_file(tmp_path: Path) -> None:
    """The run says what it loads; a moved copy of the file computes nothing again, and a wrong file nothing at all."""
    torch.manual_seed(0)
    own = resnet18(3, width=4, hidden=0).state_dict()
    state = {name: one for name, one in own.items() if not name.startswith("heads.")}
    lab = tmp_path / "lab.safetensors"
    safetensors.torch.save_file({**state, "fc.bias": torch.zeros(4)}, lab)
    options = {key: value for key, value in TINY.items() if not key.startswith("attribution")}
    options |= {"predicted": "sex", "attribution": "none", "out": str(tmp_path / "out")}
    made = harness.run(**options, **{"model.weights": str(lab)})
    assert f"starts from {lab}" in made.report.read_text() and "ignored: fc.bias" in made.report.read_text()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").rglob("record.json")}
    moved = lab.rename(tmp_path / "moved.safetensors")
    harness.run(**options, **{"model.weights": str(moved)})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").rglob("record.json")} == first
    with pytest.raises(RequestError, match=r"conv1\.weight has the shape \(4, 3, 7, 7\), expected \(6, 3, 7, 7\)"):
        harness.run(**{**options, "model.width": 6}, **{"model.weights": str(moved)})
    assert len(list((tmp_path / "out" / "store" / "train").glob("*/record.json"))) == 1
