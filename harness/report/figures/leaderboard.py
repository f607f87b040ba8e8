"""Figures of the leaderboard: the ranking, and the value of every subject."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MOST_PANELS, Results, note_on_marks

__all__ = ["leaderboard_figures"]


def leaderboard_figures(run: Results) -> Iterator[Figure]:
    """The ranking, and one line per subject for each problem with several configurations."""
    if not run.lines:
        return
    how = f"{run.objective}, pooled over subjects," if run.pooled else f"Mean {run.objective} over subjects"
    yield Figure(
        "Ranking",
        f"{how} of each configuration, with 95 % interval.{note_on_marks(list(run.labels.values()))}",
        plots.objective_intervals(run.tables.prediction),
        section="Leaderboard",
    )
    if run.pooled:
        return  # subjects have only pseudo-values, which serve to compare configurations
    for problem, keys in run.problems.items():
        values = {run.labels[key]: run.values(key, run.objective) for key in keys}
        if len(values) > 1 and any(values.values()):
            yield Figure(
                f"Every subject{f', {problem}' if problem else ''}",
                f"One line per subject, configurations from the best to the worst {run.objective}. Parallel lines mean "
                "that the order of the configurations is the same for all subjects; crossing lines, that it differs.",
                plots.subject_lines(values, quantity=run.objective),
                broad=len(values) > MOST_PANELS,
                section="Leaderboard",
            )
