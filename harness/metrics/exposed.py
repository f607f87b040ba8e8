"""Scalars that a network exposes, such as attention weights, as metrics of predictions."""

from __future__ import annotations

import numpy as np

from harness.metrics.register import metric

__all__ = ["exposed_scalar"]


@metric(
    "exposed_scalar",
    source="the MS disability study, Table II (attention weights)",
    direction="none",
    range=(-np.inf, np.inf),
    empty="not exposed, or classified wrongly: NaN",
    kinds=("binary",),
)
def exposed_scalar(
    exposed: dict[str, float],
    target_label: float,
    predicted_probability: float,
    *,
    name: str = "",
    correct_only: bool = True,
) -> float:
    """A scalar that the network exposes.

    Parameters
    ----------
    exposed : scalars by name
    target_label : 0 or 1
    predicted_probability : number in [0, 1]
    name : name of the scalar, e.g. ``attention:qT1``
    correct_only : use samples that are classified correctly at a probability of 0.5 only, as
        published

    Returns
    -------
    float
        The value; NaN if the network does not expose it, or the sample is left out.
    """
    if name not in exposed or (correct_only and (predicted_probability >= 0.5) != bool(target_label)):
        return float("nan")
    return exposed[name]
