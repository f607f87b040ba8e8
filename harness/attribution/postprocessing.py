"""Post-processing: what is done to each subject's map before it is judged, or summed with others.

A post-processing is a plain function::

    @POSTPROCESSINGS.register("name", source="…")
    def name(maps, spacing_mm, *, …) -> Array: ...

maps : (C, *space) float32, one map per channel of one explained output
spacing_mm : voxel size along the axes of space, in mm

It gives maps of the same shape. The decorator may state

keeps_positive : maps without negative values are left as they are, so that what an
    exact model would show stays known
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt
from scipy import ndimage

from harness.core.registry import POSTPROCESSINGS
from harness.core.types import Array

__all__ = ["rectified", "smoothed", "unit_mass"]

_FWHM = 2 * np.sqrt(2 * np.log(2))  # of a normal distribution, in standard deviations


@POSTPROCESSINGS.register("rectified", source="the ResNet10 study (positive part)", keeps_positive=True)
def rectified(maps: Array, spacing_mm: tuple[float, ...], *, keep: Literal["positive", "size"] = "positive") -> Array:
    """Maps without negative values, subject by subject.

    Summing rectified maps differs from rectifying the sum, which metrics do by their
    option ``sign``: what speaks for the output in one patient is no longer cancelled by
    what speaks against it in another.

    Parameters
    ----------
    maps, spacing_mm : see the module; the spacing is not needed
    keep : negative values become zero, or positive (``size``)

    Returns
    -------
    (C, *space) float32
    """
    kept: Array = np.maximum(maps, 0) if keep == "positive" else np.abs(maps)
    return kept


@POSTPROCESSINGS.register("unit_mass", source="")
def unit_mass(maps: Array, spacing_mm: tuple[float, ...], *, keep: Literal["all", "positive"] = "all") -> Array:
    """Maps whose sizes add up to one, so that every subject has the same say in a sum.

    Parameters
    ----------
    maps, spacing_mm : see the module; the spacing is not needed
    keep : ``positive`` sets negative values to zero first

    Returns
    -------
    (C, *space) float32
        A map of zeros stays so.
    """
    kept = np.maximum(maps, 0) if keep == "positive" else maps
    mass = float(np.abs(kept).sum(dtype=np.float64))
    scaled: Array = kept / np.float32(mass) if mass > 0 else kept
    return scaled


@POSTPROCESSINGS.register("smoothed", source="")
def smoothed(maps: Array, spacing_mm: tuple[float, ...], *, fwhm_mm: Annotated[float, Gt(0)] = 8.0) -> Array:
    """Maps blurred by a normal kernel, each channel by itself.

    Parameters
    ----------
    maps, spacing_mm : see the module
    fwhm_mm : full width of the kernel at half of its height, in mm

    Returns
    -------
    (C, *space) float32
        Nothing lies beyond the border, so mass there is lost.
    """
    sigma = [0.0, *(fwhm_mm / _FWHM / step for step in spacing_mm)]
    blurred: Array = ndimage.gaussian_filter(maps, sigma, mode="constant")
    return blurred
