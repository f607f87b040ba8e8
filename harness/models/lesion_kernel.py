"""Support vector regression of whole lesions (SVR-LSM), with its published map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.core.registry import MODELS
from harness.core.types import Array
from harness.models.fitting import LesionModel, Normalise, Resizable, Sizes, TotalOf, check_normalise, scaled_lesions
from harness.models.layers import SparseWeights

__all__ = ["svr_lsm", "svr_lsm_tuned"]

# Tried with tune=True: γ in units of 1 / median squared distance of two lesions, and C.
_GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_COSTS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 5
_LARGEST_BETA = 10.0
_HELD_BYTES = 64 * 1024**2  # of what a forward pass holds beside its images


@MODELS.register(
    "svr_lsm",
    source="Zhang et al. 2014, doi:10.1002/hbm.22590; DeMarco & Turkeltaub 2018, doi:10.1002/hbm.24289",
    fitted=True,
    weights=True,
)
def svr_lsm(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    gamma: Annotated[float, Gt(0)] = 5.0,
    cost: Annotated[float, Gt(0)] = 30.0,
    epsilon: Annotated[float, Ge(0)] = 0.1,
    score_maximum: Annotated[float, Gt(0)] = 100.0,
    tune: bool = False,
    normalise: Normalise = "unit",
    minimum: Annotated[int, Ge(1)] = 10,
) -> nn.Module:
    """Support vector regression with a Gaussian kernel between lesions, one per score.

    score(x) = Σᵢ aᵢ exp(−γ ‖x − xᵢ‖²) + b over the training patients xᵢ. The map is
    the sum of the support vectors, weighted by their aᵢ and scaled so that its
    largest size is 10.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores K
    image_shape : (X, Y, Z) voxels
    gamma, cost : γ and C of every score; with ``tune`` neither is used
    epsilon : errors up to this cost nothing, in units of the scaled score
    score_maximum : the training score of the largest size is scaled to this, as in
        the published program; C and ε count in these units
    tune : choose γ and C of each score by 5-fold cross-validation (mean squared
        error) on the training patients
    normalise : ``"unit"`` as published; ``"dtlvc"`` divides by the root of the volume,
        which is the same for binary masks; ``"none"`` takes raw lesions, whose
        distances are so large that γ = 5 sees every patient as a stranger: tune
        it
    minimum : training patients who must have a lesion in a voxel for the map to
        show it. The regression itself sees every voxel, as published

    Returns
    -------
    nn.Module
        (N, 1, X, Y, Z) float → (N, K), fitted by its ``fit``

    Notes
    -----
    Support vectors are kept as runs of voxels: a lesion is a few hundred of them
    where it has ten thousand voxels. The lesion program's C = 30 goes with scores
    up to 100.
    """
    chosen = _Settings(gamma, cost, epsilon, score_maximum, tune, normalise)
    return _SVR(chosen, in_channels, outputs, image_shape, minimum)


@MODELS.register("svr_lsm_tuned", source="SVR-LSM with γ and C by inner cross-validation", fitted=True, weights=True)
def svr_lsm_tuned(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    normalise: Normalise = "unit",
    minimum: Annotated[int, Ge(1)] = 10,
) -> nn.Module:
    """The same with γ and C of each score chosen on the training patients, to stand in one leaderboard with it.

    Parameters
    ----------
    in_channels, outputs, image_shape, normalise, minimum : see :func:`svr_lsm`
    """
    return svr_lsm(in_channels, outputs, image_shape=image_shape, tune=True, normalise=normalise, minimum=minimum)


@dataclass(frozen=True)
class _Settings:
    gamma: float
    cost: float
    epsilon: float
    score_maximum: float
    tune: bool
    normalise: Normalise


class _SVR(LesionModel):
    def __init__(self, settings: _Settings, in_channels: int, outputs: int, shape: Sequence[int], minimum: int) -> None:
        super().__init__(in_channels, outputs, shape, minimum)
        check_normalise(settings.normalise)
        self.settings = settings
        self.register_buffer("gamma", torch.full((outputs,), settings.gamma, dtype=torch.float64))
        self.register_buffer("coefficients", torch.zeros(outputs, 0, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("beta", torch.zeros(outputs, 1, *shape))
        self.vectors = _Vectors()
        self._square = TotalOf(torch.square)
        self._sizes = None if settings.normalise == "none" else Sizes(settings.normalise)

    gamma: Tensor
    coefficients: Tensor
    squares: Tensor
    beta: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) → (N, K)."""
        flat = self._volumes(x)
        products, square = self.vectors(flat), self._square(flat)
        if self._sizes is not None:
            size = self._sizes(flat)
            products, square = products / size, square / size.square()
        # Rounding must not make a lesion nearer than itself.
        squared = (square + self.squares - 2 * products).clamp(min=0)
        kernels = torch.exp(-self.gamma[:, None] * squared[:, None])
        scores = (kernels * self.coefficients).sum(2)
        return scores.to(x.dtype) + self.bias.to(x.dtype)

    def weight_map(self) -> Tensor:
        """See :class:`harness.models.fitting.Fitted`."""
        return self.beta.detach().float().clone()

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        voxels = self._voxels(lesions)
        scaled = scaled_lesions(lesions, self.settings.normalise)
        gram = (scaled @ scaled.T).toarray()
        squares = np.diagonal(gram)
        distances = np.maximum(squares[:, None] + squares - 2 * gram, 0)
        inner: list[tuple[Array, Array]] = []
        if self.settings.tune:
            from sklearn.model_selection import KFold

            folds = KFold(min(_FOLDS, len(targets)), shuffle=True, random_state=int(rng.integers(2**31)))
            inner = list(folds.split(targets))
        fits = [self._one(distances, target, inner) for target in targets.T]
        coefficients = np.stack([coefficients for coefficients, _, _ in fits])
        support = np.flatnonzero(coefficients.any(axis=0))
        self.vectors.keep(scaled[support])
        self.squares = torch.from_numpy(squares[support]).to(self.bias.device)
        self.coefficients = torch.from_numpy(np.ascontiguousarray(coefficients[:, support])).to(self.bias.device)
        self.gamma = torch.tensor([gamma for _, _, gamma in fits], dtype=torch.float64).to(self.bias.device)
        self.bias = torch.tensor([bias for _, bias, _ in fits]).to(self.bias)
        self.beta = self._beta(coefficients @ scaled[:, voxels], voxels)

    def _one(
        self, distances: Array, target: Array, inner: Sequence[tuple[Array, Array]]
    ) -> tuple[npt.NDArray[np.float64], float, float]:
        """Coefficients of all patients, bias and γ of one score."""
        largest = float(np.abs(target).max())
        unit = self.settings.score_maximum / largest if largest > 0 else 1.0
        gamma, cost = self.settings.gamma, self.settings.cost
        if inner:
            gamma, cost = _tuned(distances, target * unit, inner, self.settings.epsilon)
        from sklearn.svm import SVR  # a second to import, also for who fits no such model

        kernel = np.exp(-gamma * distances)
        fitted = SVR(kernel="precomputed", C=cost, epsilon=self.settings.epsilon).fit(kernel, target * unit)
        coefficients = np.zeros(len(target))
        coefficients[fitted.support_] = fitted.dual_coef_.ravel() / unit
        return coefficients, float(fitted.intercept_[0]) / unit, gamma

    def _beta(self, weights: Array, voxels: Array) -> Tensor:
        largest = np.abs(weights).max(axis=1, keepdims=True)
        whole = np.zeros((self.outputs, int(np.prod(self.image_shape))), dtype=np.float32)
        whole[:, voxels] = np.divide(
            _LARGEST_BETA * weights, largest, where=largest > 0, out=np.zeros_like(weights, dtype=np.float64)
        )
        return torch.from_numpy(whole).reshape(self.beta.shape).to(self.beta)


class _Vectors(Resizable):
    """Products with the support vectors, kept as runs of voxels of equal value, one vector after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("starts", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("ends", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("bounds", torch.zeros(1, dtype=torch.int64))

    starts: Tensor
    ends: Tensor
    values: Tensor
    bounds: Tensor

    def forward(self, flat: Tensor) -> Tensor:
        """(N, V) → (N, S) float64, with every support vector; a few images at a time, as runs may be many."""
        rows = max(1, int(_HELD_BYTES / (8 * (2 * flat.shape[1] + 3 * len(self.values)))))
        return torch.cat([self._of(some) for some in flat.double().split(rows)])

    def _of(self, flat: Tensor) -> Tensor:
        """The same, each run as a difference of running sums."""
        sums = nn.functional.pad(flat.cumsum(1), (1, 0))
        runs = (sums[:, self.ends.long()] - sums[:, self.starts.long()]) * self.values.double()
        of_runs = nn.functional.pad(runs.cumsum(1), (1, 0))
        return of_runs[:, self.bounds[1:]] - of_runs[:, self.bounds[:-1]]

    def describe_layer(self) -> SparseWeights:
        """See :class:`harness.models.layers.Describes`."""
        starts, ends, bounds = (each.cpu().numpy().astype(np.int64) for each in (self.starts, self.ends, self.bounds))
        values = self.values.double().cpu().numpy()

        def at(voxels: Array) -> scipy.sparse.csr_array:
            first = np.searchsorted(voxels, starts)
            lengths = np.searchsorted(voxels, ends) - first
            before = np.r_[0, lengths.cumsum()]
            place = np.arange(before[-1]) + np.repeat(first - before[:-1], lengths)
            weights = (np.repeat(values, lengths), place, before[bounds])
            return scipy.sparse.csr_array(weights, shape=(len(bounds) - 1, len(voxels))).T.tocsr()

        return SparseWeights(at)

    def keep(self, vectors: scipy.sparse.csr_array) -> None:
        """Take over support vectors (S, V)."""
        row = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
        goes_on = (np.diff(row) == 0) & (np.diff(vectors.indices) == 1) & (np.diff(vectors.data) == 0)
        first = np.flatnonzero(np.r_[True, ~goes_on]) if row.size else np.zeros(0, dtype=np.intp)
        last = np.r_[first[1:], row.size][: first.size] - 1
        where = self.values.device
        self.starts = torch.from_numpy(vectors.indices[first].astype(np.int32)).to(where)
        self.ends = torch.from_numpy((vectors.indices[last] + 1).astype(np.int32)).to(where)
        self.values = torch.from_numpy(vectors.data[first]).to(where, torch.float32)
        self.bounds = torch.from_numpy(np.searchsorted(row[first], np.arange(vectors.shape[0] + 1))).to(where)


def _tuned(
    distances: Array, target: Array, inner: Sequence[tuple[Array, Array]], epsilon: float
) -> tuple[float, float]:
    """γ and C with the least squared error over the inner folds; the first of equals."""
    from sklearn.svm import SVR

    median = float(np.median(distances[np.triu_indices(len(distances), 1)]))
    best, least = (_GAMMAS[0], _COSTS[0]), np.inf
    for gamma, cost in itertools.product(_GAMMAS, _COSTS):
        of = gamma / (median if median > 0 else 1.0)
        kernel = np.exp(-of * distances)
        error = 0.0
        for train, test in inner:
            fitted = SVR(kernel="precomputed", C=cost, epsilon=epsilon).fit(kernel[np.ix_(train, train)], target[train])
            error += float(np.sum((fitted.predict(kernel[np.ix_(test, train)]) - target[test]) ** 2))
        if error < least:
            best, least = (of, cost), error
    return best
