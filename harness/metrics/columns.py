"""Columns of pooled metrics."""

from __future__ import annotations

import numpy as np

from harness.core.errors import UnknownName
from harness.core.types import Array
from harness.metrics.metric_inputs import Columns

__all__ = ["complete"]


def complete(columns: Columns, names: tuple[str, ...]) -> tuple[Array, ...]:
    """Columns, restricted to samples with all values.

    Parameters
    ----------
    columns : name → (n,) float
    names : names of the columns

    Returns
    -------
    tuple of (m,) float arrays
        All values are finite; m is 0 if no sample has all values.

    Raises
    ------
    UnknownName
        If there is no such column.
    """
    for name in names:
        if name not in columns:
            raise UnknownName("column", name, columns)
    all_columns = np.stack([columns[name] for name in names])
    return tuple(all_columns[:, np.isfinite(all_columns).all(axis=0)])
