"""The lesion-symptom task from overrides to tables, report and predictions."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import harness
from harness.cli.prediction import predict_folder
from harness.core.errors import RequestError
from harness.data.bids import index
from harness.report.remarks import remarks
from harness.sweep.collect import Tables
from harness.sweep.estimate import estimate
from harness.sweep.grammar import Overrides, to_overrides
from harness.sweep.grid import at
from harness.sweep.plan import prepare
from harness.sweep.request import resolve

SIMULATED = ("noise", "roi_size", "targets.scores.patients")


@pytest.fixture(scope="module")
def overrides(lesion_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A ridge regression at two levels of noise on fourteen small masks."""
    return {
        "task": "lsm",
        "data": str(lesion_root),
        "box": "native",
        "cohort.spacing_mm": [],
        "model": "ridge",
        "model.minimum": 2,
        "noise": (0.0, 0.2),
        "roi_size": 3,
        "targets.scores.patients": 3,
        "split.folds": 3,
        "attribution": ("occlusion", "weights", "random"),
        "attributions.occlusion.window": 3,
        "attributions.occlusion.stride": 2,
        "ray": "off",
        "mlflow": "off",
        "out": str(tmp_path_factory.mktemp("out")),
    }


@pytest.fixture(scope="module")
def result(overrides: dict[str, Any]) -> Any:
    """The result of the run."""
    return harness.run(**overrides)


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def test_run_is_complete_and_rows_have_ceilings(result: Any) -> None:
    """The leaderboard has one row per level of noise, with R², its interval and its ceiling."""
    assert not result.failures and not result.missing
    lines = result.leaderboard.to_pylist()
    assert {line["noise"] for line in lines} == {0.0, 0.2}
    by_noise = {line["noise"]: line for line in lines}
    assert by_noise[0.0]["r2_ceiling"] == pytest.approx(1)
    assert 0.5 < by_noise[0.2]["r2_ceiling"] < 1
    assert all(line["r2_low"] < line["r2"] < line["r2_high"] for line in lines)


def test_estimated_disk_space_matches_the_files(result: Any, overrides: dict[str, Any], tmp_path: Path) -> None:
    """The estimated disk space is that of incompressible maps and of network weights, within 25 %."""
    store = Path(overrides["out"]) / "store"
    random = [one for one in store.glob("explain/*/record.json") if json.loads(one.read_text())["label"] == "random"]
    files = [one.parent / "blocks.npz" for one in random] + list(store.glob("train/*/*.safetensors"))
    alone = {key: value for key, value in overrides.items() if not key.startswith("attributions.")}
    found = estimate(prepare(resolve(to_overrides(**{**alone, "attribution": "random", "out": str(tmp_path)}))))
    assert len(random) == 6
    assert found.disk_bytes == pytest.approx(sum(one.stat().st_size for one in files), rel=0.25)


def test_explanations_are_ranked_above_chance(result: Any) -> None:
    """Each configuration and attribution has one row; random maps score chance, far below occlusion."""
    lines = {(line["noise"], line["attribution"]): line for line in result.explanations.to_pylist()}
    assert len(lines) == 6
    for noise in (0.0, 0.2):
        occlusion, random = lines[noise, "occlusion"], lines[noise, "random"]
        assert occlusion["relevance_ap"] > 3 * random["relevance_ap"]
        assert random["relevance_ap"] == pytest.approx(random["relevance_ap_chance"], abs=0.02)
        assert occlusion["relevance_ap_ceiling"] < 1 and occlusion["explain_s"] >= 0


def test_tables_of_regions_scores_and_agreement(result: Any) -> None:
    """Tables of single scores, regions of interest and agreement between maps lie beside the leaderboard."""
    board = result.csv
    regions = rows(board.with_name(f"{board.stem}-regions.csv"))
    assert {row["region"] for row in regions} == {"score_1", "score_2", "score_3"}
    assert {"r2", "relevance_ap"} <= {row["metric"] for row in regions}
    rois = rows(board.with_name(f"{board.stem}-rois.csv"))
    assert [row["name"] for row in rois] == ["roi1", "roi2", "roi3"]
    assert all(int(row["touched"]) >= 3 and row["size_mm"] == "6 6 6" for row in rois)
    agreement = rows(board.with_name(f"{board.stem}-agreement.csv"))
    assert {(row["first"], row["second"]) for row in agreement} == {
        ("occlusion", "weights"), ("occlusion", "random"), ("weights", "random"),
    }  # fmt: skip
    assert all(-1 <= float(row["pearson"]) <= 1 for row in agreement)


@pytest.fixture(scope="module")
def by_score(overrides: dict[str, Any]) -> Any:
    """Two models with one or all scores, at one level of noise."""
    scores = ("score_1", "score_2", "score_1+score_2+score_3")
    more = {"noise": 0.2, "scores": scores, "model": ("ridge", "total_volume")}
    return harness.run(**{**overrides, **more, "adapter.covariates": ""})


def test_networks_with_one_and_several_outputs_are_ranked_by_score(by_score: Any) -> None:
    """Each score that several configurations predict has a ranking, with the value of this score in each of them."""
    both = "score_1+score_2+score_3"
    assert set(by_score.targets) == {"score_1", "score_2", "score_3"}
    regions = rows(by_score.csv.with_name(f"{by_score.csv.stem}-regions.csv"))
    for score, table in by_score.targets.items():
        lines = table.to_pylist()
        singles = {score} - {"score_3"}  # no configuration predicts score 3 alone
        expected = {(model, scores) for model in ("ridge", "total_volume") for scores in (both, *singles)}
        assert {(line["model"], line["scores"]) for line in lines} == expected
        assert sorted(line["rank"] for line in lines)[0] == 1 and {line["status"] for line in lines} == {"ranked"}
        for line in lines:
            (own,) = [
                row
                for row in regions
                if row["region"] == score and row["metric"] == "r2" and not row["attribution"]
                and (row["model"], row["scores"]) == (line["model"], line["scores"])
            ]  # fmt: skip
            assert line["r2"] == pytest.approx(float(own["value"]), rel=1e-5)
    # Ridge fits each score alone, so that other scores beside it do not change the prediction.
    values = {(line["model"], line["scores"]): line["r2"] for line in by_score.targets["score_1"].to_pylist()}
    assert values["ridge", "score_1"] == pytest.approx(values["ridge", both], abs=1e-6)


def test_tables_and_verdict_of_single_scores(by_score: Any) -> None:
    """The verdict has one sentence per score, and the report and CSV files have the rankings of each score."""
    sentences = by_score.verdict.splitlines()
    assert [line.partition(":")[0] for line in sentences[:-1]] == ["score_1", "score_2", "score_3"]
    assert sentences[-1].startswith("Scores are simulated from the lesion loads of a few regions; what leads here ")
    assert "model=ridge, scores=score_1+score_2+score_3" in sentences[0]
    found = rows(by_score.csv.with_name(f"{by_score.csv.stem}-targets.csv"))
    assert {row["target"] for row in found} == {"score_1", "score_2", "score_3"} and len(found) == 10
    maps = rows(by_score.csv.with_name(f"{by_score.csv.stem}-targets-explanations.csv"))
    assert {row["attribution"] for row in maps} == {"occlusion", "weights", "random"}
    assert len(maps) == 30 and set(by_score.targets) == {row["target"] for row in maps if row["rank"] == "1"}
    page = by_score.report.read_text()
    assert page.count("<h3>score_2</h3>") == 2


def test_configurations_with_the_same_scores_are_ranked_together(result: Any) -> None:
    """If all configurations predict the same scores, there are no rankings of single scores."""
    assert result.targets == {}
    assert not result.csv.with_name(f"{result.csv.stem}-targets.csv").exists()


def test_the_report_is_written(result: Any) -> None:
    """The report has sections on the regions and on each score."""
    page = result.report.read_text()
    assert "Regions of interest" in page and "Each target alone" in page and "Maps of score_1" in page


def test_new_subjects_get_a_table_of_scores(
    result: Any, overrides: dict[str, Any], lesion_root: Path, tmp_path: Path
) -> None:
    """Predictions of new subjects are a table with one row per subject."""
    configuration = next(line["configuration"] for line in result.leaderboard.to_pylist() if line["noise"] == 0.0)
    given = Overrides(
        {"model": configuration, "data": str(lesion_root), "out": overrides["out"], "into": str(tmp_path / "new")}
    )
    (path,) = predict_folder(given, say=lambda text: None)
    table = np.genfromtxt(path, delimiter="\t", names=True, dtype=None, encoding="utf-8")
    assert list(table["participant_id"]) == [one.id for one in index(lesion_root, label="lesion").candidates]
    assert np.ptp(table["score_1"]) > 0.2


def test_presets_yield_to_overrides(overrides: dict[str, Any]) -> None:
    """A preset of an experiment and a model applies unless the user overrides it."""

    def epochs(experiment: str, model: str, **more: Any) -> int:
        request = resolve(to_overrides(task="lsm", profile="paper", experiment=experiment, **more))
        return int(at(request.task, {"model": model}).recipe.keywords["epochs"])

    assert (epochs("multi", "cnn"), epochs("multi", "residual_cnn")) == (70, 90)
    assert (epochs("noise", "cnn"), epochs("noise", "residual_cnn")) == (90, 110)
    assert epochs("noise", "cnn", **{"recipe.epochs": 3}) == 3


def test_any_number_of_regions_and_the_shuffled_control(overrides: dict[str, Any], tmp_path: Path) -> None:
    """Two regions need no third, and a model of shuffled scores has worse maps and a negative R²."""
    more = {
        "noise": 0.0,
        "rois": 2,
        "shuffled": (False, True),
        "attribution": ("occlusion", "weights"),
        "report": "false",
    }
    made = harness.run(**{**overrides, **more, "out": str(tmp_path)})
    assert not made.failures
    lines = {line["shuffled"]: line for line in made.explanations.to_pylist() if line["attribution"] == "weights"}
    assert lines[False]["rc_roi3"] is None and lines[False]["rc_roi1"] is not None
    assert lines[True]["relevance_ap"] < lines[False]["relevance_ap"]
    scored = {line["shuffled"]: line for line in made.leaderboard.to_pylist()}
    assert scored[True]["r2"] < 0 < scored[False]["r2"] and scored[True]["r2_ceiling"] is None


def test_measured_score_has_no_columns_of_simulations(overrides: dict[str, Any], tmp_path: Path) -> None:
    """For a measured score, there are no noise levels, no relevance metrics and no hypotheses of the paper."""
    more = {"score": "severity", "attribution": ("occlusion", "weights"), "model": ("ridge", "total_volume")}
    kept = {key: value for key, value in overrides.items() if key not in SIMULATED}
    made = harness.run(**{**kept, **more, "adapter.covariates": "", "out": str(tmp_path)})
    assert "noise" not in made.leaderboard.column_names
    assert all("noise" not in line["command"] for line in made.leaderboard.to_pylist())
    assert {line["relevance_ap"] for line in made.explanations.to_pylist()} == {None}
    assert made.report is not None and "Hypotheses of the paper" not in made.report.read_text()
    page, remark = made.report.read_text(), "r2 ranks predictions, not maps: the best prediction need not have the best"
    # The maps of all configurations are shown, since nothing ranks them.
    titles = re.findall("<strong>Maps of severity, (.*?)</strong>", page)
    assert sorted(model for title in titles for model in ("ridge", "total_volume") if model in title) == [
        "ridge", "total_volume",
    ]  # fmt: skip
    assert made.verdict.splitlines()[-1].startswith(remark) and page.count(remark) == 3


def test_gain_over_volume(overrides: dict[str, Any], tmp_path: Path) -> None:
    """The report has the paired difference of each configuration from total volume, in each problem."""
    more = {"model": ("ridge", "total_volume"), "adapter.covariates": ""}
    made = harness.run(**{**overrides, **more, "out": str(tmp_path)})
    assert made.report is not None
    table = made.report.read_text().partition("<h3>Gain over total_volume</h3>")[2].partition("</table>")[0]
    values = {(row.axes["model"], row.axes["noise"]): row.values["r2"] for row in made.rows}
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", table, re.DOTALL)]
    assert [cell for cell in cells if cell.startswith("noise=")] == ["noise=0.0", "noise=0.2"]
    for noise in (0.0, 0.2):
        of_ridge, of_volume = (values[model, noise] for model in ("ridge", "total_volume"))
        gain = np.mean([of_ridge[subject][0] - of_volume[subject][0] for subject in of_ridge])
        assert any(cell.replace("−", "-").startswith(f"{gain:.2f} [") for cell in cells)
    with made.csv.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["gain_over"] for line in lines if line["model"] == "ridge"] == ["total_volume"] * 2
    for line in lines:
        assert (line["gain_over"], line["gain"]) == ("", "") or float(line["gain"]) > float(line["gain_low"])


def test_verdict_names_models_that_assume_the_simulation(overrides: dict[str, Any], tmp_path: Path) -> None:
    """For simulated scores, a remark names the model that assumes what is simulated, and no other model."""

    def remark(*models: str) -> str:
        made = prepare(resolve(to_overrides(**{**overrides, "model": models, "out": str(tmp_path)})))
        empty = pa.table({})
        (found,) = remarks(made, Tables(empty, empty, empty, {}))
        return found

    assert remark("ridge", "lesion_field").endswith(
        "need not lead on measured scores. lesion_field assumes that a score increases with the lesion load of a few "
        "compact regions."
    )
    assert remark("ridge", "sparse_linear").endswith("what leads here need not lead on measured scores.")


def test_simulated_scores_show_the_maps_of_the_first(result: Any) -> None:
    """With a known truth, the table ranks maps, and those of the first configuration are shown."""
    page = result.report.read_text()
    assert page.count("<strong>Maps of score_1") == 1 and "r2 ranks predictions" not in page


def test_noise_levels_are_refused_for_a_measured_score(overrides: dict[str, Any], tmp_path: Path) -> None:
    """Noise levels are refused for a measured score, since they apply to simulated scores only."""
    kept = {key: value for key, value in overrides.items() if key not in SIMULATED}
    for noise in ((0.0, 0.2), 0.2):
        with pytest.raises(RequestError, match="noise applies to simulated scores only; remove it .* when score="):
            resolve(to_overrides(**{**kept, "noise": noise, "score": "severity", "out": str(tmp_path)}))
