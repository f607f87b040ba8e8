"""White-matter hyperintensities (WMH) of a memory clinic, as masks in template space.

Only masks are generated, because lesion-symptom mapping needs no images. All subjects
have the same anatomy (:mod:`harness.simulation.brain`), as after registration to a
template. Lesions grow from the lateral ventricles: first as caps around the horns and
bands along the body, then into the deep white matter, which also contains scattered
foci. The lesion volume of a subject is drawn from a distribution.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from harness.core.errors import OutOfRange
from harness.core.registry import PHANTOMS
from harness.core.seeding import generator
from harness.core.types import Array
from harness.simulation.brain import CORTEX_MM, Grid, anatomy, draw_head
from harness.simulation.phantom import PhantomSubject

__all__ = ["wmh_phantom"]

# From Table I of the publication: 67.5 ± 8.5 years, 382 of 821 women, and volumes in
# template space with a median of 8.02 ml and quartiles of 3.25 and 21.34 ml. The spread is
# that of a log-normal distribution with this median and ratio of quartiles.
AGE_MEAN, AGE_SPREAD, WOMEN = 67.5, 8.5, 382 / 821
VOLUME_ML, VOLUME_SPREAD = 8.02, math.log(21.34 / 3.25) / (2 * 0.6745)
# Volumes are limited to the 1st and 99th percentile; the latter is about 200 ml.
WIDEST = 2.33
# Volume increases exponentially with age and varies widely at any age (de Kort et al. 2025).
# The correlation is an assumption.
AGE_CORRELATION = 0.4

# Centre of the field of view in head coordinates; 152 × 179 × 142 mm around it contain the brain.
MIDDLE_MM = (0.0, -20.5, 11.0)
# White matter within this distance of the cortex is spared (Wen & Sachdev 2004).
SPARED_MM = 4.0
# Half width of the corpus callosum and the septum, which are spared.
MIDLINE_MM = 7.0

# Locations with a high susceptibility to lesions: (|x|, y, z) and width in mm, and susceptibility
# relative to the maximum. They are caps anterior to the frontal and posterior to the occipital
# horns, bands along the roof of the body, and the temporal horns (caps and bands as in Fazekas
# et al. 1987). Between them, susceptibility has a constant minimum; it decreases exponentially
# with the distance from the ventricle. Widths and decay are calibrated so that regions in the
# four caps have mean loads and rank correlations with total volume as in Table II of the
# publication (0.50 to 0.69 and 0.71 to 0.78).
PLACES = (
    ((14.0, 34.0, 10.0), 7.0, 1.0),
    ((26.0, -56.0, 8.0), 8.0, 1.0),
    ((20.0, 2.0, 24.0), 8.0, 0.7),
    ((24.0, -28.0, 22.0), 8.0, 0.7),
    ((33.0, -20.0, -14.0), 6.0, 0.4),
)
ELSEWHERE = 0.05
DECAY_MM = 10.0

# Foci: median volume in mm³, its spread, and the decay of their density with the distance from
# the ventricles in mm. With 20 % of the volume in foci, a subject with the median volume has
# about 20 foci, as counted by Wen & Sachdev (2004) (19.6 ± 7.1).
FOCUS_MM3, FOCUS_SPREAD, FOCUS_REACH_MM = 50.0, 0.9, 20.0


@dataclass(frozen=True, eq=False)
class _Template:
    """White matter that may be hyperintense.

    Parameters
    ----------
    voxels : (N,) flat indices on the grid
    points_mm : (N, 3) float32, in head coordinates
    resistance : (N,) float32, negative logarithm of the susceptibility; voxels with low
        resistance are affected first
    focal : (N,) float64, cumulative probability weight of a focus at each voxel
    lookup : (X, Y, Z) int32, index of each voxel in the arrays above, -1 elsewhere
    brain : (X, Y, Z) bool
    """

    voxels: Array
    points_mm: Array
    resistance: Array
    focal: Array
    lookup: Array
    brain: Array


@PHANTOMS.register(
    "wmh_phantom",
    source="modelled on the cohort of Boomsma et al. 2017 (TRACE-VCI), doi:10.2196/resprot.6864",
    target="wmh",
    label_source="known by construction",
    space="MNI152",
)
def wmh_phantom(
    seed: int,
    subject: int,
    *,
    shape: tuple[int, int, int] = (76, 90, 71),
    spacing_mm: Annotated[float, Gt(0)] = 2.0,
    median_ml: Annotated[float, Gt(0)] = VOLUME_ML,
    spread: Annotated[float, Ge(0)] = VOLUME_SPREAD,
    deep_share: Annotated[float, Ge(0), Lt(1)] = 0.2,
    patchiness: Annotated[float, Ge(0)] = 0.5,
    symmetry: Annotated[float, Ge(0), Le(1)] = 0.8,
) -> PhantomSubject:
    """White-matter hyperintensities of one subject in template space.

    Parameters
    ----------
    seed, subject : determine the random streams; a subject does not depend on the number
        of subjects
    shape : number of voxels of the template along each axis. The default contains the
        brain at 2 mm; (152, 179, 142) at 1 mm is the published grid. The centre is the
        same for all shapes
    spacing_mm : voxel size of the template in mm
    median_ml : median of the log-normal lesion volume in ml; the default is that of the
        published cohort
    spread : standard deviation of the logarithm of the lesion volume; with the default,
        the quartiles are 3.1 and 20.5 ml
    deep_share : mean share of the lesion volume that lies in scattered foci
    patchiness : standard deviation of the logarithm of the local susceptibility to
        lesions within a subject; with 0, lesions grow in the same order in all subjects
    symmetry : correlation of the local susceptibility between hemispheres

    Returns
    -------
    PhantomSubject
        No images. Masks ``wmh`` and ``brain`` (uint8). Covariates ``age`` (years),
        ``sex`` (``F`` or ``M``) and ``wmh_ml``, the volume of the mask.

    Raises
    ------
    OutOfRange
        If the field of view contains less white matter than the lesion volume.

    Notes
    -----
    The susceptibility of a white-matter voxel depends on its distance from the lateral
    ventricles, its position along them, and a random field of the subject. After foci of
    log-normal size are placed, the most susceptible voxels become hyperintense until the
    lesion volume is reached. Lesions thus grow continuously out of the periventricular
    zone with increasing burden, as observed by DeCarli et al. (2005).

    Published values: volumes, age, sex, the spared rim, the number of foci and, by
    calibration, the loads and their correlations with volume (Table II of the
    publication). Assumptions: the locations of caps and bands, the share of foci, and
    the correlation of log volume with age (0.4). No value was chosen with regard to a
    model or an explanation.

    References
    ----------
    Boomsma et al. 2017, doi:10.2196/resprot.6864. DeCarli et al. 2005,
    doi:10.1161/01.STR.0000150668.58689.f2. Fazekas et al. 1987,
    doi:10.2214/ajr.149.2.351. de Kort et al. 2025,
    doi:10.1016/j.neurobiolaging.2024.11.006. Wen & Sachdev 2004,
    doi:10.1016/j.neuroimage.2003.12.027.
    """

    stream = partial(generator, seed, "data", subject)
    template = _template(tuple(shape), float(spacing_mm))
    age, sex, volume_ml = _draw_person(stream("person"), median_ml, spread)
    voxel_ml = spacing_mm**3 / 1000
    wanted = max(round(volume_ml / voxel_ml), 1)
    if wanted > len(template.voxels):
        raise OutOfRange(
            f"the lesion volume must fit into the template's white matter, got {volume_ml:.0f} ml for subject "
            f"{subject} and {len(template.voxels) * voxel_ml:.0f} ml of it in shape={tuple(shape)} at {spacing_mm} mm; "
            "increase shape, or reduce median_ml or spread"
        )
    chosen = _foci(stream("foci"), template, deep_share, volume_ml * 1000, spacing_mm)
    variation = _variation(stream("variation"), template.points_mm, symmetry)
    order = template.resistance + np.float32(patchiness) * variation
    order[chosen] = -np.inf
    # Foci first, then outwards from the ventricles.
    count = max(wanted, int(np.count_nonzero(chosen)))
    chosen[np.argpartition(order, count - 1)[:count]] = True
    mask = np.zeros(template.brain.shape, np.uint8)
    mask.ravel()[template.voxels[chosen]] = 1
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.subtract(MIDDLE_MM, [(n - 1) / 2 * spacing_mm for n in shape])
    return PhantomSubject(
        images={},
        masks={"wmh": (mask, affine), "brain": (template.brain.astype(np.uint8), affine)},
        covariates={"age": age, "sex": sex, "wmh_ml": round(float(mask.sum() * voxel_ml), 3)},
    )


def _draw_person(rng: np.random.Generator, median_ml: float, spread: float) -> tuple[float, str, float]:
    """Age in years, sex, and lesion volume in ml."""
    common, own = np.clip(rng.normal(size=2), -WIDEST, WIDEST)
    burden = AGE_CORRELATION * common + math.sqrt(1 - AGE_CORRELATION**2) * own
    age = round(float(AGE_MEAN + AGE_SPREAD * common), 1)
    volume = median_ml * math.exp(spread * float(np.clip(burden, -WIDEST, WIDEST)))
    return age, "F" if rng.random() < WOMEN else "M", volume


@lru_cache(maxsize=2)
def _template(shape: tuple[int, int, int], spacing_mm: float) -> _Template:
    """White matter of a head of average size at the mean age of the cohort, the same for all seeds."""
    if len(shape) != 3 or min(shape) < 8:
        raise OutOfRange(
            f"shape must be three sizes of at least 8 voxels, got {tuple(shape)}; for example (76, 90, 71)"
        )
    low = tuple(middle - size * spacing_mm / 2 for middle, size in zip(MIDDLE_MM, shape, strict=True))
    grid = Grid(shape, (spacing_mm,) * 3, (low[0], low[1], low[2]))
    head = dataclasses.replace(draw_head(np.random.default_rng(0), AGE_MEAN), size=1.0, atrophy=0.3)
    body = anatomy(grid, head)
    nuclei = np.minimum.reduce([body.striatum, body.pallidum, body.thalamus, body.midbrain, body.third_ventricle])
    brain = body.surface < 0
    free = brain & (body.pial > CORTEX_MM + SPARED_MM) & (body.ventricles > 0) & (nuclei > 0)
    # Cerebellum and brain stem are excluded: their lesions differ.
    free &= (np.abs(grid.axes[0]) > MIDLINE_MM) & (body.regions > 0)
    voxels = np.flatnonzero(free)
    points = grid.points(np.argwhere(free) + 0.5).astype(np.float32)
    away = body.ventricles[free]
    lookup = np.full(shape, -1, np.int32)
    lookup.ravel()[voxels] = np.arange(len(voxels), dtype=np.int32)
    return _Template(
        voxels=voxels,
        points_mm=points,
        resistance=away / np.float32(DECAY_MM) - np.log(_proneness(points)),
        focal=np.cumsum(np.exp(-away.astype(np.float64) / FOCUS_REACH_MM)),
        lookup=lookup,
        brain=brain,
    )


def _proneness(points: Array) -> Array:
    """Susceptibility along the ventricles at points (N, 3), relative to the maximum; (N,) float32."""
    places = np.full(len(points), ELSEWHERE, np.float32)
    aside = np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]], axis=1)
    for middle, width, reach in PLACES:
        near = np.exp(-np.sum((aside - np.array(middle, np.float32)) ** 2, axis=1) / np.float32(2 * width**2))
        places = np.maximum(places, np.float32(ELSEWHERE) + np.float32(reach - ELSEWHERE) * near)
    return places


def _variation(rng: np.random.Generator, points: Array, symmetry: float) -> Array:
    """Smooth random field with unit variance, (N,) float32, correlated between the hemispheres."""
    mirrored = np.abs(points[:, :1]), points[:, 1:]
    shared = _waves(rng, np.concatenate(mirrored, axis=1))
    own = _waves(rng, points)
    return np.float32(math.sqrt(symmetry)) * shared + np.float32(math.sqrt(1 - symmetry)) * own


def _waves(rng: np.random.Generator, points: Array, number: int = 12) -> Array:
    """Sum of waves with wavelengths of 20 to 60 mm in random directions, unit variance, (N,) float32."""
    directions = rng.normal(size=(number, 3))
    steps = 2 * math.pi / rng.uniform(20, 60, size=(number, 1))
    waves = (steps * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    total = np.zeros(len(points), np.float32)
    for wave, shift in zip(waves, rng.uniform(0, 2 * math.pi, size=number), strict=True):
        total += np.cos(points @ wave + np.float32(shift))
    return total / np.float32(math.sqrt(number / 2))


def _foci(
    rng: np.random.Generator, template: _Template, deep_share: float, volume_mm3: float, spacing_mm: float
) -> Array:
    """Voxels of the template that lie in scattered foci, (N,) bool."""
    chosen = np.zeros(len(template.voxels), bool)
    if deep_share == 0:
        return chosen
    # With the default, the share is about 0.20 ± 0.09 between subjects.
    left = volume_mm3 * rng.beta(20 * deep_share, 20 * (1 - deep_share))
    while left > 0:
        volume = FOCUS_MM3 * math.exp(FOCUS_SPREAD * float(np.clip(rng.normal(), -WIDEST, WIDEST)))
        middle = np.searchsorted(template.focal, rng.uniform(0, template.focal[-1]), side="right")
        inside = _ellipsoid(rng, template, int(middle), volume, spacing_mm)
        chosen[inside] = True
        left -= volume
    return chosen


def _ellipsoid(rng: np.random.Generator, template: _Template, middle: int, volume: float, spacing_mm: float) -> Array:
    """Indices of the template's voxels in a random ellipsoid of revolution around a voxel."""
    radius, stretch = (3 * volume / (4 * math.pi)) ** (1 / 3), rng.uniform(1, 1.6)
    narrow, direction = radius / math.sqrt(stretch), rng.normal(size=3)
    reach = math.ceil(radius * stretch / spacing_mm)
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = steps * spacing_mm + rng.uniform(-0.5, 0.5, size=3) * spacing_mm
    along = offsets @ direction / np.linalg.norm(direction)
    across = np.maximum((offsets**2).sum(axis=1) - along**2, 0)
    within = across / narrow**2 + (along / (narrow * stretch**1.5)) ** 2 <= 1
    shape = template.lookup.shape
    places = np.stack(np.unravel_index(template.voxels[middle], shape)) + steps[within]
    places = places[np.all((places >= 0) & (places < shape), axis=1)]
    found = template.lookup[tuple(places.T)]
    known: Array = found[found >= 0]
    return known
