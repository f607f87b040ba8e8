"""Words → a request: profile, experiment, overrides, axes and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from annotated_types import Ge

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.overrides import keys, narrowed, override
from harness.core.settings import RunSettings, settings_from
from harness.core.space import Axis, Choice, Dimension, text_of
from harness.core.task import Task
from harness.core.types import JSON
from harness.core.values import checked
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import Words
from harness.sweep.grid import at, idle_error, idle_options, points
from harness.sweep.naming import run_name
from harness.sweep.plan import Request
from harness.tuning.spaces import fit_space

__all__ = ["RUN_WORDS", "resolve", "settings_of"]

_SETTINGS = {field.name for field in dataclasses.fields(RunSettings)}
# Words that steer the request itself and are neither settings nor overrides.
_OWN = {"task", "profile", "experiment", "seed", "fold", "attribution", "search", "space"}
RUN_WORDS = frozenset(_SETTINGS | _OWN)
"""Words that a run takes, whatever its task; the others are keys of the task."""
# What stands below a configuration: a grid over it would train the same network again.
_BELOW = ("attributions", "explanations", "metrics", "objective", "explanation_objective")
# Settings that hold several names.
_SEVERAL = ("exclude", "search_subjects")
_SEARCHES = ("optuna",)


def settings_of(words: Words) -> RunSettings:
    """The settings among words."""
    several = [key for key in words.sweeps if key in _SETTINGS.difference(_SEVERAL)]
    if several:
        raise RequestError(f"{several[0]} takes one value, it is no axis; got {words.sweeps[several[0]]}")
    given = {key: value for key, value in words.values.items() if key in _SETTINGS}
    for key in _SEVERAL:
        if key in words.sweeps or key in given:
            given[key] = tuple(str(one) for one in words.several(key))
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
    for key in ("profile", "experiment"):
        if key in words.sweeps:
            raise RequestError(f"{key} takes one value, it is no axis; got {', '.join(map(str, words.sweeps[key]))}")
    _refuse_unknown(words, task)
    settings = settings_of(words)
    seeds: tuple[JSON, ...] = (0,)
    for key, value in _profile(task, profile, settings).items():
        if key == "seed":
            seeds = tuple(value)
        else:
            task = override(task, key, value)
    experiment = str(words.values.get("experiment", task.experiment))
    axes = _experiment(words, task)
    task = _free(narrowed(task, profile=profile, experiment=experiment), words)
    values = {key: value for key, value in words.values.items() if key not in _SETTINGS | _OWN}
    swept = {_full(key, task) for key in axes}
    for key in [key for key in values if _full(key, task).partition(".")[0] in swept]:
        axes[key] = (values.pop(key),)  # an option of a part that is an axis is set wherever the part is chosen
    task = _overridden(task, values, words.several("attribution"))
    chosen = points(task, axes)
    reached = [at(task, point) for point in chosen]  # refuses a wrong value before anything starts
    idle = frozenset.intersection(*map(idle_options, reached))
    if unused := [key for key in values if _full(key, task) in idle]:
        raise idle_error(unused)
    # Where a part is an axis, its options are those at the first point; the sweep checks the others.
    search, space = _search(words, reached[0], settings, axes)
    typed = {text.partition("=")[0] for text in texts}
    return Request(
        task=task,
        axes=axes,
        seeds=_several_checked("seed", words.several("seed", seeds)),
        folds=_several_checked("fold", words.several("fold")) if words.has("fold") else None,
        profile=profile,
        settings=settings,
        words=(
            *(text for text in texts if text.partition("=")[0] not in {"experiment", *axes}),
            # A notebook's words are no texts; a row's command must name its dimensions all the same.
            *(_text(one) for one in words.space if texts and one.key not in typed),
        ),
        space=space,
        search=search,
        name=run_name(words, task, settings, profile=profile, experiment=experiment, seeds=seeds),
        typed=texts,
    )


def _overridden(task: Task, values: Mapping[str, JSON], attributions: tuple[JSON, ...]) -> Task:
    """The task with single values applied, whatever their order: parts and labels first, then their options."""
    ordered = sorted(values, key=lambda key: _full(key, task).count("."))
    parts = [key for key in ordered if _full(key, task).count(".") < 2]
    for key in parts:
        task = override(task, key, values[key])
    task = _selected(task, attributions)
    for key in ordered[len(parts) :]:
        task = override(task, key, values[key])
    return task


def _free(task: Task, words: Words) -> Task:
    """The task without presets of keys that the words give."""
    given = {_full(key, task) for key in (*words.values, *words.sweeps, *(one.key for one in words.space))}
    presets = {
        condition: {key: value for key, value in values.items() if _full(key, task) not in given}
        for condition, values in task.presets.items()
    }
    return dataclasses.replace(task, presets=presets)


def _several_checked(key: str, values: tuple[JSON, ...]) -> tuple[int, ...]:
    """Whole numbers from 0 that differ."""
    return Axis(key, tuple(checked(Annotated[int, Ge(0)], value, key) for value in values)).values


def _profile(task: Task, profile: str, settings: RunSettings) -> dict[str, JSON]:
    """Overrides of a profile, with those for a user's own data."""
    more = task.data_profiles.get(profile, {}) if settings.data else {}
    return {**task.profiles[profile], **more}


def search_of(words: Words, task: Task) -> tuple[Dimension, ...]:
    """The search space: a named space of the task, and the dimensions among the words.

    Notes
    -----
    Words win: a dimension that a word gives replaces that of the named space,
    and a key with a plain value or an axis is not searched.

    Raises
    ------
    UnknownName
        If the task has no space of this name, or no such option.
    RequestError
        If a dimension does not fit its option (see :func:`harness.tuning.spaces.fit_space`).
    """
    named = words.values.get("space")
    if named is not None and named not in task.spaces:
        raise UnknownName(f"search space of {task.name}", str(named), task.spaces)
    found = {_full(one.key, task): one for one in (task.spaces[named] if named is not None else ())}
    given = {_full(key, task) for key in (*words.values, *words.sweeps)}
    found = {key: one for key, one in found.items() if key not in given}
    found |= {_full(one.key, task): one for one in words.space}
    dimensions = [dataclasses.replace(one, key=key) for key, one in found.items()]
    return fit_space(task, dimensions) if dimensions else ()


def _search(
    words: Words, task: Task, settings: RunSettings, axes: Mapping[str, tuple[JSON, ...]]
) -> tuple[str, tuple[Dimension, ...]]:
    """The kind of search and its space; both or neither."""
    if "search" in words.sweeps or "space" in words.sweeps:
        raise RequestError("search and space take one value, they are no axes; e.g. search=optuna space=recipe")
    search = str(words.values.get("search", ""))
    if search and search not in _SEARCHES:
        raise UnknownName("search", search, _SEARCHES)
    space = search_of(words, task)
    asked = bool(words.space) or "space" in words.values
    if asked and not search:
        keys_ = ", ".join(one.key for one in space) or str(words.values.get("space"))
        raise RequestError(f"{keys_} has a space of values, which only a search can draw from; add search=optuna")
    if search and not space:
        named = ", ".join(f"space={name}" for name in task.spaces) or "none"
        raise RequestError(
            f"search={search} needs a space: recipe.lr=tag(log,interval(1e-5,1e-2)), "
            f"recipe.batch_size=tag(search,choice(4,8)), or a named space of {task.name} ({named})"
        )
    if settings.search_subjects and not search:
        raise RequestError(
            "search_subjects are the subjects of a search; add search=optuna, or leave them out with exclude="
        )
    both = {_full(key, task) for key in axes} & {one.key for one in space}
    if both:
        raise RequestError(
            f"{sorted(both)[0]} is an axis and searched; every value of an axis is run, so leave one out"
        )
    return search, space


def _full(key: str, task: Task) -> str:
    return task.axes.get(key, key)


def _text(dimension: Dimension) -> str:
    """A dimension as the word that gives it."""
    if isinstance(dimension, Choice):
        return f"{dimension.key}=tag(search,choice({','.join(map(text_of, dimension.values))}))"
    low, high = (int(end) if dimension.integer else end for end in (dimension.low, dimension.high))
    inside = f"interval({low},{high})"
    return f"{dimension.key}={f'tag(log,{inside})' if dimension.log else inside}"


def _refuse_unknown(words: Words, task: Task) -> None:
    known = set(keys(task)) | _SETTINGS | _OWN
    for key in (*words.values, *words.sweeps, *(dimension.key for dimension in words.space)):
        # Options of a part that another word chooses are checked when it is chosen.
        if key not in known and key.partition(".")[0] not in {
            name.partition(".")[0] for name in keys(task) if "." in name
        }:
            raise UnknownName("key", key, known)
    seen: dict[str, str] = {}
    for key in (*words.values, *words.sweeps, *(dimension.key for dimension in words.space)):
        if _full(key, task) in seen:
            raise RequestError(f"{key} and {seen[_full(key, task)]} are the same key; give one of them")
        seen[_full(key, task)] = key


def _experiment(words: Words, task: Task) -> dict[str, tuple[JSON, ...]]:
    """The grid: the experiment's axes, those that words give instead, and theirs."""
    name = words.values.get("experiment", task.experiment)
    if name and name not in task.experiments:
        raise UnknownName(f"experiment of {task.name}", str(name), task.experiments)
    axes: dict[str, tuple[JSON, ...]] = dict(task.experiments[name]) if name else {}
    sweeps = {key: values for key, values in words.sweeps.items() if key not in _OWN.union(_SEVERAL)}
    for key in sweeps:
        head = _full(key, task).partition(".")[0]
        if head in _BELOW:
            raise RequestError(
                f"{key} is no axis: explanations and metrics are labels below a configuration and share its training; "
                "give each variant a label of its own: attributions.mine=NAME attributions.mine.OPTION=VALUE"
            )
    given = {_full(key, task) for key in (*words.values, *words.sweeps, *(one.key for one in words.space))}
    return {**{key: values for key, values in axes.items() if _full(key, task) not in given}, **sweeps}


def _selected(task: Task, labels: tuple[JSON, ...]) -> Task:
    """Keep some explanations; a name that is no label adds the attribution with its defaults."""
    if not labels:
        return task
    if labels == ("none",):
        return dataclasses.replace(task, explanations={})
    for label in labels:
        if not isinstance(label, str):
            raise OutOfRange(f"attribution takes names, got {label!r}")
        if label not in task.explanations:
            task = override(task, f"attributions.{label}", label)
    return dataclasses.replace(task, explanations={str(label): task.explanations[str(label)] for label in labels})
