"""Rank correlation of two values of samples, and its p value by permutation."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge
from scipy import stats

from harness.core.types import Array
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns
from harness.metrics.register import metric

__all__ = ["masked_spearman", "masked_spearman_p", "permutation_p", "target_number"]

NAN = float("nan")
_NEEDS = ("target_number", "masked_mean")


@metric(
    "target_number", source="", direction="none", range=(-np.inf, np.inf), empty="not known: NaN", kinds=("binary",)
)
def target_number(target_label: float, target_number: float | None = None) -> float:
    """The number from which a binary label was made, such as EDSS.

    Parameters
    ----------
    target_label : 0 or 1
    target_number : the number

    Returns
    -------
    float
        The number; NaN if it is not known.
    """
    return NAN if target_number is None else target_number


@metric(
    "masked_spearman",
    source="the MS disability study, Table III",
    direction="none",
    range=(-1, 1),
    level="pool",
    empty="fewer than three samples, or equal values: NaN",
    needs=_NEEDS,
)
def masked_spearman(columns: Columns) -> float:
    """Spearman's correlation of the mean in the most relevant voxels and the number behind the label.

    Its sign depends on the contrast; only magnitudes can be compared.

    Parameters
    ----------
    columns : ``target_number`` and ``masked_mean``

    Returns
    -------
    float
        In [−1, 1].
    """
    numbers, means = complete(columns, _NEEDS)
    if len(numbers) < 3 or np.ptp(numbers) == 0 or np.ptp(means) == 0:
        return NAN
    return float(stats.spearmanr(numbers, means).statistic)


@metric(
    "masked_spearman_p",
    source="the MS disability study, Table IV: two-sided, 20,000 permutations",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="as masked_spearman: NaN",
    needs=_NEEDS,
    interval=False,
)
def masked_spearman_p(columns: Columns, *, permutations: Annotated[int, Ge(1)] = 20_000) -> float:
    """Two-sided p value of :func:`masked_spearman`, by random permutations of the samples.

    Two visits of one patient are not independent, and the share of voxels is often chosen
    on the same data; the p value is then too low.

    Parameters
    ----------
    columns : ``target_number`` and ``masked_mean``
    permutations : number of permutations; p is at least 1 / (permutations + 1)

    Returns
    -------
    float
        In (0, 1].
    """
    numbers, means = complete(columns, _NEEDS)
    if len(numbers) < 3 or np.ptp(numbers) == 0 or np.ptp(means) == 0:
        return NAN
    return permutation_p(numbers, means, permutations=permutations, rng=np.random.default_rng(0))


def permutation_p(first: Array, second: Array, *, permutations: int, rng: np.random.Generator) -> float:
    """Two-sided permutation p value of Spearman's correlation.

    Parameters
    ----------
    first, second : (n,) values that are not all equal
    permutations : number of random permutations; the observed order is counted once
    rng : random generator

    Returns
    -------
    float
        (1 + number of permutations with a correlation at least as large) / (permutations + 1).
    """
    x, y = (stats.rankdata(one) for one in (first, second))
    x, y = (x - x.mean()) / np.linalg.norm(x - x.mean()), (y - y.mean()) / np.linalg.norm(y - y.mean())
    observed = abs(float(x @ y))
    extreme = 0
    for start in range(0, permutations, 2000):  # about 4 MB at a time for 250 samples
        count = min(2000, permutations - start)
        order = rng.permuted(np.broadcast_to(np.arange(len(x)), (count, len(x))), axis=1)
        extreme += int(np.count_nonzero(np.abs(x[order] @ y) >= observed - 1e-12))
    return (1 + extreme) / (permutations + 1)
