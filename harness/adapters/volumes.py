"""Whole 3D images of several contrasts with covariates, for classification and regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Gt

from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.registry import ADAPTERS
from harness.core.targets import Target, as_array, kept
from harness.core.types import Array, Cohort, Image, Input, NetworkSpec, Prediction, Reads, Sample

__all__ = ["Volumes", "volumes"]

_MASK = "_mask"


@dataclass(frozen=True)
class Volumes:
    """Adapter for volumes.

    Each sample has one item, the volumes of all contrasts, and a scalar input for each
    covariate.

    Parameters
    ----------
    channels : names of the contrasts
    covariates : names of the scalar inputs; these are not explained
    covariate_scale : divisor of the covariates
    scale : largest value of a contrast, by name; larger values are cut off
    masked : whether voxels outside of the brain mask are set to 0
    """

    channels: tuple[str, ...]
    covariates: tuple[str, ...] = ()
    covariate_scale: float = 1.0
    scale: Mapping[str, float] = field(default_factory=dict)
    masked: bool = True

    @property
    def reads(self) -> Reads:
        """The contrasts, the brain mask and the covariates."""
        masks = [name.removesuffix(_MASK) for name in self.channels if name.endswith(_MASK)]
        images = tuple(name for name in self.channels if not name.endswith(_MASK))
        return Reads(images, (*masks, *(("brain",) if self.masked else ())), self.covariates)

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """The volumes and each covariate as inputs, and all targets of the cohort.

        Raises
        ------
        UnknownName
            If the cohort has no such contrast.
        RequestError
            If a target is a mask, a covariate is not a number for every sample, the
            volumes differ in shape, or values of the first sample are not in [0, 1].
        """
        for target in cohort.targets:
            if not target.of_sample:
                raise RequestError(f"volumes predicts one value per sample, but {target.name} is a {target.kind}")
        for name in self.channels:
            if any(_of_sample(one, name) is None for one in cohort.samples):
                known = sorted({image for one in cohort.samples for image in one.images})
                known += sorted({f"{mask}{_MASK}" for one in cohort.samples for mask in one.masks})
                raise UnknownName(f"contrast of {cohort.name}", name, known)
        for name in self.covariates:
            without = [one.id for one in cohort.samples if not isinstance(one.covariates.get(name), int | float)]
            if without:
                raise RequestError(
                    f"the covariate {name} must be a number for every sample, but {len(without)} have none: "
                    f"{', '.join(without[:8])}; complete the table, or leave the subjects out (exclude=)"
                )
        shapes = sorted({one.shape for one in cohort.samples})
        if len(shapes) != 1:
            sizes = ", ".join("×".join(map(str, shape)) for shape in shapes[:4])
            raise RequestError(
                f"all volumes must have one shape, got {sizes}; set cohort.size=[…] and cohort.spacing_mm=[…]"
            )
        for name in self.channels:
            self._volume(cohort.samples[0], name)
        scalars = tuple(Input(name, (name,), (), explained=False) for name in self.covariates)
        return NetworkSpec((Input("image", self.channels, shapes[0]), *scalars), cohort.targets)

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """Volumes, (1, L, X, Y, Z) float32 in [0, 1], and each covariate, (1, 1) float32.

        Raises
        ------
        RequestError
            If a contrast without a scale has values that are not in [0, 1].
        """
        image = np.stack([self._volume(sample, name) for name in self.channels])
        if self.masked and "brain" in sample.masks:
            image *= sample.masks["brain"].load() > 0
        return (image[None], *(np.array([[self._scalar(sample, name)]], np.float32) for name in self.covariates))

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Value of each target, (1,): numbers and binary labels as float32, classes as int64."""
        return {target.name: as_array(target, sample.targets[target.name]) for target in targets}

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Convert the outputs of each target, (1, width), to a prediction."""
        return {target.name: kept(target, outputs[target.name][0]) for target in targets}

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of the single item, (1, L, X, Y, Z), to (L, X, Y, Z)."""
        one: Array = maps[0]
        return one

    def _volume(self, sample: Sample, name: str) -> Array:
        found = _of_sample(sample, name)
        if found is None:
            raise CellError(f"{sample.id} has no {name}")
        image = np.asarray(found.load(), np.float32)
        if name in self.scale:
            return np.asarray(np.clip(image / np.float32(self.scale[name]), 0, 1))
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            raise RequestError(
                f"volumes reads values from 0 to 1, but {name} of {sample.id} has values from {low:.3g} to {high:.3g}; "
                f"set the largest value (adapter.scale={name}:{high:.3g}), or cohort.normalise=percentile"
            )
        return image

    def _scalar(self, sample: Sample, name: str) -> float:
        value = sample.covariates.get(name)
        if not isinstance(value, int | float):
            raise CellError(f"the covariate {name} of {sample.id} must be a number, got {value!r}")
        return float(value) / self.covariate_scale


def _of_sample(sample: Sample, name: str) -> Image | None:
    """The image or, for a name such as ``lesion_mask``, the mask of a sample; ``None`` if it has none."""
    if name.endswith(_MASK):
        return sample.masks.get(name.removesuffix(_MASK))
    return sample.images.get(name)


@ADAPTERS.register("volumes", source="the MS disability study, Section II")
def volumes(
    *,
    channels: str = "T1w",
    covariates: str = "",
    covariate_scale: Annotated[float, Gt(0)] = 1.0,
    scale: str = "",
    masked: bool = True,
) -> Volumes:
    """Whole volumes of several contrasts, optionally with covariates as scalar inputs.

    Parameters
    ----------
    channels : contrasts joined by ``+``, e.g. ``qT1+MWF+NDI``; ``lesion_mask`` for the mask
        ``lesion`` of the cohort
    covariates : columns of the participants table joined by ``+``, e.g. ``age``; empty
        for none
    covariate_scale : divisor of the covariates, e.g. 100 for an age in years
    scale : largest values of quantitative contrasts, e.g. ``qT1:2500+MWF:0.3``. Values are
        divided by it, and larger ones are cut off. Other contrasts must be in [0, 1]
    masked : set voxels outside of the brain mask to 0, where there is one

    Raises
    ------
    OutOfRange
        If a name is empty or occurs twice, or a scale is not positive.
    """
    names, scalars = tuple(channels.split("+")), tuple(covariates.split("+")) if covariates else ()
    for what, given, found in (("channels", channels, names), ("covariates", covariates, scalars)):
        if not all(found) or len(set(found)) != len(found):
            raise OutOfRange(f"{what} must be different names joined by '+', like qT1+NDI; got {given!r}")
    return Volumes(names, scalars, covariate_scale, _scales(scale), masked)


def _scales(text: str) -> dict[str, float]:
    """Largest value by contrast, from ``qT1:2500+MWF:0.3``."""
    found = {}
    for part in filter(None, text.split("+")):
        name, _, number = part.partition(":")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < np.inf:
            raise OutOfRange(f"scale must be contrasts with positive numbers, like qT1:2500+MWF:0.3; got {text!r}")
    return found
