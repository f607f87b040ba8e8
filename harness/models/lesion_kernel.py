"""Support vector regression lesion-symptom mapping (SVR-LSM)."""

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

# Grid for tune=True: γ in units of 1 / median squared distance between lesions, and C.
_GAMMAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_COSTS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 5
_LARGEST_BETA = 10.0
_HELD_BYTES = 64 * 1024**2  # memory of intermediate results in a forward pass


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
    """Support vector regression with a Gaussian kernel between lesions, one model per score.

    The prediction is Σᵢ aᵢ exp(−γ ‖x − xᵢ‖²) + b over the training patients xᵢ. The map
    is the sum of the support vectors weighted by aᵢ, scaled to a largest absolute value of
    10.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    gamma : kernel coefficient γ of all scores; not used with ``tune``
    cost : regularisation parameter C of all scores; not used with ``tune``
    epsilon : errors up to this size are not penalised, in units of the scaled score
    score_maximum : scores are scaled so that their largest absolute value in the training
        patients is this, as in the published program; C and ε refer to scaled scores
    tune : select γ and C of each score by the mean squared error in 5-fold
        cross-validation over the training patients
    normalise : normalisation of lesion vectors: ``unit`` length, as published; ``dtlvc``
        divides by the square root of the volume, which is the same for binary masks;
        ``none`` uses raw lesions, whose distances are so large that the kernel is nearly
        zero for γ = 5, so that ``tune`` is needed
    minimum : minimum number of training patients with a lesion in a voxel of the map; the
        regression itself uses all voxels, as published

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.

    Notes
    -----
    Support vectors are stored as runs of voxels: a lesion of ten thousand voxels has a few
    hundred runs. C = 30 in the published program refers to scores up to 100.
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
    """SVR-LSM with γ and C selected on the training patients, for comparison in the same leaderboard.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    normalise : normalisation of lesion vectors: ``unit`` length, ``dtlvc`` (division by
        the square root of the volume), or ``none``
    minimum : minimum number of training patients with a lesion in a voxel of the map
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
        # Rounding may give negative distances.
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
        """Coefficients of all patients, bias, and γ of one score."""
        largest = float(np.abs(target).max())
        unit = self.settings.score_maximum / largest if largest > 0 else 1.0
        gamma, cost = self.settings.gamma, self.settings.cost
        if inner:
            gamma, cost = _tuned(distances, target * unit, inner, self.settings.epsilon)
        from sklearn.svm import SVR  # slow to import

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
    """Products with the support vectors, which are stored as runs of voxels with equal value."""

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
        """(N, V) → (N, S) float64, the products with all support vectors, in batches that limit memory."""
        rows = max(1, int(_HELD_BYTES / (8 * (2 * flat.shape[1] + 3 * len(self.values)))))
        return torch.cat([self._of(some) for some in flat.double().split(rows)])

    def _of(self, flat: Tensor) -> Tensor:
        """Products of a batch; the sum over a run is a difference of cumulative sums."""
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
        """Store support vectors (S, V)."""
        row = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
        continues = (np.diff(row) == 0) & (np.diff(vectors.indices) == 1) & (np.diff(vectors.data) == 0)
        first = np.flatnonzero(np.r_[True, ~continues]) if row.size else np.zeros(0, dtype=np.intp)
        last = np.r_[first[1:], row.size][: first.size] - 1
        where = self.values.device
        self.starts = torch.from_numpy(vectors.indices[first].astype(np.int32)).to(where)
        self.ends = torch.from_numpy((vectors.indices[last] + 1).astype(np.int32)).to(where)
        self.values = torch.from_numpy(vectors.data[first]).to(where, torch.float32)
        self.bounds = torch.from_numpy(np.searchsorted(row[first], np.arange(vectors.shape[0] + 1))).to(where)


def _tuned(
    distances: Array, target: Array, inner: Sequence[tuple[Array, Array]], epsilon: float
) -> tuple[float, float]:
    """γ and C with the smallest squared error over the inner folds; the first one if there are ties."""
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
