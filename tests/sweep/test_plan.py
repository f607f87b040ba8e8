"""Plans of many cells: prepared, executed in this process, resumed, collected and recalled."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import RequestError, StoreError, UnknownName
from harness.core.overrides import override
from harness.core.settings import RunSettings
from harness.pipeline import cell as cell_module
from harness.pipeline.cell import records_of
from harness.pipeline.leaderboard import VOLATILE
from harness.report.csv_files import write_csv
from harness.storage.store import CellRecord
from harness.sweep.cohorts import generate, phantom_folder
from harness.sweep.collect import collect
from harness.sweep.grammar import texts_of, to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve
from harness.sweep.resume import latest_run, recall, run_names
from harness.sweep.run import run

Overrides = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(tiny_overrides: Overrides) -> Callable[..., Plan]:
    """A function that prepares a tiny run, with further overrides as keywords."""

    def plan(out: Path, **more: Any) -> Plan:
        overrides = to_overrides(**tiny_overrides(out, **more))
        return prepare(resolve(overrides, texts=texts_of(overrides)))

    return plan


def done(plan: Plan) -> list[CellRecord]:
    """Execute a plan and return the committed records."""
    records: list[CellRecord] = []
    run(plan, committed=records.append)
    return records


def csv(plan: Plan, path: Path) -> bytes:
    """The leaderboard as a CSV file."""
    return write_csv(collect(plan).prediction, path).read_bytes()


def steady(plan: Plan) -> list[dict[str, Any]]:
    """The leaderboard without times, run names and commands, which contain the folder."""
    tables = collect(plan)
    rows = [*tables.prediction.to_pylist(), *tables.explanation.to_pylist()]
    return [{key: value for key, value in row.items() if key not in (*VOLATILE, "command")} for row in rows]


def test_plan_names_every_cell(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A plan has a training for each configuration, fold and seed, and preparing it runs nothing."""
    plan = planned(tmp_path, sequences="T2w,FLAIR", seed=(0, 1))
    assert [one.axes["sequences"] for one in plan.configurations] == ["T2w", "FLAIR"]
    assert len(plan.jobs) == 2 * 3 * 2 and len(plan.cells) == 12 * 5
    assert len({cell.identity for cell in plan.cells}) == len(plan.cells)
    assert plan.missing() == plan.jobs
    assert plan.sentence.startswith("3 subjects, 3 folds: train 1, validate 1")
    assert not plan.store.root.exists()


def test_longest_trainings_start_first(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Trainings start in descending order of estimated time, and those without an estimate come last."""
    plan = planned(tmp_path, seed=(0, 1))
    guessed = {plan.jobs[3].train: 1.0, plan.jobs[5].train: 9.0}
    began: list[str] = []
    run(plan, seconds=guessed, started=lambda job: began.append(job.train))
    assert began == [plan.jobs[index].train for index in (5, 3, 0, 1, 2, 4)]


def test_options_apply_to_models_that_have_them(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """An option that only one model has is swept for that model only."""
    plan = planned(tmp_path, model=("unet", "basic_unet"), model__depth=(1, 2))
    assert [(one.axes["model"], one.axes.get("model.depth")) for one in plan.configurations] == [
        ("unet", 1), ("basic_unet", None), ("unet", 2),
    ]  # fmt: skip


def test_seeds_share_their_folds(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Seeds share the same folds."""
    plan = planned(tmp_path, seed=(0, 1))
    splits = {seed: [one.split for one in plan.jobs if one.seed == seed] for seed in (0, 1)}
    assert splits[0] == splits[1]


def test_finished_run_computes_nothing(
    planned: Callable[..., Plan], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating a finished run computes nothing."""
    monkeypatch.setattr("harness.sweep.run.run_here", _never)
    plan = planned(finished)
    assert plan.missing() == () and done(plan) == []
    assert all(row["status"] == "undecided: 3 subjects" for row in collect(plan).prediction.to_pylist())


@pytest.mark.parametrize(
    ("stage", "label"), [("train", ""), ("predict", ""), ("explain", "random"), ("score", ""), ("score", "random")]
)
def test_only_a_deleted_cell_is_computed_again(
    planned: Callable[..., Plan], finished: Path, stage: str, label: str
) -> None:
    """Only a deleted cell is computed again, with identical artifacts."""
    plan = planned(finished)
    cell = next(one for one in plan.cells if (one.stage, one.label) == (stage, label))
    before, table = plan.store.get(stage, cell.identity, group=cell.group), steady(plan)
    shutil.rmtree(plan.store.folder(stage, cell.identity, group=cell.group))
    again = done(planned(finished))
    assert [record.identity for record in again] == [cell.identity]
    assert before is not None and again[0].artifacts == before.artifacts
    assert steady(planned(finished)) == table


def test_interrupted_run_can_be_resumed(planned: Callable[..., Plan], finished: Path, tmp_path: Path) -> None:
    """After an interruption at six cells, repeating the run computes the other nine with the same result."""
    plan = planned(tmp_path / "stopped")
    seen: list[CellRecord] = []

    def stop(record: CellRecord) -> None:
        seen.append(record)
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, committed=stop)
    left = [plan.store.root / "train" / f".{plan.cells[10].identity}-x", *(plan.store.root / "score").glob("*")]
    left = [left[0], *(folder / ".values-x" for folder in left[1:])]
    for folder in left:
        folder.mkdir()
    assert len(done(planned(tmp_path / "stopped"))) == 9
    assert steady(planned(tmp_path / "stopped")) == steady(planned(finished))
    assert len(left) > 1 and not any(folder.exists() for folder in left)


def test_missing_explanations_are_separate_jobs(planned: Callable[..., Plan], finished: Path) -> None:
    """With a finished training, each new attribution is a separate job without training."""
    plan = planned(finished, attribution="random,saliency,edge")
    rest = plan.missing()
    assert len(rest) == 3 * 2
    assert {tuple((cell.stage, cell.label) for cell in job.cells) for job in rest} == {
        (("explain", label), ("score", label)) for label in ("saliency", "edge")
    }


def test_recalled_table_is_identical(planned: Callable[..., Plan], finished: Path, tmp_path: Path) -> None:
    """The leaderboard recalled from the store is identical to that of the run."""
    plan = planned(finished)
    run(plan)  # stores the overrides of this copy
    first = csv(plan, tmp_path / "first.csv")
    again = csv(recall("epvs", RunSettings(out=str(finished))), tmp_path / "again.csv")
    assert first == again and b"T2w" in first


def test_recall_without_a_run(tmp_path: Path) -> None:
    """Recalling a run from an empty store raises an error with the command to run."""
    with pytest.raises(RequestError, match="has no run of epvs; start one: harness run task=epvs"):
        recall("epvs", RunSettings(out=str(tmp_path)))


def test_command_of_a_row_gives_that_row(planned: Callable[..., Plan], finished: Path, tmp_path: Path) -> None:
    """The command in a row of the leaderboard gives exactly the cells of that row."""
    import shlex

    from harness.sweep.grammar import parse

    plan = planned(finished, sequences="T2w,FLAIR", phantom__shape="[24,24,8]")
    rows = {row["configuration"]: row["command"] for row in collect(plan).prediction.to_pylist()}
    for configuration in plan.configurations:
        program, command, *overrides = shlex.split(rows[configuration.id])
        assert (program, command) == ("harness", "run")
        again = prepare(resolve(parse(overrides), texts=tuple(overrides)))
        own = [cell.identity for cell in plan.cells if cell.configuration == configuration.id]
        assert [cell.identity for cell in again.cells] == own


def test_collapsed_configurations_are_not_ranked(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A network that predicts only background is flagged and not ranked, and so are its explanations."""
    plan = planned(tmp_path, model__output_bias=-30.0, recipe__lr=1e-6)
    run(plan)
    tables = collect(plan)
    for table in (tables.prediction, tables.explanation):
        row = table.to_pylist()[0]
        assert row["rank"] is None and row["status"] == "collapsed in 3 of 3 cells"


def test_channel_subset_has_its_own_fingerprint(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """The identities of a channel subset do not depend on other configurations of the run."""
    alone = planned(tmp_path / "a")
    among = planned(tmp_path / "b", sequences="SWI,T2w,T2w+FLAIR")
    assert alone.configurations[0].fingerprint == among.configurations[1].fingerprint
    assert len({one.fingerprint for one in among.configurations}) == 3
    own = [cell.identity for cell in among.cells if cell.configuration == among.configurations[1].id]
    assert [cell.identity for cell in alone.cells] == own


def test_images_are_cached_once(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Preparing further channel subsets does not read cached images again."""
    planned(tmp_path, sequences="T2w+FLAIR")
    arrays = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "arrays").rglob("*") if path.is_file()}
    planned(tmp_path, sequences="T2w,FLAIR,T2w+FLAIR")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "arrays").rglob("*") if path.is_file()}
    assert arrays and after == arrays


def test_excluding_a_subject_changes_the_cohort(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Excluding a subject changes the cohort and the configuration."""
    three, four = planned(tmp_path), planned(tmp_path, exclude=None)
    assert (len(three.cohort.subjects), len(four.cohort.subjects)) == (3, 4)
    assert three.configurations[0].id != four.configurations[0].id


def test_duplicate_configurations_are_refused(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Two points of a grid that are the same configuration are refused."""
    with pytest.raises(RequestError, match="two points of the grid are the same configuration: .*repeats an earlier"):
        planned(tmp_path, cohort__n4_shrink="2,4")


def test_unknown_fold_is_refused(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A fold that does not exist is refused, and the message lists the existing ones."""
    with pytest.raises(UnknownName, match=r"no fold is named '3'\. .*All: 0, 1, 2\."):
        planned(tmp_path, fold=3)


def test_some_folds_only(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A run of one fold has the same cells as that fold in a full run."""
    whole, one = planned(tmp_path), planned(tmp_path, fold=1)
    assert [cell.identity for cell in one.cells] == [cell.identity for cell in whole.cells if cell.fold == 1]


def test_results_of_older_code_are_accepted_and_flagged(
    planned: Callable[..., Plan], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of code, ``accept_code`` reuses results, and the leaderboard flags them."""
    monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
    assert len(planned(finished).missing()) == 3
    plan = planned(finished, accept_code=True)
    assert {record.stage for record in done(plan)} == {"score"}  # values are computed again with the current code
    assert plan.missing() == ()
    tables = collect(plan)
    assert tables.prediction.to_pylist()[0]["flags"] == "older code accepted"
    assert tables.explanation.to_pylist()[0]["flags"] == "older code accepted"


def test_new_score_of_an_older_training_is_flagged(
    planned: Callable[..., Plan], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new score of a training from older code is flagged."""
    monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
    monkeypatch.setattr("harness.sweep.run.run_here", _scores_only)
    plan = planned(finished, accept_code=True, metrics__sensitivity__tolerance_mm=1.0)
    run(plan)
    assert collect(plan).prediction.to_pylist()[0]["flags"].endswith("older code accepted")


def test_new_metric_is_computed_alone(
    planned: Callable[..., Plan], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new metric is computed from stored predictions, and other values are read."""
    monkeypatch.setattr("harness.sweep.run.run_here", _scores_only)
    before = collect(planned(finished)).prediction.to_pylist()[0]
    plan = planned(finished, metrics__sensitivity_2mm="sensitivity")
    made = done(plan)
    assert [list(record.metrics) for record in made] == [["sensitivity_2mm"]] * 3
    after = collect(plan).prediction.to_pylist()[0]
    assert {name: after[name] for name in before if name not in (*VOLATILE, "command")} == {
        name: value for name, value in before.items() if name not in (*VOLATILE, "command")
    }
    assert after["sensitivity_2mm"] is not None


def test_metric_of_another_kind_is_refused(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A metric for another kind of target is refused, and the message names the kinds."""
    with pytest.raises(RequestError, match=r"\(target \(mask\)\): mine is for classes"):
        planned(tmp_path, metrics__mine="accuracy")


def test_metrics_of_a_replaced_target_are_left_out(tmp_path: Path) -> None:
    """If the target of a task is replaced, metrics of other kinds are left out, which is said once."""
    said: list[str] = []
    words = {
        "task": "ms", "experiment": "regression", "phantom.shape": [16, 18, 16], "phantom.patients": 20,
        "phantom_subjects": 20, "out": str(tmp_path),
    }  # fmt: skip
    plan = prepare(resolve(to_overrides(**words)), say=said.append)
    assert {"r2", "relevance_ap"} <= set(plan.configurations[0].task["metrics"])
    assert "auroc" not in plan.configurations[0].task["metrics"]
    assert plan.request.task.objective == "r2"
    (note,) = [one for one in said if "left out" in one]
    assert "do not apply to edss (number) and are left out: target_label" in note


def test_objective_of_another_kind_is_refused(tmp_path: Path) -> None:
    """An objective that does not apply to the target is refused, with metrics that do."""
    words = {
        "task": "ms", "experiment": "regression", "phantom.shape": [16, 18, 16], "phantom.patients": 20,
        "phantom_subjects": 20, "out": str(tmp_path), "objective": "auroc",
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"the objective must apply .* edss \(number\), .* to one of r2, r_squared"):
        prepare(resolve(to_overrides(**words)))


def test_damaged_record_raises_before_the_run(planned: Callable[..., Plan], finished: Path) -> None:
    """A damaged record raises an error before anything is computed."""
    plan = planned(finished)
    cell = plan.cells[0]
    (plan.store.folder(cell.stage, cell.identity) / "record.json").write_text("{")
    with pytest.raises(StoreError, match=r"record\.json cannot be read .*delete its folder and run the command again"):
        plan.missing()


def test_cohorts_of_different_phantoms_are_kept_apart(tiny_overrides: Overrides, tmp_path: Path) -> None:
    """A sweep over the seed of the phantom generates a cohort for each value."""
    overrides = tiny_overrides(
        tmp_path, data=None, exclude=None, phantom_subjects=3, phantom__density=3000.0,
        phantom__shape="[24,24,8]", phantom_seed=(0, 1),
    )  # fmt: skip
    plan = prepare(resolve(to_overrides(**overrides)))
    assert len({one.fingerprint for one in plan.configurations}) == 2
    folders = sorted(path.name for path in (tmp_path / "phantoms").iterdir())
    assert len(folders) == 2 and all(name.startswith("epvs-") for name in folders)


def test_phantom_folder_is_named_by_what_determines_it(epvs: Any, tmp_path: Path) -> None:
    """The phantom folder is named by seed, number of subjects and options, not by those of the training."""
    settings = RunSettings(out=str(tmp_path))
    name = phantom_folder(epvs, settings)
    assert phantom_folder(override(epvs, "recipe.lr", 0.5), settings) == name
    for key, value in {"phantom_seed": 1, "phantom_subjects": 7, "phantom.density": 3.0}.items():
        assert phantom_folder(override(epvs, key, value), settings) != name


def test_generated_cohort_is_reproducible(epvs: Any, phantom_root: Path, tmp_path: Path) -> None:
    """Generated files depend on the seed only, not on the number of subjects."""
    task = epvs
    for key, value in {"phantom_subjects": 1, "phantom.shape": [24, 24, 8], "phantom.density": 3000}.items():
        task = override(task, key, value)
    generate(task, tmp_path / "again")
    files = sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("sub-01*") if path.is_file()
    )
    assert files
    assert all((tmp_path / "again" / name).read_bytes() == (phantom_root / name).read_bytes() for name in files)


def test_plan_is_stored(planned: Callable[..., Plan], finished: Path) -> None:
    """The plan of a run and its configurations are stored."""
    plan = planned(finished)
    saved = json.loads((plan.store.root / "plans" / "epvs" / f"{plan.request.name}.json").read_text())
    assert saved["rows"] == [plan.configurations[0].id]
    assert plan.store.configuration(plan.configurations[0].id) == plan.configurations[0]
    found = recall("epvs", RunSettings(out=str(finished)))
    assert found.cells == plan.cells and found.missing() == ()
    assert dataclasses.asdict(found.jobs[0].split) == dataclasses.asdict(plan.jobs[0].split)


def test_each_run_keeps_its_plan(planned: Callable[..., Plan], finished: Path) -> None:
    """A later run does not replace the plan of an earlier one, which can be recalled by its name."""
    first, second = planned(finished), planned(finished, attribution="none", sequences="T2w,FLAIR")
    run(first)
    before = recall("epvs", first.request.settings)
    run(second)
    assert run_names(first.store, "epvs") == sorted([first.request.name, second.request.name])
    assert latest_run(first.store, "epvs") == second.request.name
    assert recall("epvs", first.request.settings).cells == second.cells
    again = recall("epvs", first.request.settings, name=first.request.name)
    assert again.configurations == before.configurations and again.cells == first.cells
    assert again.request.command == first.request.command


def test_recall_of_an_unknown_name(planned: Callable[..., Plan], finished: Path) -> None:
    """An unknown name of a run is refused, and the message lists the existing ones."""
    name = planned(finished).request.name
    with pytest.raises(UnknownName, match=rf"no run of epvs in .* is named 'ablation'.* All: {re.escape(name)}"):
        recall("epvs", RunSettings(out=str(finished)), name="ablation")


def test_values_are_those_of_the_subjects(planned: Callable[..., Plan], finished: Path) -> None:
    """The value in the leaderboard is the mean over the stored values of subjects."""
    plan = planned(finished)
    values = []
    for cell in plan.cells:
        if cell.stage == "score" and not cell.label:
            (record,) = records_of(cell, plan.store)
            scored = json.loads(plan.store.artifact(record, "values.json").read_text())[record.metrics["dice"]]
            values += [one["targets"]["target"] for one in scored["values"].values()]
    assert len(values) == 3
    assert collect(plan).prediction.to_pylist()[0]["dice"] == pytest.approx(np.mean(values))


def _never(*given: Any, **named: Any) -> Any:
    raise AssertionError("this must not be called")


def _scores_only(jobs: Any, *given: Any, **named: Any) -> None:
    """Call ``run_here`` after checking that there are only score cells."""
    from harness.tuning.jobs import run_here

    assert {cell.stage for job in jobs for cell in job.cells} == {"score"}
    run_here(jobs, *given, **named)
