"""Overrides with several values: sweeps and search spaces.

``sequences=T2w,FLAIR`` is a sweep: every value is run and compared.
``recipe.lr=tag(log, interval(1e-5, 1e-2))`` is a dimension of a search space: values
are sampled and the best one is used.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.core.errors import OutOfRange
from harness.core.types import JSON

__all__ = ["Axis", "Choice", "Dimension", "Experiment", "Grid", "Interval", "grid", "grids_of", "text_of"]

Grid = Mapping[str, tuple[JSON, ...]]
"""Key → values. Its points are all combinations of them; without keys there is one point."""
Experiment = Grid | tuple[Grid, ...]
"""A grid, or the union of several."""

# A string that the grammar reads without quotes.
_PLAIN = re.compile(r"(?!(?:true|false|null|inf|nan|none)$)[A-Za-z_/.][\w+./:@-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Axis:
    """All values of one swept key, in order."""

    key: str
    values: tuple[JSON, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise OutOfRange(f"a sweep must have at least one value, got none for {self.key}")
        seen: list[JSON] = []
        for value in self.values:
            if value in seen:
                raise OutOfRange(f"the values of a sweep must differ, got {value!r} twice for {self.key}")
            seen.append(value)


@dataclass(frozen=True)
class Interval:
    """A number between two bounds, both included.

    Parameters
    ----------
    key : key to override, e.g. ``recipe.lr``
    low, high : bounds, ``low < high``; both positive if ``log``
    log : sample uniformly on a logarithmic scale
    integer : sample integers
    """

    key: str
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise OutOfRange(f"both bounds of {self.key} must be finite, got low={self.low}, high={self.high}")
        if not self.low < self.high:
            raise OutOfRange(f"`low < high` must hold for {self.key}, got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise OutOfRange(f"`0 < low` must hold for a log interval of {self.key}, got low={self.low}")


@dataclass(frozen=True)
class Choice:
    """One of several unordered values."""

    key: str
    values: tuple[JSON, ...]

    def __post_init__(self) -> None:
        Axis(self.key, self.values)


Dimension = Interval | Choice


def grids_of(experiment: Experiment) -> tuple[Grid, ...]:
    """The grids of an experiment: itself, or those that it unites."""
    return (experiment,) if isinstance(experiment, Mapping) else experiment


def grid(axes: Grid) -> Iterator[dict[str, JSON]]:
    """All points of a grid; the last key varies fastest.

    Parameters
    ----------
    axes : key → values; without keys there is one empty point
    """
    checked = [Axis(key, tuple(values)) for key, values in axes.items()]
    for point in itertools.product(*(axis.values for axis in checked)):
        yield dict(zip((axis.key for axis in checked), point, strict=True))


def text_of(value: JSON, *, quoted: bool = False) -> str:
    """A value in the syntax of overrides, quoted where it would otherwise be read differently.

    Parameters
    ----------
    quoted : quote a string in any case
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(one)}" for key, one in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    if isinstance(value, str) and (quoted or not _PLAIN.fullmatch(text)):
        # Only backslashes before a quote are doubled.
        escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
        return f"'{escaped}'"
    return text
