"""Figures of voxel inversion: AUC against the inverted share, masks of a sample, and share of samples by voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from harness.core.registry import MODELS
from harness.core.types import Array, Sample, Score
from harness.metrics.inversion import quantile_masks
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.examples import SIDES, slice_of, true_mask
from harness.report.figures.results import Results, score_in

__all__ = ["inversion_figures", "mask_shares"]

PERCENT = 40
"""Percentage of the voxels in the masks that are drawn."""
_MOST_LINES = 6
_MOST_CONFIGURATIONS = 2
_MOST_MASKS = 4


def inversion_figures(run: Results) -> Iterator[Figure]:
    """Inversion curves, masks of one sample, and mask shares, for the first configurations that have them."""
    labels = {int(one.keywords["percent"]): label for label, one in run.metrics("inverted_auroc").items()}
    if not labels:
        return
    found = {key: _lines_of(run, key, labels) for keys in run.problems.values() for key in keys}
    known = sorted((key for key in found if len(found[key]) > 1), key=lambda key: _is_fitted(run, key))
    for identity in known[:_MOST_CONFIGURATIONS]:
        lines = found[identity]
        yield _curves(run, identity, lines, labels)
        attributions = [name for name in lines if name in run.task.attributions][:_MOST_MASKS]
        yield from _masks_of_a_sample(run, identity, attributions)
        yield from _shares(run, identity, attributions)


def _is_fitted(run: Results, identity: str) -> bool:
    """Whether a model is fitted rather than trained; networks, to which the method applies, come first."""
    return bool(MODELS.get(MODELS.name_of(run.task_of(identity).model.func)).facts.get("fitted"))


def _lines_of(run: Results, identity: str, labels: Mapping[int, str]) -> dict[str, Mapping[str, Any]]:
    """Rows of the explanations of a configuration that have an inversion curve, the largest loss of AUC first."""
    kept = [percent for percent in labels if percent > 0]

    def area(line: Mapping[str, Any]) -> float:
        return math.fsum(line[labels[percent]] for percent in kept) / len(kept)

    lines = [
        line
        for line in run.tables.explanation.to_pylist()
        if line["configuration"] == identity and all(line.get(label) is not None for label in labels.values())
    ]
    return {line["attribution"]: line for line in sorted(lines, key=area)}


def _curves(run: Results, identity: str, lines: Mapping[str, Mapping[str, Any]], labels: Mapping[int, str]) -> Figure:
    shown = list(lines)[:_MOST_LINES]
    panel: dict[str, dict[float | str, Score]] = {
        name.replace("_", " "): {percent: score_in(lines[name], labels[percent]) for percent in sorted(labels)}
        for name in shown
    }
    left_out = f" The {len(shown)} with the largest loss of {len(lines)} are shown." if len(lines) > len(shown) else ""
    return Figure(
        f"Voxel inversion, {run.labels[identity]}",
        "AUC of the network if the most relevant voxels are replaced by 1 − x, against their share of the voxels with "
        "positive relevance, with 95 % intervals. The band is the AUC if as many random voxels are inverted. An "
        f"explanation whose curve is not below the band does not find what the network uses.{left_out}",
        plots.curves({"AUC": panel}, x_label="inverted voxels (%)", limits=(0.0, 1.0)),
        broad=True,
        section="Explanations",
    )


def _masks_of_a_sample(run: Results, identity: str, attributions: list[str]) -> Iterator[Figure]:
    """Masks of the first sample that has maps of all attributions; pictures without a grid are not drawn."""
    channels = run.channels_of(identity)
    for sample in run.plan.groups[identity].cohort.samples:
        maps = {name: run.explanation(identity, name, sample.id) for name in attributions}
        found = {name: one for name, one in maps.items() if one is not None}
        if (
            sample.affine is None
            or len(found) < len(attributions)
            or any(name not in sample.images for name in channels)
        ):
            continue
        brain = _brain(sample)
        truth = true_mask(sample)
        box, at = slice_of(sample, brain if truth is None else truth)
        images = {name: np.asarray(sample.images[name].load())[box] for name in channels}
        masks = {name: _mask(one, brain, len(channels)) for name, one in found.items()}
        yield Figure(
            f"Masks of {sample.id}, {run.labels[identity]}",
            f"Voxels of the {PERCENT} % highest positive relevance of each channel (red). Orange: true region. Axial "
            f"slice {at + 1} of {brain.shape[2]}. {SIDES}",
            plots.attribution_slices(
                images,
                {name: dict(zip(channels, one[(slice(None), *box)], strict=True)) for name, one in masks.items()},
                np.zeros_like(brain[box]) if truth is None else truth[box],
                spacing_mm=sample.grid.spacing_mm,
                index=at,
            ),
            section="Explanations",
        )
        return


def _shares(run: Results, identity: str, attributions: list[str]) -> Iterator[Figure]:
    """Share of the samples whose mask contains each voxel, on the first sample's images."""
    shares = {name: mask_shares(run, identity, name) for name in attributions}
    found = {name: one for name, one in shares.items() if one is not None}
    if not found:
        return
    channels = run.channels_of(identity)
    samples = [one for one in run.plan.groups[identity].cohort.samples if all(name in one.images for name in channels)]
    if not samples:
        return
    sample = samples[0]
    truth = true_mask(sample)
    box, at = slice_of(sample, _brain(sample) if truth is None else truth)
    images = {name: np.asarray(sample.images[name].load())[box] for name in channels}
    yield Figure(
        f"Where masks agree, {run.labels[identity]}",
        f"Share of the samples whose mask of the {PERCENT} % highest positive relevance contains a voxel, on the "
        f"images of {sample.id}. Orange: true region of that sample. Axial slice {at + 1}. {SIDES}",
        plots.attribution_slices(
            images,
            {name: dict(zip(channels, one[(slice(None), *box)], strict=True)) for name, one in found.items()},
            np.zeros(images[channels[0]].shape, bool) if truth is None else truth[box],
            spacing_mm=sample.grid.spacing_mm,
            index=at,
        ),
        section="Explanations",
    )


def mask_shares(run: Results, identity: str, attribution: str) -> Array | None:
    """Share of the samples whose mask contains each voxel.

    Parameters
    ----------
    run : results
    identity : id of a configuration
    attribution : label of an explanation

    Returns
    -------
    (C, X, Y, Z) float32 or None
        In [0, 1], by channel of the image; ``None`` if there are no maps on a common grid.
    """
    channels, total, count = len(run.channels_of(identity)), np.zeros(()), 0
    for sample in run.plan.groups[identity].cohort.samples:
        one = run.explanation(identity, attribution, sample.id)
        if one is None or sample.affine is None or one.ndim != 4 or len(one) not in (1, channels):
            continue
        mask = _mask(one, _brain(sample), channels)
        if count and total.shape != mask.shape:
            return None
        total, count = total + mask, count + 1
    return (total / count).astype(np.float32) if count else None


def _mask(explanation: Array, brain: Array, channels: int) -> Array:
    """Mask of each channel, (C, X, Y, Z) float."""
    mask: Array = quantile_masks(explanation, brain, [PERCENT])[0].astype(float)
    return np.broadcast_to(mask, (channels, *mask.shape[1:]))


def _brain(sample: Sample) -> Array:
    """Brain mask of a sample; all voxels if it has none."""
    if "brain" not in sample.masks:
        return np.ones(sample.shape, bool)
    found: Array = np.asarray(sample.masks["brain"].load()) > 0
    return found
