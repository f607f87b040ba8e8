"""The report's figures, drawn from the store: a module per section.

Nothing here knows a task: a figure is drawn where the task's metrics, images
and attributions have what it shows, and is left out where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.report.elements import Figure
from harness.report.figures.agreement import agreement_figures
from harness.report.figures.channels import gain_figures, share_figures
from harness.report.figures.configuration import figures_of_one
from harness.report.figures.detection import detection_figures
from harness.report.figures.examples import example_figures
from harness.report.figures.explanations import group_map_figures, map_figures, method_figures
from harness.report.figures.leaderboard import leaderboard_figures
from harness.report.figures.regions import region_figures
from harness.report.figures.results import Results
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["figures_of", "figures_of_one"]

_IN_ORDER: Sequence[Callable[[Results], Iterator[Figure]]] = (
    leaderboard_figures,
    detection_figures,
    agreement_figures,
    region_figures,
    group_map_figures,
    example_figures,
    method_figures,
    gain_figures,
    share_figures,
    map_figures,
)


def figures_of(plan: Plan, tables: Tables) -> list[Figure]:
    """Every figure that the rows, the metrics and the stored images allow, in order.

    Parameters
    ----------
    plan : of a run, or recalled
    tables : pooled from its store
    """
    run = Results(plan, tables)
    return [figure for draw in _IN_ORDER for figure in draw(run)]
