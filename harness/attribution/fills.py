"""What hidden parts of an image are replaced by.

A network was never shown an image with hidden parts, so that the answer depends on the
fill: some networks of histology call a black image tumour with a probability of 1. A
method that hides parts, and a metric of what a shown part is worth, take the fill as an
option.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = ["Fill", "filled"]

Fill = Literal["black", "white", "mean", "blur", "background"]

_BRIGHT = 0.05  # share of the brightest positions, whose median is the background
_BLUR = 0.1  # standard deviation of the blur, relative to the longest side


def filled(image: Array, fill: Fill) -> Array:
    """An image of the same shape that has nothing to show.

    Parameters
    ----------
    image : (C, *space) float, in [0, 1]
    fill : ``black`` (0) or ``white`` (1); the ``mean`` colour of the image; the image after a
        Gaussian ``blur`` with a standard deviation of a tenth of its longest side; or the
        ``background``: the median colour of the brightest 5 % of its positions, which is
        glass in a histological image

    Returns
    -------
    (C, *space) float
        Same dtype as the image.

    Raises
    ------
    OutOfRange
        If there is no such fill.
    """
    channels, axes = len(image), tuple(range(1, image.ndim))
    if fill in ("black", "white"):
        return np.full_like(image, 0.0 if fill == "black" else 1.0)
    if fill == "mean":
        colour = image.mean(axis=axes, dtype=np.float64)
    elif fill == "background":
        flat = image.reshape(channels, -1)
        count = max(round(_BRIGHT * flat.shape[1]), 1)
        brightest = np.argsort(flat.sum(axis=0, dtype=np.float64), kind="stable")[-count:]
        colour = np.median(flat[:, brightest], axis=1)
    elif fill == "blur":
        sigma = _BLUR * max(image.shape[1:])
        return np.stack([gaussian_filter(one, sigma, mode="nearest") for one in image]).astype(image.dtype)
    else:
        raise OutOfRange(f"fill must be one of black, white, mean, blur, background, got {fill!r}")
    found: Array = np.broadcast_to(colour.reshape(-1, *[1] * (image.ndim - 1)), image.shape).astype(image.dtype)
    return found
