"""What hyper-parameter searches chose."""

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
    """What every search of a run chose: the row, the trainings that it served in words, and the choice.

    Returns
    -------
    list
        In the order of the rows; empty where nothing was searched, or no search
        has ended yet.
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
    """Folds and seeds in words."""
    first = jobs[0]
    if len(jobs) > 1 and len(jobs) == sum(one.row == first.row for one in plan.jobs):
        return "all folds and seeds"
    return ", ".join(f"fold {one.fold} seed {one.seed}" for one in jobs)


def searches_table(found: Sequence[tuple[Configuration, str, Chosen]]) -> ReportTable:
    """One line per search: the values that were chosen, and their score inside the fold.

    Parameters
    ----------
    found : of :func:`winners`
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
        "A search uses the training subjects of its own fold, or subjects that are left out here; no tested subject "
        "influences it. The value is that of the best candidate on the inner validation set. It is optimistic and does "
        "not estimate performance."
    )
    columns = (*axes, "searched for", *keys, "inner validation", "candidates")
    return ReportTable("Values chosen by the searches", columns, tuple(lines), note)
