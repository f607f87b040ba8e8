"""``harness.run`` and the other functions of the Python API: tables, files and the end of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import harness
from harness.cli import api
from harness.core.errors import CohortError, OutOfRange, RequestError, UnknownName
from harness.sweep.grammar import to_overrides

Overrides = Callable[..., dict[str, Any]]


def test_run_gives_tables(tiny_overrides: Overrides, finished: Path) -> None:
    """The results are Arrow tables, complete when every cell is done."""
    result = harness.run(**tiny_overrides(finished))
    assert isinstance(result.leaderboard, pa.Table) and result.leaderboard.num_rows == 1
    assert result.explanations.column("attribution").to_pylist() == ["random"]
    assert set(result.regions.column("metric").to_pylist()) >= {"dice", "sensitivity"}
    assert result.complete and result.failures == () and result.missing == 0
    assert "undecided" in result.verdict and result.mlflow == "" and result.report is None


def test_run_writes_its_tables(tiny_overrides: Overrides, finished: Path) -> None:
    """A run writes three CSV files that carry its name; the leaderboard has no suffix."""
    result = harness.run(**tiny_overrides(finished))
    name = result.csv.stem
    assert result.csv.parent == finished / "leaderboards" / "epvs" and name.startswith("phantom_sequences-T2w")
    assert sorted(path.name for path in result.csv.parent.iterdir()) == sorted(
        [f"{name}.csv", f"{name}-explanations.csv", f"{name}-regions.csv"]
    )
    header = result.csv.read_text().splitlines()[0]
    assert {"rank", "sequences", "model", "dice", "dice_low", "dice_high", "sensitivity_chance"} <= set(
        header.split(",")
    )


def test_two_runs_keep_their_tables(tiny_overrides: Overrides, finished: Path) -> None:
    """A second run does not change the files of the first, and repeating the first rewrites only its own."""
    first = harness.run(**tiny_overrides(finished, report=True))
    assert first.report is not None
    before = {path: path.read_bytes() for path in (*first.csv.parent.iterdir(), first.report)}
    second = harness.run(**tiny_overrides(finished, report=True, seed=(0, 1)))
    assert second.csv != first.csv and second.report != first.report
    assert {path: path.read_bytes() for path in before} == before
    assert harness.run(**tiny_overrides(finished, report=True)).csv == first.csv
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(first.csv.parent.iterdir())) == 2 * 3


def test_reports_of_a_task_are_listed(tiny_overrides: Overrides, finished: Path) -> None:
    """The index page lists reports with command and link, the latest first, and each report links back to it."""
    first = harness.run(**tiny_overrides(finished, report=True)).report
    second = harness.run(**tiny_overrides(finished, report=True, seed=1)).report
    assert first is not None and second is not None
    page = (finished / "reports" / "epvs" / "index.html").read_text()
    links = re.findall(r'<a href="([^"#]+)">', page)
    assert [finished / "reports" / "epvs" / link for link in links] == [second, first]
    assert page.count("latest</td>") == 1 and page.index("latest</td>") < page.index(links[1])
    assert "harness run " in page and "seed=1" in page
    assert 'href="../index.html"' in second.read_text()


def test_outdated_table_is_removed(tiny_overrides: Overrides, finished: Path) -> None:
    """A table left by an earlier run of the same name is removed if the run no longer produces it."""
    csv = harness.run(**tiny_overrides(finished)).csv
    stale, other = csv.with_name(f"{csv.stem}-shapley.csv"), csv.with_name("ablation-shapley.csv")
    for path in (stale, other):
        path.write_text("channel,shapley\n")
    harness.run(**tiny_overrides(finished))
    assert not stale.exists() and other.exists()


def test_table_of_a_run_by_its_name(tiny_overrides: Overrides, finished: Path) -> None:
    """``harness.table`` returns the latest run by default and any run by its name."""
    first = harness.run(**tiny_overrides(finished))
    second = harness.run(**tiny_overrides(finished, seed=1))
    assert harness.table(task="epvs", out=finished).to_pylist() == second.leaderboard.to_pylist()
    assert harness.table(task="epvs", out=finished, run=first.csv.stem).to_pylist() == first.leaderboard.to_pylist()


def test_table_comes_from_the_store_alone(tiny_overrides: Overrides, finished: Path) -> None:
    """The leaderboard of the latest run can be read with only ``task`` and ``out``."""
    made = harness.run(**tiny_overrides(finished)).leaderboard
    assert harness.table(task="epvs", out=finished).to_pylist() == made.to_pylist()


def test_table_refuses_overrides(finished: Path) -> None:
    """``harness.table`` refuses overrides, and it requires a task."""
    with pytest.raises(RequestError, match=r"harness\.table does not use seed=; it takes out=, run=, task="):
        harness.table(task="epvs", out=finished, seed=1)
    with pytest.raises(RequestError, match="task= must be given; set task=NAME"):
        harness.table(out=finished)


def test_plan_is_an_estimate(tiny_overrides: Overrides, finished: Path) -> None:
    """``harness.plan`` counts the cells to compute and those already done."""
    found = harness.plan(**tiny_overrides(finished, seed=(0, 1)))
    assert (found.cells, found.done) == (15, 15)


def test_failed_cells_are_listed(tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose trainings raise completes, lists each failure, and ranks no row."""
    monkeypatch.setattr("harness.pipeline.job.train", _broken)
    result = harness.run(**tiny_overrides(tmp_path))
    assert not result.complete
    assert [(one.stage, one.fold) for one in result.failures] == [("train", 0), ("train", 1), ("train", 2)]
    assert all(one.error.startswith("ValueError: too wide (test_api.py:") for one in result.failures)
    assert result.missing == 12
    row = result.leaderboard.to_pylist()[0]
    assert row["rank"] is None and "ValueError: too wide" in row["flags"]


def test_failed_cells_are_computed_again(
    tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating the command computes the cells that failed."""
    with monkeypatch.context() as patch:
        patch.setattr("harness.pipeline.job.train", _broken)
        assert not harness.run(**tiny_overrides(tmp_path)).complete
    assert harness.run(**tiny_overrides(tmp_path)).complete


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"task": "epsv"}, UnknownName, "no task is named 'epsv'"),
        ({"sequences": "T2W"}, CohortError, "T2W"),
        ({"exclude": ("sub-03", "sub-04")}, CohortError, "subjects"),
        ({"recipe.lr": -1}, OutOfRange, "recipe.lr must be a number > 0"),
        ({"fold": 9}, UnknownName, "no fold is named '9'"),
    ],
)
def test_invalid_requests_start_nothing(
    tiny_overrides: Overrides, tmp_path: Path, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    """An invalid request raises an error before anything is stored."""
    with pytest.raises(error, match=message):
        harness.run(**tiny_overrides(tmp_path, **more))
    assert not (tmp_path / "store").exists() and not (tmp_path / "leaderboards").exists()


def test_networks_that_exceed_the_memory_need_confirmation(
    tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would end the workers without a message."""
    monkeypatch.setattr(api.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
    with pytest.raises(RequestError, match=r"need about .* GB of memory \(1 jobs at a time\).*or set yes=true"):
        harness.run(**tiny_overrides(tmp_path))
    assert not (tmp_path / "store").exists()


def test_long_run_needs_confirmation(
    tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the time limit, a run stops with its estimate unless ``yes=true`` is given."""
    monkeypatch.setattr(api, "LIMIT_S", 0.0)
    with pytest.raises(
        RequestError, match=r"this run would take about \d+ seconds .*\(15 cells are missing\).*yes=true"
    ):
        harness.run(**tiny_overrides(tmp_path))
    assert not (tmp_path / "store").exists()
    assert harness.run(**tiny_overrides(tmp_path, yes=True, fold=0)).complete


def test_observer_is_notified_in_order(tiny_overrides: Overrides, tmp_path: Path) -> None:
    """The observer is notified of the plan, then of each job with its cells, then of the end."""
    events: list[str] = []

    class Recorder(api.Silent):
        def planned(self, plan: Any, todo: int) -> None:
            events.append(f"planned {todo}")

        def started(self, job: Any) -> None:
            events.append(f"started {job.fold}")

        def committed(self, record: Any, objective: float) -> None:
            events.append(f"{record.stage} {record.label} {'value' if objective == objective else ''}".strip())

        def ended(self) -> None:
            events.append("ended")

    overrides = to_overrides(**tiny_overrides(tmp_path, fold=0))
    api.carry_out(overrides, (), Recorder())
    assert events[:6] == ["planned 5", "started 0", "train", "predict", "score  value", "explain random"]
    assert events[6] == "score random" and set(events[7:]) == {"ended"}


def test_observer_is_notified_of_the_end_after_an_exception(
    tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The observer is notified of the end even after ``KeyboardInterrupt``, so that a live display is closed."""
    ended: list[bool] = []

    class Recorder(api.Silent):
        def ended(self) -> None:
            ended.append(True)

        def committed(self, record: Any, objective: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.carry_out(to_overrides(**tiny_overrides(tmp_path)), (), Recorder())
    assert ended


def test_run_without_explanations(tiny_overrides: Overrides, finished: Path) -> None:
    """With ``attribution=none``, the run completes and the table of explanations is empty."""
    result = harness.run(**tiny_overrides(finished, attribution="none", report=True))
    assert result.complete and result.explanations.num_rows == 0 and result.leaderboard.num_rows == 1


def test_report_is_one_page(tiny_overrides: Overrides, finished: Path) -> None:
    """The report is one HTML page with the question and the table."""
    result = harness.run(**tiny_overrides(finished, report=True))
    assert result.report == finished / "reports" / "epvs" / result.csv.stem / "index.html"
    text = result.report.read_text()
    assert "Which MRI sequences are needed" in text and "T2w" in text


def test_public_names_exist() -> None:
    """The public names of the package exist, and an unknown one raises ``AttributeError``."""
    assert harness.metrics.compute is not None and harness.models.build is not None
    assert harness.attribution.attribute is not None
    with pytest.raises(AttributeError, match="module 'harness' has no attribute 'runn'"):
        harness.runn  # type: ignore[attr-defined]


def _broken(*given: Any, **named: Any) -> Any:
    raise ValueError("too wide")
