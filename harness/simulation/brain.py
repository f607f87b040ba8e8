"""Anatomy of the head of an elderly subject, as signed distance functions.

Coordinates are in mm relative to the anterior commissure: x to the right, y to
anterior, z to superior. Each structure is a *signed distance* (negative inside) that
can be evaluated at any point. A small field of view is therefore a crop of a
full-sized brain, and tissue fractions follow from the distance to the boundary. Shapes
are manually placed ellipsoids, sheets and random waves, which are meant to be
recognisable rather than accurate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from harness.core.types import Array

__all__ = ["REGIONS", "Anatomy", "Grid", "Head", "anatomy", "draw_head", "filled"]

#: Regions for which the source reports results; zero is outside all of them.
REGIONS = {
    1: "basal_ganglia",
    2: "frontoparietal",
    3: "temporal",
    4: "insula",
    5: "thalamus",
    6: "midbrain",
    7: "occipital",
}

CENTRE_MM = (0.0, -18.0, 10.0)
SEMI_AXES_MM = (67.0, 86.0, 62.0)
CORTEX_MM = 2.7
WARP_MM = 1.3


@dataclass(frozen=True)
class Grid:
    """Sampling grid in head coordinates.

    Parameters
    ----------
    shape : number of samples along each axis
    spacing_mm : distance of samples along each axis
    corner_mm : (3,) outer corner of the first sample
    direction : (3,) +1 or −1, direction of each axis
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    corner_mm: tuple[float, float, float]
    direction: tuple[int, int, int] = (1, 1, 1)

    @cached_property
    def axes(self) -> tuple[Array, Array, Array]:
        """Coordinates in mm, shapes (X, 1, 1), (1, Y, 1), (1, 1, Z), float32."""
        x, y, z = (
            (corner + way * step * (np.arange(size) + 0.5)).astype(np.float32)
            for size, step, corner, way in zip(self.shape, self.spacing_mm, self.corner_mm, self.direction, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def points(self, indices: Array) -> Array:
        """Coordinates in mm of fractional indices, (N, 3); the centre of the first sample has the index 0.5."""
        steps = np.multiply(self.direction, self.spacing_mm)
        placed: Array = np.asarray(self.corner_mm) + np.asarray(indices, float) * steps
        return placed

    def indices(self, points_mm: Array) -> Array:
        """Fractional indices of coordinates in mm, (N, 3); the inverse of :meth:`points`."""
        steps = np.multiply(self.direction, self.spacing_mm)
        found: Array = (np.asarray(points_mm, float) - np.asarray(self.corner_mm)) / steps
        return found


@dataclass(frozen=True)
class Head:
    """Parameters of an individual head.

    Parameters
    ----------
    size : factor of all lengths
    atrophy : 0 (none) to 1; widens sulci and ventricles
    fold_waves : (K, 3) waves on the unit sphere whose zero crossings are the sulci
    fold_shifts : (K,) phases of the fold waves
    warp_waves : (3, K, 3) waves in rad/mm that displace x, y and z
    warp_shifts : (3, K) phases of the warp waves
    slow_waves : (M, 3) waves in rad/mm of a smooth random field
    slow_shifts : (M,) phases of the slow waves
    """

    size: float
    atrophy: float
    fold_waves: Array
    fold_shifts: Array
    warp_waves: Array
    warp_shifts: Array
    slow_waves: Array
    slow_shifts: Array


def draw_head(rng: np.random.Generator, age: float) -> Head:
    """Draw a head; sulci and ventricles widen with age in years."""
    return Head(
        size=float(rng.normal(1, 0.025)),
        atrophy=float(np.clip((age - 60) / 35 + rng.normal(0, 0.15), 0, 1)),
        # Wavelengths of about 19 mm on the cortex, i.e. a sulcus every 9 mm.
        fold_waves=66 * _waves(rng, (14,), 16, 22),
        fold_shifts=rng.uniform(0, 2 * math.pi, size=14),
        warp_waves=_waves(rng, (3, 4), 22, 50),
        warp_shifts=rng.uniform(0, 2 * math.pi, size=(3, 4)),
        slow_waves=_waves(rng, (6,), 18, 45),
        slow_shifts=rng.uniform(0, 2 * math.pi, size=6),
    )


def _waves(rng: np.random.Generator, count: tuple[int, ...], shortest_mm: float, longest_mm: float) -> Array:
    """Wave vectors (*count, 3) in rad/mm with random direction and wavelength."""
    directions = rng.normal(size=(*count, 3))
    numbers = 2 * math.pi / rng.uniform(shortest_mm, longest_mm, size=(*count, 1))
    waves: Array = numbers * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    return waves


@dataclass(frozen=True)
class Anatomy:
    """Signed distances in mm (negative inside) on a grid, all (X, Y, Z) float32.

    Parameters
    ----------
    surface : distance to the outer surface of the brain
    pial : distance to the nearest cerebrospinal fluid outside the ventricles, *positive
        inside the tissue*
    ventricles, third_ventricle : distance to the lateral and to the third ventricle
    striatum, pallidum, thalamus, midbrain : distance to the structure
    slow : smooth random field with mean about zero and variance about one
    regions : (X, Y, Z) int16, keys of :data:`REGIONS`, zero outside the brain
    """

    surface: Array
    pial: Array
    ventricles: Array
    third_ventricle: Array
    striatum: Array
    pallidum: Array
    thalamus: Array
    midbrain: Array
    slow: Array
    regions: Array


def filled(distance: Array, edge_mm: float = 1.0) -> Array:
    """Fraction of a sample inside a structure, from the signed distance of its centre (linear edge)."""
    share: Array = np.clip(0.5 - distance / edge_mm, 0, 1)
    return share


def anatomy(grid: Grid, head: Head) -> Anatomy:
    """Sample all structures of a head on a grid."""
    x, y, z = (
        (axis + np.float32(WARP_MM) * _field(grid, waves, shifts)) / np.float32(head.size)
        for axis, waves, shifts in zip(grid.axes, head.warp_waves, head.warp_shifts, strict=True)
    )
    side = np.abs(x)
    # Skull and brain surface are not warped.
    round_x, round_y, round_z = (axis / np.float32(head.size) for axis in grid.axes)
    surface = _ellipsoid(round_x, round_y, round_z, CENTRE_MM, SEMI_AXES_MM)
    midbrain = _ellipsoid(x, y, z, (0, -26, -14), (15, 13, 14))
    thalamus = _ellipsoid(side, y, z, (12, -19, 7), (9.5, 14.5, 9))
    # The lentiform nucleus converges anteriorly: shear x along y.
    lentiform = side + 0.25 * (y - 2)
    pial = np.minimum.reduce(
        [
            -surface,
            _sulci(grid, head, x, y, z, -surface),
            _fissures(side, y, z, 0.8 + 0.7 * head.atrophy),
            _cistern(midbrain, y, z),
        ]
    )
    return Anatomy(
        surface=surface,
        pial=pial,
        ventricles=_ventricles(side, y, z, 1 + 0.35 * head.atrophy),
        third_ventricle=_ellipsoid(side, y, z, (0, -10, 0), (2.2 + 1.2 * head.atrophy, 14, 11)),
        striatum=np.minimum.reduce(
            [
                _ellipsoid(lentiform, y, z, (27, 2, 2), (5.5, 18, 10.5)),
                _ellipsoid(side, y, z, (15, 17, 6), (5.5, 11, 8.5)),
                _ellipsoid(side, y, z, (17.5, -2, 19), (4, 18, 4)),
            ]
        ),
        pallidum=_ellipsoid(lentiform, y, z, (18.5, -2, -1), (4.5, 10, 7)),
        thalamus=thalamus,
        midbrain=midbrain,
        slow=_field(grid, head.slow_waves, head.slow_shifts),
        regions=_regions(side, y, z, surface, thalamus, midbrain),
    )


def _ellipsoid(x: Array, y: Array, z: Array, centre: Sequence[float], semi: Sequence[float] | Array) -> Array:
    """Signed distance to an ellipsoid, first-order accurate at its surface."""
    offsets = [axis - np.float32(middle) for axis, middle in zip((x, y, z), centre, strict=True)]
    level = np.sqrt(sum((d / np.float32(a)) ** 2 for d, a in zip(offsets, semi, strict=True)))
    slope = np.sqrt(sum((d / np.float32(a * a)) ** 2 for d, a in zip(offsets, semi, strict=True)))
    distance: Array = level * (level - 1) / np.maximum(slope, np.float32(1e-6))
    # The first-order approximation vanishes at the centre, which must be inside.
    return np.where(level < 0.05, np.float32(-min(semi)), distance)


def _sulci(grid: Grid, head: Head, x: Array, y: Array, z: Array, depth: Array) -> Array:
    """Distance to the sulci: zero crossings of waves on the sphere, about 16 mm deep."""
    scaled = [
        (axis - np.float32(c)) / np.float32(a) for axis, c, a in zip((x, y, z), CENTRE_MM, SEMI_AXES_MM, strict=True)
    ]
    radius = np.sqrt(sum(axis**2 for axis in scaled))
    unit = [axis / np.maximum(radius, np.float32(0.05)) for axis in scaled]
    waves = np.zeros(radius.shape, np.float32)
    for (kx, ky, kz), shift in zip(head.fold_waves.astype(np.float32), head.fold_shifts, strict=True):
        waves += np.cos(kx * unit[0] + ky * unit[1] + kz * unit[2] + np.float32(shift))
    slopes = np.gradient(waves, *grid.spacing_mm)
    steepness = np.sqrt(sum(slope**2 for slope in slopes))
    # The waves are flat near saddle points; a minimum slope keeps sulci narrow there.
    minimum = np.float32(0.5 * np.sqrt(np.mean(steepness**2)))
    across = np.abs(waves) / np.maximum(steepness, minimum)
    half_width = np.float32(0.35 + 0.5 * head.atrophy)
    distance: Array = across - half_width + 0.7 * np.maximum(depth - np.float32(15), 0)
    return distance


def _fissures(side: Array, y: Array, z: Array, half_width: float) -> Array:
    """Distance to the interhemispheric fissure and to the Sylvian fissure."""
    callosum = np.maximum(-_ellipsoid(np.zeros((1, 1, 1), np.float32), y, z, (0, -10, 6), (10, 46, 26)), 0)
    between = side - np.float32(half_width) + 2 * callosum
    insula = np.maximum(np.hypot((y - 1) / 24, (z - 1) / 13) - 1, 0) * 15
    # The insula is convex and has short gyri.
    bend = 41 - 0.005 * (y - 2) ** 2 - 0.008 * (z - 1) ** 2 + 0.5 * np.sin(0.7 * y + 0.2 * z)
    vertical = np.abs(side - bend) - np.float32(half_width) + insula
    rise = 3 - 0.15 * y
    outward = np.maximum(40 - side, 0) + 0.5 * np.maximum(np.abs(y + 2) - 26, 0)
    horizontal = np.abs(z - rise) - np.float32(half_width) + outward
    distance: Array = np.minimum(np.minimum(between, vertical), horizontal)
    return distance


def _cistern(midbrain: Array, y: Array, z: Array) -> Array:
    """Distance to the cerebrospinal fluid around the midbrain."""
    beyond = np.maximum(z + 6, 0) + 0 * y
    distance: Array = np.abs(midbrain - 1.8) - 1.8 + beyond
    return distance


def _ventricles(side: Array, y: Array, z: Array, width: float) -> Array:
    """Distance to the lateral ventricles, widened by a factor."""
    ellipsoids = [
        ((9, 23, 8), (4.5, 13, 8)),
        ((10, 0, 20), (6, 26, 5)),
        ((21, -38, 8), (6, 12, 11)),
        ((31, -20, -14), (3.5, 15, 4)),
        ((23, -56, 4), (4, 12, 5)),
    ]
    nearest: Array = np.minimum.reduce(
        [_ellipsoid(side, y, z, centre, np.multiply(semi, (width, 1, width))) for centre, semi in ellipsoids]
    )
    return nearest


def _field(grid: Grid, waves: Array, shifts: Array) -> Array:
    """Smooth random field with unit variance."""
    x, y, z = grid.axes
    total = np.zeros(grid.shape, np.float32)
    for (kx, ky, kz), shift in zip(waves.astype(np.float32), shifts, strict=True):
        total += np.cos(kx * x + ky * y + kz * z + np.float32(shift))
    return total / np.float32(math.sqrt(len(waves) / 2))


def _regions(side: Array, y: Array, z: Array, surface: Array, thalamus: Array, midbrain: Array) -> Array:
    """Label image of the regions: lobes first, then deep structures."""
    shape = surface.shape
    regions = np.full(shape, 2, np.int16)
    regions[np.broadcast_to(y < -62, shape)] = 7
    below = (z < 2 - 0.15 * y) & (side > 20) & (y > -45) & (y < 32)
    regions[np.broadcast_to(below, shape)] = 3
    sylvian = (np.hypot((y - 1) / 25, (z - 1) / 14) < 1) & (side > 33.5) & (side < 42)
    regions[np.broadcast_to(sylvian, shape)] = 4
    ganglia = _ellipsoid(side + 0.1 * (y - 2), y, z, (20, 4, 5), (14, 25, 16))
    regions[ganglia < 0] = 1
    regions[thalamus < 0.5] = 5
    # Cerebellum and brain stem below the midbrain belong to no region.
    regions[np.broadcast_to((z < -20) & (y < -30), shape)] = 0
    regions[(midbrain < 0.5) & (z < -4)] = 6
    regions[surface >= 0] = 0
    return regions
