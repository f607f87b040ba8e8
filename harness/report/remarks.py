"""What a verdict cannot say, for simulated and measured targets."""

from __future__ import annotations

from harness.core.registry import MODELS
from harness.pipeline.cell import restored
from harness.sweep.plan import Plan

__all__ = ["UNRANKED", "remarks"]

UNRANKED = "{} ranks predictions, not maps: the best prediction need not have the best map."
"""Remark on maps without a known truth, with the objective."""


def remarks(plan: Plan) -> list[str]:
    """Sentences that follow the verdict of a run.

    Returns
    -------
    list of str
        For simulated scores, that models may be ordered differently on measured ones, and
        which models assume what is simulated; for measured targets with one value per
        sample and explanations, that maps are not ranked.
    """
    task = plan.request.task
    cohorts = [group.cohort for group in plan.groups.values()]
    found = []
    if any(cohort.truth is not None for cohort in cohorts):
        assuming = "".join(f" {name} assumes {what}." for name, what in _assumptions(plan).items())
        found.append(
            "Scores are simulated from the lesion loads of a few regions; what leads here need not lead on measured "
            f"scores.{assuming}"
        )
    measured = any(cohort.truth is None and all(one.of_sample for one in cohort.targets) for cohort in cohorts)
    if measured and task.explanations:
        found.append(UNRANKED.format(task.objective))
    return found


def _assumptions(plan: Plan) -> dict[str, str]:
    """Assumptions of the models of a run on the targets, by model, where a model declares them."""
    names = dict.fromkeys(MODELS.name_of(restored(one).model.func) for one in plan.configurations)
    facts = {name: MODELS.get(name).facts.get("assumes") for name in names}
    return {name: str(what) for name, what in facts.items() if what}
