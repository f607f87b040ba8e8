"""Overrides ``key=value`` in Hydra's override grammar, read by Hydra's own parser."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import BadSyntax
from harness.core.passwords import without_passwords_of
from harness.core.paths import check_encoding
from harness.core.space import Choice, Dimension, Interval, text_of
from harness.core.types import JSON

__all__ = ["PATHS", "Overrides", "parse", "texts_of", "to_overrides"]

PATHS = frozenset({"csv", "data", "into", "out"})
"""Keys whose values are paths. They take one value, so that it is read literally, without the grammar."""

_MOST_VALUES = 10_000  # of a range; a typo such as range(0,1e9) would fill the memory
# Names of tokens and rules of Hydra's parser say nothing to users.
_JARGON = re.compile(r"no viable|mismatched input|extraneous input|missing |token recognition|None$|$")
_KEY = re.compile(r"[\w$][\w.$-]*", re.ASCII)
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
# Text between the signs of the grammar, and characters in it that Hydra does not read without quotes.
_TEXT = re.compile(rf"({_QUOTED.pattern})|[^,=()\[\]{{}}'\"]+", re.DOTALL)
_TEXT_OF_MAPPING = re.compile(rf"({_QUOTED.pattern})|[^,:=()\[\]{{}}'\"]+", re.DOTALL)
_UNREADABLE = re.compile(r"[^\w \t/\\+.$%*@?|:-]|[^\x00-\x7F]")


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

    Parameters
    ----------
    texts : overrides as typed; values of :data:`PATHS` are read literally

    Raises
    ------
    BadSyntax
        If one cannot be read; with the text, the reason and the expected form.
    """
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep

    values: dict[str, JSON] = {}
    sweeps: dict[str, tuple[JSON, ...]] = {}
    space: list[Dimension] = []
    for text in texts:
        check_encoding(text, "an override")
        try:
            key, value = _key_and_value(text)
        except BadSyntax as error:
            raise BadSyntax(without_passwords_of(str(error), [text])) from None
        if key in values or key in sweeps or any(dimension.key == key for dimension in space):
            raise BadSyntax(f"{key} is given twice; {_once(key)}")
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


def _once(key: str) -> str:
    return "give one path" if key in PATHS else f"give all its values in one override: {key}=a,b"


def _key_and_value(text: str) -> tuple[str, Any]:
    """Key of an override, and its value as Hydra represents it."""
    if text.startswith("-"):
        raise BadSyntax(f"{text!r} is not an option of this command; overrides look like key=value, e.g. seed=0,1")
    name, sign, rest = text.partition("=")
    if name in PATHS and sign:
        if not rest.strip():
            raise BadSyntax(f"{name}= has no value, as of a variable that is not set; give a path, or leave it out")
        return name, _path(rest)
    if text.startswith(("+", "~")):
        raise BadSyntax(f"cannot read {text!r}: remove the + or ~; overrides look like key=value")
    if not sign:
        raise BadSyntax(
            f"cannot read {text!r}: it has no =. Overrides look like key=value, key=a,b or key=range(0,1,0.1)"
        )
    if not name:
        raise BadSyntax(f"cannot read {text!r}: the key is missing; overrides look like key=value")
    if not _KEY.fullmatch(name):
        raise BadSyntax(
            f"cannot read {text!r}: {name!r} is not a key; a key has letters, digits, dots, _ and -, "
            "and overrides look like key=value"
        )
    return name, _read(name, rest)


def _path(text: str) -> str:
    """A path as typed. Quotes around all of it are removed, as around any other text, unless they are its name."""
    quoted = _QUOTED.fullmatch(text) and not os.path.lexists(text)
    return str(_plain(_read("path", text))) if quoted else text


def _read(key: str, text: str) -> Any:
    """Read a value with Hydra's parser; characters that its grammar does not know are plain text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        try:
            return parser.parse_override(f"key={text}").value()
        except HydraException:
            quoted = _with_quotes(text)
            if quoted == text:
                raise
            return parser.parse_override(f"key={quoted}").value()
    except HydraException as error:
        # The useful half of Hydra's message is in the cause.
        reason = str(error.__cause__ or error).partition("\n")[0].strip()
        if _JARGON.match(reason) or "Exception" in reason:
            reason = (
                "its commas, quotes, brackets or = do not form a list, a sweep or a function. "
                f"To use it as plain text, quote it: {_for_shell(f'{key}={text_of(text)}')}"
            )
        elif reason.startswith("Unknown function"):
            quoted = _for_shell(f"{key}={text_of(text)}")
            reason = f"{reason[0].lower()}{reason[1:]}. If it is plain text, quote it: {quoted}"
        raise BadSyntax(
            f"cannot read {f'{key}={text}'!r}: {reason}. Overrides look like key=value, key=a,b or key=range(0,1,0.1)"
        ) from None


def _with_quotes(text: str) -> str:
    """The text with quotes around each part that has characters unknown to Hydra's grammar, such as ``é # ; &``."""

    def quote(found: re.Match[str]) -> str:
        part = found[0]
        if found[1] is not None or not _UNREADABLE.search(part):
            return part
        inner = part.strip(" \t")
        start = part.index(inner)
        return f"{part[:start]}{text_of(inner, quoted=True)}{part[start + len(inner) :]}"

    return (_TEXT_OF_MAPPING if "{" in text else _TEXT).sub(quote, text)


def _for_shell(text: str) -> str:
    """An override as it is typed in a shell; in double quotes, so that single quotes stay readable."""
    return shlex.quote(text) if re.search(r"""["$`!]|\\(?!')""", text) else f'"{text}"'


def to_overrides(**overrides: Any) -> Overrides:
    """Overrides from Python values: strings are parsed, a tuple or range is a sweep, a list or a path is one value.

    Raises
    ------
    BadSyntax
        If a string cannot be parsed, or a value cannot be written on the command line, such
        as bytes, a set or a function.
    """
    values: dict[str, JSON] = {}
    sweeps: dict[str, tuple[JSON, ...]] = {}
    texts: list[str] = []
    for key, value in overrides.items():
        key = key.replace("__", ".")
        if isinstance(value, tuple | range):
            sweeps[key] = tuple(_written(key, one) for one in value)
        elif isinstance(value, str) and key not in PATHS:
            texts.append(f"{key}={value}")
        else:
            values[key] = _written(key, value)
    read = parse(texts)
    return Overrides({**values, **read.values}, {**sweeps, **read.sweeps}, read.space)


def _written(key: str, value: Any) -> JSON:
    """A value as plain JSON: paths are texts, and numbers and arrays of numpy are those of Python."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_written(key, one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(one, str) for one in value):
        return {name: _written(key, one) for name, one in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise BadSyntax(
        f"{key} must be text, a number, True, False, None, a path, a list or mapping of these, or a tuple of several "
        f"values to compare, got {type(value).__name__} {str(value)[:40]}"
    )


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
    count = math.ceil((stop - start) / step)
    if count > _MOST_VALUES:
        raise BadSyntax(f"{text!r} has {count} values, and a range has at most {_MOST_VALUES}; give a larger step")
    values = [start + number * step for number in range(count)]
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
