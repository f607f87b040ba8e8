"""Figures of the report, drawn from the store; one module per section.

Figures do not depend on the task: a figure is drawn if the task's metrics, images and
attributions provide its data, and left out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.report.drawing import listed_errors
from harness.report.elements import Figure
from harness.report.figures.agreement import agreement_figures
from harness.report.figures.channels import gain_figures, share_figures
from harness.report.figures.configuration import figures_of_one
from harness.report.figures.detection import detection_figures
from harness.report.figures.examples import example_figures
from harness.report.figures.explanations import group_map_figures, map_figures, method_figures
from harness.report.figures.exposed import exposed_figures
from harness.report.figures.inversion import inversion_figures
from harness.report.figures.leaderboard import leaderboard_figures
from harness.report.figures.pictures import picture_figures
from harness.report.figures.regions import region_figures
from harness.report.figures.results import Results

__all__ = ["figures_of", "figures_of_one"]

_IN_ORDER: Sequence[tuple[str, Callable[[Results], Iterator[Figure]]]] = (
    ("ranking", leaderboard_figures),
    ("detection", detection_figures),
    ("agreement", agreement_figures),
    ("regions", region_figures),
    ("group maps", group_map_figures),
    ("examples", example_figures),
    ("exposed scalars", exposed_figures),
    ("attribution methods", method_figures),
    ("voxel inversion", inversion_figures),
    ("gain per channel", gain_figures),
    ("Shapley values", share_figures),
    ("maps", map_figures),
    ("pictures", picture_figures),
)


def figures_of(run: Results) -> tuple[list[Figure], list[str]]:
    """All figures for which a run has data, in order.

    Parameters
    ----------
    run : results of the run

    Returns
    -------
    list of Figure
        The figures. An error ends its section; the other sections are drawn.
    list of str
        Errors of drawing, one line per section.

    Raises
    ------
    StoreError
        If the store is damaged.
    """
    figures: list[Figure] = []
    failed: list[str] = []
    for section, draw in _IN_ORDER:
        with listed_errors(section, failed):
            for figure in draw(run):
                figures.append(figure)
    return figures, failed
