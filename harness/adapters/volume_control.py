"""What is taken from lesion maps and scores before a model sees them, learned from the training subjects alone.

Large lesions cover more regions and cost more points, so total lesion volume alone
explains much of a score. Axes are (X, Y, Z); volumes are in any unit that all
subjects share.
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

_SMALLEST = 1e-6  # a smaller lesion volume counts as none: it is not rescaled


@dataclass(frozen=True, eq=False)
class VolumeLine:
    """Straight line against lesion volume, one per value.

    Parameters
    ----------
    intercept, slope : of the values' shape, float64; the slope is per unit of volume
    """

    intercept: Array
    slope: Array

    def at(self, volume: float) -> Array:
        """What the line says for a volume, of the values' shape."""
        said: Array = self.intercept + volume * self.slope
        return said


def fit_volume_line(values: Iterable[Array], volumes: Array) -> VolumeLine:
    """Least squares of each value on lesion volume.

    Parameters
    ----------
    values : n arrays of one shape, one per subject, e.g. masks read one by one
    volumes : (n,) lesion volume

    Returns
    -------
    VolumeLine
        The slope is zero if all volumes are equal.

    Raises
    ------
    OutOfRange
        If there are no subjects, or not one volume for each.
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
        raise OutOfRange(f"there must be subjects, and one volume for each, got {came} subjects and {len(v)} volumes")
    variation = float(centred @ centred)
    slope = np.asarray(product / variation if variation > 0 else np.zeros_like(product))
    return VolumeLine(np.asarray(total / seen - centre * slope), slope)


def unit_length(mask: Array, volume: float) -> Array:
    """Direct total lesion volume control: a mask divided by the root of its volume in voxels.

    Returns
    -------
    Array
        Of length one if the mask is binary; an empty mask stays empty.
    """
    scaled: Array = mask / np.sqrt(max(volume, _SMALLEST))
    return scaled


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What training subjects say of lesion volume and of the range of scores.

    Parameters
    ----------
    lesion : line of every voxel, or None: masks stay as they are
    behaviour : line of every score, or None
    low, high : (K,) scores, after the line is taken away, that become 0 and 1
    """

    lesion: VolumeLine | None
    behaviour: VolumeLine | None
    low: Array
    high: Array

    def mask(self, mask: Array, volume: float) -> Array:
        """A mask as a model should see it, (*space) float64."""
        return mask if self.lesion is None else mask - self.lesion.at(volume)

    def targets(self, values: Array, volume: float) -> Array:
        """A subject's scores as a model should see them, (K,) float64."""
        own = values if self.behaviour is None else values - self.behaviour.at(volume)
        scaled: Array = (own - self.low) / (self.high - self.low)
        return scaled

    def restored(self, predictions: Array, volume: float) -> Array:
        """A prediction on the scale of the scores: undoes :meth:`targets`, (K,) float64."""
        own: Array = predictions * (self.high - self.low) + self.low
        return own if self.behaviour is None else own + self.behaviour.at(volume)

    def arrays(self) -> dict[str, Array]:
        """All of it by name, for a file."""
        named = {"low": self.low, "high": self.high}
        for name, line in (("lesion", self.lesion), ("behaviour", self.behaviour)):
            if line is not None:
                named |= {f"{name}_intercept": line.intercept, f"{name}_slope": line.slope}
        return named

    @classmethod
    def of_arrays(cls, named: Mapping[str, Array]) -> Adjustment:
        """The inverse of :meth:`arrays`."""
        lines = [
            VolumeLine(named[f"{name}_intercept"], named[f"{name}_slope"]) if f"{name}_slope" in named else None
            for name in ("lesion", "behaviour")
        ]
        return cls(lines[0], lines[1], named["low"], named["high"])


def fit_adjustment(
    control: VolumeControl, masks: Iterable[Array], targets: Array, volumes: Array, *, to_unit_range: bool = False
) -> Adjustment:
    """Learn an adjustment from training subjects.

    Parameters
    ----------
    control : ``regress_behaviour``: what a straight line in volume says of the scores is
        taken from them; ``regress_lesion``: likewise from every voxel; ``regress_both``
        (DeMarco & Turkeltaub 2018). The other kinds learn nothing
    masks : of the training subjects, one array each; read only if voxels are regressed
    targets : (n, K) scores of the training subjects
    volumes : (n,) their lesion volumes
    to_unit_range : scale each score so that the training subjects reach from 0 to 1;
        others may lie outside, nothing is clipped

    Returns
    -------
    Adjustment
        Apply it to any subject, also to held-out ones: it knows the training subjects
        only.

    Raises
    ------
    OutOfRange
        If a score is to be scaled that is the same for all training subjects.

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
            f"a score must differ between training subjects to be scaled by them, got {which} over {len(seen)} "
            "subjects; take a region where more patients have lesions"
        )
    return Adjustment(lesion, behaviour, low, high)
