"""Contrasts of hypotheses on hand-made rows: metrics of one row, magnitudes, and p values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.core.hypotheses import Hypothesis
from harness.core.task import Task
from harness.core.types import Score
from harness.pipeline.rows import MetricFacts, Row
from harness.report.paper import _contrast
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
