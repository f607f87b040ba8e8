"""Enlarged perivascular spaces and their mimics in T1w, T2w, FLAIR and SWI images.

The anatomy is a crop of the full-sized head of an elderly subject
(:mod:`harness.simulation.brain`). Fluid-filled tubes, white-matter hyperintensities,
lacunes and veins are added to it. Four sequences of the same head are simulated by the
signal equations of :mod:`harness.simulation.mri`, so that differences between sequences
follow from relaxation times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from scipy import ndimage

from harness.core.errors import OutOfRange
from harness.core.registry import PHANTOMS
from harness.core.seeding import generator
from harness.core.types import Array
from harness.simulation.brain import CORTEX_MM, REGIONS, Anatomy, Grid, anatomy, draw_head, filled
from harness.simulation.mri import (
    TISSUES_3T,
    Tissue,
    bias_field,
    block_mean,
    inversion_recovery,
    mprage,
    phase_mask,
    rician,
    spin_echo,
    spoiled_gradient_echo,
    vessel_phase,
)
from harness.simulation.phantom import PhantomSubject

__all__ = ["PROTOCOL", "contrast", "epvs_phantom"]

SWI_TE_MS = 7.5

#: Sequence parameters of Table S1 of the source, except for the following. The
#: inversion time (900 ms), echo spacing (7 ms) and train length (one pulse per
#: partition) of T1w are not stated there; they are those of the vendor's standard
#: protocol. The echo times of T2w and FLAIR, 408 and 289 ms, refer to trains with
#: variable flip angles, in which magnetisation is stored longitudinally for much of
#: the time. Their contrast is that of a spin echo at about 100 ms (Mugler 2014,
#: doi:10.1002/jmri.24542); with the stated values in e^(−TE/T2), white matter would
#: be black.
PROTOCOL: Mapping[str, Callable[[Tissue], float]] = {
    "FLAIR": partial(inversion_recovery, tr_ms=6000, ti_ms=2200, te_ms=100),
    "SWI": partial(spoiled_gradient_echo, tr_ms=35, te_ms=SWI_TE_MS, flip_deg=15),
    "T1w": partial(mprage, tr_ms=1900, ti_ms=900, te_ms=2.93, flip_deg=9, spacing_ms=7, pulses=176),
    "T2w": partial(spin_echo, tr_ms=3200, te_ms=100),
}

# The anatomy is sampled at 1 × 1 × 0.5 mm, because slices of 1 mm and 1.5 mm are multiples of
# 0.5 mm. Tubes are drawn on a grid that is finer by 3 × 3 × 2.
STEP_MM = 0.5
FINER = (3, 3, 2)
SWI_STEPS, REFERENCE_STEPS = 3, 2

#: Minimum fraction of perivascular fluid in a voxel that belongs to a lesion.
RULE = 0.5

# Table S2: logarithms of the lesion counts (mean 683) and mean lesion sizes of the 21 participants.
COUNT_SPREAD, SIZE_MEAN, SIZE_SPREAD, COUNT_SIZE_CORRELATION = 0.354, 1.943, 0.316, 0.475
# The source does not report the spread of sizes within participants. With this log-normal
# distribution, the median is five voxels and 5 % of the lesions exceed twenty.
LESION_SPREAD = 0.85
# Voxels at the edge of a tube stay below RULE: volume in mm³ per voxel of a lesion and offset,
# measured on isolated tubes.
VOLUME_PER_VOXEL, VOLUME_LOST = 1.1, 1.3
# Some tubes stay below RULE everywhere, and thin oblique ones break into several lesions: number
# of lesions per tube, and ratio of their size to the planned size, measured on generated subjects.
TUBE_GAP_MM = 1.2
VISIBLE_SHARE, SIZE_KEPT = 1.10, 0.72

# Lesion density in white matter and deep nuclei, relative to frontoparietal white matter.
ENRICHMENT = {1: 2.5, 2: 1.0, 3: 0.6, 4: 0.8, 5: 0.7, 6: 1.0, 7: 0.5}

_TISSUES = ("air", "scalp", "csf", "grey", "white", "striatum", "pallidum", "wmh", "vein", "fluid")
_Fractions = dict[str, Array]


@dataclass(frozen=True)
class _Tube:
    """A curved tube.

    Parameters
    ----------
    points : (N, 3) points along the axis in mm, at distances below the radius
    radius_mm : radius of the tube
    code : non-zero int8 value of the samples inside the tube
    """

    points: Array
    radius_mm: float
    code: int = 1


def contrast(sequence: str) -> dict[str, float]:
    """Noise-free signal of each tissue in a sequence of :data:`PROTOCOL`; the signal of air is zero."""
    return {"air": 0.0} | {name: PROTOCOL[sequence](tissue) for name, tissue in TISSUES_3T.items()}


@PHANTOMS.register(
    "epvs_phantom",
    source="modelled on the cohort of Rashid et al. 2023, doi:10.1016/j.ynirp.2023.100162",
    target="pvs",
    label_source="fluid fraction known by construction",
)
def epvs_phantom(
    seed: int,
    subject: int,
    *,
    shape: tuple[int, int, int] = (64, 64, 16),
    density: Annotated[float, Ge(0)] = 569.0,
    wmh_density: Annotated[float, Ge(0)] = 150.0,
    lacune_density: Annotated[float, Ge(0)] = 20.0,
    vein_density: Annotated[float, Ge(0)] = 500.0,
    noise_percent: Annotated[float, Ge(0), Le(50)] = 3.5,
    noise_reference: Literal["white", "brightest"] = "white",
    bias_percent: Annotated[float, Ge(0), Le(100)] = 20.0,
) -> PhantomSubject:
    """Brain MRI of one subject with enlarged perivascular spaces and their mimics.

    Parameters
    ----------
    seed, subject : determine the random streams; a subject does not depend on the number
        of subjects
    shape : number of voxels of the reference grid, at 1 mm; at least 8 along each axis. A
        small field of view is a crop of a full-sized brain around the right basal
        ganglia; 140 × 180 × 128 contains the whole brain
    density : perivascular spaces per litre of brain. The default is that of the source,
        683 in about 1.2 l, and gives about 30 in the default field of view
    wmh_density : foci of white-matter hyperintensity per litre of brain, not counting the
        caps along the ventricles, which are always present
    lacune_density : lacunes per litre of brain
    vein_density : veins per litre of brain
    noise_percent : standard deviation of the noise in percent of the signal of the
        reference tissue. The default is a signal-to-noise ratio of 28 in white matter, as
        measured by Springer et al. (2016) at 3 T in 3D T2w (28) and FLAIR (29) images
    noise_reference : reference tissue of the noise: ``white`` gives all sequences the same
        signal-to-noise ratio in normal white matter; ``brightest`` uses the brightest
        healthy tissue of each sequence, as BrainWeb does
    bias_percent : range of the intensity non-uniformity of each sequence in percent

    Returns
    -------
    PhantomSubject
        Images ``T1w``, ``T2w``, ``FLAIR`` at 1 mm and ``SWI`` at 1 × 1 × 1.5 mm, with the
        same field of view (the last slice of SWI may extend up to 1 mm further). Masks
        ``pvs``, ``wmh``, ``lacune``, ``brain`` (uint8) and ``regions`` (int16).
        Covariates ``age`` (64 to 94 years) and ``sex`` (``F`` or ``M``). The mask ``pvs``
        is empty if ``density=0``.

    Raises
    ------
    OutOfRange
        If the shape does not have three axes of at least eight voxels.

    Notes
    -----
    A voxel of ``pvs`` contains at least 50 % perivascular fluid. Thinner tubes are
    visible in the images but not labelled, as in manual annotations. Counts and sizes
    vary between subjects as in Table S2 of the source.

    Veins resemble perivascular spaces where fluid is dark because of its T1 (T1w, FLAIR),
    but not on T2w. Lacunes contain the same fluid, with a hyperintense rim. Small
    hyperintensities resemble perivascular spaces on T2w and are bright on FLAIR. Inflow,
    motion, misregistration, image reconstruction, and the field outside veins are not
    modelled.

    White matter is the default reference of the noise for the following reason. With the
    scan times of Table S1 and typical bandwidths, T1w and T2w have equal signal-to-noise
    ratios in white matter within a few percent, FLAIR three quarters of that, and SWI
    about twice as much. With another reference the contrast-to-noise ratios differ, and
    the ranking of sequences may change.

    References
    ----------
    Rashid et al. 2023, doi:10.1016/j.ynirp.2023.100162 (Tables S1, S2). Springer et al.
    2016, Invest Radiol 51:469 (Table 5). Wardlaw et al. 2013, Lancet Neurol 12:822
    (appearance of lesions).
    """
    _check_shape(shape)

    stream = partial(generator, seed, "data", subject)
    age, sex = _draw_person(stream("person"))
    grid, rotation, shift = _place(stream("position"), shape)
    head = draw_head(stream("head"), age)
    body = anatomy(grid, head)
    reference = _reference_grid(body.surface, shape)
    litres = float(np.count_nonzero(reference < 0)) * 1e-6
    fractions = _tissues(body)
    wmh = _hyperintensities(stream("wmh"), grid, body, fractions, wmh_density * litres, head.atrophy)
    cavity, rim = _lacunes(stream("lacunes"), grid, body, fractions, lacune_density * litres)
    _paint(fractions, "wmh", np.maximum(wmh, rim))
    _paint(fractions, "csf", cavity)
    field = rotation.T @ (0, 0, 1)
    vein, phase = _veins(stream("veins"), grid, body, fractions, vein_density * litres, field)
    _paint(fractions, "vein", vein)
    fluid = _spaces(stream("lesions"), grid, body, fractions, density * litres)
    _paint(fractions, "fluid", fluid)

    weight = phase_mask(block_mean(phase, (1, 1, SWI_STEPS)))
    factors = {name: REFERENCE_STEPS for name in PROTOCOL} | {"SWI": SWI_STEPS}
    images = {}
    for name, steps in factors.items():
        levels = contrast(name)
        signal = _mix(fractions, levels, steps)[:, :, : shape[2]]
        if name == "SWI":
            signal = signal * weight
        spacing = (1.0, 1.0, steps * STEP_MM)
        signal = signal * bias_field(signal.shape, spacing, bias_percent, stream("bias", name))
        sigma = noise_percent / 100 * _reference_level(levels, noise_reference)
        # Scanners use an arbitrary intensity scale.
        gain = 1000 * math.exp(stream("gain", name).normal(0, 0.2)) / levels["white"]
        picture = rician(signal, sigma, stream("noise", name)) * np.float32(gain)
        images[name] = (picture, _affine(grid, steps, rotation, shift))

    affine = _affine(grid, REFERENCE_STEPS, rotation, shift)
    masks = _masks(body, {"pvs": fluid, "wmh": wmh, "lacune": cavity}, shape)
    present = {value: REGIONS[value] for value in np.unique(masks["regions"]).tolist() if value}
    return PhantomSubject(
        images=images,
        masks={label: (mask, affine) for label, mask in masks.items()},
        covariates={"age": age, "sex": sex},
        region_names=present,
    )


def _check_shape(shape: tuple[int, int, int]) -> None:
    if len(shape) != 3 or min(shape) < 8:
        raise OutOfRange(
            f"shape must be three sizes of at least 8 voxels, got {tuple(shape)}; for example (64, 64, 16)"
        )


def _draw_person(rng: np.random.Generator) -> tuple[float, str]:
    """Age and sex as in the source: 64 to 94 years, mean 78.7, 12 women of 21."""
    age = float(np.clip(rng.normal(78.7, 8.0), 64, 94))
    return round(age, 1), "F" if rng.random() < 12 / 21 else "M"


def _place(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Grid, Array, Array]:
    """Position of the field of view in the head, and of the head in the scanner.

    Slices are parallel to the commissures, so that the affine is oblique by the pitch and
    roll of the head. The orientation is LAS.
    """
    slices = math.ceil(shape[2] * REFERENCE_STEPS / SWI_STEPS) * SWI_STEPS
    # Centre of a small field of view, and extent of the head.
    wanted, low, high = (36.0, -4.0, 6.0), (-71.0, -108.0, -54.0), (71.0, 72.0, 76.0)
    centre = [
        (a + b) / 2 if size >= b - a else min(max(c, a + size / 2), b - size / 2)
        for c, a, b, size in zip(wanted, low, high, shape, strict=True)
    ]
    grid = Grid(
        shape=(shape[0], shape[1], slices),
        spacing_mm=(1.0, 1.0, STEP_MM),
        corner_mm=(centre[0] + shape[0] / 2, centre[1] - shape[1] / 2, centre[2] - shape[2] / 2),
        direction=(-1, 1, 1),
    )
    pitch, roll = np.radians(rng.uniform(-8, 8)), np.radians(rng.uniform(-4, 4))
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    return grid, about_x @ about_y, rng.uniform(-8, 8, size=3)


def _affine(grid: Grid, steps: int, rotation: Array, shift: Array) -> Array:
    """Affine of an image with slices of ``steps`` samples."""
    spacing = np.multiply(grid.direction, (1.0, 1.0, steps * STEP_MM))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = rotation @ (np.asarray(grid.corner_mm) + spacing / 2) + shift
    return affine


def _reference_grid(values: Array, shape: tuple[int, int, int]) -> Array:
    """Average onto the reference grid."""
    return block_mean(values, (1, 1, REFERENCE_STEPS))[..., : shape[2]]


def _tissues(body: Anatomy) -> _Fractions:
    """Fractions of healthy tissues, from outside to inside."""
    fractions = {name: np.zeros(body.surface.shape, np.float32) for name in _TISSUES}
    fractions["air"] += 1
    _paint(fractions, "scalp", filled(body.surface - 15))
    _paint(fractions, "air", filled(body.surface - 9))  # bone has no signal
    _paint(fractions, "csf", filled(body.surface - 3))
    _paint(fractions, "grey", filled(-body.pial))
    _paint(fractions, "white", filled(CORTEX_MM - body.pial))
    _paint(fractions, "striatum", filled(body.striatum))
    _paint(fractions, "pallidum", filled(body.pallidum))
    # Thalamus and midbrain are mixtures of grey matter and fibres.
    _paint(fractions, "striatum", 0.6 * filled(body.thalamus))
    _paint(fractions, "grey", 0.3 * filled(body.midbrain))
    # White matter of elderly subjects is inhomogeneous.
    _paint(fractions, "wmh", fractions["white"] * np.clip(0.04 + 0.04 * body.slow, 0, 0.12))
    _paint(fractions, "csf", filled(np.minimum(body.ventricles, body.third_ventricle)))
    return fractions


def _paint(fractions: _Fractions, name: str, share: Array) -> None:
    """Replace a fraction of each sample by one tissue."""
    rest = 1 - share
    for values in fractions.values():
        values *= rest
    fractions[name] += share


def _mix(fractions: _Fractions, levels: Mapping[str, float], steps: int) -> Array:
    """Signal of each voxel: the mean signal of its tissues."""
    total = sum(values * np.float32(levels[name]) for name, values in fractions.items())
    return block_mean(np.asarray(total), (1, 1, steps))


def _reference_level(levels: Mapping[str, float], reference: str) -> float:
    if reference == "white":
        return levels["white"]
    return max(levels[name] for name in ("white", "grey", "striatum", "csf"))


def _masks(body: Anatomy, shares: Mapping[str, Array], shape: tuple[int, int, int]) -> dict[str, Array]:
    """Ground truth on the reference grid; perivascular spaces take precedence over hyperintensities."""
    masks = {name: (_reference_grid(share, shape) >= RULE).astype(np.uint8) for name, share in shares.items()}
    masks["wmh"] &= 1 - masks["pvs"]
    masks["brain"] = (_reference_grid(body.surface, shape) < 0).astype(np.uint8)
    masks["regions"] = body.regions[:, :, ::REFERENCE_STEPS][:, :, : shape[2]] * masks["brain"].astype(np.int16)
    return masks


def _hyperintensities(
    rng: np.random.Generator, grid: Grid, body: Anatomy, fractions: _Fractions, expected: float, atrophy: float
) -> Array:
    """Fraction of hyperintense white matter: caps along the ventricles and foci in deep white matter."""
    thickness = np.clip((0.4 + 1.8 * atrophy) * (0.5 + body.slow), 0, 3)
    share = 0.9 * filled(body.ventricles - thickness, 2.0) * (thickness > 0.5)
    # No foci in the corpus callosum.
    home = (fractions["white"] > 0.85) & (body.pial > CORTEX_MM + 2) & (np.abs(grid.axes[0]) > 12)
    volumes = np.clip(rng.lognormal(math.log(30), 1.0, size=rng.poisson(expected)), 6, 1500)
    for centre, volume in zip(_centres(rng, grid, home, len(volumes)), volumes, strict=False):
        radius = float((3 * volume / (4 * math.pi)) ** (1 / 3))
        stretch = rng.uniform(1, 1.8)
        _blob(share, grid, centre, radius, stretch, _outward(centre), edge_mm=1.2, level=rng.uniform(0.75, 1.0))
    share *= fractions["white"] + fractions["wmh"]
    return share.astype(np.float32)


def _lacunes(
    rng: np.random.Generator, grid: Grid, body: Anatomy, fractions: _Fractions, expected: float
) -> tuple[Array, Array]:
    """Fractions of cavities, 3 to 12 mm in diameter, and of the rims around them."""
    cavity, rim = (np.zeros(grid.shape, np.float32) for _ in range(2))
    inside = (fractions["white"] + fractions["striatum"] + fractions["pallidum"] > 0.9) & (body.pial > 6)
    widths = np.clip(rng.lognormal(math.log(5), 0.35, size=rng.poisson(expected)), 3, 12)
    for centre, width in zip(_centres(rng, grid, inside, len(widths)), widths, strict=False):
        direction, stretch = _unit(rng.normal(size=3)), rng.uniform(1, 1.5)
        _blob(cavity, grid, centre, width / 2, stretch, direction, edge_mm=1.0, level=1.0)
        if rng.random() < 0.75:  # not all lacunes have a rim
            _blob(rim, grid, centre, width / 2 + 1.5, stretch, direction, edge_mm=1.5, level=0.8)
    outside = 1 - fractions["csf"]
    return cavity * outside, rim * outside


def _blob(
    share: Array,
    grid: Grid,
    centre: Array,
    radius: float,
    stretch: float,
    direction: Array,
    *,
    edge_mm: float,
    level: float,
) -> None:
    """Add an ellipsoid of revolution, with the volume of a sphere of this radius, to a fraction image."""
    reach = radius * stretch + edge_mm
    first, last = np.sort(grid.indices(np.stack([centre - reach, centre + reach])), axis=0)
    window = tuple(slice(max(int(a), 0), max(int(b) + 1, 0)) for a, b in zip(first, last, strict=True))
    x, y, z = (axis - np.float32(c) for axis, c in zip(grid.axes, centre, strict=True))
    x, y, z = x[window[0]], y[:, window[1]], z[:, :, window[2]]
    along = x * direction[0] + y * direction[1] + z * direction[2]
    across = np.maximum(x**2 + y**2 + z**2 - along**2, 0)
    narrow = radius / math.sqrt(stretch)
    distance = narrow * (np.sqrt(across / narrow**2 + (along / (narrow * stretch**1.5)) ** 2) - 1)
    share[window] = np.maximum(share[window], level * filled(distance, edge_mm))


def _spaces(rng: np.random.Generator, grid: Grid, body: Anatomy, fractions: _Fractions, expected: float) -> Array:
    """Fraction of perivascular fluid: tubes with the counts and sizes of the source."""
    count, mean_size = _burden(rng, expected)
    allowed = _room_for_tubes(fractions, body)
    weights = np.zeros(max(ENRICHMENT) + 1)
    weights[list(ENRICHMENT)] = list(ENRICHMENT.values())
    centres = _centres(rng, grid, allowed * weights[body.regions], 3 * count)
    tubes: list[_Tube] = []
    for centre in centres:
        if len(tubes) == count:
            break
        size = mean_size * math.exp(rng.normal(-(LESION_SPREAD**2) / 2, LESION_SPREAD))
        radius, length = _calibre(rng, VOLUME_PER_VOXEL * size + VOLUME_LOST)
        heading = _heading(rng, centre, int(_at(body.regions, grid, centre[None])[0]))
        points = _course(rng, grid, allowed, centre, heading, length, radius)
        if len(points) > 0:
            tubes.append(_Tube(points, radius))
            _occupy(allowed, grid, points, radius + TUBE_GAP_MM)
    return _share(_draw(tubes, grid))


def _occupy(allowed: Array, grid: Grid, points: Array, reach_mm: float) -> None:
    """Exclude the surroundings of a tube for later tubes, so that lesions do not touch."""
    offsets = _ball(reach_mm, np.asarray(grid.spacing_mm))
    samples = (np.floor(grid.indices(points)).astype(int)[:, None] + offsets).reshape(-1, 3)
    inside = np.all((samples >= 0) & (samples < grid.shape), axis=1)
    allowed[tuple(samples[inside].T)] = False


def _ball(radius: float, step: Array) -> Array:
    """Sample offsets (N, 3) of the bounding box of a ball."""
    reach = np.ceil(radius / step).astype(int)
    return np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)


def _burden(rng: np.random.Generator, expected: float) -> tuple[int, float]:
    """Number of lesions and their mean size in voxels for one subject (Table S2)."""
    # Limited to the range of the 21 participants.
    common, own = np.clip(rng.normal(size=2), -1.6, 1.6)
    other = COUNT_SIZE_CORRELATION * common + math.sqrt(1 - COUNT_SIZE_CORRELATION**2) * own
    factor = math.exp(COUNT_SPREAD * common - COUNT_SPREAD**2 / 2)
    count = int(rng.poisson(expected * factor / VISIBLE_SHARE))
    return count, math.exp(SIZE_MEAN + SIZE_SPREAD * other) / SIZE_KEPT


def _calibre(rng: np.random.Generator, volume: float) -> tuple[float, float]:
    """Radius and length in mm of a tube with a volume in mm³: larger tubes are longer and slightly wider."""
    radius = float(np.clip(rng.lognormal(math.log(0.75), 0.2) * (volume / 10) ** 0.15, 0.45, 1.5))
    radius = min(radius, (3 * volume / (4 * math.pi)) ** (1 / 3))
    length = max(volume - 4 / 3 * math.pi * radius**3, 0) / (math.pi * radius**2)
    if length > 25:
        length, radius = 25.0, math.sqrt(volume / (25 * math.pi))
    return radius, length


def _heading(rng: np.random.Generator, centre: Array, region: int) -> Array:
    """Direction of a perforating vessel: superior in deep structures, outward in white matter."""
    if REGIONS.get(region) in ("basal_ganglia", "thalamus", "midbrain"):
        mean, spread = np.array([0.25 * np.sign(centre[0]), 0.0, 1.0]), 0.25
    else:
        mean, spread = _outward(centre), 0.3
    return _unit(mean + rng.normal(0, spread, size=3))


def _outward(centre: Array) -> Array:
    """Direction from the body of the lateral ventricle to a point, as of medullary vessels."""
    origin = np.array([10.0 * np.sign(centre[0] or 1), np.clip(centre[1], -35, 22), 16.0])
    return _unit(np.asarray(centre) - origin)


def _unit(vector: Array) -> Array:
    longest: Array = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return longest


def _course(
    rng: np.random.Generator, grid: Grid, allowed: Array, centre: Array, heading: Array, length: float, radius: float
) -> Array:
    """Points (N, 3) in mm along a slightly curved axis within the allowed samples.

    A tube that would leave them is shifted along its axis, and shortened if there is not
    enough space. There are no points if the centre is not allowed.
    """
    half = math.ceil(length / 2 / (0.35 * radius))
    along = np.linspace(-length, length, 4 * half + 1)[:, None] if half else np.zeros((1, 1))
    sideways = _unit(np.cross(heading, rng.normal(size=3)))
    points = centre + along * heading + rng.normal(0, 0.03) * along**2 / 2 * sideways
    middle = len(points) // 2
    blocked = np.flatnonzero(_at(allowed, grid, points) == 0)
    if middle in blocked:
        return points[:0]
    low = int(max(blocked[blocked <= middle], default=-1)) + 1
    high = int(min(blocked[blocked >= middle], default=len(points)))
    start = min(max(middle - half, low), max(high - 2 * half - 1, low))
    chosen: Array = points[start : min(start + 2 * half + 1, high)]
    return chosen


def _veins(
    rng: np.random.Generator, grid: Grid, body: Anatomy, fractions: _Fractions, expected: float, field: Array
) -> tuple[Array, Array]:
    """Fraction of venous blood, and its phase in radians times that fraction."""
    allowed = _room_for_tubes(fractions, body)
    tubes = []
    for centre in _centres(rng, grid, allowed, int(rng.poisson(expected))):
        heading = _heading(rng, centre, 2)
        radius, length = float(rng.uniform(0.3, 0.65)), float(rng.uniform(6, 22))
        phase = float(vessel_phase(heading @ field, te_ms=SWI_TE_MS))
        code = round(phase / math.pi * 127) or 1  # zero means no vein
        tubes.append(_Tube(_course(rng, grid, allowed, centre, heading, length, radius), radius, code))
    drawn = _draw(tubes, grid)
    return _share(drawn), block_mean(drawn, FINER) * np.float32(math.pi / 127)


def _room_for_tubes(fractions: _Fractions, body: Anatomy) -> Array:
    """Samples allowed for the axis of a tube: white matter and deep nuclei, 1 mm from other tissue."""
    solid = sum(fractions[name] for name in ("white", "striatum", "pallidum", "grey", "vein"))
    # The threshold is below one, because normal white matter contains a small fraction of "wmh".
    clear = (np.asarray(solid) > 0.8) & (body.pial > CORTEX_MM + 0.5)
    room: Array = ndimage.minimum_filter(clear.astype(np.uint8), size=(3, 3, 5), mode="nearest").astype(bool)
    return room


def _centres(rng: np.random.Generator, grid: Grid, weights: Array, count: int) -> Array:
    """``count`` random points (N, 3) in mm, drawn by the weights of the samples; none if all are zero."""
    cumulative = np.cumsum(np.asarray(weights, float).ravel())
    if cumulative[-1] <= 0:
        return np.empty((0, 3))
    drawn = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], size=count), side="right")
    return grid.points(np.stack(np.unravel_index(drawn, grid.shape), axis=1) + rng.uniform(size=(count, 3)))


def _at(values: Array, grid: Grid, points: Array) -> Array:
    """Values of the samples at points; zero outside the grid."""
    indices = np.floor(grid.indices(points)).astype(int)
    inside = np.all((indices >= 0) & (indices < grid.shape), axis=1)
    found = values[tuple(np.where(inside[:, None], indices, 0).T)]
    return np.where(inside, found, 0)


def _draw(tubes: list[_Tube], grid: Grid) -> Array:
    """Draw tubes as overlapping balls on a finer grid: (3X, 3Y, 2Z) int8 codes, zero outside."""
    shape = np.multiply(grid.shape, FINER)
    drawn = np.zeros(tuple(shape), np.int8)
    step = np.divide(grid.spacing_mm, FINER)
    for tube in tubes:
        offsets = _ball(tube.radius_mm, step)
        exact = grid.indices(tube.points) * FINER - 0.5
        samples = np.rint(exact).astype(int)[:, None] + offsets
        near = np.sum(((samples - exact[:, None]) * step) ** 2, axis=-1) <= tube.radius_mm**2
        near &= np.all((samples >= 0) & (samples < shape), axis=-1)
        drawn[tuple(samples[near].T)] = tube.code
    return drawn


def _share(drawn: Array) -> Array:
    return block_mean(drawn != 0, FINER)
