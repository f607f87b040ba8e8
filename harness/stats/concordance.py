"""Do two metrics order several methods alike?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["tau_interval"]

Floats = npt.NDArray[np.float64]

_FEWEST = 6  # subjects; a bootstrap of fewer has far too narrow intervals
_DRAWS = 2000


def tau_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval over subjects of Kendall's τ-b between the mean values of methods.

    Parameters
    ----------
    first, second : (methods, subjects) values of two metrics; NaN where undefined
    rng : source of the bootstrap samples
    level : level of the interval

    Returns
    -------
    (float, float)
        In [−1, 1]; NaN with fewer than six subjects.

    Notes
    -----
    All methods are drawn with the same subjects. The interval says how τ varies between
    samples of subjects, for these methods; it does not say how it would be for others.
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    subjects = one.shape[1]
    if subjects < _FEWEST:
        return float("nan"), float("nan")
    counts = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=_DRAWS).astype(np.float64)
    taus = _taus(_means(one, counts), _means(two, counts))
    low, high = np.nanquantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(values: Floats, counts: Floats) -> Floats:
    """Mean of each method over drawn subjects, (draws, methods); NaN if all are undefined."""
    known = np.isfinite(values)
    total, number = counts @ np.where(known, values, 0.0).T, counts @ known.T
    found: Floats = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
    return found


def _taus(first: Floats, second: Floats) -> Floats:
    """Kendall's τ-b of each row, (draws,); NaN if all values of a row are equal or one is undefined."""
    rows, columns = np.triu_indices(first.shape[1], 1)
    one, two = np.sign(first[:, rows] - first[:, columns]), np.sign(second[:, rows] - second[:, columns])
    total = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    found: Floats = np.divide((one * two).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    return found
