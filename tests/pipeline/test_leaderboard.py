"""What may have a rank, within which problem, and what the table says, on tiny hand-made rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import Score
from harness.pipeline.leaderboard import build, build_regions, read_facts
from harness.pipeline.ranking import strata_of
from harness.pipeline.rows import MetricFacts, Row
from harness.report.wording import verdict

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


class TestRanking:
    """Which rows have a rank."""

    def test_order(self, rows: list[Row]) -> None:
        """The best mean comes first, whatever the order of the rows."""
        assert _column(rows, "sequences") == ["good", "near", "poor"]
        assert _column(rows, "rank") == [1, 2, 3]

    def test_lower_is_better(self) -> None:
        """A distance ranks the other way round."""
        rows = [
            Row(name, {"sequences": name}, values={"distance": {f"s{i}": {0: float(value + i)} for i in range(6)}})
            for name, value in (("far", 9), ("close", 1))
        ]
        assert build(rows, [DISTANCE], "distance")["sequences"].to_pylist() == ["close", "far"]

    @pytest.mark.parametrize("flag", ["collapsed in 2 of 6 folds", "failed: out of memory", "incomplete: 5 of 6 cells"])
    def test_broken_rows_never_rank(self, rows: list[Row], flag: str) -> None:
        """A flagged row keeps its value, shows its flag, and stands below the ranked ones without a rank."""
        table = build([*rows, _row("broken", [0.99] * 6, flags=(flag,))], [DICE], "dice")
        last = table.to_pylist()[-1]
        assert (last["sequences"], last["rank"], last["status"]) == ("broken", None, flag)
        assert last["dice"] == pytest.approx(0.99)

    @pytest.mark.parametrize("changes", [{"flags": ("collapsed in 1 of 6 folds",)}, {"complete": False}])
    def test_broken_rows_enter_no_comparison(self, rows: list[Row], changes: dict[str, Any]) -> None:
        """The ranked rows' comparisons are the same with and without a broken row."""
        names = ["rank", "difference", "difference_low", "p_holm"]
        alone = build(rows, [DICE], "dice").select(names).to_pylist()
        beside = build([*rows, _row("broken", [0.99] * 6, **changes)], [DICE], "dice").select(names).to_pylist()
        assert beside[:3] == alone
        assert beside[3] == dict.fromkeys(names)

    def test_incomplete_without_a_flag(self, rows: list[Row]) -> None:
        """A row that is not complete says so by itself."""
        assert _column([*rows, _row("broken", GOOD, complete=False)], "status")[-1] == "incomplete"

    def test_other_flags_are_notes(self) -> None:
        """A flag that is no failure is shown beside the rank."""
        table = build([_row("old", GOOD, flags=("made with other code",))], [DICE], "dice")
        assert (table["rank"][0].as_py(), table["flags"][0].as_py()) == (1, "made with other code")

    def test_three_subjects_never_rank(self) -> None:
        """However large the difference, three subjects are undecided."""
        table = build([_row("a", [0.9, 0.91, 0.92]), _row("b", [0.1, 0.11, 0.12])], [DICE], "dice")
        assert table["rank"].to_pylist() == [None, None]
        assert table["status"].to_pylist() == ["undecided: 3 subjects"] * 2
        assert table["p_holm"].to_pylist() == [None, None]
        assert table["not_distinguishable_from_best"].to_pylist() == [None, None]

    def test_three_subjects_have_intervals(self) -> None:
        """The interval of the difference is what three subjects give."""
        first, second = [0.61, 0.52, 0.70], [0.50, 0.49, 0.41]
        line = build([_row("a", first), _row("b", second)], [DICE], "dice").to_pylist()[1]
        reference = stats.ttest_rel(second, first).confidence_interval()
        assert (line["difference_low"], line["difference_high"]) == pytest.approx(tuple(reference))

    def test_six_undefined_subjects_do_not_count(self) -> None:
        """Six subjects, one of them without a value in any row, are five."""
        rows = [_row("a", [*GOOD[:5], math.nan]), _row("b", [*POOR[:5], math.nan])]
        assert _column(rows, "status") == ["undecided: 5 subjects"] * 2

    def test_skipping_the_hard_subject_costs_the_rank(self, rows: list[Row]) -> None:
        """A mean over fewer subjects than the others' is not ranked beside them."""
        table = build([*rows, _row("picky", [*[0.95] * 5, math.nan])], [DICE], "dice")
        last = table.to_pylist()[-1]
        assert (last["sequences"], last["rank"]) == ("picky", None)
        assert last["status"] == "no dice for sub-6, where others have one"

    def test_profiles_never_share_a_ranking(self, rows: list[Row]) -> None:
        """The paper's profile is ranked by itself."""
        paper = [_row("paper", POOR, facts={"profile": "paper"})]
        table = build([*rows, *paper], [DICE], "dice")
        assert [(line["profile"], line["rank"]) for line in table.to_pylist()] == [
            ("paper", 1), ("quick", 1), ("quick", 2), ("quick", 3),
        ]  # fmt: skip

    def test_ties_share_the_lower_rank(self) -> None:
        """Equal means are both first, and nobody is second."""
        rows = [_row("b", GOOD), _row("a", list(reversed(GOOD))), _row("c", POOR)]
        assert list(zip(_column(rows, "sequences"), _column(rows, "rank"), strict=True)) == [
            ("a", 1),
            ("b", 1),
            ("c", 3),
        ]

    def test_no_value_at_all(self, rows: list[Row]) -> None:
        """A row without the objective says so and comes last."""
        assert _column([_row("empty", []), *rows], "status")[-1] == "no dice"


def _at(noise: float | None, **rows: list[float]) -> list[Row]:
    """Rows of one problem, named by their model."""
    return [_row(f"{model} {noise}", values, axes={"model": model, "noise": noise}) for model, values in rows.items()]


def _poses(axis: str) -> bool:
    """Whether an axis poses the problem."""
    return axis in ("noise", "label")


class TestProblems:
    """Rows are ranked and compared where they solve the same problem."""

    def test_ranks_and_differences_hold_within_a_problem(self) -> None:
        """The best of the harder problem is first there, and nothing is compared with the easier one."""
        rows = [*_at(0.0, a=GOOD, b=NEAR), *_at(0.5, a=POOR, b=[value - 0.2 for value in POOR])]
        table = build(rows, [DICE], "dice", strata=strata_of(rows, _poses))
        assert [(line["noise"], line["model"], line["rank"]) for line in table.to_pylist()] == [
            (0.0, "a", 1), (0.0, "b", 2), (0.5, "a", 1), (0.5, "b", 2),
        ]  # fmt: skip
        alone = build(rows[2:], [DICE], "dice")
        names = ["difference", "difference_low", "difference_high", "p_holm", "not_distinguishable_from_best"]
        assert table.select(names).to_pylist()[2:] == alone.select(names).to_pylist()
        assert [line["not_distinguishable_from_best"] for line in alone.to_pylist()] == [True, False]

    def test_problems_come_in_the_order_of_their_numbers(self) -> None:
        """2 before 10, and rows without the axis first."""
        rows = [row for noise in (10.0, 2.0, None) for row in _at(noise, a=GOOD)]
        assert _column(rows, "noise", strata=("noise",)) == [None, 2.0, 10.0]

    def test_whole_numbers_are_the_same_problem(self) -> None:
        """0 and 0.0 are one level of noise."""
        rows = [*_at(0, a=GOOD), *_at(0.0, b=NEAR), *_at(0.5, c=POOR)]
        assert _column(rows, "rank", strata=strata_of(rows, _poses)) == [1, 2, 1]

    def test_only_axes_that_vary_and_pose_the_problem_separate(self) -> None:
        """A level of noise that all share, and the model, do not."""
        rows = [*_at(0.5, a=GOOD, b=POOR)]
        assert strata_of(rows, _poses) == ("profile", "data")
        assert strata_of([*rows, *_at(0.0, a=GOOD)], _poses) == ("profile", "data", "noise")
        assert strata_of([*rows, *_at(0.0, a=GOOD)], lambda axis: False) == ("profile", "data")

    def test_a_subject_without_a_value_in_another_problem_costs_no_rank(self) -> None:
        """Only rows of the same problem are looked at."""
        rows = [*_at(0.0, a=GOOD), *_at(0.5, a=[math.nan, *POOR, 0.4])]
        table = build(rows, [DICE], "dice", strata=strata_of(rows, _poses))
        assert table["status"].to_pylist() == ["ranked", "ranked"]


class TestColumns:
    """What the table holds."""

    def test_interval(self, rows: list[Row]) -> None:
        """Value, bounds and standard error are those of scipy over subjects."""
        line = build(rows, [DICE], "dice").to_pylist()[0]
        reference = stats.ttest_1samp(GOOD, 0).confidence_interval()
        assert (line["dice_low"], line["dice_high"]) == pytest.approx(tuple(reference))
        assert line["dice_se"] == pytest.approx(stats.sem(GOOD))

    def test_seeds_are_averaged_first(self) -> None:
        """Two seeds of six subjects are six subjects, not twelve."""
        values = {f"s{i}": {0: value - 0.05, 1: value + 0.05} for i, value in enumerate(GOOD)}
        line = build([Row("a", {}, values={"dice": values})], [DICE], "dice").to_pylist()[0]
        assert (line["subjects"], line["seeds"]) == (6, 2)
        assert line["dice_se"] == pytest.approx(stats.sem(GOOD))
        assert line["seed_sd"] == pytest.approx(math.sqrt(0.005))

    def test_comparison(self, rows: list[Row]) -> None:
        """Differences are from the best, and the group is what cannot be told from it."""
        lines = build(rows, [DICE], "dice").to_pylist()
        assert [line["difference"] for line in lines] == pytest.approx(
            [0, np.mean(NEAR) - np.mean(GOOD), np.mean(POOR) - np.mean(GOOD)]
        )
        assert [line["not_distinguishable_from_best"] for line in lines] == [True, True, False]  # fmt: skip

    def test_chance_from_the_facts(self, rows: list[Row]) -> None:
        """A metric's own chance stands in every row."""
        assert _column(rows, "dice_chance") == [0.02] * 3

    def test_chance_of_the_row(self) -> None:
        """A row that measured what no skill scores shows that instead."""
        row = _row("a", GOOD)
        measured = {f"sub-{index}": {0: 0.1} for index in range(1, 7)}
        row = dataclasses.replace(row, values={**row.values, "dice_chance": measured})
        assert _column([row], "dice_chance") == [pytest.approx(0.1)]

    def test_pooled_metric(self) -> None:
        """A pooled score goes into its columns as it is."""
        row = dataclasses.replace(_row("a", GOOD), pooled={"icc": Score(0.7, 0.2, 0.9, 6)})
        line = build([row], [DICE, ICC], "dice").to_pylist()[0]
        assert (line["icc"], line["icc_low"], line["icc_high"], line["icc_se"]) == (0.7, 0.2, 0.9, None)

    def test_missing_is_counted(self) -> None:
        """A metric that one subject lacks has a column that counts it."""
        distance = {f"sub-{i}": {0: math.nan if i == 1 else 2.0} for i in range(1, 7)}
        row = _row("a", GOOD)
        row = dataclasses.replace(row, values={**row.values, "distance": distance})
        assert build([row], [DICE, DISTANCE], "dice")["distance_missing"].to_pylist() == [1]

    def test_axes_keep_their_kind(self) -> None:
        """Numbers stay numbers, lists become JSON."""
        rows = [_row(str(n), GOOD, axes={"noise": n, "levels": [4, 8]}) for n in (0.1, 0.2)]
        table = build(rows, [DICE], "dice")
        assert table["noise"].to_pylist() == [0.1, 0.2]
        assert table["levels"].to_pylist() == ["[4, 8]", "[4, 8]"]

    def test_facts_travel(self, rows: list[Row]) -> None:
        """The table says which metric ranks it and what its metrics mean."""
        facts = read_facts(build(rows, [DICE, DISTANCE], "dice"))
        assert (facts.objective, facts.axes) == ("dice", ("sequences",))
        assert facts.metric("dice") == DICE

    def test_empty(self) -> None:
        """No rows give a table without rows."""
        table = build([], [DICE], "dice")
        assert table.num_rows == 0
        assert "nothing to rank" in verdict(table)

    def test_pooled_objective(self) -> None:
        """A pooled objective ranks, and says that nothing compares its rows."""
        rows = [
            Row(name, {"model": name}, pooled={"icc": Score(v, v - 0.1, v + 0.1, 8)})
            for name, v in (("a", 0.5), ("b", 0.7))
        ]
        table = build(rows, [ICC], "icc")
        assert table["rank"].to_pylist() == [1, 2]
        assert "no paired comparison" in verdict(table)  # fmt: skip


class TestRefusals:
    """What is no leaderboard."""

    def test_unknown_objective(self, rows: list[Row]) -> None:
        """The objective must be one of the metrics; the near one is shown."""
        with pytest.raises(UnknownName, match=r"no metric is named 'dise'. Near: dice"):
            build(rows, [DICE], "dise")

    def test_objective_without_direction(self, rows: list[Row]) -> None:
        """A bias cannot rank."""
        with pytest.raises(OutOfRange, match="higher or lower must be better for the objective, got 'dice'"):
            build(rows, [dataclasses.replace(DICE, direction="zero")], "dice")

    def test_twins(self, rows: list[Row]) -> None:
        """A configuration occurs once."""
        with pytest.raises(OutOfRange, match=r"once, got \('good', ''\) twice"):
            build([*rows, _row("good", GOOD)], [DICE], "dice")

    def test_axis_named_like_a_column(self) -> None:
        """An axis cannot take the name of another column."""
        with pytest.raises(OutOfRange, match="each column must occur once, got rank twice"):
            build([_row("a", GOOD, axes={"rank": 1})], [DICE], "dice")


def test_regions() -> None:
    """The long table has one line per region, row and metric, and no ranks."""
    table = build_regions({"insula": [_row("a", GOOD)], "thalamus": [_row("a", POOR)]}, [DICE, DISTANCE])
    lines = table.to_pylist()
    assert [(line["region"], line["metric"]) for line in lines] == [("insula", "dice"), ("thalamus", "dice")]
    assert [line["value"] for line in lines] == pytest.approx([np.mean(GOOD), np.mean(POOR)])
    assert "rank" not in table.column_names
