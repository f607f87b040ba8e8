"""Figures of the leaderboard: the ranking, values across problems, and the value of every subject."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.core.types import Score
from harness.pipeline.leaderboard import read_facts
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MOST_PANELS, Results, note_on_marks

__all__ = ["leaderboard_figures"]


def leaderboard_figures(run: Results) -> Iterator[Figure]:
    """The ranking, the objective across problems, and every subject for each problem with several configurations."""
    if not run.lines:
        return
    how = f"{run.objective}, pooled over subjects," if run.pooled else f"Mean {run.objective} over subjects"
    yield Figure(
        "Ranking",
        f"{how} of each configuration, with 95 % interval.{note_on_marks(list(run.labels.values()))}",
        plots.objective_intervals(run.tables.prediction),
        section="Leaderboard",
    )
    yield from _across_problems(run)
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


def _across_problems(run: Results) -> Iterator[Figure]:
    """The objective against each axis that poses the problem, one line per answer."""
    facts = read_facts(run.tables.prediction)
    for axis in (name for name in facts.strata if name in facts.axes):
        lines = {label: values for label, values in _answers(run, axis).items() if len(values) > 1}
        if not lines:
            continue
        low, high = facts.metric(run.objective).range
        yield Figure(
            f"{run.objective} across {axis}",
            f"One line per configuration, over the values of {axis}, with 95 % intervals. Ranks hold within one value. "
            "A line that falls less than the others belongs to the configuration that loses least.",
            plots.curves({run.objective: lines}, x_label=axis, limits=(low if math.isfinite(low) else -0.1, high)),
            section="Leaderboard",
        )


def _answers(run: Results, axis: str) -> dict[str, dict[float | str, Score]]:
    """Scores by the other axes of a configuration, and by the value of one axis, in order."""
    found: dict[str, dict[float | str, Score]] = {}
    axes = read_facts(run.tables.prediction).axes
    varying = [name for name in axes if name != axis and len({str(line[name]) for line in run.lines.values()}) > 1]
    known = {key: line for key, line in run.lines.items() if line[axis] is not None}
    numbers = all(isinstance(line[axis], int | float) for line in known.values())
    order = sorted(known, key=lambda key: known[key][axis] if numbers else str(known[key][axis]))
    for key in order:
        line = known[key]
        parts = [f"{line[name]}" if len(varying) == 1 else f"{name}={line[name]}" for name in varying]
        setting = float(line[axis]) if numbers else str(line[axis])
        found.setdefault(", ".join(parts) or run.objective, {})[setting] = run.score(key, run.objective)
    return found
