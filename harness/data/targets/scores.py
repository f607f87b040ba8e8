"""What is to be predicted from each lesion map: a measured score, or simulated ones whose source is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import annotated_types
import numpy as np

from harness.core.errors import OutOfRange
from harness.core.identity import canonical
from harness.core.registry import TARGETS
from harness.core.seeding import generator
from harness.core.targets import Target
from harness.core.types import JSON, Array, Cohort, Truth
from harness.data import nifti, transforms
from harness.data.cache import CachedImage, hash_of, known_entry, write_entry
from harness.data.targets.column import number_column
from harness.simulation import lesion_scores
from harness.simulation.lesion_scores import ROI, Design, Nonlinearity, Rule, Scaling, Shape

__all__ = ["scores"]


def _hidden(options: Mapping[str, JSON]) -> dict[str, JSON]:
    """What an oracle is told of the regions: their shape and size, and how many make a score."""
    boxes = {"single": options["rois"], "multi": 1, "intercorrelation": 2}[options["design"]]
    return {"roi_shape": options["shape"], "roi_size": options["size"], "boxes": boxes}


@TARGETS.register(
    "scores",
    source="Mah et al. 2014, doi:10.1093/brain/awu164 (the manner of simulation)",
    tells=_hidden,
    measured="column",
    of_measured=("shuffled", "noise_seed"),
)
def scores(
    cohort: Cohort,
    cache: Path,
    *,
    column: str = "",
    design: Design = "multi",
    b: Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)] = 0.9,
    weights: tuple[float, ...] = (),
    rois: Annotated[int, annotated_types.Gt(0)] = 3,
    size: Annotated[int, annotated_types.Gt(0)] = 5,
    shape: Shape = "cube",
    patients: Annotated[int, annotated_types.Gt(0)] = 10,
    rule: Rule = "all",
    strata: Annotated[int, annotated_types.Gt(0)] = 1,
    centres: tuple[tuple[int, int, int], ...] = (),
    atlas: Path | None = None,
    labels: tuple[int, ...] = (),
    roi_seed: Annotated[int, annotated_types.Ge(0)] = 0,
    noise: Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)] = 0.0,
    noise_seed: Annotated[int, annotated_types.Ge(0)] = 0,
    nonlinearity: Nonlinearity = "none",
    strength: Annotated[float, annotated_types.Gt(0)] = 9.0,
    scaling: Scaling = "cohort",
    shuffled: bool = False,
) -> Cohort:
    """Scores for every subject of a cohort of lesion maps.

    Parameters
    ----------
    cohort : whose samples have the mask ``lesion``, all on one grid
    cache : folder of prepared arrays
    column : of participants.tsv, a real score: there is no truth then, and all
        that follows but ``shuffled`` has no effect. Empty simulates
    design, b, weights : how regions make scores, see
        :func:`~harness.simulation.lesion_scores.score_weights`; weights are of the
        ``single`` design
    rois, size, shape, patients, rule, strata : how many regions, of how many voxels of
        the grid, and where they may lie, see :func:`~harness.simulation.lesion_scores.draw_rois`
    centres : voxel indices of the regions' centres instead
    atlas, labels : a label image (NIfTI, in the space of the masks) and the labels that
        are the regions instead
    roi_seed, noise_seed : of the regions and of the noise, whatever else is drawn
    noise, nonlinearity, strength, scaling : see :func:`~harness.simulation.lesion_scores.scores`
    shuffled : deal the scores to other subjects, the control that no model can learn

    Returns
    -------
    Cohort
        Samples with scores (``score_1``, …, or the column's name), of simulated ones
        also without noise unless they are shuffled; and the truth, unless the score is
        real: where a model that learned from shuffled scores points, by chance, is
        judged like any other. Subjects without a value are ineligible.

    Notes
    -----
    A patient counts for eligibility where any part of the voxel is lesioned.
    ``clean`` is the best prediction from the image on the scale of the targets.
    """
    if column:
        measured = number_column(cohort, cache, column=column)
        return _shuffled(measured, [column], noise_seed) if shuffled else measured
    grid = cohort.samples[0].shape
    touched, summed = _counts(cohort, cache)
    regions = _regions(
        touched.load(), grid, cohort.samples[0].grid.affine, roi_seed, atlas=atlas, labels=labels, centres=centres,
        rois=rois, size=size, shape=shape, patients=patients, rule=rule, strata=strata,
    )  # fmt: skip
    loads = np.array([lesion_scores.loads(sample.masks["lesion"].load(), regions) for sample in cohort.samples])
    if weights and design != "single":
        raise OutOfRange(
            f"weights apply to design=single only, got design={design}; leave them out, or set design=single"
        )
    table = lesion_scores.score_weights(design, len(regions), b=b, weights=weights or None)
    made = lesion_scores.scores(
        loads, table, generator(noise_seed, "outcome", "noise"),
        nonlinearity=nonlinearity, strength=strength, noise=noise, scaling=scaling,
    )  # fmt: skip
    names = [f"score_{number + 1}" for number in range(len(table))]
    samples = tuple(
        dataclasses.replace(
            sample, targets={**sample.targets, **_named(names, target)}, clean={**sample.clean, **_named(names, clean)}
        )
        for sample, target, clean in zip(cohort.samples, made.targets, made.expected, strict=True)
    )
    volumes = np.array([float(sample.masks["lesion"].voxels()[1].sum()) for sample in cohort.samples])
    rows = lesion_scores.roi_table(regions, loads, touched.load(), volumes, cohort.samples[0].grid.affine)
    truth = Truth(
        rois={roi.name: _kept(cache, roi.volume(grid)) for roi in regions},
        weights={
            name: {roi.name: float(weight) for roi, weight in zip(regions, row, strict=True)}
            for name, row in zip(names, table, strict=True)
        },
        counts=summed,
        table=tuple(dataclasses.asdict(row) for row in rows),
        linear=nonlinearity == "none",
    )
    targets = (*cohort.targets, *(Target(name, "number") for name in names))
    made_of = dataclasses.replace(cohort, samples=samples, truth=truth, targets=targets)
    return _shuffled(made_of, names, noise_seed) if shuffled else made_of


def _named(names: Sequence[str], values: Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _shuffled(cohort: Cohort, names: Sequence[str], seed: int) -> Cohort:
    """Permute scores across samples (null control)."""
    order = generator(seed, "outcome", "shuffle").permutation(len(cohort.samples))
    samples = tuple(
        dataclasses.replace(
            sample,
            targets={**sample.targets, **{name: cohort.samples[index].targets[name] for name in names}},
            clean={name: value for name, value in sample.clean.items() if name not in names},
        )
        for sample, index in zip(cohort.samples, order, strict=True)
    )
    return dataclasses.replace(cohort, samples=samples)


def _regions(
    counts: Array,
    grid: tuple[int, ...],
    affine: Array,
    seed: int,
    *,
    atlas: Path | None,
    labels: Sequence[int],
    centres: Sequence[tuple[int, int, int]],
    rois: int,
    size: int,
    shape: Shape,
    patients: int,
    rule: Rule,
    strata: int,
) -> tuple[ROI, ...]:
    if atlas is not None:
        image, image_affine = nifti.read(atlas)
        on_grid = transforms.majority(np.rint(image).astype(np.int32), image_affine, grid, affine)
        return lesion_scores.label_rois(on_grid, labels)
    if centres:
        return lesion_scores.place_rois(centres, grid, shape=shape, size=size)
    return lesion_scores.draw_rois(
        counts, generator(seed, "outcome", "rois"),
        number=rois, shape=shape, size=size, patients=patients, rule=rule, strata=strata,
    )  # fmt: skip


def _counts(cohort: Cohort, cache: Path) -> tuple[CachedImage, CachedImage]:
    """How many patients are lesioned in any part of each voxel, and the sum of their occupancies."""
    lesions = [sample.masks["lesion"].fingerprint for sample in cohort.samples]
    keys = [hash_of(canonical({"lesions": lesions, "what": what}))[:32] for what in ("touched", "sum")]
    known = [known_entry(cache / "arrays", key) for key in keys]
    if known[0] is None or known[1] is None:
        grid = cohort.samples[0].shape
        touched, summed = np.zeros(int(np.prod(grid)), np.int32), np.zeros(int(np.prod(grid)))
        for sample in cohort.samples:
            voxels, values = sample.masks["lesion"].voxels()
            touched[voxels] += 1
            summed[voxels] += values
        arrays = (touched.reshape(grid), summed.astype(np.float32).reshape(grid))
        known = [write_entry(cache / "arrays", key, array) for key, array in zip(keys, arrays, strict=True)]
    assert known[0] is not None and known[1] is not None
    return known[0], known[1]


def _kept(cache: Path, mask: Array) -> CachedImage:
    content: Mapping[str, JSON] = {"roi": np.flatnonzero(mask).tolist(), "shape": list(mask.shape)}
    key = hash_of(canonical(content))[:32]
    return known_entry(cache / "arrays", key) or write_entry(cache / "arrays", key, mask, coding="runs")
