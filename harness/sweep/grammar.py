"""Overrides ``key=value`` in Hydra's override grammar, read by Hydra's own parser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from harness.core.errors import BadSyntax
from harness.core.space import Choice, Dimension, Interval, text_of
from harness.core.types import JSON

__all__ = ["Overrides", "parse", "texts_of", "to_overrides"]


@dataclass(frozen=True)
class Overrides:
    """Parsed overrides; keys and values are not checked against a task yet.

    Parameters
    ----------
    values : keys with a single value
    sweeps : keys with several values, the axes of the grid
    space : dimensions of the search space
    """

    values: dict[str, JSON] = field(default_factory=dict)
    sweeps: dict[str, tuple[JSON, ...]] = field(default_factory=dict)
    space: tuple[Dimension, ...] = ()

    def has(self, key: str) -> bool:
        """Whether a key was given, with one value or several."""
        return key in self.values or key in self.sweeps

    def several(self, key: str, default: Sequence[JSON] = ()) -> tuple[JSON, ...]:
        """All values of a key as a tuple, whether one or several were given."""
        if key in self.values:
            value = self.values[key]
            return tuple(value) if isinstance(value, list | tuple) else (value,)
        return self.sweeps.get(key, tuple(default))


def parse(texts: Sequence[str]) -> Overrides:
    """Parse overrides.

    Raises
    ------
    BadSyntax
        If one cannot be read; with the text, the reason and the expected form.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    values: dict[str, JSON] = {}
    sweeps: dict[str, tuple[JSON, ...]] = {}
    space: list[Dimension] = []
    parser = OverridesParser.create()
    for text in texts:
        if text.startswith("-"):
            raise BadSyntax(f"{text!r} is not an option of this command; overrides look like key=value, e.g. seed=0,1")
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            # The useful half of Hydra's message is in the cause.
            reason = str(error.__cause__ or error).partition("\n")[0].strip()
            if reason in {"", "None"} or "Exception" in reason:
                # The shell removes the outer quotes, so that two pairs are needed.
                reason = (
                    "a value with = ( ) [ ] { } ' or a comma needs quotes within the quotes of the shell, "
                    """for example "data='/my scans (2024)'\""""
                )
            raise BadSyntax(
                f"cannot read {text!r}: {reason}. Overrides look like key=value, key=a,b or key=range(0,1,0.1)"
            ) from None
        key = override.key_or_group
        if override.type is not None and override.type.name != "CHANGE":
            raise BadSyntax(f"cannot read {text!r}: remove the + or ~; overrides look like key=value")
        if not key or override.package is not None:
            reason = f"{key}@… is not a key" if key else "the key is missing"
            raise BadSyntax(f"cannot read {text!r}: {reason}; overrides look like key=value")
        if key in values or key in sweeps or any(dimension.key == key for dimension in space):
            raise BadSyntax(f"{key} is given twice; give all its values in one override: {key}=a,b")
        value: Any = override.value()
        if isinstance(value, ChoiceSweep):
            found = tuple(_plain(item) for item in value.list)
            if "search" in value.tags:
                space.append(Choice(key, found))
            else:
                sweeps[key] = found
        elif isinstance(value, RangeSweep):
            found = _range(text, value)
            if "search" in value.tags:
                space.append(Choice(key, found))
            else:
                sweeps[key] = found
        elif isinstance(value, Glob):
            raise BadSyntax(f"cannot read {text!r}: patterns are not supported; list the names: {key}=a,b")
        elif isinstance(value, IntervalSweep):
            low, high = float(value.start or 0), float(value.end or 0)
            space.append(Interval(key, low, high, "log" in value.tags))
        else:
            values[key] = _plain(value)
    return Overrides(values, sweeps, tuple(space))


def to_overrides(**overrides: Any) -> Overrides:
    """Overrides from Python values: strings are parsed, a tuple is a sweep, a list or a path is one value."""
    values: dict[str, JSON] = {}
    sweeps: dict[str, tuple[JSON, ...]] = {}
    texts: list[str] = []
    for key, value in overrides.items():
        key = key.replace("__", ".")
        if isinstance(value, tuple):
            sweeps[key] = tuple(str(one) if isinstance(one, Path) else one for one in value)
        elif isinstance(value, str) and key not in {"data", "out"}:
            texts.append(f"{key}={value}")
        else:
            values[key] = str(value) if isinstance(value, Path) else value
    read = parse(texts)
    return Overrides({**values, **read.values}, {**sweeps, **read.sweeps}, read.space)


def texts_of(overrides: Overrides) -> tuple[str, ...]:
    """Values and sweeps as they are typed on the command line; the inverse of :func:`parse`."""
    single = {key: text_of(value) for key, value in overrides.values.items()}
    several = {key: ",".join(map(text_of, values)) for key, values in overrides.sweeps.items()}
    return tuple(f"{key}={text}" for key, text in {**single, **several}.items())


def _range(text: str, sweep: Any) -> tuple[JSON, ...]:
    finite = all(math.isfinite(number) for number in (sweep.start, sweep.stop, sweep.step))
    if not finite or sweep.step == 0 or (sweep.stop - sweep.start) * sweep.step <= 0:
        raise BadSyntax(f"{text!r} has no values: range(start, stop, step) must lead from start towards stop")
    # In floating point .1 + .2 is not .3. Decimals exclude the end correctly and show no rounding errors.
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    values = [start + number * step for number in range(math.ceil((stop - start) / step))]
    whole = all(isinstance(number, int) for number in (sweep.start, sweep.step))
    return tuple(int(value) if whole else float(value) for value in values)


def _plain(value: Any) -> JSON:
    """Hydra's quoted strings, lists and mappings as plain Python objects."""
    if hasattr(value, "text"):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value
