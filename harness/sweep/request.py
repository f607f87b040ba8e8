"""Resolve overrides into a request: profile, experiment, single values, axes and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

from annotated_types import Ge

from harness.core.errors import OutOfRange, RequestError, UnknownName, raise_together
from harness.core.overrides import component_of, keys, narrowed, override, value_of
from harness.core.passwords import without_password
from harness.core.registry import GENERATED, MODELS
from harness.core.settings import RunSettings, settings_from
from harness.core.space import Axis, Choice, Dimension, Grid, grids_of, text_of
from harness.core.task import Task, describe
from harness.core.types import JSON
from harness.core.values import checked
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import Overrides
from harness.sweep.grid import at, idle_error, idle_options, points, without_effect
from harness.sweep.naming import full_key, run_name
from harness.sweep.plan import Request
from harness.tuning.spaces import fit_space

__all__ = ["RUN_KEYS", "resolve", "settings_of"]

_SETTINGS = {field.name for field in dataclasses.fields(RunSettings)}
# Keys of the request itself: neither settings nor keys of the task.
_OWN = {"task", "profile", "experiment", "seed", "fold", "attribution", "search", "space"}
RUN_KEYS = frozenset(_SETTINGS | _OWN)
"""Keys that every run accepts; all other keys belong to the task."""
# Keys below a configuration: sweeping them would train the same network again.
_BELOW = ("attributions", "explanations", "metrics", "objective", "explanation_objective")
# Settings with several values.
_SEVERAL = ("exclude", "search_subjects")
_SEARCHES = ("optuna",)


def settings_of(overrides: Overrides) -> RunSettings:
    """The settings among the overrides."""
    several = [key for key in overrides.sweeps if key in _SETTINGS.difference(_SEVERAL)]
    if several:
        values = ", ".join(map(str, overrides.sweeps[several[0]]))
        raise RequestError(f"{several[0]} takes one value and cannot be swept; got {values}")
    given = {key: value for key, value in overrides.values.items() if key in _SETTINGS}
    for key in _SEVERAL:
        if key in overrides.sweeps or key in given:
            given[key] = tuple(str(one) for one in overrides.several(key))
    return settings_from(given)


def resolve(overrides: Overrides, *, texts: tuple[str, ...] = ()) -> Request:
    """Resolve and check overrides.

    Parameters
    ----------
    overrides : parsed overrides
    texts : the overrides as typed, for the commands in the leaderboard

    Raises
    ------
    RequestError
        If an override is wrong, or several contradict each other.
    """
    texts = tuple(map(without_password, texts))  # they are shown in tables, report and MLflow
    if "task" not in overrides.values:
        given = overrides.sweeps.get("task")
        came = ", ".join(map(str, given)) if given else "none"
        raise RequestError(
            f"exactly one task must be given, got {came}; set task=NAME. Tasks: {', '.join(task_names())}"
        )
    task = load_task(str(overrides.values["task"]))
    overrides, texts = _without_synonyms(overrides, texts, task)
    profile = str(overrides.values.get("profile", "quick"))
    faults: list[RequestError] = []
    if profile not in task.profiles:
        faults.append(UnknownName(f"profile of {task.name}", profile, task.profiles))
    if "profile" in overrides.sweeps:
        came = ", ".join(map(str, overrides.sweeps["profile"]))
        faults.append(RequestError(f"profile takes one value and cannot be swept; got {came}"))
    faults += _unknown_keys(overrides, task)
    try:
        settings = settings_of(overrides)
    except RequestError as error:
        faults.append(error)
    raise_together(faults)
    seeds: tuple[JSON, ...] = (0,)
    for key, value in _profile(task, profile, settings).items():
        if key == "seed":
            seeds = tuple(value)
        else:
            task = override(task, key, value)
    experiments = _experiments(overrides, task)
    grids, without = _grids(overrides, task, experiments, settings)
    task = _of_experiments(
        task, experiments, overrides, profile=profile, subjects="given" if settings.data else "generated"
    )
    values = {key: value for key, value in overrides.values.items() if key not in _SETTINGS | _OWN}
    swept = {full_key(key, task) for axes in grids for key in axes}
    for key in [key for key in values if full_key(key, task).partition(".")[0] in swept]:
        value = values.pop(key)  # an option of a swept component is set wherever that component is chosen
        grids = [{**axes, key: (value,)} for axes in grids]
    task = _overridden(task, values, overrides.several("attribution"))
    grids, remarks = _possible(task, overrides, grids)
    reached = [at(task, point) for point in points(task, grids)]  # raises for a wrong value before anything starts
    task = _with_objectives(task, reached)
    idle = frozenset.intersection(*map(idle_options, reached))
    if unused := [key for key in values if full_key(key, task) in idle]:
        raise idle_error(unused)
    # If a component is swept, the space is checked at the first point here, and at every point when planning.
    swept = {full_key(key, task) for axes in grids for key in axes}
    search, space = _search(overrides, reached[0], settings, swept)
    typed = {text.partition("=")[0] for text in texts}
    return Request(
        task=task,
        grids=tuple(grids),
        seeds=_several_checked("seed", overrides.several("seed", seeds)),
        folds=_several_checked("fold", overrides.several("fold")) if overrides.has("fold") else None,
        profile=profile,
        settings=settings,
        shared=(
            *(
                text
                for text in texts
                if text.partition("=")[0] not in {"experiment", *(key for axes in grids for key in axes)}
            ),
            # Overrides from Python have no text for dimensions, but the command of a row must contain them.
            *(_text(one) for one in overrides.space if texts and one.key not in typed),
        ),
        space=space,
        search=search,
        name=run_name(overrides, task, settings, profile=profile, experiment="+".join(experiments), seeds=seeds),
        typed=texts,
        without=without,
        remarks=(*_partly(overrides, task, experiments), *remarks),
    )


def _without_synonyms(overrides: Overrides, texts: tuple[str, ...], task: Task) -> tuple[Overrides, tuple[str, ...]]:
    """Overrides and their texts, in which other words for an experiment are replaced by its name.

    Raises
    ------
    RequestError
        If such a word has another value or several, or an experiment is named as well.
    """
    known = {word.partition("=")[0] for word in task.synonyms}
    used = [key for key in (*overrides.values, *overrides.sweeps) if key in known]
    if not used:
        return overrides, texts
    given = [f"{key}={','.join(map(str, overrides.several(key)))}" for key in used]
    if len(given) > 1 or given[0] not in task.synonyms or overrides.has("experiment"):
        means = "; ".join(f"{word} is experiment={name}" for word, name in task.synonyms.items())
        also = ["experiment=…"] if overrides.has("experiment") else []
        raise RequestError(f"one experiment must be named in one way, got {' '.join([*given, *also])}. {means}")
    name = task.synonyms[given[0]]
    values = {key: value for key, value in overrides.values.items() if key != used[0]}
    replaced = tuple(f"experiment={name}" if text.partition("=")[0] == used[0] else text for text in texts)
    return dataclasses.replace(overrides, values={**values, "experiment": name}), replaced


def _with_objectives(task: Task, reached: Sequence[Task]) -> Task:
    """The task with the objectives of all grid points, which presets may set.

    Raises
    ------
    RequestError
        If grid points differ in an objective, so that they cannot be ranked together.
    """
    for key in ("objective", "explanation_objective"):
        found = sorted({str(getattr(one, key)) for one in reached})
        if len(found) > 1:
            raise RequestError(f"one run has one {key}, but its configurations have {', '.join(found)}; set {key}=")
        task = override(task, key, found[0])
    return task


def _overridden(task: Task, values: Mapping[str, JSON], attributions: tuple[JSON, ...]) -> Task:
    """The task with single values applied: components and labels first, then their options, in any order given."""
    ordered = sorted(values, key=lambda key: full_key(key, task).count("."))
    components = [key for key in ordered if full_key(key, task).count(".") < 2]
    task = _selected(_with(task, components, values), attributions)
    return _with(task, ordered[len(components) :], values)


def _with(task: Task, keys_: Sequence[str], values: Mapping[str, JSON]) -> Task:
    """The task with some keys overridden; all faults are raised together."""
    faults: list[RequestError] = []
    for key in keys_:
        try:
            task = override(task, key, values[key])
        except RequestError as error:
            faults.append(error)
    raise_together(faults)
    return task


def _free(task: Task, overrides: Overrides) -> Task:
    """The task without presets of keys that are overridden."""
    given = _given(overrides, task)
    presets = {
        condition: {key: value for key, value in values.items() if full_key(key, task) not in given}
        for condition, values in task.presets.items()
    }
    return dataclasses.replace(task, presets=presets)


def _several_checked(key: str, values: tuple[JSON, ...]) -> tuple[int, ...]:
    """The values as distinct non-negative integers."""
    return Axis(key, tuple(checked(Annotated[int, Ge(0)], value, key) for value in values)).values


def _profile(task: Task, profile: str, settings: RunSettings) -> dict[str, JSON]:
    """Overrides of a profile, including those that apply to a user's data."""
    more = task.data_profiles.get(profile, {}) if settings.data else {}
    return {**task.profiles[profile], **more}


def defaults_for_data(request: Request) -> str:
    """Options whose defaults are different for a user's data, with their values; empty without such data.

    Models that are left out follow, because they know the truth of generated subjects.
    """
    task = request.task
    changed = task.data_profiles.get(request.profile, {}) if request.settings.data else {}
    described = describe(task)
    own = [key for key in changed if key in keys(task)]  # other cohorts have other options
    values = {key: value_of(described, task, key) for key in own}
    without = [f"without {one} (it knows the truth of generated subjects)" for one in request.without]
    return " ".join([*(f"{key}={text_of(value)}" for key, value in values.items()), *without])


def search_of(overrides: Overrides, task: Task) -> tuple[Dimension, ...]:
    """The search space: a named space of the task, and the dimensions among the overrides.

    Notes
    -----
    Overrides take precedence: a dimension given as an override replaces that of the
    named space, and a key with a single value or a sweep is not searched.

    Raises
    ------
    UnknownName
        If the task has no space of this name, or no such option.
    RequestError
        If a dimension does not fit its option (see :func:`harness.tuning.spaces.fit_space`).
    """
    named = overrides.values.get("space")
    if named is not None and named not in task.spaces:
        raise UnknownName(f"search space of {task.name}", str(named), task.spaces)
    found = {full_key(one.key, task): one for one in (task.spaces[named] if named is not None else ())}
    given = {full_key(key, task) for key in (*overrides.values, *overrides.sweeps)}
    found = {key: one for key, one in found.items() if key not in given}
    found |= {full_key(one.key, task): one for one in overrides.space}
    dimensions = [dataclasses.replace(one, key=key) for key, one in found.items()]
    return fit_space(task, dimensions) if dimensions else ()


def _search(
    overrides: Overrides, task: Task, settings: RunSettings, swept: Collection[str]
) -> tuple[str, tuple[Dimension, ...]]:
    """The kind of search and its space; both or neither."""
    if "search" in overrides.sweeps or "space" in overrides.sweeps:
        raise RequestError("search and space take one value each and cannot be swept; e.g. search=optuna space=recipe")
    search = str(overrides.values.get("search", ""))
    if search and search not in _SEARCHES:
        raise UnknownName("search", search, _SEARCHES)
    space = search_of(overrides, task)
    asked = bool(overrides.space) or "space" in overrides.values
    if asked and not search:
        keys_ = ", ".join(one.key for one in space) or str(overrides.values.get("space"))
        raise RequestError(f"{keys_} has a search space, but no search was requested; add search=optuna")
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
    both = {*swept} & {one.key for one in space}
    if both:
        raise RequestError(
            f"{sorted(both)[0]} is both swept and searched; every value of a sweep is run, so remove one of them"
        )
    return search, space


def _text(dimension: Dimension) -> str:
    """A dimension as it is typed on the command line."""
    if isinstance(dimension, Choice):
        return f"{dimension.key}=tag(search,choice({','.join(map(text_of, dimension.values))}))"
    low, high = (int(end) if dimension.integer else end for end in (dimension.low, dimension.high))
    inside = f"interval({low},{high})"
    return f"{dimension.key}={f'tag(log,{inside})' if dimension.log else inside}"


def _unknown_keys(overrides: Overrides, task: Task) -> list[RequestError]:
    """Errors for keys that do not exist, and for keys that are given under two names."""
    known, heads = set(keys(task)) | _SETTINGS | _OWN, {key.partition(".")[0] for key in keys(task) if "." in key}
    faults: list[RequestError] = []
    seen: dict[str, str] = {}
    for key in (*overrides.values, *overrides.sweeps, *(dimension.key for dimension in overrides.space)):
        # Options of a component that another override chooses are checked when it is chosen.
        if key not in known and key.partition(".")[0] not in heads:
            faults.append(UnknownName("key", key, known))
        elif full_key(key, task) in seen:
            faults.append(RequestError(f"{key} and {seen[full_key(key, task)]} are the same key; give one of them"))
        seen.setdefault(full_key(key, task), key)
    return faults


def _experiments(overrides: Overrides, task: Task) -> tuple[str, ...]:
    """Names of the experiments, whose grids are united; empty for a task without experiments."""
    names = overrides.several("experiment", (task.experiment,) if task.experiment else ())
    for name in names:
        if name not in task.experiments:
            raise UnknownName(f"experiment of {task.name}", str(name), task.experiments)
    return Axis("experiment", names).values if names else ()


def _of_experiments(
    task: Task, experiments: Sequence[str], overrides: Overrides, *, profile: str, subjects: str
) -> Task:
    """The task with the presets of its experiments.

    Raises
    ------
    RequestError
        If experiments that are united set different options.
    """
    found = {
        name: _free(narrowed(task, profile=profile, experiment=name, subjects=subjects), overrides)
        for name in experiments or ("",)
    }
    first, *others = found
    for name in others:
        one, two = (_all_presets(found[key]) for key in (first, name))
        differing = sorted({key.rpartition(" ")[2] for key in one.keys() | two.keys() if one.get(key) != two.get(key)})
        if differing:
            raise RequestError(
                f"experiments {first} and {name} cannot be run together, because they set different values of "
                f"{', '.join(differing)}; set {differing[0]}= or run them one after the other"
            )
    return found[first]


def _all_presets(task: Task) -> dict[str, JSON]:
    """Values of all presets by condition and full key."""
    return {
        f"{condition} {full_key(key, task)}": value
        for condition, values in task.presets.items()
        for key, value in values.items()
    }


def _grids(
    overrides: Overrides, task: Task, experiments: Sequence[str], settings: RunSettings
) -> tuple[list[dict[str, tuple[JSON, ...]]], tuple[str, ...]]:
    """The grids of the experiments, in which overrides replace axes, and sweeps add them.

    The second value names the models of the experiments that are only for generated subjects, and left out.
    """
    sweeps = {key: values for key, values in overrides.sweeps.items() if key not in _OWN.union(_SEVERAL)}
    for key in sweeps:
        head = full_key(key, task).partition(".")[0]
        if head in _BELOW:
            raise RequestError(
                f"{key} cannot be swept: all explanations and metrics of a configuration share its training; "
                "add each variant under a new label: attributions.mine=NAME attributions.mine.OPTION=VALUE"
            )
    given, found, without = _given(overrides, task), [], dict[str, None]()
    for declared in _declared(task, experiments):
        axes = {key: values for key, values in declared.items() if full_key(key, task) not in given}
        models = [str(one) for one in axes.get("model", ())]
        left_out = [one for one in models if settings.data and MODELS.get(one).facts.get("oracle") == GENERATED]
        if rest := tuple(one for one in models if one not in left_out):
            axes["model"] = rest
            without |= dict.fromkeys(left_out)
        found.append({**axes, **sweeps})
    return found, tuple(without)


def _declared(task: Task, experiments: Sequence[str]) -> list[Grid]:
    """All grids of some experiments; one without axes if there are no experiments."""
    return [grid for name in experiments for grid in grids_of(task.experiments[name])] or [{}]


def _given(overrides: Overrides, task: Task) -> set[str]:
    """Full keys of all overrides."""
    return {
        full_key(key, task) for key in (*overrides.values, *overrides.sweeps, *(one.key for one in overrides.space))
    }


def _possible(
    task: Task, overrides: Overrides, grids: list[dict[str, tuple[JSON, ...]]]
) -> tuple[list[dict[str, tuple[JSON, ...]]], list[str]]:
    """Grids of a union without the axes that the components do not have that the user chose, and remarks on them."""
    if len(grids) == 1:
        return grids, []
    given, found, remarks = _given(overrides, task), [], dict[str, None]()
    for axes in grids:
        idle = [
            key
            for key in without_effect(task, axes)
            if full_key(key, task) not in given and component_of(task, key)[0] in given
        ]
        for key in idle:
            component = component_of(task, key)[0]
            chosen = ", ".join(map(str, overrides.several(component)))
            remarks[f"{key} is not varied, because {component}={chosen} has no such option"] = None
        found.append({key: values for key, values in axes.items() if key not in idle})
    return found, list(remarks)


def _partly(overrides: Overrides, task: Task, experiments: Sequence[str]) -> list[str]:
    """Remarks on overrides that are axes of some of the united grids, and also apply to the others."""
    declared = [{full_key(key, task) for key in axes} for axes in _declared(task, experiments)]
    found = []
    for key in (*overrides.values, *overrides.sweeps):
        count = sum(full_key(key, task) in axes for axes in declared)
        if 0 < count < len(declared):
            found.append(
                f"{key}= replaces an axis in {count} of the {len(declared)} grids of "
                f"experiment={','.join(experiments)}, and also applies to the others, which do not vary it"
            )
    return found


def _selected(task: Task, labels: tuple[JSON, ...]) -> Task:
    """Keep the listed explanations; the name of an attribution that is not a label adds it with its defaults."""
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
