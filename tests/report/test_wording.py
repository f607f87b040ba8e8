"""Tables as text and as files, on tiny hand-made rows."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from harness.pipeline.leaderboard import build
from harness.pipeline.rows import MetricFacts, Row
from harness.report.csv_files import write_csv
from harness.report.wording import console_rows, interval_text, row_labels, verdict

DICE = MetricFacts("dice", "higher", (0, 1), chance=0.02, ceiling=1.0)
DISTANCE = MetricFacts("distance", "lower", (0, math.inf), unit="mm")
ICC = MetricFacts("icc", "higher", (-1, 1), level="pooled")

# Six subjects; "near" cannot be told from "good", "poor" can.
GOOD = [0.80, 0.72, 0.91, 0.85, 0.76, 0.82]
NEAR = [0.82, 0.71, 0.92, 0.84, 0.77, 0.78]
POOR = [0.50, 0.45, 0.63, 0.52, 0.49, 0.51]


def _row(name: str, values: list[float], **changes: Any) -> Row:
    by_subject = {f"sub-{index}": {0: value} for index, value in enumerate(values, 1)}
    row = Row(name, {"sequences": name}, values={"dice": by_subject}, facts={"folds": 6, "profile": "quick"})
    return dataclasses.replace(row, **changes)


def _column(rows: list[Row], name: str, **options: Any) -> list[Any]:
    return list(build(rows, [DICE], "dice", **options)[name].to_pylist())


@pytest.fixture
def rows() -> list[Row]:
    """Three rows that can all be ranked."""
    return [_row("poor", POOR), _row("good", GOOD), _row("near", NEAR)]


class TestVerdict:
    """What may be claimed."""

    def test_group(self, rows: list[Row]) -> None:
        """The first is named with its interval, and so is the group."""
        said = verdict(build(rows, [DICE], "dice"))
        assert said == "good leads (dice 0.81 [0.74, 0.88]); not distinguishable from it: near."

    def test_clear(self) -> None:
        """A first that differs from all others says so."""
        assert verdict(build([_row("good", GOOD), _row("poor", POOR)], [DICE], "dice")).endswith(
            "differs from the other."
        )

    def test_undecided(self) -> None:
        """With fewer than six subjects the word is "undecided"."""
        said = verdict(build([_row("a", [0.9] * 5), _row("b", [0.1] * 5)], [DICE], "dice"))
        assert said.startswith("undecided: 5 subjects")
        assert "leads" not in said

    def test_all_broken(self) -> None:
        """Where nothing can be ranked, that is the verdict."""
        said = verdict(build([_row("a", GOOD, flags=("collapsed in 6 of 6 folds",))], [DICE], "dice"))
        assert said == "nothing is ranked: every configuration is incomplete, failed or collapsed."

    def test_one_sentence_per_profile(self, rows: list[Row]) -> None:
        """Each ranking has its own sentence, with its name."""
        table = build([*rows, _row("paper", POOR, facts={"profile": "paper"})], [DICE], "dice")
        assert [line.partition(":")[0] for line in verdict(table).splitlines()] == ["paper", "quick"]

    def test_one_sentence_per_problem(self) -> None:
        """Each names its problem once, and its rows by what else varies."""
        rows = [
            _row(f"{model}{noise}", values, axes={"model": model, "noise": noise})
            for noise in (0.1, 0.2)
            for model, values in (("a", GOOD), ("b", POOR))
        ]
        assert verdict(build(rows, [DICE], "dice", strata=("profile", "noise"))).splitlines() == [
            "noise=0.1: a leads (dice 0.81 [0.74, 0.88]) and differs from the other.",
            "noise=0.2: a leads (dice 0.81 [0.74, 0.88]) and differs from the other.",
        ]

    def test_labels_name_what_varies(self) -> None:
        """Only axes that vary are in a row's label, and the attribution."""
        rows = [
            _row(f"{m}{n}", GOOD, axes={"model": m, "noise": n, "fixed": 1}, attribution="occlusion")
            for m in "ab"
            for n in (0, 1)
        ]
        assert row_labels(build(rows, [DICE], "dice"))[0] == "model=a, noise=0, occlusion"  # fmt: skip


class TestText:
    """Numbers as text."""

    @pytest.mark.parametrize(
        ("numbers", "text"),
        [
            ((0.7412, 0.701, 0.78), "0.74 [0.70, 0.78]"),
            ((683.2, 600.1, 771.9), "683 [600, 772]"),
            ((-0.006, -0.0194, 0.0074), "-0.006 [-0.019, 0.007]"),
            ((0.5, math.nan, math.nan), "0.50"),
            ((-0.0, None, None), "0.00"),
            ((math.nan, None, None), "–"),
        ],
    )
    def test_interval(self, numbers: tuple[float, float | None, float | None], text: str) -> None:
        """As many decimals as the numbers need."""
        assert interval_text(*numbers) == text

    def test_console(self, rows: list[Row]) -> None:
        """The short table marks what cannot be told from the first."""
        header, lines = console_rows(build(rows, [DICE], "dice"))
        assert header == ["rank", "sequences", "dice", "chance", "difference"]
        assert [line[0] for line in lines] == ["1", "2 =", "3"]

    def test_console_shows_what_no_skill_would_score(self, rows: list[Row]) -> None:
        """Beside the objective; the row's own chance level before that of the metric, nothing where none is known."""
        own = dataclasses.replace(rows[0], values={**rows[0].values, "dice_chance": {"s1": {0: 0.25}}})
        header, lines = console_rows(build([own, *rows[1:]], [DICE], "dice"))
        assert sorted(line[header.index("chance")] for line in lines) == ["0.020", "0.020", "0.25"]
        unknown = dataclasses.replace(DICE, chance=math.nan)
        assert "chance" not in console_rows(build(rows, [unknown], "dice"))[0]

    def test_console_puts_the_problem_beside_the_rank(self) -> None:
        """What separates the rankings comes first, once."""
        rows = [_row(f"{n}", GOOD, axes={"model": "a", "noise": n}) for n in (0.1, 0.2)]
        header, lines = console_rows(build(rows, [DICE], "dice", strata=("profile", "noise")))
        assert header[:4] == ["rank", "noise", "model", "dice"]
        assert [line[:3] for line in lines] == [["1", "0.1", "a"], ["1", "0.2", "a"]]

    def test_console_says_why_a_row_has_no_rank(self, rows: list[Row]) -> None:
        """The status is shown where somebody is not ranked."""
        stopped = dataclasses.replace(rows[0], complete=False, flags=("incomplete: 1 of 2 cells",))
        header, lines = console_rows(build([stopped, *rows[1:]], [DICE], "dice"))
        assert header[-1] == "status"
        assert sorted(line[-1] for line in lines)[0].startswith("incomplete")


class TestCsv:
    """The file."""

    def test_byte_identical(self, rows: list[Row], tmp_path: Path) -> None:
        """Rows, subjects and seeds in another order give the same bytes."""
        turned = [
            dataclasses.replace(row, values={m: dict(reversed(list(v.items()))) for m, v in row.values.items()})
            for row in reversed(rows)
        ]
        first = write_csv(build(rows, [DICE], "dice"), tmp_path / "a" / "one.csv")
        second = write_csv(build(turned, [DICE], "dice"), tmp_path / "two.csv")
        assert first.read_bytes() == second.read_bytes()

    def test_reads_back(self, rows: list[Row], tmp_path: Path) -> None:
        """Six digits, empty for no value, commas quoted."""
        rows[1] = dataclasses.replace(rows[1], facts={"command": "harness run sequences=a,b"})
        with write_csv(build(rows, [DICE], "dice", strata=()), tmp_path / "table.csv").open(newline="") as file:
            line = next(csv.DictReader(file))
        assert (line["rank"], line["dice"], line["p_holm"]) == ("1", "0.81", "")
        assert line["command"] == "harness run sequences=a,b"
        assert line["not_distinguishable_from_best"] == "true"

    def test_whole_or_not_at_all(self, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write that breaks leaves the old file and no other."""
        path = write_csv(build(rows, [DICE], "dice"), tmp_path / "table.csv")
        before = path.read_bytes()

        def broken(handle: int) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", broken)
        with pytest.raises(OSError, match="disk full"):
            write_csv(build(rows[:1], [DICE], "dice"), path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
