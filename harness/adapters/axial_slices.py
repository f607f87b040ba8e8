"""Axial slices of several sequences, for segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.errors import OutOfRange, RequestError
from harness.core.registry import ADAPTERS
from harness.core.targets import Target, logistic
from harness.core.types import Array, Cohort, Input, NetworkSpec, Prediction, Reads, Sample

__all__ = ["AxialSlices", "axial_slices"]

_TARGET = "target"


@dataclass(frozen=True)
class AxialSlices:
    """Adapter for axial slices.

    Items are slices in ascending order, with spatial axes (X, Y). Slices of different
    samples may differ in size.

    Parameters
    ----------
    channels : sequences in the order of the input channels
    """

    channels: tuple[str, ...]

    @property
    def reads(self) -> Reads:
        """The images of the sequences."""
        return Reads(images=self.channels)

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """One input with a channel per sequence, and the mask as target.

        Raises
        ------
        RequestError
            If the cohort has targets other than the mask ``target``.
        """
        others = [target.name for target in cohort.targets if (target.name, target.kind) != (_TARGET, "mask")]
        if others:
            raise RequestError(
                f"axial_slices predicts only the mask {_TARGET}, but {cohort.name} has the targets "
                f"{', '.join(others)}; choose another adapter"
            )
        return NetworkSpec((Input("slices", self.channels),), cohort.targets)

    def inputs(self, sample: Sample) -> tuple[Array]:
        """Slices, (Z, C, X, Y) float32."""
        volume = np.stack([sample.images[name].load() for name in self.channels]).astype(np.float32)
        return (np.ascontiguousarray(np.moveaxis(volume, -1, 0)),)

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Labels of the slices, (Z, X, Y) int64, 1 inside a lesion."""
        target = np.asarray(sample.masks[_TARGET].load() > 0)
        return {_TARGET: np.ascontiguousarray(np.moveaxis(target, -1, 0).astype(np.int64))}

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Lesion probability of every voxel.

        Parameters
        ----------
        outputs : logits of ``target``, (Z, 2, X, Y)

        Returns
        -------
        dict
            ``probability`` of ``target``, (X, Y, Z) float32: the softmax of the lesion class.
        """
        logits = outputs[_TARGET]
        margin = logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)
        return {_TARGET: {"probability": np.moveaxis(logistic(margin), 0, -1).astype(np.float32)}}

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of slices, (Z, C, X, Y), to volumes, (C, X, Y, Z)."""
        return np.moveaxis(maps, 0, -1)


@ADAPTERS.register("axial_slices", source="Rashid et al. 2023, section 3.2")
def axial_slices(*, channels: str = "T2w") -> AxialSlices:
    """2D axial slices with one input channel per MRI sequence.

    Parameters
    ----------
    channels : sequences joined by ``+`` in the order of the input channels, e.g.
        ``T2w+FLAIR``

    Raises
    ------
    OutOfRange
        If a name is empty or occurs twice.
    """
    names = tuple(channels.split("+"))
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"channels must be different sequences joined by '+', like T2w+FLAIR; got {channels!r}")
    return AxialSlices(names)
