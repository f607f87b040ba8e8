"""Views: how a sample becomes what a network sees, and its outputs a prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from harness.errors import OutOfRange
from harness.registry import VIEWS
from harness.types import Array, Items, Sample

__all__ = ["AxialSlices", "axial_slices"]


@dataclass(frozen=True)
class AxialSlices:
    """Axial slices of several sequences, each voxel background or lesion.

    Items are slices, ordered from bottom to top; space is (X, Y).
    """

    channels: tuple[str, ...]
    outputs: int = 2
    explained: tuple[str, ...] = ("lesion evidence",)

    @property
    def images(self) -> tuple[str, ...]:
        """Sequences that are read."""
        return self.channels

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks that are read."""
        return ("target", "brain", "regions")

    def inputs(self, sample: Sample) -> Array:
        """Slices, (Z, C, X, Y) float32."""
        volume = np.stack([sample.images[name].load() for name in self.channels]).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(volume, -1, 0))

    def items(self, sample: Sample) -> Items:
        """Slices and their labels.

        Returns
        -------
        Items
            inputs (Z, C, X, Y) float32, targets (Z, X, Y) int64 with 1 inside a lesion
        """
        target = np.asarray(sample.masks["target"].load() > 0)
        return Items(self.inputs(sample), np.ascontiguousarray(np.moveaxis(target, -1, 0).astype(np.int64)))

    def prediction(self, outputs: Array) -> dict[str, Array]:
        """Lesion probability of every voxel.

        Parameters
        ----------
        outputs : (Z, 2, X, Y) logits

        Returns
        -------
        dict
            ``probability`` (X, Y, Z) float32, the softmax of the lesion class
        """
        margin = outputs[:, 1].astype(np.float64) - outputs[:, 0].astype(np.float64)
        probability = 0.5 * (1.0 + np.tanh(0.5 * margin))  # the logistic function without overflow
        return {"probability": np.moveaxis(probability, 0, -1).astype(np.float32)}

    def volume(self, maps: Array) -> Array:
        """Maps of slices (Z, C, X, Y) → (C, X, Y, Z)."""
        return np.moveaxis(maps, 0, -1)

    def scalars(self, outputs: torch.Tensor) -> torch.Tensor:
        """Lesion evidence of each slice: Σ log(1 + exp(logit margin)) over its voxels.

        Near zero where background wins and equal to the margin where the lesion
        class wins, so voxels count by how firmly they are called lesion. No
        truth enters, and the sum is smooth, as gradient methods need.

        Parameters
        ----------
        outputs : (N, 2, X, Y) logits

        Returns
        -------
        Tensor
            (N, 1)
        """
        margin = outputs[:, 1] - outputs[:, 0]
        return torch.nn.functional.softplus(margin).flatten(1).sum(1, keepdim=True)


@VIEWS.register("axial_slices", source="Rashid et al. 2023, section 3.2")
def axial_slices(*, channels: str = "T2w") -> AxialSlices:
    """2D axial slices with one input channel per MRI sequence.

    Parameters
    ----------
    channels : sequences joined by ``+``, e.g. ``T2w+FLAIR``; the order is the
        order of the input channels

    Raises
    ------
    OutOfRange
        If a sequence is empty or named twice.
    """
    names = tuple(channels.split("+"))
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"channels must be different sequences joined by '+', like T2w+FLAIR; got {channels!r}")
    return AxialSlices(names)
