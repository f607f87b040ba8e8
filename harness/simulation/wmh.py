"""White-matter hyperintensities of a memory clinic, as masks in one template space.

There are no images, only masks: lesion-symptom mapping sees where lesions are. The
anatomy is one head (:mod:`harness.simulation.brain`) for all subjects, as after
registration to a template. Lesions spread from the lateral ventricles, first as caps
around the horns and bands along the body, then into the depth, and foci lie
scattered in the deep white matter. How much a subject has is drawn; the rest follows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
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

# The publication's Table I: 67.5 ± 8.5 years, 382 women of 821, and volumes in the
# template's space with median 8.02 ml and quartiles 3.25 and 21.34 ml. A log-normal
# distribution with that median and that ratio of quartiles has this spread.
AGE_MEAN, AGE_SPREAD, WOMEN = 67.5, 8.5, 382 / 821
VOLUME_ML, VOLUME_SPREAD = 8.02, math.log(21.34 / 3.25) / (2 * 0.6745)
# Nobody has less than a hundredth or more than the 99th, which is some 200 ml.
WIDEST = 2.33
# Volume grows exponentially with age, with wide variation at any age (de Kort et al. 2025).
# How much of it age explains here is an assumption.
AGE_CORRELATION = 0.4

# The middle of the field of view in the head's space; 152 × 179 × 142 mm around it is a brain.
MIDDLE_MM = (0.0, -20.5, 11.0)
# White matter so close to the cortex is spared (Wen & Sachdev 2004).
SPARED_MM = 4.0
# Half the width of the callosum and the septum, which are spared.
MIDLINE_MM = 7.0

# Places prone to lesions, relative to the most prone, by (side, y, z) and width in mm: caps
# before the frontal and behind the occipital horns, bands along the roof of the body, the
# temporal horns (Fazekas et al. 1987 name caps and bands). Proneness falls to a floor between
# them, and exponentially with the distance from the ventricle. Widths and decay are set such
# that regions in the four caps have mean loads and rank correlations with total volume as in
# the publication's Table II (.50 to .69, .71 to .78).
PLACES = (
    ((14.0, 34.0, 10.0), 7.0, 1.0),
    ((26.0, -56.0, 8.0), 8.0, 1.0),
    ((20.0, 2.0, 24.0), 8.0, 0.7),
    ((24.0, -28.0, 22.0), 8.0, 0.7),
    ((33.0, -20.0, -14.0), 6.0, 0.4),
)
ELSEWHERE = 0.05
DECAY_MM = 10.0

# Foci: median volume in mm³ and its spread. With a fifth of the volume in foci a subject of
# median volume has some 20, as Wen & Sachdev (2004) counted (19.6 ± 7.1). They thin out away
# from the ventricles over this distance.
FOCUS_MM3, FOCUS_SPREAD, FOCUS_REACH_MM = 50.0, 0.9, 20.0


@dataclass(frozen=True, eq=False)
class _Template:
    """The white matter that may be hyperintense.

    Parameters
    ----------
    voxels : (N,) flat indices on the grid
    points_mm : (N, 3) float32, in the head's space
    resistance : (N,) float32, minus the logarithm of how prone a voxel is: the lower, the
        earlier a lesion covers it
    focal : (N,) float64 cumulative weight of a focus around each voxel
    lookup : (X, Y, Z) int32, place of each voxel in the lists above, -1 elsewhere
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
    source="cohort imitated: Boomsma et al. 2017 (TRACE-VCI), doi:10.2196/resprot.6864",
    target="wmh",
    label_source="known by construction",
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
    """One subject's white-matter hyperintensities in template space.

    Parameters
    ----------
    seed, subject : name the random streams; a subject does not depend on how many
        others there are
    shape, spacing_mm : voxels of the template and their edge. The default holds a
        brain at 2 mm; (152, 179, 142) at 1 mm is the published grid. Another field of
        view has the same middle
    median_ml, spread : of the lesion volume, which is log-normal: the defaults are
        the published cohort's, with quartiles of 3.1 and 20.5 ml around 8.02
    deep_share : of the volume that lies in scattered foci, on average
    patchiness : standard deviation, from place to place within a subject, of the
        logarithm of how prone white matter is; 0 makes all subjects grow alike
    symmetry : correlation of that between the two hemispheres

    Returns
    -------
    PhantomSubject
        No images. Masks ``wmh`` and ``brain`` (uint8). Covariates ``age`` (years),
        ``sex`` (``F`` or ``M``) and ``wmh_ml``, the volume of the mask.

    Raises
    ------
    OutOfRange
        If the field of view holds too little white matter for the subject's volume.

    Notes
    -----
    Every voxel of white matter is prone to lesions by its distance from the lateral
    ventricles, its place along them and the subject's own variation there; the most
    prone are hyperintense, as many as make up the volume that was drawn. So lesions grow
    smoothly out of the periventricular zone as the burden increases, which is how DeCarli
    et al. (2005) found it. Foci of log-normal size are laid first.

    Taken from publications: volumes, age, sex, the spared rim, the number of foci, and by
    calibration loads and their correlations with volume (Table II of the publication).
    Assumed: where caps and bands lie, the share of foci, the correlation of log volume
    with age (.4). None of it looks at any model or explanation.

    References
    ----------
    Boomsma et al. 2017, doi:10.2196/resprot.6864. DeCarli et al. 2005,
    doi:10.1161/01.STR.0000150668.58689.f2. Fazekas et al. 1987,
    doi:10.2214/ajr.149.2.351. de Kort et al. 2025,
    doi:10.1016/j.neurobiolaging.2024.11.006. Wen & Sachdev 2004,
    doi:10.1016/j.neuroimage.2003.12.027.
    """

    def stream(*names: str) -> np.random.Generator:
        return generator(seed, "data", subject, *names)

    template = _template(tuple(shape), float(spacing_mm))
    age, sex, volume_ml = _draw_person(stream("person"), median_ml, spread)
    voxel_ml = spacing_mm**3 / 1000
    wanted = max(round(volume_ml / voxel_ml), 1)
    if wanted > len(template.voxels):
        raise OutOfRange(
            f"the lesion volume must fit into the template's white matter, got {volume_ml:.0f} ml for subject "
            f"{subject} and {len(template.voxels) * voxel_ml:.0f} ml of it in shape={tuple(shape)} at {spacing_mm} mm; "
            "take a larger field of view, or a smaller median_ml or spread"
        )
    chosen = _foci(stream("foci"), template, deep_share, volume_ml * 1000, spacing_mm)
    variation = _variation(stream("variation"), template.points_mm, symmetry)
    order = template.resistance + np.float32(patchiness) * variation
    order[chosen] = -np.inf
    # The foci first, then outwards from the ventricles.
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
    """White matter of one head of middling size and the cohort's age, the same for every seed."""
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
    # Cerebellum and brain stem have lesions of their own kind.
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
    """How far lesions reach from the ventricles at each point (N, 3), relative to the furthest; (N,) float32."""
    places = np.full(len(points), ELSEWHERE, np.float32)
    aside = np.stack([np.abs(points[:, 0]), points[:, 1], points[:, 2]], axis=1)
    for middle, width, reach in PLACES:
        near = np.exp(-np.sum((aside - np.array(middle, np.float32)) ** 2, axis=1) / np.float32(2 * width**2))
        places = np.maximum(places, np.float32(ELSEWHERE) + np.float32(reach - ELSEWHERE) * near)
    return places


def _variation(rng: np.random.Generator, points: Array, symmetry: float) -> Array:
    """Smooth random field of unit spread, (N,) float32, correlated between the hemispheres."""
    mirrored = np.abs(points[:, :1]), points[:, 1:]
    shared = _waves(rng, np.concatenate(mirrored, axis=1))
    own = _waves(rng, points)
    return np.float32(math.sqrt(symmetry)) * shared + np.float32(math.sqrt(1 - symmetry)) * own


def _waves(rng: np.random.Generator, points: Array, number: int = 12) -> Array:
    """Sum of waves of 20 to 60 mm in random directions, unit spread, (N,) float32."""
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
    """Which of the template's voxels lie in scattered foci, (N,) bool."""
    chosen = np.zeros(len(template.voxels), bool)
    if deep_share == 0:
        return chosen
    # From subject to subject the share spreads by some .09 around .2.
    left = volume_mm3 * rng.beta(20 * deep_share, 20 * (1 - deep_share))
    while left > 0:
        volume = FOCUS_MM3 * math.exp(FOCUS_SPREAD * float(np.clip(rng.normal(), -WIDEST, WIDEST)))
        middle = np.searchsorted(template.focal, rng.uniform(0, template.focal[-1]), side="right")
        inside = _ellipsoid(rng, template, int(middle), volume, spacing_mm)
        chosen[inside] = True
        left -= volume
    return chosen


def _ellipsoid(rng: np.random.Generator, template: _Template, middle: int, volume: float, spacing_mm: float) -> Array:
    """Indices of the template's voxels in an ellipsoid of revolution around one of them."""
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
