"""Judge explanations as sums over subjects: where a group's map lies, with the truth of all.

No single lesion map covers a region, so a map of one subject says little of what
a model has learned; summed over the tested subjects of all folds it does.
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

from harness.core.identity import identify
from harness.core.registry import ATTRIBUTIONS, POSTPROCESSINGS
from harness.core.seeding import generator
from harness.core.task import Component, Configuration, Task
from harness.core.types import JSON, Array, Cohort, Score, Truth, View
from harness.data.maps import read_sums
from harness.metrics.localisation import pearson_between
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import asks, evaluate, evaluate_chance
from harness.pipeline.cell import Cell, digest
from harness.pipeline.rows import Values, null_of, number_of, score_from_json, score_to_json
from harness.pipeline.score import labels_of
from harness.simulation.lesion_scores import ROI, exact_map, windowed
from harness.stats.intervals import jackknife_interval, pseudo_values
from harness.storage.store import CellRecord, Store, write_json, write_record

__all__ = [
    "Agreement",
    "GroupScores",
    "agreement",
    "exact_group_map",
    "group_sums",
    "lesion_counts",
    "score_group",
    "target_mask",
]


@dataclass(frozen=True)
class GroupScores:
    """How one attribution of one configuration does.

    Parameters
    ----------
    whole : metric → mean over the outputs
    by_output : output → metric → score
    paired : of the metric that ranks, a value per block of subjects, by which
        attributions are compared in pairs
    """

    whole: Mapping[str, Score] = field(default_factory=dict)
    by_output: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    paired: Values = field(default_factory=dict)


def score_group(
    task: Task,
    configuration: Configuration,
    label: str,
    cells: Sequence[Cell],
    cohort: Cohort,
    store: Store,
    *,
    tested: Sequence[str] = (),
) -> GroupScores:
    """Every metric of explanations, on the sum of the maps of all finished folds.

    Parameters
    ----------
    label : of the attribution
    cells : its explain cells, of all folds and seeds
    cohort : with the truth, if there is one; without it, metrics that need it have no value
    tested : ids of the samples that the folds explain, if not all

    Returns
    -------
    GroupScores
        Kept in the store by the identities of the cells and the truth. Intervals
        leave out one block of subjects at a time; several seeds are averaged.
    """
    done = [cell for cell in cells if store.get("explain", cell.identity) is not None]
    labels = labels_of(task, "explanation")
    if not done or not labels:
        return GroupScores()
    identity = identify(
        {
            "stage": "pool",
            "group": label,
            "configuration": configuration.id,
            "cells": sorted(cell.identity for cell in done),
            "truth": cohort.truth.fingerprint if cohort.truth else "",
            "metrics": {name: configuration.task["metrics"][name] for name in labels},
            "objective": task.explanation_objective,
            "code": digest("pool", task),
        }
    )
    record = store.get("pool", identity)
    if record is None:
        with tempfile.TemporaryDirectory() as name:
            write_json(Path(name) / "group.json", _scored(task, label, done, cohort, _of(cohort, tested), store))
            record = CellRecord(identity, "pool", "done", configuration.id, -1, -1, label)
            write_record(Path(name), record)
            record = store.commit(Path(name))
    read = json.loads(store.artifact(record, "group.json").read_text())
    return GroupScores(
        _scores(read["whole"]),
        {name: _scores(scores) for name, scores in read["outputs"].items()},
        {
            metric: {block: {0: number_of(value)} for block, value in blocks.items()}
            for metric, blocks in read["paired"].items()
        },
    )


@dataclass(frozen=True)
class Agreement:
    """How alike two maps of one output are.

    Parameters
    ----------
    output : name of the score
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
    """Pearson correlations between the group maps of every two attributions, output by output.

    Parameters
    ----------
    cells : explain cells of a configuration; the first seed counts
    labels : attributions to compare, in order

    Returns
    -------
    tuple of Agreement
        Without attributions of which no cell is done. Kept in the store.
    """
    done = [cell for cell in cells if cell.label in labels and store.get("explain", cell.identity) is not None]
    if not done:
        return ()
    first = min(cell.seed for cell in done)
    done = [cell for cell in done if cell.seed == first]
    identity = identify(
        {
            "stage": "pool",
            "agreement": list(labels),
            "configuration": configuration.id,
            "cells": sorted(cell.identity for cell in done),
        }
    )
    record = store.get("pool", identity)
    if record is None:
        maps: dict[str, dict[str, Array]] = {}
        for label in dict.fromkeys(cell.label for cell in done):
            outputs, sums = group_sums([cell for cell in done if cell.label == label], store)
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
    read = json.loads(store.artifact(record, "agreement.json").read_text())
    return tuple(Agreement(**{**one, "pearson": number_of(one["pearson"])}) for one in read)


def group_sums(cells: Sequence[Cell], store: Store) -> tuple[tuple[str, ...], Array]:
    """Block sums of one attribution and seed, folds in order.

    Returns
    -------
    names of the outputs, and (B, T, C, X, Y, Z) float32
    """
    outputs: tuple[str, ...] = ()
    sums = []
    for cell in sorted(cells, key=lambda cell: cell.fold):
        record = store.get("explain", cell.identity)
        if record is None:
            continue
        outputs = tuple(record.facts["outputs"])
        sums.append(read_sums(store.artifact(record, "blocks.npz")))
    return outputs, np.concatenate(sums)


def target_mask(truth: Truth, output: str) -> Array:
    """Where an explanation of a score should lie, (X, Y, Z) bool.

    The regions of its largest weight; of the only score, which all regions make, all that weigh anything.
    """
    weights = truth.weights[output]
    largest = max(weights.values()) if len(truth.weights) > 1 else min(w for w in weights.values() if w > 0)
    masks = [truth.rois[name].load() for name, weight in weights.items() if weight >= largest * (1 - 1e-9)]
    found: Array = np.any(masks, axis=0)
    return found


def exact_group_map(truth: Truth, output: str, part: Component, counts: Array | None = None) -> Array | None:
    """What an attribution shows of a model that computes a linear score exactly, summed over subjects.

    Parameters
    ----------
    part : the attribution; it says itself what it shows of a linear model
    counts : (X, Y, Z) lesions of the explained subjects; of all subjects by default

    Returns
    -------
    (X, Y, Z) float64 or None
        ``None`` where that is not known: the score is a curve of the load, the
        baseline is not zero, or the attribution does not say.
    """
    shows = ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(part.func)).facts.get("of_linear", "")
    if not shows or not truth.linear or not np.all(np.asarray(part.keywords.get("baseline", 0.0)) == 0):
        return None
    weights = truth.weights[output]
    rois = [ROI(name, (0, 0, 0), (0, 0, 0), truth.rois[name].load()) for name in weights]
    seen = truth.counts.load() if counts is None else counts
    exact = exact_map(np.ones_like(seen) if shows == "weights" else seen, rois, np.array(list(weights.values())))
    if shows == "windows":
        window, stride = part.keywords["window"], part.keywords["stride"]
        sides = exact.shape
        windows = [min(side, one) for side, one in zip(sides, _three(window), strict=True)]
        return windowed(exact, windows, [min(w, s) for w, s in zip(windows, _three(stride), strict=True)])
    return exact


def _three(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def _of(cohort: Cohort, tested: Sequence[str]) -> Cohort:
    """The samples that were explained."""
    known = set(tested) or {sample.id for sample in cohort.samples}
    return dataclasses.replace(cohort, samples=tuple(one for one in cohort.samples if one.id in known))


def lesion_counts(cohort: Cohort) -> Array:
    """How many samples have a lesion at each voxel, (X, Y, Z); parts of voxels count in part."""
    total = np.zeros(int(np.prod(cohort.samples[0].shape)))
    for sample in cohort.samples:
        voxels, values = sample.masks["lesion"].voxels()
        total[voxels] += values
    return total.reshape(cohort.samples[0].shape)


def _lesions(cohort: Cohort, explained: Cohort) -> Array:
    """The same of the explained subjects; the truth knows it of all."""
    assert cohort.truth is not None
    if len(explained.samples) == len(cohort.samples):
        return cohort.truth.counts.load()
    return lesion_counts(explained)


def _scored(task: Task, label: str, cells: Sequence[Cell], cohort: Cohort, explained: Cohort, store: Store) -> JSON:
    """All scores as JSON: of each output, their means, and the pairs of the objective."""
    counts = None if cohort.truth is None else _lesions(cohort, explained)
    part = task.attributions[label]
    by_seed: list[dict[str, dict[str, tuple[Score, Array]]]] = []
    for seed in sorted({cell.seed for cell in cells}):
        outputs, sums = group_sums([cell for cell in cells if cell.seed == seed], store)
        by_seed.append(
            {
                output: _of_output(
                    task, part, output, sums[:, index], explained, counts, generator(seed, "group", label, output)
                )
                for index, output in enumerate(outputs)
            }
        )
    outputs = tuple(by_seed[0])
    metrics = tuple(by_seed[0][outputs[0]])
    found = {
        output: {metric: _mean([one[output][metric] for one in by_seed])[0] for metric in metrics} for output in outputs
    }
    whole = {metric: _mean([one[output][metric] for one in by_seed for output in outputs]) for metric in metrics}
    pairs = whole[task.explanation_objective][1] if task.explanation_objective in whole else np.empty(0)
    return {
        "outputs": {
            output: {metric: score_to_json(score) for metric, score in one.items()} for output, one in found.items()
        },
        "whole": {metric: score_to_json(score) for metric, (score, _) in whole.items()},
        "paired": {
            task.explanation_objective: {f"block {number:02d}": null_of(value) for number, value in enumerate(pairs)}
        },
    }


def _of_output(
    task: Task,
    part: Component,
    output: str,
    blocks: Array,
    cohort: Cohort,
    counts: Array | None,
    rng: np.random.Generator,
) -> dict[str, tuple[Score, Array]]:
    """Metric → its score and pseudo-values, of the blocks (B, C, X, Y, Z) of one output."""
    truth = cohort.truth
    sample = cohort.samples[0]
    target = None if truth is None else target_mask(truth, output)
    rois = None if truth is None else np.stack([image.load() for image in truth.rois.values()])
    exact = None if truth is None or counts is None else _expected(task, truth, output, part, counts)
    brain = None if truth is None else truth.counts.load() > 0  # where anybody has a lesion
    total = blocks.sum(axis=0, dtype=np.float64)

    def evidence(explanation: Array) -> MetricInputs:
        return MetricInputs(
            explanation=explanation,
            exact=None if exact is None else exact[0],
            target=target,
            rois=rois,
            brain=brain,
            spacing_mm=sample.spacing_mm,
            channels=("lesion",),
            rng=rng,
        )

    unknown = {
        name
        for name, known in (("target", target), ("rois", rois), ("exact", exact), ("brain", brain))
        if known is None
    }
    found: dict[str, tuple[Score, Array]] = {}
    whole = evidence(total)
    left_out = [evidence(total - block) for block in blocks] if len(blocks) > 1 else []
    perfect = None if exact is None else evidence(exact)
    for name in labels_of(task, "explanation"):
        metric = task.metrics[name]
        if unknown.intersection(asks(metric)):
            found[name] = (Score(math.nan, math.nan, math.nan, 0), np.empty(0))
            continue
        value = evaluate(metric, whole)

        def statistic(
            kept: Array, metric: Component = metric, value: float = value, left_out: Sequence[MetricInputs] = left_out
        ) -> float:
            absent = np.setdiff1d(np.arange(len(left_out)), kept)
            return value if not absent.size else evaluate(metric, left_out[int(absent[0])])

        pairs = pseudo_values(statistic, len(left_out))
        interval = jackknife_interval(pairs, value)
        score = Score(
            value,
            interval.low,
            interval.high,
            len(cohort.subjects),
            se=interval.se,
            chance=evaluate_chance(metric, whole),
            ceiling=math.nan if perfect is None else evaluate(metric, perfect),
        )
        found[name] = (score, pairs)
    return found


def _expected(task: Task, truth: Truth, output: str, part: Component, counts: Array) -> Array | None:
    """What an exact model would show, (1, X, Y, Z), if neither the view nor post-processing changes that."""
    view: View = task.view()
    known = exact_group_map(truth, output, part, counts) if view.plain else None
    if known is None:
        return None
    exact = known[None]
    done = task.postprocessing
    if done is None:
        return exact
    keeps = POSTPROCESSINGS.get(POSTPROCESSINGS.name_of(done.func)).facts.get("keeps_positive")
    return exact if keeps and exact.min() >= 0 else None


def _mean(several: Sequence[tuple[Score, Array]]) -> tuple[Score, Array]:
    """The mean of several scores over the same blocks; its interval is that of the mean pseudo-values."""
    scores = [score for score, _ in several]
    pairs = np.mean([values for _, values in several], axis=0)
    value, chance, ceiling = (
        float(np.mean([getattr(score, name) for score in scores])) for name in ("value", "chance", "ceiling")
    )
    interval = jackknife_interval(pairs, value)
    n = min(score.n for score in scores)
    return Score(value, interval.low, interval.high, n, se=interval.se, chance=chance, ceiling=ceiling), pairs


def _scores(read: Mapping[str, Mapping[str, JSON]]) -> dict[str, Score]:
    return {name: score_from_json(one) for name, one in read.items()}
