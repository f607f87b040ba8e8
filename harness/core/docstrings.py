"""Parsing of numpydoc docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["Docstring", "docstring_of", "parse"]

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$\n?", re.MULTILINE)
_LITERAL = re.compile(r"``([^`]*)``")
_TYPE = r"(?:array-like|ndarray|array|bool|callable|dict|float|int|list|None|optional|Path|str|tuple)"
_ONLY_A_TYPE = re.compile(rf"{_TYPE}(?:(?:, | or | of | \| ){_TYPE})*")


@dataclass(frozen=True)
class Docstring:
    """A parsed docstring.

    Parameters
    ----------
    text : summary, description and all sections except Parameters, without markup
    parameters : name → description in the section Parameters, as one line
    """

    text: str
    parameters: Mapping[str, str]


@cache
def docstring_of(documented: Any) -> Docstring:
    """Parse the docstring of a function or class; empty if there is none."""
    return parse(inspect.getdoc(documented) or "")


def parse(text: str) -> Docstring:
    """Parse a docstring.

    Parameters
    ----------
    text : docstring without indentation, as returned by ``inspect.getdoc``
    """
    preamble, *rest = _SECTION.split(text)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    parameters = _entries(sections.pop("Parameters", ""))
    others = [f"{title}\n{'-' * len(title)}\n{body.strip()}" for title, body in sections.items()]
    return Docstring(_without_markup("\n\n".join([preamble.strip(), *others])), parameters)


def _entries(section: str) -> dict[str, str]:
    """``name : text`` or ``first, second : text``, continued on indented lines."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section.strip()):
        first, *lines = entry.splitlines() or [""]
        names, _, text = first.partition(" :")
        meaning = _without_markup(_joined([text.strip(), *map(str.strip, lines)]))
        found |= {name.strip().lstrip("*"): meaning for name in names.split(",") if name.strip()}
    return found


def _joined(lines: list[str]) -> str:
    """Join lines; a first line that holds only a type (``width : int``) is dropped."""
    if lines[1:] and _ONLY_A_TYPE.fullmatch(lines[0]):
        lines = lines[1:]
    return " ".join(filter(None, lines))


def _without_markup(text: str) -> str:
    return _LITERAL.sub(r"\1", _ROLE.sub(r"\1", text))
