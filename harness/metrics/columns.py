"""Columns of pooled metrics: the values of samples that have all of them."""

from __future__ import annotations

import numpy as np

from harness.core.errors import UnknownName
from harness.core.types import Array
from harness.metrics.metric_inputs import Columns

__all__ = ["complete"]


def complete(columns: Columns, names: tuple[str, str]) -> tuple[Array, Array]:
    """Two columns, without the samples that lack a value in one of them.

    Parameters
    ----------
    columns : name → (n,) float
    names : of the two

    Returns
    -------
    tuple of (m,) float arrays
        Finite everywhere; m is 0 if no sample has both values.

    Raises
    ------
    UnknownName
        If there is no such column.
    """
    for name in names:
        if name not in columns:
            raise UnknownName("column", name, columns)
    both = np.stack([columns[name] for name in names])
    first, second = both[:, np.isfinite(both).all(axis=0)]
    return first, second
