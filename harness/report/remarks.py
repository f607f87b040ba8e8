"""What a verdict cannot say, for simulated and measured targets."""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.registry import MODELS
from harness.core.types import Cohort
from harness.metrics.register import inputs_of
from harness.pipeline.cell import restored
from harness.report.agreement import agreement_sentences
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["UNRANKED", "few_of_a_class", "remarks"]

_TRUTH = frozenset({"target", "rois", "exact", "nuisance"})  # inputs of metrics
_ENOUGH = 10  # subjects of each class; with fewer, the standard error of an AUC is above .07

UNRANKED = "{} ranks predictions, not maps: the best prediction need not have the best map."
"""Remark on maps without a known truth, with the objective."""


def remarks(plan: Plan, tables: Tables) -> list[str]:
    """Sentences that follow the verdict of a run.

    Parameters
    ----------
    plan, tables : the run and its tables

    Returns
    -------
    list of str
        For simulated scores, that models may be ordered differently on measured ones, and
        which models assume what is simulated; for targets with one value per sample and
        explanations, that maps are not ranked, unless a sample has a mask of what determines a
        target; for binary targets with fewer than ten subjects of a class, that nothing can be concluded;
        which metrics of explanations that do not read the truth order them as the ranking metric does.
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
    found += few_of_a_class(cohorts)
    truth = {name for name, one in task.metrics.items() if not _TRUTH.isdisjoint(inputs_of(one))}
    found += agreement_sentences(tables.explanation, tables.pooled, but=truth - {task.explanation_objective})
    if any(map(_is_unknown, cohorts)) and task.explanations:
        found.append(UNRANKED.format(task.objective))
    return found


def _is_unknown(cohort: Cohort) -> bool:
    """Whether nothing is known of the pixels or voxels that determine the targets."""
    known = any(sample.truth_of(one.name) is not None for sample in cohort.samples for one in cohort.targets)
    return cohort.truth is None and not known and all(one.of_sample for one in cohort.targets)


def few_of_a_class(cohorts: Iterable[Cohort]) -> list[str]:
    """Sentences on binary targets with so few subjects of one class that nothing can be concluded."""
    found: dict[str, None] = {}
    for cohort in cohorts:
        for target in (one for one in cohort.targets if one.kind == "binary"):
            positive = {one.subject for one in cohort.samples if one.targets[target.name] == 1}
            negative = {one.subject for one in cohort.samples if one.targets[target.name] == 0}
            label, fewest = min((("positive", positive), ("negative", negative)), key=lambda pair: len(pair[1]))
            if len(fewest) < _ENOUGH:
                text = f"Only {len(fewest)} of {len(cohort.subjects)} subjects are {label} in {target.name}"
                found[f"{text}: no value, and no difference between models, carries a conclusion."] = None
    return list(found)


def _assumptions(plan: Plan) -> dict[str, str]:
    """Assumptions of the models of a run on the targets, by model, where a model declares them."""
    names = dict.fromkeys(MODELS.name_of(restored(one).model.func) for one in plan.configurations)
    facts = {name: MODELS.get(name).facts.get("assumes") for name in names}
    return {name: str(what) for name, what in facts.items() if what}
