"""Remarks that follow a verdict: how far the ceiling is."""

from __future__ import annotations

from typing import Any

import pytest

from harness.pipeline.leaderboard import build
from harness.pipeline.rows import MetricFacts, Row
from harness.report.remarks import ceiling_sentences

ORACLE = "oracle: the model receives information that the task hides"


def row(name: str, values: list[float], *flags: str) -> Row:
    """A row with one value per subject."""
    by_subject = {f"s{number}": {0: value} for number, value in enumerate(values)}
    return Row(name, {"model": name}, values={"score": by_subject}, flags=flags)


def sentences(*rows: Row, direction: Any = "higher") -> list[str]:
    """Sentences on a leaderboard of rows."""
    table = build(rows, [MetricFacts("score", direction)], "score")
    return list(ceiling_sentences(table, {one.configuration: one for one in rows}))


def test_leader_below_the_oracle() -> None:
    """The mean of the paired differences, .2, with its t interval, however the rows differ between subjects."""
    low = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    high = [one + 0.2 + (0.01 if number % 2 else -0.01) for number, one in enumerate(low)]
    (told,) = sentences(row("net", low), row("best", high, ORACLE))
    assert told.startswith("How far the ceiling is: the oracle best has score 0.65 [")
    assert "; net is 0.20 [0.19, 0.21] worse (paired difference, 95 % interval)." in told


@pytest.mark.parametrize(("direction", "words"), [("higher", "better, so that this oracle is no ceiling"),
                                                  ("lower", "worse")])  # fmt: skip
def test_direction_decides_what_is_better(direction: Any, words: str) -> None:
    """A leader with higher values than the oracle is better if higher is better, and worse if lower is."""
    high = [0.5, 0.6, 0.7, 0.6, 0.5, 0.71]
    (told,) = sentences(row("net", high), row("best", [one / 2 for one in high], ORACLE), direction=direction)
    assert f"] {words}" in told


def test_few_subjects_have_no_interval() -> None:
    """With fewer than six subjects, the difference is told without an interval."""
    (told,) = sentences(row("net", [0.1, 0.2, 0.3]), row("best", [0.3, 0.4, 0.5], ORACLE))
    assert told.endswith("; net is 0.20 worse.")


def test_without_an_oracle_or_a_leader() -> None:
    """Nothing is said without an oracle; an oracle alone has nothing to be compared with."""
    assert sentences(row("net", [0.1] * 6), row("other", [0.2] * 6)) == []
    (told,) = sentences(row("best", [0.2, 0.3, 0.4, 0.2, 0.3, 0.4], ORACLE))
    assert told.endswith("; nothing else is ranked.")
