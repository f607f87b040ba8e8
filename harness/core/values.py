"""Values of options: types, bounds, and plain JSON."""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import OutOfRange, RequestError
from harness.core.paths import absolute
from harness.core.types import JSON

__all__ = [
    "Supplied",
    "checked",
    "checked_options",
    "hints_of",
    "option_value",
    "options_of",
    "plain",
    "sweep_hint",
    "type_text",
    "typed",
]


class Supplied:
    """In an ``Annotated`` hint: a parameter of a model builder that is taken from the cohort, not set by the user.

    ``image_shape``, which :func:`harness.pipeline.networks.build_network` gives to every
    builder that has it, needs no such hint.
    """


@cache
def options_of(function: Any) -> dict[str, inspect.Parameter]:
    """Options of a component: its keyword-only parameters with a default."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is not parameter.empty
        and not _is_supplied(function, parameter.name)
    }


def _is_supplied(function: Any, name: str) -> bool:
    marks = getattr(hints_of(function).get(name), "__metadata__", ())
    return name == "image_shape" or any(isinstance(mark, Supplied) for mark in marks)


@cache
def hints_of(function: Any) -> dict[str, Any]:
    """Type hints of a component, including bounds."""
    return typing.get_type_hints(inspect.unwrap(function), include_extras=True)


def checked_options(function: Any, options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check options that are given in Python as they are checked on the command line.

    Parameters
    ----------
    function : the component, which need not be registered
    options : values of its parameters; those without a type hint are not checked
    what : description of the component, for the error message ("attribution saliency")

    Raises
    ------
    OutOfRange
        If a value has another type than its parameter or violates a bound.
    """
    from pydantic.errors import PydanticUserError

    found = dict(options)
    try:
        hints = hints_of(function)
    except (NameError, TypeError):  # of a function of the user, e.g. a name that is imported for type checkers only
        return found
    for name, value in options.items():
        with contextlib.suppress(PydanticUserError):  # a type of the user that has no schema
            found[name] = checked(hints.get(name, Any), value, f"{name} of {what}")
    return found


def option_value(function: Any, option: str, value: JSON, key: str) -> Any:
    """Convert a value to the type of an option; paths are made absolute."""
    found = checked(hints_of(function).get(option, Any), value, key)
    if isinstance(found, tuple | list):
        return type(found)(_absolute(one, key) for one in found)
    return _absolute(found, key)


def _absolute(value: Any, key: str) -> Any:
    if not isinstance(value, Path):
        return value
    if value == Path():
        raise OutOfRange(f"{key} must be the path of a file or folder, got an empty one; set null for none")
    return absolute(value, key)


def checked(hint: Any, value: JSON, key: str) -> Any:
    """Convert a value to the type of a hint, and check its bounds.

    Raises
    ------
    OutOfRange
        If the value has another type or violates a bound.
    """
    # pydantic is slow to import.
    from pydantic import ValidationError

    try:
        found = _adapter(hint).validate_python(value)
        why = "true and false are not numbers" if _counted(value, found) else ""
    except ValidationError as error:
        why = "; ".join(sorted({problem["msg"] for problem in error.errors()}))
    if why:
        wanted = _article(type_text(hint)) or "of another type"
        hint_of_list = "" if "list" in wanted else sweep_hint(key, value)
        raise OutOfRange(f"{key} must be {wanted}, got {value!r} ({why}){hint_of_list}")
    return found


def sweep_hint(key: str, value: Any) -> str:
    """How several values are compared, for the message about a list where a single value is needed; else empty."""
    if not isinstance(value, list) or not value:
        return ""
    return f"; to compare several values, write {key}=A,B on the command line and a tuple, {key}=(A, B), in Python"


def typed(hint: Any, value: Any) -> Any:
    """A value as it is typed on the command line, in the form that a hint needs.

    A single value is a list of one where a list of any length is needed, and a whole number
    is text where text is needed: ``cohort.spacing_mm=2``, ``cohort.session=2``. All other
    values are returned unchanged, and are not checked.
    """
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return typed(members[0], value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if origin in (tuple, list) and (origin is list or members[-1:] == (...,)):
        single = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
        values = [value] if single else value
        return [typed(members[0], one) for one in values] if isinstance(values, list | tuple) else values
    return value


def _counted(value: JSON, found: Any) -> bool:
    """Whether a boolean was converted to a number."""
    if isinstance(value, bool | np.bool_):
        return isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return any(map(_counted, value, found))
    return False


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # NaN and infinity are not valid JSON, so they cannot enter an identity.
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def type_text(hint: Any) -> str:
    """Describe a type for users: ``number > 0``, ``one of adam, adamw``, ``list of 3 numbers``.

    Parameters
    ----------
    hint : type hint, with bounds from ``annotated_types``

    Returns
    -------
    str
        Empty for a type that cannot be typed on a command line, e.g. a tensor. Such
        members of a union are left out.
    """
    if hint in _PLAIN_TYPES:
        return _PLAIN_TYPES[hint]
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join(filter(None, (type_text(members[0]), _bounds_text(members[1:]))))
    if origin is typing.Literal:
        values = [f"'{member}'" if "," in str(member) else str(member) for member in members]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin in (typing.Union, types.UnionType):
        return _union_text(members)
    if origin is tuple and members[-1:] != (...,):
        return _fixed_list_text(members)
    if origin in (dict, Mapping):
        return "mapping"
    if origin in (tuple, list):
        return f"list of {_plural(type_text(members[0]))}"
    return ""


_PLAIN_TYPES: Mapping[Any, str] = {
    Any: "any value",
    bool: "yes/no",
    float: "number",
    int: "whole number",
    str: "text",
    Path: "path",
    type(None): "null",
}

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}


def _bounds_text(bounds: tuple[Any, ...]) -> str:
    found = [
        f"{sign} {getattr(bound, name)}"
        for bound in bounds
        for name, sign in _SIGNS.items()
        if getattr(bound, name, None) is not None
    ]
    return " and ".join(found)


def _union_text(members: tuple[Any, ...]) -> str:
    if float in members:
        members = tuple(member for member in members if member is not int)
    texts = list(filter(None, map(type_text, members)))
    return " or ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _fixed_list_text(members: tuple[Any, ...]) -> str:
    texts = list(map(type_text, members))
    if len(set(texts)) == 1:
        return f"list of {len(texts)} {_plural(texts[0])}"
    return f"[{', '.join(texts)}]"


def _plural(text: str) -> str:
    if text == "text":
        return "text values"
    return re.sub(r"^(whole number|number|path|list)\b", r"\1s", text)


def _article(text: str) -> str:
    return f"a {text}" if re.match(r"(whole number|number|path|list)\b", text) else text


def plain(value: Any) -> JSON:
    """Convert a value to plain JSON; tuples become lists."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise RequestError(f"an option of a component must be plain JSON, got {type(value).__name__}: {value!r}")
