"""Figures of voxel inversion: AUC against the inverted share, masks of a sample, and share of samples by voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from harness.core.registry import MODELS
from harness.core.types import Array, Sample, Score
from harness.data.maps import GroupMap
from harness.metrics.inversion import inside_brain, quantile_masks
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.examples import SIDES, slice_of, true_mask
from harness.report.figures.results import Results, score_in
from harness.report.wording import interval_text, typographic

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
        attributions = [name for name in lines if name in run.task.attributions][:_MOST_MASKS]
        shares = {name: mask_shares(run, identity, name) for name in attributions}
        yield _curves(run, identity, lines, labels, shares)
        yield from _masks_of_a_sample(run, identity, attributions)
        yield from _shares(run, identity, shares)


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


def _curves(
    run: Results,
    identity: str,
    lines: Mapping[str, Mapping[str, Any]],
    labels: Mapping[int, str],
    shares: Mapping[str, GroupMap],
) -> Figure:
    shown = list(lines)[:_MOST_LINES]
    panel: dict[str, dict[float | str, Score]] = {
        name.replace("_", " "): {
            percent: score_in(lines[name], labels[percent]) for percent in sorted(labels) if percent > 0
        }
        for name in shown
    }
    left_out = f" The {len(shown)} with the largest loss of {len(lines)} are shown." if len(lines) > len(shown) else ""
    unchanged = score_in(lines[shown[0]], labels[0]) if 0 in labels else None
    without = ""
    if unchanged is not None:
        value = typographic(interval_text(unchanged.value, unchanged.low, unchanged.high))
        without = f" The dashed line is the AUC without a mask, {value}."
    return Figure(
        f"Voxel inversion, {run.labels[identity]}",
        "AUC of the network if the most relevant voxels are replaced by 1 − x, against their share of the voxels with "
        "positive relevance, with 95 % intervals. The band is the AUC if as many random voxels are inverted."
        f"{without} An explanation whose curve is not below the band does not find what the network uses.{left_out}"
        f"{_no_shares(shares)}",
        plots.curves(
            {"AUC": panel}, x_label="inverted voxels (%)", limits=(0.0, 1.0),
            levels={} if unchanged is None else {"without a mask": unchanged.value},
        ),
        broad=True,
        section="Explanations",
    )  # fmt: skip


def _no_shares(shares: Mapping[str, GroupMap]) -> str:
    """Sentence on explanations without a map of where their masks agree, with the reasons."""
    reasons: dict[str, list[str]] = {}
    for name, one in shares.items():
        if one.values is None:
            reasons.setdefault(one.reason, []).append(name.replace("_", " "))
    return "".join(
        f" No map shows where the masks of {', '.join(names)} agree: {reason}." for reason, names in reasons.items()
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
        brain = _brain(run, identity, sample)
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
                opaque=True,
            ),
            section="Explanations",
        )
        return


def _shares(run: Results, identity: str, shares: Mapping[str, GroupMap]) -> Iterator[Figure]:
    """Share of the samples whose mask contains each voxel, on the first sample's images."""
    found = {name: one.values for name, one in shares.items() if one.values is not None}
    if not found:
        return
    channels = run.channels_of(identity)
    samples = [one for one in run.plan.groups[identity].cohort.samples if all(name in one.images for name in channels)]
    if not samples or not channels:
        return
    sample = samples[0]
    truth = true_mask(sample)
    box, at = slice_of(sample, _brain(run, identity, sample) if truth is None else truth)
    images = {name: np.asarray(sample.images[name].load())[box] for name in channels}
    yield Figure(
        f"Where masks agree, {run.labels[identity]}",
        f"Share of the samples whose mask of the {PERCENT} % highest positive relevance contains a voxel, on the "
        f"images of {sample.id}, which are visible where no mask is. Orange: true region of that sample. Axial slice "
        f"{at + 1}. {SIDES}",
        plots.attribution_slices(
            images,
            {name: dict(zip(channels, one[(slice(None), *box)], strict=True)) for name, one in found.items()},
            np.zeros(images[channels[0]].shape, bool) if truth is None else truth[box],
            spacing_mm=sample.grid.spacing_mm,
            index=at,
            opaque=True,
        ),
        section="Explanations",
    )


def mask_shares(run: Results, identity: str, attribution: str) -> GroupMap:
    """Share of the samples whose mask contains each voxel.

    Parameters
    ----------
    run : results
    identity : id of a configuration
    attribution : label of an explanation

    Returns
    -------
    GroupMap
        (C, X, Y, Z) float32 in [0, 1], by channel of the network's image, and the affine of
        all samples. Without values, but with the reason, if there are no maps, or if the
        samples differ in shape or, by more than 0.001 mm, in affine.
    """
    key = (identity, attribution)
    if key not in run.shares:
        run.shares[key] = _mask_shares(run, identity, attribution)
    return run.shares[key]


def _mask_shares(run: Results, identity: str, attribution: str) -> GroupMap:
    first, affine, total = "", np.eye(4), np.zeros(())
    subjects: list[str] = []
    for sample in run.plan.groups[identity].cohort.samples:
        one = None if sample.affine is None else run.explanation(identity, attribution, sample.id)
        if one is None or one.ndim != 4:
            continue
        image = _image(run, identity, sample)
        if len(one) not in (1, len(image)):
            return GroupMap(None, affine, 0, f"{len(one)} maps for {len(image)} channels")
        mask = _mask(one, inside_brain(image, _brain_mask(sample)), len(image))
        if not subjects:
            first, affine = sample.id, sample.grid.affine
        elif total.shape != mask.shape:
            reason = f"{first} has the shape {total.shape[1:]}, {sample.id} {mask.shape[1:]}"
            return GroupMap(None, affine, 0, f"no common grid: {reason}")
        elif not np.allclose(sample.grid.affine, affine, rtol=0, atol=1e-3):
            return GroupMap(None, affine, 0, f"no common grid: {first} and {sample.id} have different affines")
        total = total + mask
        subjects.append(sample.subject)
    if not subjects:
        return GroupMap(None, affine, 0, "no maps")
    return GroupMap((total / len(subjects)).astype(np.float32), affine, len(set(subjects)))


def _mask(explanation: Array, brain: Array, channels: int) -> Array:
    """Mask of each channel, (C, X, Y, Z) float."""
    mask: Array = quantile_masks(explanation, brain, [PERCENT])[0].astype(float)
    return np.broadcast_to(mask, (channels, *mask.shape[1:]))


def _brain(run: Results, identity: str, sample: Sample) -> Array:
    """Voxels that the masks of a sample can contain, as in the metrics of inversion."""
    return inside_brain(_image(run, identity, sample), _brain_mask(sample))


def _image(run: Results, identity: str, sample: Sample) -> Array:
    """Image as the network of a configuration reads it, (C, X, Y, Z)."""
    image: Array = run.task_of(identity).adapter().inputs(sample)[0][0]
    return image


def _brain_mask(sample: Sample) -> Array | None:
    return np.asarray(sample.masks["brain"].load()) > 0 if "brain" in sample.masks else None
