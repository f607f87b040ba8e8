"""Targets: what a study predicts.

A target has a *kind*, which determines the output channels of the network, what is
stored of a prediction, and when a model counts as collapsed:

=========  =====================  ================================================
kind       network output         stored for each sample
=========  =====================  ================================================
mask       2 channels per voxel   ``probability``, an image (made by the adapter)
number     1 value                ``value``, on the scale of the target
binary     1 logit                ``logit``, ``probability``
classes    1 logit per class      ``logits``, ``probabilities``
=========  =====================  ================================================

All code that depends on the kind is in two places. The classes of this module work on
stored predictions, without torch, which this layer may not import. The classes of
:mod:`harness.models.heads` work on the outputs of networks: the default loss and the
explained scalar. To add a kind, name it in :data:`Kind`, write both classes and add
them to :data:`KINDS` and :data:`~harness.models.heads.HEADS`; if its metrics need new
inputs, add these to :class:`~harness.metrics.metric_inputs.MetricInputs`. No other
module needs to change, except that ``harness predict`` writes all images as masks. A
change of a kind changes the code digests of all cells that look up kinds (predictions
and scores, and trainings whose adapter calls :func:`kept`). Metrics declare the kinds that they support
(:func:`harness.metrics.register.metric`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness.core.errors import OutOfRange

if TYPE_CHECKING:
    from harness.core.types import Sample

__all__ = [
    "KINDS",
    "THRESHOLD",
    "Kind",
    "Target",
    "TargetKind",
    "as_array",
    "hardly_varies",
    "kept",
    "logistic",
    "softmax",
]

Array = npt.NDArray[Any]
Kept = Mapping[str, Array]
"""Stored arrays of the prediction of one sample, by name."""
Kind = Literal["mask", "number", "binary", "classes"]

THRESHOLD = 0.5
"""Voxels with a higher probability are predicted; equal to taking the larger of two softmax outputs."""

_SPREAD = 1e-6  # predictions are constant if they differ by less than this, relative to the truth
# Predictions hardly vary if their standard deviation is below this fraction of that of the truth. For a calibrated
# prediction, the fraction is its correlation with the truth, so that it explains less than 1 % of the variance.
# The sample must be large enough that its standard deviations are not small by chance.
_LOW_SPREAD, _LOW_SPREAD_SAMPLES = 0.1, 6


@dataclass(frozen=True)
class Target:
    """A quantity that is predicted for every sample.

    Parameters
    ----------
    name : unique within a cohort, e.g. ``"age"``
    kind : ``"mask"``, ``"number"``, ``"binary"`` or ``"classes"``
    classes : names of the classes of a ``"classes"`` target, in the order of the
        logits; empty for other kinds. The logit of the predicted class is explained by
        default
    loss_weight : weight of this target in the total loss

    Raises
    ------
    OutOfRange
        If a ``"classes"`` target has fewer than two classes, if another kind has
        classes, or if the weight is not positive and finite.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OutOfRange(f"kind of target {self.name} must be one of {', '.join(KINDS)}, got {self.kind!r}")
        different = len(set(self.classes)) == len(self.classes)
        named = KINDS[self.kind].names_classes
        fits = len(self.classes) >= 2 and different if named else not self.classes
        if not fits:
            raise OutOfRange(
                f"a target of kind classes must name two different classes or more, and other kinds must name none; "
                f"got {self.classes} for {self.name} ({self.kind})"
            )
        if not 0 < self.loss_weight < math.inf:
            raise OutOfRange(f"`0 < loss_weight < inf` must hold for target {self.name}, got {self.loss_weight}")

    @property
    def width(self) -> int:
        """Number of output channels of the network for this target."""
        return KINDS[self.kind].width(self)

    @property
    def of_sample(self) -> bool:
        """Whether the target is one value per sample rather than an image."""
        return KINDS[self.kind].of_sample


class TargetKind(ABC):
    """What a kind of target implies for predictions and their metrics."""

    of_sample: ClassVar[bool] = True
    """Whether the target is one value per sample rather than an image; training targets have the same form."""

    names_classes: ClassVar[bool] = False
    """Whether the target names its classes."""

    dtype: ClassVar[type[np.generic]] = np.float32
    """Type of the training targets, as the loss requires."""

    truth_inputs: ClassVar[frozenset[str]]
    """Metric inputs that are specific to this kind and come from the truth."""

    prediction_inputs: ClassVar[frozenset[str]]
    """Metric inputs that are specific to this kind and come from the prediction."""

    def width(self, target: Target) -> int:
        """Number of output channels of the network."""
        return 1

    def class_count(self, target: Target) -> int:
        """Number of classes; 0 if the target has no classes, and samples cannot be chosen by their predicted class."""
        return 0

    def kept(self, output: Array) -> dict[str, Array]:
        """What is stored of the output of one sample, (width,) float64; images are made by the adapter."""
        raise NotImplementedError

    @abstractmethod
    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        """Average the predictions of several networks; has the same arrays as one prediction."""

    @abstractmethod
    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        """Values of the metric inputs that come from the truth; images have the shape of the sample's images."""

    @abstractmethod
    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        """Values of the metric inputs that come from the prediction."""

    @abstractmethod
    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether a model has learned nothing: it predicts the same for all samples although the truth differs.

        Parameters
        ----------
        predictions : prediction of each sample
        truths : true value, or index of the true class, of each sample; empty for images

        Returns
        -------
        bool
            For one value per sample, False for fewer than two samples.
        """

    def has_low_spread(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether predictions differ, but much less than the truth.

        The output of a network that has hardly been trained may be correlated with the truth
        and nevertheless be almost constant.

        Parameters
        ----------
        predictions, truths : see :meth:`is_collapsed`

        Returns
        -------
        bool
            Whether the standard deviation of the predictions is below 10 % of that of the
            truth; for probabilities, of the indicator of each class. False for fewer than six
            samples, if the truth does not differ, for collapsed predictions, and for images.
        """
        return False

    def columns(self, target: Target, prediction: Kept) -> dict[str, float]:
        """Columns of ``predictions.tsv`` with their values; images have none, since they are written as files."""
        return {}

    def predicted_class(self, prediction: Kept) -> int:
        """Index of the predicted class, for kinds with classes."""
        raise NotImplementedError

    def runner_up(self, prediction: Kept) -> int:
        """Index of the second most probable class, for kinds with named classes."""
        raise NotImplementedError

    def confidence(self, prediction: Kept) -> float:
        """Probability of the predicted class, for kinds with classes."""
        raise NotImplementedError


class _Mask(TargetKind):
    """Background and lesion logits per voxel."""

    of_sample = False
    dtype = np.int64
    truth_inputs = frozenset({"target", "target_lesions"})
    prediction_inputs = frozenset({"prediction", "prediction_lesions", "probability"})

    def width(self, target: Target) -> int:
        return 2

    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        mean = np.asarray(np.mean([one["probability"] for one in predictions], axis=0, dtype=np.float64))
        return {"probability": mean.astype(np.float32)}

    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        return {"target": np.asarray(sample.masks[target.name].load() > 0)}

    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        probability = np.asarray(prediction["probability"], np.float32)
        return {"prediction": probability > THRESHOLD, "probability": probability}

    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether the probability of all samples is constant over voxels, or on one side of the threshold.

        This can be correct for a single sample without lesions.
        """
        return all(_is_flat(np.asarray(one["probability"], np.float32)) for one in predictions)


class _Number(TargetKind):
    """A value on the scale of the target."""

    truth_inputs = frozenset({"clean_score", "target_score"})
    prediction_inputs = frozenset({"predicted_score"})

    def kept(self, output: Array) -> dict[str, Array]:
        return {"value": output[0]}

    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        return {"value": np.asarray(np.mean([one["value"] for one in predictions], axis=0))}

    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        return {"target_score": sample.targets[target.name], "clean_score": sample.clean.get(target.name)}

    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        return {"predicted_score": float(prediction["value"])}

    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        return _is_constant([one["value"] for one in predictions], truths, relative=True)

    def has_low_spread(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether values have less than 10 % of the standard deviation of the truth."""
        values = np.array([[float(one["value"])] for one in predictions])
        return not self.is_collapsed(predictions, truths) and hardly_varies(values, np.array(truths)[:, None])

    def columns(self, target: Target, prediction: Kept) -> dict[str, float]:
        return {target.name: float(prediction["value"])}


class _Binary(TargetKind):
    """The logit of the positive class."""

    truth_inputs = frozenset({"target_label"})
    prediction_inputs = frozenset({"predicted_logit", "predicted_probability"})

    def class_count(self, target: Target) -> int:
        return 2

    def kept(self, output: Array) -> dict[str, Array]:
        return {"logit": output[0], "probability": logistic(output[0])}

    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        """Mean probability, and the logit of the exact mean, which is finite if the rounded mean is 0 or 1."""
        import scipy.special

        logits = np.stack([one["logit"] for one in predictions])
        positive, negative = (np.logaddexp.reduce(scipy.special.log_expit(one)) for one in (logits, -logits))
        p = np.mean([one["probability"] for one in predictions], axis=0)
        return {"logit": np.asarray(positive - negative), "probability": np.asarray(p)}

    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        return {"target_label": sample.targets[target.name]}

    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        return {
            "predicted_logit": float(prediction["logit"]),
            "predicted_probability": float(prediction["probability"]),
        }

    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        return _is_constant([one["logit"] for one in predictions], truths)

    def has_low_spread(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether probabilities have less than 10 % of the standard deviation of the labels."""
        values = np.array([[float(one["probability"])] for one in predictions])
        return not self.is_collapsed(predictions, truths) and hardly_varies(values, np.array(truths)[:, None])

    def columns(self, target: Target, prediction: Kept) -> dict[str, float]:
        return {f"{target.name}_probability": float(prediction["probability"])}

    def predicted_class(self, prediction: Kept) -> int:
        """1 if the probability is at least one half."""
        return int(prediction["probability"] >= 0.5)

    def confidence(self, prediction: Kept) -> float:
        p = float(prediction["probability"])
        return max(p, 1 - p)


class _Classes(TargetKind):
    """One logit per named class."""

    names_classes = True
    dtype = np.int64
    truth_inputs = frozenset({"target_class"})
    prediction_inputs = frozenset({"class_probabilities"})

    def width(self, target: Target) -> int:
        return len(target.classes)

    def class_count(self, target: Target) -> int:
        return len(target.classes)

    def kept(self, output: Array) -> dict[str, Array]:
        return {"logits": output, "probabilities": softmax(output)}

    def average(self, predictions: Sequence[Kept]) -> dict[str, Array]:
        """Mean probabilities, and logits whose softmax gives the exact mean."""
        import scipy.special

        each = np.stack([scipy.special.log_softmax(one["logits"]) for one in predictions])
        p = np.mean([softmax(one["logits"]) for one in predictions], axis=0)
        return {"logits": np.logaddexp.reduce(each) - np.log(len(each)), "probabilities": p}

    def inputs_of_truth(self, target: Target, sample: Sample) -> dict[str, Any]:
        return {"target_class": sample.targets[target.name]}

    def inputs_of_prediction(self, prediction: Kept) -> dict[str, Any]:
        return {"class_probabilities": np.asarray(prediction["probabilities"])}

    def is_collapsed(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        return _is_constant([one["logits"] for one in predictions], truths)

    def has_low_spread(self, predictions: Sequence[Kept], truths: Sequence[float]) -> bool:
        """Whether the probabilities of each class have less than 10 % of the standard deviation of its indicator."""
        values = np.array([one["probabilities"] for one in predictions])
        labels = np.array(truths)[:, None] == np.arange(values.shape[-1])
        return not self.is_collapsed(predictions, truths) and hardly_varies(values, labels)

    def columns(self, target: Target, prediction: Kept) -> dict[str, float]:
        named = zip(target.classes, prediction["probabilities"], strict=True)
        return {f"{target.name}_probability_{name}": float(one) for name, one in named}

    def predicted_class(self, prediction: Kept) -> int:
        return int(np.argmax(prediction["probabilities"]))

    def runner_up(self, prediction: Kept) -> int:
        rest = np.array(prediction["probabilities"], np.float64)
        rest[self.predicted_class(prediction)] = -np.inf
        return int(np.argmax(rest))

    def confidence(self, prediction: Kept) -> float:
        return float(np.max(prediction["probabilities"]))


KINDS: Mapping[Kind, TargetKind] = {"mask": _Mask(), "number": _Number(), "binary": _Binary(), "classes": _Classes()}
"""What each kind implies; index it with ``target.kind``, so that code digests include it."""


def kept(target: Target, output: Array) -> dict[str, Array]:
    """Convert the network output for one sample to what is stored.

    Parameters
    ----------
    target : a target with one value per sample
    output : (width,) output channels of the target

    Returns
    -------
    dict
        For a number, ``value`` () float64. For a binary target, ``logit`` and
        ``probability`` () float64. For classes, ``logits`` and ``probabilities`` (K,)
        float64.

    Raises
    ------
    OutOfRange
        If the target is a mask, or the output does not have the width of the target.
    """
    values = np.asarray(output, np.float64)
    if not target.of_sample or values.shape != (target.width,):
        raise OutOfRange(
            f"output of {target.name} ({target.kind}) must be one value per sample, of the width of its head "
            f"({target.width}), got shape {values.shape}"
        )
    return KINDS[target.kind].kept(values)


def as_array(target: Target, value: float) -> Array:
    """Convert the value of one item to a training target, (1,): int64 for classes, otherwise float32."""
    return np.array([value], KINDS[target.kind].dtype)


def logistic(logit: Array) -> Array:
    """1 / (1 + exp(−logit)) without overflow, of any shape."""
    values = np.asarray(logit, np.float64)
    small = np.exp(-np.abs(values))  # at most 1
    return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small))


def softmax(logits: Array) -> Array:
    """Softmax over the last axis without overflow."""
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _is_constant(values: Sequence[Array], truths: Sequence[float], *, relative: bool = False) -> bool:
    """Whether values do not differ although the truth does; relative to the spread of the truth if asked."""
    if len(values) < 2:
        return False
    spread, truth = float(np.max(np.ptp(np.array(values), axis=0))), float(np.ptp(truths))
    return truth > 0 and spread <= _SPREAD * (truth if relative else 1.0)


def hardly_varies(values: Array, truths: Array) -> bool:
    """Whether predictions have less than 10 % of the standard deviation of the truth, in every column that differs.

    Parameters
    ----------
    values, truths : (n, K) predictions and truths

    Returns
    -------
    bool
        False for fewer than six samples, or if no truth differs.
    """
    if len(values) < _LOW_SPREAD_SAMPLES:
        return False
    spread, truth = values.std(axis=0), truths.std(axis=0)
    differs = truth > 0
    return bool(differs.any() and (spread[differs] < _LOW_SPREAD * truth[differs]).all())


def _is_flat(probability: Array) -> bool:
    """Whether all voxels are on one side of the threshold, or have almost the same probability."""
    mask = probability > THRESHOLD
    return bool(mask.all() or not mask.any() or np.ptp(probability) <= _SPREAD)
