"""RGB pictures with covariates, for classification and regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.registry import ADAPTERS
from harness.core.targets import Target, as_array, kept
from harness.core.types import Array, Cohort, Input, NetworkSpec, Prediction, Reads, Sample

__all__ = ["Pixels", "StandardisedPixels", "pixels"]

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
    predicted : names of the predicted targets, in the order of the outputs; empty for all
        targets of the cohort
    divisor : divisor of targets that are numbers
    """

    covariates: tuple[str, ...] = ()
    covariate_scale: float = 1.0
    predicted: tuple[str, ...] = ()
    divisor: float = 1.0

    @property
    def reads(self) -> Reads:
        """The picture and the covariates."""
        return Reads(images=(_IMAGE,), covariates=self.covariates)

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """The picture and each covariate as inputs, and the predicted targets.

        Raises
        ------
        UnknownName
            If the cohort has no such target.
        RequestError
            If a target is a mask, a covariate is not a number for every sample, or the
            pictures differ in size.
        """
        known = {target.name: target for target in cohort.targets}
        for name in self.predicted:
            if name not in known:
                raise UnknownName(f"target of {cohort.name}", name, known)
        targets = tuple(known[name] for name in self.predicted) or cohort.targets
        for target in targets:
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
        return NetworkSpec((Input("image", _CHANNELS, (height, width)), *scalars), targets)

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """Picture, (1, 3, H, W) float32 in [0, 1], and each covariate, (1, 1) float32."""
        picture = np.moveaxis(sample.images[_IMAGE].load(), -1, 0).astype(np.float32) / 255
        return (picture[None], *(np.array([[self._scalar(sample, name)]], np.float32) for name in self.covariates))

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Value of each target, (1,): numbers on the scale of the network and labels as float32, classes as int64."""
        found = {}
        for target in targets:
            shift, scale = self._scale_of(target)
            found[target.name] = as_array(target, (sample.targets[target.name] - shift) / scale)
        return found

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Convert the outputs of each target, (1, width), to a prediction, in units of the target."""
        found = {}
        for target in targets:
            shift, scale = self._scale_of(target)
            output = np.asarray(outputs[target.name][0], np.float64)
            found[target.name] = kept(target, shift + scale * output if target.kind == "number" else output)
        return found

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of the single item, (1, 3, H, W), to (3, H, W)."""
        one: Array = maps[0]
        return one

    def _scale_of(self, target: Target) -> tuple[float, float]:
        """Value of a target at an output of 0, and difference per unit of the output; 0 and 1 except for numbers."""
        return (0.0, self.divisor) if target.kind == "number" else (0.0, 1.0)

    def _scalar(self, sample: Sample, name: str) -> float:
        value = sample.covariates.get(name)
        if not isinstance(value, int | float):
            raise CellError(f"the covariate {name} of {sample.id} must be a number, got {value!r}")
        return float(value) / self.covariate_scale


@dataclass(frozen=True)
class StandardisedPixels(Pixels):
    """Adapter for pictures that standardises numbers by the training samples.

    Parameters
    ----------
    scales : target → mean and standard deviation over the training samples; empty before
        the adapter is fitted
    """

    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def fit(self, training: Sequence[Sample], targets: Sequence[Target]) -> StandardisedPixels:
        """Return an adapter with the means and standard deviations of the training samples.

        Raises
        ------
        CellError
            If a target does not vary.
        """
        found = {}
        for target in targets:
            if target.kind != "number":
                continue
            values = np.array([sample.targets[target.name] for sample in training], np.float64)
            if not values.std() > 0:
                raise CellError(f"{target.name} must vary in the training samples to be standardised, got {values[0]}")
            found[target.name] = (float(values.mean()), float(values.std()))
        return replace(self, scales=found)

    @property
    def state(self) -> Mapping[str, Array]:
        """Mean and standard deviation of each number, (2,) float64."""
        return {name: np.array(one, np.float64) for name, one in self.scales.items()}

    def load_state(self, state: Mapping[str, Array]) -> StandardisedPixels:
        """Return an adapter with these means and standard deviations."""
        return replace(self, scales={name: (float(one[0]), float(one[1])) for name, one in state.items()})

    def explained(self, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
        """Each input; nothing is added to it."""
        return tuple((one, None) for one in self.inputs(sample))

    def _scale_of(self, target: Target) -> tuple[float, float]:
        return self.scales.get(target.name, (0.0, 1.0))


@ADAPTERS.register("pixels", source="the standard scaling of 8-bit pictures to [0, 1]")
def pixels(
    *,
    covariates: str = "",
    covariate_scale: Annotated[float, Gt(0)] = 1.0,
    predicted: str = "",
    number_scale: Literal["standardised"] | Annotated[float, Gt(0)] = 1.0,
) -> Pixels:
    """Whole RGB picture, optionally with covariates as scalar inputs.

    Parameters
    ----------
    covariates : columns of the participants table joined by ``+``, e.g. ``age``; empty
        for none
    covariate_scale : divisor of the covariates, e.g. 100 for an age in years
    predicted : names of the targets that are predicted, joined by ``+``; empty for all
    number_scale : divisor of targets that are numbers, or ``standardised`` to subtract the
        mean and divide by the standard deviation of the training samples. Predictions and
        their metrics are in units of the target in any case

    Raises
    ------
    OutOfRange
        If a name is empty or occurs twice.
    """
    names = {}
    for what, given, kind, example in (
        ("covariates", covariates, "columns", "age+weight"),
        ("predicted", predicted, "targets", "age+sex"),
    ):
        names[what] = tuple(given.split("+")) if given else ()
        if not all(names[what]) or len(set(names[what])) != len(names[what]):
            raise OutOfRange(f"{what} must be different {kind} joined by '+', like {example}; got {given!r}")
    if number_scale == "standardised":
        return StandardisedPixels(names["covariates"], covariate_scale, names["predicted"])
    return Pixels(names["covariates"], covariate_scale, names["predicted"], float(number_scale))
