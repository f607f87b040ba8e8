"""How configurations are listed in MLflow: names that tell them apart, their rank, and what ranks them as columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli.api import rebuild
from harness.pipeline.leaderboard import build, build_regions
from harness.pipeline.rows import MetricFacts, Row
from harness.report.listing import note_of, parent_runs, rank_of, run_names, saved_view
from harness.sweep.collect import Tables
from harness.sweep.grammar import parse
from harness.sweep.plan import Plan

DICE, AP = MetricFacts("dice", range=(0, 1)), MetricFacts("ap", range=(0, 1))


@pytest.fixture
def plan(finished: Path) -> Plan:
    """Three subjects, one configuration, one attribution."""
    return rebuild(parse(["task=epvs", f"out={finished}"]))[0]


def row(name: str, values: list[float], *, attribution: str = "", metric: str = "dice", **more: Any) -> Row:
    """A row with one value per subject."""
    by_subject = {f"sub-{number}": {0: value} for number, value in enumerate(values)}
    facts = {"command": f"harness run model={name}", **more.pop("facts", {})}
    return Row(name, {"model": name}, attribution, {metric: by_subject}, facts=facts, **more)


@pytest.fixture
def tables() -> Tables:
    """Three configurations, of which one collapsed; the first is explained twice."""
    good, bad = [0.8, 0.7, 0.9, 0.8, 0.7, 0.9], [0.2, 0.3, 0.1, 0.2, 0.3, 0.2]
    rows = [row("unet", good), row("small", bad), row("lost", bad, flags=("collapsed: sub-1 and sub-2",))]
    explained = [
        row("unet", good, attribution="saliency", metric="ap"),
        row("unet", bad, attribution="random", metric="ap"),
    ]
    return Tables(build(rows, [DICE], "dice"), build(explained, [AP], "ap"), build_regions({}, []), {})


class TestNames:
    """MLflow cuts them after 18 letters."""

    def test_they_begin_with_what_differs(self) -> None:
        """Not with the names of the axes, nor with what all have in common."""
        axes = {
            "a": {"model": "unet", "sequences": "T1w+FLAIR"},
            "b": {"model": "unet", "sequences": "T2w"},
        }
        assert run_names(axes) == {"a": "T1w+FLAIR unet", "b": "T2w unet"}

    def test_a_number_is_named(self) -> None:
        """0.1 alone says nothing; words that differ come before it, an option without its component."""
        axes = {
            "a": {"noise": 0.1, "model": "cnn", "recipe.lr": 0.01, "label": "pvs"},
            "b": {"noise": 0.2, "model": "ridge", "recipe.lr": 0.01, "label": "pvs"},
        }
        assert run_names(axes)["a"] == "cnn noise 0.1 pvs lr 0.01"

    def test_an_option_that_a_model_lacks_is_left_out(self) -> None:
        """Ridge has no depth, and one that has none differs from one that has."""
        axes = {"a": {"model": "cnn", "model.depth": 2}, "b": {"model": "ridge", "model.depth": None}}
        assert run_names(axes) == {"a": "cnn depth 2", "b": "ridge"}

    def test_one_configuration_is_named_by_all_its_axes(self) -> None:
        """Nothing differs; without axes there is nothing to say."""
        assert run_names({"a": {"model": "unet", "balance": True}}) == {"a": "unet balance true"}
        assert run_names({"a": {}}) == {"a": ""}


class TestParents:
    """What is known before anything is computed."""

    def test_data_set(self, plan: Plan) -> None:
        """Digest is the fingerprint of what the configuration reads; the profile counts and names nobody."""
        (parent,) = parent_runs(plan)
        assert parent.name == "T2w unet"
        assert parent.dataset.digest == parent.configuration.fingerprint
        assert parent.dataset.name == plan.cohort.name
        assert parent.dataset.profile == {"num_rows": 3, "subjects": 3, "left_out": len(plan.cohort.ineligible)}

    def test_columns_are_the_metrics_that_rank(self, plan: Plan) -> None:
        """The objective with its interval first, and what ranks the explanations; the best row on top."""
        view = saved_view(plan)
        assert view.metrics[:3] == ("dice", "dice_low", "dice_high")
        assert "random/relevance_ap" in view.metrics
        assert (view.params, view.tags) == (("sequences", "model"), ("rank",))
        assert (view.order_by, view.ascending) == ("dice", False)


class TestNotes:
    """Rank, value with interval, commands and report."""

    def test_rank_among_those_that_are_ranked(self, tables: Tables) -> None:
        """Collapsed rows are not counted, and say why they have none."""
        assert rank_of(tables, "unet") == "1 of 2" and rank_of(tables, "small") == "2 of 2"
        assert rank_of(tables, "lost") == "collapsed: sub-1 and sub-2"
        assert rank_of(tables, "unknown") == "not computed yet"

    def test_ranks_hold_within_one_problem(self) -> None:
        """Of two data sets each has its first."""
        rows = [row(name, [0.5] * 6, facts={"data": name}) for name in ("one", "other")]
        tables = Tables(build(rows, [DICE], "dice"), build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "one") == rank_of(tables, "other") == "1 of 1"

    @pytest.mark.parametrize(
        ("status", "flags", "said"),
        [
            ("collapsed: sub-1 and sub-2", ("collapsed: sub-1 and sub-2",), "collapsed"),
            ("failed: 1 of 8 cells, E: sub-1", ("failed: 1 of 8 cells, E: sub-1",), "failed"),
        ],
    )
    def test_anonymous_reasons_name_nobody(self, status: str, flags: tuple[str, ...], said: str) -> None:
        """What stands behind the reason may be an error message."""
        table = build([row("lost", [0.5] * 6, flags=flags)], [DICE], "dice")
        tables = Tables(table, build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "lost") == status
        assert rank_of(tables, "lost", anonymous=True) == said

    def test_a_subject_that_others_have_is_not_named(self) -> None:
        """The status names it; the anonymous one says what is lacking."""
        nan = float("nan")
        rows = [row("unet", [0.5] * 7), row("lost", [0.5] * 6 + [nan])]
        tables = Tables(build(rows, [DICE], "dice"), build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "lost") == "no dice for sub-6, where others have one"
        assert rank_of(tables, "lost", anonymous=True) == "no dice"

    def test_note_of_a_ranked_configuration(self, tables: Tables) -> None:
        """The first paragraph is what MLflow shows unopened."""
        note = note_of(tables, "unet", command="harness run task=toy", report=Path("/out/index.html"))
        first, *rest = note.split("\n\n")
        assert first == "**Rank 1 of 2** by dice: **0.80 [0.71, 0.89]**"
        assert rest[:3] == [
            "Report: `/out/index.html`",
            "Command of this configuration: `harness run model=unet`",
            "Ranked in: `harness run task=toy`",
        ]
        assert rest[3].splitlines()[2:] == [
            "| saliency | ap | 0.80 [0.71, 0.89] | 1 of 2 |",
            "| random | ap | 0.22 [0.14, 0.30] | 2 of 2 |",
        ]

    def test_note_of_one_without_rank(self, tables: Tables) -> None:
        """The value stands with the reason; without a report no line speaks of one."""
        note = note_of(tables, "lost", command="harness run task=toy", anonymous=True)
        assert note.startswith("**Not ranked (collapsed)** by dice: **0.22 [0.14, 0.30]**")
        assert "sub-" not in note and "Report" not in note

    def test_note_before_anything_is_computed(self, tables: Tables) -> None:
        """The command is known."""
        note = note_of(tables, "unknown", command="harness run task=toy")
        assert note == "Not computed yet\n\nRanked in: `harness run task=toy`"
