"""Show names of subjects in other words: in tables, pages and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import pyarrow as pa

from harness.pipeline.leaderboard import read_facts

__all__ = ["renamed", "renamed_table"]

Value = TypeVar("Value")


def renamed(value: Value, rename: Callable[[str], str]) -> Value:
    """The value with all text in it replaced: in sequences, values of mappings, dataclasses and tables.

    Parameters
    ----------
    value : text, table, dataclass, or collection of these; other values, such as images, are returned unchanged
    rename : applied to each text
    """
    return cast(Value, _renamed(value, rename))


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    made: Any = value
    if isinstance(value, str):
        made = rename(value)
    elif isinstance(value, pa.Table):
        made = renamed_table(value, rename)
    elif isinstance(value, Mapping):
        made = {key: _renamed(one, rename) for key, one in value.items()}
    elif isinstance(value, tuple | list):
        made = type(value)(_renamed(one, rename) for one in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        made = dataclasses.replace(value, **{name: _renamed(one, rename) for name, one in own.items()})
    return made


def renamed_table(table: pa.Table, rename: Callable[[str], str]) -> pa.Table:
    """The table with all text replaced, except for the values of the axes of a leaderboard, which are options."""
    kept = set(read_facts(table).axes) if table.schema.metadata else set()
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name not in kept:
            values = [None if one is None else rename(one) for one in table.column(number).to_pylist()]
            table = table.set_column(number, field, pa.array(values, pa.string()))
    return table
