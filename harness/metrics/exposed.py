"""Scalars that a network exposes, such as attention weights, as metrics of predictions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.metrics.register import metric

__all__ = ["exposed_scalar", "reported_number"]


@metric(
    "exposed_scalar",
    source="the MS disability study, Table II (attention weights)",
    direction="none",
    range=(-np.inf, np.inf),
    empty="not exposed, or classified wrongly: NaN",
    kinds=("binary",),
)
def exposed_scalar(
    target_label: float,
    predicted_probability: float,
    exposed: Mapping[str, float] | None = None,
    *,
    name: str = "",
    correct_only: bool = True,
) -> float:
    """A scalar that the network exposes.

    Parameters
    ----------
    target_label : 0 or 1
    predicted_probability : number in [0, 1]
    exposed : scalars by name; ``None`` if the network exposes none
    name : name of the scalar, e.g. ``attention:qT1``
    correct_only : use samples that are classified correctly at a probability of 0.5 only, as
        published

    Returns
    -------
    float
        The value; NaN if the network does not expose it, or the sample is left out.
    """
    if (
        exposed is None
        or name not in exposed
        or (correct_only and (predicted_probability >= 0.5) != bool(target_label))
    ):
        return float("nan")
    return exposed[name]


@metric(
    "reported_number",
    source="the attribution",
    direction="none",
    range=(-np.inf, np.inf),
    level="explanation",
    empty="not reported by this attribution: NaN",
)
def reported_number(numbers: Mapping[str, float] | None = None, *, name: str = "weighted_r2") -> float:
    """A number that an attribution reports beside its map, such as the quality of a fit.

    Parameters
    ----------
    numbers : numbers by name; ``None`` without any
    name : name of the number, e.g. ``weighted_r2`` of LIME, ``relevance_ratio`` of LRP

    Returns
    -------
    float
        The number; NaN if the attribution does not report it.
    """
    return float("nan") if numbers is None else numbers.get(name, float("nan"))
