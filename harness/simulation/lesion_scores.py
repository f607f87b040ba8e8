"""Simulation of behavioural scores from lesions in regions of interest.

A score is a weighted sum of *loads*, the lesioned fractions of a few regions of
interest, or a non-linear function of them, plus noise and effects of age and volume.
Masks are processed one subject at a time, so that no more than one image is in memory.
Axes are (X, Y, Z). A *centre* is a voxel index; a region of size s around centre c
starts at c − s//2, also for even sizes.

:func:`r2_ceiling` gives R² of a model that computes the scores exactly; its maps are in
:mod:`harness.attribution.linear_maps`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from scipy import ndimage

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = [
    "ROI",
    "ROIRow",
    "Scores",
    "draw_rois",
    "eligible",
    "element",
    "label_rois",
    "loads",
    "place_rois",
    "r2_ceiling",
    "roi_table",
    "score_weights",
    "scores",
]

Shape = Literal["ball", "cube"]
Rule = Literal["all", "any"]
Design = Literal["intercorrelation", "multi", "single"]
Nonlinearity = Literal["disconnection", "exp", "log", "none", "threshold"]
Scaling = Literal["cohort", "none"]

# Attempts to place all regions without overlap.
_ATTEMPTS = 50


# ----------------------------------------------------------------- regions


@dataclass(frozen=True, eq=False)
class ROI:
    """A region of interest on a grid.

    Parameters
    ----------
    name : name, e.g. ``roi1``
    centre : voxel index of the centre
    low : index of the first voxel of the bounding box
    mask : (A, B, C) bool, region within the bounding box; at least one voxel is True
    """

    name: str
    centre: tuple[int, int, int]
    low: tuple[int, int, int]
    mask: Array

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Bounding box as slices."""
        x, y, z = (slice(a, a + size) for a, size in zip(self.low, self.mask.shape, strict=True))
        return x, y, z

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.count_nonzero(self.mask))

    def volume(self, shape: tuple[int, ...]) -> Array:
        """Region on the whole grid, (X, Y, Z) bool."""
        whole = np.zeros(shape, bool)
        whole[self.slices] = self.mask
        return whole


def element(shape: Shape = "cube", size: Annotated[int, Gt(0)] = 5) -> Array:
    """Structuring element of a region.

    Parameters
    ----------
    shape : ``cube``, or ``ball``: voxels whose centre is within half a diameter of the
        centre of the box
    size : edge length or diameter in voxels

    Returns
    -------
    (size, size, size) bool
    """
    if shape == "cube":
        return np.ones((size,) * 3, bool)
    offsets = np.arange(size) - (size - 1) / 2
    x, y, z = np.meshgrid(offsets, offsets, offsets, indexing="ij", sparse=True)
    inside: Array = x**2 + y**2 + z**2 <= (size / 2) ** 2
    return inside


def _fitting_element(shape: Shape, size: int, grid: Sequence[int]) -> Array:
    """Structuring element of a region that fits on a grid; a larger one may not fit into memory."""
    if any(size > side for side in grid):
        sides = "×".join(map(str, grid))
        raise OutOfRange(f"a region must fit on the grid of {sides} voxels, got roi_size={size}; set a smaller one")
    return element(shape, size)


def eligible(counts: Array, *, patients: Annotated[int, Gt(0)] = 10, element: Array, rule: Rule = "all") -> Array:
    """Voxels that can be the centre of a region.

    Parameters
    ----------
    counts : (X, Y, Z) number of patients with a lesion in each voxel
    patients : minimum count
    element : (A, B, C) bool, see :func:`element`
    rule : whether ``all`` voxels of the region must have the minimum count (an erosion by
        the region), or ``any`` of them

    Returns
    -------
    (X, Y, Z) bool
        False where the bounding box of the region would exceed the grid.
    """
    enough, box = np.asarray(counts) >= patients, np.ones(element.shape, bool)
    if rule == "all":
        return np.asarray(ndimage.binary_erosion(enough, element))
    # Not a dilation: SciPy mirrors the element in dilations, which matters for even sizes.
    reached = ~ndimage.binary_erosion(~enough, element, border_value=1)
    return np.asarray(reached & ndimage.binary_erosion(np.ones(enough.shape, bool), box))


def place_rois(
    centres: Sequence[Sequence[int]], grid: Sequence[int], *, shape: Shape = "cube", size: Annotated[int, Gt(0)] = 5
) -> tuple[ROI, ...]:
    """Create regions ``roi1``, ``roi2``, … around given centres.

    Parameters
    ----------
    centres : voxel indices of the centres
    grid : shape of the grid, (X, Y, Z)
    shape, size : see :func:`element`

    Raises
    ------
    OutOfRange
        If regions exceed the grid or overlap; all of them are listed.
    """
    mask = _fitting_element(shape, size, grid)
    rois = tuple(_place(f"roi{k}", _index(centre), mask) for k, centre in enumerate(centres, 1))
    faults = [
        f"{roi.name} around {roi.centre} covers voxels {roi.low} to {tuple(a + size - 1 for a in roi.low)}"
        for roi in rois
        if min(roi.low) < 0 or any(a + size > n for a, n in zip(roi.low, grid, strict=True))
    ]
    if faults:
        raise OutOfRange(
            f"`0 <= centre − size//2` and `centre − size//2 + size <= {tuple(grid)}` must hold on every axis for "
            f"regions of {size} voxels, but {'; '.join(faults)}; move the centres or reduce the size"
        )
    _refuse_overlap(rois)
    return rois


def label_rois(labels: Array, values: Sequence[int], *, names: Sequence[str] | None = None) -> tuple[ROI, ...]:
    """Create regions from labels of an atlas.

    Parameters
    ----------
    labels : (X, Y, Z) integer label image, on the grid of the masks
    values : label of each region
    names : names of the regions; ``label<value>`` by default

    Returns
    -------
    tuple of ROI
        The centre is the voxel nearest to the centre of mass, which may lie outside the
        region.

    Raises
    ------
    OutOfRange
        If a label does not occur in the atlas or is given twice.
    """
    image = np.asarray(labels)
    known = [int(value) for value in np.unique(image) if value != 0]
    wrong = sorted({value for value in values if value not in known or list(values).count(value) > 1})
    if wrong:
        raise OutOfRange(
            f"every label must occur in the atlas and be given once, got {wrong} in {list(values)}; "
            f"the atlas has the labels {', '.join(map(str, known)) or '(none)'}"
        )
    rois = []
    for value, name in zip(values, names or [f"label{value}" for value in values], strict=True):
        found = ndimage.find_objects((image == value).astype(np.uint8))[0]
        inside = image[found] == value
        low = tuple(extent.start for extent in found)
        centre = np.rint(np.add(low, [where.mean() for where in np.nonzero(inside)])).astype(int)
        rois.append(ROI(name, _index(centre), _index(low), inside))
    return tuple(rois)


def draw_rois(
    counts: Array,
    rng: np.random.Generator,
    *,
    number: Annotated[int, Gt(0)] = 3,
    shape: Shape = "cube",
    size: Annotated[int, Gt(0)] = 5,
    patients: Annotated[int, Gt(0)] = 10,
    rule: Rule = "all",
    strata: Annotated[int, Gt(0)] = 1,
) -> tuple[ROI, ...]:
    """Draw disjoint regions ``roi1``, ``roi2``, … uniformly from the eligible centres.

    Parameters
    ----------
    counts : (X, Y, Z) number of patients with a lesion in each voxel
    rng : random generator
    number : number of regions
    shape, size : see :func:`element`
    patients, rule : see :func:`eligible`
    strata : number of groups of equal size into which the eligible centres are divided by
        the mean count of the region around them. The regions are drawn from the groups
        in turn, starting with the lowest counts; 3 gives terciles

    Returns
    -------
    tuple of ROI

    Raises
    ------
    OutOfRange
        If there are too few eligible centres, or they are too close together.
    """
    mask = _fitting_element(shape, size, np.shape(counts))
    allowed = np.argwhere(eligible(counts, patients=patients, element=mask, rule=rule))
    if len(allowed) < max(number, strata):
        raise OutOfRange(_too_few(counts, mask, len(allowed), max(number, strata), patients, rule))
    groups = [allowed] if strata == 1 else _strata(counts, allowed, mask, strata)
    for _ in range(_ATTEMPTS):
        centres = _draw_apart(groups, number, mask, np.shape(counts), rng)
        if centres is not None:
            return tuple(_place(f"roi{k}", centre, mask) for k, centre in enumerate(centres, 1))
    raise OutOfRange(
        f"{number} regions of {size} voxels must fit without overlap (strata={strata}), got {len(allowed)} eligible "
        f"centres, which were too close together in {_ATTEMPTS} attempts; set fewer regions (rois=), smaller ones "
        f"(roi_size=), fewer than {patients} patients (targets.scores.patients=), or targets.scores.rule=any"
    )


def _strata(counts: Array, allowed: Array, mask: Array, strata: int) -> list[Array]:
    """Groups of eligible centres of equal size, by the mean count of the region around them."""
    means = ndimage.correlate(np.asarray(counts, np.float32), mask / mask.sum(), mode="constant")[tuple(allowed.T)]
    return np.array_split(allowed[np.argsort(means, kind="stable")], strata)


def _draw_apart(
    groups: list[Array], number: int, mask: Array, grid: tuple[int, ...], rng: np.random.Generator
) -> list[tuple[int, int, int]] | None:
    """Centres of regions that do not overlap, or None if some could not be placed."""
    from scipy import signal  # slow to import, and not needed by workers

    # Two regions overlap if the element overlaps itself when shifted by the difference of the centres.
    meets = signal.correlate(mask.astype(float), mask.astype(float), method="direct") > 0.5
    reach = np.array(mask.shape) - 1
    free = np.ones(np.add(grid, 2 * reach), bool)  # with a margin, so that borders need no special case
    centres: list[tuple[int, int, int]] = []
    for k in range(number):
        group = groups[k % len(groups)]
        left = group[free[tuple((group + reach).T)]]
        if len(left) == 0:
            return None
        centre = _index(left[rng.integers(len(left))])
        centres.append(centre)
        box = tuple(slice(c, c + n) for c, n in zip(centre, meets.shape, strict=True))
        free[box] &= ~meets
    return centres


def _too_few(counts: Array, mask: Array, found: int, wanted: int, patients: int, rule: Rule) -> str:
    """Error message with remedies."""
    lowest = ndimage.minimum_filter if rule == "all" else ndimage.maximum_filter
    inside = eligible(np.ones(np.shape(counts), int), patients=1, element=mask)
    # For even sizes, the filters start at c − size//2 as well.
    reached = lowest(np.asarray(counts), footprint=mask, mode="nearest")[inside]
    size, best = mask.shape[0], int(np.sort(reached)[-wanted]) if len(reached) >= wanted else 0
    which = "every voxel of the region" if rule == "all" else "some voxel of the region"
    advice = [f"targets.scores.patients={best}"] if best >= 1 else []
    advice += [f"roi_size below {size}"] * (size > 1) + ["targets.scores.rule=any"] * (rule == "all")
    advice.append("more subjects")
    return (
        f"at least {wanted} voxels must be eligible as centres ({which} lesioned in at least {patients} patients), "
        f"got {found}; the highest count of any voxel is {int(np.max(counts, initial=0))}; try {', '.join(advice)}"
    )


def _place(name: str, centre: tuple[int, int, int], mask: Array) -> ROI:
    return ROI(name, centre, _index(c - n // 2 for c, n in zip(centre, mask.shape, strict=True)), mask)


def _index(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _refuse_overlap(rois: Sequence[ROI]) -> None:
    shared = []
    for one, other in itertools.combinations(rois, 2):
        end = np.maximum(np.add(one.low, one.mask.shape), np.add(other.low, other.mask.shape))
        grid = tuple(int(n) for n in end)
        overlap = int(np.count_nonzero(one.volume(grid) & other.volume(grid)))
        if overlap:
            shared.append(f"{one.name} around {one.centre} and {other.name} around {other.centre} share {overlap}")
    if shared:
        raise OutOfRange(f"regions must not overlap, but {'; '.join(shared)} voxels; move the centres apart")


# ----------------------------------------------------------------- scores


def loads(mask: Array, rois: Sequence[ROI]) -> Array:
    """Lesioned fraction of each region of one subject.

    Parameters
    ----------
    mask : (X, Y, Z) occupancy in [0, 1], or bool
    rois : R regions

    Returns
    -------
    (R,) float64 in [0, 1]
    """
    return np.array([float(np.mean(mask[roi.slices][roi.mask], dtype=np.float64)) for roi in rois])


def score_weights(
    design: Design,
    regions: Annotated[int, Gt(0)] = 3,
    *,
    b: Annotated[float, Ge(0), Le(1)] = 0.9,
    weights: Sequence[float] | None = None,
) -> Array:
    """Weight of the load of each region in each score.

    Parameters
    ----------
    design : ``single`` gives one score from all regions; ``multi`` one score per region;
        ``intercorrelation`` one score per region, where the first score is the load of
        its region, score k is b·L_k + (1−b)·L_{k+1}, and the last score includes the
        first region
    regions : number of regions, R
    b : weight of the own region of a score, for ``intercorrelation``
    weights : (R,) relative weights for ``single``; equal by default

    Returns
    -------
    (K, R) float64
        Non-negative; every row sums to one, so that scores lie in [0, 1] as loads do.

    Raises
    ------
    OutOfRange
        If there are not R weights, if one is negative, or if all are zero.

    Notes
    -----
    The publication sums three loads without dividing by three. This factor affects
    neither R² nor rankings of voxels.
    """
    if design == "multi":
        return np.eye(regions)
    if design == "intercorrelation":
        table = b * np.eye(regions) + (1 - b) * np.roll(np.eye(regions), 1, axis=1)
        table[0] = np.eye(regions)[0]
        return table
    row = np.ones(regions) if weights is None else np.asarray(weights, np.float64)
    if row.shape != (regions,) or not np.all(row >= 0) or not 0 < row.sum() < np.inf:
        raise OutOfRange(
            f"weights must be {regions} finite numbers, one per region, non-negative and not all zero, "
            f"got {np.round(row, 6).tolist()}; for example {[1.0] * regions}"
        )
    return np.asarray(row[None] / row.sum())


@dataclass(frozen=True, eq=False)
class Scores:
    """Simulated scores of n subjects.

    Parameters
    ----------
    targets : (n, K) float64, noisy and scaled scores, which models are trained on
    clean : (n, K) float64, weighted loads after the nonlinearity, with the effect of
        volume, without that of age, noise and scaling; in [0, 1] if the rows of the weights
        sum to one and volume has no effect
    expected : (n, K) float64, best prediction of ``targets`` from the image: the clean
        score on the scale of the targets, ((1−a)·clean − low) / (high − low)
    low, high : (K,) scores that are scaled to 0 and 1; 0 and 1 without scaling
    """

    targets: Array
    clean: Array
    expected: Array
    low: Array
    high: Array


def scores(
    loads: Array,
    weights: Array,
    rng: np.random.Generator,
    *,
    nonlinearity: Nonlinearity = "none",
    strength: Annotated[float, Gt(0)] = 9.0,
    noise: Annotated[float, Ge(0), Lt(1)] = 0.0,
    scaling: Scaling = "cohort",
    volumes: Array | None = None,
    volume_effect: Annotated[float, Ge(0)] = 0.0,
    ages: Array | None = None,
    age_effect: Annotated[float, Ge(0)] = 0.0,
) -> Scores:
    """Simulate scores from loads.

    Parameters
    ----------
    loads : (n, R) lesioned fraction of each region
    weights : (K, R), see :func:`score_weights`
    rng : random generator of the noise; always draws n · K numbers, also without noise
    nonlinearity : function of the weighted sum s. ``log`` is log(1 + k·s) / log(1 + k),
        so that the first lesioned voxels have the largest effect; ``exp`` is
        ((1 + k)^s − 1) / k, so that the last ones do. Both map 0 to 0 and 1 to 1, and
        they are inverse functions. ``threshold`` is 1 if s exceeds half of its maximum over
        the subjects, and 0 otherwise. ``disconnection`` is 1 − Π (1 − load)^(w / max w)
        over the regions with weights w: a lesion of any region disconnects a network, and
        lesions of others then matter less. For a single region, it is the load
    strength : k. With 9, a load of 0.5 becomes 0.74 (log) or 0.24 (exp)
    noise : a in (1−a)·s + a·N(0, SD(s)), independent for each subject and score; the SD is
        the population SD of the n clean scores
    scaling : ``cohort`` scales each noisy score to [0, 1] over the cohort; ``none`` leaves
        scores unchanged. To scale by the training subjects only, use ``none`` and
        ``target_range="training"`` of :func:`~harness.adapters.lesion_volume.lesion_volume`
    volumes, ages : (n,) lesion volumes and ages of the subjects, if they have an effect
    volume_effect : increase of a score, in SDs of the score from the loads, per SD of the
        square root of the volume
    age_effect : the same per SD of age. Age cannot be predicted from the image exactly, and
        is not part of the clean scores

    Returns
    -------
    Scores

    Raises
    ------
    OutOfRange
        If the shapes do not match, if a score is constant, if a score exceeds [0, 1]
        before a nonlinearity, if volumes or ages with an effect are missing or not finite,
        or if the scaling is unknown. Clipping is not supported,
        because it is not affine and changes the highest R² that can be reached.
    """
    table, rows = np.asarray(loads, np.float64), np.asarray(weights, np.float64)
    if table.ndim != 2 or rows.ndim != 2 or table.shape[1] != rows.shape[1]:
        raise OutOfRange(
            f"loads (n, R) and weights (K, R) must have one column per region, got {table.shape} and {rows.shape}"
        )
    clean = (
        _disconnected(table, rows) if nonlinearity == "disconnection" else _bent(table @ rows.T, nonlinearity, strength)
    )
    # Rounding can give a constant score a small spread.
    _refuse_constant(clean, np.ptp(clean, axis=0) <= 1e-12)
    of_age = age_effect * clean.std(axis=0) * _standardised("ages", ages, len(table), age_effect)
    if volume_effect:
        roots = _standardised("volumes", None if volumes is None else np.sqrt(volumes), len(table), volume_effect)
        clean = clean + volume_effect * clean.std(axis=0) * roots
    drawn = rng.standard_normal(clean.shape)
    noisy = (1 - noise) * (clean + of_age) + noise * clean.std(axis=0) * drawn
    if scaling == "cohort":
        low, high = noisy.min(axis=0), noisy.max(axis=0)
    elif scaling == "none":
        low, high = np.zeros(clean.shape[1]), np.ones(clean.shape[1])
    else:
        raise OutOfRange(
            f"scaling must be cohort or none, got {scaling!r}; clipping to [0, 1] is not supported, because it is "
            "not affine and changes the highest R² that can be reached"
        )
    return Scores((noisy - low) / (high - low), clean, ((1 - noise) * clean - low) / (high - low), low, high)


def r2_ceiling(noise: float | Array) -> float | Array:
    """Highest R² for noisy scores that a prediction from the image can reach.

    This is (1−a)² / ((1−a)² + a²) for the noise level a of :func:`scores`, independent of
    affine scaling.
    """
    kept = (1 - noise) ** 2
    return kept / (kept + noise**2)


def _standardised(name: str, values: Array | None, n: int, effect: float) -> Array:
    """Values as (n, 1) with mean 0 and SD 1; zeros if they have no effect or are all equal."""
    if not effect:
        return np.zeros((n, 1))
    given = np.asarray([] if values is None else values, np.float64)
    if given.shape != (n,) or not np.isfinite(given).all():
        raise OutOfRange(
            f"{name} with an effect must be {n} finite numbers, one per subject, got {np.isfinite(given).sum()}; "
            "leave out subjects without a value, or set the effect to 0"
        )
    spread = given.std()
    return np.asarray((given - given.mean()) / (spread if spread > 0 else 1.0))[:, None]


def _disconnected(loads: Array, weights: Array) -> Array:
    """1 − Π (1 − load)^(w / max w), (n, K)."""
    _refuse_beyond(loads, "loads", "disconnection")
    powers = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-300)
    intact = np.clip(1 - loads, 0, 1)
    return np.asarray(1 - np.stack([np.prod(intact**power, axis=1) for power in powers], axis=1))


def _refuse_beyond(values: Array, what: str, nonlinearity: str) -> None:
    if values.min(initial=0) < -1e-9 or values.max(initial=0) > 1 + 1e-9:
        raise OutOfRange(
            f"`0 <= {what} <= 1` must hold for nonlinearity={nonlinearity}, got {values.min():.4g} to "
            f"{values.max():.4g}; use non-negative weights, with rows that sum to one"
        )


def _bent(score: Array, nonlinearity: Nonlinearity, strength: float) -> Array:
    if nonlinearity == "none":
        return score
    _refuse_beyond(score, "weights · loads", nonlinearity)
    if nonlinearity == "threshold":
        return np.asarray(score > score.max(axis=0) / 2, np.float64)
    if nonlinearity == "log":
        bent: Array = np.log1p(strength * score) / np.log1p(strength)
    else:
        bent = np.expm1(np.log1p(strength) * score) / strength
    return bent


def _refuse_constant(values: Array, constant: Array) -> None:
    if constant.any():
        which = ", ".join(f"score {k + 1} (all {values[0, k]:.4g})" for k in np.flatnonzero(constant))
        raise OutOfRange(
            f"a score must vary between subjects, got {which} over {len(values)} subjects; "
            "choose a region where more patients have lesions"
        )


# ----------------------------------------------------------------- table


@dataclass(frozen=True)
class ROIRow:
    """Statistics of a region.

    Parameters
    ----------
    name : name of the region
    centre_voxel, centre_mm : voxel index and world coordinates of the centre
    size_voxels, size_mm : edges of the bounding box along the axes of the image
    voxels : number of voxels in the region
    patients : number of subjects
    touched : number of subjects with a load above zero
    mean_load : mean load over all subjects
    prevalence_max, prevalence_mean : maximum and mean over the voxels of the region of the
        share of subjects with a lesion
    volume_rho : Spearman correlation of load and total lesion volume; NaN if either is
        constant
    """

    name: str
    centre_voxel: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    size_voxels: tuple[int, int, int]
    size_mm: tuple[float, float, float]
    voxels: int
    patients: int
    touched: int
    mean_load: float
    prevalence_max: float
    prevalence_mean: float
    volume_rho: float


def roi_table(rois: Sequence[ROI], loads: Array, counts: Array, volumes: Array, affine: Array) -> tuple[ROIRow, ...]:
    """Statistics of all regions.

    Parameters
    ----------
    rois : R regions
    loads : (n, R) lesioned fraction of each region
    counts : (X, Y, Z) number of patients with a lesion in each voxel
    volumes : (n,) total lesion volumes, in any unit
    affine : (4, 4) voxel-to-world matrix in mm
    """
    from scipy import stats

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rows = []
    for roi, load in zip(rois, np.asarray(loads, np.float64).T, strict=True):
        share = np.asarray(counts)[roi.slices][roi.mask] / len(load)
        varied = np.ptp(load) > 0 and np.ptp(volumes) > 0
        rows.append(
            ROIRow(
                name=roi.name,
                centre_voxel=roi.centre,
                centre_mm=_mm(affine[:3, :3] @ roi.centre + affine[:3, 3]),
                size_voxels=_index(roi.mask.shape),
                size_mm=_mm(np.multiply(roi.mask.shape, spacing)),
                voxels=roi.voxels,
                patients=len(load),
                touched=int(np.count_nonzero(load > 0)),
                mean_load=float(load.mean()),
                prevalence_max=float(share.max()),
                prevalence_mean=float(share.mean()),
                volume_rho=float(stats.spearmanr(load, volumes).statistic) if varied else float("nan"),
            )
        )
    return tuple(rows)


def _mm(values: Array) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
