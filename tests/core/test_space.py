"""Grids, axes and dimensions of a search space."""

from __future__ import annotations

import math

import pytest

from harness.core.errors import OutOfRange
from harness.core.space import Axis, Choice, Interval, grid


def test_grid_varies_the_last_axis_fastest() -> None:
    """In a grid, the last axis varies fastest."""
    assert list(grid({"a": (1, 2), "b": ("x", "y")})) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_no_axes_give_one_point() -> None:
    """Without axes, a grid has one point."""
    assert list(grid({})) == [{}]


def test_axis_without_values_is_refused() -> None:
    """An axis without values is refused."""
    with pytest.raises(OutOfRange, match="a sweep must have at least one value, got none for noise"):
        list(grid({"noise": ()}))


def test_axis_with_a_repeated_value_is_refused() -> None:
    """An axis with a repeated value is refused."""
    with pytest.raises(OutOfRange, match=r"must differ, got 'T2w' twice for sequences"):
        Axis("sequences", ("T2w", "FLAIR", "T2w"))


def test_axis_takes_lists() -> None:
    """Values of an axis may be lists, which are not hashable."""
    assert Axis("levels", ([1], [2])).values == ([1], [2])


def test_choice_without_values_is_refused() -> None:
    """A choice without values is refused."""
    with pytest.raises(OutOfRange, match="at least one value"):
        Choice("model", ())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_interval_bounds_must_be_ordered(low: float, high: float) -> None:
    """Equal or reversed bounds are refused."""
    with pytest.raises(OutOfRange, match=rf"`low < high` must hold for recipe\.lr, got low={low}, high={high}"):
        Interval("recipe.lr", low, high)


def test_log_interval_must_be_positive() -> None:
    """A log interval must have positive bounds."""
    with pytest.raises(OutOfRange, match=r"`0 < low` must hold for a log interval of recipe\.lr, got low=0\.0"):
        Interval("recipe.lr", 0.0, 1.0, log=True)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_interval_bounds_must_be_finite(bad: float) -> None:
    """Infinite and NaN bounds are refused."""
    with pytest.raises(OutOfRange, match=r"both bounds of recipe\.lr must be finite"):
        Interval("recipe.lr", 1.0, bad)
