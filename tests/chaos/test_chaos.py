"""Three rounds of chaos, and that its checks find what they look for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).with_name("chaos.py")


def loaded() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("chaos", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


chaos = loaded()


@pytest.mark.ray
def test_three_rounds_pass() -> None:
    """A cell that raises, a killed driver and two drivers end in the undisturbed tables, without twins or orphans."""
    if why := chaos.missing_rights():
        pytest.skip(f"chaos {why}")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--rounds", "3", "--seed", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 rounds passed" in done.stdout


def test_each_harm_is_drawn_once_before_any_is_repeated() -> None:
    """As many seeds in a row as there are harms see each of them, and a seed always draws the same."""
    count = len(chaos.HARMS)
    for start in (0, 3 * count):
        rounds = [chaos.Round.drawn(seed) for seed in range(start, start + count)]
        assert sorted(one.harm for one in rounds) == sorted(chaos.HARMS)
        assert rounds == [chaos.Round.drawn(seed) for seed in range(start, start + count)]
    assert {one.stage for one in rounds} == {"train", "explain"}


@pytest.fixture
def sweep(tmp_path: Path) -> chaos.Sweep:
    """A round with one complete cell in its store and one run in MLflow."""
    made = chaos.Sweep(chaos.Round(7, "raise", "train", 2), tmp_path)
    folder = made.out / "store" / "train" / "abc"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / "record.json").write_text(json.dumps({"artifacts": {"weights": digest}}))
    with sqlite3.connect(made.database) as database:
        database.execute("create table runs (run_uuid, status, lifecycle_stage, start_time, end_time)")
        database.execute("create table tags (run_uuid, key, value)")
    database.close()
    return made


def add_run(sweep: chaos.Sweep, run: str, identity: str, status: str = "FINISHED", stage: str = "active") -> None:
    """Add a run to MLflow's tables."""
    with sqlite3.connect(sweep.database) as database:
        database.execute("insert into runs values (?, ?, ?, 1, 2)", (run, status, stage))
        database.execute("insert into tags values (?, 'harness.identity', ?)", (run, identity))
    database.close()


COUNT = f"1 cells instead of {chaos.CELLS}"


def test_complete_store_is_accepted(sweep: chaos.Sweep) -> None:
    """A complete cell is counted and no problem."""
    assert list(chaos.checked_store(sweep)) == [COUNT]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("store/train/abc/weights", "damaged: train/abc/weights"),
        ("store/train/def/weights", "half-written cell: train/def"),
        ("store/train/.abc-123/weights", "remains of a commit: .abc-123"),
        ("store/failed/abc.json", "left: store/failed/abc.json"),
        ("store/plans/chaos/.part-1", "left: store/plans/chaos/.part-1"),
        ("ray/tune-1/file", "left: ray/tune-1"),
    ],
)
def test_damage_is_found(sweep: chaos.Sweep, path: str, problem: str) -> None:
    """Damaged, half-written and left files are found."""
    (sweep.out / path).parent.mkdir(parents=True, exist_ok=True)
    (sweep.out / path).write_text("changed")
    assert set(chaos.checked_store(sweep)) == {COUNT, problem}


def test_twins_and_open_runs_are_found(sweep: chaos.Sweep) -> None:
    """Two runs with one identity, runs that never ended and missing runs are found; deleted runs are ignored."""
    for number in range(chaos.TRACKED):
        add_run(sweep, f"run-{number}", f"identity-{number}")
    add_run(sweep, "deleted", "identity-0", stage="deleted")
    assert list(chaos.checked_tracking(sweep)) == []
    add_run(sweep, "twin", "identity-0", status="RUNNING")
    assert list(chaos.checked_tracking(sweep)) == [
        f"{chaos.TRACKED + 1} MLflow runs for {chaos.TRACKED} identities",
        "MLflow runs are FINISHED, RUNNING",
    ]


def test_unlisted_failures_and_tracebacks_are_found(sweep: chaos.Sweep) -> None:
    """A failure without its reason, a traceback and a failing last run are found."""
    sweep.logs = [sweep.work / "1.log"]
    sweep.outcome.codes = [1, 0]
    sweep.logs[0].write_text("failed: explain saliency fold 0 seed 0: RuntimeError: a cell that raises (x.py:3)\n")
    assert [*chaos.checked_list(sweep), *chaos.checked_codes(sweep)] == []
    sweep.logs[0].write_text("Traceback (most recent call last):\n")
    sweep.outcome.codes = [1, 1]
    assert list(chaos.checked_codes(sweep)) == ["exit codes [1, 1]", "traceback in 1.log"]
    assert len(list(chaos.checked_list(sweep))) == 1


@pytest.mark.parametrize("harm", [harm for harm, pattern in chaos.HARMS.items() if pattern])
def test_an_undisturbed_output_lists_no_failure(sweep: chaos.Sweep, harm: str) -> None:
    """So that a round whose attempts failed without a word does not pass."""
    sweep.one = replace(sweep.one, harm=harm)
    sweep.logs = [sweep.work / "1.log"]
    sweep.logs[0].write_text("· 6 trainings, 42 cells: 0 done, 42 to do\n· 42 cells done, 0 failed, in 9 s\n")
    assert len(list(chaos.checked_list(sweep))) == 1


def test_a_next_run_that_resumes_is_recognised(sweep: chaos.Sweep) -> None:
    """After the death of a driver, which can list nothing, the next run says what is left to do."""
    sweep.one = replace(sweep.one, harm="driver killed")
    sweep.logs = [sweep.work / "1.log", sweep.work / "2.log"]
    sweep.logs[0].write_text("· 6 trainings, 42 cells: 0 done, 42 to do\n· 0/42 cells, 0 failed\n")
    sweep.logs[1].write_text("· 6 trainings, 42 cells: 9 done, 33 to do\n· 33 cells done, 0 failed, in 9 s\n")
    assert list(chaos.checked_list(sweep)) == []
    sweep.logs[1].write_text("· 6 trainings, 42 cells: 9 done, 33 to do\n· 33 cells done, 1 failed, in 9 s\n")
    assert len(list(chaos.checked_list(sweep))) == 1


def test_a_worker_that_ends_only_when_it_is_released_is_an_orphan(
    sweep: chaos.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orphans of a killed driver are counted while the worker inside of the call is held."""
    driver, worker = (subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2))
    sweep.one, sweep.orders = replace(sweep.one, harm="driver killed"), sweep.work

    def held() -> dict[int, str]:
        is_held = worker.poll() is None and not (sweep.orders / "struck").exists()
        return {worker.pid: "ray::held"} if is_held else {}

    monkeypatch.setattr(sweep, "processes", held)
    monkeypatch.setattr(chaos, "_ORPHANS_S", 0.2)
    with driver, worker:
        chaos.strike(sweep, driver, worker.pid)
        sweep.release()
    assert sweep.outcome.problems == ["left after 0 s: ray::held"] and driver.returncode == worker.returncode == -9


def test_a_database_that_cannot_be_locked_is_a_problem(sweep: chaos.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can write while it is locked; a missing or locked database did not take the harm."""
    monkeypatch.setattr(chaos, "_LOCK_S", 0.1)
    undone = []
    monkeypatch.setattr(chaos, "_once_noticed", lambda sweep, undo, least_s: undone.append(undo))
    chaos._lock(sweep)
    assert sweep.outcome.problems == []
    with contextlib.closing(sqlite3.connect(sweep.database, timeout=0.1)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("insert into tags values (1, 2, 3)")
        chaos._lock(sweep)
        assert sweep.outcome.problems == ["mlflow.db was not locked: database is locked"]
        (undo,) = undone
        undo()
        other.execute("insert into tags values (1, 2, 3)")
    sweep.database.unlink()
    chaos._lock(sweep)
    assert sweep.outcome.problems[1:] == ["mlflow.db was not locked: unable to open database file"]


@pytest.mark.parametrize(("dice", "problems"), [(["0.7", "0.2"], 0), (["0.7", "0.7"], 1), (["0.0", "0.05"], 1)])
def test_tables_that_cannot_differ_are_found(dice: list[str], problems: int) -> None:
    """Equal values, and those of networks that have learnt nothing."""
    rows = [{"dice": value, "relevance_ap": str(number / 4)} for number, value in enumerate(dice)]
    assert len(list(chaos.alike(chaos.Outcome(tables={"a.csv": rows})))) == problems


def test_differing_tables_are_found() -> None:
    """A missing table and a differing value are found."""
    one = chaos.Outcome(tables={"a.csv": [{"dice": "0.5"}], "b.csv": []})
    other = chaos.Outcome(tables={"a.csv": [{"dice": "0.50000001"}]})
    assert chaos.compared(one, one) == []
    assert chaos.compared(other, one) == ["tables ['a.csv'] instead of ['a.csv', 'b.csv']", "a.csv differs"]
