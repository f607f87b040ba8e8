"""Contrasts of hypotheses on hand-made rows: metrics of one row, magnitudes, and p values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from harness.core.hypotheses import Hypothesis
from harness.core.task import Task
from harness.core.types import Score
from harness.pipeline.rows import MetricFacts, Row
from harness.report.paper import _beside, _contrast, _is_published
from harness.stats.hypotheses import judge
from harness.sweep.catalogue import load_task

MS: Task = load_task("ms")
SUBJECTS = [f"s{number}" for number in range(8)]


def row(values: Mapping[str, float], spread: float = 0.1) -> Row:
    """A row whose pseudo-values vary around each pooled value."""
    pseudo = {
        name: {one: {0: value + spread * (number - 3.5)} for number, one in enumerate(SUBJECTS)}
        for name, value in values.items()
    }
    return Row("id", {}, values=pseudo, pooled={name: Score(value, 0, 0, 8) for name, value in values.items()})


def test_magnitudes_are_compared_across_signs() -> None:
    """−.5 is larger in magnitude than .3; without `magnitude`, it is smaller."""
    arms = {
        "rho_NDI_40": (row({"rho_NDI_40": -0.5}), "rho_NDI_40"),
        "rho_qT1_40": (row({"rho_qT1_40": 0.3}), "rho_qT1_40"),
    }
    facts = MetricFacts("rho_NDI_40", direction="none", level="pooled")
    groups = (("rho_NDI_40",), ("rho_qT1_40",))
    for magnitude, expected in ((True, 0.2), (False, -0.8)):
        hypothesis = Hypothesis("E7", "", "rho_NDI_40", groups, "metric", magnitude=magnitude)
        contrast = _contrast(hypothesis, facts, MS, arms)
        assert contrast is not None
        assert contrast("rho_NDI_40", "rho_qT1_40", 0.95).value == pytest.approx(expected)


def test_p_value_stands_for_itself() -> None:
    """A p value has no interval: the value itself is compared with the bound, and is significant below it."""
    hypothesis = next(one for one in MS.hypotheses if one.id == "E9" and one.metric == "p_NDI_40")
    label = hypothesis.groups[0][0]
    for p, outcome in ((0.03, "supported"), (0.07, "not supported")):
        arms = {label: (Row("id", {}, pooled={"p_NDI_40": Score(p, float("nan"), float("nan"), 8)}), "p_NDI_40")}
        contrast = _contrast(hypothesis, MetricFacts("p_NDI_40", direction="none", level="pooled"), MS, arms)
        assert contrast is not None
        assert contrast(label, "", 0.95) == (p, p, p, 8)
        finding = judge(hypothesis, [label], contrast, direction="none")
        assert finding is not None and finding.outcome == outcome


NETWORK = {"model": "attention_densenet", "contrasts": "qT1+MWF+NDI", "fusion": "gated", "threshold": 5.0}


@pytest.mark.parametrize(
    ("change", "published"),
    [
        ({}, True),
        ({"threshold": 5}, True),
        ({"contrasts": "NDI+qT1+MWF"}, True),
        ({"contrasts": "qT1"}, False),
        ({"fusion": "attention"}, False),
        ({"fusion": "concatenation"}, False),
        ({"threshold": 4.0}, False),
        ({"shuffled": True}, False),
        ({"status": "control: trained and tested with labels of other subjects (shuffled)"}, False),
    ],
)
def test_published_values_are_of_one_configuration(change: Mapping[str, Any], published: bool) -> None:
    """Rows with other contrasts, without the gate, with another threshold, or of a control have no published values."""
    line = {**NETWORK, "status": "ranked", **change}
    assert [_is_published(line, one) for one in MS.published] == [published] * 3


def test_published_attention_and_p_values_are_those_of_the_paper() -> None:
    """Tables II and IV: attention on validation samples, and p values."""
    found = {
        name: value
        for table in MS.published
        for values in list(table.values.values())[:1]
        for name, (value, _) in zip(table.metrics, values, strict=True)
    }
    expected = {
        "attention_qT1_validation": 0.503, "attention_NDI_validation": 0.309, "attention_MWF_validation": 0.188,
        "p_qT1_40": 0.001, "p_NDI_40": 0.0001, "p_MWF_40": 0.01, "rho_MWF_40": 0.298, "rho_qT1_40": -0.371,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(-0.362, None, "−0.36"), (0.0001, None, "0.0001"), (0.81, 0.01, "0.81 ± 0.01"), (float("nan"), None, "")],
)
def test_published_numbers_have_minus_signs(value: float, error: float | None, text: str) -> None:
    """As in our values beside them; small p values do not become zero."""
    cell = _beside({"rho": -0.085}, "rho", (value, error))
    assert (cell.text, cell.range) == ("−0.085", text)
