"""Search spaces: checked against a task, and converted to text, JSON and Optuna's distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.errors import OutOfRange, RequestError
from harness.core.overrides import override
from harness.core.space import Choice, Dimension
from harness.core.task import Task, describe
from harness.core.types import JSON

__all__ = ["TUNED", "decoded", "describe_space", "distributions", "fit_space", "short", "space_json"]

TUNED = ("model", "recipe")
"""Components that a search may choose, or whose options it may tune."""
# Not searched, because candidates must be compared by the same selection value.
_FIXED = ("recipe", "recipe.select")


def fit_space(task: Task, space: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Check the dimensions of a search space against a task.

    Returns
    -------
    tuple of Dimension
        The dimensions, those of components before those of options. An interval gives
        whole numbers if and only if its option is an integer, however its ends were typed.

    Raises
    ------
    RequestError
        If a key does not belong to the model or recipe, or the recipe does not select
        epochs by validation.
    UnknownName
        If an option does not exist; if the model is searched, for one of the models.
    OutOfRange
        If an end or value is outside the bounds of its option.
    """
    for one in space:
        if one.key.partition(".")[0] not in TUNED or one.key in _FIXED:
            raise RequestError(
                "a search can tune the model, its options and those of the recipe except recipe.select (all candidates "
                f"are compared by the same value), got {one.key}; sweep it instead: {one.key}=a,b"
            )
    if task.recipe().select is None:
        raise RequestError(
            "a search needs a recipe that selects epochs by the validation subjects, got recipe.select=last; "
            "remove it, or set another value"
        )
    models = [value for one in space if isinstance(one, Choice) and one.key == "model" for value in one.values]
    ordered = sorted(space, key=lambda one: "." in one.key)
    for model in models or [describe(task)["model"]["use"]]:
        fitted = tuple(_fitted(one, override(task, "model", model)) for one in ordered)
    return fitted


def _fitted(one: Dimension, task: Task) -> Dimension:
    if isinstance(one, Choice):
        for value in one.values:
            override(task, one.key, value)
        return one
    component, _, option = one.key.partition(".")
    # override() converts the ends to the type of the option: 8.0 becomes 8 if it is an int.
    taken = [describe(override(task, one.key, float(end)))[component][option] for end in (one.low, one.high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in taken):
        raise OutOfRange(f"an interval needs a numeric option, got {one.key}; use choice(a,b) instead")
    return dataclasses.replace(one, integer=all(isinstance(end, int) for end in taken))


def describe_space(space: Sequence[Dimension], *, trials: int, subjects: Sequence[str] = ()) -> str:
    """Description of a search in one line, for the leaderboard."""
    where = f"on {', '.join(subjects)}" if subjects else "in each fold and seed"
    return f"{', '.join(map(_describe, space))}; {trials} trials {where}"


def space_json(space: Sequence[Dimension]) -> list[JSON]:
    """Dimensions as plain JSON."""
    return [{"kind": type(one).__name__.lower(), **dataclasses.asdict(one)} for one in space]


def distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    """Optuna's distributions; values of a choice are drawn by index, because they may be lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for one in space:
        if isinstance(one, Choice):
            found[one.key] = CategoricalDistribution(range(len(one.values)))
        elif one.integer:
            found[one.key] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            found[one.key] = FloatDistribution(one.low, one.high, log=one.log)
    return found


def decoded(space: Sequence[Dimension], drawn: Mapping[str, Any]) -> dict[str, JSON]:
    """Option values from Optuna's parameters."""
    found: dict[str, JSON] = {}
    for one in space:
        value = drawn[one.key]
        if isinstance(one, Choice):
            found[one.key] = one.values[int(value)]
        else:
            found[one.key] = int(value) if one.integer else float(value)
    return found


def _describe(one: Dimension) -> str:
    if isinstance(one, Choice):
        return f"{one.key} in {{{', '.join(map(str, one.values))}}}"
    what = "log" if one.log else ""
    low, high = (int(one.low), int(one.high)) if one.integer else (one.low, one.high)
    return f"{one.key} in [{short(low)}, {short(high)}]{f' ({what})' if what else ''}"


def short(value: JSON) -> str:
    """A value as text, with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
