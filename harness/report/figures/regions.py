"""Figures by region of the brain, or by target where several are predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.core.types import Score
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import Results, score_in

__all__ = ["region_figures"]

_MOST_METRICS = 4


def region_figures(run: Results) -> Iterator[Figure]:
    """A heat map of configurations and regions per metric, of the metrics that are shown first."""
    by_metric: dict[str, dict[str, dict[str, Score]]] = {}
    missing = False
    for line in run.tables.regions.to_pylist():
        if line["configuration"] in run.lines and not line["attribution"]:
            row = by_metric.setdefault(line["metric"], {}).setdefault(run.labels[line["configuration"]], {})
            row[line["region"]] = score_in(line, "value", bounds=("low", "high"))
            missing |= line["missing"] > 0
    chosen = _shown_first(run, by_metric)
    if not chosen:
        return
    order = [run.labels[key] for key in run.lines]
    panels = {name: {row: by_metric[name][row] for row in order if row in by_metric[name]} for name in chosen}
    what = "Each score alone" if run.task.summed else "Mean over subjects within each region of the label image"
    said = " A subject without a value in a region (no lesion there) is not in its mean." if missing else ""
    yield Figure(
        "By score" if run.task.summed else "By region",
        f"{what}; darker is better.{said} All regions and metrics with their intervals are in "
        f"leaderboards/{run.task.name}/{run.plan.request.name}-regions.csv.",
        plots.heat_maps(panels, lower_is_better=[name for name in chosen if run.facts[name].direction == "lower"]),
        broad=True,
        section="Regions",
    )


def _shown_first(run: Results, by_metric: dict[str, dict[str, dict[str, Score]]]) -> list[str]:
    """Metrics with a value and a better end: the objective, those of the screen, the others."""
    directed = [
        name
        for name, rows in by_metric.items()
        if run.facts[name].direction in ("higher", "lower")
        and any(math.isfinite(score.value) for row in rows.values() for score in row.values())
    ]
    first = [name for name in (run.objective, *run.task.shown) if name in directed]
    return list(dict.fromkeys([*first, *directed]))[:_MOST_METRICS]
