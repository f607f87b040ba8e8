"""Metrics of segmentation, detection, classification, regression, agreement and localisation.

Each metric is a plain function. :func:`compute` evaluates a metric by its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.core.errors import UnknownName
from harness.core.registry import METRICS
from harness.core.values import checked_options
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs
from harness.metrics.register import evaluate, options

__all__ = ["compute"]

# Lesions are derived from masks.
_GIVEN = frozenset(METRIC_INPUTS) - {"prediction_lesions", "target_lesions"}


def compute(name: str, /, **arrays: Any) -> float:
    """Compute a metric by its name.

    Parameters
    ----------
    name : a registered metric, e.g. ``"dice"``
    **arrays : metric inputs (``prediction``, ``target``, ``spacing_mm``, …) and options
        of the metric (``tolerance_mm=1.5``)

    Returns
    -------
    float
        NaN where the metric is undefined.

    Raises
    ------
    UnknownName
        If there is no such metric, metric input or option.
    OutOfRange
        If an input or option has the wrong type or violates a bound.
    RequestError
        If an input that the metric requires is missing, or the metric has several values.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.zeros((4, 4, 4), bool)
    >>> truth[1, 1, 1:3] = True
    >>> compute("dice", prediction=truth, target=truth)
    1.0
    """
    function = METRICS.get(name).function
    known = options(function)
    for key in arrays:
        if key not in _GIVEN and key not in known:
            raise UnknownName(f"input or option of metric {name}", key, {*_GIVEN, *known})
    given = checked_options(function, {key: value for key, value in arrays.items() if key in known}, f"metric {name}")
    inputs = MetricInputs(**{key: value for key, value in arrays.items() if key in _GIVEN})
    return evaluate(partial(function, **given), inputs)
