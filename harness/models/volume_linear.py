"""Linear models of volumes of several contrasts: baselines of networks, fitted by cross-validated regression.

Each is a linear function of all voxels and covariates, so that its map is its weights. They
differ in the features to which the regression is fitted.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch import Tensor, nn

from harness.core.errors import CellError, OutOfRange
from harness.core.registry import GENERATED, MODELS
from harness.core.types import Array, Input
from harness.simulation.ms import tract_share

__all__ = ["box_means", "covariates_only", "cross_validated_regression", "tract_means", "voxel_ridge"]

_PENALTIES = tuple(10.0 ** np.arange(-4, 5))  # of standardised features
_FOLDS = 5


@MODELS.register("voxel_ridge", source="Hoerl & Kennard 1970 (ridge regression)", fitted=True, weights=True)
def voxel_ridge(inputs: Sequence[Input], outputs: int = 1) -> nn.Module:
    """Ridge regression, or logistic regression with the same penalty for labels, on all voxels and covariates.

    The penalty has the lowest cross-validated loss in the training samples. Voxels are in
    units of one standard deviation of all voxels of their contrast, covariates are
    standardised and hardly penalised. The penalty is chosen on the principal components of
    all training samples, which do not depend on the targets.

    Parameters
    ----------
    inputs : volumes and covariates
    outputs : number of outputs, K

    Returns
    -------
    nn.Module
        Maps (N, L, X, Y, Z) and (N, 1) for each covariate to (N, K); trained by its method
        ``fit_volumes``.
    """
    return _Voxels(inputs, outputs)


@MODELS.register("box_means", source="regional means with logistic regression", fitted=True, weights=True)
def box_means(inputs: Sequence[Input], outputs: int = 1, *, boxes: Annotated[int, Ge(1), Le(16)] = 6) -> nn.Module:
    """Penalised regression on the means of each contrast in a grid of boxes, and on the covariates.

    Parameters
    ----------
    inputs, outputs : see :func:`voxel_ridge`
    boxes : number of boxes along each axis, 6 for 216 boxes

    Returns
    -------
    nn.Module
        See :func:`voxel_ridge`.
    """
    shape = _shape(inputs)
    edges = [np.array_split(np.arange(size), min(boxes, size)) for size in shape]
    regions = []
    for x in edges[0]:
        for y in edges[1]:
            for z in edges[2]:
                region = np.zeros(shape, np.float32)
                region[np.ix_(x, y, z)] = 1
                regions.append(region)
    return _Means(inputs, outputs, np.array(regions))


@MODELS.register(
    "covariates_only",
    source="logistic regression on covariates",
    fitted=True,
    weights=True,
    baseline="covariates, without images",
)
def covariates_only(inputs: Sequence[Input], outputs: int = 1) -> nn.Module:
    """Penalised regression on the covariates alone; its map is zero.

    Parameters
    ----------
    inputs, outputs : see :func:`voxel_ridge`; at least one covariate

    Returns
    -------
    nn.Module
        See :func:`voxel_ridge`.

    Raises
    ------
    OutOfRange
        If there is no covariate.
    """
    if len(inputs) < 2:
        raise OutOfRange("covariates_only needs at least one covariate, got none; set adapter.covariates=")
    return _Means(inputs, outputs, np.zeros((0, *_shape(inputs)), np.float32))


@MODELS.register("tract_means", source="", fitted=True, weights=True, oracle=GENERATED)
def tract_means(inputs: Sequence[Input], outputs: int = 1) -> nn.Module:
    """Oracle that knows the tract on which the disability of generated patients depends.

    It fits a regression to the mean of each contrast in the tract and to the covariates.

    Parameters
    ----------
    inputs, outputs : see :func:`voxel_ridge`

    Returns
    -------
    nn.Module
        See :func:`voxel_ridge`.
    """
    x, y, z = _shape(inputs)
    return _Means(inputs, outputs, tract_share((x, y, z))[None])


def _shape(inputs: Sequence[Input]) -> tuple[int, ...]:
    shape = inputs[0].shape
    if len(shape) != 3:
        raise OutOfRange(f"a linear model of volumes needs volumes of one shape (X, Y, Z), got {shape}")
    return shape


class _LinearVolumes(nn.Module, ABC):
    """A linear function of voxels and covariates.

    Attributes
    ----------
    weight : (K, L, X, Y, Z)
    slopes : (K, C), of the covariates
    bias : (K,)
    """

    weight: Tensor
    slopes: Tensor
    bias: Tensor

    def __init__(self, inputs: Sequence[Input], outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, len(inputs[0].channels), *_shape(inputs)))
        self.register_buffer("slopes", torch.zeros(outputs, len(inputs) - 1))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, images: Tensor, *covariates: Tensor) -> Tensor:
        """(N, L, X, Y, Z) and (N, 1) for each covariate → (N, K)."""
        scores = nn.functional.linear(images.flatten(1), self.weight.flatten(1), self.bias)
        if covariates:
            scores = scores + nn.functional.linear(torch.cat(covariates, 1), self.slopes)
        return scores

    def weight_map(self) -> Tensor:
        """Map of the model for each target, (K, L, X, Y, Z) float32; higher values increase the output more."""
        return self.weight.detach().clone()

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
        """See :class:`harness.models.fitting.FittedToVolumes`.

        Raises
        ------
        CellError
            If a label has one class, or a kind is neither binary nor number.
        """
        features = self._features(images)
        together = np.hstack([features, _standard(covariates)[0]])
        for row, kind in enumerate(kinds):
            slopes, bias = cross_validated_regression(together, targets[:, row], weights[:, row], subjects, kind)
            self._set(row, slopes[: features.shape[1]], slopes[features.shape[1] :], bias, covariates)

    @abstractmethod
    def _features(self, images: Array) -> Array:
        """Standardised features, (n, P), of the images."""

    @abstractmethod
    def _weights(self, slopes: Array) -> tuple[Array, float]:
        """Weights (L, X, Y, Z) of voxels, and the constant, for slopes (P,) of the features."""

    def _set(self, row: int, slopes: Array, of_covariates: Array, bias: float, covariates: Array) -> None:
        weight, constant = self._weights(slopes)
        _, mean, spread = _standard(covariates)
        self.weight[row] = torch.from_numpy(weight.astype(np.float32))
        self.slopes[row] = torch.from_numpy((of_covariates / spread).astype(np.float32))
        self.bias[row] = bias + constant - float((of_covariates / spread) @ mean)


class _Voxels(_LinearVolumes):
    """Ridge on voxels; rotated to the principal components of the training samples, which changes nothing."""

    def _features(self, images: Array) -> Array:
        flat = images.reshape(len(images), images.shape[1], -1).astype(np.float64)
        self._middle = flat.mean(axis=0)
        centred = flat - self._middle
        self._spread = np.maximum(centred.std(axis=(0, 2)), 1e-12)
        scaled = (centred / self._spread[None, :, None]).reshape(len(flat), -1)
        # Without rescaling, the components have the same ridge penalty as the voxels.
        left, sizes, self._axes = np.linalg.svd(scaled, full_matrices=False)
        self._size = float(np.sqrt(np.mean(sizes**2) / len(flat))) or 1.0
        components: Array = left * sizes / (self._size * np.sqrt(len(flat)))
        return components

    def _weights(self, slopes: Array) -> tuple[Array, float]:
        scale = self._size * np.sqrt(self._axes.shape[0])
        flat = (slopes / scale) @ self._axes
        weight = flat.reshape(self._middle.shape) / self._spread[:, None]
        return weight.reshape(self.weight.shape[1:]), -float((weight * self._middle).sum())


class _Means(_LinearVolumes):
    """Regression on means in regions.

    Parameters
    ----------
    regions : (R, X, Y, Z) float32, weights of the voxels in each region; may be none
    """

    def __init__(self, inputs: Sequence[Input], outputs: int, regions: Array) -> None:
        super().__init__(inputs, outputs)
        totals = regions.sum(axis=(1, 2, 3), keepdims=True)
        self._regions = regions / np.where(totals > 0, totals, 1)

    def _features(self, images: Array) -> Array:
        channels = images.shape[1]
        flat = images.reshape(len(images), channels, -1).astype(np.float64)
        regions = self._regions.reshape(len(self._regions), flat.shape[2])
        means = flat @ regions.T.astype(np.float64)
        found, self._middle, self._spread = _standard(means.reshape(len(images), channels * len(regions)))
        return found

    def _weights(self, slopes: Array) -> tuple[Array, float]:
        own = slopes / self._spread
        weight = np.tensordot(own.reshape(self.weight.shape[1], len(self._regions)), self._regions, axes=1)
        return weight, -float(own @ self._middle)


def _standard(values: Array) -> tuple[Array, Array, Array]:
    """Standardised columns, their means and standard deviations; constant columns become 0."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    return (values - mean) / spread, mean, spread


def cross_validated_regression(
    features: Array, target: Array, weights: Array, subjects: Sequence[str], kind: str
) -> tuple[Array, float]:
    """Ridge regression, or logistic regression for a label, with the penalty of the lowest cross-validated loss.

    Parameters
    ----------
    features : (n, P) float64, standardised
    target : (n,) numbers, or labels 0 and 1
    weights : (n,) weights of the samples in the loss
    subjects : subject of each sample, which folds keep together
    kind : kind of the target, ``binary`` or ``number``

    Returns
    -------
    slopes : (P,) float64
    intercept : float

    Raises
    ------
    CellError
        If a label has one class, or the kind is neither binary nor number.
    """
    if kind not in ("binary", "number"):
        raise CellError(f"linear models of volumes predict binary targets and numbers, got a target of kind {kind}")
    if kind == "binary" and len(set(target.tolist())) < 2:
        raise CellError("a label must have two classes in the training samples, got one")
    groups = np.unique(np.array(subjects), return_inverse=True)[1]
    count = min(_FOLDS, len(set(groups.tolist())))
    splitter = StratifiedGroupKFold(count) if kind == "binary" else GroupKFold(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the number of folds, and of convergence
        folds = [
            (own, held)
            for own, held in splitter.split(features, target, groups)
            if kind == "number" or len(set(target[own].tolist())) > 1
        ]
        losses = [
            sum(_held_out(penalty, features, target, weights, own, held, kind) for own, held in folds)
            for penalty in _PENALTIES
        ]
        best = _estimator(_PENALTIES[int(np.argmin(losses))], kind)
        best.fit(features, target, sample_weight=weights)
    return np.ravel(best.coef_), float(np.ravel(best.intercept_)[0])


def _estimator(penalty: float, kind: str) -> LogisticRegression | Ridge:
    if kind == "number":
        return Ridge(alpha=penalty)
    return LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-6)


def _held_out(
    penalty: float, features: Array, target: Array, weights: Array, own: Array, held: Array, kind: str
) -> float:
    """Weighted loss of held-out samples."""
    model = _estimator(penalty, kind).fit(features[own], target[own], sample_weight=weights[own])
    if kind == "number":
        return float((weights[held] * (model.predict(features[held]) - target[held]) ** 2).sum())
    found = model.predict_proba(features[held])
    return float(log_loss(target[held], found, labels=[0, 1], sample_weight=weights[held], normalize=False))
