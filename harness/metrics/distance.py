"""Distances between predicted and true masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from harness.core.types import Array, Source
from harness.metrics.register import choose, metric
from harness.metrics.segmentation import TAHA

__all__ = ["average_hausdorff", "hausdorff_95", "mahalanobis"]

NAN = float("nan")
INFINITY = float("inf")
HUTTENLOCHER = Source(
    authors="Huttenlocher et al.",
    year=1993,
    title="Comparing images using the Hausdorff distance",
    doi="10.1109/34.232073",
)

# Relative tolerance for the rank of a covariance matrix.
_FLAT = 1e-10
_COMBINE: Mapping[str, Callable[[float, float], float]] = {"max": max, "mean": lambda one, other: (one + other) / 2}
_UNITS: Mapping[str, bool] = {"mm": True, "voxels": False}


@metric(
    "average_hausdorff",
    source=TAHA,
    direction="lower",
    range=(0, INFINITY),
    empty="one of the masks empty: NaN, and the mean skips it",
)
def average_hausdorff(
    prediction: Array,
    target: Array,
    spacing_mm: tuple[float, float, float],
    *,
    combine: Literal["mean", "max"] = "mean",
    units: Literal["mm", "voxels"] = "mm",
) -> float:
    """Average Hausdorff distance between the voxels of two masks.

    For each direction, this is the mean over all voxels of one mask of the distance to the
    nearest voxel of the other mask. Voxels in both masks have the distance 0.

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z
    combine : how the two directions are combined: their ``mean`` or ``max``
    units : unit of the distance, ``mm`` or ``voxels`` (distance of indices)

    Returns
    -------
    float
        At least 0; NaN if a mask is empty.

    Notes
    -----
    The article uses the maximum of both directions, the program of its authors the mean,
    which is the default here.
    """
    merge = choose("combine", combine, _COMBINE)
    scale = spacing_mm if choose("units", units, _UNITS) else (1.0, 1.0, 1.0)
    there, back = _nearest(_points(prediction, scale), _points(target, scale))
    return merge(float(there.mean()), float(back.mean())) if there.size else NAN


@metric(
    "hausdorff_95",
    source=HUTTENLOCHER,
    direction="lower",
    range=(0, INFINITY),
    empty="one of the masks empty: NaN, and the mean skips it",
)
def hausdorff_95(prediction: Array, target: Array, spacing_mm: tuple[float, float, float]) -> float:
    """95th percentile of the distances between two surfaces, maximum of both directions.

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z

    Returns
    -------
    float
        In mm, at least 0; NaN if a mask is empty.

    Notes
    -----
    The surface consists of voxels with a face at the background or at the edge of the
    volume. Distances are measured between centres of voxels.
    """
    there, back = _nearest(_points(_surface(prediction), spacing_mm), _points(_surface(target), spacing_mm))
    return float(max(np.percentile(there, 95), np.percentile(back, 95))) if there.size else NAN


@metric(
    "mahalanobis",
    source=TAHA,
    direction="lower",
    range=(0, INFINITY),
    empty="one of the masks empty, or both together flat: NaN, and the mean skips it",
)
def mahalanobis(prediction: Array, target: Array) -> float:
    """Mahalanobis distance between the centres of two masks, √(Δμᵀ S⁻¹ Δμ).

    S is the pooled covariance of the voxel coordinates of both masks, weighted by their
    numbers of voxels: S = (n₁S₁ + n₂S₂) / (n₁ + n₂), where each Sᵢ is normalised by nᵢ.

    Parameters
    ----------
    prediction, target : (X, Y, Z) bool

    Returns
    -------
    float
        In standard deviations, at least 0, independent of the spacing; NaN if a mask is
        empty or S is singular (all voxels in parallel planes).
    """
    predicted, true = np.argwhere(prediction).astype(np.float64), np.argwhere(target).astype(np.float64)
    if not len(predicted) or not len(true):
        return NAN
    shift = predicted.mean(axis=0) - true.mean(axis=0)
    spread = (_scatter(predicted) + _scatter(true)) / (len(predicted) + len(true))
    if np.linalg.matrix_rank(spread, rtol=_FLAT, hermitian=True) < 3:
        return NAN
    return float(np.sqrt(shift @ np.linalg.solve(spread, shift)))


def _points(mask: Array, scale: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    return np.asarray(np.argwhere(mask) * np.asarray(scale), dtype=np.float64)


def _surface(mask: Array) -> Array:
    inner: Array = binary_erosion(mask)
    return mask & ~inner


def _nearest(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distances from each point of a set to the nearest point of the other, for both sets; empty if a set is empty."""
    if not len(first) or not len(second):
        return np.empty(0), np.empty(0)
    return KDTree(second).query(first)[0], KDTree(first).query(second)[0]


def _scatter(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = points - points.mean(axis=0)
    return np.asarray(centred.T @ centred)
