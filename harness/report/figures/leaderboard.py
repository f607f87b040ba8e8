"""Figures of the leaderboard: the ranking, and every subject's value."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MOST_PANELS, Results, note_on_marks

__all__ = ["leaderboard_figures"]


def leaderboard_figures(run: Results) -> Iterator[Figure]:
    """The ranking, and of each problem with several configurations a line per subject."""
    if not run.lines:
        return
    how = f"{run.objective}, pooled over subjects," if run.pooled else f"Mean {run.objective} over subjects"
    yield Figure(
        "Ranking",
        f"{how} of each configuration, with its 95 % interval.{note_on_marks(list(run.labels.values()))}",
        plots.objective_intervals(run.tables.prediction),
        section="Leaderboard",
    )
    if run.pooled:
        return  # subjects have pseudo-values, by which configurations are compared, and no values of their own
    for problem, keys in run.problems.items():
        values = {run.labels[key]: run.values(key, run.objective) for key in keys}
        if len(values) > 1 and any(values.values()):
            yield Figure(
                f"Every subject{f', {problem}' if problem else ''}",
                f"One line per subject, configurations from the best to the worst {run.objective}. Parallel lines: "
                "subjects differ, but the order of the configurations is the same for all. Crossing lines: it is not.",
                plots.subject_lines(values, quantity=run.objective),
                broad=len(values) > MOST_PANELS,
                section="Leaderboard",
            )
