"""Figures by brain region, and by target if several values are predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from harness.core.types import Score
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import Results, score_in

__all__ = ["region_figures"]

_MOST_METRICS = 4

Panels = Mapping[str, Mapping[str, Mapping[str, Score]]]


def region_figures(run: Results) -> Iterator[Figure]:
    """Heat maps of the most important metrics: configurations by region, and by target."""
    yield from _heat_map(run, "By target", "Each target alone", lambda name: name in run.targets)
    what = "Mean over subjects within each region of the label image"
    yield from _heat_map(run, "By region", what, lambda name: name not in run.targets)


def _heat_map(run: Results, title: str, what: str, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    panels: dict[str, dict[str, dict[str, Score]]] = {}
    missing = False
    for line in run.tables.regions.to_pylist():
        if line["configuration"] in run.lines and not line["attribution"] and wanted(line["region"]):
            row = panels.setdefault(line["metric"], {}).setdefault(run.labels[line["configuration"]], {})
            row[line["region"]] = score_in(line, "value", bounds=("low", "high"))
            missing |= line["missing"] > 0
    chosen = _shown_first(run, panels)
    if not chosen:
        return
    order = [run.labels[key] for key in run.lines]
    note = " Subjects without a value in a region are not included in its mean." if missing else ""
    yield Figure(
        title,
        f"{what}; darker is better. The range of the colours is at least the median width of the intervals.{note} "
        f"All values with their intervals are in leaderboards/{run.task.name}/{run.plan.request.name}-regions.csv.",
        plots.heat_maps(
            {name: {row: panels[name][row] for row in order if row in panels[name]} for name in chosen},
            lower_is_better=[name for name in chosen if run.facts[name].direction == "lower"],
        ),
        broad=True,
        section="Regions",
    )


def _shown_first(run: Results, panels: Panels) -> list[str]:
    """Metrics with a value and a direction, in the order: objective, metrics of the console, others."""
    directed = [
        name
        for name, rows in panels.items()
        if run.facts[name].direction in ("higher", "lower")
        and any(math.isfinite(score.value) for row in rows.values() for score in row.values())
    ]
    first = [name for name in (run.objective, *run.task.shown) if name in directed]
    return list(dict.fromkeys([*first, *directed]))[:_MOST_METRICS]
