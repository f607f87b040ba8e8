"""The score stage: evaluate metrics of predictions and maps, per sample and target.

Scoring needs the files of earlier stages and the targets and masks of the cohort, but no
network. The values of a metric are plain JSON::

    {"label": …, "values": {sample: {"targets": {target: number}, "regions": {region: number}}},
     "chance": {sample: …}}

where undefined numbers are null. A metric with several values has an object of numbers by
name instead of each number. For maps, the target is the explained scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.core.registry import METRICS
from harness.core.seeding import generator
from harness.core.targets import KINDS, Target
from harness.core.task import Component, Task
from harness.core.types import JSON, NUISANCE, Array, NetworkSpec, Prediction, Sample
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.regions import within
from harness.metrics.register import evaluate_all, evaluate_chance, kinds_of, needs_target
from harness.pipeline.explain import Explained
from harness.pipeline.predict import EXPOSED

__all__ = [
    "LOW_SPREAD",
    "Values",
    "add",
    "collapse_flags",
    "inputs_of_map",
    "labels_of",
    "level_of",
    "score_map",
    "score_prediction",
]

LOW_SPREAD = "low spread of predictions (SD below 10 % of that of the target)"
"""Flag of networks whose output hardly varies, see :func:`collapse_flags`."""

Values = dict[str, JSON]
"""Values of metrics by label, see the module docstring."""


def labels_of(task: Task, level: str) -> list[str]:
    """Labels of the task's metrics of one level, in order."""
    return [label for label, component in task.metrics.items() if level_of(component) == level]


def level_of(component: Component) -> str:
    """Level of a metric: ``subject``, ``explanation``, ``probe`` or ``pool``."""
    level: str = METRICS.get(METRICS.name_of(component.func)).facts["level"]
    return level


def score_prediction(
    task: Task,
    spec: NetworkSpec,
    sample: Sample,
    prediction: Prediction,
    labels: Sequence[str],
    into: Values,
    *,
    seed: int,
    regions: Mapping[int, str],
) -> None:
    """Add the values of some metrics of a prediction, overall and per region.

    Parameters
    ----------
    prediction : prediction of the sample
    labels : labels of the metrics; a metric is left out for targets of kinds that it does
        not support
    into : dictionary to which the values are added
    seed : seed of the random streams of metrics
    regions : names of the regions, by value in the sample's region image

    Notes
    -----
    A region contains the true and predicted lesions whose centroid is in it.
    """
    for target in spec.targets:
        rng = generator(seed, "metrics", sample.id)
        given = _inputs(target, sample, prediction[target.name], prediction.get(EXPOSED, {}), rng)
        own = [label for label in labels if target.kind in kinds_of(task.metrics[label])]
        for label in own:
            add(into, task, label, sample, "targets", target.name, given)
        regional = [label for label in own if label in task.regional]
        if not target.of_sample and regional and regions and "regions" in sample.masks:
            image = np.asarray(sample.masks["regions"].load())
            for value, name in regions.items():
                inside = within(given, image, value)
                for label in regional:
                    add(into, task, label, sample, "regions", name, inside)


def score_map(
    task: Task,
    spec: NetworkSpec,
    sample: Sample,
    explained: Explained,
    prediction: Prediction,
    labels: Sequence[str],
    into: Values,
    *,
    channels: tuple[str, ...],
    seed: int,
) -> None:
    """Add the values of some metrics of an explanation.

    Parameters
    ----------
    explained : maps of the sample
    prediction : prediction of the sample
    channels : names of the channels of the maps
    """
    for place, (output, one) in enumerate(zip(explained.outputs, explained.maps, strict=True)):
        rng = generator(seed, "metrics", sample.id, "explanation")
        numbers = {name: several[place] for name, several in explained.numbers.items()}
        given = inputs_of_map(spec, sample, output, one, prediction, channels=channels, rng=rng, numbers=numbers)
        for label in labels:
            add(into, task, label, sample, "targets", output, given)


def inputs_of_map(
    spec: NetworkSpec,
    sample: Sample,
    scalar: str,
    explanation: Array,
    prediction: Prediction,
    *,
    channels: tuple[str, ...],
    rng: np.random.Generator,
    **more: Any,
) -> MetricInputs:
    """Inputs of the metrics of one map.

    Parameters
    ----------
    scalar : name of the explained scalar, which determines the true mask
    explanation : (C, X, Y, Z) float, or (C, H, W) of a picture
    more : further metric inputs
    """
    image = next((target for target in spec.targets if not target.of_sample), None)
    given: dict[str, Any] = {}
    if image is not None:
        given = _volumes(KINDS[image.kind].inputs_of_prediction(prediction[image.name]))
    truth = sample.truth_of(scalar)
    if truth is not None:
        given["target"] = _volume(truth.load() > 0)
    if NUISANCE in sample.masks:
        given["nuisance"] = _volume(sample.masks[NUISANCE].load() > 0)
    return MetricInputs(
        **given,
        spacing_mm=sample.spacing_mm,
        brain=_brain(sample),
        explanation=explanation if explanation.ndim == 4 else explanation[..., None],
        channels=channels,
        rng=rng,
        **more,
    )


def add(into: Values, task: Task, label: str, sample: Sample, where: str, name: str, given: MetricInputs) -> None:
    """Evaluate one metric and add its value.

    Parameters
    ----------
    where, name : ``targets`` and the name of a target, or ``regions`` and the name of a region
    """
    component = task.metrics[label]
    # The truth of an explanation is known for generated data; a metric that needs it is undefined for others.
    is_undefined = given.explanation is not None and given.target is None and needs_target(component)
    known = into.setdefault(label, {"label": label, "values": {}, "chance": {}})
    kinds: tuple[tuple[str, Callable[..., float | dict[str, float]]], ...] = (
        ("values", evaluate_all),
        ("chance", evaluate_chance),
    )
    for kind, function in kinds:
        value = math.nan if is_undefined else function(component, given)
        if kind == "values" or not (isinstance(value, float) and math.isnan(value)):
            of_sample = known[kind].setdefault(sample.id, {"targets": {}, "regions": {}})
            of_sample[where][name] = _json(value)


def _json(value: float | dict[str, float]) -> JSON:
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items()}
    return None if math.isnan(value) else value


def collapse_flags(spec: NetworkSpec, samples: Sequence[Sample], predictions: Mapping[str, Prediction]) -> list[str]:
    """Flags of predictions that show that a network has learned nothing, or hardly anything.

    Returns
    -------
    list of str
        ``collapsed`` if the predictions of a target are the same for all samples, or all
        masks are empty; :data:`LOW_SPREAD` if they differ, but much less than the truth
        (:meth:`harness.core.targets.TargetKind.has_low_spread`). The latter does not
        exclude a row from the ranking.

    Notes
    -----
    An empty mask of one sample is not a collapse; empty masks of all samples are.
    """
    flags = []
    for target in spec.targets:
        own = [predictions[sample.id][target.name] for sample in samples]
        truths = [sample.targets[target.name] for sample in samples] if target.of_sample else []
        kind = KINDS[target.kind]
        flags += ["collapsed"] if kind.is_collapsed(own, truths) else []
        flags += [LOW_SPREAD] if kind.has_low_spread(own, truths) else []
    return sorted(set(flags))


def _inputs(
    target: Target,
    sample: Sample,
    prediction: Mapping[str, Array],
    exposed: Mapping[str, Array],
    rng: np.random.Generator,
) -> MetricInputs:
    """Inputs of the metrics of the prediction of one target."""
    kind = KINDS[target.kind]
    given = {**kind.inputs_of_truth(target, sample), **kind.inputs_of_prediction(prediction)}
    covariates = sample.covariates
    if target.of_sample:
        named = {name: float(one) for name, one in exposed.items()}
        return MetricInputs(**given, covariates=covariates, exposed=named, rng=rng)
    return MetricInputs(
        **_volumes(given), covariates=covariates, spacing_mm=sample.spacing_mm, brain=_brain(sample), rng=rng
    )


def _brain(sample: Sample) -> Array | None:
    return _volume(sample.masks["brain"].load() > 0) if "brain" in sample.masks else None


def _volumes(images: Mapping[str, Array]) -> dict[str, Any]:
    return {name: _volume(image) for name, image in images.items()}


def _volume(array: Array) -> Array:
    """The array with a third spatial axis; pictures have one slice."""
    found: Array = np.asarray(array)
    return found[..., None] if found.ndim == 2 else found
