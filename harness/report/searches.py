"""Results of hyper-parameter searches."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.task import Configuration
from harness.pipeline.cell import Job
from harness.report.elements import ReportTable
from harness.report.wording import interval_text, plain_text
from harness.sweep.plan import Plan
from harness.tuning.search import Chosen, chosen_of
from harness.tuning.spaces import short

__all__ = ["searches_table", "winners"]


def winners(plan: Plan) -> list[tuple[Configuration, str, Chosen]]:
    """Results of the searches of a run: configuration, description of the trainings served, and choice.

    Returns
    -------
    list
        In the order of the leaderboard's rows; empty without searches, or before the
        first has ended.
    """
    rows = {one.id: one for one in plan.configurations}
    served: dict[tuple[str, str], list[Job]] = {}
    chosen: dict[str, Chosen] = {}
    for job in plan.jobs:
        one = chosen_of(plan.store, job.configuration)
        if one is not None:
            chosen[one.identity] = one
            served.setdefault((job.row, one.identity), []).append(job)
    return [(rows[row], _served(plan, own), chosen[identity]) for (row, identity), own in served.items()]


def _served(plan: Plan, jobs: Sequence[Job]) -> str:
    """Folds and seeds as text."""
    first = jobs[0]
    if len(jobs) > 1 and len(jobs) == sum(one.row == first.row for one in plan.jobs):
        return "all folds and seeds"
    return ", ".join(f"fold {one.fold} seed {one.seed}" for one in jobs)


def searches_table(found: Sequence[tuple[Configuration, str, Chosen]]) -> ReportTable:
    """Table with one row per search: the chosen values and their inner validation value.

    Parameters
    ----------
    found : results from :func:`winners`
    """
    axes = list(dict.fromkeys(name for configuration, _, _ in found for name in configuration.axes))
    keys = list(dict.fromkeys(key for _, _, chosen in found for key in chosen.values))
    lines = []
    for configuration, where, chosen in found:
        states = [trial.state for trial in chosen.trials]
        lines.append(
            (
                *(plain_text(configuration.axes.get(name, "")) for name in axes),
                where,
                *(short(chosen.values[key]) if key in chosen.values else "" for key in keys),
                interval_text(chosen.value),
                f"{len(states)} ({states.count('stopped')} stopped, {states.count('failed')} failed)",
            )
        )
    note = (
        "A search uses only training subjects of its fold, or subjects that are excluded from the evaluation, so test "
        "subjects do not influence it. The inner validation value is that of the best candidate. It is optimistic and "
        "not an estimate of performance."
    )
    columns = (*axes, "searched for", *keys, "inner validation", "candidates")
    return ReportTable("Values chosen by the searches", columns, tuple(lines), note)
