"""Search spaces: dimensions that fit a task, as text, as JSON and as Optuna's distributions."""

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
"""Parts whose choice and options a search may tune."""
# Candidates must be judged alike.
_FIXED = ("recipe", "recipe.select")


def fit_space(task: Task, space: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Dimensions that fit a task, those of parts first; refuses what cannot be searched on it.

    Returns
    -------
    tuple
        Intervals of options that are whole numbers draw whole numbers, and the
        others do not, however the ends were typed.

    Raises
    ------
    RequestError
        For keys outside model and recipe, or a recipe that does not judge by validation.
    UnknownName
        If there is no such option (of one of the models, where the model is searched).
    OutOfRange
        If an end or value breaks the option's own bound.
    """
    for one in space:
        if one.key.partition(".")[0] not in TUNED or one.key in _FIXED:
            raise RequestError(
                "a search tunes the model and the options of its recipe, save recipe.select (all candidates are judged "
                f"alike), got {one.key}; make it an axis instead: {one.key}=a,b"
            )
    if task.recipe().select is None:
        raise RequestError(
            "a search needs a recipe that judges epochs by the validation subjects, recipe.select=last does not; "
            "leave it out or choose another"
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
    part, _, option = one.key.partition(".")
    # The option's own type says what it makes of a number: 8.0 becomes 8 where it is an int.
    taken = [describe(override(task, one.key, float(end)))[part][option] for end in (one.low, one.high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in taken):
        raise OutOfRange(f"an interval needs an option that is a number, got {one.key}; say choice(a,b)")
    return dataclasses.replace(one, integer=all(isinstance(end, int) for end in taken))


def describe_space(space: Sequence[Dimension], *, trials: int, subjects: Sequence[str] = ()) -> str:
    """One line for the row of a searched configuration."""
    where = f"on {', '.join(subjects)}" if subjects else "in each fold and seed"
    return f"{', '.join(map(_describe, space))}; {trials} trials {where}"


def space_json(space: Sequence[Dimension]) -> list[JSON]:
    """Dimensions as plain JSON."""
    return [{"kind": type(one).__name__.lower(), **dataclasses.asdict(one)} for one in space]


def distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    """Optuna's distributions; a choice is drawn by its number, so that it may hold lists."""
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
    """What Optuna drew, as values of the options."""
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
    """A value with as many digits as a sentence needs."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
