"""Values of options: types, bounds and messages."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le

from harness.core.errors import OutOfRange
from harness.core.overrides import allowed
from harness.core.registry import KINDS
from harness.core.task import describe_component
from harness.core.values import checked


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_any_component_takes_a_truth_value(kind: str) -> None:
    """To Python ``True`` is 1, so ``recipe.epochs=true`` would train for one epoch; alone or within a list."""
    for name in KINDS[kind].names():
        function = KINDS[kind].get(name).function
        for option in allowed(partial(function)):
            parameter = inspect.signature(function).parameters[option]
            first = parameter.default[0] if isinstance(parameter.default, tuple) and parameter.default else None
            wrong = (True, *parameter.default[1:]) if first is not None else True
            if type(first if first is not None else parameter.default) in (int, float):
                with pytest.raises(OutOfRange, match=f"must hold for {option}, got [(]?True"):
                    describe_component(KINDS[kind], partial(function, **{option: wrong}))


def test_truth_values_stay_where_they_belong() -> None:
    """Only a number refuses them."""
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
    """A value arrives as what its option declares."""
    found = checked(hint, value, "key")
    assert found == expected and type(found) is type(expected)


def test_checked_says_what_came() -> None:
    """The message holds relation, value and reason."""
    with pytest.raises(OutOfRange, match=r"`float, a > 0` must hold for a, got 0 \(Input should be greater than 0\)"):
        checked(Annotated[float, Gt(0)], 0, "a")
