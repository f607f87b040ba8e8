"""Words → a request: profile, experiment, overrides, axes and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from harness.door.catalogue import load_task, task_names
from harness.door.words import Words
from harness.errors import OutOfRange, RequestError, UnknownName
from harness.settings import RunSettings, settings_from
from harness.space import Choice, Dimension, Interval
from harness.spec import Task, checked, keys, override
from harness.sweep import Request
from harness.types import JSON

__all__ = ["resolve", "settings_of"]

_SETTINGS = {field.name for field in dataclasses.fields(RunSettings)}
# Words that steer the request itself and are neither settings nor overrides.
_OWN = {"task", "profile", "experiment", "seed", "fold", "attribution", "metric", "search"}


def settings_of(words: Words) -> RunSettings:
    """The settings among words."""
    several = [key for key in words.sweeps if key in _SETTINGS - {"exclude"}]
    if several:
        raise RequestError(f"{several[0]} takes one value, it is no axis; got {words.sweeps[several[0]]}")
    given = {key: value for key, value in words.values.items() if key in _SETTINGS}
    if "exclude" in words.sweeps or "exclude" in given:
        given["exclude"] = tuple(str(one) for one in words.several("exclude"))
    return settings_from(given)


def resolve(words: Words, *, texts: tuple[str, ...] = ()) -> Request:
    """Everything a run needs to know, checked.

    Parameters
    ----------
    words : parsed
    texts : as they were typed, for the commands in the leaderboard

    Raises
    ------
    RequestError
        Whatever is wrong with them, with what would be right.
    """
    if "task" not in words.values:
        given = words.sweeps.get("task")
        what = f"one task at a time, got {', '.join(map(str, given))}" if given else "which task?"
        raise RequestError(f"{what} Say task=NAME; tasks: {', '.join(task_names())}")
    task = load_task(str(words.values["task"]))
    profile = str(words.values.get("profile", "quick"))
    if profile not in task.profiles:
        raise UnknownName(f"profile of {task.name}", profile, task.profiles)
    _refuse_unknown(words, task)
    settings = settings_of(words)
    seeds: JSON = (0,)
    for key, value in task.profiles[profile].items():
        if key == "seed":
            seeds = tuple(value)
        else:
            task = override(task, key, value)
    axes = _experiment(words, task)
    for key, value in words.values.items():
        if key not in _SETTINGS | _OWN and key not in axes:
            task = override(task, key, value)
    for key, values in axes.items():
        for value in values:  # refuse a wrong value before anything starts
            override(task, key, value)
    task = _selected(task, "attributions", words.several("attribution", ()), "attribution")
    return Request(
        task=task,
        axes=axes,
        seeds=tuple(checked(int, seed, "seed") for seed in words.several("seed", seeds)),
        folds=tuple(checked(int, fold, "fold") for fold in words.several("fold")) or None,
        profile=profile,
        settings=settings,
        words=tuple(text for text in texts if text.partition("=")[0] not in {"experiment", *axes}),
    )


def search_of(words: Words, task: Task) -> tuple[Dimension, ...]:
    """The search space: dimensions among the words, or a named space of the task."""
    named = words.values.get("space")
    if named is not None:
        if named not in task.spaces:
            raise UnknownName(f"search space of {task.name}", str(named), task.spaces)
        return task.spaces[named]
    return tuple(_whole(dimension, task) for dimension in words.space)


def _whole(dimension: Dimension, task: Task) -> Dimension:
    """Intervals of options that are whole numbers draw whole numbers."""
    if isinstance(dimension, Choice):
        for value in dimension.values:
            override(task, dimension.key, value)
        return dimension
    for bound in (dimension.low, dimension.high):
        override(task, dimension.key, int(bound) if dimension.integer else bound)
    return Interval(dimension.key, dimension.low, dimension.high, dimension.log, dimension.integer)


def _refuse_unknown(words: Words, task: Task) -> None:
    known = set(keys(task)) | _SETTINGS | _OWN | {"space"}
    for key in (*words.values, *words.sweeps, *(dimension.key for dimension in words.space)):
        # Options of a part that another word chooses are checked when it is chosen.
        if key not in known and key.partition(".")[0] not in {name.partition(".")[0] for name in keys(task) if "." in name}:
            raise UnknownName("key", key, known)


def _experiment(words: Words, task: Task) -> dict[str, tuple[JSON, ...]]:
    """The grid: the experiment's axes, those that words give instead, and theirs."""
    name = words.values.get("experiment", task.experiment)
    if name and name not in task.experiments:
        raise UnknownName(f"experiment of {task.name}", str(name), task.experiments)
    axes: dict[str, tuple[JSON, ...]] = dict(task.experiments[name]) if name else {}
    sweeps = {key: values for key, values in words.sweeps.items() if key not in _OWN | {"exclude"}}
    axes = {key: values for key, values in axes.items() if key not in words.values}
    return {**axes, **sweeps}


def _selected(task: Task, field: str, labels: tuple[JSON, ...], kind: str) -> Task:
    """Keep some labels; a name that is no label adds the part with its defaults."""
    if not labels:
        return task
    if labels == ("none",):
        return dataclasses.replace(task, **{field: {}})
    parts: Mapping[str, object] = getattr(task, field)
    for label in labels:
        if not isinstance(label, str):
            raise OutOfRange(f"{kind} takes names, got {label!r}")
        if label not in parts:
            task = override(task, f"{field}.{label}", label)
    return dataclasses.replace(task, **{field: {str(label): getattr(task, field)[label] for label in labels}})
