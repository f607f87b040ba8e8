"""The pool stage: everything across subjects, folds and seeds of one configuration.

Computed from the store alone and kept there, keyed by the configuration and by
the identities of the cells that went in.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.identity import identify
from harness.core.registry import METRICS, MODELS
from harness.core.seeding import generator
from harness.core.task import Component, Configuration, Task
from harness.core.types import JSON, Array, Cohort, Score
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate, evaluate_ceiling
from harness.pipeline.cell import Cell, Job, attributions_of, digest, is_grouped, restored
from harness.pipeline.group_maps import score_group
from harness.pipeline.rows import MetricFacts, Row, Values, score_from_json, score_to_json
from harness.pipeline.score import level_of
from harness.stats.intervals import bootstrap_interval, jackknife_interval, pseudo_values
from harness.storage.store import CellRecord, Store, write_json, write_record

__all__ = ["Pooled", "metric_facts", "pool"]

_DRAWS = 2000
_MANY = 100  # subjects from which pooled metrics, all smooth, have the jackknife's interval at a third of the cost


@dataclass(frozen=True)
class Pooled:
    """One configuration's rows.

    Parameters
    ----------
    prediction : the row of its predictions
    explanations : one row per attribution
    regions : region, or name of a score → rows, of predictions first
    """

    prediction: Row
    explanations: tuple[Row, ...]
    regions: Mapping[str, tuple[Row, ...]]


def metric_facts(task: Task, levels: Sequence[str]) -> tuple[MetricFacts, ...]:
    """What a task's metrics mean, with the chance rows that stand beside them."""
    found = []
    pooled = ("pool", "explanation") if is_grouped(task) else ("pool",)
    for label, part in task.metrics.items():
        if level_of(part) not in levels:
            continue
        entry = METRICS.get(METRICS.name_of(part.func))
        low, high = entry.facts["range"]
        found.append(
            MetricFacts(
                label,
                direction=entry.facts["direction"],
                range=(low, high),
                # A ceiling that the data set is unknown where they do not; the end of the range is not it.
                ceiling=_ceiling(entry.facts["direction"], low, high) if entry.facts["ceiling"] is None else math.nan,
                level="pooled" if level_of(part) in pooled else "subject",
                source=entry.source,
                summary=entry.summary,
            )
        )
    return tuple(found)


def pool(
    configuration: Configuration,
    jobs: Sequence[Job],
    cohort: Cohort,
    store: Store,
    *,
    facts: Mapping[str, JSON],
) -> Pooled:
    """Pool one configuration.

    Parameters
    ----------
    jobs : all its trainings with all their cells, done or not
    cohort : holds the truth that explanations of a group are judged by
    facts : further columns of every row
    """
    task = restored(configuration)
    axes = dict(configuration.axes)
    cells = [cell for job in jobs for cell in job.cells]
    counts = {
        "folds": len({job.fold for job in jobs}),
        "seeds": len({job.seed for job in jobs}),
        "train_s": _seconds(store, [cell for cell in cells if cell.stage == "train"]),
    }
    grouped = is_grouped(task)
    tested = sorted({name for job in jobs for name in job.split.test})

    # Scores are averaged after they were pooled: one R² each, not one of all numbers together.
    scores = [cell for cell in cells if cell.stage == "score" and not cell.label]
    whole, by_region = _values(store, scores)
    parts = list(by_region.values()) if grouped else [whole]
    pooled, paired = _pooled(task, configuration, scores, parts, store)
    of_regions = {
        name: _pooled(task, configuration, scores, [values], store, region=name)[0]
        for name, values in by_region.items()
    }
    known = _known_of(task, [pooled, *of_regions.values()])

    def row(label: str, values: Values, pooled: Mapping[str, Score], **more: JSON) -> Row:
        wanted = [cell for cell in cells if cell.label in ("", label)]
        complete, flags = _state(store, wanted)
        flags += known
        # What explains a collapsed network is flagged like its predictions.
        for one in dict.fromkeys(("", label)):
            stage = "explain" if grouped and one else "score"
            flags += _flags(store, [cell for cell in cells if cell.stage == stage and cell.label == one])
        if _any_reused(store, wanted):
            flags += ("older code accepted",)
        return Row(configuration.id, axes, label, values, pooled, {**facts, **counts, **more}, complete, flags)

    prediction = row("", {**whole, **paired}, pooled)
    regions = {name: [row("", values, of_regions[name])] for name, values in by_region.items()}
    explanations = []
    for label in attributions_of(task):
        own = [cell for cell in cells if cell.stage == "explain" and cell.label == label]
        seconds = _seconds(store, own)
        if grouped:
            found = score_group(task, configuration, label, own, cohort, store, tested=tested)
            explanations.append(row(label, found.paired, found.whole, explain_s=seconds))
            for name, by_metric in found.by_output.items():
                regions.setdefault(name, []).append(row(label, {}, by_metric, explain_s=seconds))
        else:
            own = [cell for cell in cells if cell.stage == "score" and cell.label == label]
            explanations.append(row(label, _values(store, own)[0], {}, explain_s=seconds))
    return Pooled(prediction, tuple(explanations), {name: tuple(rows) for name, rows in regions.items()})


def _known_of(task: Task, pooled: Sequence[Mapping[str, Score]]) -> tuple[str, ...]:
    """What a reader must know of a configuration whatever its cells say; its mean may hide what one score shows."""
    flags = []
    if MODELS.get(MODELS.name_of(task.model.func)).facts.get("oracle"):
        flags.append("oracle: the model is told what the task hides")
    found = [(label, score) for one in pooled for label, score in one.items() if label in task.metrics]
    if any(METRICS.name_of(task.metrics[label].func) == "r2" and score.value < -1 for label, score in found):
        flags.append("scale fault: R² below -1 cannot come from overfitting alone")
    return tuple(flags)


def _values(store: Store, cells: Sequence[Cell]) -> tuple[Values, dict[str, Values]]:
    """metric → subject → seed → mean over the subject's samples, whole and per region."""
    whole: dict[str, dict[str, dict[int, list[float]]]] = {}
    regions: dict[str, dict[str, dict[str, dict[int, list[float]]]]] = {}

    def put(
        into: dict[str, dict[str, dict[int, list[float]]]], values: Mapping[str, float | None], subject: str, seed: int
    ) -> None:
        for metric, value in values.items():
            number = math.nan if value is None else value
            into.setdefault(metric, {}).setdefault(subject, {}).setdefault(seed, []).append(number)

    for cell in cells:
        record = store.get(cell.stage, cell.identity)
        if record is None:
            continue
        for scored in json.loads(store.artifact(record, "values.json").read_text()).values():
            put(whole, scored["values"], scored["subject"], cell.seed)
            for region, values in scored["regions"].items():
                put(regions.setdefault(region, {}), values, scored["subject"], cell.seed)
    return _means(whole), {region: _means(values) for region, values in regions.items()}


def _means(values: Mapping[str, Mapping[str, Mapping[int, list[float]]]]) -> Values:
    return {
        metric: {
            subject: {seed: _mean(several) for seed, several in by_seed.items()}
            for subject, by_seed in by_subject.items()
        }
        for metric, by_subject in values.items()
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _pooled(
    task: Task,
    configuration: Configuration,
    cells: Sequence[Cell],
    parts: Sequence[Values],
    store: Store,
    *,
    region: str = "",
) -> tuple[dict[str, Score], Values]:
    """Pooled metrics, from the store where they were computed before; in a region those that are regional.

    Parameters
    ----------
    parts : values of which a metric is the mean of one each, e.g. of several scores

    Returns
    -------
    metric → score, and of the objective, if it is pooled, a value per subject
    (:func:`~harness.stats.intervals.pseudo_values`), by which configurations are compared in pairs
    """
    labels = [label for label, part in task.metrics.items() if level_of(part) == "pool"]
    labels = [label for label in labels if not region or label in task.regional]
    done = [cell.identity for cell in cells if store.get(cell.stage, cell.identity) is not None]
    if not labels or not done or not parts:
        return {}, {}
    identity = identify(
        {
            "stage": "pool",
            "configuration": configuration.id,
            "region": region,
            "cells": sorted(done),
            "metrics": {label: configuration.task["metrics"][label] for label in labels},
            "objective": task.objective,
            "code": digest("pool", task),
        }
    )
    record = store.get("pool", identity)
    if record is None:
        subjects, tables = _tables(parts)
        found = {label: _pooled_score(task.metrics[label], tables, len(subjects), label) for label in labels}
        paired: dict[str, dict[str, float]] = {}
        if task.objective in labels and not region:
            paired = {task.objective: dict(zip(subjects, _pairs(task, tables, len(subjects)), strict=True))}
        content = {"scores": {label: score_to_json(score) for label, score in found.items()}, "paired": paired}
        with tempfile.TemporaryDirectory() as name:
            write_json(Path(name) / "pooled.json", content)
            record = CellRecord(identity, "pool", "done", configuration.id, -1, -1)
            write_record(Path(name), record)
            record = store.commit(Path(name))
    read = json.loads(store.artifact(record, "pooled.json").read_text())
    pairs = {
        metric: {subject: {0: float(value)} for subject, value in by_subject.items()}
        for metric, by_subject in read["paired"].items()
    }
    return {label: score_from_json(score) for label, score in read["scores"].items()}, pairs


def _tables(parts: Sequence[Values]) -> tuple[list[str], list[dict[str, Array]]]:
    """Columns (n,) of each part and seed, and the n subjects in order.

    A value that is only sometimes known (a chance level) is NaN for the other subjects.
    """
    subjects = list(dict.fromkeys(one for values in parts for by_subject in values.values() for one in by_subject))
    seeds = sorted(
        {seed for values in parts for by_subject in values.values() for one in by_subject.values() for seed in one}
    )
    tables = [
        {
            metric: np.array([by_subject.get(subject, {}).get(seed, math.nan) for subject in subjects])
            for metric, by_subject in values.items()
        }
        for values in parts
        for seed in seeds
    ]
    return subjects, tables


def _statistic(part: Component, tables: Sequence[Mapping[str, Array]]) -> Callable[[Array], float]:
    """Subjects, by number, → the mean of a pooled metric over the tables.

    The order of subjects means nothing, so draws of the same subjects share one
    evaluation: six subjects have 462 different draws.
    """
    known: dict[bytes, float] = {}

    def statistic(subjects: Array) -> float:
        drawn = np.sort(subjects.astype(int))
        key = drawn.tobytes()
        if key not in known:
            columns = ({name: column[drawn] for name, column in table.items()} for table in tables)
            known[key] = float(np.mean([evaluate(part, MetricInputs(columns=one)) for one in columns]))
        return known[key]

    return statistic


def _pooled_score(part: Component, tables: Sequence[Mapping[str, Array]], count: int, label: str) -> Score:
    """A pooled metric with its interval over whole subjects: bootstrap, or where they are many the jackknife."""
    statistic = _statistic(part, tables)
    ceiling = float(np.mean([evaluate_ceiling(part, MetricInputs(columns=one)) for one in tables]))
    if not METRICS.get(METRICS.name_of(part.func)).facts["interval"]:
        return Score(statistic(np.arange(count)), math.nan, math.nan, count, ceiling=ceiling)
    if count >= _MANY:
        value = statistic(np.arange(count))
        found = jackknife_interval(pseudo_values(statistic, count), value)
        return Score(value, found.low, found.high, count, se=found.se, ceiling=ceiling)
    interval = bootstrap_interval(statistic, [np.arange(count)], rng=generator(0, "pool", label), draws=_DRAWS)
    return Score(interval.value, interval.low, interval.high, interval.n, missing=interval.missing, ceiling=ceiling)


def _pairs(task: Task, tables: Sequence[Mapping[str, Array]], count: int) -> list[float]:
    return [float(value) for value in pseudo_values(_statistic(task.metrics[task.objective], tables), count)]


def _state(store: Store, cells: Sequence[Cell]) -> tuple[bool, tuple[str, ...]]:
    """Whether all cells are done, and in words what is not."""
    undone = [cell for cell in cells if store.get(cell.stage, cell.identity) is None]
    failures = [failure for cell in undone if (failure := store.failure(cell.identity)) is not None]
    flags = []
    if failures:
        flags.append(f"failed: {len(failures)} of {len(cells)} cells, {failures[0].error}")
    elif undone:
        flags.append(f"incomplete: {len(cells) - len(undone)} of {len(cells)} cells")
    return not undone, tuple(flags)


def _flags(store: Store, cells: Sequence[Cell]) -> tuple[str, ...]:
    """What score cells flag, counted."""
    records = [record for cell in cells if (record := store.get(cell.stage, cell.identity)) is not None]
    flags = [flag for record in records for flag in record.facts.get("flags", [])]
    return tuple(f"{flag} in {flags.count(flag)} of {len(records)} cells" for flag in sorted(set(flags)))


def _any_reused(store: Store, cells: Sequence[Cell]) -> bool:
    records = (store.get(cell.stage, cell.identity) for cell in cells)
    return any(record is not None and record.reused_code for record in records)


def _seconds(store: Store, cells: Sequence[Cell]) -> float:
    """Mean seconds of a cell."""
    seconds = [record.seconds for cell in cells if (record := store.get(cell.stage, cell.identity)) is not None]
    return round(float(np.mean(seconds)), 2) if seconds else math.nan


def _ceiling(direction: str, low: float, high: float) -> float:
    return {"higher": high, "lower": low, "zero": 0.0}.get(direction, math.nan)
