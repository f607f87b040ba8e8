"""Quantitative MRI of patients with multiple sclerosis, whose disability depends on damage of one tract.

All patients have the same anatomy (:mod:`harness.simulation.brain`), as after registration
to a template, apart from their ventricles. Disability follows mostly from the damage of the
corticospinal tract, which is therefore the truth of every map. Age, lesions, the scanner
and noise change the images as well, and age and lesions also have a part in disability.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
from annotated_types import Ge

from harness.core.errors import OutOfRange
from harness.core.registry import PHANTOMS
from harness.core.seeding import generator
from harness.core.types import Array
from harness.simulation.brain import CORTEX_MM, Anatomy, Grid, anatomy, draw_head, filled
from harness.simulation.phantom import PhantomSubject

__all__ = ["CONTRASTS", "edss_of", "ms_phantom", "tract_share"]

CONTRASTS = ("qT1", "MWF", "NDI")
"""Longitudinal relaxation time in ms, myelin water fraction, neurite density index."""

# White matter, grey matter, cerebrospinal fluid
TISSUES = {"qT1": (830.0, 1350.0, 2500.0), "MWF": (0.11, 0.03, 0.0), "NDI": (0.60, 0.38, 0.0)}
# Tract minus other white matter; effect of one standard deviation of damage on the tract; and the standard
# deviation of the tract's mean that is not damage
TRACT = {"qT1": (20.0, 110.0, 79.0), "MWF": (0.02, -0.033, 0.046), "NDI": (0.06, -0.090, 0.077)}
# Standard deviation of all white matter between patients, effect of a year of age, of a lesion, and voxel noise
WHITE = {"qT1": (25.0, 1.0, 350.0, 50.0), "MWF": (0.010, -0.0003, -0.06, 0.030), "NDI": (0.020, -0.0005, -0.20, 0.050)}
LIMITS = {"qT1": (0.0, 2500.0), "MWF": (0.0, 0.30), "NDI": (0.0, 1.0)}
SCANNER = 0.01  # relative difference of all values between the two scanners

# Shares of damage, age and lesions in the latent disability; the rest has the remaining variance
DAMAGE, AGE, LESIONS = 0.80, 0.35, 0.20

# From the text of the publication: 166 patients, 99 women, 66 with progressive disease, 66 with a second visit
# after two years, 40 with EDSS >= 5, median EDSS 2.5, 45.9 ± 14.3 years
PATIENTS, SECOND_VISITS, PROGRESSIVE, WOMEN = 166, 66, 66 / 166, 99 / 166
AGE_MEAN, AGE_SPREAD, AGE_RANGE, YEARS = 45.9, 14.3, (18.0, 80.0), 2.0
# EDSS at shares of the patients, ordered by latent disability. The share with 5 or more and the median are
# published; the rest is an assumption
EDSS_SHARES = (0.0, 0.08, 0.25, 0.50, 0.70, 126 / 166, 126 / 166, 0.90, 1.0)
EDSS_VALUES = (0.0, 1.0, 1.5, 2.5, 3.5, 4.5, 5.0, 6.0, 7.5)
CHANGE, CHANGE_SPREAD = 0.02, 0.05  # of damage in two years; about one patient becomes severe, as published

FIELD_MM = (150.0, 175.0, 150.0)  # contains the brain
MIDDLE_MM = (0.0, -18.0, 12.0)
# Corticospinal tract of one side: points (|x|, y, z) in mm from the motor cortex through the posterior limb of
# the internal capsule to the cerebral peduncle
PATH_MM = ((30.0, -22.0, 54.0), (26.0, -20.0, 34.0), (22.0, -16.0, 12.0), (16.0, -19.0, -6.0), (12.0, -22.0, -20.0))
RADIUS_MM = 7.0
LESION_ML, LESION_SPREAD, LESION_RADIUS_MM = 8.0, 0.9, (3.0, 7.0)


@dataclass(frozen=True)
class _Person:
    """Latent values of a patient; arrays of visits have one or two values.

    Parameters
    ----------
    damage : standardised damage of the tract, at each visit
    age : age in years at the first visit
    lesions : standardised logarithm of the lesion volume
    latent : latent disability, at each visit
    """

    damage: tuple[float, ...]
    age: float
    lesions: float
    latent: tuple[float, ...]


@PHANTOMS.register(
    "ms_phantom",
    source="modelled on the cohort of the MS disability study; tissue values as stated in the module",
    target="tract",
    label_source="known by construction",
)
def ms_phantom(
    seed: int,
    subject: int,
    *,
    shape: tuple[int, int, int] = (24, 28, 24),
    patients: Annotated[int, Ge(8)] = PATIENTS,
    second_visits: Annotated[int, Ge(0)] = SECOND_VISITS,
    effect: Annotated[float, Ge(0)] = 1.0,
    noise: Annotated[float, Ge(0)] = 1.0,
) -> list[PhantomSubject]:
    """One or two visits of a patient with multiple sclerosis, as maps of qT1, MWF and NDI.

    Parameters
    ----------
    seed, subject : determine the random streams
    shape : number of voxels along each axis. The field of view is always
        150 × 175 × 150 mm; (96, 112, 96) has voxels of 1.56 mm, as published
    patients : number of patients among which disability is ranked, so that the
        distribution of EDSS is the published one; ``subject`` must be below it
    second_visits : number of patients with a second visit, two years later
    effect : factor of the effect of damage on the tract; with 0, no image depends on
        disability except through age and lesions
    noise : factor of the voxel noise

    Returns
    -------
    list of PhantomSubject
        Images ``qT1`` in ms, ``MWF`` in [0, 0.3], ``NDI`` in [0, 1]. Masks ``tract`` (voxels
        of which at least half is in the tract), ``lesion`` and ``brain``. Covariates
        ``age`` (years), ``sex``, ``ms_type`` (``RRMS`` or ``PMS``), ``edss``,
        ``lesion_ml`` and ``scanner`` (``A`` or ``B``).

    Raises
    ------
    OutOfRange
        If the subject is not one of the patients, or the shape is too small.

    Notes
    -----
    The latent disability is 0.80 · damage + 0.35 · age + 0.20 · log lesion volume + rest,
    all standardised; EDSS is a function of its rank among the patients. The effect of one
    standard deviation of damage is 1.4 (qT1), 0.7 (MWF) and 1.2 (NDI) standard deviations
    of the tract's mean without damage. Values were fixed before any network was trained.

    References
    ----------
    Numbers of patients, ages and EDSS: the publication, Section II. Tissue values, effects
    and the path of the tract are assumptions.
    """
    if not 0 <= subject < patients:
        raise OutOfRange(f"subject must be below phantom.patients, got {subject} and {patients}; set both to be equal")
    if len(shape) != 3 or min(shape) < 12:
        raise OutOfRange(f"shape must be three sizes of at least 12 voxels, got {tuple(shape)}; e.g. (24, 28, 24)")
    population = _population(seed, patients, min(second_visits, patients))
    person, scale = population[subject], np.sort([one.latent[0] for one in population])
    rng = generator(seed, "data", subject, "person")
    sex, kind = "F" if rng.random() < WOMEN else "M", _kind(person, population)
    scanner = "A" if rng.random() < 0.5 else "B"
    own = {name: float(rng.normal()) for name in (*CONTRASTS, *(f"tract {name}" for name in CONTRASTS))}
    visits = []
    for visit, (damage, latent) in enumerate(zip(person.damage, person.latent, strict=True)):
        age = person.age + visit * YEARS
        images, masks, lesion_ml = _scan(
            partial(generator, seed, "data", subject),
            visit,
            (shape[0], shape[1], shape[2]),
            age,
            person.lesions,
            damage * effect,
            own,
            scanner,
            noise,
        )
        facts: dict[str, float | str] = {
            "age": round(age, 1), "sex": sex, "ms_type": kind, "scanner": scanner,
            "edss": edss_of(float(np.mean(scale < latent))), "lesion_ml": round(lesion_ml, 3),
        }  # fmt: skip
        visits.append(PhantomSubject(images, masks, facts))
    return visits


@lru_cache(maxsize=4)
def _population(seed: int, patients: int, second_visits: int) -> tuple[_Person, ...]:
    """Latent values of all patients."""
    rng = generator(seed, "data", "population")
    damage, z_age, lesions, rest = rng.normal(size=(4, patients))
    age = np.clip(AGE_MEAN + AGE_SPREAD * z_age, *AGE_RANGE)
    spread = math.sqrt(1 - DAMAGE**2 - AGE**2 - LESIONS**2)
    latent = DAMAGE * damage + AGE * z_age + LESIONS * lesions + spread * rest
    change = CHANGE + CHANGE_SPREAD * rng.normal(size=patients)
    twice = set(rng.permutation(patients)[:second_visits].tolist())
    return tuple(
        _Person(
            (damage[one], damage[one] + change[one]) if one in twice else (damage[one],),
            float(age[one]),
            float(lesions[one]),
            (latent[one], latent[one] + DAMAGE * change[one]) if one in twice else (latent[one],),
        )
        for one in range(patients)
    )


def edss_of(share: float) -> float:
    """EDSS, in steps of 0.5, of a patient with this share of patients below in latent disability.

    Parameters
    ----------
    share : in [0, 1]
    """
    severe = share >= EDSS_SHARES[5]
    part = slice(6, None) if severe else slice(0, 6)
    value = float(np.interp(share, EDSS_SHARES[part], EDSS_VALUES[part]))
    return round(2 * value) / 2


def _kind(person: _Person, population: tuple[_Person, ...]) -> str:
    """Progressive disease of the most disabled and oldest patients."""
    burden = [one.latent[0] + one.age / AGE_SPREAD for one in population]
    own = person.latent[0] + person.age / AGE_SPREAD
    return "PMS" if np.mean(np.array(burden) > own) < PROGRESSIVE else "RRMS"


def _grid(shape: tuple[int, ...]) -> tuple[Grid, Array]:
    """Grid of the field of view and its affine."""
    spacing = tuple(side / size for side, size in zip(FIELD_MM, shape, strict=True))
    corner = tuple(middle - side / 2 for middle, side in zip(MIDDLE_MM, FIELD_MM, strict=True))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.add(corner, np.divide(spacing, 2))
    sizes = (int(shape[0]), int(shape[1]), int(shape[2]))
    return Grid(sizes, (spacing[0], spacing[1], spacing[2]), (corner[0], corner[1], corner[2])), affine


@lru_cache(maxsize=4)
def tract_share(shape: tuple[int, int, int]) -> Array:
    """Share of each voxel that lies in the tract, both sides, (X, Y, Z) float32 in [0, 1]."""
    grid, _ = _grid(shape)
    x, y, z = grid.axes
    distance = np.full(shape, np.inf, np.float32)
    for first, last in itertools.pairwise(PATH_MM):
        start, step = np.array(first), np.subtract(last, first)
        offset = [axis - np.float32(one) for axis, one in zip((np.abs(x), y, z), start, strict=True)]
        along = sum(one * np.float32(way) for one, way in zip(offset, step, strict=True)) / np.float32(step @ step)
        place = np.clip(along, 0, 1)
        square = sum((one - place * np.float32(way)) ** 2 for one, way in zip(offset, step, strict=True))
        distance = np.minimum(distance, np.sqrt(square))
    share: Array = filled(distance - np.float32(RADIUS_MM), float(np.mean(grid.spacing_mm)))
    return share.astype(np.float32)


@lru_cache(maxsize=64)
def _anatomy(shape: tuple[int, int, int], atrophy: float) -> Anatomy:
    """The template's anatomy, with wider ventricles and sulci at higher atrophy."""
    head = draw_head(np.random.default_rng(0), AGE_MEAN)
    return anatomy(_grid(shape)[0], dataclasses.replace(head, size=1.0, atrophy=atrophy))


def _scan(
    draw: Callable[..., np.random.Generator],
    visit: int,
    shape: tuple[int, int, int],
    age: float,
    lesions: float,
    damage: float,
    own: dict[str, float],
    scanner: str,
    noise: float,
) -> tuple[dict[str, tuple[Array, Array]], dict[str, tuple[Array, Array]], float]:
    """Images and masks of one visit, and the lesion volume in ml."""
    grid, affine = _grid(shape)
    edge = float(np.mean(grid.spacing_mm))
    body = _anatomy(shape, round(float(np.clip((age - 40) / 60, 0, 1)), 1))
    brain = filled(body.surface, edge)
    cavities = (body.pial, body.ventricles, body.third_ventricle)  # `pial` is negative in the fluid
    fluid = np.maximum.reduce([filled(one, edge) for one in cavities])
    deep = np.minimum.reduce([body.striatum, body.pallidum, body.thalamus])
    grey = np.maximum(filled(body.pial - np.float32(CORTEX_MM), edge), filled(deep, edge)) * (1 - fluid)
    tract = tract_share(shape) * brain * (1 - fluid)
    grey = np.minimum(grey, 1 - fluid - tract).clip(0)  # the tract is white matter
    white = 1 - fluid - grey
    lesion = _lesions(draw("lesions"), grid, body, white, lesions)
    images = {}
    for name in CONTRASTS:
        parts = zip((white, grey, fluid), TISSUES[name], strict=True)
        image = np.sum([share * np.float32(value) for share, value in parts], axis=0)
        offset, per_damage, unrelated = TRACT[name]
        between, per_year, of_lesion, voxel = WHITE[name]
        image += white * np.float32(between * own[name] + per_year * (age - AGE_MEAN))
        image += tract * np.float32(offset + per_damage * damage + unrelated * own[f"tract {name}"])
        image += lesion * white * np.float32(of_lesion)
        image *= np.float32(1 + (SCANNER if scanner == "B" else -SCANNER) / 2)
        image += (
            draw("noise", visit, name).normal(0, voxel * noise, shape).astype(np.float32) if noise else np.float32(0)
        )
        low, high = LIMITS[name]
        images[name] = (np.where(brain >= 0.5, np.clip(image, low, high), 0).astype(np.float32), affine)
    inside = brain >= 0.5
    masks = {
        "tract": ((tract_share(shape) >= 0.5) & inside).astype(np.uint8),
        "lesion": ((lesion * white >= 0.5) & inside).astype(np.uint8),
        "brain": inside.astype(np.uint8),
    }
    volume_ml = float((lesion * white).sum() * np.prod(grid.spacing_mm) / 1000)
    return images, {name: (mask, affine) for name, mask in masks.items()}, volume_ml


def _lesions(rng: np.random.Generator, grid: Grid, body: Anatomy, white: Array, burden: float) -> Array:
    """Share of each voxel that lies in periventricular lesions, (X, Y, Z) float32."""
    wanted = LESION_ML * math.exp(LESION_SPREAD * float(np.clip(burden, -2.5, 2.5))) * 1000
    near = np.argwhere((white > 0.5) & (body.ventricles > 0))
    weights = np.exp(-body.ventricles[tuple(near.T)].astype(np.float64) / 8.0)
    edge, found, left = float(np.mean(grid.spacing_mm)), np.zeros(grid.shape, np.float32), wanted
    x, y, z = grid.axes
    while left > 0:
        radius = float(rng.uniform(*LESION_RADIUS_MM))
        middle = grid.points(near[rng.choice(len(near), p=weights / weights.sum())] + rng.uniform(0, 1, 3))
        distance = np.sqrt(sum((axis - np.float32(one)) ** 2 for axis, one in zip((x, y, z), middle, strict=True)))
        # A lesion that is smaller than a voxel fills a part of it.
        whole = min(1.0, (2 * radius / edge) ** 3 * math.pi / 6)
        found = np.maximum(found, np.float32(whole) * filled(distance - np.float32(radius), edge))
        left -= 4 / 3 * math.pi * radius**3
    return found
