"""Invalid hypotheses and published values are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.core.hypotheses import Hypothesis, Published, label_key


def test_an_order_needs_two_groups() -> None:
    """A hypothesis about an order needs at least two groups."""
    with pytest.raises(OutOfRange, match=r"hypothesis D1 \(better\) must name two groups or more"):
        Hypothesis("D1", "", "dice", (("a", "b"),), "sequences")


def test_an_empty_group_is_refused() -> None:
    """An empty group is refused."""
    with pytest.raises(OutOfRange, match="none of them empty"):
        Hypothesis("D1", "", "dice", (("a",), ()), "sequences")


def test_equivalence_needs_a_margin() -> None:
    """An equivalence hypothesis needs a positive margin."""
    with pytest.raises(OutOfRange, match=r"`0 < margin` must hold for hypothesis D4 \(equivalent\), got margin=0"):
        Hypothesis("D4", "", "dice", (("a", "b"),), "sequences", relation="equivalent")


def test_comparison_of_metrics_needs_its_metric() -> None:
    """The metric of a hypothesis that compares metrics is one of those."""
    with pytest.raises(OutOfRange, match=r"the metric of hypothesis E2, which compares metrics, must be in its first"):
        Hypothesis("E2", "", "auc", (("a",), ("b",)), "metric")


def test_published_row_needs_all_values() -> None:
    """A published row needs a value for each metric."""
    with pytest.raises(OutOfRange, match="row T2w of Table 1 must have a value for each of 2 metrics, got 1"):
        Published("Table 1", "sequences", ("dice", "auc"), {"T2w": ((0.8, 0.1),)})


def test_order_of_names_in_a_label_does_not_matter() -> None:
    """The order of joined names does not matter: T2w+FLAIR and FLAIR+T2w have one key."""
    assert label_key("T2w+FLAIR") == label_key("FLAIR+T2w") != label_key("FLAIR")


def test_hypothesis_about_an_unknown_metric_is_refused(epvs: Any) -> None:
    """A hypothesis about a metric that the task does not have is refused when the task is declared."""
    with pytest.raises(UnknownName, match=r"in the results of its paper\) is named 'dise'.*Near: dice"):
        dataclasses.replace(epvs, hypotheses=(Hypothesis("D1", "", "dise", (("a",), ("b",)), "sequences"),))
