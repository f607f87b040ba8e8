"""Views: how a sample becomes what a network sees, and its outputs a prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from harness.adapters.volume_control import Adjustment, VolumeControl, fit_adjustment, unit_length
from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.registry import VIEWS
from harness.core.types import Array, Cohort, Items, Sample

__all__ = ["AxialSlices", "LesionVolume", "TargetRange", "axial_slices", "lesion_volume"]

TargetRange = Literal["given", "training"]


@dataclass(frozen=True)
class AxialSlices:
    """Axial slices of several sequences, each voxel background or lesion.

    Items are slices, ordered from bottom to top; space is (X, Y).
    """

    channels: tuple[str, ...]
    outputs: int = 2
    explained: tuple[str, ...] = ("lesion evidence",)
    grouped: bool = False
    plain: bool = True
    shape: tuple[int, ...] = ()

    def of(self, cohort: Cohort) -> AxialSlices:
        """The same: slices may differ in size, and the truth is a mask."""
        return self

    def fit(self, training: Sequence[Sample]) -> AxialSlices:
        """The same: nothing is learned from training samples."""
        return self

    @property
    def learned(self) -> dict[str, Array]:
        """Nothing."""
        return {}

    def knowing(self, learned: Mapping[str, Array]) -> AxialSlices:
        """The same."""
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

    def summands(self, sample: Sample) -> tuple[Array, None]:
        """Slices are explained as they are."""
        return self.inputs(sample), None

    def items(self, sample: Sample) -> Items:
        """Slices and their labels.

        Returns
        -------
        Items
            inputs (Z, C, X, Y) float32, targets (Z, X, Y) int64 with 1 inside a lesion
        """
        target = np.asarray(sample.masks["target"].load() > 0)
        return Items(self.inputs(sample), np.ascontiguousarray(np.moveaxis(target, -1, 0).astype(np.int64)))

    def prediction(self, outputs: Array, sample: Sample) -> dict[str, Array]:
        """Lesion probability of every voxel.

        Parameters
        ----------
        outputs : (Z, 2, X, Y) logits
        sample : whose slices they are; not needed

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
    volume_control, target_range : see :func:`lesion_volume`
    adjustment : what is known of the training samples, filled in by :meth:`fit`
    scores, shape : of the cohort, filled in by :meth:`of`
    """

    wanted: tuple[str, ...] = ()
    volume_control: VolumeControl = "none"
    target_range: TargetRange = "given"
    adjustment: Adjustment | None = None
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

    def fit(self, training: Sequence[Sample]) -> LesionVolume:
        """The view with what the training samples say of lesion volume and of the range of scores."""
        if not self._adjusts:
            return self
        targets = np.array([[sample.scores[name] for name in self.scores] for sample in training])
        masks = (sample.masks["lesion"].load() for sample in training)
        volumes = np.array([_volume(sample) for sample in training])
        made = fit_adjustment(
            self.volume_control, masks, targets, volumes, to_unit_range=self.target_range == "training"
        )
        return dataclasses.replace(self, adjustment=made)

    @property
    def learned(self) -> dict[str, Array]:
        """What :meth:`fit` found, by name."""
        return {} if self.adjustment is None else self.adjustment.arrays()

    def knowing(self, learned: Mapping[str, Array]) -> LesionVolume:
        """The view with what was found before."""
        return dataclasses.replace(self, adjustment=Adjustment.of_arrays(learned)) if learned else self

    @property
    def _adjusts(self) -> bool:
        return self.volume_control.startswith("regress") or self.target_range == "training"

    def _known(self) -> Adjustment | None:
        if self._adjusts and self.adjustment is None:
            raise CellError(
                f"volume_control={self.volume_control} and target_range={self.target_range} must be fitted to "
                "training subjects before their use"
            )
        return self.adjustment

    @property
    def plain(self) -> bool:
        """Whether lesion maps are seen as they are."""
        return self.volume_control in ("none", "regress_behaviour")

    def inputs(self, sample: Sample) -> Array:
        """The lesion map, (1, 1, X, Y, Z) float32: the lesioned fraction of each voxel, controlled for volume."""
        adjustment, mask = self._known(), sample.masks["lesion"].load()
        if self.volume_control == "direct_total_lesion_volume":
            mask = unit_length(mask, _volume(sample))
        if adjustment is not None:
            mask = adjustment.mask(mask, _volume(sample))
        return np.array(mask, np.float32)[None, None]

    def summands(self, sample: Sample) -> tuple[Array, Array | None]:
        """The lesion map, and minus what its volume says of every voxel if that is regressed.

        So an explanation is of the lesion, and the baseline zero a brain without one that
        is otherwise the same. Residuals themselves would add up to nothing over subjects.
        """
        adjustment = self._known()
        if adjustment is None or adjustment.lesion is None:
            return self.inputs(sample), None
        lesion = np.array(sample.masks["lesion"].load(), np.float32)
        return lesion[None, None], -adjustment.lesion.at(_volume(sample)).astype(np.float32)[None, None]

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """The same without what is empty: flat indices in C order (N,) and values (N,) float32."""
        adjustment = self._known()
        if adjustment is not None and adjustment.lesion is not None:
            whole = self.inputs(sample).ravel()
            filled = np.flatnonzero(whole)
            return filled, whole[filled]
        voxels, values = sample.masks["lesion"].voxels()
        if self.volume_control == "direct_total_lesion_volume":
            values = unit_length(values, _volume(sample))
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
        """The scores as the network should say them, (1, K) float32."""
        adjustment, values = self._known(), np.array([sample.scores[name] for name in self.scores])
        if adjustment is not None:
            values = adjustment.targets(values, _volume(sample))
        return values[None].astype(np.float32)

    def prediction(self, outputs: Array, sample: Sample) -> dict[str, Array]:
        """The predicted scores.

        Parameters
        ----------
        outputs : (1, K)
        sample : whose map they are of

        Returns
        -------
        dict
            ``scores`` (K,) float64, on the scale of the cohort's scores
        """
        adjustment, said = self._known(), outputs[0].astype(np.float64)
        return {"scores": said if adjustment is None else adjustment.restored(said, _volume(sample))}

    def volume(self, maps: Array) -> Array:
        """Maps of the one item (1, 1, X, Y, Z) → (1, X, Y, Z)."""
        one: Array = maps[0]
        return one

    def scalars(self, outputs: torch.Tensor) -> torch.Tensor:
        """The outputs themselves, (N, K)."""
        return outputs


@VIEWS.register("lesion_volume", source="Pustina et al. 2018, doi:10.1016/j.neuropsychologia.2017.08.027")
def lesion_volume(
    *, scores: str = "", volume_control: VolumeControl = "none", target_range: TargetRange = "given"
) -> LesionVolume:
    """The lesion map of a whole brain.

    Parameters
    ----------
    scores : names joined by ``+``, in the order of the outputs; empty for all
    volume_control : ``direct_total_lesion_volume`` divides a map by the square root of its
        sum, so that every subject's vector has the same length (Zhang et al. 2014).
        ``regress_behaviour``, ``regress_lesion`` and ``regress_both`` take a straight line
        in lesion volume, fitted to the training subjects, from the scores, from every
        voxel, or from both (DeMarco & Turkeltaub 2018)
    target_range : ``training`` scales the scores so that the training subjects reach
        from 0 to 1, for networks whose last layer has that range

    Notes
    -----
    Predictions are put back on the scale of the scores before they are judged, volume's
    share included, so that R² compares across controls. With voxels regressed, what a
    model sees has values wherever anybody is lesioned, so that ``model.minimum`` counts
    nothing; a fitted model then needs memory for all voxels of all training subjects
    (10 GB at 1 mm), and explanations are of the lesion alone, its volume held.

    References
    ----------
    Zhang, Kimberg, Coslett, Schwartz & Wang 2014, doi:10.1002/hbm.22590. DeMarco &
    Turkeltaub 2018, doi:10.1002/hbm.24289.

    Raises
    ------
    OutOfRange
        If a score is named twice or a name is empty.
    """
    names = tuple(scores.split("+")) if scores else ()
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"scores must be different names joined by '+', like score_1+score_2; got {scores!r}")
    return LesionVolume(names, volume_control, target_range)


def _volume(sample: Sample) -> float:
    """Lesion volume in voxels of the grid."""
    return float(sample.masks["lesion"].voxels()[1].sum(dtype=np.float64))


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
