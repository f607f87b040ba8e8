"""RGB pictures with covariates, for classification and regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt

from harness.core.errors import CellError, OutOfRange, RequestError
from harness.core.registry import ADAPTERS
from harness.core.targets import Target, as_array, kept
from harness.core.types import Array, Cohort, Input, NetworkSpec, Prediction, Reads, Sample

__all__ = ["Pixels", "pixels"]

_IMAGE = "rgb"
_CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True)
class Pixels:
    """Adapter for pictures.

    Each sample has one item, the picture, and a scalar input for each covariate.

    Parameters
    ----------
    covariates : names of the scalar inputs; these are not explained
    covariate_scale : divisor of the covariates
    """

    covariates: tuple[str, ...] = ()
    covariate_scale: float = 1.0

    @property
    def reads(self) -> Reads:
        """The picture and the covariates."""
        return Reads(images=(_IMAGE,), covariates=self.covariates)

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """The picture and each covariate as inputs, and all targets of the cohort.

        Raises
        ------
        RequestError
            If a target is a mask, a covariate is not a number for every sample, or the
            pictures differ in size.
        """
        for target in cohort.targets:
            if not target.of_sample:
                raise RequestError(f"pixels predicts one value per sample, but {target.name} is a {target.kind}")
        for name in self.covariates:
            without = [one.id for one in cohort.samples if not isinstance(one.covariates.get(name), int | float)]
            if without:
                raise RequestError(
                    f"the covariate {name} must be a number for every sample, but {len(without)} have none: "
                    f"{', '.join(without[:8])}; complete the table, or leave the subjects out (exclude=)"
                )
        sizes = sorted({one.images[_IMAGE].shape for one in cohort.samples})
        if len(sizes) != 1:
            raise RequestError(f"all pictures must be of one size, got {', '.join(map(str, sizes))}; crop or resample")
        height, width, _ = sizes[0]
        scalars = tuple(Input(name, (name,), (), explained=False) for name in self.covariates)
        return NetworkSpec((Input("image", _CHANNELS, (height, width)), *scalars), cohort.targets)

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """Picture, (1, 3, H, W) float32 in [0, 1], and each covariate, (1, 1) float32."""
        picture = np.moveaxis(sample.images[_IMAGE].load(), -1, 0).astype(np.float32) / 255
        return (picture[None], *(np.array([[self._scalar(sample, name)]], np.float32) for name in self.covariates))

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Value of each target, (1,): numbers and binary labels as float32, classes as int64."""
        return {target.name: as_array(target, sample.targets[target.name]) for target in targets}

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Convert the outputs of each target, (1, width), to a prediction."""
        return {target.name: kept(target, outputs[target.name][0]) for target in targets}

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of the single item, (1, 3, H, W), to (3, H, W)."""
        one: Array = maps[0]
        return one

    def _scalar(self, sample: Sample, name: str) -> float:
        value = sample.covariates.get(name)
        if not isinstance(value, int | float):
            raise CellError(f"the covariate {name} of {sample.id} must be a number, got {value!r}")
        return float(value) / self.covariate_scale


@ADAPTERS.register("pixels", source="the standard scaling of 8-bit pictures to [0, 1]")
def pixels(*, covariates: str = "", covariate_scale: Annotated[float, Gt(0)] = 1.0) -> Pixels:
    """Whole RGB picture, optionally with covariates as scalar inputs.

    Parameters
    ----------
    covariates : columns of the participants table joined by ``+``, e.g. ``age``; empty
        for none
    covariate_scale : divisor of the covariates, e.g. 100 for an age in years

    Raises
    ------
    OutOfRange
        If a name is empty or occurs twice.
    """
    names = tuple(covariates.split("+")) if covariates else ()
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"covariates must be different columns joined by '+', like age+weight; got {covariates!r}")
    return Pixels(names, covariate_scale)
