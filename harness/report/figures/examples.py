"""Figures of single subjects: images, truth and predictions in one slice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.core.targets import THRESHOLD
from harness.core.types import Array, Sample
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import Results
from harness.report.wording import interval_text

__all__ = ["SIDES", "example_figures", "slice_of", "true_mask"]

_MOST_PREDICTIONS = 4
SIDES = "The subject's right is on the right."


def example_figures(run: Results) -> Iterator[Figure]:
    """The best, the median and the worst subject of the first configuration."""
    for leader in run.leaders[:1]:
        for name, subject in run.chosen_subjects(leader).items():
            yield from _example(run, leader, name, subject)


def _example(run: Results, leader: str, name: str, subject: str) -> Iterator[Figure]:
    sample = run.sample_of(leader, subject)
    truth = true_mask(sample)
    if truth is None:
        return
    box, at = slice_of(sample, truth)
    predictions = _predictions(run, sample, truth, box)
    if not predictions:
        return
    images = {image: np.asarray(sample.images[image].load())[box] for image in _images(run, sample)}
    yield Figure(
        f"Example: the {name} subject, {subject}",
        f"By {run.subject_metric} of {run.labels[leader]}. Axial slice {at + 1} of {truth.shape[2]}, which has the "
        f"most true voxels. Predictions of configurations from the first to the last of the ranking, at a probability "
        f"of {THRESHOLD:g}. Orange only: missed; blue only: false positive. {SIDES}",
        plots.prediction_slices(images, truth[box], predictions, spacing_mm=sample.grid.spacing_mm, index=at),
        broad=True,
        section="Examples",
    )


def _predictions(run: Results, sample: Sample, truth: Array, box: tuple[slice, slice, slice]) -> dict[str, Array]:
    """Predicted masks by title, of some configurations of the same problem."""
    spread = np.linspace(0, len(run.leaders) - 1, min(len(run.leaders), _MOST_PREDICTIONS)).round().astype(int)
    predictions: dict[str, Array] = {}
    for key in [run.leaders[number] for number in dict.fromkeys(spread.tolist())]:
        probability = run.prediction(key, sample.id)
        if probability is not None and probability.shape == truth.shape:
            value = run.values(key, run.subject_metric).get(sample.subject, math.nan)
            predictions[f"{run.labels[key]}\n{run.subject_metric} {interval_text(value)}"] = (probability > THRESHOLD)[
                box
            ]
    return predictions


def _images(run: Results, sample: Sample) -> list[str]:
    """Names of the images that configurations of the problem read, those of the first configuration first."""
    names = dict.fromkeys(name for key in run.leaders for name in run.channels_of(key))
    return [name for name in names if name in sample.images and len(sample.images[name].shape) == 3]


def true_mask(sample: Sample) -> Array | None:
    """True mask of a sample; ``None`` if it has none or is not a volume."""
    if "target" not in sample.masks or len(sample.masks["target"].shape) != 3 or sample.affine is None:
        return None
    truth: Array = np.asarray(sample.masks["target"].load() > 0)
    return truth


def slice_of(sample: Sample, truth: Array) -> tuple[tuple[slice, slice, slice], int]:
    """Bounding box of the brain with a margin, and index of the slice with the most true voxels."""
    at = int(np.argmax(truth.sum(axis=(0, 1))))
    inside = truth[:, :, at]
    if "brain" in sample.masks and sample.masks["brain"].shape == truth.shape:
        inside = inside | (np.asarray(sample.masks["brain"].load())[:, :, at] > 0)
    if not inside.any():
        return (slice(None), slice(None), slice(None)), at
    sides = []
    for axis in (0, 1):
        found = np.flatnonzero(inside.any(axis=1 - axis))
        sides.append(slice(max(int(found[0]) - 2, 0), int(found[-1]) + 3))
    return (sides[0], sides[1], slice(None)), at
