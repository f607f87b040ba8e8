"""Inputs of metrics.

:data:`METRIC_INPUTS` lists all inputs by parameter name. :class:`MetricInputs` holds the
arrays of one subject, and derives lesions from masks on first use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import Array

__all__ = ["METRIC_INPUTS", "Columns", "Lesions", "MetricInputs", "Predict", "find_lesions"]

Columns = Mapping[str, Array]

Predict = Callable[[Array], Array]
"""Function from images, (B, C, X, Y, Z), to the explained scalar of each, (B,)."""

METRIC_INPUTS: Mapping[str, str] = {
    "brain": "(X, Y, Z) bool, True inside the brain or region; optional",
    "channels": "names of the input channels, in the order of the first axis of the explanation",
    "class_probabilities": "(K,) float in [0, 1], predicted probability of each class",
    "clean_score": "number, simulated score without noise; absent for measured scores",
    "columns": "subject-level metric → (n,) float, its values for all subjects; for pooled metrics only",
    "covariates": "covariates of the sample by name, numbers, texts or None; for metrics of predictions only",
    "exact": "(X, Y, Z) float, map of the same method for a model that computes the score exactly",
    "exposed": "name → number, scalars that the network exposes, such as attention weights; empty without any",
    "explanation": "(C, X, Y, Z) float, attribution of each channel; higher values support the output more",
    "image": "(C, X, Y, Z) float, network input of the sample; for probe metrics only",
    "image_channels": "names of the channels of the image; for probe metrics only",
    "nuisance": "(X, Y, Z) bool, True where a known nuisance is; absent without one",
    "numbers": "name → number, what the attribution reports beside its map; empty without any",
    "predict": "images (B, C, X, Y, Z) → (B,), the explained scalar of the network; for probe metrics only",
    "predict_logit": "images (B, C, X, Y, Z) → (B,), the logit of the binary target; for probe metrics only",
    "predicted_logit": "number, predicted logit of the positive class",
    "predicted_probability": "number in [0, 1], predicted probability of the positive class",
    "predicted_score": "number, predicted score",
    "prediction": "(X, Y, Z) bool, predicted mask",
    "prediction_lesions": "Lesions of the prediction",
    "probability": "(X, Y, Z) float32 in [0, 1], predicted probability of lesion",
    "rng": "numpy Generator, the same stream for every metric",
    "rois": "(R, X, Y, Z) bool, regions of interest of simulated scores",
    "spacing_mm": "(3,) voxel size along X, Y, Z",
    "target": "(X, Y, Z) bool, true mask",
    "target_class": "index of the true class",
    "target_label": "true label, 0 or 1",
    "target_lesions": "Lesions of the target",
    "target_score": "number, true score",
}


@dataclass(frozen=True, eq=False)
class Lesions:
    """Connected components of a mask.

    Parameters
    ----------
    labels : (X, Y, Z) int32, 0 for background, lesions from 1 to n
    count : number of lesions, n
    sizes_voxels : (n,) int64, number of voxels of each lesion
    centroids_mm : (n, 3) float64, mean position of the voxels along X, Y, Z relative to the
        centre of voxel (0, 0, 0), ignoring the rotation of the image
    centre_voxels : (n, 3) int64, voxel that contains the centroid (0.5 is rounded up); it
        may lie outside the lesion
    """

    labels: npt.NDArray[np.int32]
    count: int
    sizes_voxels: npt.NDArray[np.int64]
    centroids_mm: npt.NDArray[np.float64]
    centre_voxels: npt.NDArray[np.int64]


def find_lesions(mask: Array, spacing_mm: Sequence[float]) -> Lesions:
    """Split a mask into 26-connected components.

    Voxels are connected by faces, edges or corners.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z

    Returns
    -------
    Lesions
        For an empty mask, ``count`` is 0 and the arrays have length 0.
    """
    labels, count = cc3d.connected_components(np.ascontiguousarray(mask, dtype=bool), connectivity=26, return_N=True)
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    centroids = statistics["centroids"][1:].astype(np.float64)
    return Lesions(
        labels=labels.astype(np.int32),
        count=int(count),
        sizes_voxels=statistics["voxel_counts"][1:].astype(np.int64),
        centroids_mm=centroids * np.asarray(spacing_mm, dtype=np.float64),
        centre_voxels=np.floor(centroids + 0.5).astype(np.int64),
    )


class MetricInputs:
    """Metric inputs of one subject.

    All inputs are optional; evaluating a metric raises an error if a required input is
    missing. Arrays are not copied and must not be changed afterwards.

    Parameters
    ----------
    prediction, target, nuisance : (X, Y, Z) bool, or numbers that are all 0 or 1
    probability : (X, Y, Z) float in [0, 1]
    spacing_mm : (3,) voxel size along X, Y, Z
    brain : (X, Y, Z) bool
    explanation : (C, X, Y, Z) float
    exact : (X, Y, Z) float
    channels : C names
    rois : (R, X, Y, Z) bool, or numbers that are all 0 or 1
    target_score, predicted_score, clean_score : numbers, in the unit of the score
    target_label, predicted_probability : 0 or 1, and number in [0, 1]
    predicted_logit : number, the logit of ``predicted_probability``
    target_class, class_probabilities : index of the class, and (K,) float in [0, 1]
    image : (C, X, Y, Z) float
    image_channels : names of the channels of the image
    predict : function from images to the explained scalar
    predict_logit : function from images to the logit of the binary target
    covariates : covariates of the sample by name
    exposed : scalars that the network exposes, by name
    numbers : what the attribution reports beside its map, by name
    rng : random generator; each metric receives a copy in the same state, so that metrics
        do not affect each other
    columns : subject-level values by metric name, for pooled metrics

    Raises
    ------
    OutOfRange
        If an input has another type, shapes differ, masks or labels are not binary,
        probabilities are outside [0, 1], values or scores are not finite, a class does not
        exist, or the spacing is not three positive numbers.
    """

    def __init__(
        self,
        *,
        prediction: Array | None = None,
        probability: Array | None = None,
        target: Array | None = None,
        nuisance: Array | None = None,
        spacing_mm: Sequence[float] | None = None,
        brain: Array | None = None,
        explanation: Array | None = None,
        exact: Array | None = None,
        channels: Sequence[str] | None = None,
        rois: Array | None = None,
        target_score: float | None = None,
        predicted_score: float | None = None,
        clean_score: float | None = None,
        target_label: float | None = None,
        predicted_probability: float | None = None,
        predicted_logit: float | None = None,
        target_class: float | None = None,
        class_probabilities: Array | None = None,
        image: Array | None = None,
        image_channels: Sequence[str] | None = None,
        predict: Predict | None = None,
        predict_logit: Predict | None = None,
        covariates: Mapping[str, float | str | None] | None = None,
        exposed: Mapping[str, float] | None = None,
        numbers: Mapping[str, float] | None = None,
        rng: np.random.Generator | None = None,
        columns: Columns | None = None,
    ) -> None:
        self.prediction = _mask("prediction", prediction)
        self.target = _mask("target", target)
        self.nuisance = _mask("nuisance", nuisance)
        self.brain = _mask("brain", brain)
        self.probability = _finite("probability", probability, ndim=3)
        self.explanation = _finite("explanation", explanation, ndim=4)
        self.exact = _finite("exact", exact, ndim=3)
        self.spacing_mm = _spacing(spacing_mm)
        self.channels = _names("channels", channels)
        self.rois = _mask("rois", rois, ndim=4)
        self.target_score = _number("target_score", target_score)
        self.predicted_score = _number("predicted_score", predicted_score)
        self.clean_score = _number("clean_score", clean_score)
        self.target_label = _number("target_label", target_label)
        self.predicted_probability = _number("predicted_probability", predicted_probability)
        self.predicted_logit = _number("predicted_logit", predicted_logit)
        self.target_class = _number("target_class", target_class)
        self.class_probabilities = _probabilities("class_probabilities", class_probabilities)
        self.image = _finite("image", image, ndim=4)
        self.image_channels = _names("image_channels", image_channels)
        self.predict = _function("predict", predict)
        self.predict_logit = _function("predict_logit", predict_logit)
        self.covariates = _mapping("covariates", covariates)
        self.exposed = _mapping("exposed", exposed)
        self.numbers = _mapping("numbers", numbers)
        self.rng = _generator(rng)
        self.columns = None if columns is None else _columns(columns)
        self._check_shapes()
        self._check_values()

    @cached_property
    def prediction_lesions(self) -> Lesions | None:
        """Lesions of the prediction; needs ``prediction`` and ``spacing_mm``."""
        return self._lesions(self.prediction)

    @cached_property
    def target_lesions(self) -> Lesions | None:
        """Lesions of the target; needs ``target`` and ``spacing_mm``."""
        return self._lesions(self.target)

    def get(self, name: str) -> Any:
        """Look up an input; ``None`` if it is absent.

        Raises
        ------
        UnknownName
            If there is no input of this name.
        """
        if name not in METRIC_INPUTS:
            raise UnknownName("metric input", name, METRIC_INPUTS)
        return copy.deepcopy(self.rng) if name == "rng" else getattr(self, name)

    def _lesions(self, mask: Array | None) -> Lesions | None:
        if mask is None or self.spacing_mm is None:
            return None
        return find_lesions(mask, self.spacing_mm)

    def _check_shapes(self) -> None:
        shapes = {
            name: array.shape
            for name in ("prediction", "probability", "target", "nuisance", "brain", "exact")
            if (array := getattr(self, name)) is not None
        }
        if self.explanation is not None:
            shapes["explanation, without its channels"] = self.explanation.shape[1:]
        if self.image is not None:
            shapes["image, without its channels"] = self.image.shape[1:]
        if self.rois is not None:
            shapes["rois, without their number"] = self.rois.shape[1:]
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise OutOfRange(f"all arrays of a subject must have the same shape (X, Y, Z), got {listed}; resample them")
        if self.explanation is not None and self.channels is not None:
            found, named = self.explanation.shape[0], len(self.channels)
            if found != named:
                raise OutOfRange(
                    f"`explanation.shape[0] == len(channels)` must hold, got {found} maps and {named} names "
                    f"({', '.join(self.channels)}); name every channel once"
                )

    def _check_values(self) -> None:
        if self.probability is not None and not (self.probability.min() >= 0 and self.probability.max() <= 1):
            raise OutOfRange(
                f"`0 <= probability <= 1` must hold, got {self.probability.min():.4g} to "
                f"{self.probability.max():.4g}; apply the sigmoid or softmax first"
            )
        if self.target_label not in (None, 0, 1):
            raise OutOfRange(f"`target_label` must be 0 or 1, got {self.target_label}")
        if self.predicted_probability is not None and not 0 <= self.predicted_probability <= 1:
            raise OutOfRange(
                f"`0 <= predicted_probability <= 1` must hold, got {self.predicted_probability:.4g}; apply the sigmoid "
                "first"
            )
        count = np.inf if self.class_probabilities is None else len(self.class_probabilities)
        if self.target_class is not None and (not 0 <= self.target_class < count or self.target_class % 1):
            of = "a class" if self.class_probabilities is None else f"one of the {count} classes"
            raise OutOfRange(f"`target_class` must be the index of {of}, got {self.target_class}")


def _mask(name: str, array: Array | None, *, ndim: int = 3) -> npt.NDArray[np.bool_] | None:
    if array is None:
        return None
    array = _volume(name, _numeric(name, array), ndim=ndim)
    if array.dtype == bool:
        return array
    odd = array[(array != 0) & (array != 1)]
    if odd.size:
        raise OutOfRange(f"`{name}` must contain only 0 and 1, got {odd[0]!s}; threshold it, or select one label")
    return array.astype(bool)


def _finite(name: str, array: Array | None, *, ndim: int) -> npt.NDArray[np.floating[Any]] | None:
    if array is None:
        return None
    array = _volume(name, _numeric(name, array), ndim=ndim)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        remedy = "set voxels without a value to zero"
        raise OutOfRange(
            f"`{name}` must be finite everywhere, got {bad} NaN or infinite of {array.size} values; {remedy}"
        )
    return array


def _number(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    array = _numeric(name, value)
    if array.size != 1 or array.ndim:
        raise OutOfRange(f"`{name}` must be one number, got an array of shape {array.shape}")
    if not np.isfinite(array):
        raise OutOfRange(f"`{name}` must be a finite number, got {value}; leave out subjects without a score")
    return float(array)


def _numeric(name: str, value: Any) -> Array:
    """A value as an array of numbers; text, dates, complex numbers, objects and ragged lists are refused."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # of ragged lists, and of tensors on other devices or with a gradient
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise OutOfRange(f"`{name}` must be {METRIC_INPUTS[name]}, got {_shown(value)}; convert it to numbers")
    return array


def _shown(value: Any) -> str:
    """A value for a message: its type, and its text if this is short."""
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 and "\n" not in text else type(value).__name__


def _wrong(name: str, value: Any) -> OutOfRange:
    return OutOfRange(f"`{name}` must be {METRIC_INPUTS[name]}, got {_shown(value)}")


def _names(name: str, value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    try:
        found = (None,) if isinstance(value, str | bytes) else tuple(value)
    except TypeError:
        found = (None,)
    if not all(isinstance(one, str) for one in found):
        raise _wrong(name, value)
    return found


def _function(name: str, value: Any) -> Predict | None:
    if value is None:
        return None
    if not callable(value):
        raise _wrong(name, value)

    def one_each(images: Array) -> Array:
        found = _numeric(name, value(images))
        if found.shape != (len(images),):
            raise OutOfRange(f"`{name}` must return one number for each of {len(images)} images, got {found.shape}")
        return found

    return one_each


def _mapping(name: str, value: Any) -> Any:
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise _wrong(name, value)
    return None if value is None else dict(value)


def _generator(value: Any) -> Any:
    if value is not None and not isinstance(value, np.random.Generator):
        raise OutOfRange(f"`rng` must be a generator of numpy, got {_shown(value)}; use np.random.default_rng(seed)")
    return value


def _probabilities(name: str, values: Array | None) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    array = _numeric(name, values).astype(np.float64)
    if array.ndim != 1 or array.size < 2 or not (array.min() >= 0 and array.max() <= 1):
        raise OutOfRange(
            f"`{name}` must be (K,) numbers in [0, 1] of two classes or more, got {array.tolist()}; apply the softmax "
            "first"
        )
    return array


def _volume(name: str, array: Array, *, ndim: int) -> Array:
    if array.ndim != ndim or array.size == 0:
        axes = "(X, Y, Z)" if ndim == 3 else "(R, X, Y, Z)" if name == "rois" else "(C, X, Y, Z)"
        raise OutOfRange(
            f"`{name}` must be {axes} with at least one voxel, got shape {array.shape}; "
            "add a last axis of length one to a single slice"
        )
    return array


def _spacing(spacing_mm: Sequence[float] | None) -> tuple[float, float, float] | None:
    if spacing_mm is None:
        return None
    values = _numeric("spacing_mm", spacing_mm)
    if values.shape != (3,) or values.dtype == bool or not bool((np.isfinite(values) & (values > 0)).all()):
        raise OutOfRange(f"`spacing_mm` must be three positive numbers (X, Y, Z), got {_shown(values.tolist())}")
    return float(values[0]), float(values[1]), float(values[2])


def _columns(columns: Columns) -> dict[str, npt.NDArray[np.float64]]:
    named = _mapping("columns", columns)
    arrays = {name: _numeric("columns", values).astype(np.float64) for name, values in named.items()}
    if any(array.ndim != 1 for array in arrays.values()) or len({array.shape for array in arrays.values()}) > 1:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise OutOfRange(f"all columns must be (n,) with one value per subject, got {listed}")
    return arrays
