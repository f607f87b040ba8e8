"""Ranking, problems and columns of the leaderboard, on small hand-made rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import Score
from harness.pipeline.leaderboard import GIVEN_MODELS, build, build_regions, read_facts
from harness.pipeline.ranking import strata_of
from harness.pipeline.rows import MetricFacts, Row
from harness.report.wording import verdict
from harness.stats.intervals import mean_interval

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


class TestRanking:
    """Ranks of rows."""

    def test_order(self, rows: list[Row]) -> None:
        """Rows are sorted by mean, best first."""
        assert _column(rows, "sequences") == ["good", "near", "poor"]
        assert _column(rows, "rank") == [1, 2, 3]

    def test_lower_is_better(self) -> None:
        """For a distance, the lowest value ranks first."""
        rows = [
            Row(name, {"sequences": name}, values={"distance": {f"s{i}": {0: float(value + i)} for i in range(6)}})
            for name, value in (("far", 9), ("close", 1))
        ]
        assert build(rows, [DISTANCE], "distance")["sequences"].to_pylist() == ["close", "far"]

    @pytest.mark.parametrize("flag", ["collapsed in 2 of 6 folds", "failed: out of memory", "incomplete: 5 of 6 cells"])
    def test_broken_rows_are_not_ranked(self, rows: list[Row], flag: str) -> None:
        """A row with a failure flag keeps its value, shows the flag and has no rank."""
        table = build([*rows, _row("broken", [0.99] * 6, flags=(flag,))], [DICE], "dice")
        last = table.to_pylist()[-1]
        assert (last["sequences"], last["rank"], last["status"]) == ("broken", None, flag)
        assert last["dice"] == pytest.approx(0.99)

    @pytest.mark.parametrize("changes", [{"flags": ("collapsed in 1 of 6 folds",)}, {"complete": False}])
    def test_broken_rows_are_not_compared(self, rows: list[Row], changes: dict[str, Any]) -> None:
        """A row without a rank does not change the comparisons of the others."""
        names = ["rank", "difference", "difference_low", "p_adjusted"]
        alone = build(rows, [DICE], "dice").select(names).to_pylist()
        beside = build([*rows, _row("broken", [0.99] * 6, **changes)], [DICE], "dice").select(names).to_pylist()
        assert beside[:3] == alone
        assert beside[3] == dict.fromkeys(names)

    def test_incomplete_without_a_flag(self, rows: list[Row]) -> None:
        """An incomplete row without flags has the status "incomplete"."""
        assert _column([*rows, _row("broken", GOOD, complete=False)], "status")[-1] == "incomplete"

    def test_other_flags_do_not_prevent_a_rank(self) -> None:
        """A flag that is not a failure is shown beside the rank."""
        table = build([_row("old", GOOD, flags=("made with other code",))], [DICE], "dice")
        assert (table["rank"][0].as_py(), table["flags"][0].as_py()) == (1, "made with other code")

    def test_three_subjects_are_not_ranked(self) -> None:
        """Rows of three subjects are not ranked, however large the difference."""
        table = build([_row("a", [0.9, 0.91, 0.92]), _row("b", [0.1, 0.11, 0.12])], [DICE], "dice")
        assert table["rank"].to_pylist() == [None, None]
        assert table["status"].to_pylist() == ["undecided: 3 subjects"] * 2
        assert table["p_adjusted"].to_pylist() == [None, None]
        assert table["not_distinguishable_from_best"].to_pylist() == [None, None]

    def test_intervals_of_differences_need_six_subjects(self) -> None:
        """The interval of a difference is scipy's; five subjects have neither a test nor an interval."""
        first, second = [0.61, 0.52, 0.70, 0.66, 0.58, 0.71], [0.50, 0.49, 0.41, 0.63, 0.60, 0.44]
        few = build([_row("a", first[:5]), _row("b", second[:5])], [DICE], "dice").to_pylist()[1]
        assert few["difference"] < 0 and few["difference_low"] is None and few["difference_high"] is None
        line = build([_row("a", first), _row("b", second)], [DICE], "dice").to_pylist()[1]
        reference = stats.ttest_rel(second, first).confidence_interval()
        assert (line["difference_low"], line["difference_high"]) == pytest.approx(tuple(reference))

    def test_pseudo_values_of_five_folds_are_compared(self) -> None:
        """Pooled values with pseudo-values of five folds have a test with four degrees of freedom."""
        pooled = {"dice": Score(0.9, 0.8, 0.95, 40)}
        first, second = [0.90, 0.92, 0.88, 0.91, 0.89], [0.50, 0.45, 0.52, 0.49, 0.54]
        rows = [_row("a", first, pooled=pooled, by_fold=frozenset({"dice"}))]
        rows += [_row("b", second, pooled={"dice": Score(0.5, 0.4, 0.6, 40)}, by_fold=frozenset({"dice"}))]
        lines = build(rows, [DICE], "dice").to_pylist()
        assert lines[1]["p_adjusted"] == pytest.approx(stats.ttest_rel(second, first).pvalue)
        assert [line["interval_over"] for line in lines] == ["subjects and trainings"] * 2
        assert [(line["median"], line["subject_sd"]) for line in lines] == [(None, None)] * 2
        by_subject = [dataclasses.replace(row, by_fold=frozenset()) for row in rows]
        assert build(by_subject, [DICE], "dice").to_pylist()[1]["p_adjusted"] is None

    def test_pseudo_values_of_folds_and_subjects_are_not_compared(self) -> None:
        """Rows of different splits are ranked by their pooled values, without a test."""
        rows = [
            _row("a", GOOD, pooled={"dice": Score(0.9, 0.8, 0.95, 40)}, by_fold=frozenset({"dice"})),
            _row("b", POOR, pooled={"dice": Score(0.5, 0.4, 0.6, 40)}),
        ]
        lines = build(rows, [DICE], "dice").to_pylist()
        assert [line["rank"] for line in lines] == [1, 2]
        assert lines[1]["p_adjusted"] is None

    def test_subjects_without_any_value_do_not_count(self) -> None:
        """A subject without a value in any row does not count."""
        rows = [_row("a", [*GOOD[:5], math.nan]), _row("b", [*POOR[:5], math.nan])]
        assert _column(rows, "status") == ["undecided: 5 subjects"] * 2

    def test_row_without_a_subject_is_not_ranked(self, rows: list[Row]) -> None:
        """A row that lacks the value of a subject is not ranked."""
        table = build([*rows, _row("picky", [*[0.95] * 5, math.nan])], [DICE], "dice")
        last = table.to_pylist()[-1]
        assert (last["sequences"], last["rank"]) == ("picky", None)
        assert last["status"] == "no dice for sub-6, where others have one"

    def test_rows_of_other_subjects_are_not_ranked(self) -> None:
        """Rows over different subjects are not ranked, also if their own subjects all have values."""
        first, second = ({f"s{number}": {0: 0.5 + number / 100} for number in range(*ends)} for ends in ((8,), (8, 20)))
        rows = [Row(name, {}, values={"dice": values}) for name, values in (("first", first), ("second", second))]
        lines = {line["configuration"]: line for line in build(rows, [DICE], "dice").to_pylist()}
        assert [(line["rank"], line["difference"]) for line in lines.values()] == [(None, None)] * 2
        assert lines["first"]["status"] == "no dice for s10, s11, s12, s13, s14, s15 and 6 more, where others have one"

    def test_row_over_fewer_subjects_is_not_ranked(self, rows: list[Row]) -> None:
        """A row without the subject at all is not ranked, as if its value were undefined, and the others are."""
        table = build([*rows, _row("fewer", [0.99] * 5)], [DICE], "dice")
        assert table["rank"].to_pylist() == [1, 2, 3, None]
        assert table["status"].to_pylist()[-1] == "no dice for sub-6, where others have one"

    def test_pooled_value_of_fewer_subjects_is_not_ranked(self) -> None:
        """A pooled value that lacks subjects which others have is not ranked."""
        rows = [
            Row(name, {}, pooled={"icc": Score(0.7, 0.6, 0.8, n, missing=8 - n)}) for name, n in (("a", 8), ("b", 7))
        ]
        lines = build(rows, [ICC], "icc").to_pylist()
        assert [(line["configuration"], line["rank"], line["status"]) for line in lines] == [
            ("a", 1, "ranked"), ("b", None, "icc of 7 subjects, where others have 8"),
        ]  # fmt: skip

    def test_profiles_are_ranked_separately(self, rows: list[Row]) -> None:
        """Rows of different profiles are ranked separately."""
        paper = [_row("paper", POOR, facts={"profile": "paper"})]
        table = build([*rows, *paper], [DICE], "dice")
        assert [(line["profile"], line["rank"]) for line in table.to_pylist()] == [
            ("paper", 1), ("quick", 1), ("quick", 2), ("quick", 3),
        ]  # fmt: skip

    def test_ties_share_a_rank(self) -> None:
        """Rows with equal means share a rank, and the next rank is skipped."""
        rows = [_row("b", GOOD), _row("a", list(reversed(GOOD))), _row("c", POOR)]
        assert list(zip(_column(rows, "sequences"), _column(rows, "rank"), strict=True)) == [
            ("a", 1),
            ("b", 1),
            ("c", 3),
        ]

    def test_no_value_at_all(self, rows: list[Row]) -> None:
        """A row without values of the objective comes last."""
        assert _column([_row("empty", []), *rows], "status")[-1] == "no dice"


def _at(noise: float | None, **rows: list[float]) -> list[Row]:
    """Rows of one problem, labelled by model."""
    return [_row(f"{model} {noise}", values, axes={"model": model, "noise": noise}) for model, values in rows.items()]


def _defines_problem(axis: str) -> bool:
    """Whether an axis defines the problem."""
    return axis in ("noise", "label")


class TestProblems:
    """Rows are ranked and compared within a problem."""

    def test_ranks_and_differences_hold_within_a_problem(self) -> None:
        """Ranks, differences and comparisons are computed within each problem."""
        rows = [*_at(0.0, a=GOOD, b=NEAR), *_at(0.5, a=POOR, b=[value - 0.2 for value in POOR])]
        table = build(rows, [DICE], "dice", strata=strata_of(rows, _defines_problem))
        assert [(line["noise"], line["model"], line["rank"]) for line in table.to_pylist()] == [
            (0.0, "a", 1), (0.0, "b", 2), (0.5, "a", 1), (0.5, "b", 2),
        ]  # fmt: skip
        alone = build(rows[2:], [DICE], "dice")
        names = ["difference", "difference_low", "difference_high", "p_adjusted", "not_distinguishable_from_best"]
        assert table.select(names).to_pylist()[2:] == alone.select(names).to_pylist()
        assert [line["not_distinguishable_from_best"] for line in alone.to_pylist()] == [True, False]

    def test_problems_are_sorted_by_number(self) -> None:
        """Problems are sorted by number, and rows without the axis come first."""
        rows = [row for noise in (10.0, 2.0, None) for row in _at(noise, a=GOOD)]
        assert _column(rows, "noise", strata=("noise",)) == [None, 2.0, 10.0]

    def test_integer_and_float_noise_are_the_same_problem(self) -> None:
        """Noise levels 0 and 0.0 are the same problem."""
        rows = [*_at(0, a=GOOD), *_at(0.0, b=NEAR), *_at(0.5, c=POOR)]
        assert _column(rows, "rank", strata=strata_of(rows, _defines_problem)) == [1, 2, 1]

    def test_only_varying_problem_axes_separate(self) -> None:
        """Only axes that define the problem and vary separate the rankings."""
        rows = [*_at(0.5, a=GOOD, b=POOR)]
        assert strata_of(rows, _defines_problem) == ("profile", "data")
        assert strata_of([*rows, *_at(0.0, a=GOOD)], _defines_problem) == ("profile", "data", "noise")
        assert strata_of([*rows, *_at(0.0, a=GOOD)], lambda axis: False) == ("profile", "data")

    def test_missing_subject_of_another_problem_does_not_matter(self) -> None:
        """A missing subject of another problem does not affect the rank."""
        rows = [*_at(0.0, a=GOOD), *_at(0.5, a=[math.nan, *POOR, 0.4])]
        table = build(rows, [DICE], "dice", strata=strata_of(rows, _defines_problem))
        assert table["status"].to_pylist() == ["ranked", "ranked"]


def _explained(attribution: str, values: list[float], model: str = "a", **explains: str) -> Row:
    """A row of an explanation, by default of all targets and all tested samples."""
    what = {"explained_scalar": "all targets", "explained_samples": "tested", **explains}
    return _row(model, values, axes={"model": model}, attribution=attribution, explains=what)


class TestExplanations:
    """Explanations are ranked among those of the same scalar and samples."""

    def _lines(self, rows: list[Row]) -> list[dict[str, Any]]:
        table = build(rows, [DICE], "dice", strata=strata_of(rows, _defines_problem))
        return list(table.to_pylist())

    def test_scalars_are_ranked_separately(self) -> None:
        """The rank and differences of an explanation do not depend on explanations of another scalar."""
        alone = [_explained("saliency", GOOD), _explained("random", POOR)]
        gate = _explained("gate", NEAR, explained_scalar="gate")
        names = ("attribution", "rank", "difference", "p_adjusted", "not_distinguishable_from_best")
        expected = [{name: line[name] for name in names} for line in self._lines(alone)]
        lines = self._lines([*alone, gate])
        assert [{name: line[name] for name in names} for line in lines[:2]] == expected
        assert (lines[2]["explained_scalar"], lines[2]["rank"], lines[2]["difference"]) == ("gate", 1, 0)

    def test_sample_rules_are_ranked_separately(self) -> None:
        """Explanations of chosen samples are ranked among themselves."""
        rule = {"explained_samples": "correct by smile", "samples_chosen_by": "model=a"}
        rows = [_explained("few", POOR, **rule), _explained("all", GOOD), _explained("fewer", NEAR, **rule)]
        lines = self._lines(rows)
        assert [(line["explained_samples"], line["attribution"], line["rank"]) for line in lines] == [
            ("correct by smile", "fewer", 1), ("correct by smile", "few", 2), ("tested", "all", 1),
        ]  # fmt: skip
        assert "samples_chosen_by" not in lines[0]  # there is only one configuration

    def test_summed_maps_of_the_trained_models_are_not_compared(self) -> None:
        """Intervals that are given the trained models give a rank without a comparison."""
        pooled = [{"dice": Score(value, value - 0.1, value + 0.1, 8)} for value in (0.9, 0.5)]
        first, second = (
            dataclasses.replace(_explained(name, values), pooled=one)
            for name, values, one in zip(("weights", "saliency"), (GOOD, POOR), pooled, strict=True)
        )
        lines = self._lines([first, second])
        assert [(line["rank"], line["interval_over"]) for line in lines] == [(1, GIVEN_MODELS), (2, GIVEN_MODELS)]
        assert [line["difference"] for line in lines] == [None, None]
        assert [line["not_distinguishable_from_best"] for line in lines] == [None, None]
        folds = [dataclasses.replace(one, by_fold=frozenset({"dice"})) for one in (first, second)]
        assert self._lines(folds)[1]["p_adjusted"] is not None

    def test_samples_chosen_by_different_networks_are_not_compared(self) -> None:
        """Each network chooses its own samples, so that configurations are compared for tested samples only."""
        rule = {"explained_samples": "correct by smile"}
        rows = [_explained("all", GOOD, "a"), _explained("all", NEAR, "b")]
        rows += [_explained("few", POOR, model, samples_chosen_by=f"model={model}", **rule) for model in ("a", "b")]
        lines = self._lines(rows)
        assert {(line["attribution"], line["model"]): line["rank"] for line in lines} == {
            ("all", "a"): 1, ("all", "b"): 2, ("few", "a"): 1, ("few", "b"): 1,
        }  # fmt: skip

    def test_no_column_if_all_explain_the_same(self) -> None:
        """If all explanations have the same scalar and samples, the table has no columns for them."""
        (line, _) = self._lines([_explained("saliency", GOOD), _explained("random", POOR)])
        assert not {"explained_scalar", "explained_samples", "samples_chosen_by"} & set(line)


class TestColumns:
    """Columns of the table."""

    def test_interval(self, rows: list[Row]) -> None:
        """Interval and standard error agree with scipy over subjects."""
        line = build(rows, [DICE], "dice").to_pylist()[0]
        plain = MetricFacts("dice", range=(-math.inf, math.inf))
        reference = stats.ttest_1samp(GOOD, 0).confidence_interval()
        unbounded = build(rows, [plain], "dice").to_pylist()[0]
        assert (unbounded["dice_low"], unbounded["dice_high"]) == pytest.approx(tuple(reference))
        assert line["dice_se"] == pytest.approx(stats.sem(GOOD))
        inside = mean_interval(GOOD, range=(0, 1))
        assert (line["dice_low"], line["dice_high"]) == pytest.approx((inside.low, inside.high))

    def test_median_and_worst(self, rows: list[Row]) -> None:
        """The median and the worst subject stand beside the mean; for a distance, the largest is the worst."""
        line = build(rows, [DICE], "dice").to_pylist()[0]
        assert (line["median"], line["worst"]) == pytest.approx((np.median(GOOD), min(GOOD)))
        far = Row("far", {}, values={"distance": {f"s{i}": {0: float(i)} for i in range(7)}})
        line = build([far], [DISTANCE], "distance").to_pylist()[0]
        assert (line["median"], line["worst"]) == (3.0, 6.0)

    @pytest.mark.parametrize(("metric", "sign"), [(DICE, 1), (DISTANCE, -1)])
    def test_gain_over_a_baseline(self, metric: MetricFacts, sign: int) -> None:
        """A gain is positive if a row is better than the baseline, also for a distance. Intervals are unadjusted."""
        rows = [
            dataclasses.replace(Row(name, {}), baseline=baseline, values=_row(name, of).values)
            for name, of, baseline in (("good", GOOD, ""), ("poor", POOR, "volume"), ("near", NEAR, ""))
        ]
        rows = [dataclasses.replace(row, values={metric.name: row.values["dice"]}) for row in rows]
        lines = {line["configuration"]: line for line in build(rows, [metric], metric.name).to_pylist()}
        for name, of in (("good", GOOD), ("near", NEAR)):
            line, found = lines[name], stats.ttest_rel(of, POOR)
            low, high = found.confidence_interval()
            ends = (low, high) if sign == 1 else (-high, -low)
            assert (line["gain"], line["gain_low"], line["gain_high"]) == pytest.approx(
                (sign * (np.mean(of) - np.mean(POOR)), *ends)
            )
            assert line["gain_over"] == "volume"
        assert lines["poor"]["gain"] is None and lines["poor"]["gain_over"] is None
        assert "gain" not in build([_row("a", GOOD), _row("b", POOR)], [DICE], "dice").column_names

    def test_few_subjects_that_decide_are_flagged(self) -> None:
        """If one of seven subjects decides the mean, the row says so and is ranked."""
        line = build([_row("a", [0.80, 0.81, 0.79, 0.82, 0.80, 0.78, 0.0])], [DICE], "dice").to_pylist()[0]
        assert line["flags"] == "1 of 7 subjects decides the mean of dice, which is 0.8 without it"
        assert line["rank"] == 1

    def test_reason_for_no_interval(self) -> None:
        """A pooled value without an interval has a column with the reason."""
        pooled = {"dice": Score(1.0, math.nan, math.nan, 8, reason="undefined")}
        line = build([Row("a", {}, pooled=pooled), _row("b", GOOD)], [DICE], "dice").to_pylist()
        assert [one["dice_no_interval"] for one in line] == ["undefined", ""]

    def test_seeds_are_averaged_first(self) -> None:
        """Seeds are averaged within subjects before the standard error is computed."""
        values = {f"s{i}": {0: value - 0.05, 1: value + 0.05} for i, value in enumerate(GOOD)}
        line = build([Row("a", {}, values={"dice": values})], [DICE], "dice").to_pylist()[0]
        assert (line["subjects"], line["seeds"]) == (6, 2)
        assert line["dice_se"] == pytest.approx(stats.sem(GOOD))
        assert line["seed_sd"] == pytest.approx(math.sqrt(0.005))

    def test_comparison(self, rows: list[Row]) -> None:
        """Differences are relative to the best row, with a flag for rows that do not differ significantly."""
        lines = build(rows, [DICE], "dice").to_pylist()
        assert [line["difference"] for line in lines] == pytest.approx(
            [0, np.mean(NEAR) - np.mean(GOOD), np.mean(POOR) - np.mean(GOOD)]
        )
        assert [line["not_distinguishable_from_best"] for line in lines] == [True, True, False]  # fmt: skip

    def test_chance_from_the_facts(self, rows: list[Row]) -> None:
        """The chance level of a metric is a column of every row."""
        assert _column(rows, "dice_chance") == [0.02] * 3

    def test_chance_of_the_row(self) -> None:
        """A chance level computed for the row replaces that of the metric."""
        row = _row("a", GOOD)
        measured = {f"sub-{index}": {0: 0.1} for index in range(1, 7)}
        row = dataclasses.replace(row, values={**row.values, "dice_chance": measured})
        assert _column([row], "dice_chance") == [pytest.approx(0.1)]

    def test_pooled_metric(self) -> None:
        """Pooled values and their intervals are columns."""
        row = dataclasses.replace(_row("a", GOOD), pooled={"icc": Score(0.7, 0.2, 0.9, 6)})
        line = build([row], [DICE, ICC], "dice").to_pylist()[0]
        assert (line["icc"], line["icc_low"], line["icc_high"], line["icc_se"]) == (0.7, 0.2, 0.9, None)

    def test_missing_is_counted(self) -> None:
        """A column counts the subjects without a value of a metric."""
        distance = {f"sub-{i}": {0: math.nan if i == 1 else 2.0} for i in range(1, 7)}
        row = _row("a", GOOD)
        row = dataclasses.replace(row, values={**row.values, "distance": distance})
        assert build([row], [DICE, DISTANCE], "dice")["distance_missing"].to_pylist() == [1]

    def test_axes_keep_their_kind(self) -> None:
        """Numeric axes stay numeric, and lists become JSON."""
        rows = [_row(str(n), GOOD, axes={"noise": n, "levels": [4, 8]}) for n in (0.1, 0.2)]
        table = build(rows, [DICE], "dice")
        assert table["noise"].to_pylist() == [0.1, 0.2]
        assert table["levels"].to_pylist() == ["[4, 8]", "[4, 8]"]

    def test_facts_are_stored_in_the_table(self, rows: list[Row]) -> None:
        """The objective, the axes and the facts of metrics are stored in the table."""
        facts = read_facts(build(rows, [DICE, DISTANCE], "dice"))
        assert (facts.objective, facts.axes) == ("dice", ("sequences",))
        assert facts.metric("dice") == DICE

    def test_empty(self) -> None:
        """Without rows, the table is empty."""
        table = build([], [DICE], "dice")
        assert table.num_rows == 0
        assert "nothing to rank" in verdict(table)

    def test_pooled_objective(self) -> None:
        """A pooled objective ranks rows without paired comparisons."""
        rows = [
            Row(name, {"model": name}, pooled={"icc": Score(v, v - 0.1, v + 0.1, 8)})
            for name, v in (("a", 0.5), ("b", 0.7))
        ]
        table = build(rows, [ICC], "icc")
        assert table["rank"].to_pylist() == [1, 2]
        assert "no paired comparison" in verdict(table)  # fmt: skip


class TestRefusals:
    """Invalid input of the leaderboard."""

    def test_unknown_objective(self, rows: list[Row]) -> None:
        """An unknown objective is refused with suggestions."""
        with pytest.raises(UnknownName, match=r"no metric is named 'dise'. Near: dice"):
            build(rows, [DICE], "dise")

    def test_objective_without_direction(self, rows: list[Row]) -> None:
        """An objective without a better direction is refused."""
        with pytest.raises(OutOfRange, match="higher or lower must be better for the objective, got 'dice'"):
            build(rows, [dataclasses.replace(DICE, direction="zero")], "dice")

    def test_duplicate_configuration(self, rows: list[Row]) -> None:
        """A configuration that occurs twice is refused."""
        with pytest.raises(OutOfRange, match=r"once, got \('good', ''\) twice"):
            build([*rows, _row("good", GOOD)], [DICE], "dice")

    def test_axis_named_like_a_column(self) -> None:
        """An axis with the name of another column is refused."""
        with pytest.raises(OutOfRange, match="each column must occur once, got rank twice"):
            build([_row("a", GOOD, axes={"rank": 1})], [DICE], "dice")


def test_regions() -> None:
    """The table of regions has one line per region, row and metric, and no ranks."""
    table = build_regions({"insula": [_row("a", GOOD)], "thalamus": [_row("a", POOR)]}, [DICE, DISTANCE])
    lines = table.to_pylist()
    assert [(line["region"], line["metric"]) for line in lines] == [("insula", "dice"), ("thalamus", "dice")]
    assert [line["value"] for line in lines] == pytest.approx([np.mean(GOOD), np.mean(POOR)])
    assert "rank" not in table.column_names
