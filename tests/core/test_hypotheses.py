"""What a paper claims is refused where it makes no sense."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.core.hypotheses import Hypothesis, Published, label_key


def test_an_order_needs_two_groups() -> None:
    """One group alone has no order."""
    with pytest.raises(OutOfRange, match=r"hypothesis D1 \(better\) must name two groups or more"):
        Hypothesis("D1", "", "dice", (("a", "b"),), "sequences")


def test_a_group_is_not_empty() -> None:
    """A group without a member says nothing."""
    with pytest.raises(OutOfRange, match="none of them empty"):
        Hypothesis("D1", "", "dice", (("a",), ()), "sequences")


def test_equivalence_needs_a_margin() -> None:
    """Without a margin two values are never equivalent."""
    with pytest.raises(OutOfRange, match=r"`0 < margin` must hold for hypothesis D4 \(equivalent\), got margin=0"):
        Hypothesis("D4", "", "dice", (("a", "b"),), "sequences", relation="equivalent")


def test_a_published_row_is_whole() -> None:
    """Each metric has a value."""
    with pytest.raises(OutOfRange, match="row T2w of Table 1 must have a value for each of 2 metrics, got 1"):
        Published("Table 1", "sequences", ("dice", "auc"), {"T2w": ((0.8, 0.1),)})


def test_order_of_parts_does_not_matter() -> None:
    """T2w+FLAIR and FLAIR+T2w are the same set; FLAIR alone is another."""
    assert label_key("T2w+FLAIR") == label_key("FLAIR+T2w") != label_key("FLAIR")


def test_a_claim_is_about_a_metric_of_the_task(epvs: Any) -> None:
    """A misspelt metric is seen when the task is declared."""
    with pytest.raises(UnknownName, match=r"in the results of its paper\) is named 'dise'.*Near: dice"):
        dataclasses.replace(epvs, hypotheses=(Hypothesis("D1", "", "dise", (("a",), ("b",)), "sequences"),))
