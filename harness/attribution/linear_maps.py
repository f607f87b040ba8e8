"""Maps of a model that computes a linear score exactly: Σ_k w_k · mean of the image in mask k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Gt

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = ["exact_map", "windowed"]


def exact_map(image: Array, masks: Sequence[Array], weights: Sequence[float]) -> Array:
    """Product of the weight of each voxel and the image.

    This is the map of gradient × input, integrated gradients and GradientSHAP with a
    baseline of zero: w_k / |mask k| · image inside mask k, and zero elsewhere.

    Parameters
    ----------
    image : (X, Y, Z) image or, because maps are linear in it, sum over several subjects
    masks : R masks, (X, Y, Z) bool, each with at least one voxel
    weights : R weights

    Returns
    -------
    (X, Y, Z) float64
        In the unit of the score; overlapping masks are added.
    """
    result = np.zeros(np.shape(image))
    for mask, weight in zip(masks, weights, strict=True):
        result += weight / np.count_nonzero(mask) * mask * np.asarray(image)
    return result


def windowed(
    exact: Array, window: Annotated[int, Gt(0)] | Sequence[int], stride: Annotated[int, Gt(0)] | Sequence[int]
) -> Array:
    """Occlusion map of a model that is linear in the image.

    Occluding a window reduces the output of such a model by the sum of its exact map over
    the window. The value of a voxel is the mean over all windows that cover it.

    Parameters
    ----------
    exact : (X, Y, Z) float, e.g. :func:`exact_map`
    window, stride : size and step of the window in voxels, one number or one per axis. As
        in captum, windows start at multiples of the stride, and the last window ends at
        the border or is cropped

    Returns
    -------
    (X, Y, Z) float64
        Rounded to about 1e-12 of the largest magnitude, so that equal values are exactly
        equal and count as ties in average precision.

    Raises
    ------
    OutOfRange
        If ``1 <= stride <= window <= size`` does not hold on every axis.
    """
    result = np.asarray(exact, np.float64)
    windows, strides = (
        (value,) * result.ndim if isinstance(value, int) else tuple(value) for value in (window, stride)
    )
    if not all(1 <= s <= w <= n for s, w, n in zip(strides, windows, result.shape, strict=True)):
        raise OutOfRange(
            f"`1 <= stride <= window <= size` must hold on every axis, got stride={strides}, window={windows}, "
            f"size={result.shape}"
        )
    # Sums over windows and means over windows are both separable.
    for axis, (size, w, s) in enumerate(zip(result.shape, windows, strides, strict=True)):
        starts = s * np.arange(-(-(size - w) // s) + 1)[:, None]
        covers = ((np.arange(size) >= starts) & (np.arange(size) < starts + w)).astype(np.float64)
        spread = covers.T @ covers / covers.sum(axis=0)[:, None]
        result = np.moveaxis(np.tensordot(spread, result, axes=(1, axis)), 0, axis)
    # Sums in different order differ in the last bits, which would break ties in a ranking.
    step = np.abs(result).max(initial=0) * 2.0**-40
    return np.ascontiguousarray(np.rint(result / step) * step if step > 0 else result)
