"""Whole-brain lesion maps, for regression of one or several scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.adapters.volume_control import Adjustment, VolumeControl, fit_adjustment, unit_length
from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.registry import ADAPTERS
from harness.core.targets import Target
from harness.core.types import Array, Cohort, Input, NetworkSpec, Prediction, Reads, Sample

__all__ = ["LesionVolume", "TargetRange", "lesion_volume"]

TargetRange = Literal["given", "training"]

# Covariates that a table need not have, and the values of text that have a number.
_SHOWN = 8  # subjects in a note
_USUAL = ("age", "sex")
_SEXES = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


@dataclass(frozen=True)
class LesionVolume:
    """Adapter for lesion maps.

    Each sample has one item, the whole lesion map, with spatial axes (X, Y, Z), and
    covariates.

    Parameters
    ----------
    scores : names of the targets; empty for all targets of the cohort
    volume_control, target_range, covariates : see :func:`lesion_volume`
    adjustment : adjustment fitted to the training samples
    """

    scores: tuple[str, ...] = ()
    volume_control: VolumeControl = "none"
    target_range: TargetRange = "given"
    adjustment: Adjustment | None = None
    covariates: tuple[str, ...] = ()

    @property
    def reads(self) -> Reads:
        """The lesion map and the covariates."""
        return Reads(masks=("lesion",), covariates=self.covariates)

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """The lesion map, with one channel, the covariates, which are not explained, and the scores as targets.

        Raises
        ------
        UnknownName
            If the cohort has no such target, or no such covariate.
        RequestError
            If the samples have different grids, or a target is not a number.
        """
        known = {target.name: target for target in cohort.targets}
        for name in self.scores:
            if name not in known:
                raise UnknownName(f"score of {cohort.name}", name, known)
        targets = tuple(known[name] for name in self.scores) or cohort.targets
        for target in targets:
            if target.kind != "number":
                raise RequestError(f"lesion_volume predicts numbers, but {target.name} is of kind {target.kind}")
        shapes = {sample.shape for sample in cohort.samples}
        if len(shapes) != 1:
            raise RequestError(f"all lesion maps must be on one grid, got {sorted(shapes)}; set cohort=lesions")
        unchanged = self.volume_control in ("none", "regress_behaviour")
        image = Input("lesion", ("lesion",), shapes.pop(), unchanged=unchanged)
        self._check_covariates(cohort)
        beside = (Input("covariates", self.covariates, explained=False),) if self.covariates else ()
        return NetworkSpec((image, *beside), targets)

    def _check_covariates(self, cohort: Cohort) -> None:
        known = sorted({name for sample in cohort.samples for name in sample.covariates})
        for name in self.covariates:
            if name not in known and name not in _USUAL:
                raise UnknownName(f"covariate of {cohort.name}", name, known)
            given = [sample for sample in cohort.samples if sample.covariates.get(name) is not None]
            if name not in _USUAL and given and all(math.isnan(_number(sample, name)) for sample in given):
                raise RequestError(
                    f"the covariate {name} must be a number, or F and M, but {given[0].id} has "
                    f"{given[0].covariates[name]!r}, and no other subject has a usable value; leave it out of "
                    "adapter.covariates="
                )

    def notes(self, cohort: Cohort) -> tuple[str, ...]:
        """Notes on covariates without any usable value, and on texts that are read as unknown."""
        notes = []
        for name in self.covariates:
            values = {one.id: (one.covariates.get(name), _number(one, name)) for one in cohort.samples}
            if all(math.isnan(number) for _, number in values.values()):
                notes.append(f"the covariate {name} is not used, because no subject has a number, or F or M, in it")
                continue
            texts = [
                f"{id} ({text})" for id, (text, number) in values.items() if text is not None and math.isnan(number)
            ]
            if texts:
                shown = ", ".join(texts[:_SHOWN]) + (", …" if len(texts) > _SHOWN else "")
                notes.append(f"the covariate {name} is unknown for {shown}: it must be a number, or F or M")
        return tuple(notes)

    def fit(self, training: Sequence[Sample], targets: Sequence[Target]) -> LesionVolume:
        """Fit the lesion volume control and the range of the scores to the training samples."""
        if not self._adjusts:
            return self
        values = np.array([[sample.targets[target.name] for target in targets] for sample in training])
        masks = (sample.masks["lesion"].load() for sample in training)
        volumes = np.array([_volume(sample) for sample in training])
        made = fit_adjustment(
            self.volume_control, masks, values, volumes, to_unit_range=self.target_range == "training"
        )
        return dataclasses.replace(self, adjustment=made)

    @property
    def state(self) -> dict[str, Array]:
        """Fitted parameters by name."""
        return {} if self.adjustment is None else self.adjustment.arrays()

    def load_state(self, state: Mapping[str, Array]) -> LesionVolume:
        """Return a copy of the adapter with this state."""
        return dataclasses.replace(self, adjustment=Adjustment.of_arrays(state)) if state else self

    @property
    def _adjusts(self) -> bool:
        return self.volume_control.startswith("regress") or self.target_range == "training"

    def _fitted(self) -> Adjustment | None:
        if self._adjusts and self.adjustment is None:
            raise CellError(
                f"an adapter with volume_control={self.volume_control} and target_range={self.target_range} "
                "must be fitted to training subjects before it is used"
            )
        return self.adjustment

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """Lesion map after volume control, (1, 1, X, Y, Z) float32, and covariates, (1, C) float32, if any.

        The map is the lesioned fraction of each voxel; unknown covariates are NaN.
        """
        adjustment, mask = self._fitted(), sample.masks["lesion"].load()
        if self.volume_control == "direct_total_lesion_volume":
            mask = unit_length(mask, _volume(sample))
        if adjustment is not None:
            mask = adjustment.mask(mask, _volume(sample))
        image = np.array(mask, np.float32)[None, None]
        return (image, *self._beside(sample))

    def _beside(self, sample: Sample) -> tuple[Array, ...]:
        values = np.array([[_number(sample, name) for name in self.covariates]], np.float32)
        return (values,) if self.covariates else ()

    def explained(self, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
        """The lesion map and the covariates, each with the array that is added to it, if any.

        If voxels are regressed, the negative regression on lesion volume is added to the map.
        Explanations then refer to the lesion, with a lesion-free brain as the zero baseline.
        Residuals themselves sum to zero over subjects.
        """
        adjustment = self._fitted()
        if adjustment is None or adjustment.lesion is None:
            return tuple((one, None) for one in self.inputs(sample))
        lesion = np.array(sample.masks["lesion"].load(), np.float32)
        added = -adjustment.lesion.at(_volume(sample)).astype(np.float32)
        return ((lesion[None, None], added[None, None]), *((one, None) for one in self._beside(sample)))

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """Non-zero voxels of the input: flat indices in C order, (N,), and values, (N,) float32."""
        adjustment = self._fitted()
        if adjustment is not None and adjustment.lesion is not None:
            whole = self.inputs(sample)[0].ravel()
            filled = np.flatnonzero(whole)
            return filled, whole[filled]
        voxels, values = sample.masks["lesion"].voxels()
        if self.volume_control == "direct_total_lesion_volume":
            values = unit_length(values, _volume(sample))
        return voxels, values.astype(np.float32)

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Adjusted score of each target, (1,) float32."""
        names = [target.name for target in targets]
        adjustment, values = self._fitted(), np.array([sample.targets[name] for name in names])
        if adjustment is not None:
            values = adjustment.targets(values, _volume(sample))
        return {name: values[[index]].astype(np.float32) for index, name in enumerate(names)}

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Predicted scores on the scale of the cohort's scores.

        Parameters
        ----------
        outputs : outputs of each score, (1, 1)
        sample : sample that is predicted
        targets : scores, in the order in which they were fitted

        Returns
        -------
        dict
            ``value`` () float64 of each score.
        """
        adjustment = self._fitted()
        values = np.array([outputs[target.name][0, 0] for target in targets], np.float64)
        if adjustment is not None:
            values = adjustment.restored(values, _volume(sample))
        return {target.name: {"value": value} for target, value in zip(targets, values, strict=True)}

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of the single item, (1, 1, X, Y, Z), to (1, X, Y, Z)."""
        one: Array = maps[0]
        return one


@ADAPTERS.register("lesion_volume", source="Pustina et al. 2018, doi:10.1016/j.neuropsychologia.2017.08.027")
def lesion_volume(
    *,
    scores: str = "",
    volume_control: VolumeControl = "none",
    target_range: TargetRange = "given",
    covariates: str = "",
) -> LesionVolume:
    """Whole-brain lesion map, optionally controlled for lesion volume.

    Parameters
    ----------
    scores : names of the scores joined by ``+``, in the order of the outputs; empty for
        all scores
    volume_control : control for lesion volume. ``direct_total_lesion_volume`` divides
        each map by the square root of its sum, so that all lesion vectors have the same
        length (Zhang et al. 2014). ``regress_behaviour``, ``regress_lesion`` and
        ``regress_both`` regress lesion volume, in the training subjects, out of the
        scores, the voxels or both (DeMarco & Turkeltaub 2018)
    target_range : ``training`` scales the scores of the training subjects to [0, 1], for
        networks whose output has that range; ``given`` leaves scores unchanged
    covariates : columns of the participants table joined by ``+``, for models that read
        covariates (``total_volume``); empty for none. Values are numbers, or ``F`` and
        ``M`` (or ``female`` and ``male``), which become 0 and 1. ``age`` and ``sex`` are
        unknown for all subjects if the table does not have them

    Notes
    -----
    Predictions are converted back to the scale of the scores, including the effect of
    volume, so that R² is comparable across controls. If voxels are regressed, every
    voxel that is lesioned in some subject has a non-zero value in all subjects. Then
    ``model.minimum`` has no effect, fitted models need memory for all voxels of all
    training subjects (10 GB at 1 mm), and explanations refer to the lesion at constant
    volume.

    References
    ----------
    Zhang, Kimberg, Coslett, Schwartz & Wang 2014, doi:10.1002/hbm.22590. DeMarco &
    Turkeltaub 2018, doi:10.1002/hbm.24289.

    Raises
    ------
    OutOfRange
        If a name is empty or occurs twice.
    """
    return LesionVolume(
        _names("scores", scores, "score_1+score_2"),
        volume_control,
        target_range,
        covariates=_names("covariates", covariates, "age+sex"),
    )


def _names(option: str, text: str, example: str) -> tuple[str, ...]:
    names = tuple(text.split("+")) if text else ()
    if not all(names) or len(set(names)) != len(names):
        raise OutOfRange(f"{option} must be different names joined by '+', like {example}; got {text!r}")
    return names


def _number(sample: Sample, name: str) -> float:
    """Value of a covariate; NaN if it is unknown, or a text other than F and M or female and male."""
    value = sample.covariates.get(name)
    if value is None:
        return float("nan")
    return _SEXES.get(value.strip().lower(), float("nan")) if isinstance(value, str) else float(value)


def _volume(sample: Sample) -> float:
    """Lesion volume in voxels of the grid."""
    return float(sample.masks["lesion"].voxels()[1].sum(dtype=np.float64))
