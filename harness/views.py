"""Views: how a sample becomes what a network sees, and its outputs a prediction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from harness.errors import OutOfRange, RequestError, UnknownName
from harness.registry import VIEWS
from harness.types import Array, Cohort, Items, Sample

__all__ = ["AxialSlices", "LesionVolume", "Scaling", "axial_slices", "lesion_volume"]

Scaling = Literal["none", "direct_total_lesion_volume"]


@dataclass(frozen=True)
class AxialSlices:
    """Axial slices of several sequences, each voxel background or lesion.

    Items are slices, ordered from bottom to top; space is (X, Y).
    """

    channels: tuple[str, ...]
    outputs: int = 2
    explained: tuple[str, ...] = ("lesion evidence",)
    grouped: bool = False
    shape: tuple[int, ...] = ()

    def of(self, cohort: Cohort) -> AxialSlices:
        """The same: slices may differ in size, and the truth is a mask."""
        return self

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


@dataclass(frozen=True)
class LesionVolume:
    """The whole lesion map of a subject, and one number or several to say of it.

    An item is a subject; space is (X, Y, Z). An explanation is judged as the sum
    of the maps of all subjects, because no lesion map shows a whole region.

    Parameters
    ----------
    wanted : names of scores; empty for all that the cohort has
    scaling : of the input, see :func:`lesion_volume`
    scores, shape : of the cohort, filled in by :meth:`of`
    """

    wanted: tuple[str, ...] = ()
    scaling: Scaling = "none"
    scores: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    channels: tuple[str, ...] = ("lesion",)
    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ("lesion",)
    grouped: bool = True

    def of(self, cohort: Cohort) -> LesionVolume:
        """The view with the cohort's scores and grid.

        Raises
        ------
        UnknownName
            If the cohort has no such score.
        RequestError
            If its samples are not on one grid.

        Notes
        -----
        New subjects, of whom no score is known, have the view's own scores.
        """
        for name in self.wanted if cohort.scores else ():
            if name not in cohort.scores:
                raise UnknownName(f"score of {cohort.name}", name, cohort.scores)
        shapes = {sample.shape for sample in cohort.samples}
        if len(shapes) != 1:
            raise RequestError(f"all lesion maps must be on one grid, got {sorted(shapes)}; take cohort=lesions")
        return dataclasses.replace(self, scores=self.wanted or cohort.scores, shape=shapes.pop())

    @property
    def outputs(self) -> int:
        """One for each score."""
        return len(self.scores)

    @property
    def explained(self) -> tuple[str, ...]:
        """The scores themselves."""
        return self.scores

    def inputs(self, sample: Sample) -> Array:
        """The lesion map, (1, 1, X, Y, Z) float32: the lesioned fraction of each voxel, scaled."""
        lesion = np.array(sample.masks["lesion"].load(), np.float32)
        if self.scaling == "direct_total_lesion_volume":
            lesion /= np.sqrt(max(float(lesion.sum(dtype=np.float64)), 1e-6))
        return lesion[None, None]

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """The same without what is empty: flat indices in C order (N,) and values (N,) float32."""
        voxels, values = sample.masks["lesion"].voxels()
        if self.scaling == "direct_total_lesion_volume":
            values = values / np.sqrt(max(float(values.sum(dtype=np.float64)), 1e-6))
        return voxels, values.astype(np.float32)

    def items(self, sample: Sample) -> Items:
        """The lesion map and its scores.

        Returns
        -------
        Items
            inputs (1, 1, X, Y, Z) float32, targets (1, K) float32
        """
        return Items(self.inputs(sample), self.targets(sample))

    def targets(self, sample: Sample) -> Array:
        """The scores, (1, K) float32."""
        return np.array([[sample.scores[name] for name in self.scores]], np.float32)

    def prediction(self, outputs: Array) -> dict[str, Array]:
        """The predicted scores.

        Parameters
        ----------
        outputs : (1, K)

        Returns
        -------
        dict
            ``scores`` (K,) float64
        """
        return {"scores": outputs[0].astype(np.float64)}

    def volume(self, maps: Array) -> Array:
        """Maps of the one item (1, 1, X, Y, Z) → (1, X, Y, Z)."""
        one: Array = maps[0]
        return one

    def scalars(self, outputs: torch.Tensor) -> torch.Tensor:
        """The outputs themselves, (N, K)."""
        return outputs


@VIEWS.register("lesion_volume", source="Pustina et al. 2018, doi:10.1016/j.neuropsychologia.2017.08.027")
def lesion_volume(*, scores: str = "", scaling: Scaling = "none") -> LesionVolume:
    """The lesion map of a whole brain.

    Parameters
    ----------
    scores : names joined by ``+``, in the order of the outputs; empty for all
    scaling : ``direct_total_lesion_volume`` divides a map by the square root of its
        sum, so that every subject's vector has the same length (Zhang et al. 2014)

    Raises
    ------
    OutOfRange
        If a score is named twice or a name is empty.
    """
    names = tuple(scores.split("+")) if scores else ()
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"scores must be different names joined by '+', like score_1+score_2; got {scores!r}")
    return LesionVolume(names, scaling)


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
