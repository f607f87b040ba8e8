"""Figures and tables of the report, made from the store of a run."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import harness
from harness.cli.api import rebuild
from harness.pipeline.aggregate import Pooled
from harness.pipeline.contribution import families, shapley_table
from harness.pipeline.leaderboard import build, read_facts
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures import figures_of
from harness.report.figures.explanations import method_figures
from harness.report.figures.leaderboard import leaderboard_figures
from harness.report.figures.results import Results
from harness.report.output import make_report, shapley_of
from harness.report.paper import findings
from harness.report.tables import report_tables
from harness.report.wording import shapley_rows
from harness.stats.intervals import mean_interval
from harness.storage.store import Store
from harness.sweep.collect import Tables, collect
from harness.sweep.grammar import parse
from harness.sweep.plan import Plan


@pytest.fixture(scope="module")
def run(tiny_overrides: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Tables]:
    """Plan and tables of a run with three subjects and all sets of two sequences, read from the store."""
    out = tmp_path_factory.mktemp("figures") / "runs"
    harness.run(**tiny_overrides(out, sequences=("T2w", "FLAIR", "T2w+FLAIR")))
    return rebuild(parse(["task=epvs", f"out={out}"]))


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the plots by empty images."""
    for name in set(plots.__all__) - {"Bars"}:
        monkeypatch.setattr(plots, name, lambda *given, **options: b"")


@pytest.fixture(scope="module")
def undecided(run: tuple[Plan, Tables]) -> tuple[Plan, Tables]:
    """The run with the status "undecided" in place of "collapsed", since its small networks do not learn."""
    return run[0], _with_status(run[1], "undecided: 3 subjects")


@pytest.fixture(scope="module")
def drawn(undecided: tuple[Plan, Tables]) -> list[Figure]:
    """The figures of the run."""
    return complete_figures(*undecided)


def complete_figures(plan: Plan, tables: Tables) -> list[Figure]:
    """All figures, none of which failed."""
    figures, failed = figures_of(Results(plan, tables))
    assert failed == []
    return figures


def _with_status(tables: Tables, status: str, *, of: str = "") -> Tables:
    """The tables with another status for all rows, or for one set of sequences."""
    column = tables.prediction.column_names.index("status")
    old = zip(*(tables.prediction.column(name).to_pylist() for name in ("sequences", "status")), strict=True)
    new = [status if of in ("", name) else kept for name, kept in old]
    return dataclasses.replace(tables, prediction=tables.prediction.set_column(column, "status", [new]))


class TestFigures:
    """Figures of a report."""

    def test_figures_of_the_epvs_task(self, drawn: list[Figure]) -> None:
        """The ePVS report has these figures in order, and example figures name their subject."""
        titles = [re.sub(r"T2w\+FLAIR|T2w|FLAIR", "X", re.sub(r"sub-\d+", "sub", figure.title)) for figure in drawn]
        assert titles == [
            "Ranking",
            "Every subject",
            "Sensitivity and precision",
            "Effect of the tolerance",
            "Sensitivity by lesion size",
            "Count: prediction against truth",
            "Count: Bland–Altman",
            "Volume: prediction against truth",
            "Volume: Bland–Altman",
            "By region",
            "Example: the best subject, sub",
            "Example: the median subject, sub",
            "Example: the worst subject, sub",
            "Attribution methods",
            "Gain from adding a channel",
            "Attribution shares and the value of channels",
            "Maps of sub, X",
        ]

    def test_are_pictures(self, drawn: list[Figure]) -> None:
        """Every figure is a PNG image with more than five colours."""
        for figure in drawn:
            assert isinstance(figure.image, bytes)
            picture = Image.open(io.BytesIO(figure.image)).convert("RGB")
            assert min(picture.size) > 150, figure.title
            assert len(set(picture.resize((100, 100)).get_flattened_data())) > 5, figure.title

    @pytest.mark.usefixtures("without_plots")
    def test_metrics_that_a_task_lacks_are_skipped(self, run: tuple[Plan, Tables]) -> None:
        """Figures of metrics that the task lacks are skipped."""
        plan, tables = run
        task = plan.request.task
        task = dataclasses.replace(task, metrics={label: task.metrics[label] for label in ("dice", "relevance_ap")})
        plan = dataclasses.replace(plan, request=dataclasses.replace(plan.request, task=task))
        titles = [figure.title for figure in complete_figures(plan, tables)]
        assert not [title for title in titles if re.match("Sensitivity|Effect|Count|Volume", title)]
        assert {"Ranking", "By region", "Attribution methods"} <= set(titles)

    @pytest.mark.usefixtures("without_plots")
    def test_without_images(self, run: tuple[Plan, Tables]) -> None:
        """Without volumes, the figures with slices are skipped."""
        plan, tables = run

        def bare(group: Any) -> Any:
            samples = tuple(dataclasses.replace(sample, masks={}) for sample in group.cohort.samples)
            return dataclasses.replace(group, cohort=dataclasses.replace(group.cohort, samples=samples))

        plan = dataclasses.replace(plan, groups={key: bare(group) for key, group in plan.groups.items()})
        titles = [figure.title for figure in complete_figures(plan, tables)]
        assert "Ranking" in titles
        assert not [title for title in titles if "Example" in title or "Maps of" in title]

    def test_without_any_result(self, run: tuple[Plan, Tables], tmp_path: Path) -> None:
        """A run without any result has no figures and no tables."""
        plan = dataclasses.replace(run[0], store=Store(tmp_path / "store"))
        tables = collect(plan)
        assert complete_figures(plan, tables) == []
        assert report_tables(plan, tables, shapley_of(plan, tables)) == []

    @pytest.mark.usefixtures("without_plots")
    def test_failed_figure_affects_only_its_section(
        self, run: tuple[Plan, Tables], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If a figure fails, its section is named with the error, and other sections are drawn."""
        titles = [figure.title for figure in figures_of(Results(*run))[0]]

        def fail(*given: Any, **options: Any) -> bytes:
            raise ValueError("no such font")

        monkeypatch.setattr(plots, "bland_altman", fail)
        figures, failed = figures_of(Results(*run))
        assert failed == ["agreement: ValueError: no such font"]
        left = [figure.title for figure in figures]
        assert left == [title for title in titles if title in left] and 0 < len(left) < len(titles)
        assert titles[-1] in left

    @pytest.mark.usefixtures("without_plots")
    def test_failed_figure_is_named_on_the_page(
        self, run: tuple[Plan, Tables], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The report has a note with the error of a failed figure."""

        def fail(*given: Any, **options: Any) -> bytes:
            raise ValueError("no such font")

        monkeypatch.setattr(plots, "bland_altman", fail)
        page = make_report(Results(*run)).read_text()
        assert "Some figures could not be drawn. agreement: ValueError: no such font" in page

    def test_unranked_configuration_is_marked(self, run: tuple[Plan, Tables], without_plots: None) -> None:
        """A collapsed configuration is marked with †, which the first caption explains."""
        plan, tables = run
        first = tables.prediction.column("sequences")[0].as_py()
        tables = _with_status(_with_status(tables, "undecided: 3 subjects"), "collapsed in 1 of 3 cells", of=first)
        figures = complete_figures(plan, tables)
        assert "† Collapsed or incomplete" in figures[0].caption
        assert f"{first}†" in next(figure for figure in figures if figure.title.startswith("Example")).caption

    @pytest.mark.usefixtures("without_plots")
    @pytest.mark.parametrize(
        ("level", "start"),
        [
            ("subject", "Mean relevance_ap over subjects with 95 %"),
            ("pooled", "relevance_ap of the maps summed over subjects with 95 %"),
            ("mixed", "Mean relevance_ap over subjects, or relevance_ap of the maps summed over subjects, with"),
        ],
    )
    def test_caption_says_what_values_of_explanations_are(
        self, undecided: tuple[Plan, Tables], level: str, start: str
    ) -> None:
        """Means over subjects and scores of summed maps are told apart."""
        plan, tables = undecided
        table = tables.explanation
        facts = json.loads(table.schema.metadata[b"harness"])
        for metric in facts["metrics"]:
            metric["level"] = level
        table = table.replace_schema_metadata({"harness": json.dumps(facts)})
        (figure,) = method_figures(Results(plan, dataclasses.replace(tables, explanation=table)))
        assert figure.caption.startswith(start)

    def test_lines_across_problems(self, undecided: tuple[Plan, Tables], monkeypatch: pytest.MonkeyPatch) -> None:
        """The objective is drawn against each axis that poses the problem, one line per answer, in numerical order."""
        plan, tables = undecided
        facts = read_facts(tables.prediction)
        value = {("a", 0.0): 0.9, ("a", 0.5): 0.8, ("a", 0.25): 0.85, ("b", 0.0): 0.7, ("b", 0.5): 0.6, ("c", 0.5): 0.5}
        rows = [
            Row(
                f"{model}{noise}",
                {"model": model, "noise": noise},
                values={"dice": {f"s{i}": {0: dice} for i in range(6)}},
            )
            for (model, noise), dice in value.items()
        ]
        table = build(rows, facts.metrics, "dice", strata=("profile", "data", "noise"))
        drawn: dict[str, Any] = {}
        monkeypatch.setattr("harness.report.plots.curves", lambda panels, **more: drawn.update(panels=panels, **more))
        monkeypatch.setattr("harness.report.plots.objective_intervals", lambda table: b"")
        monkeypatch.setattr("harness.report.plots.subject_lines", lambda values, **more: b"")
        pooled = {row.configuration: Pooled(row, (), {}) for row in rows}
        results = Results(plan, dataclasses.replace(tables, prediction=table, pooled=pooled))
        titles = [figure.title for figure in leaderboard_figures(results)]
        assert titles[:2] == ["Ranking", "dice across noise"]
        lines = {
            label: {at: score.value for at, score in line.items()} for label, line in drawn["panels"]["dice"].items()
        }
        assert lines.keys() == {"a", "b"}  # c has one value of noise
        assert lines["a"] == pytest.approx({0.0: 0.9, 0.25: 0.85, 0.5: 0.8})
        assert lines["b"] == pytest.approx({0.0: 0.7, 0.5: 0.6})
        assert list(lines["a"]) == [0.0, 0.25, 0.5]
        assert drawn["x_label"] == "noise"

    @pytest.mark.usefixtures("without_plots")
    def test_examples_are_of_one_problem(self, undecided: tuple[Plan, Tables]) -> None:
        """Examples show the configurations of one problem only."""
        plan, tables = undecided
        lines = tables.prediction.to_pylist()
        facts = dataclasses.replace(read_facts(tables.prediction), strata=("profile", "data"))
        rows = [
            dataclasses.replace(
                tables.pooled[line["configuration"]].prediction,
                facts={**tables.pooled[line["configuration"]].prediction.facts, "data": "b" if number else "a"},
            )
            for number, line in enumerate(lines)
        ]
        table = build(rows, facts.metrics, facts.objective)
        results = Results(plan, dataclasses.replace(tables, prediction=table))
        assert list(results.problems) == ["a", "b"]
        assert results.leaders == [lines[0]["configuration"]]
        titles = [figure.title for figure in leaderboard_figures(results)]
        assert titles == ["Ranking", "Every subject, b"]

    def test_subjects_of_a_pooled_objective_are_chosen_by_another_metric(self, run: tuple[Plan, Tables]) -> None:
        """Pseudo-values of a pooled objective are not those of subjects; a shown metric chooses, or none."""
        plan, tables = run
        facts = json.loads(tables.prediction.schema.metadata[b"harness"])
        next(metric for metric in facts["metrics"] if metric["name"] == "dice")["level"] = "pooled"
        table = tables.prediction.replace_schema_metadata({"harness": json.dumps(facts)})
        results = Results(plan, dataclasses.replace(tables, prediction=table))
        chosen = results.subject_metric
        assert chosen in plan.request.task.shown and chosen != "dice"
        leader = table.to_pylist()[0]["configuration"]
        values = results.values(leader, chosen)
        best = (max if results.facts[chosen].direction == "higher" else min)(values.values())
        assert values[results.chosen_subjects(leader)["best"]] == best
        for metric in facts["metrics"]:
            metric["level"] = "pooled"
        table = table.replace_schema_metadata({"harness": json.dumps(facts)})
        assert Results(plan, dataclasses.replace(tables, prediction=table)).chosen_subjects(leader) == {}

    def test_best_and_worst(self, run: tuple[Plan, Tables], drawn: list[Figure]) -> None:
        """The examples are the best, median and worst subjects by Dice of the first configuration."""
        _, tables = run
        leader = tables.prediction.to_pylist()[0]["configuration"]
        means = subject_means(tables.pooled[leader].prediction, "dice")
        ordered = sorted(means, key=lambda name: (-means[name], name))
        titles = [figure.title for figure in drawn if figure.title.startswith("Example")]
        kinds = zip(("best", "median", "worst"), ordered, strict=True)
        assert titles == [f"Example: the {kind} subject, {subject}" for kind, subject in kinds]


class TestTables:
    """Tables about hypotheses and published values."""

    def test_three_subjects_are_undecided(self, undecided: tuple[Plan, Tables]) -> None:
        """With three subjects, every hypothesis is undecided because of the number of subjects."""
        found = findings(*undecided)
        assert {finding.hypothesis.id for _, finding in found} >= {"D1", "D4", "D11", "D13"}
        assert {finding.outcome for _, finding in found} == {"undecided"}
        assert all("fewer than 6" in finding.reason for _, finding in found)

    def test_hypotheses_without_their_configurations_are_left_out(self, undecided: tuple[Plan, Tables]) -> None:
        """A hypothesis about configurations that were not run is left out: D15 needs T2w+FLAIR+T1w."""
        assert "D15" not in {finding.hypothesis.id for _, finding in findings(*undecided)}

    def test_differences_are_those_of_the_subjects(self, undecided: tuple[Plan, Tables]) -> None:
        """In D2, the difference of T2w and FLAIR is the mean paired difference in precision."""
        _, tables = undecided
        rows = {row["sequences"]: row["configuration"] for row in tables.prediction.to_pylist()}
        one, two = (subject_means(tables.pooled[rows[name]].prediction, "precision") for name in ("T2w", "FLAIR"))
        expected = mean_interval([one[name] - two[name] for name in sorted(one)])
        finding = next(finding for _, finding in findings(*undecided) if finding.hypothesis.id == "D2")
        pair = next(pair for pair in finding.pairs if (pair.first, pair.second) == ("T2w", "FLAIR"))
        assert pair.difference.value == pytest.approx(expected.value)
        assert math.isnan(pair.difference.low)  # three subjects have no test

    def test_regions(self, undecided: tuple[Plan, Tables]) -> None:
        """D13 compares the sensitivity of each set in the basal ganglia with 0.80."""
        _, tables = undecided
        finding = next(finding for _, finding in findings(*undecided) if finding.hypothesis.id == "D13")
        key = next(row["configuration"] for row in tables.prediction.to_pylist() if row["sequences"] == "T2w")
        values = subject_means(tables.pooled[key].regions["basal_ganglia"][0], "sensitivity")
        pair = next(pair for pair in finding.pairs if pair.first == "T2w")
        assert pair.difference.value == pytest.approx(mean_interval(list(values.values())).value, nan_ok=True)

    def test_collapsed_rows_are_not_compared(self, undecided: tuple[Plan, Tables]) -> None:
        """Collapsed configurations are not compared."""
        plan, tables = undecided
        without = findings(plan, _with_status(tables, "collapsed in 1 of 3 cells", of="FLAIR"))
        labels = {label for _, finding in without for pair in finding.pairs for label in (pair.first, pair.second)}
        assert "FLAIR" not in labels
        assert "T2w" in labels

    def test_published_values_are_in_a_table(self, run: tuple[Plan, Tables]) -> None:
        """The table of published values contains the sensitivity of T2w in Table 1, .81 ± .01."""
        table = next(table for table in report_tables(*run, None) if "published" in table.title)
        line = next(line for line in table.lines if line[0].text == "T2w")  # type: ignore[union-attr]
        assert line[table.columns.index("sensitivity")].range == "0.81 ± 0.01"  # type: ignore[union-attr]
        assert len(table.lines) == 3

    def test_page(self, undecided: tuple[Plan, Tables], drawn: list[Figure]) -> None:
        """The report contains its sections, and its image files equal the figures."""
        path = make_report(Results(*undecided))
        text = path.read_text()
        assert "Hypotheses of the paper" in text
        assert "Value of each channel" in text
        pictures = [file.read_bytes() for file in sorted(path.parent.glob("*.png"))]
        assert pictures == [figure.image for figure in drawn]


class TestShapley:
    """Shapley values of channels."""

    def test_two_players_by_hand(self, run: tuple[Plan, Tables]) -> None:
        """With two channels, the value is the mean of the score alone and the gain from adding the channel."""
        _, tables = run
        rows = {row["sequences"]: row["configuration"] for row in tables.prediction.to_pylist()}
        dice = {name: subject_means(tables.pooled[key].prediction, "dice") for name, key in rows.items()}
        table = shapley_of(*run)
        assert table is not None
        lines = {line["channel"]: line for line in table.to_pylist()}
        for one, two in (("T2w", "FLAIR"), ("FLAIR", "T2w")):
            shares = [(dice[one][s] + dice["T2w+FLAIR"][s] - dice[two][s]) / 2 for s in sorted(dice[one])]
            expected = mean_interval(shares)
            found = [lines[one][name] for name in ("shapley", "shapley_low", "shapley_high")]
            assert found == pytest.approx(expected[:3])
            assert lines[one]["left_out"] == pytest.approx(
                np.mean([dice["T2w+FLAIR"][s] - dice[two][s] for s in dice[one]])
            )
            assert lines[one]["alone"] == pytest.approx(np.mean(list(dice[one].values())))

    def test_values_sum_to_the_total(self, run: tuple[Plan, Tables]) -> None:
        """The values sum to the Dice of both channels, since the Dice without any channel is 0."""
        table = shapley_of(*run)
        assert table is not None
        assert sum(table.column("shapley").to_pylist()) == pytest.approx(table.column("all")[0].as_py())
        assert table.column("nothing").to_pylist() == [0.0, 0.0]

    def test_incomplete(self, run: tuple[Plan, Tables]) -> None:
        """Without one of the sets there are no Shapley values, but values of leaving out a channel."""
        plan, tables = run
        facts = read_facts(tables.prediction)
        rows = {key: pooled.prediction for key, pooled in tables.pooled.items()}
        some = [one for one in plan.configurations if one.axes["sequences"] != "FLAIR"]
        assert shapley_table(some, rows, facts.metric("dice")) is None
        (family,) = families(some)
        assert set(family.left_out(rows, "dice")) == {"FLAIR"}

    def test_metric_without_a_value_for_no_channels(self, run: tuple[Plan, Tables]) -> None:
        """A metric without a value for no channels has no Shapley values."""
        plan, tables = run
        rows = {key: pooled.prediction for key, pooled in tables.pooled.items()}
        facts = MetricFacts("average_hausdorff", "lower", (0, np.inf))
        assert shapley_table(plan.configurations, rows, facts) is None

    def test_as_text(self, run: tuple[Plan, Tables]) -> None:
        """The text table shows each channel with three values and their intervals."""
        table = shapley_of(*run)
        assert table is not None
        header, lines = shapley_rows(table)
        assert header[-4:] == ["channel", "Shapley value", "left out", "alone"]
        assert [line[header.index("channel")] for line in lines] == ["T2w", "FLAIR"]
        assert all("[" in cell for line in lines for cell in line[-3:])

    def test_other_targets_separate_families(self, run: tuple[Plan, Tables]) -> None:
        """Configurations with another label are in a separate family."""
        plan, _ = run
        first = plan.configurations[0]
        other = {**first.task, "cohort": {**first.task["cohort"], "label": "wmh"}}
        found = families([*plan.configurations, dataclasses.replace(first, task=other)])
        assert [len(family.members) for family in found] == [3, 1]

    def test_other_differences_separate_families(self, run: tuple[Plan, Tables]) -> None:
        """Configurations with another network are in a separate family."""
        plan, _ = run
        first = plan.configurations[0]
        wider = {**first.task, "model": {**first.task["model"], "width": 3}}
        found = families([*plan.configurations, dataclasses.replace(first, task=wider)])
        assert [len(family.members) for family in found] == [3, 1]

    def test_csv(self, run: tuple[Plan, Tables]) -> None:
        """The run writes the Shapley values to a CSV file beside its leaderboard."""
        board = run[0].request.leaderboard_path
        text = board.with_name(f"{board.stem}-shapley.csv").read_text()
        assert text.splitlines()[0].startswith("model,channel,shapley,shapley_low")
        assert len(text.splitlines()) == 3
