"""Values of options: their types, bounds, and plain JSON form."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.errors import OutOfRange, RequestError
from harness.core.paths import absolute
from harness.core.types import JSON

__all__ = ["SUPPLIED", "checked", "hints_of", "option_value", "options_of", "plain", "relation"]

SUPPLIED = ("image_shape", "roi_shape", "roi_size", "boxes")
"""Keyword parameters of model builders that the cohort settles, not the user."""


@cache
def options_of(function: Any) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters with a default: what a user may set."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is not parameter.empty
        and parameter.name not in SUPPLIED
    }


@cache
def hints_of(function: Any) -> dict[str, Any]:
    """Type hints of a component, bounds included."""
    return typing.get_type_hints(inspect.unwrap(function), include_extras=True)


def option_value(function: Any, option: str, value: JSON, key: str) -> Any:
    """The value of a component's option, as its type declares it; a path is made absolute here, once."""
    found = checked(hints_of(function).get(option, Any), value, key)
    if isinstance(found, tuple | list):
        return type(found)(_absolute(one, key) for one in found)
    return _absolute(found, key)


def _absolute(value: Any, key: str) -> Any:
    if not isinstance(value, Path):
        return value
    if value == Path():
        raise OutOfRange(f"{key} must be the path of a file or folder, got an empty one; null is none")
    return absolute(value, key)


def checked(hint: Any, value: JSON, key: str) -> Any:
    """A value as the type that a hint declares.

    Raises
    ------
    OutOfRange
        With the relation that must hold and what came.
    """
    # pydantic is slow to import and needed only where a value is checked.
    from pydantic import ValidationError

    try:
        found = _adapter(hint).validate_python(value)
        why = "true and false are not numbers" if _counted(value, found) else ""
    except ValidationError as error:
        why = "; ".join(sorted({problem["msg"] for problem in error.errors()}))
    if why:
        raise OutOfRange(f"`{relation(hint, key)}` must hold for {key}, got {value!r} ({why})")
    return found


def _counted(value: JSON, found: Any) -> bool:
    """Whether a truth value became a number, as Python's own conversion would have it."""
    if isinstance(value, bool):
        return isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return any(map(_counted, value, found))
    return False


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # An identity is JSON, which has neither NaN nor infinity.
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def relation(hint: Any, key: str) -> str:
    """``0 < recipe.lr`` for an annotated bound, else ``recipe.lr: type``."""
    if typing.get_origin(hint) is typing.Annotated:
        plain, *bounds = typing.get_args(hint)
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "is a multiple of"}
        found = [
            f"{key} {sign} {getattr(bound, name)}"
            for bound in bounds
            for name, sign in signs.items()
            if getattr(bound, name, None) is not None
        ]
        return f"{_name(plain)}, {' and '.join(found)}" if found else _name(plain)
    return f"{key}: {_name(hint)}"


def _name(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("pathlib.", "")


def plain(value: Any) -> JSON:
    """A value as plain JSON: lists for tuples."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise RequestError(f"an option of a component must be plain JSON, got {type(value).__name__}: {value!r}")
