"""Control for lesion volume in lesion maps and scores, fitted to the training subjects.

Large lesions affect more regions and reduce performance more, so that lesion volume
alone explains much of a score. Axes are (X, Y, Z). Volumes can have any unit, the same
for all subjects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = ["Adjustment", "VolumeControl", "VolumeLine", "fit_adjustment", "fit_volume_line", "unit_length"]

VolumeControl = Literal["direct_total_lesion_volume", "none", "regress_behaviour", "regress_both", "regress_lesion"]

_SMALLEST = 1e-6  # smaller lesion volumes count as no lesion and are not rescaled


@dataclass(frozen=True, eq=False)
class VolumeLine:
    """Linear regressions on lesion volume, one per value.

    Parameters
    ----------
    intercept, slope : float64 arrays with the shape of the values; slope per unit of volume
    """

    intercept: Array
    slope: Array

    def at(self, volume: float) -> Array:
        """Fitted values for a volume."""
        fitted: Array = self.intercept + volume * self.slope
        return fitted


def fit_volume_line(values: Iterable[Array], volumes: Array) -> VolumeLine:
    """Least-squares regression of each value on lesion volume.

    Parameters
    ----------
    values : n arrays of equal shape, one per subject, e.g. masks that are read one by one
    volumes : (n,) lesion volumes

    Returns
    -------
    VolumeLine
        The slope is zero if all volumes are equal.

    Raises
    ------
    OutOfRange
        If there are no subjects, or the numbers of subjects and volumes differ.
    """
    v = np.asarray(volumes, np.float64)
    centre = v.mean() if len(v) else 0.0
    centred = v - centre
    total = product = np.zeros(())
    seen = 0
    for seen, value in enumerate(values, 1):
        if seen > len(v):
            break
        x = np.asarray(value, np.float64)
        total, product = total + x, product + centred[seen - 1] * x
    if seen != len(v) or seen == 0:
        came = f"more than {len(v)}" if seen > len(v) else str(seen)
        raise OutOfRange(f"there must be one volume for each subject, got {came} subjects and {len(v)} volumes")
    variation = float(centred @ centred)
    slope = np.asarray(product / variation if variation > 0 else np.zeros_like(product))
    return VolumeLine(np.asarray(total / seen - centre * slope), slope)


def unit_length(mask: Array, volume: float) -> Array:
    """Direct total lesion volume control: divide a mask by the square root of its volume in voxels.

    Returns
    -------
    Array
        Mask with Euclidean norm 1 if it is binary; empty masks stay empty.
    """
    scaled: Array = mask / np.sqrt(max(volume, _SMALLEST))
    return scaled


@dataclass(frozen=True, eq=False)
class Adjustment:
    """Adjustment of masks and scores, fitted to the training subjects.

    Parameters
    ----------
    lesion : regression of each voxel on volume; ``None`` leaves masks unchanged
    behaviour : regression of each score on volume; ``None`` for no regression
    low, high : (K,) residual scores that are scaled to 0 and 1
    """

    lesion: VolumeLine | None
    behaviour: VolumeLine | None
    low: Array
    high: Array

    def mask(self, mask: Array, volume: float) -> Array:
        """Adjusted mask of a subject, (*space) float64."""
        return mask if self.lesion is None else mask - self.lesion.at(volume)

    def targets(self, values: Array, volume: float) -> Array:
        """Adjusted scores of a subject, (K,) float64."""
        own = values if self.behaviour is None else values - self.behaviour.at(volume)
        scaled: Array = (own - self.low) / (self.high - self.low)
        return scaled

    def restored(self, predictions: Array, volume: float) -> Array:
        """Predictions on the original scale, (K,) float64; the inverse of :meth:`targets`."""
        own: Array = predictions * (self.high - self.low) + self.low
        return own if self.behaviour is None else own + self.behaviour.at(volume)

    def arrays(self) -> dict[str, Array]:
        """Arrays by name, to be stored."""
        named = {"low": self.low, "high": self.high}
        for name, line in (("lesion", self.lesion), ("behaviour", self.behaviour)):
            if line is not None:
                named |= {f"{name}_intercept": line.intercept, f"{name}_slope": line.slope}
        return named

    @classmethod
    def of_arrays(cls, named: Mapping[str, Array]) -> Adjustment:
        """Create an adjustment from the result of :meth:`arrays`."""
        lines = [
            VolumeLine(named[f"{name}_intercept"], named[f"{name}_slope"]) if f"{name}_slope" in named else None
            for name in ("lesion", "behaviour")
        ]
        return cls(lines[0], lines[1], named["low"], named["high"])


def fit_adjustment(
    control: VolumeControl, masks: Iterable[Array], targets: Array, volumes: Array, *, to_unit_range: bool = False
) -> Adjustment:
    """Fit an adjustment to the training subjects.

    Parameters
    ----------
    control : ``regress_behaviour`` regresses lesion volume out of the scores,
        ``regress_lesion`` out of the voxels, ``regress_both`` out of both (DeMarco &
        Turkeltaub 2018); other kinds fit nothing
    masks : masks of the training subjects; read only if voxels are regressed
    targets : (n, K) scores of the training subjects
    volumes : (n,) lesion volumes of the training subjects
    to_unit_range : scale each score to [0, 1] over the training subjects; values of other
        subjects may lie outside and are not clipped

    Returns
    -------
    Adjustment
        Can be applied to any subject.

    Raises
    ------
    OutOfRange
        If a score to be scaled is constant over the training subjects.

    References
    ----------
    DeMarco & Turkeltaub 2018, doi:10.1002/hbm.24289.
    """
    lesion = fit_volume_line(masks, volumes) if control in ("regress_lesion", "regress_both") else None
    behaviour = fit_volume_line(targets, volumes) if control in ("regress_behaviour", "regress_both") else None
    outputs = targets.shape[1]
    as_given = Adjustment(lesion, behaviour, np.zeros(outputs), np.ones(outputs))
    if not to_unit_range:
        return as_given
    seen = np.array([as_given.targets(row, volume) for row, volume in zip(targets, volumes, strict=True)])
    low, high = seen.min(axis=0), seen.max(axis=0)
    if not (high > low).all():
        which = ", ".join(f"score {k + 1} (all {seen[0, k]:.4g})" for k in np.flatnonzero(high <= low))
        raise OutOfRange(
            f"a score must vary between training subjects to be scaled to their range, got {which} over {len(seen)} "
            "subjects; choose a region where more patients have lesions"
        )
    return Adjustment(lesion, behaviour, low, high)
