"""The score stage: predictions and maps → one value per metric and sample.

Pure and cheap: needs the files of earlier stages and the cohort's masks, never
a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.registry import METRICS
from harness.core.seeding import generator
from harness.core.task import Component, Task
from harness.core.types import JSON, Array, Sample
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.regions import within
from harness.metrics.register import evaluate, evaluate_chance
from harness.metrics.segmentation import is_collapsed

__all__ = ["Scored", "labels_of", "level_of", "score_explanation", "score_numbers", "score_prediction"]

THRESHOLD = 0.5  # equal to taking the larger of two softmax outputs


@dataclass(frozen=True)
class Scored:
    """Values of one sample.

    Parameters
    ----------
    subject : whose sample it is
    values : metric label → value, ``None`` where the metric is not defined
    regions : region, or name of a score → the same
    flags : what a reader must know, e.g. ``collapsed``
    """

    subject: str
    values: Mapping[str, float | None]
    regions: Mapping[str, Mapping[str, float | None]]
    flags: tuple[str, ...] = ()

    def to_json(self) -> JSON:
        """Plain JSON."""
        regions = {name: dict(values) for name, values in self.regions.items()}
        return {"subject": self.subject, "values": dict(self.values), "regions": regions, "flags": self.flags}


def labels_of(task: Task, level: str) -> list[str]:
    """Labels of the task's metrics of one level, in order."""
    return [label for label, part in task.metrics.items() if level_of(part) == level]


def level_of(part: Component) -> str:
    """``subject``, ``explanation`` or ``pool``."""
    level: str = METRICS.get(METRICS.name_of(part.func)).facts["level"]
    return level


def score_prediction(
    task: Task, sample: Sample, probability: Array, *, seed: int, regions: Mapping[int, str]
) -> Scored:
    """Every metric of a prediction, whole brain and per region.

    Parameters
    ----------
    probability : (X, Y, Z) float, of the sample's lesion
    seed : names the streams of metrics that draw
    regions : value → name of the sample's region image

    Notes
    -----
    A region holds the lesions whose centroid lies in it, of the truth and of
    the prediction (PROTOCOLS 003, decision 10).
    """
    prediction = probability > THRESHOLD
    evidence = MetricInputs(
        prediction=prediction,
        probability=probability,
        target=np.asarray(sample.masks["target"].load() > 0),
        spacing_mm=sample.spacing_mm,
        brain=np.asarray(sample.masks["brain"].load() > 0) if "brain" in sample.masks else None,
        rng=generator(seed, "metrics", sample.id),
    )
    whole = _values(task, labels_of(task, "subject"), evidence)
    by_region: dict[str, dict[str, float | None]] = {}
    if task.regional and regions and "regions" in sample.masks:
        image = np.asarray(sample.masks["regions"].load())
        regional = [label for label in task.regional if level_of(task.metrics[label]) == "subject"]
        by_region = {name: _values(task, regional, within(evidence, image, value)) for value, name in regions.items()}
    flags = ("collapsed",) if is_collapsed(prediction, probability) else ()
    return Scored(sample.subject, whole, by_region, flags)


def score_explanation(
    task: Task, sample: Sample, probability: Array, explanation: Array, *, channels: tuple[str, ...], seed: int
) -> Scored:
    """Every metric of an explanation.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    channels : names of its channels
    """
    evidence = MetricInputs(
        prediction=probability > THRESHOLD,
        probability=probability,
        target=np.asarray(sample.masks["target"].load() > 0),
        spacing_mm=sample.spacing_mm,
        brain=np.asarray(sample.masks["brain"].load() > 0) if "brain" in sample.masks else None,
        explanation=explanation,
        channels=channels,
        rng=generator(seed, "metrics", sample.id, "explanation"),
    )
    values = _values(task, labels_of(task, "explanation"), evidence)
    flat = not np.any(explanation != explanation.flat[0])
    return Scored(sample.subject, values, {}, ("flat map",) if flat else ())


def score_numbers(
    task: Task, samples: Sequence[Sample], predicted: Mapping[str, Array], names: Sequence[str], *, seed: int
) -> tuple[dict[str, Scored], list[str]]:
    """Every metric of predicted numbers, score by score.

    Parameters
    ----------
    samples : of a fold
    predicted : sample id → (K,) float
    names : of the K scores

    Returns
    -------
    sample id → values by score, and the fold's flags: ``collapsed`` if a prediction
    is the same for all of several subjects
    """
    labels = labels_of(task, "subject")
    found: dict[str, Scored] = {}
    for sample in samples:
        by_score = {
            name: _values(
                task,
                labels,
                MetricInputs(
                    target_score=sample.scores[name],
                    predicted_score=float(value),
                    clean_score=sample.clean.get(name),
                    rng=generator(seed, "metrics", sample.id),
                ),
            )
            for name, value in zip(names, predicted[sample.id], strict=True)
        }
        found[sample.id] = Scored(sample.subject, {}, by_score)
    spread = np.ptp([predicted[sample.id] for sample in samples], axis=0)
    truth = np.ptp([[sample.scores[name] for name in names] for sample in samples], axis=0)
    constant = len(samples) > 1 and bool(np.any((spread <= 1e-6 * truth) & (truth > 0)))
    return found, ["collapsed"] if constant else []


def _values(task: Task, labels: Iterable[str], evidence: MetricInputs) -> dict[str, float | None]:
    values: dict[str, float] = {}
    for label in labels:
        values[label] = evaluate(task.metrics[label], evidence)
        chance = evaluate_chance(task.metrics[label], evidence)
        if not math.isnan(chance):
            values[f"{label}_chance"] = chance
    return {label: None if math.isnan(value) else value for label, value in values.items()}
