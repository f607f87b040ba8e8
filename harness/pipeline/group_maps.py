"""Group-level explanations: sums of maps over samples, compared with the truth.

Where no single image covers a region, the map of one subject shows little of what a
model has learned. The sum over the test subjects of all folds shows it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from harness.attribution.linear_maps import exact_map, windowed
from harness.core.identity import code_digest, identify
from harness.core.registry import ATTRIBUTIONS, METRICS, MODELS, POSTPROCESSINGS
from harness.core.seeding import generator
from harness.core.task import Component, Configuration, Task
from harness.core.types import JSON, Adapter, Array, Cohort, Score, Truth
from harness.data.maps import read_sums
from harness.metrics.localisation import pearson_between
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate, evaluate_chance, inputs_of
from harness.pipeline.cell import Cell, digest
from harness.pipeline.pooled import cached
from harness.pipeline.rows import Values, null_of, number_of, score_from_json, score_to_json
from harness.pipeline.score import labels_of
from harness.stats.intervals import (
    Range,
    Training,
    jackknife_interval,
    pseudo_values,
    takes_training_in,
    with_training,
)
from harness.storage.store import CellRecord, Store, write_json, write_record

__all__ = [
    "Agreement",
    "GroupScores",
    "agreement",
    "exact_group_map",
    "group_sums",
    "group_values",
    "mask_counts",
    "score_group",
    "target_mask",
    "training_of",
]


@dataclass(frozen=True)
class GroupScores:
    """Scores of the group map of one attribution and configuration.

    Parameters
    ----------
    whole : means over the outputs, by metric
    by_output : scores by output and metric
    paired : pseudo-values of the ranking metric per fold or block of subjects, for paired
        comparisons of attributions
    paired_by_output : the same for each output
    by_fold : whether intervals and pseudo-values are by fold, so that they include the
        variation of trainings (:func:`~harness.stats.intervals.with_training`)
    """

    whole: Mapping[str, Score] = field(default_factory=dict)
    by_output: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    paired: Values = field(default_factory=dict)
    paired_by_output: Mapping[str, Values] = field(default_factory=dict)
    by_fold: bool = False


def score_group(
    task: Task,
    configuration: Configuration,
    label: str,
    records: Mapping[Cell, CellRecord],
    cohort: Cohort,
    store: Store,
    *,
    all_folds: bool,
) -> GroupScores:
    """Evaluate the metrics of explanations on the sum of the maps of all finished folds.

    Parameters
    ----------
    label : label of the explanation
    records : its finished explain cells of all folds and seeds, with their records
    cohort : cohort with the truth; without truth, metrics that need it have no value
    all_folds : whether the records are of all folds of a cross-validation, so that
        intervals may be by fold

    Returns
    -------
    GroupScores
        Scores, with jackknife intervals over folds or, if these are too few, too many or
        too small, over blocks of subjects, given the trained models. Several seeds are
        averaged. Scores are stored per metric, under an identity that depends on its code,
        the cells (whose identities include their samples) and the truth.
    """
    labels = labels_of(task, "explanation")
    if not records or not labels:
        return GroupScores()
    explained = {name for record in records.values() for name in record.facts["samples"]}
    by_fold = all_folds and _is_by_fold(records, cohort)
    data = identify(
        [by_fold, sorted(cell.identity for cell in records), cohort.truth.fingerprint if cohort.truth else ""]
    )
    metrics = [(name, _group_identity(task, configuration, name, data)) for name in labels]

    def compute(wanted: Sequence[str]) -> dict[str, JSON]:
        part = dataclasses.replace(cohort, samples=tuple(one for one in cohort.samples if one.id in explained))
        return group_values(task, label, records, cohort, part, store, wanted, by_fold=by_fold)

    group = identify({"row": configuration.id, "explanation": label})
    kept = cached(store, group, configuration.id, metrics, compute, label=label)
    outputs = dict.fromkeys(output for one in kept.values() for output in one["outputs"])
    return GroupScores(
        {name: score_from_json(one["whole"]) for name, one in kept.items()},
        {output: {name: score_from_json(one["outputs"][output]) for name, one in kept.items()} for output in outputs},
        _values_of(task, {name: one["paired"] for name, one in kept.items()}),
        {
            output: _values_of(task, {name: one["paired_outputs"].get(output, {}) for name, one in kept.items()})
            for output in outputs
        },
        by_fold,
    )


def _values_of(task: Task, paired: Mapping[str, Mapping[str, JSON]]) -> Values:
    """Pseudo-values of the ranking metric, by metric, fold or block, and seed."""
    return {
        name: {unit: {0: number_of(value)} for unit, value in units.items()}
        for name, units in paired.items()
        if name == task.explanation_objective
    }


def training_of(task: Task, label: str = "") -> Training:
    """What the trainings behind the predictions of a task depend on, or behind the maps of an explanation.

    Parameters
    ----------
    label : label of an explanation; empty for predictions
    """
    if label:
        method = ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(task.explained[label].attribution.func))
        if method.facts.get("control"):
            return "none"
    model = MODELS.get(MODELS.name_of(task.model.func))
    return "deterministic" if model.facts.get("fitted") else "random"


def _is_by_fold(records: Mapping[Cell, CellRecord], cohort: Cohort) -> bool:
    """Whether the explained subjects of each fold are enough for intervals that include the trainings."""
    subjects = {sample.id: sample.subject for sample in cohort.samples}
    of_fold: dict[int, set[str]] = {}
    for cell, record in records.items():
        of_fold.setdefault(cell.fold, set()).update(subjects[name] for name in record.facts["samples"])
    return takes_training_in([len(one) for one in of_fold.values()])


def _group_identity(task: Task, configuration: Configuration, metric: str, data: str) -> str:
    return identify(
        {
            "stage": "pool",
            "metric": configuration.task["metrics"][metric],
            "data": data,
            "paired": metric == task.explanation_objective,
            "code": digest("pool", task, metric),
        }
    )


@dataclass(frozen=True)
class Agreement:
    """Similarity of two maps of one output.

    Parameters
    ----------
    output : name of the output
    first, second : labels of attributions
    pearson : correlation of their group maps over all voxels
    """

    output: str
    first: str
    second: str
    pearson: float


def agreement(
    configuration: Configuration, cells: Sequence[Cell], store: Store, *, labels: Sequence[str]
) -> tuple[Agreement, ...]:
    """Pearson correlations between the group maps of each pair of attributions, per output.

    Parameters
    ----------
    cells : explain cells of a configuration, of which the first seed is used
    labels : attributions to compare, in order

    Returns
    -------
    tuple of Agreement
        Without attributions that have no finished cell. Stored.
    """
    own = [cell for cell in cells if cell.label in labels]
    records = {cell: record for cell in own if (record := store.get("explain", cell.identity)) is not None}
    if not records:
        return ()
    first = min(cell.seed for cell in records)
    records = {cell: record for cell, record in records.items() if cell.seed == first}
    identity = identify(
        {
            "stage": "pool",
            "agreement": list(labels),
            "configuration": configuration.id,
            "cells": sorted(cell.identity for cell in records),
            "code": code_digest([__name__]),
        }
    )
    record = store.get("pool", identity)
    if record is None:
        maps: dict[str, dict[str, Array]] = {}
        for label in dict.fromkeys(cell.label for cell in records):
            outputs, sums = group_sums({cell: one for cell, one in records.items() if cell.label == label}, store)
            maps[label] = dict(zip(outputs, sums.sum(axis=0, dtype=np.float64), strict=True))
        found = [
            dataclasses.asdict(Agreement(output, one, other, pearson_between(maps[one][output], maps[other][output])))
            for one, other in combinations([label for label in labels if label in maps], 2)
            for output in maps[one]
        ]
        with tempfile.TemporaryDirectory() as name:
            write_json(Path(name) / "agreement.json", [{key: null_of(v) for key, v in one.items()} for one in found])
            record = CellRecord(identity, "pool", "done", configuration.id, -1, -1)
            write_record(Path(name), record)
            record = store.commit(Path(name))
    read = json.loads(store.artifact(record, "agreement.json").read_text("utf-8"))
    return tuple(Agreement(**{**one, "pearson": number_of(one["pearson"])}) for one in read)


def group_sums(records: Mapping[Cell, CellRecord], store: Store) -> tuple[tuple[str, ...], Array]:
    """Block sums of the maps of one attribution and seed, folds in order.

    Parameters
    ----------
    records : its finished explain cells, with their records

    Returns
    -------
    outputs : tuple of str
        Names of the T outputs.
    sums : (B, T, C, X, Y, Z) float32
        Sums of the B blocks. Pictures have one slice.
    """
    outputs, parts = _fold_sums(records, store)
    return outputs, np.concatenate(parts)


def _fold_sums(records: Mapping[Cell, CellRecord], store: Store) -> tuple[tuple[str, ...], list[Array]]:
    """Names of the outputs, and the block sums of each fold, as in :func:`group_sums`."""
    ordered = [records[cell] for cell in sorted(records, key=lambda cell: cell.fold)]
    parts = [read_sums(store.artifact(record, "blocks.npz")) for record in ordered]
    return tuple(ordered[-1].facts["outputs"]), [part if part.ndim == 6 else part[..., None] for part in parts]


def target_mask(truth: Truth, output: str) -> Array:
    """True regions of a score, (X, Y, Z) bool.

    These are the regions with the largest weight in the score. If there is only one
    score, these are all regions with nonzero weight.
    """
    weights = truth.weights[output]
    largest = max(weights.values()) if len(truth.weights) > 1 else min(w for w in weights.values() if w > 0)
    masks = [truth.rois[name].load() for name, weight in weights.items() if weight >= largest * (1 - 1e-9)]
    found: Array = np.any(masks, axis=0)
    return found


def exact_group_map(truth: Truth, output: str, component: Component, counts: Array | None = None) -> Array | None:
    """Group map of an attribution for a model that computes a linear score exactly.

    Parameters
    ----------
    truth : truth of the cohort
    output : name of the score
    component : the attribution, which must declare its map of a linear model (``of_linear``)
    counts : (X, Y, Z) sum of the mask over the explained samples; over all by default

    Returns
    -------
    (X, Y, Z) float64 or None
        ``None`` if it is not known: the score is not linear in the mask, the baseline is
        not zero, or the attribution declares no such map.
    """
    shows = ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(component.func)).facts.get("of_linear", "")
    if not shows or not truth.linear or not np.all(np.asarray(component.keywords.get("baseline", 0.0)) == 0):
        return None
    weights = truth.weights[output]
    seen = truth.counts.load() if counts is None else counts
    masks = [truth.rois[name].load() for name in weights]
    exact = exact_map(np.ones_like(seen) if shows == "weights" else seen, masks, list(weights.values()))
    if shows == "windows":
        window, stride = component.keywords["window"], component.keywords["stride"]
        sides = exact.shape
        windows = [min(side, one) for side, one in zip(sides, _three(window), strict=True)]
        return windowed(exact, windows, [min(w, s) for w, s in zip(windows, _three(stride), strict=True)])
    return exact


def _three(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def mask_counts(cohort: Cohort, mask: str) -> Array:
    """Sum of one mask over the samples, (X, Y, Z) float64; partial volumes count as fractions."""
    total = np.zeros(int(np.prod(cohort.samples[0].shape)))
    for sample in cohort.samples:
        voxels, values = sample.masks[mask].voxels()
        total[voxels] += values
    return total.reshape(cohort.samples[0].shape)


def _explained_counts(cohort: Cohort, explained: Cohort) -> Array:
    """Sum over the explained samples of the mask that has the truth; cached when all were explained."""
    assert cohort.truth is not None
    if len(explained.samples) == len(cohort.samples):
        return cohort.truth.counts.load()
    return mask_counts(explained, cohort.truth.mask)


def group_values(
    task: Task,
    label: str,
    records: Mapping[Cell, CellRecord],
    cohort: Cohort,
    explained: Cohort,
    store: Store,
    labels: Sequence[str],
    *,
    by_fold: bool,
) -> dict[str, JSON]:
    """Values of each metric as JSON: per output, their mean, and paired values of the objective."""
    counts = None if cohort.truth is None else _explained_counts(cohort, explained)
    channels = tuple(next(iter(records.values())).facts["channels"])
    by_seed: list[dict[str, dict[str, _Measured]]] = []
    for seed in sorted({cell.seed for cell in records}):
        outputs, parts = _fold_sums({cell: one for cell, one in records.items() if cell.seed == seed}, store)
        sums = np.concatenate(parts)
        folds = np.repeat(np.arange(len(parts)), [len(part) for part in parts]) if by_fold else None
        by_seed.append(
            {
                output: _of_output(
                    task, label, output, sums[:, index], explained, counts, generator(seed, "group", label, output),
                    labels, channels, folds,
                )
                for index, output in enumerate(outputs)
            }
        )  # fmt: skip
    training = training_of(task, label)
    found: dict[str, JSON] = {}
    for metric in labels:
        component = task.metrics[metric]
        of_seeds = [{output: one[output][metric] for output in outputs} for one in by_seed]
        whole, pairs = _scored([_mean(list(one.values())) for one in of_seeds], component, training)
        alone = {output: _scored([one[output] for one in of_seeds], component, training) for output in outputs}
        ranks = metric == task.explanation_objective
        found[metric] = {
            "outputs": {output: score_to_json(score) for output, (score, _) in alone.items()},
            "whole": score_to_json(whole),
            "paired": _named_units(pairs, by_fold) if ranks else {},
            "paired_outputs": {output: _named_units(own, by_fold) for output, (_, own) in alone.items() if ranks},
        }
    return found


def _named_units(pairs: Array, by_fold: bool) -> dict[str, JSON]:
    unit = "fold" if by_fold else "block"
    return {f"{unit} {number:02d}": null_of(float(value)) for number, value in enumerate(pairs)}


@dataclass(frozen=True)
class _Measured:
    """A metric of the sum of maps of one seed.

    Parameters
    ----------
    score : its score, without an interval
    by_block : (B,) pseudo-values of the blocks of subjects; empty if the metric is undefined
    by_fold : (K,) pseudo-values of the folds; empty if intervals are by block
    """

    score: Score
    by_block: Array
    by_fold: Array


def _of_output(
    task: Task,
    label: str,
    output: str,
    blocks: Array,
    cohort: Cohort,
    counts: Array | None,
    rng: np.random.Generator,
    labels: Sequence[str],
    channels: tuple[str, ...],
    folds: Array | None,
) -> dict[str, _Measured]:
    """Each metric, from the blocks (B, C, X, Y, Z) of one output.

    There are pseudo-values by fold if the folds of the blocks are given, (B,).
    """
    truth = cohort.truth
    sample = cohort.samples[0]
    target = None if truth is None else target_mask(truth, output)
    rois = None if truth is None else np.stack([image.load() for image in truth.rois.values()])
    exact = None if truth is None or counts is None else _expected(task, cohort, output, label, counts)
    brain = None if truth is None else truth.counts.load() > 0  # voxels where any mask is not empty
    total = blocks.sum(axis=0, dtype=np.float64)

    def inputs(explanation: Array) -> MetricInputs:
        return MetricInputs(
            explanation=explanation,
            exact=None if exact is None else exact[0],
            target=target,
            rois=rois,
            brain=brain,
            spacing_mm=sample.spacing_mm,
            channels=channels,
            rng=rng,
        )

    unknown = {
        name
        for name, known in (("target", target), ("rois", rois), ("exact", exact), ("brain", brain))
        if known is None
    }
    found: dict[str, _Measured] = {}
    whole = inputs(total)
    left_out = [inputs(total - block) for block in blocks] if len(blocks) > 1 else []
    numbers = np.empty(0) if folds is None else np.unique(folds)
    without_fold = [inputs(total - blocks[folds == one].sum(axis=0, dtype=np.float64)) for one in numbers]
    perfect = None if exact is None else inputs(exact)
    for name in labels:
        metric = task.metrics[name]
        if unknown.intersection(inputs_of(metric)):
            found[name] = _Measured(Score(math.nan, math.nan, math.nan, 0), np.empty(0), np.empty(0))
            continue
        value = evaluate(metric, whole)
        ceiling = math.nan if perfect is None else evaluate(metric, perfect)
        chance = evaluate_chance(metric, whole)
        score = Score(value, math.nan, math.nan, len(cohort.subjects), chance=chance, ceiling=ceiling)
        found[name] = _Measured(score, _left_out(metric, value, left_out), _left_out(metric, value, without_fold))
    return found


def _left_out(metric: Component, value: float, without: Sequence[MetricInputs]) -> Array:
    """Jackknife pseudo-values of a metric from the maps without each unit."""

    def statistic(kept: Array) -> float:
        absent = np.setdiff1d(np.arange(len(without)), kept)
        return value if not absent.size else evaluate(metric, without[int(absent[0])])

    return pseudo_values(statistic, len(without))


def _expected(task: Task, cohort: Cohort, output: str, label: str, counts: Array) -> Array | None:
    """Map of an exact model, (1, X, Y, Z); ``None`` if the adapter or post-processing changes it."""
    adapter: Adapter = task.adapter()
    assert cohort.truth is not None
    explanation = task.explained[label]
    component, done = explanation.attribution, explanation.postprocess
    unchanged = all(one.unchanged for one in adapter.spec(cohort).inputs) and explanation.combine == "none"
    known = exact_group_map(cohort.truth, output, component, counts) if unchanged else None
    if known is None:
        return None
    exact = known[None]
    if done is None:
        return exact
    keeps = POSTPROCESSINGS.get(POSTPROCESSINGS.name_of(done.func)).facts.get("keeps_positive")
    return exact if keeps and exact.min() >= 0 else None


def _range_of(metric: Component) -> Range:
    found: Range = METRICS.get(METRICS.name_of(metric.func)).facts["range"]
    return found


def _mean(several: Sequence[_Measured]) -> _Measured:
    """Mean of a metric over maps of the same subjects, such as those of several outputs."""
    scores = [one.score for one in several]
    value, chance, ceiling = (
        float(np.mean([getattr(score, name) for score in scores])) for name in ("value", "chance", "ceiling")
    )
    score = Score(value, math.nan, math.nan, min(one.n for one in scores), chance=chance, ceiling=ceiling)
    return _Measured(
        score,
        np.mean([one.by_block for one in several], axis=0),
        np.mean([one.by_fold for one in several], axis=0),
    )


def _scored(by_seed: Sequence[_Measured], metric: Component, training: Training) -> tuple[Score, Array]:
    """Mean of a metric over seeds with its interval, and pseudo-values for comparisons with other maps.

    The comparisons are made as if test subjects added no error, because the maps share them.
    """
    mean = _mean(by_seed)
    own = compared = mean.by_block
    if mean.by_fold.size:
        error = float(own.std(ddof=1)) / math.sqrt(len(own))
        of_folds = np.stack([one.by_fold for one in by_seed])
        own = with_training(of_folds, error, training=training)
        compared = with_training(of_folds, training=training)
    interval = jackknife_interval(own, mean.score.value, range=_range_of(metric))
    reason = interval.reason if math.isfinite(mean.score.value) else ""
    score = dataclasses.replace(mean.score, low=interval.low, high=interval.high, se=interval.se, reason=reason)
    return score, compared
