"""Regression of scores on total lesion volume and covariates: a baseline without the location of lesions."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import scipy.sparse
import torch
from annotated_types import Ge
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.types import Array
from harness.core.values import Supplied
from harness.models.fitting import LesionModel, TotalOf

__all__ = ["SCALES", "total_volume"]

SCALES = ("linear", "square root", "logarithm")
"""Functions of the volume, in the order of their coefficients."""

# Smaller volumes, in voxels, count as this volume, since the square root has no finite slope at zero.
_SMALLEST = 1e-6
# Volume at which the logarithm becomes linear, as a fraction of the median volume of the training patients.
_SMALL_SHARE = 0.01


@MODELS.register(
    "total_volume",
    source="ordinary least squares on functions of the lesion volume",
    fitted=True,
    weights=True,
    baseline="lesion volume and covariates, without location",
)
def total_volume(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    covariates: Annotated[int, Ge(0), Supplied()] = 0,
) -> nn.Module:
    """Linear regression of scores on total lesion volume, its square root or its logarithm, and covariates.

    This baseline does not use the location of lesions, so its map is constant. The
    difference to another model shows the value of location. For each score, the function of
    the volume, and whether covariates are used, are those with the lowest exact
    leave-one-out error in the training patients.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    covariates : number of covariates, set by ``adapter.covariates``

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float, and (N, C) covariates if there are any, to (N, K);
        trained by its method ``fit``.

    Notes
    -----
    The logarithm is log(1 + v / v₀), where v₀ is 1 % of the median volume of the training
    patients. A covariate is used only if it is known for all training patients; for other
    patients without a value, it is replaced by the mean.
    """
    return _TotalVolume(in_channels, outputs, image_shape, covariates)


class _TotalVolume(LesionModel):
    """The fitted regression.

    Attributes
    ----------
    slopes : (K, 3 + C) float64, for the functions of the volume and the covariates; zero if
        not used
    small : () float64, v₀ in voxels
    typical : () float64, mean volume of the training patients in voxels
    means : (C,) float64, means of the covariates
    """

    slopes: Tensor
    small: Tensor
    typical: Tensor
    means: Tensor

    def __init__(self, in_channels: int, outputs: int, shape: tuple[int, ...], covariates: int) -> None:
        super().__init__(in_channels, outputs, shape, minimum=1)
        self._given: Array | None = None
        self._total = TotalOf(torch.Tensor.double)
        self.register_buffer("slopes", torch.zeros(outputs, len(SCALES) + covariates, dtype=torch.float64))
        self.register_buffer("small", torch.ones((), dtype=torch.float64))
        self.register_buffer("typical", torch.ones((), dtype=torch.float64))
        self.register_buffer("means", torch.zeros(covariates, dtype=torch.float64))

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """(N, 1, X, Y, Z), and (N, C) with NaN for unknown values → (N, K)."""
        volume = self._total(self._volumes(x)).clamp(min=_SMALLEST)
        scales = torch.cat([volume, volume.sqrt(), torch.log1p(volume / self.small)], dim=1)
        scores = nn.functional.linear(scales, self.slopes[:, : len(SCALES)])
        if covariates is not None:
            known = torch.where(torch.isnan(covariates), self.means, covariates.double())
            scores = scores + nn.functional.linear(known, self.slopes[:, len(SCALES) :])
        return (scores + self.bias.double()).to(x.dtype)

    def fit(
        self,
        lesions: scipy.sparse.csr_array,
        targets: Array,
        *,
        rng: np.random.Generator,
        covariates: Array | None = None,
    ) -> None:
        """Fit the model to training patients, see :class:`harness.models.fitting.Fitted`.

        Parameters
        ----------
        covariates : (n, C), NaN if unknown; ``None`` if the model has no covariates

        Raises
        ------
        OutOfRange
            If the number of covariates is not that of the model.
        """
        given = np.zeros((lesions.shape[0], 0)) if covariates is None else np.asarray(covariates, np.float64)
        if given.shape != (lesions.shape[0], len(self.means)):
            expected = (lesions.shape[0], len(self.means))
            raise OutOfRange(f"covariates must be {expected}, one row per patient, got {given.shape}")
        self._given = given
        super().fit(lesions, targets, rng=rng)
        self._given = None

    def weight_map(self) -> Tensor:
        """Increase of each score per voxel at the mean volume of the training patients, (K, 1, X, Y, Z)."""
        volume = self.typical.clamp(min=_SMALLEST)
        steps = torch.stack([torch.ones_like(volume), 0.5 / volume.sqrt(), 1 / (self.small + volume)])
        slopes = (self.slopes[:, : len(SCALES)] @ steps).float()
        return slopes.reshape(-1, 1, 1, 1, 1).expand(-1, 1, *self.image_shape).clone()

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        assert self._given is not None
        volumes = np.maximum(np.asarray(lesions.sum(axis=1, dtype=np.float64)).ravel(), _SMALLEST)
        small = max(_SMALL_SHARE * float(np.median(volumes)), _SMALLEST)
        scales = np.stack([volumes, np.sqrt(volumes), np.log1p(volumes / small)], axis=1)
        values, known = np.hstack([scales, self._given]), np.isfinite(self._given).all(axis=0)
        also = [len(SCALES) + int(column) for column in np.flatnonzero(known)]
        choices = [[scale, *more] for more in ([], also)[: 2 if also else 1] for scale in range(len(SCALES))]
        slopes, biases = np.zeros((targets.shape[1], values.shape[1])), np.zeros(targets.shape[1])
        for row, target in enumerate(targets.T):
            errors = [leave_one_out_error(values[:, columns], target) for columns in choices]
            best = choices[int(np.argmin(errors))]
            slopes[row, best], biases[row] = _least_squares(values[:, best], target)
        self.slopes, self.bias = torch.from_numpy(slopes).to(self.slopes), torch.from_numpy(biases).to(self.bias)
        self.small, self.typical = self.small.new_tensor(small), self.typical.new_tensor(volumes.mean())
        self.means = self.means.new_tensor(np.where(known, np.nan_to_num(self._given).mean(axis=0), 0.0))


def leave_one_out_error(values: Array, target: Array) -> float:
    """Mean squared leave-one-out error of a linear regression.

    Parameters
    ----------
    values : (n, P) columns without an intercept
    target : (n,)

    Returns
    -------
    float
        Exact, by the leverages of the patients; infinite if a patient determines a
        coefficient alone.
    """
    design = np.column_stack([np.ones(len(values)), values])
    left, sizes, _ = np.linalg.svd(design / np.maximum(np.abs(design).max(axis=0), 1e-300), full_matrices=False)
    basis = left[:, sizes > sizes[0] * 1e-10]
    residuals, leverages = target - basis @ (basis.T @ target), (basis**2).sum(axis=1)
    if (leverages > 1 - 1e-9).any():
        return float("inf")
    return float(((residuals / (1 - leverages)) ** 2).mean())


def _least_squares(values: Array, target: Array) -> tuple[Array, float]:
    """Slopes (P,) and intercept of a linear regression; each column is divided by its spread for precision."""
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    slopes = np.linalg.lstsq((values - mean) / spread, target - target.mean(), rcond=None)[0] / spread
    return slopes, float(target.mean() - slopes @ mean)
