"""Pooled metrics whose intervals are by bootstrap: their values in samples of subjects.

It is separate from :mod:`harness.metrics.register`, which is part of the code of every metric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from harness.core.types import Array

__all__ = ["Resampled", "resampled", "resampled_by"]

F = TypeVar("F", bound=Callable[..., Any])
Resampled = Callable[..., Array]

_ATTRIBUTE = "resampled"


def resampled(function: Resampled) -> Callable[[F], F]:
    """Declare how a pooled metric with an option ``interval`` is computed in bootstrap samples.

    Parameters
    ----------
    function : takes the columns, the numbers of times that each subject occurs in each sample,
        (B, subjects) int, and the options of the metric except ``interval`` by name, and returns
        the value in each sample, (B,)

    Returns
    -------
    callable
        A decorator that returns the metric unchanged. With ``interval="bootstrap"``, the interval
        of the metric is that of a bootstrap over subjects, otherwise a jackknife.
    """

    def decorate(metric: F) -> F:
        setattr(metric, _ATTRIBUTE, function)
        return metric

    return decorate


def resampled_by(metric: Callable[..., Any]) -> Resampled | None:
    """The function that a metric declares with :func:`resampled`, if any."""
    found: Resampled | None = getattr(metric, _ATTRIBUTE, None)
    return found
