"""The table on whether metrics of explanations agree with each other."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats

from harness.pipeline.aggregate import Pooled
from harness.pipeline.leaderboard import build
from harness.pipeline.rows import MetricFacts, Row
from harness.report.agreement import agreement_sentences
from harness.report.tables import _concordance_table

AP = MetricFacts("relevance_ap", "higher", (0, 1))
AREA = MetricFacts("inversion_area", "lower", (0, 1))
OTHER = MetricFacts("roi_mass", "higher", (0, 1))
VALUES = {"a": (0.9, 0.30, 0.2), "b": (0.7, 0.45, 0.4), "c": (0.5, 0.40, 0.6), "d": (0.2, 0.70, 0.8)}


def row(label: str, values: tuple[float, float, float], configuration: str = "net") -> Row:
    """An explanation whose six subjects have nearly the same values."""
    names = (AP.name, AREA.name, OTHER.name)
    subjects = {
        name: {f"s{i}": {0: value + i * 1e-4} for i in range(6)} for name, value in zip(names, values, strict=True)
    }
    return Row(configuration, {"model": configuration}, label, values=subjects)


def pooled(rows: list[Row]) -> Pooled:
    """The rows of one configuration."""
    return Pooled(Row("net", {"model": "net"}), tuple(rows), {})


def test_kendalls_tau_over_explanations() -> None:
    """The sign is turned for metrics of which lower values are better; p is that of scipy."""
    table = build([row(label, values) for label, values in VALUES.items()], [AP, AREA, OTHER], "relevance_ap")
    (made,) = _concordance_table(table, {"net": pooled([row(label, values) for label, values in VALUES.items()])})
    assert made.title == "Agreement with relevance_ap" and made.section == "Explanations"
    found = {str(line[1].text): [str(cell.text) for cell in line[2:]] for line in made.lines}  # type: ignore[union-attr]
    area = stats.kendalltau(*[[values[place] for values in VALUES.values()] for place in (0, 1)])
    assert found["inversion_area"][:2] == ["4", f"{-area.statistic:.2f}"]
    assert float(found["inversion_area"][2]) == pytest.approx(area.pvalue, abs=0.005)
    assert found["roi_mass"][1] == "−1.00"
    beside = {str(line[1].text): line[3].range for line in made.lines}  # type: ignore[union-attr]
    expected = f"{-area.statistic:.2f}"
    assert beside == {"roi_mass": "[−1.00, −1.00]", "inversion_area": f"[{expected}, {expected}]"}


def test_tau_has_an_interval_over_subjects() -> None:
    """Two explanations that differ in half of the subjects change their order between bootstrap samples."""
    rows = [row(label, values) for label, values in VALUES.items()]
    swapped = {f"s{i}": {0: 0.9 if i % 2 else 0.1} for i in range(6)}
    rows[1] = Row("net", {"model": "net"}, "b", values={**rows[1].values, AREA.name: swapped})
    (made,) = _concordance_table(build(rows, [AP, AREA, OTHER], "relevance_ap"), {"net": pooled(rows)})
    (cell,) = [line[3] for line in made.lines if line[1].text == "inversion_area"]  # type: ignore[union-attr]
    low, high = (float(one) for one in cell.range.replace("−", "-").strip("[]").split(", "))  # type: ignore[union-attr]
    assert low < high


def test_few_explanations_have_no_table() -> None:
    """Three explanations of a model, or none with both values, are too few."""
    three = [row(label, values) for label, values in list(VALUES.items())[:3]]
    assert _concordance_table(build(three, [AP, AREA, OTHER], "relevance_ap"), {}) == []
    undefined = [row(label, (values[0], math.nan, math.nan)) for label, values in VALUES.items()]
    assert _concordance_table(build(undefined, [AP, AREA, OTHER], "relevance_ap"), {}) == []


def test_metrics_that_agree_are_named() -> None:
    """The sentence counts what agrees, what orders explanations the other way round, and what is open."""
    third = MetricFacts("recall", "higher", (0, 1))
    rows = [
        dataclasses.replace(one, values={**one.values, "recall": one.values[AP.name]})
        for one in (row(label, values) for label, values in VALUES.items())
    ]
    (sentence,) = agreement_sentences(build(rows, [AP, AREA, OTHER, third], "relevance_ap"), {"net": pooled(rows)})
    assert sentence == (
        "Of 3 metrics of explanations of net, 2 order them as relevance_ap does (recall 1.00, inversion_area 0.67) and "
        "1 orders them the other way round (roi_mass −1.00); 0 are undecided (Kendall's τ)."
    )
    assert agreement_sentences(build(rows, [AP, AREA, OTHER], "relevance_ap"), {}) == []  # two metrics
    assert agreement_sentences(build(rows[:3], [AP, AREA, OTHER, third], "relevance_ap"), {}) == []
