"""Generated subjects and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.core.types import Array

__all__ = ["PhantomPicture", "PhantomSubject"]


@dataclass(frozen=True)
class PhantomSubject:
    """One generated subject, in memory.

    Parameters
    ----------
    images : suffix (``T1w``, …) → ((X, Y, Z) float32 array, (4, 4) float64 affine). The
        affine maps voxel indices to world coordinates in mm (RAS+); images may have
        different grids
    masks : label → ((X, Y, Z) integer array, affine), all on the reference grid: the
        label to predict, ``brain``, and further known structures. Binary masks have the
        values 0 and 1; ``regions`` has the keys of ``region_names``
    covariates : column of the participants table → value
    region_names : value in ``regions`` → name, for the regions that occur
    """

    images: Mapping[str, tuple[Array, Array]]
    masks: Mapping[str, tuple[Array, Array]]
    covariates: Mapping[str, float | str] = field(default_factory=dict)
    region_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PhantomPicture:
    """One generated picture, in memory; a subject may have several.

    Parameters
    ----------
    id : unique within the cohort, valid as a file name
    subject : subject of the picture
    image : (H, W, 3) uint8
    mask : (H, W) bool, pixels that determine the target, or ``None`` if unknown
    covariates : column of the participants table → value
    masks : further masks by name, (H, W) bool: ``truth_<target>`` has the pixels that determine
        one of several targets, ``nuisance`` those of a nuisance
    """

    id: str
    subject: str
    image: Array
    mask: Array | None = None
    covariates: Mapping[str, float | str] = field(default_factory=dict)
    masks: Mapping[str, Array] = field(default_factory=dict)
