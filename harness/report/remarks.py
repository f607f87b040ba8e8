"""What a verdict cannot say, for simulated and measured targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from harness.core.registry import MODELS
from harness.core.types import Cohort
from harness.metrics.register import inputs_of
from harness.pipeline.cell import restored
from harness.pipeline.leaderboard import is_sound, read_facts
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.report.agreement import agreement_sentences
from harness.report.wording import interval_text, rankings, row_labels, typographic
from harness.stats.intervals import FOLDS, MINIMUM_SUBJECTS, paired_differences
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["UNRANKED", "ceiling_sentences", "few_of_a_class", "remarks"]

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
        which metrics of explanations that do not read the truth order them as the ranking metric does;
        if there is an oracle, its value, the distance of the leader from it, and for a
        generated cohort, that the values depend on the cohort drawn.
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
    found += _ceilings(plan, tables)
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


def _ceilings(plan: Plan, tables: Tables) -> list[str]:
    """Sentences on oracles: what can be reached, and how far the leader is from it."""
    rows = {key: pooled.prediction for key, pooled in tables.pooled.items()}
    if tables.by_target:
        found = [
            f"{target}: {sentence}"
            for target, table in tables.predictions_by_target.items()
            for sentence in ceiling_sentences(table, {})
        ]
    else:
        found = list(ceiling_sentences(tables.prediction, rows))
    seeds = {restored(one).phantom_seed for one in plan.configurations}
    if found and plan.request.settings.data_folder is None and len(seeds) == 1:
        experiment = "experiment=cohorts or " if "cohorts" in plan.request.task.experiments else ""
        found.append(
            "All values are of one generated cohort and depend on the cohort drawn, so that none of them is a result "
            f"by itself: {experiment}phantom_seed=0,1,2 shows how much they vary."
        )
    return found


def ceiling_sentences(table: pa.Table, rows: Mapping[str, Row]) -> Iterator[str]:
    """Sentences on the oracles of a leaderboard, one per oracle and ranking.

    Parameters
    ----------
    table : leaderboard from :func:`harness.pipeline.leaderboard.build`
    rows : its rows by configuration, for paired differences; without them, only values are
        compared

    Yields
    ------
    str
        The value of the oracle, and how far the first row of the ranking is from it, with
        the interval of the paired difference if there is one. Nothing for a table without rows.
    """
    if not table.num_rows:
        return
    facts = read_facts(table)
    labels = dict(zip(table["configuration"].to_pylist(), row_labels(table), strict=True))
    metric = facts.metric(facts.objective)
    for lines in rankings(table).values():
        leader = next((line for line in lines if is_sound(line)), None)
        for line in lines:
            value = line[metric.name]
            if not str(line["status"]).startswith("oracle") or value is None:
                continue
            score = _text(value, line.get(f"{metric.name}_low"), line.get(f"{metric.name}_high"))
            told = f"How far the ceiling is: the oracle {labels[line['configuration']]} has {metric.name} {score}"
            if leader is None:
                yield f"{told}; nothing else is ranked."
            else:
                distance = _distance(leader, line, rows, metric, facts.level)
                yield f"{told}; {labels[leader['configuration']]} is {distance}."


def _distance(
    leader: Mapping[str, Any], oracle: Mapping[str, Any], rows: Mapping[str, Row], metric: MetricFacts, level: float
) -> str:
    """How much worse or better than the oracle the leader is, with the interval of the paired difference."""
    sign = 1.0 if metric.direction == "higher" else -1.0
    short, low, high = sign * (oracle[metric.name] - leader[metric.name]), math.nan, math.nan
    pair = [rows.get(one["configuration"]) for one in (leader, oracle)]
    values = [subject_means(row, metric.name) for row in pair if row is not None]
    by_fold = {metric.name in row.by_fold for row in pair if row is not None}
    if len(values) == 2 and all(values) and len(by_fold) == 1:
        subjects = sorted(values[0].keys() & values[1].keys())
        found = paired_differences(
            [[sign * one[subject] for subject in subjects] for one in values],
            best=0,
            level=level,
            minimum=FOLDS[0] if True in by_fold else MINIMUM_SUBJECTS,
        )
        if math.isfinite(found.low[1]):
            short, low, high = (float(one[1]) for one in (found.difference, found.low, found.high))
    if short >= 0:
        text = f"{_text(short, low, high)} worse"
    else:
        text = f"{_text(-short, -high, -low)} better, so that this oracle is no ceiling"
    return f"{text} (paired difference, {100 * level:.0f} % interval)" if math.isfinite(low) else text


def _text(value: float, low: float | None = None, high: float | None = None) -> str:
    return typographic(interval_text(value, low, high))


def _assumptions(plan: Plan) -> dict[str, str]:
    """Assumptions of the models of a run on the targets, by model, where a model declares them."""
    names = dict.fromkeys(MODELS.name_of(restored(one).model.func) for one in plan.configurations)
    facts = {name: MODELS.get(name).facts.get("assumes") for name in names}
    return {name: str(what) for name, what in facts.items() if what}
