"""Configurations in MLflow: run names, ranks, and columns of the saved view."""

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
    """Plan of a run with three subjects, one configuration and one attribution."""
    return rebuild(parse(["task=epvs", f"out={finished}"]))[0]


def row(name: str, values: list[float], *, attribution: str = "", metric: str = "dice", **more: Any) -> Row:
    """A row with one value per subject."""
    by_subject = {f"sub-{number}": {0: value} for number, value in enumerate(values)}
    facts = {"command": f"harness run model={name}", **more.pop("facts", {})}
    return Row(name, {"model": name}, attribution, {metric: by_subject}, facts=facts, **more)


@pytest.fixture
def tables() -> Tables:
    """Tables of three configurations, one collapsed, of which the first has two attributions."""
    good, bad = [0.8, 0.7, 0.9, 0.8, 0.7, 0.9], [0.2, 0.3, 0.1, 0.2, 0.3, 0.2]
    rows = [row("unet", good), row("small", bad), row("lost", bad, flags=("collapsed: sub-1 and sub-2",))]
    explained = [
        row("unet", good, attribution="saliency", metric="ap"),
        row("unet", bad, attribution="random", metric="ap"),
    ]
    return Tables(build(rows, [DICE], "dice"), build(explained, [AP], "ap"), build_regions({}, []), {})


class TestNames:
    """Run names, which MLflow truncates after 18 characters."""

    def test_names_start_with_differing_values(self) -> None:
        """A name starts with the values that differ between configurations."""
        axes = {
            "a": {"model": "unet", "sequences": "T1w+FLAIR"},
            "b": {"model": "unet", "sequences": "T2w"},
        }
        assert run_names(axes) == {"a": "T1w+FLAIR unet", "b": "T2w unet"}

    def test_numbers_are_preceded_by_their_option(self) -> None:
        """Numbers are preceded by the name of their option, and words that differ come first."""
        axes = {
            "a": {"noise": 0.1, "model": "cnn", "recipe.lr": 0.01, "label": "pvs"},
            "b": {"noise": 0.2, "model": "ridge", "recipe.lr": 0.01, "label": "pvs"},
        }
        assert run_names(axes)["a"] == "cnn noise 0.1 pvs lr 0.01"

    def test_missing_option_is_left_out(self) -> None:
        """An option that a model lacks is left out of its name."""
        axes = {"a": {"model": "cnn", "model.depth": 2}, "b": {"model": "ridge", "model.depth": None}}
        assert run_names(axes) == {"a": "cnn depth 2", "b": "ridge"}

    def test_one_configuration_is_named_by_all_its_axes(self) -> None:
        """A single configuration is named by all its axes, and has no name without axes."""
        assert run_names({"a": {"model": "unet", "balance": True}}) == {"a": "unet balance true"}
        assert run_names({"a": {}}) == {"a": ""}


class TestParents:
    """Facts that are logged before anything is computed."""

    def test_data_set(self, plan: Plan) -> None:
        """The digest of the data set is the configuration's fingerprint, and the profile contains only counts."""
        (parent,) = parent_runs(plan)
        assert parent.name == "T2w unet"
        assert parent.dataset.digest == parent.configuration.fingerprint
        assert parent.dataset.name == plan.cohort.name
        assert parent.dataset.profile == {"num_rows": 3, "subjects": 3, "left_out": len(plan.cohort.ineligible)}

    def test_columns_are_the_metrics_that_rank(self, plan: Plan) -> None:
        """The view shows the objective with its interval and that of explanations, sorted with the best on top."""
        view = saved_view(plan)
        assert view.metrics[:3] == ("dice", "dice_low", "dice_high")
        assert "random/relevance_ap" in view.metrics
        assert (view.params, view.tags) == (("sequences", "model"), ("rank",))
        assert (view.order_by, view.ascending) == ("dice", False)


class TestNotes:
    """Notes with rank, value and interval, commands and report."""

    def test_rank_counts_ranked_rows(self, tables: Tables) -> None:
        """A rank counts only ranked rows, and other rows show their status."""
        assert rank_of(tables, "unet") == "1 of 2" and rank_of(tables, "small") == "2 of 2"
        assert rank_of(tables, "lost") == "collapsed: sub-1 and sub-2"
        assert rank_of(tables, "unknown") == "not computed yet"

    def test_ranks_hold_within_one_problem(self) -> None:
        """Rows of each data set are ranked separately."""
        rows = [row(name, [0.5] * 6, facts={"data": name}) for name in ("one", "other")]
        tables = Tables(build(rows, [DICE], "dice"), build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "one") == rank_of(tables, "other") == "1 of 1"

    @pytest.mark.parametrize(
        ("status", "flags", "expected"),
        [
            ("collapsed: sub-1 and sub-2", ("collapsed: sub-1 and sub-2",), "collapsed"),
            ("failed: 1 of 8 cells, E: sub-1", ("failed: 1 of 8 cells, E: sub-1",), "failed"),
        ],
    )
    def test_anonymous_reasons_name_no_subject(self, status: str, flags: tuple[str, ...], expected: str) -> None:
        """With ``anonymous=True``, the reason is shown without details, which may name a subject."""
        table = build([row("lost", [0.5] * 6, flags=flags)], [DICE], "dice")
        tables = Tables(table, build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "lost") == status
        assert rank_of(tables, "lost", anonymous=True) == expected

    def test_anonymous_status_does_not_name_a_missing_subject(self) -> None:
        """With ``anonymous=True``, a subject without a value is not named."""
        nan = float("nan")
        rows = [row("unet", [0.5] * 7), row("lost", [0.5] * 6 + [nan])]
        tables = Tables(build(rows, [DICE], "dice"), build([], [AP], "ap"), build_regions({}, []), {})
        assert rank_of(tables, "lost") == "no dice for sub-6, where others have one"
        assert rank_of(tables, "lost", anonymous=True) == "no dice"

    def test_note_of_a_ranked_configuration(self, tables: Tables) -> None:
        """A note starts with rank and value, which MLflow shows collapsed; report, commands and table follow."""
        note = note_of(tables, "unet", command="harness run task=toy", report=Path("/out/index.html"))
        first, *rest = note.split("\n\n")
        assert first == "**Rank 1 of 2** by dice: **0.80 [0.69, 0.88]**"
        assert rest[:3] == [
            "Report: `/out/index.html`",
            "Command of this configuration: `harness run model=unet`",
            "Ranked in: `harness run task=toy`",
        ]
        assert rest[3].splitlines()[2:] == [
            "| saliency | ap | 0.80 [0.69, 0.88] | 1 of 2 |",
            "| random | ap | 0.22 [0.15, 0.31] | 2 of 2 |",
        ]

    def test_note_of_one_without_rank(self, tables: Tables) -> None:
        """A note without a rank shows the reason, and without a report it has no line about one."""
        note = note_of(tables, "lost", command="harness run task=toy", anonymous=True)
        assert note.startswith("**Not ranked (collapsed)** by dice: **0.22 [0.15, 0.31]**")
        assert "sub-" not in note and "Report" not in note

    def test_note_before_anything_is_computed(self, tables: Tables) -> None:
        """Before any result, the note contains the command."""
        note = note_of(tables, "unknown", command="harness run task=toy")
        assert note == "Not computed yet\n\nRanked in: `harness run task=toy`"
