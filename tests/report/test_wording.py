"""Tables as text and as CSV files, on small hand-made rows."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from harness.core.types import Score
from harness.pipeline.leaderboard import build
from harness.pipeline.rows import MetricFacts, Row
from harness.report.boards import board_of_ranking
from harness.report.csv_files import write_csv
from harness.report.wording import board_notes, console_rows, interval_text, row_labels, verdict

DICE = MetricFacts("dice", "higher", (0, 1), chance=0.02, ceiling=1.0)
DISTANCE = MetricFacts("distance", "lower", (0, math.inf), unit="mm")
ICC = MetricFacts("icc", "higher", (-1, 1), level="pooled")

# Six subjects; "near" does not differ significantly from "good", and "poor" does.
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
    """Three rows that can be ranked."""
    return [_row("poor", POOR), _row("good", GOOD), _row("near", NEAR)]


class TestVerdict:
    """The verdict on a leaderboard."""

    def test_group(self, rows: list[Row]) -> None:
        """The verdict names the best row with its interval and the rows that do not differ from it."""
        text = verdict(build(rows, [DICE], "dice"))
        lead, same = text.split("; ")
        assert lead == "good leads (dice 0.81 [0.73, 0.87])"
        assert same == "not distinguishable from it, given the trained models: near."

    def test_clear(self) -> None:
        """The verdict states that the best row differs from all others."""
        assert verdict(build([_row("good", GOOD), _row("poor", POOR)], [DICE], "dice")).endswith(
            "differs from the other, given the trained models."
        )

    @pytest.mark.parametrize("count", [4, 5])
    def test_a_long_list_of_all_others_is_their_number(self, count: int) -> None:
        """Few rows are named; that more of them all do not differ is said in one word."""
        near = [_row(f"near{one}", NEAR) for one in range(count)]
        named = ", ".join(f"near{one}" for one in range(count)) if count <= 4 else f"all {count} others"
        text = verdict(build([_row("good", GOOD), *near], [DICE], "dice"))
        assert text.endswith(f"not distinguishable from it, given the trained models: {named}.")

    @pytest.mark.parametrize(
        ("chance", "direction", "told"),
        [(0.9, "higher", True), (0.5, "higher", False), (0.1, "lower", True), (0.9, "lower", False)],
    )
    def test_nothing_better_than_chance(self, chance: float, direction: Any, told: bool) -> None:
        """A model that predicts worse than the mean of the training set does not just lead."""
        metric = dataclasses.replace(DICE, chance=chance, direction=direction)
        text = verdict(build([_row("good", GOOD), _row("poor", POOR)], [metric], "dice"))
        assert text.startswith(f"nothing is better than chance (dice {chance:.2g}") == told
        assert "lead" in text

    def test_undecided(self) -> None:
        """With fewer than six subjects, the verdict is "undecided"."""
        text = verdict(build([_row("a", [0.9] * 5), _row("b", [0.1] * 5)], [DICE], "dice"))
        assert text.startswith("undecided: 5 subjects")
        assert "leads" not in text

    def test_boolean_axis_keeps_its_name(self) -> None:
        """A single axis of true and false is named in labels, where one of names is not."""
        for values, expected in (((False, True), "shuffled=False leads"), (("a", "b"), "a leads")):
            axes = [{"shuffled": value} for value in values]
            rows = [_row("one", GOOD, axes=axes[0]), _row("two", GOOD, axes=axes[1], flags=("control: labels",))]
            assert verdict(build(rows, [DICE], "dice")).startswith(expected)

    def test_all_broken(self) -> None:
        """If no row can be ranked, the verdict says so."""
        text = verdict(build([_row("a", GOOD, flags=("collapsed in 6 of 6 folds",))], [DICE], "dice"))
        assert (
            text == "nothing is ranked: every configuration is incomplete, failed, collapsed, an oracle or a control."
        )

    def test_one_sentence_per_profile(self, rows: list[Row]) -> None:
        """Each profile has its own sentence."""
        table = build([*rows, _row("paper", POOR, facts={"profile": "paper"})], [DICE], "dice")
        assert [line.partition(":")[0] for line in verdict(table).splitlines()] == ["paper", "quick"]

    def test_one_sentence_per_problem(self) -> None:
        """Each problem has its own sentence, which names the problem and the remaining axes."""
        rows = [
            _row(f"{model}{noise}", values, axes={"model": model, "noise": noise})
            for noise in (0.1, 0.2)
            for model, values in (("a", GOOD), ("b", POOR))
        ]
        assert verdict(build(rows, [DICE], "dice", strata=("profile", "noise"))).splitlines() == [
            "noise=0.1: a leads (dice 0.81 [0.73, 0.87]) and differs from the other, given the trained models.",
            "noise=0.2: a leads (dice 0.81 [0.73, 0.87]) and differs from the other, given the trained models.",
        ]

    def test_labels_name_what_varies(self) -> None:
        """Labels of rows contain the axes that vary and the attribution."""
        rows = [
            _row(f"{m}{n}", GOOD, axes={"model": m, "noise": n, "fixed": 1}, attribution="occlusion")
            for m in "ab"
            for n in (0, 1)
        ]
        assert row_labels(build(rows, [DICE], "dice"))[0] == "model=a, noise=0, occlusion"  # fmt: skip

    @pytest.mark.parametrize(
        ("values", "label"),
        [(("T2w", "FLAIR"), "T2w"), ((0, 1), "axis=0"), ((0.1, 1e-5), "axis=0.1"), (("0", "1"), "axis=0"),
         ((True, False), "axis=True"), (("2d", "3d"), "2d"), (("", "n4"), "axis=")],
    )  # fmt: skip
    def test_a_number_is_shown_with_its_axis(self, values: tuple[object, object], label: str) -> None:
        """A single axis has its value alone as label, unless the value says nothing without its name."""
        rows = [_row(str(value), GOOD, axes={"axis": value}) for value in values]
        found = {one.removesuffix(", occlusion") for one in row_labels(build(rows, [DICE], "dice"))}
        assert label in found


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
            ((3.2e-20, None, None), "3.2e-20"),
            ((2e-8, 0.0, 4e-8), "2.0e-08 [0.0e+00, 4.0e-08]"),
            ((math.nan, None, None), "–"),
        ],
    )
    def test_interval(self, numbers: tuple[float, float | None, float | None], text: str) -> None:
        """The number of decimals depends on the width of the interval."""
        assert interval_text(*numbers) == text

    def test_console(self, rows: list[Row]) -> None:
        """Rows that do not differ from the best are marked with "="."""
        header, lines = console_rows(build(rows, [DICE], "dice"))
        assert header == ["rank", "sequences", "dice", "chance", "difference"]
        assert [line[0] for line in lines] == ["1", "2 =", "3"]

    def test_console_shows_the_chance_level(self, rows: list[Row]) -> None:
        """The chance level of the row, or else of the metric, is shown beside the objective."""
        own = dataclasses.replace(rows[0], values={**rows[0].values, "dice_chance": {"s1": {0: 0.25}}})
        header, lines = console_rows(build([own, *rows[1:]], [DICE], "dice"))
        assert sorted(line[header.index("chance")] for line in lines) == ["0.020", "0.020", "0.25"]
        unknown = dataclasses.replace(DICE, chance=math.nan)
        assert "chance" not in console_rows(build(rows, [unknown], "dice"))[0]

    def test_console_puts_the_problem_beside_the_rank(self) -> None:
        """Axes that define the problem come first and are not repeated."""
        rows = [_row(f"{n}", GOOD, axes={"model": "a", "noise": n}) for n in (0.1, 0.2)]
        header, lines = console_rows(build(rows, [DICE], "dice", strata=("profile", "noise")))
        assert header[:4] == ["rank", "noise", "model", "dice"]
        assert [line[:3] for line in lines] == [["1", "0.1", "a"], ["1", "0.2", "a"]]

    def test_console_shows_the_status_of_unranked_rows(self, rows: list[Row]) -> None:
        """If a row is not ranked, the table has a column with the status."""
        stopped = dataclasses.replace(rows[0], complete=False, flags=("incomplete: 1 of 2 cells",))
        header, lines = console_rows(build([stopped, *rows[1:]], [DICE], "dice"))
        assert header[-1] == "status"
        assert sorted(line[-1] for line in lines)[0].startswith("incomplete")


class TestCsv:
    """CSV files."""

    def test_byte_identical(self, rows: list[Row], tmp_path: Path) -> None:
        """The order of rows, subjects and seeds does not change the file."""
        turned = [
            dataclasses.replace(row, values={m: dict(reversed(list(v.items()))) for m, v in row.values.items()})
            for row in reversed(rows)
        ]
        first = write_csv(build(rows, [DICE], "dice"), tmp_path / "a" / "one.csv")
        second = write_csv(build(turned, [DICE], "dice"), tmp_path / "two.csv")
        assert first.read_bytes() == second.read_bytes()

    def test_reads_back(self, rows: list[Row], tmp_path: Path) -> None:
        """Numbers have six digits, missing values are empty, and commas are quoted."""
        rows[1] = dataclasses.replace(rows[1], facts={"command": "harness run sequences=a,b"})
        with write_csv(build(rows, [DICE], "dice", strata=()), tmp_path / "table.csv").open(newline="") as file:
            line = next(csv.DictReader(file))
        assert (line["rank"], line["dice"], line["p_adjusted"]) == ("1", "0.81", "")
        assert line["command"] == "harness run sequences=a,b"
        assert line["not_distinguishable_from_best"] == "true"

    def test_failed_write_keeps_the_old_file(
        self, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If writing fails, the old file is kept and no other file is left."""
        path = write_csv(build(rows, [DICE], "dice"), tmp_path / "table.csv")
        before = path.read_bytes()

        def broken(handle: int) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", broken)
        with pytest.raises(OSError, match="disk full"):
            write_csv(build(rows[:1], [DICE], "dice"), path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("level", "note"),
    [
        ("subject", "Mean over subjects with 95 % t interval, given the trained models; ranked"),
        (
            "pooled",
            "Scores of maps summed over subjects, with 95 % jackknife intervals, given the trained models; ranked",
        ),
        (
            "mixed",
            "Mean over subjects with 95 % t interval, or scores of maps summed over subjects, with 95 % jackknife",
        ),
    ],
)
def test_note_states_how_explanations_are_scored(level: str, note: str) -> None:
    """The note of a table of explanations states whether maps are scored per subject, summed, or both."""
    facts = dataclasses.replace(DICE, level=level)
    assert board_of_ranking(build([_row("a", GOOD, attribution="saliency")], [facts], "dice")).note.startswith(note)


def test_note_says_why_an_interval_is_missing() -> None:
    """The reason is in the note of the table, with the number of values."""
    pooled = {"dice": Score(1.0, math.nan, math.nan, 8, reason="a pseudo-value is not defined")}
    board = board_of_ranking(build([Row("a", {}, pooled=pooled), _row("b", GOOD)], [DICE], "dice"))
    assert "1 of 2 values of dice has no interval: a pseudo-value is not defined." in board.note
    assert "no interval" not in board_of_ranking(build([_row("b", GOOD)], [DICE], "dice")).note


def test_notes_below_a_table_on_the_console() -> None:
    """The console says what intervals cover, and shows the flags of ranked rows."""
    table = build([_row("a", GOOD, flags=("low spread in 5 of 5 cells",)), _row("b", POOR)], [DICE], "dice")
    assert board_notes(table) == [
        "brackets: 95 % intervals over subjects, given the trained models",
        "the first row was selected on these subjects: expect a lower value on others",
        "a: low spread in 5 of 5 cells",
    ]


def test_many_flags_are_counted() -> None:
    """Below a table, three rows with flags are named, and further ones are counted."""
    table = build([_row(name, GOOD, flags=("slow",)) for name in "abcde"], [DICE], "dice")
    assert board_notes(table)[1:] == [
        "a: slow",
        "b: slow",
        "c: slow",
        "2 more rows have flags, which are in the CSV file",
    ]


def test_status_shows_flags_once() -> None:
    """A failed row shows its message once, and a ranked row its place and its flags."""
    failed = "failed: 1 of 6 cells, ValueError: a; b"
    rows = [_row("a", GOOD, flags=("slow",)), _row("b", POOR, flags=(failed,), complete=False)]
    cells = [[cell.text for cell in line.cells] for line in board_of_ranking(build(rows, [DICE], "dice")).lines]
    assert cells[0][2] == "first; slow"
    assert cells[1][2] == failed


def test_note_states_what_intervals_cover() -> None:
    """The note says whether intervals include the variation of trainings, for all rows or for some."""
    pooled = Row("a", {"model": "a"}, pooled={"dice": Score(0.8, 0.7, 0.9, 8)}, by_fold=frozenset({"dice"}))
    facts = dataclasses.replace(DICE, level="pooled")
    note = board_of_ranking(build([pooled], [facts], "dice")).note
    assert note.startswith("Pooled over subjects, with 95 % jackknife intervals over subjects and trainings; ranked")
    other = dataclasses.replace(pooled, configuration="b", by_fold=frozenset())
    note = board_of_ranking(build([pooled, other], [facts], "dice")).note
    assert "over subjects and trainings where interval_over says so, otherwise subjects, given the trained" in note
