"""Linear lesion-symptom models: ridge, sparse, and matched filter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import numpy.typing as npt
import scipy.sparse
from annotated_types import Ge, Gt, Le
from scipy import ndimage
from torch import nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.types import Array
from harness.core.values import Supplied
from harness.models.fitting import LinearLesionModel, Normalise, merged, scaled_lesions
from harness.simulation.lesion_scores import Shape, element

__all__ = ["matched_filter", "ridge", "sparse_linear"]

# Grid of penalties for ridge, in units of the mean squared length of a centred lesion vector.
_RIDGE_GRID = tuple(10.0 ** np.arange(-3, 3.5, 0.5))
# Box sums are differences of cumulative sums, so that loads without lesions are not exactly zero.
_TOUCHED = 1e-9


@MODELS.register("ridge", source="Hoerl & Kennard 1970, doi:10.1080/00401706.1970.10488634", fitted=True, weights=True)
def ridge(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    alpha: Annotated[float, Gt(0)] | None = None,
    normalise: Normalise = "none",
    minimum: Annotated[int, Ge(1)] = 10,
) -> nn.Module:
    """Ridge regression of scores on all voxels.

    The dual problem is solved, so that the cost hardly depends on the number of voxels.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    alpha : penalty in units of the mean squared length of a centred lesion vector; null
        selects, for each score, one of 13 values from 0.001 to 1000 by the exact
        leave-one-out error of the training patients
    normalise : normalisation of lesion vectors: ``none``, ``unit`` length, or ``dtlvc``
        (division by the square root of the volume)
    minimum : minimum number of training patients with a lesion in a voxel that is used

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.
    """
    return _Ridge(alpha, in_channels, outputs, image_shape, minimum, normalise)


@MODELS.register(
    "sparse_linear",
    source="Tibshirani 1996, doi:10.1111/j.2517-6161.1996.tb02080.x; Zou & Hastie 2005",
    fitted=True,
    weights=True,
)
def sparse_linear(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    alpha: Annotated[float, Gt(0), Le(1)] | None = None,
    l1_ratio: Annotated[float, Gt(0), Le(1)] = 1.0,
    folds: Annotated[int, Ge(2)] = 5,
    alphas: Annotated[int, Ge(2)] = 15,
    normalise: Normalise = "none",
    minimum: Annotated[int, Ge(1)] = 10,
) -> nn.Module:
    """Lasso or elastic net regression of scores on all voxels.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    alpha : penalty relative to the smallest one for which all weights are zero; null
        selects, for each score, the best value by inner cross-validation
    l1_ratio : 1 for the lasso, smaller values for an elastic net
    folds : number of folds of the inner cross-validation
    alphas : number of penalties in the inner cross-validation, from 1 to 0.01
    normalise : normalisation of lesion vectors: ``none``, ``unit`` length, or ``dtlvc``
        (division by the square root of the volume)
    minimum : minimum number of training patients with a lesion in a voxel that is used

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.

    Notes
    -----
    The lasso cannot distinguish voxels that are lesioned in the same patients. They are
    merged into one column and share its weight equally, which is one of the solutions and
    much faster. The elastic net uses all voxels.
    """
    return _Sparse(alpha, l1_ratio, folds, alphas, in_channels, outputs, image_shape, minimum, normalise)


@MODELS.register("matched_filter", source="", fitted=True, weights=True, oracle=True)
def matched_filter(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    roi_shape: Annotated[Shape, Supplied()] = "cube",
    roi_size: Annotated[int, Ge(1), Supplied()] = 5,
    boxes: Annotated[int, Ge(1), Supplied()] = 1,
    minimum: Annotated[int, Ge(1)] = 1,
) -> nn.Module:
    """Oracle that knows the shape of the regions of simulated scores, but not their location.

    It selects the location whose lesion load has the highest correlation with the score in
    the training patients, and fits a linear regression on this load.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    roi_shape, roi_size : shape and size of a region in voxels, see
        :func:`harness.simulation.lesion_scores.element`; set by the simulation
    boxes : number of regions of a score, set by the simulation. Each further region is
        selected by its correlation with the residuals
    minimum : minimum number of training patients with a lesion in the region

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.

    Notes
    -----
    This model is a reference, not a competitor: it uses information that is not available
    to other models.
    """
    return _MatchedFilter(element(roi_shape, roi_size), boxes, in_channels, outputs, image_shape, minimum)


class _Ridge(LinearLesionModel):
    def __init__(
        self, alpha: float | None, in_channels: int, outputs: int, shape: tuple[int, ...], minimum: int, by: Normalise
    ) -> None:
        super().__init__(in_channels, outputs, shape, minimum, by)
        self.alpha = alpha

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        from sklearn.linear_model import RidgeCV  # slow to import

        voxels = self._voxels(lesions)
        x = scaled_lesions(lesions, self.normalise)[:, voxels]
        mean = np.asarray(x.mean(axis=0)).ravel()
        unit = float((x.data**2).sum() / x.shape[0] - (mean**2).sum())
        grid = _RIDGE_GRID if self.alpha is None else (self.alpha,)
        # The unit is zero if all lesions are identical.
        alphas = np.array(grid) * (unit if unit > 0 else 1.0)
        fitted = RidgeCV(alphas=alphas, alpha_per_target=True, gcv_mode="eigen").fit(x, targets)
        self._set(np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_), voxels)


class _Sparse(LinearLesionModel):
    def __init__(
        self,
        alpha: float | None,
        l1_ratio: float,
        folds: int,
        alphas: int,
        in_channels: int,
        outputs: int,
        shape: tuple[int, ...],
        minimum: int,
        by: Normalise,
    ) -> None:
        super().__init__(in_channels, outputs, shape, minimum, by)
        self.alpha, self.l1_ratio, self.folds, self.alphas = alpha, l1_ratio, folds, alphas

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        voxels = self._voxels(lesions)
        x = scaled_lesions(lesions, self.normalise)[:, voxels]
        pattern_of = np.arange(len(voxels))
        if self.l1_ratio == 1:
            x, pattern_of = merged(x, rng)
        shared = np.bincount(pattern_of)[pattern_of]
        order = rng.permutation(len(targets))  # inner folds consist of consecutive patients
        x, targets = x[order].tocsc(), targets[order]
        # scikit-learn's solver needs 32-bit indices, which SciPy may convert to 64 bits.
        x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
        fits = [self._one(x, target) for target in targets.T]
        self._set(
            np.stack([coefficients[pattern_of] / shared for coefficients, _ in fits]), [b for _, b in fits], voxels
        )

    def _one(self, x: scipy.sparse.csc_array, target: Array) -> tuple[Array, float]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import ElasticNet, ElasticNetCV

        centred = target - target.mean()
        largest = float(np.abs(x.T @ centred).max()) / (len(target) * self.l1_ratio)
        if largest < 1e-12 * max(float(np.abs(target).max()), 1e-300):  # a constant score
            return np.zeros(x.shape[1]), float(target.mean())
        with warnings.catch_warnings():
            # For small penalties, the solver sometimes reaches max_iter before the strict duality gap.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if self.alpha is not None:
                fitted = ElasticNet(alpha=self.alpha * largest, l1_ratio=self.l1_ratio, max_iter=2000).fit(x, target)
            else:
                grid = np.geomspace(1, 0.01, self.alphas) * largest
                fitted = ElasticNetCV(
                    alphas=grid, l1_ratio=self.l1_ratio, cv=min(self.folds, len(target)), max_iter=2000, tol=1e-3
                ).fit(x, target)
        return fitted.coef_, float(fitted.intercept_)


class _MatchedFilter(LinearLesionModel):
    def __init__(
        self,
        region: npt.NDArray[np.bool_],
        boxes: int,
        in_channels: int,
        outputs: int,
        shape: tuple[int, ...],
        minimum: int,
    ) -> None:
        super().__init__(in_channels, outputs, shape, minimum)
        if min(shape) < len(region):
            raise OutOfRange(f"the region must fit into the image, got {len(region)} voxels for image_shape {shape}")
        self.region, self.boxes = region, boxes

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        found: list[list[int]] = [[] for _ in range(self.outputs)]
        left = targets - targets.mean(axis=0)
        fits = []
        for _ in range(self.boxes):
            for places, best in zip(found, self._best(lesions, left), strict=True):
                places.append(best)
            fits = [self._least_squares(lesions, t, p) for t, p in zip(targets.T, found, strict=True)]
            left = np.stack([rest for _, _, rest in fits], axis=1)
        self._set(np.stack([weights for weights, _, _ in fits]), [bias for _, bias, _ in fits])

    def _best(self, lesions: scipy.sparse.csr_array, scores: Array) -> list[int]:
        """For each score, the flat index of the centre whose load has the highest correlation."""
        first, second = np.zeros(self.image_shape), np.zeros(self.image_shape)
        patients = np.zeros(self.image_shape, dtype=np.int32)
        products = np.zeros((scores.shape[1], *self.image_shape))
        for score, (here, load) in zip(scores, self._loads(lesions), strict=True):
            first[here] += load
            second[here] += load**2
            patients[here] += load > _TOUCHED
            for product, value in zip(products, score, strict=True):
                product[here] += value * load
        spread = second - first**2 / len(scores)
        inside = np.zeros(self.image_shape, dtype=bool)
        before = len(self.region) // 2
        after = len(self.region) - 1 - before
        inside[tuple(slice(before, size - after) for size in self.image_shape)] = True
        usable = inside & (patients >= self.minimum) & (spread > _TOUCHED)
        if not usable.any():
            raise OutOfRange(
                f"a region must be lesioned in at least {self.minimum} of {len(scores)} training patients, but none "
                "is; reduce model.minimum"
            )
        # The spread of the scores is the same for all locations and can be ignored.
        return [
            int(np.argmax(np.divide(p, np.sqrt(spread), where=usable, out=np.full_like(p, -np.inf)))) for p in products
        ]

    def _loads(self, lesions: scipy.sparse.csr_array) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """For each patient, the bounding box of voxels with a load, and the loads in it."""
        reach = len(self.region)
        for start, end in zip(lesions.indptr, lesions.indptr[1:], strict=False):
            if start == end:
                yield (slice(0, 0),) * 3, np.zeros((0, 0, 0))
                continue
            at = np.unravel_index(lesions.indices[start:end], self.image_shape)
            here = tuple(
                slice(max(int(axis.min()) - reach, 0), min(int(axis.max()) + reach + 1, size))
                for axis, size in zip(at, self.image_shape, strict=True)
            )
            box = np.zeros([one.stop - one.start for one in here])
            box[tuple(axis - one.start for axis, one in zip(at, here, strict=True))] = lesions.data[start:end]
            if self.region.all():
                yield here, ndimage.uniform_filter(box, reach, mode="constant")
            else:
                yield here, ndimage.correlate(box, self.region / self.region.sum(), mode="constant")

    def _least_squares(
        self, lesions: scipy.sparse.csr_array, target: Array, centres: list[int]
    ) -> tuple[Array, float, Array]:
        """Weights of all voxels, bias, and residuals of the score."""
        regions = np.zeros((len(centres), lesions.shape[1]))
        for region, centre in zip(regions, centres, strict=True):
            lows = np.array(np.unravel_index(centre, self.image_shape)) - len(self.region) // 2
            inside = np.argwhere(self.region) + lows
            region[np.ravel_multi_index(tuple(inside.T), self.image_shape)] = 1 / len(inside)
        loads = lesions @ regions.T
        slope, bias = _least_squares(loads, target[:, None])
        return slope[0] @ regions, float(bias[0]), target - loads @ slope[0] - bias[0]


def _least_squares(loads: Array, targets: Array) -> tuple[Array, Array]:
    """Slopes (K, B) and biases (K,) of scores (n, K) on loads (n, B), with minimum norm."""
    mean = loads.mean(axis=0)
    slopes = np.linalg.lstsq(loads - mean, targets - targets.mean(axis=0), rcond=None)[0].T
    return slopes, targets.mean(axis=0) - slopes @ mean
