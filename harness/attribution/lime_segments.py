"""Segments of an image: superpixels and squares."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from skimage.segmentation import felzenszwalb, quickshift, slic

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = ["Labels", "Segmentation", "segments_of", "squares"]

Labels = npt.NDArray[np.int64]
Segmentation = Literal["slic", "quickshift", "felzenszwalb", "squares"]


def segments_of(image: Array, method: Segmentation, *, count: int, compactness: float) -> Labels:
    """Segment an image.

    Parameters
    ----------
    image : (C, *space) float, in [0, 1]; two or three spatial axes
    method : ``slic``; ``quickshift`` and ``felzenszwalb``, which choose the number of segments
        themselves and need two spatial axes; or ``squares``, a regular grid
    count : wanted number of segments. SLIC finds about as many, the squares exactly the
        nearest power of an integer
    compactness : weight of the distance in space against that in colour, for ``slic``

    Returns
    -------
    (*space) int64
        Labels from 0, without gaps.

    Raises
    ------
    OutOfRange
        If a method does not support the number of axes or of channels.
    """
    space, channels = image.shape[1:], len(image)
    if method == "squares":
        return squares(space, max(round(count ** (1 / len(space))), 1))
    last = np.moveaxis(np.asarray(image, np.float64), 0, -1)
    if method == "slic":
        # Volumes and images of other than three channels have no colour space.
        labels = slic(
            last, n_segments=count, compactness=compactness, start_label=0, channel_axis=-1,
            convert2lab=len(space) == 2 and channels == 3,
        )  # fmt: skip
    elif len(space) != 2 or channels not in (1, 3):
        raise OutOfRange(
            f"{method} needs an image of two axes and one or three channels, got {channels} of {space}; choose slic or "
            "squares"
        )
    elif method == "quickshift":
        colour = np.repeat(last, 3, axis=-1) if channels == 1 else last
        # The settings of the lime package.
        labels = quickshift(colour, kernel_size=4, max_dist=200, ratio=0.2, rng=0, convert2lab=True)
    else:
        labels = felzenszwalb(last, scale=100, sigma=0.5, min_size=max(int(np.prod(space)) // (10 * count), 1))
    return np.unique(labels, return_inverse=True)[1].reshape(space).astype(np.int64)


def squares(space: tuple[int, ...], side: int) -> Labels:
    """A regular grid with the same number of equal parts along each axis.

    Parameters
    ----------
    space : shape of the image
    side : number of parts along each axis

    Returns
    -------
    (*space) int64
        Labels from 0 in the order of the axes. Parts differ by one voxel where the shape is not
        a multiple.

    Raises
    ------
    OutOfRange
        If an axis has fewer voxels than parts.
    """
    if side > min(space):
        raise OutOfRange(
            f"a grid of {side} parts along each axis needs as many voxels, got {space}; choose fewer levels"
        )
    found = np.zeros(space, np.int64)
    for axis, size in enumerate(space):
        part = (np.arange(size) * side) // size
        found = found * side + part.reshape([-1 if one == axis else 1 for one in range(len(space))])
    return found
