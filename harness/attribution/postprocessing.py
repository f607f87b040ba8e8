"""Postprocessing of the maps of each sample, before they are evaluated or summed.

A postprocessing is a plain function::

    @POSTPROCESSINGS.register("name", source="…")
    def name(maps, spacing_mm, *, …) -> Array: ...

maps : (C, *space) float32, one map per channel for one explained output
spacing_mm : voxel size along the spatial axes, in mm

It returns maps of the same shape. The decorator can declare:

keeps_positive : maps without negative values are not changed, so that the map of an exact
    model is known
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt
from scipy import ndimage

from harness.core.registry import POSTPROCESSINGS
from harness.core.types import Array

__all__ = ["rectified", "smoothed", "unit_mass"]

_FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian, in standard deviations


@POSTPROCESSINGS.register("rectified", source="the ResNet10 study (positive part)", keeps_positive=True)
def rectified(maps: Array, spacing_mm: tuple[float, ...], *, keep: Literal["positive", "size"] = "positive") -> Array:
    """Remove negative values from the map of each sample.

    A sum of rectified maps differs from a rectified sum (the option ``sign`` of metrics):
    positive attributions in one subject are not cancelled by negative ones in another.

    Parameters
    ----------
    maps, spacing_mm : see :mod:`harness.attribution.postprocessing`; the spacing is unused
    keep : ``positive`` sets negative values to zero, ``size`` takes absolute values

    Returns
    -------
    (C, *space) float32
    """
    kept: Array = np.maximum(maps, 0) if keep == "positive" else np.abs(maps)
    return kept


@POSTPROCESSINGS.register("unit_mass", source="")
def unit_mass(maps: Array, spacing_mm: tuple[float, ...], *, keep: Literal["all", "positive"] = "all") -> Array:
    """Scale the map of each sample so that its absolute values sum to one.

    All samples then have the same weight in a sum of maps.

    Parameters
    ----------
    maps, spacing_mm : see :mod:`harness.attribution.postprocessing`; the spacing is unused
    keep : ``all`` values, or only ``positive`` ones (negative values are set to zero)

    Returns
    -------
    (C, *space) float32
        Maps of zeros are not changed.
    """
    kept = np.maximum(maps, 0) if keep == "positive" else maps
    mass = float(np.abs(kept).sum(dtype=np.float64))
    scaled: Array = kept / np.float32(mass) if mass > 0 else kept
    return scaled


@POSTPROCESSINGS.register("smoothed", source="")
def smoothed(maps: Array, spacing_mm: tuple[float, ...], *, fwhm_mm: Annotated[float, Gt(0)] = 8.0) -> Array:
    """Smooth the map of each channel with a Gaussian kernel.

    Parameters
    ----------
    maps, spacing_mm : see :mod:`harness.attribution.postprocessing`
    fwhm_mm : full width at half maximum of the kernel in mm

    Returns
    -------
    (C, *space) float32
        Values outside the image count as zero.
    """
    sigma = [0.0, *(fwhm_mm / _FWHM / step for step in spacing_mm)]
    blurred: Array = ndimage.gaussian_filter(maps, sigma, mode="constant")
    return blurred
