"""Scores of lesion maps as targets: a measured score, or simulated scores with a known truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import annotated_types
import numpy as np

from harness.core.errors import OutOfRange
from harness.core.identity import canonical, code_digest
from harness.core.registry import TARGETS
from harness.core.seeding import generator
from harness.core.targets import Target
from harness.core.types import JSON, Array, Cohort, Sample, Truth
from harness.data import nifti, transforms
from harness.data.cache import ArrayCache, CachedImage, hash_of
from harness.data.cohort_notes import kept_of, outside_notes
from harness.data.grid import VoxelGrid
from harness.data.targets.column import number_column, shuffled_across_subjects
from harness.simulation import lesion_scores
from harness.simulation.lesion_scores import ROI, Design, Nonlinearity, Rule, Scaling, Shape

__all__ = ["scores"]


def _oracle_arguments(options: Mapping[str, JSON]) -> dict[str, JSON]:
    """Information for oracle models: shape and size of the regions, and their number per score."""
    boxes = {"single": options["rois"], "multi": 1, "intercorrelation": 2}[options["design"]]
    return {"roi_shape": options["shape"], "roi_size": options["size"], "boxes": boxes}


@TARGETS.register(
    "scores",
    source="Mah et al. 2014, doi:10.1093/brain/awu164 (simulation method)",
    oracle_arguments=_oracle_arguments,
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
    volume_effect: Annotated[float, annotated_types.Ge(0)] = 0.0,
    age_effect: Annotated[float, annotated_types.Ge(0)] = 0.0,
    scaling: Scaling = "cohort",
    shuffled: bool = False,
) -> Cohort:
    """Scores of lesion maps, simulated from regions of interest or measured.

    Parameters
    ----------
    cohort : cohort with the mask ``lesion``; all samples are on the same grid
    cache : folder of prepared arrays
    column : column of participants.tsv with a measured score, without a known truth. All
        other options except ``shuffled`` and ``noise_seed`` then have no effect. If empty,
        scores are simulated
    design : how the loads of the regions are combined: ``single`` score from all regions,
        ``multi`` with one score per region, or ``intercorrelation``, where scores share
        regions
    b : weight of the own region of a score, for the design ``intercorrelation``
    weights : relative weights of the regions for the design ``single``; empty for equal
        weights
    rois : number of regions
    size : edge length or diameter of a region in voxels of the grid
    shape : shape of the regions
    patients : minimum number of patients with a lesion in a voxel of a region
    rule : whether ``all`` voxels of a region must have the minimum number of patients, or
        ``any`` of them
    strata : number of groups of possible centres, by the number of lesions around them,
        from which the regions are drawn in turn; 1 draws from all centres
    centres : voxel indices of the centres of the regions, instead of drawing them
    atlas : label image (NIfTI, in the space of the masks) that contains the regions,
        instead of drawing them
    labels : labels of the atlas that are the regions
    roi_seed : seed for drawing the regions
    noise : noise level a in (1−a)·score + a·noise, where the noise has the SD of the score
    noise_seed : seed of the noise and of the permutation of shuffled scores
    nonlinearity : function of the score: ``log`` makes the first lesioned voxels count
        most, ``exp`` the last ones, ``threshold`` is 1 above half of the maximum and 0
        otherwise, ``disconnection`` is high if any of the regions is lesioned
    strength : strength of the nonlinearities ``log`` and ``exp``
    volume_effect : effect of the total lesion volume on each score: SDs of the score from
        the regions, per SD of the square root of the volume
    age_effect : the same for ``age`` in the participants table
    scaling : ``cohort`` scales scores to [0, 1] over the cohort, ``none`` leaves them
        unchanged
    shuffled : permute the scores across subjects, as a null control

    Returns
    -------
    Cohort
        Samples with scores (``score_1``, …, or the name of the column). Simulated scores
        have a truth and, unless they are shuffled, clean values. Against the truth of
        shuffled scores, metrics of explanations are at chance level. Subjects without a
        value are ineligible.

    Notes
    -----
    For ``patients``, a voxel counts as lesioned if any fraction of it is. The clean value is
    the best prediction from the image on the scale of the target. See
    :mod:`harness.simulation.lesion_scores` for details.
    """
    if column:
        measured = number_column(cohort, cache, column=column)
        return shuffled_across_subjects(measured, [column], noise_seed) if shuffled else measured
    grid = cohort.samples[0].shape
    with ArrayCache(cache / "arrays") as arrays:
        touched, summed = _counts(cohort, arrays)
        regions = _regions(
            touched.load(), grid, cohort.samples[0].grid.affine, roi_seed, atlas=atlas, labels=labels, centres=centres,
            rois=rois, size=size, shape=shape, patients=patients, rule=rule, strata=strata,
        )  # fmt: skip
        roi_images = {roi.name: _kept(arrays, roi.volume(grid)) for roi in regions}
    loads = np.array([lesion_scores.loads(sample.masks["lesion"].load(), regions) for sample in cohort.samples])
    if weights and design != "single":
        raise OutOfRange(
            f"weights apply only to design=single, got design={design}; remove weights, or set design=single"
        )
    table = lesion_scores.score_weights(design, len(regions), b=b, weights=weights or None)
    volumes = np.array([float(sample.masks["lesion"].voxels()[1].sum()) for sample in cohort.samples])
    made = lesion_scores.scores(
        loads, table, generator(noise_seed, "outcome", "noise"),
        nonlinearity=nonlinearity, strength=strength, noise=noise, scaling=scaling,
        volumes=volumes, volume_effect=volume_effect, ages=_ages(cohort) if age_effect else None, age_effect=age_effect,
    )  # fmt: skip
    names = [f"score_{number + 1}" for number in range(len(table))]
    samples = tuple(
        dataclasses.replace(
            sample, targets={**sample.targets, **_named(names, target)}, clean={**sample.clean, **_named(names, clean)}
        )
        for sample, target, clean in zip(cohort.samples, made.targets, made.expected, strict=True)
    )
    rows = lesion_scores.roi_table(regions, loads, touched.load(), volumes, cohort.samples[0].grid.affine)
    truth = Truth(
        rois=roi_images,
        weights={
            name: {roi.name: float(weight) for roi, weight in zip(regions, row, strict=True)}
            for name, row in zip(names, table, strict=True)
        },
        mask="lesion",
        counts=summed,
        table=tuple(dataclasses.asdict(row) for row in rows),
        linear=nonlinearity == "none" and not volume_effect,
    )
    targets = (*cohort.targets, *(Target(name, "number") for name in names))
    notes = (*cohort.notes, *([] if atlas is None else _cut_regions(atlas, labels, cohort.samples[0])))
    simulated = dataclasses.replace(cohort, samples=samples, truth=truth, targets=targets, notes=notes)
    return shuffled_across_subjects(simulated, names, noise_seed) if shuffled else simulated


def _ages(cohort: Cohort) -> Array:
    """Ages of all samples."""
    ages = {sample.id: sample.covariates.get("age") for sample in cohort.samples}
    without = [name for name, age in ages.items() if not isinstance(age, int | float)]
    if without:
        raise OutOfRange(
            f"age_effect needs a number in the column age for every subject, but {len(without)} have none: "
            f"{', '.join(without[:8])}; complete the table, leave them out (exclude=), or set age_effect=0"
        )
    return np.array(list(ages.values()), np.float64)


def _named(names: Sequence[str], values: Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


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


def _cut_regions(atlas: Path, labels: Sequence[int], sample: Sample) -> list[str]:
    """Note on regions of an atlas that are partly outside of the field of view."""
    image, affine = nifti.read(atlas)
    grid = VoxelGrid((sample.shape[0], sample.shape[1], sample.shape[2]), sample.grid.affine)
    kept = {f"label {label}": kept_of(np.rint(image) == label, affine, grid) for label in labels}
    return outside_notes(
        kept, [grid], what="region", remedy="a larger cohort.box keeps more", of="regions of the atlas"
    )


def _counts(cohort: Cohort, cache: ArrayCache) -> tuple[CachedImage, CachedImage]:
    """Number of patients with a lesion in any fraction of each voxel, and sum of occupancies."""
    lesions = [sample.masks["lesion"].fingerprint for sample in cohort.samples]
    content: Mapping[str, JSON] = {"lesions": lesions, "code": code_digest([f"{__name__}:_counted"])}
    keys = [hash_of(canonical({**content, "what": what}))[:32] for what in ("touched", "sum")]
    known = [cache.known(key) for key in keys]
    if known[0] is None or known[1] is None:
        known = [cache.add(key, array) for key, array in zip(keys, _counted(cohort), strict=True)]
    assert known[0] is not None and known[1] is not None
    return known[0], known[1]


def _counted(cohort: Cohort) -> tuple[Array, Array]:
    """The arrays of :func:`_counts`, (X, Y, Z) int32 and float32."""
    grid = cohort.samples[0].shape
    touched, summed = np.zeros(int(np.prod(grid)), np.int32), np.zeros(int(np.prod(grid)))
    for sample in cohort.samples:
        voxels, values = sample.masks["lesion"].voxels()
        touched[voxels] += 1
        summed[voxels] += values
    return touched.reshape(grid), summed.astype(np.float32).reshape(grid)


def _kept(cache: ArrayCache, mask: Array) -> CachedImage:
    content: Mapping[str, JSON] = {"roi": np.flatnonzero(mask).tolist(), "shape": list(mask.shape)}
    key = hash_of(canonical(content))[:32]
    return cache.known(key) or cache.add(key, mask, coding="runs")
