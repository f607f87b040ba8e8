"""Values of options: types, bounds and messages."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from harness.core.errors import OutOfRange
from harness.core.registry import KINDS
from harness.core.task import describe_component
from harness.core.values import Supplied, checked, options_of, type_text


@pytest.mark.parametrize("kind", KINDS)
def test_numeric_options_refuse_booleans(kind: str) -> None:
    """No numeric option of any component accepts ``True``, which Python would treat as 1."""
    for name in KINDS[kind].names():
        function = KINDS[kind].get(name).function
        for option in options_of(function):
            parameter = inspect.signature(function).parameters[option]
            first = parameter.default[0] if isinstance(parameter.default, tuple) and parameter.default else None
            wrong = (True, *parameter.default[1:]) if first is not None else True
            if type(first if first is not None else parameter.default) in (int, float):
                with pytest.raises(OutOfRange, match=f"{option} must be .*, got [(]?True"):
                    describe_component(KINDS[kind], partial(function, **{option: wrong}))


def test_supplied_parameters_are_not_options() -> None:
    """Parameters that are taken from the cohort, by name or by their hint, are not options; all others are."""

    def model(
        *, image_shape: tuple[int, ...] = (), edge: Annotated[int, Ge(1), Supplied()] = 1, boxes: int = 1
    ) -> None: ...

    assert list(options_of(model)) == ["boxes"]


def test_oracle_has_no_options_of_the_simulation() -> None:
    """The matched filter takes the shape, size and number of regions from the simulation."""
    assert list(options_of(KINDS["model"].get("matched_filter").function)) == ["minimum"]


def test_boolean_options_accept_booleans() -> None:
    """Options that declare bool accept ``True``."""
    assert checked(bool | int, True, "x") is True
    assert checked(tuple[bool, ...], [True], "x") == (True,)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, "3", 3),
        (float, 3, 3.0),
        (bool, "yes", True),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Literal["a", "b"], "b", "b"),
        (int | Literal["auto"], "auto", "auto"),
        (Annotated[float, Ge(0), Le(1)], 1, 1.0),
        (str, "12", "12"),
    ],
)
def test_checked_gives_the_declared_type(hint: Any, value: Any, expected: Any) -> None:
    """A value is converted to the type that its option declares."""
    found = checked(hint, value, "key")
    assert found == expected and type(found) is type(expected)


def test_error_contains_range_value_and_reason() -> None:
    """The message contains the valid range, the value and the reason."""
    with pytest.raises(OutOfRange, match=r"a must be a number > 0, got 0 \(Input should be greater than 0\)"):
        checked(Annotated[float, Gt(0)], 0, "a")


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "whole number"),
        (float, "number"),
        (bool, "yes/no"),
        (str, "text"),
        (Path | None, "path or null"),
        (Annotated[float, Gt(0)], "number > 0"),
        (Annotated[float, Ge(0), Lt(1)], "number >= 0 and < 1"),
        (Annotated[int, Le(8)] | None, "whole number <= 8 or null"),
        (Literal["adam", "adamw"], "one of adam, adamw"),
        (Literal["1,1", "2,1"], "one of '1,1', '2,1'"),
        (int | float | Literal["auto"], "number or auto"),
        (tuple[float, ...], "list of numbers"),
        (list[str], "list of text values"),
        (tuple[Annotated[int, Gt(0)], ...], "list of whole numbers > 0"),
        (tuple[int, int, int], "list of 3 whole numbers"),
        (tuple[tuple[int, int], ...], "list of lists of 2 whole numbers"),
        (tuple[int, int | None] | None, "[whole number, whole number or null] or null"),
        (float | list[float] | torch.Tensor, "number or list of numbers"),
        (dict[str, Any] | None, "mapping or null"),
        (Any, "any value"),
    ],
)
def test_types_are_described_in_words(hint: Any, text: str) -> None:
    """Types are described in words, not as Python code."""
    assert type_text(hint) == text
