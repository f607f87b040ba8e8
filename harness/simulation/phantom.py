"""What a generated subject is made of, whatever the task."""

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
    images : suffix (``T1w``, …) → ((X, Y, Z) float32 array, (4, 4) float64 affine);
        the affine takes voxel indices to world mm (RAS+), and images may have
        grids of their own
    masks : label → ((X, Y, Z) integer array, affine), all on the reference grid:
        the label to predict, ``brain``, and whatever else is known of the truth.
        Binary masks hold 0 and 1; ``regions`` holds the keys of ``region_names``
    covariates : column of the participants' table → value
    region_names : value in ``regions`` → name, for the regions that occur
    """

    images: Mapping[str, tuple[Array, Array]]
    masks: Mapping[str, tuple[Array, Array]]
    covariates: Mapping[str, float | str] = field(default_factory=dict)
    region_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PhantomPicture:
    """One generated picture, in memory; a phantom gives several of each subject.

    Parameters
    ----------
    id : unique in the cohort, a plain file name
    subject : whose picture it is
    image : (H, W, 3) uint8
    mask : (H, W) bool, where the evidence lies, or ``None``
    covariates : column of the table → value
    """

    id: str
    subject: str
    image: Array
    mask: Array | None = None
    covariates: Mapping[str, float | str] = field(default_factory=dict)
