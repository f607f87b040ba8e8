"""The MS task from the command to its tables, on a small generated cohort; and real lesion masks."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
from harness.cli.api import rebuild
from harness.data import nifti
from harness.data.maps import read_map
from harness.metrics.inversion import quantile_masks
from harness.pipeline.leaderboard import read_facts
from harness.report.figures import figures_of
from harness.report.figures.inversion import mask_shares
from harness.report.figures.results import Results
from harness.report.output import make_report
from harness.report.runs import pooled_files
from harness.sweep.grammar import parse
from harness.sweep.plan import prepare
from harness.sweep.request import resolve

OPEN_MS = Path(__file__).resolve().parents[3] / "shared" / "data" / "open-ms"
TINY: dict[str, Any] = {
    "task": "ms",
    "phantom.shape": [16, 18, 16],
    "phantom.patients": 30,
    "phantom.second_visits": 6,
    "phantom_subjects": 30,
    "model": ("attention_densenet", "tract_means"),
    "contrasts": "qT1+MWF+NDI",
    "fusion": "gated",
    "model.stem_stride": 1,
    "model.blocks": 1,
    "recipe.epochs": 2,
    "attribution": ("aw_proposal_combined", "f_proposal", "weights"),
    "ray": "off",
    "mlflow": "off",
    "report": False,
}

NAMED = {
    key: ",".join(value) if isinstance(value, tuple) else json.dumps(value).strip('"')
    for key, value in TINY.items()
    if key not in ("report", "mlflow", "ray")
}
"""The same options as text."""


def lines_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with a network and the oracle."""
    return harness.run(**TINY, out=str(tmp_path_factory.mktemp("ms")))


def test_models_and_oracle_are_in_one_table(result: Any) -> None:
    """The oracle has values and no rank; attention weights of correct samples sum to one, where there are any."""
    lines = {line["model"]: line for line in lines_of(result.csv)}
    assert set(lines) == {"attention_densenet", "tract_means"}
    assert lines["tract_means"]["rank"] == "" and lines["tract_means"]["status"].startswith("oracle")
    for line in lines.values():
        assert 0 <= float(line["auroc"]) <= 1 and float(line["auroc_validation"]) >= 0
    attention = [lines["attention_densenet"][f"attention_{name}"] for name in ("qT1", "MWF", "NDI")]
    assert all(attention) is False or sum(map(float, attention)) == pytest.approx(1, abs=1e-5)
    assert lines["tract_means"]["attention_qT1"] == ""


def test_explanations_of_all_starts_are_ranked_together(result: Any) -> None:
    """Attention weights and the output are starts of one question; each row has its inversion area with its chance."""
    lines = [line for line in lines_of(result.csv.with_name(f"{result.csv.stem}-explanations.csv"))]
    of_network = [line for line in lines if line["model"] == "attention_densenet"]
    assert {line["attribution"] for line in of_network} == {"aw_proposal_combined", "f_proposal"}
    assert "weights" in {line["attribution"] for line in lines if line["model"] == "tract_means"}
    ranks = [line["rank"] for line in of_network if line["rank"]]
    assert len(ranks) in (0, len(of_network))
    for line in of_network:
        assert 0 <= float(line["relevance_ap"]) <= 1
        assert 0 <= float(line["inversion_area"]) <= 1 and 0 <= float(line["inversion_area_chance"]) <= 1
        assert -1 <= float(line["rho_NDI_40"]) <= 1 and 0 < float(line["p_NDI_40"]) <= 1


def test_inversion_figures_and_maps(result: Any, tmp_path: Path) -> None:
    """The report has inversion curves, masks and their shares, which are those of the quantile masks of all samples."""
    out = result.csv.parents[2]
    plan, tables = rebuild(parse([*(f"{key}={value}" for key, value in NAMED.items()), f"out={out}"]))
    drawn, failed = figures_of(Results(plan, tables))
    titles = [figure.title.partition(",")[0] for figure in drawn]
    assert failed == []
    assert {"Scalars that the network exposes", "Voxel inversion", "Where masks agree"} <= set(titles)
    run = Results(plan, tables)
    identity = next(key for key in run.lines if run.lines[key]["model"] == "attention_densenet")
    masks = []
    for sample in plan.groups[identity].cohort.samples:
        one = run.explanation(identity, "f_proposal", sample.id)
        if one is not None:
            masks.append(quantile_masks(one, sample.masks["brain"].load() > 0, [40])[0])
    shares = mask_shares(run, identity, "f_proposal")
    assert shares.values is not None and len(masks) == 36
    assert shares.subjects == 30
    np.testing.assert_allclose(shares.values, np.mean(masks, axis=0), rtol=1e-6)
    assert pooled_files(Results(plan, tables), identity, tmp_path) == []
    stored = read_map(tmp_path / "maps" / "f_proposal_mask_share.nii.gz")
    np.testing.assert_allclose(stored, shares.values, rtol=1e-6)
    page = make_report(Results(plan, tables))
    (beside,) = page.parent.glob("maps/*attention_densenet*/f_proposal_mask_share.nii.gz")
    np.testing.assert_array_equal(read_map(beside), stored)
    np.testing.assert_allclose(
        nifti.load(beside)[0].affine, plan.groups[identity].cohort.samples[0].grid.affine, atol=1e-6
    )
    text = " ".join(page.read_text().split())
    assert "How far the ceiling is: the oracle" in text and "the cohort drawn" in text
    assert "The dashed line is the AUC without a mask" in text


def test_masks_of_other_spaces_are_not_added(result: Any) -> None:
    """With equal shapes and different affines, there is no share of masks, and the figure and the file say why."""
    out = result.csv.parents[2]
    plan, tables = rebuild(parse([*(f"{key}={value}" for key, value in NAMED.items()), f"out={out}"]))
    identity = next(one["configuration"] for one in lines_of(result.csv) if one["model"] == "attention_densenet")
    group = plan.groups[identity]
    first, second, *others = group.cohort.samples
    moved = second.grid.affine.copy()
    moved[0, 3] += 2.0
    second = replace(second, affine=moved)
    cohort = replace(group.cohort, samples=(first, second, *others))
    plan = replace(plan, groups={**plan.groups, identity: replace(group, cohort=cohort)})
    run = Results(plan, tables)
    shares = mask_shares(run, identity, "f_proposal")
    reason = f"no common grid: {first.id} and {second.id} have different affines"
    assert (shares.values, shares.reason) == (None, reason)
    drawn, failed = figures_of(Results(plan, tables))
    titles = [figure.title.partition(",")[0] for figure in drawn]
    assert failed == [] and "Voxel inversion" in titles
    assert f"Where masks agree, {run.labels[identity]}" not in [figure.title for figure in drawn]
    assert any(f"f proposal agree: {reason}." in figure.caption for figure in drawn)


def test_masks_without_a_brain_mask_are_those_of_the_metrics(result: Any) -> None:
    """Without a brain mask, voxels that are zero in every channel are in no drawn mask, as in the metrics."""
    out = result.csv.parents[2]
    plan, tables = rebuild(parse([*(f"{key}={value}" for key, value in NAMED.items()), f"out={out}"]))
    identity = next(one["configuration"] for one in lines_of(result.csv) if one["model"] == "attention_densenet")
    group = plan.groups[identity]
    bare = tuple(
        replace(one, masks={name: mask for name, mask in one.masks.items() if name != "brain"})
        for one in group.cohort.samples
    )
    groups = {**plan.groups, identity: replace(group, cohort=replace(group.cohort, samples=bare))}
    run = Results(replace(plan, groups=groups), tables)
    images = [run.task_of(identity).adapter().inputs(one)[0][0] for one in bare]
    zero = np.all([(image == 0).all(axis=0) for image in images], axis=0)
    shares = mask_shares(run, identity, "f_proposal").values
    expected = []
    for one, image in zip(bare, images, strict=True):
        explained = run.explanation(identity, "f_proposal", one.id)
        assert explained is not None
        expected.append(quantile_masks(explained, (image != 0).any(axis=0), [40])[0])
    assert shares is not None and zero.any() and not shares[:, zero].any()
    np.testing.assert_allclose(shares, np.mean(expected, axis=0), rtol=1e-6)


def test_visits_of_a_patient_stay_together(result: Any) -> None:
    """36 samples of 30 patients; both visits of a patient are in the same subset."""
    (folder,) = (result.csv.parents[2] / "phantoms").iterdir()
    assert len(list(folder.glob("sub-*/sub-*_sessions.tsv"))) == 6
    for path in (result.csv.parents[2] / "store" / "train").glob("*/split.json"):
        parts = json.loads(path.read_text())
        subjects = {name: {one.partition("_")[0] for one in ids} for name, ids in parts.items()}
        assert not subjects["train"] & subjects["validation"]


def test_union_of_grids_is_one_ranking(tmp_path: Path) -> None:
    """Rows of all grids are ranked together, each with the command that repeats it alone; a repeated run adds none."""
    left_out = ("model.stem_stride", "model.blocks", "recipe.epochs", "fusion", "contrasts")
    options = {key: value for key, value in TINY.items() if key not in left_out}
    options |= {"model": "box_means", "attribution": "none", "out": str(tmp_path)}
    made = harness.run(**options)
    lines = lines_of(made.csv)
    assert {line["contrasts"] for line in lines} == {"qT1+MWF+NDI", "qT1", "MWF", "NDI"}
    assert sorted(line["rank"] for line in lines)[0] == "1" and all(line["rank"] for line in lines)
    assert harness.plan(**options).cells == 0
    for line in lines:
        program, command, *texts = shlex.split(line["command"])
        alone = prepare(resolve(parse(texts), texts=tuple(texts)))
        assert (program, command) == ("harness", "run")
        assert [one.id for one in alone.configurations] == [line["configuration"]]
        assert alone.missing() == ()


def test_shuffled_labels_are_a_control_in_the_same_table(tmp_path: Path) -> None:
    """A model of labels of other patients is a row of the same ranking, marked as a control, without a rank."""
    options = {**TINY, "model": "box_means", "attribution": ("weights", "random"), "shuffled": (False, True)}
    left_out = ("model.stem_stride", "model.blocks", "recipe.epochs", "fusion")
    options = {key: value for key, value in options.items() if key not in left_out}
    made = harness.run(**options, out=str(tmp_path))
    for path in (made.csv, made.csv.with_name(f"{made.csv.stem}-explanations.csv")):
        lines = lines_of(path)
        statuses = {(line["attribution"], line["shuffled"]): line["status"] for line in lines}
        for (attribution, shuffled), status in statuses.items():
            expected = "control: trained and tested with labels of other subjects (shuffled)"
            assert status == (expected if shuffled == "true" else "ranked"), (attribution, shuffled)
        assert [line["rank"] != "" for line in lines] == [line["shuffled"] == "false" for line in lines]
    assert "shuffled" not in read_facts(made.explanations).strata
    # The interval of a correlation is by jackknife or by bootstrap over patients; the value is the same.
    one, two = (
        harness.run(**options, metrics__rho_qT1_40__interval=name, out=str(tmp_path)).explanations.to_pylist()
        for name in ("bootstrap", "jackknife")
    )
    bounds = [tuple(line[f"rho_qT1_40{end}"] for end in ("", "_low", "_high")) for line in (one[0], two[0])]
    assert one[0]["configuration"] == two[0]["configuration"] and one[0]["attribution"] == two[0]["attribution"]
    assert bounds[0][0] == bounds[1][0] and bounds[0][1:] != bounds[1][1:]
    assert all(-1 <= low < value < high <= 1 for value, low, high in bounds)


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="needs the open-ms sample in shared/ beside the project")
def test_real_lesion_masks(tmp_path: Path) -> None:
    """27 patients with lesion masks, ages and EDSS run, and the verdict says that four severe ones are too few."""
    options = {key: TINY[key] for key in ("task", "recipe.epochs", "ray", "mlflow", "report")}
    more = {
        "cohort": "lesions",
        "cohort.label": "lesion",
        "cohort.spacing_mm": [12],
        "contrasts": "lesion_mask",
        "fusion": "gated",
    }
    made = harness.run(
        **options, **more, data=str(OPEN_MS), model="attention_densenet", model__blocks=1, model__stem_stride=1,
        attribution="random", out=str(tmp_path),
    )  # fmt: skip
    assert "Only 4 of 27 subjects are positive in severe" in made.verdict
    (line,) = lines_of(made.csv)
    assert line["subjects"] and float(line["auroc_validation"]) >= 0
