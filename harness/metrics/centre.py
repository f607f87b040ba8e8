"""Localisation of the centre of an image, which alone decides the label of a PatchCamelyon patch."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt

from harness.core.types import Array
from harness.metrics.localisation import check_finite, relevance_ap
from harness.metrics.register import metric

__all__ = ["centre_ap", "centre_share"]

_SOURCE = "Veeling et al. 2018, arXiv:1806.03962 (the label is that of the central 32 × 32 pixels)"


@metric(
    "centre_ap",
    source=_SOURCE,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="no true pixel in the centre: NaN",
    chance="centre_share",
)
def centre_ap(explanation: Array, target: Array | None = None, *, size: Annotated[int, Gt(0)] = 32) -> float:
    """Average precision against the part of the target in the centre of the image.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool; the whole centre without it
    size : edge length of the centre in voxels

    Returns
    -------
    float
        In [0, 1]; NaN if there is no true voxel in the centre.
    """
    return relevance_ap(explanation, _deciding(explanation, target, size))


@metric("centre_share", source=_SOURCE, direction="none", range=(0, 1), level="explanation", empty="0")
def centre_share(explanation: Array, target: Array | None = None, *, size: Annotated[int, Gt(0)] = 32) -> float:
    """Share of the image that is in the target and in its centre: the average precision of a random map.

    Parameters
    ----------
    explanation, target : see :func:`centre_ap`
    size : edge length of the centre in voxels

    Returns
    -------
    float
        In [0, 1].
    """
    check_finite(explanation)
    return float(_deciding(explanation, target, size).mean())


def _deciding(explanation: Array, target: Array | None, size: int) -> Array:
    """Voxels of the target in the centre, (X, Y, Z) bool."""
    found: Array = np.zeros(explanation.shape[1:], bool)
    starts = [max((side - size) // 2, 0) for side in found.shape]
    found[tuple(slice(start, start + size) for start in starts)] = True
    return found if target is None else found & target
