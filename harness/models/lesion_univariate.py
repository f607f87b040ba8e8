"""Mass-univariate lesion-symptom mapping: one test per voxel, with correction for multiple tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.types import Array
from harness.models.fitting import LinearLesionModel, merged, often_lesioned

__all__ = ["Statistic", "brunner_munzel", "mass_univariate", "regression_t", "student_t", "welch_t"]

Alternative = Literal["two-sided", "greater", "less"]
Correction = Literal["none", "uncorrected", "fdr", "permutation"]
Name = Literal["t", "welch", "brunner_munzel", "regression"]

# Maximum number of values of permuted statistics, or of placements, in memory.
_HELD = 1 << 23
# Relative size of a sum of squares that is zero except for rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Statistic:
    """Test statistics of voxels and scores.

    Parameters
    ----------
    value : (U, M) float64, positive if patients with a lesion have higher scores; NaN if
        the scores are constant, infinite if they vary only between the groups
    freedom : (U, M) float64, degrees of freedom of the t distribution
    """

    value: npt.NDArray[np.float64]
    freedom: npt.NDArray[np.float64]


@MODELS.register(
    "mass_univariate",
    source="Bates et al. 2003, doi:10.1038/nn1050; Rorden, Karnath & Bonilha 2007, doi:10.1162/jocn.2007.19.7.1081",
    fitted=True,
    weights=True,
)
def mass_univariate(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    statistic: Name = "t",
    correction: Correction = "none",
    thresholded: bool = True,
    alternative: Alternative = "two-sided",
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.05,
    permutations: Annotated[int, Ge(19)] = 1000,
    lesioned_from: Annotated[float, Gt(0)] = 0.5,
    minimum: Annotated[int, Ge(1)] = 10,
) -> nn.Module:
    """Statistical map that compares the scores of patients with and without a lesion in each voxel.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    statistic : test statistic for patients with and without a lesion: Student's ``t`` with
        pooled variance, ``welch``, ``brunner_munzel`` (ranks), or ``regression``, the t
        value of the slope of the score on the occupancy
    correction : correction for the number of voxels: ``fdr`` (Benjamini & Hochberg),
        ``permutation`` (family-wise error by the maximum statistic of permuted scores),
        ``uncorrected``, or ``none`` for no test
    thresholded : set voxels that are not significant to zero; otherwise significance is
        only stored in the buffer ``significant``. No effect if ``correction`` is ``none``
    alternative : alternative hypothesis; ``greater`` means that patients with a lesion have
        higher scores
    alpha : significance level
    permutations : number of permutations, for ``correction="permutation"``
    lesioned_from : minimum occupancy of a voxel that counts as lesioned
    minimum : minimum number of training patients with a lesion in a voxel that is tested;
        at least two patients must have no lesion there

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.

    Notes
    -----
    Mass-univariate maps are not predictive models. To obtain an R², the score is regressed
    on the map-weighted lesion load, Σ map · occupancy, which is not part of the published
    methods. If no voxel is significant, the mean score is predicted.

    The statistic is infinite where scores vary only between the groups; the map has its
    largest finite value there. In p values by permutation, the original scores count as
    one permutation. For Brunner–Munzel, each permutation takes as long as the map itself.
    """
    chosen = _Settings(statistic, correction, thresholded, alternative, alpha, permutations, lesioned_from)
    return _MassUnivariate(chosen, in_channels, outputs, image_shape, minimum)


def student_t(lesioned: scipy.sparse.csr_array, scores: Array) -> Statistic:
    """Student's t with pooled variance, patients with minus without lesion.

    Parameters
    ----------
    lesioned : (n, U) of 0 and 1, both at least once in each column
    scores : (n, M) float64
    """
    scores = _centred(scores)
    n, (one, other), (mean, other_mean) = len(scores), *_groups(lesioned, scores)
    total = (scores**2).sum(axis=0)
    within = total - one * mean**2 - other * other_mean**2
    error = np.sqrt(_positive(within, total) / (n - 2) * (1 / one + 1 / other))
    return Statistic(_ratio(mean - other_mean, error), np.full_like(mean, n - 2))


def welch_t(lesioned: scipy.sparse.csr_array, scores: Array) -> Statistic:
    """Welch's t, patients with minus without lesion; see :func:`student_t`."""
    scores = _centred(scores)
    (one, other), (mean, other_mean) = _groups(lesioned, scores)
    total, squares = (scores**2).sum(axis=0), lesioned.T @ scores**2
    with np.errstate(divide="ignore", invalid="ignore"):  # a single patient has no variance
        first = _positive(squares - one * mean**2, total) / (one - 1) / one
        second = _positive(total - squares - other * other_mean**2, total) / (other - 1) / other
        freedom = (first + second) ** 2 / (first**2 / (one - 1) + second**2 / (other - 1))
    return Statistic(_ratio(mean - other_mean, np.sqrt(first + second)), freedom)


def regression_t(lesions: scipy.sparse.csr_array, scores: Array) -> Statistic:
    """t value of the slope of scores on occupancies.

    Parameters
    ----------
    lesions : (n, U) float
    scores : (n, M) float64
    """
    n = len(scores)
    scores = _centred(scores)
    sums = np.asarray(lesions.sum(axis=0)).reshape(-1, 1)
    squares = np.asarray(lesions.multiply(lesions).sum(axis=0)).reshape(-1, 1)
    spread = _positive(squares - sums**2 / n, squares)
    together = lesions.T @ scores
    with np.errstate(divide="ignore", invalid="ignore"):
        total = (scores**2).sum(axis=0)
        left = _positive(total - together**2 / spread, total)
        return Statistic(_ratio(together, np.sqrt(left * spread / (n - 2))), np.full_like(together, n - 2))


def brunner_munzel(lesioned: scipy.sparse.csr_array, scores: Array) -> Statistic:
    """Brunner–Munzel test of stochastic equality, positive if patients with a lesion have higher scores.

    Parameters
    ----------
    lesioned : (n, U) of 0 and 1, both at least twice in each column
    scores : (n, M) float64

    Notes
    -----
    The rank of a patient among all minus the rank within the group is the number of
    patients of the other group with lower scores (ties count half). For all voxels, these
    numbers are a product of the lesions and an n × n matrix of comparisons of scores.
    """
    width = max(1, _HELD // max(len(scores), 1))
    columns = lesioned.tocsc()
    chunks = [columns[:, low : low + width] for low in range(0, columns.shape[1], width)]
    per_score = [[_brunner_munzel(chunk, score) for chunk in chunks] for score in scores.T]
    value, freedom = (
        np.stack([np.concatenate([chunk[which] for chunk in of]) for of in per_score], axis=1) for which in (0, 1)
    )
    return Statistic(value, freedom)


def _brunner_munzel(lesioned: scipy.sparse.csc_array, score: Array) -> tuple[Array, Array]:
    n = len(score)
    below = (score[None] < score[:, None]) + 0.5 * (score[None] == score[:, None])  # [i, j]: j has a lower score than i
    inside = lesioned.toarray()  # (n, U)
    one = inside.sum(axis=0)
    other = n - one
    lesioned_below = (lesioned.T @ below.T).T
    all_below = below.sum(axis=1)[:, None]
    # Number of patients of the other group with lower scores.
    of_one = inside * (all_below - lesioned_below)
    of_other = (1 - inside) * lesioned_below
    mean, other_mean = of_one.sum(axis=0) / one, of_other.sum(axis=0) / other
    spread = ((of_one - mean) ** 2 * inside).sum(axis=0) / (one - 1)
    other_spread = ((of_other - other_mean) ** 2 * (1 - inside)).sum(axis=0) / (other - 1)
    # The rank among all patients is the rank within the group plus the placement.
    ranks = mean + (one + 1) / 2 - other_mean - (other + 1) / 2
    weighted, other_weighted = one * spread, other * other_spread
    with np.errstate(divide="ignore", invalid="ignore"):
        value = _ratio(one * other * ranks, n * np.sqrt(weighted + other_weighted))
        freedom = (weighted + other_weighted) ** 2 / (weighted**2 / (one - 1) + other_weighted**2 / (other - 1))
    return value, freedom


_STATISTICS: Mapping[str, Callable[[scipy.sparse.csr_array, Array], Statistic]] = {
    "brunner_munzel": brunner_munzel,
    "regression": regression_t,
    "t": student_t,
    "welch": welch_t,
}
_SIDES: Mapping[str, Callable[[Array], Array]] = {
    "greater": lambda value: value,
    "less": lambda value: -value,
    "two-sided": np.abs,
}


@dataclass(frozen=True)
class _Settings:
    statistic: Name
    correction: Correction
    thresholded: bool
    alternative: Alternative
    alpha: float
    permutations: int
    lesioned_from: float

    def __post_init__(self) -> None:
        for option, value, known in (
            ("statistic", self.statistic, tuple(_STATISTICS)),
            ("alternative", self.alternative, tuple(_SIDES)),
            ("correction", self.correction, ("fdr", "none", "permutation", "uncorrected")),
        ):
            if value not in known:
                raise OutOfRange(f"`{option}` must be one of {', '.join(known)}, got {value!r}")


class _MassUnivariate(LinearLesionModel):
    def __init__(
        self, settings: _Settings, in_channels: int, outputs: int, shape: tuple[int, ...], minimum: int
    ) -> None:
        super().__init__(in_channels, outputs, shape, minimum)
        self.settings = settings
        self.register_buffer("statistic", torch.zeros(outputs, 1, *shape))
        self.register_buffer("significant", torch.zeros(outputs, 1, *shape, dtype=torch.bool))

    statistic: Tensor
    significant: Tensor

    @property
    def reads_masks(self) -> bool:
        """True, except for regression on the occupancy."""
        return self.settings.statistic != "regression"

    def weight_map(self) -> Tensor:
        """The statistic, thresholded if requested; see :class:`harness.models.fitting.Fitted`."""
        return self.statistic.detach().float().clone()

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        x = lesions.astype(np.float64)
        if self.settings.statistic != "regression":
            x.data = (x.data >= self.settings.lesioned_from).astype(np.float64)
            x.eliminate_zeros()
        voxels = often_lesioned(x, self.minimum)
        voxels = voxels[np.bincount(x.indices, minlength=x.shape[1])[voxels] <= len(targets) - 2]
        if not voxels.size:
            raise OutOfRange("at least two training patients must have no lesion in a tested voxel, got fewer")
        patterns, pattern_of = merged(x[:, voxels], rng)
        found = _STATISTICS[self.settings.statistic](patterns, targets)
        significant = self._test(patterns, pattern_of, targets, found, rng)
        value = _bounded(found.value)
        if self.settings.correction != "none" and self.settings.thresholded:
            value = value * significant
        statistic = self._map(value[pattern_of].T, voxels)
        loads = lesions @ statistic.reshape(self.outputs, -1).T.double().numpy()  # (n, K)
        slope, bias = _least_squares(loads, targets)
        self._set(slope[:, None] * statistic.reshape(self.outputs, -1).numpy(), bias)
        self.statistic = statistic.to(self.statistic)
        self.significant = self._map(significant[pattern_of].T, voxels).to(self.significant)

    def _test(
        self,
        patterns: scipy.sparse.csr_array,
        pattern_of: Array,
        targets: Array,
        found: Statistic,
        rng: np.random.Generator,
    ) -> npt.NDArray[np.bool_]:
        """Whether each pattern is significant for each score, (U, K)."""
        side, alpha = _SIDES[self.settings.alternative], self.settings.alpha
        value = _defined(found.value)
        if self.settings.correction == "none":
            return np.zeros(value.shape, dtype=bool)
        if self.settings.correction == "permutation":
            largest = self._permuted(patterns, targets, rng)
            as_large = _at_least(largest, side(value))
            return (as_large + 1) / (len(largest) + 1) <= alpha
        from scipy import stats  # slow to import

        tail = stats.t.sf(side(value), np.nan_to_num(found.freedom, nan=1.0))
        p = np.minimum(tail * (2 if self.settings.alternative == "two-sided" else 1), 1.0)
        if self.settings.correction == "fdr":
            # Each voxel counts as a test, also if several have the same pattern.
            p = np.stack([stats.false_discovery_control(one[pattern_of]) for one in p.T], axis=1)
            adjusted = np.empty_like(value)
            adjusted[pattern_of] = p
            p = adjusted
        return np.asarray(p <= alpha)

    def _permuted(self, patterns: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> Array:
        """Maximum statistic over voxels for each permutation of the patients, (permutations, K)."""
        side, statistic = _SIDES[self.settings.alternative], _STATISTICS[self.settings.statistic]
        n, outputs = targets.shape
        at_once = max(1, _HELD // (patterns.shape[1] * outputs))
        largest = []
        for low in range(0, self.settings.permutations, at_once):
            count = min(at_once, self.settings.permutations - low)
            orders = np.stack([rng.permutation(n) for _ in range(count)], axis=1)  # (n, count)
            value = side(_defined(statistic(patterns, targets[orders].reshape(n, -1)).value))
            largest.append(value.max(axis=0).reshape(count, outputs))
        return np.concatenate(largest)


def _at_least(largest: Array, value: Array) -> npt.NDArray[np.int64]:
    """Number of permutations, (P, K), that reach each value, (U, K); returns (U, K)."""
    # Permutations that do not change the groups differ by rounding only.
    reached = value * (1 - 1e-12)
    return np.stack(
        [len(of) - np.searchsorted(np.sort(of), v, side="left") for of, v in zip(largest.T, reached.T, strict=True)],
        axis=1,
    )


def _groups(lesioned: scipy.sparse.csr_array, scores: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Sizes (U, 1) and mean centred scores (U, M) of patients with and without lesion."""
    one = np.asarray(lesioned.sum(axis=0)).reshape(-1, 1)
    other = lesioned.shape[0] - one
    sums = lesioned.T @ scores
    return (one, other), (sums / one, -sums / other)


def _positive(squares: Array, total: Array) -> Array:
    """A sum of squares, set to zero if it is zero except for rounding."""
    return np.where(squares > _ROUNDING * total, squares, 0.0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient; infinite if the denominator is zero, NaN if both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator


def _centred(scores: Array) -> Array:
    """Scores (n, M) minus their means; exactly zero for constant scores."""
    centred = scores - scores.mean(axis=0)
    return np.where(np.ptp(scores, axis=0) > 0, centred, 0.0)


def _defined(value: Array) -> Array:
    return np.nan_to_num(value, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _bounded(value: Array) -> Array:
    """Values (U, K) with infinity replaced by the largest finite magnitude of each column, and NaN by 0."""
    finite = np.isfinite(value)
    largest = np.max(np.abs(value), axis=0, where=finite, initial=0.0)
    largest = np.where(largest > 0, largest, 1.0)
    return np.clip(_defined(value), -largest, largest)


def _least_squares(loads: Array, targets: Array) -> tuple[Array, Array]:
    """Slope and bias (K,) of each score on its own load; 0 and the mean score if the load is constant."""
    mean, of_target = loads.mean(axis=0), targets.mean(axis=0)
    spread = ((loads - mean) ** 2).sum(axis=0)
    together = ((loads - mean) * (targets - of_target)).sum(axis=0)
    slope = np.divide(together, spread, where=spread > 0, out=np.zeros_like(together))
    return slope, of_target - slope * mean
