"""Metrics: of prediction, segmentation, detection, agreement and localisation.

Every metric is a plain function; :func:`compute` finds one by its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.core.errors import UnknownName
from harness.core.registry import METRICS
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs
from harness.metrics.register import evaluate, options

__all__ = ["compute"]

# The lesions are derived, never given.
_GIVEN = frozenset(METRIC_INPUTS) - {"prediction_lesions", "target_lesions"}


def compute(name: str, /, **arrays: Any) -> float:
    """The value of a metric, by its name.

    Parameters
    ----------
    name : a registered metric, e.g. ``"dice"``
    **arrays : inputs (``prediction``, ``target``, ``spacing_mm``, …) and options
        of the metric (``tolerance_mm=1.5``)

    Returns
    -------
    float
        NaN where the metric is not defined.

    Raises
    ------
    UnknownName
        If there is no such metric, input or option.
    RequestError
        If an input that the metric needs is absent.

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
    for word in arrays:
        if word not in _GIVEN and word not in known:
            raise UnknownName(f"input or option of metric {name}", word, {*_GIVEN, *known})
    given = {word: value for word, value in arrays.items() if word in known}
    inputs = MetricInputs(**{word: value for word, value in arrays.items() if word in _GIVEN})
    return evaluate(partial(function, **given), inputs)
