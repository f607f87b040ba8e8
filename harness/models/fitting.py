"""Models that are fitted in closed form or by their own solver, instead of by gradient descent.

They are fitted to lesions as sparse rows. Afterwards they are modules like networks:
differentiable with respect to the image, with all fitted values in buffers. Therefore
they can be explained by the same attributions and stored in the same files.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.models.layers import Flattens, Totals

__all__ = [
    "Fitted",
    "FittedToVolumes",
    "LesionModel",
    "LinearLesionModel",
    "Normalise",
    "Resizable",
    "Sizes",
    "Summarises",
    "TotalOf",
    "check_normalise",
    "lesion_sizes",
    "merged",
    "often_lesioned",
    "scaled_lesions",
]

Normalise = Literal["none", "unit", "dtlvc"]

# Lesions with a smaller norm, in voxels, count as no lesion and are not scaled to unit length.
_SMALLEST = 1e-3


@runtime_checkable
class Fitted(Protocol):
    """A model that is fitted by its own method."""

    def fit(self, lesions: scipy.sparse.csr_array, targets: Array, *, rng: np.random.Generator) -> None:
        """Fit the model to training patients; previous fits are discarded.

        Parameters
        ----------
        lesions : (n, V) float32 occupancies in [0, 1], voxels in C order of the image
        targets : (n, K) float64, one column per score
        rng : random generator, for permutations and inner folds

        Notes
        -----
        A model whose builder has a parameter ``covariates`` has the keyword ``covariates``,
        (n, C) float64 with NaN for unknown values.
        """
        ...

    def weight_map(self) -> Tensor:
        """Map of the model for each score, (K, 1, X, Y, Z) float32; higher values increase the score more."""
        ...


@runtime_checkable
class FittedToVolumes(Protocol):
    """A model of dense images of several channels that is fitted by its own method.

    A model with ``weight_map()``, (K, L, *space), is registered with ``weights=True``. A model
    that only needs a summary of each image has a method ``summary`` (:class:`Summarises`),
    and receives the summaries as ``images``, so that images need not be in memory.
    """

    def fit_volumes(
        self,
        images: Array,
        targets: Array,
        *,
        covariates: Array,
        weights: Array,
        subjects: Sequence[str],
        kinds: Sequence[str],
    ) -> None:
        """Fit the model to training samples; previous fits are discarded.

        Parameters
        ----------
        images : (n, L, *space) float32, or (n, F) summaries
        targets : (n, K) float64, one column per target
        covariates : (n, C) float64
        weights : (n, K) float64, weight of each sample in the loss of each target
        subjects : subject of each sample, which inner folds keep together
        kinds : kind of each target, ``binary`` or ``number``
        """
        ...


@runtime_checkable
class Summarises(Protocol):
    """A model that is fitted to a few numbers of each image, which are computed for a few images at a time."""

    def summary(self, images: Array) -> Array:
        """Summaries of images.

        Parameters
        ----------
        images : (n, L, *space) float32

        Returns
        -------
        (n, F) float array
        """
        ...


class Resizable(nn.Module):
    """A module with buffers whose sizes depend on the training patients."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # The sizes are unknown in a new module.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LesionModel(Resizable, ABC):
    """Base class of fitted models of whole-brain lesion masks.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    minimum : minimum number of training patients with a lesion in a voxel of the map

    Raises
    ------
    OutOfRange
        If there is more than one channel, or the shape is not three positive numbers.
    """

    def __init__(self, in_channels: int, outputs: int, image_shape: Sequence[int], minimum: int) -> None:
        super().__init__()
        if in_channels != 1:
            raise OutOfRange(f"a lesion model reads one channel, the mask; got in_channels={in_channels}")
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise OutOfRange(
                f"`image_shape` must be three positive numbers (X, Y, Z), got {tuple(image_shape)}; "
                "pass image_shape=(X, Y, Z) of the masks"
            )
        self.image_shape, self.outputs, self.minimum = tuple(image_shape), outputs, minimum
        self.register_buffer("bias", torch.zeros(outputs))
        self._volumes = _Volumes(self.image_shape)

    bias: Tensor

    @property
    def reads_masks(self) -> bool:
        """Whether inputs must be lesioned fractions of voxels rather than residuals or normalised vectors."""
        return False

    def fit(self, lesions: scipy.sparse.csr_array, targets: Array, *, rng: np.random.Generator) -> None:
        """See :class:`Fitted`.

        Raises
        ------
        OutOfRange
            If the shapes do not match, there are fewer than three patients, a value is not
            finite, or no voxel is lesioned in ``minimum`` patients.
        """
        lesions = scipy.sparse.csr_array(lesions)
        targets = np.asarray(targets, dtype=np.float64)
        voxels = int(np.prod(self.image_shape))
        if lesions.shape[1] != voxels or targets.shape != (lesions.shape[0], self.outputs):
            raise OutOfRange(
                f"lesions must be (n, {voxels}) for image_shape {self.image_shape} and targets (n, {self.outputs}), "
                f"got {lesions.shape} and {targets.shape}"
            )
        if len(targets) < 3:
            raise OutOfRange(f"a lesion model needs n >= 3 training patients, got {len(targets)}")
        bad = int(np.sum(~np.isfinite(targets)) + np.sum(~np.isfinite(lesions.data)))
        if bad:
            raise OutOfRange(f"lesions and targets must be finite, got {bad} values that are not; leave those out")
        lesions.sort_indices()
        self._learn(lesions, targets, rng)

    @abstractmethod
    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        """Set the buffers, given valid training data."""

    def _voxels(self, lesions: scipy.sparse.csr_array) -> npt.NDArray[np.intp]:
        return often_lesioned(lesions, self.minimum)


class _Volumes(nn.Module):
    """(N, 1, X, Y, Z) → (N, V), optionally in double precision."""

    def __init__(self, image_shape: tuple[int, ...], *, double: bool = False) -> None:
        super().__init__()
        self.image_shape, self.double_precision = image_shape, double

    def forward(self, x: Tensor) -> Tensor:
        """Flatten images; raises for images of another shape."""
        if x.shape[1:] != (1, *self.image_shape):
            raise OutOfRange(f"the model was built for (N, 1, *{self.image_shape}), got {tuple(x.shape)}")
        flat = x.flatten(1)
        return flat.double() if self.double_precision else flat

    def describe_layer(self) -> Flattens:
        """See :class:`harness.models.layers.Describes`."""
        return Flattens()


class TotalOf(nn.Module):
    """Sum of a function over voxels, (N, V) → (N, 1) float64."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, flat: Tensor) -> Tensor:
        """Sum over voxels."""
        total: Tensor = self._function(flat.double()).sum(1, keepdim=True)
        return total

    def describe_layer(self) -> Totals:
        """See :class:`harness.models.layers.Describes`."""
        return Totals(self._function)


class Sizes(nn.Module):
    """Divisors of dense lesions (N, V), as (N, 1) float64; differentiable, see :func:`lesion_sizes`.

    Negative volumes count as zero.
    """

    def __init__(self, normalise: Normalise) -> None:
        super().__init__()
        self.total = TotalOf(torch.square if check_normalise(normalise) == "unit" else torch.Tensor.double)

    def forward(self, flat: Tensor) -> Tensor:
        """Square root of the sum."""
        total: Tensor = self.total(flat)
        return total.clamp(min=_SMALLEST**2).sqrt()


class LinearLesionModel(LesionModel):
    """A linear model with one weight per voxel: score = Σ weight · occupancy + bias.

    Parameters
    ----------
    in_channels, outputs, image_shape, minimum : see :class:`LesionModel`
    normalise : normalisation of the lesions, see :func:`lesion_sizes`
    """

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        image_shape: Sequence[int],
        minimum: int = 1,
        normalise: Normalise = "none",
    ) -> None:
        super().__init__(in_channels, outputs, image_shape, minimum)
        self.normalise = check_normalise(normalise)
        self.register_buffer("weight", torch.zeros(outputs, 1, *image_shape))
        self._sizes = None if normalise == "none" else Sizes(normalise)
        # In double precision, because dividing by the size of a tiny lesion amplifies rounding errors.
        self._volumes = _Volumes(self.image_shape, double=self._sizes is not None)

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) → (N, K)."""
        flat = self._volumes(x)
        if self._sizes is None:
            return nn.functional.linear(flat, self.weight.flatten(1)) + self.bias
        scores: Tensor = nn.functional.linear(flat, self.weight.flatten(1).double()) / self._sizes(flat)
        return scores.to(x.dtype) + self.bias

    def weight_map(self) -> Tensor:
        """See :class:`Fitted`."""
        return self.weight.detach().float().clone()

    def _set(self, weight: Array, bias: npt.ArrayLike, voxels: Array | slice = slice(None)) -> None:
        """Set weights (K, number of voxels) and biases (K,)."""
        self.weight = self._map(weight, voxels).to(self.weight)
        self.bias = torch.as_tensor(np.asarray(bias, dtype=np.float64)).to(self.bias)

    def _map(self, values: Array, voxels: Array | slice = slice(None)) -> Tensor:
        """Convert values (K, number of voxels) to maps (K, 1, X, Y, Z) float32, zero elsewhere."""
        whole = np.zeros((self.outputs, int(np.prod(self.image_shape))), dtype=np.float32)
        whole[:, voxels] = values
        return torch.from_numpy(whole.reshape(self.outputs, 1, *self.image_shape))


def lesion_sizes(lesions: scipy.sparse.csr_array, normalise: Normalise) -> npt.NDArray[np.float64]:
    """Divisors that normalise lesions.

    Parameters
    ----------
    lesions : (n, V) occupancies
    normalise : ``"none"`` for 1; ``"unit"`` for the square root of the sum of squares, so
        that all lesion vectors have length 1 (Zhang et al. 2014); ``"dtlvc"``, direct total
        lesion volume control, for the square root of the volume (DeMarco & Turkeltaub
        2018). The last two are equal for binary masks

    Returns
    -------
    (n,) float64 array
        At least 0.001, also without a lesion.
    """
    if normalise == "none":
        return np.ones(lesions.shape[0])
    values = lesions.astype(np.float64)
    squared = (values.multiply(values) if normalise == "unit" else values).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(np.asarray(squared).ravel(), _SMALLEST**2)))


def scaled_lesions(lesions: scipy.sparse.csr_array, normalise: Normalise) -> scipy.sparse.csr_array:
    """Normalised lesions, (n, V) float64, see :func:`lesion_sizes`."""
    lesions = lesions.astype(np.float64)
    lesions.data /= np.repeat(lesion_sizes(lesions, normalise), np.diff(lesions.indptr))
    return lesions


def check_normalise(normalise: Normalise) -> Normalise:
    """Check the option.

    Raises
    ------
    OutOfRange
        If there is no such normalisation.
    """
    known = typing.get_args(Normalise)
    if normalise not in known:
        raise OutOfRange(f"`normalise` must be one of {', '.join(known)}, got {normalise!r}")
    return normalise


def often_lesioned(lesions: scipy.sparse.csr_array, minimum: int) -> npt.NDArray[np.intp]:
    """Voxels that are lesioned, fully or partially, in a minimum number of patients.

    Parameters
    ----------
    lesions : (n, V) occupancies
    minimum : minimum number of patients

    Returns
    -------
    (P,) int array
        Sorted indices of voxels.

    Raises
    ------
    OutOfRange
        If there are none.
    """
    patients = np.bincount(lesions.indices[lesions.data > 0], minlength=lesions.shape[1])
    voxels = np.flatnonzero(patients >= max(minimum, 1))
    if not voxels.size:
        raise OutOfRange(
            f"a voxel must be lesioned in at least {minimum} of {lesions.shape[0]} training patients, but the highest "
            f"number in any voxel is {int(patients.max(initial=0))}; reduce model.minimum"
        )
    return voxels


def merged(
    lesions: scipy.sparse.csr_array, rng: np.random.Generator
) -> tuple[scipy.sparse.csr_array, npt.NDArray[np.intp]]:
    """Merge voxels with identical occupancies in all patients.

    Parameters
    ----------
    lesions : (n, P) occupancies
    rng : random generator of the projections that identify equal columns; the result does
        not depend on it

    Returns
    -------
    patterns : (n, U) csr array with unique columns
    pattern_of : (P,) int array, column of each voxel
    """
    # Equal columns give exactly equal projections, because the order of summation is the same.
    marks = lesions.T @ rng.normal(size=(lesions.shape[0], 2))
    _, first, pattern_of = np.unique(marks[:, 0] + 1j * marks[:, 1], return_index=True, return_inverse=True)
    return lesions[:, first], pattern_of
