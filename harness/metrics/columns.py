"""Columns of pooled metrics."""

from __future__ import annotations

import numpy as np

from harness.core.errors import UnknownName
from harness.core.types import Array
from harness.metrics.metric_inputs import Columns

__all__ = ["complete"]


def complete(columns: Columns, names: tuple[str, str]) -> tuple[Array, Array]:
    """Two columns, restricted to samples with both values.

    Parameters
    ----------
    columns : name → (n,) float
    names : names of the two columns

    Returns
    -------
    tuple of (m,) float arrays
        All values are finite; m is 0 if no sample has both values.

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
