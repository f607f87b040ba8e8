"""The specification of a study, and the one road from text to it.

A :class:`Task` is a frozen value whose parts are ``functools.partial`` of
registered functions. :func:`describe` turns it into plain JSON, :func:`restore`
turns JSON back (on a worker, without importing the task's module), and
:func:`override` gives a changed copy or an error that says what must hold.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Annotated, Any

from annotated_types import Ge

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.hypotheses import Hypothesis, Published
from harness.core.identity import identify
from harness.core.registry import KINDS, Registry
from harness.core.space import Dimension
from harness.core.types import JSON, Source

__all__ = [
    "Configuration",
    "Component",
    "SUPPLIED",
    "Task",
    "allowed",
    "checked",
    "describe",
    "describe_part",
    "keys",
    "modules_of",
    "narrowed",
    "override",
    "preset",
    "restore",
]

Component = partial[Any]

SUPPLIED = ("image_shape", "roi_shape", "roi_size", "boxes")
"""Keyword parameters of model builders that the cohort settles, not the user."""

_SINGLE = ("phantom", "cohort", "outcome", "view", "split", "model", "recipe", "postprocessing")
_LABELLED = {"attributions": "attribution", "metrics": "metric"}
_SCALARS: Mapping[str, Any] = {
    "objective": str,
    "explanation_objective": str,
    "phantom_subjects": Annotated[int, Ge(1)],
    "phantom_seed": Annotated[int, Ge(0)],
}


@dataclass(frozen=True)
class Task:
    """One study, declared.

    Parameters
    ----------
    name : what the user types
    version : raised when the meaning of the task changes; enters every identity
    question : what the study asks, one sentence
    source : the paper
    phantom : generates one subject with a known truth, used when no data are given
    phantom_subjects : how many
    phantom_seed : seed of the generated cohort, the same for all runs
    cohort : turns a folder into a :class:`~harness.core.types.Cohort`
    outcome : gives each sample the numbers to predict; ``None`` if a mask is what is predicted
    view : what the network sees of a sample and what it should say
    split : samples → folds
    model : builds the network
    recipe : how it is trained
    attributions : label → explanation method
    postprocessing : what is done to each subject's map; ``None`` leaves it as it is
    metrics : label → metric (of a subject, of an explanation, or pooled)
    objective : label of the metric that ranks configurations
    explanation_objective : label of the metric that ranks explanations
    axes : short names of keys, e.g. ``sequences`` for ``view.channels``
    profiles : name → overrides; ``quick`` is the default
    data_profiles : name → further overrides when the user brings data
    presets : condition → overrides where it holds, unless the user gives the key.
        A condition is words that must all be true, of the profile, the experiment
        and the parts: ``"profile=paper experiment=noise model=cnn"``
    experiments : name → axes, the published grids
    experiment : the one that runs when no axis is given
    spaces : name → search space
    hypotheses : what the paper says of its configurations, to be tested
    published : a table of the paper, to stand beside ours
    regional : labels of metrics that are also computed in each region
    columns : axes that every row of the leaderboard names, swept or not
    problem : axes that pose the problem (noise, score, label); the others answer it.
        Ranks and comparisons hold within one problem. See :meth:`poses`
    shown : metrics that the console shows, in order
    """

    name: str
    version: int
    question: str
    source: Source
    phantom: Component
    cohort: Component
    view: Component
    split: Component
    model: Component
    recipe: Component
    attributions: Mapping[str, Component]
    metrics: Mapping[str, Component]
    objective: str
    explanation_objective: str
    outcome: Component | None = None
    postprocessing: Component | None = None
    phantom_subjects: int = 6
    phantom_seed: int = 0
    axes: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    data_profiles: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    experiments: Mapping[str, Mapping[str, tuple[JSON, ...]]] = field(default_factory=dict)
    experiment: str = ""
    spaces: Mapping[str, tuple[Dimension, ...]] = field(default_factory=dict)
    hypotheses: tuple[Hypothesis, ...] = ()
    published: Published | None = None
    regional: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("model",)
    problem: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, objective in (("objective", self.objective), ("explanation_objective", self.explanation_objective)):
            if objective not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (its {name})", objective, self.metrics)
            facts = KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[objective].func)).facts
            explains = name == "explanation_objective"
            if facts["direction"] not in ("higher", "lower") or (facts["level"] == "explanation") != explains:
                raise OutOfRange(
                    f"{name} must be a metric of {'explanations' if explains else 'predictions'} of which higher or "
                    f"lower is better, got {objective} ({facts['level']}, {facts['direction']} is better)"
                )
        claimed = [ordering.metric for ordering in self.hypotheses]
        for metric in (*claimed, *(self.published.metrics if self.published else ())):
            if metric not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (in a claim of its paper)", metric, self.metrics)
        metrics = KINDS["metric"]
        for label, part in self.metrics.items():
            for needed in metrics.get(metrics.name_of(part.func)).facts.get("needs", ()):
                if needed not in self.metrics:
                    raise UnknownName(f"metric of task {self.name} (which {label} pools)", needed, self.metrics)

        for name in self.problem:
            if self.axes.get(name, name).partition(".")[0] not in (*_SINGLE, *_SCALARS):
                raise UnknownName(f"axis of task {self.name} (in what poses its problem)", name, self.axes)

    def poses(self, axis: str) -> bool:
        """Whether an axis poses the problem; short names and full keys are the same axis."""
        return self.axes.get(axis, axis) in {self.axes.get(name, name) for name in self.problem}


@dataclass(frozen=True)
class Configuration:
    """One point of the grid: what determines a training, as plain JSON.

    Parameters
    ----------
    task : ``describe(task)`` after all overrides
    axes : the labels by which a person tells this point from its neighbours
    profile : ``quick`` or ``paper``
    fingerprint : of the images and masks that this configuration reads
    """

    task: JSON
    axes: Mapping[str, JSON]
    profile: str
    fingerprint: str

    @property
    def id(self) -> str:
        """Identity; attributions and what is done to their maps, metrics, labels and objectives are not part of it."""
        # A searched row is not the plain one: its folds train with values of their own.
        searched = {key: self.task[key] for key in ("searched", "search") if key in self.task}
        determining = {key: self.task[key] for key in _determining if key in self.task}
        return identify({**determining, **searched, "cohort_fingerprint": self.fingerprint})


_determining = ("name", "version", "outcome", "view", "split", "model", "recipe")


def describe(task: Task) -> dict[str, JSON]:
    """The task as plain JSON, every option with its value, defaults included."""
    return {
        "name": task.name,
        "version": task.version,
        "question": task.question,
        "source": dataclasses.asdict(task.source),
        **{name: getattr(task, name) for name in _SCALARS},
        "regional": list(task.regional),
        "columns": list(task.columns),
        "axes": dict(task.axes),
        "problem": list(task.problem),
        "shown": list(task.shown),
        **{kind: describe_part(KINDS[kind], part) for kind, part in _single(task).items()},
        **{
            many: {label: describe_part(KINDS[kind], part) for label, part in getattr(task, many).items()}
            for many, kind in _LABELLED.items()
        },
    }


def restore(description: Mapping[str, JSON]) -> Task:
    """The inverse of :func:`describe`; looks parts up by name, imports no task."""

    def part(kind: str, described: Mapping[str, JSON]) -> Component:
        options = {key: value for key, value in described.items() if key != "use"}
        function = KINDS[kind].get(described["use"]).function
        return partial(function, **{key: _typed(function, key, value, key) for key, value in options.items()})

    more: dict[str, Any] = {name: description[name] for name in _SCALARS}
    more |= {kind: part(kind, description[kind]) for kind in _SINGLE if kind in description}
    for many, kind in _LABELLED.items():
        more[many] = {label: part(kind, described) for label, described in description[many].items()}
    return Task(
        name=description["name"],
        version=description["version"],
        question=description["question"],
        source=Source(**description["source"]),
        regional=tuple(description["regional"]),
        columns=tuple(description["columns"]),
        axes=description["axes"],
        problem=tuple(description["problem"]),
        shown=tuple(description["shown"]),
        **more,
    )


def describe_part(registry: Registry, part: Component) -> dict[str, JSON]:
    """One part as JSON: ``{"use": name, option: value, …}``."""
    options = {name: parameter.default for name, parameter in _options(part.func).items()}
    name = registry.name_of(part.func)
    if part.args:
        raise RequestError(f"options of {registry.kind} {name} must be given by name, got {part.args!r} by position")
    unknown = set(part.keywords) - set(options)
    if unknown:
        raise UnknownName(f"option of {registry.kind} {name}", sorted(unknown)[0], options)
    # As its type has it: 3 and 3.0 are one value of a float, and must be one configuration.
    values = {key: _typed(part.func, key, value, key) for key, value in {**options, **part.keywords}.items()}
    return {"use": name, **{key: _json(value) for key, value in values.items()}}


def override(task: Task, key: str, value: JSON) -> Task:
    """A copy of the task with one thing changed.

    Parameters
    ----------
    key : a short name from ``task.axes``, a part (``model``), an option
        (``recipe.lr``), or an option below a label (``metrics.dice.…``)
    value : plain value; for a part the name of another one, which starts with
        its own defaults

    Raises
    ------
    UnknownName
        No such key, part or option.
    OutOfRange
        The value breaks the type or the bound that the option declares.
    """
    path = task.axes.get(key, key)
    head, _, rest = path.partition(".")
    if head in _SCALARS and not rest:
        return _replaced(task, head, checked(_SCALARS[head], value, key))
    if head in _SINGLE:
        return _replaced(task, head, _override_part(head, getattr(task, head), rest, value, key))
    if head in _LABELLED and rest:
        parts = dict(getattr(task, head))
        label, option = _label_and_option(rest, parts)
        if option and label not in parts:
            raise UnknownName(f"label in {head}", label, parts)
        # A label that does not exist yet adds a part: metrics.mine=dice
        parts[label] = _override_part(_LABELLED[head], parts.get(label), option, value, key)
        return _replaced(task, head, parts)
    raise UnknownName("key", key, keys(task))


def preset(task: Task, *, but: Iterable[str] = ()) -> Task:
    """The task with its presets applied whose conditions hold.

    Parameters
    ----------
    task : whose presets name parts alone (see :func:`narrowed`)
    but : full keys that are given otherwise
    """
    kept = set(but)
    for condition, values in task.presets.items():
        if all(_holds(word, task) for word in condition.split()):
            for key, value in values.items():
                if task.axes.get(key, key) not in kept:
                    task = override(task, key, value)
    return task


def narrowed(task: Task, **facts: str) -> Task:
    """The task with those presets alone that can hold where these facts are true.

    Parameters
    ----------
    facts : ``profile`` and ``experiment`` of a run
    """
    presets: dict[str, dict[str, JSON]] = {}
    for condition, values in task.presets.items():
        words = dict(word.split("=", 1) for word in condition.split())
        if all(facts[key] == words[key] for key in words if key in facts):
            rest = " ".join(f"{key}={value}" for key, value in words.items() if key not in facts)
            presets[rest] = {**presets.get(rest, {}), **values}
    return dataclasses.replace(task, presets=presets)


def _holds(word: str, task: Task) -> bool:
    kind, _, name = word.partition("=")
    part = _single(task).get(kind)
    return part is not None and KINDS[kind].name_of(part.func) == name


def _single(task: Task) -> dict[str, Component]:
    """The parts of which a task has one each, without those that it does not have."""
    return {kind: part for kind in _SINGLE if (part := getattr(task, kind)) is not None}


def keys(task: Task) -> list[str]:
    """Every key that :func:`override` takes for this task."""
    found = [*task.axes, *_SCALARS]
    for kind, part in _single(task).items():
        found += [kind, *(f"{kind}.{option}" for option in _options(part.func))]
    for many in _LABELLED:
        for label, part in getattr(task, many).items():
            found += [f"{many}.{label}", *(f"{many}.{label}.{option}" for option in _options(part.func))]
    return sorted(set(found))


def allowed(part: Component) -> Mapping[str, str]:
    """Options of a part → the text of their type and bound, for ``describe``."""
    hints = _hints(part.func)
    return {name: _relation(hints.get(name, Any), name) for name in _options(part.func)}


def modules_of(*parts: Component) -> tuple[str, ...]:
    """Modules in which parts are defined, for a code digest."""
    return tuple(sorted({inspect.unwrap(part.func).__module__ for part in parts}))


def _replaced(task: Task, field_name: str, value: Any) -> Task:
    changes: dict[str, Any] = {field_name: value}
    return dataclasses.replace(task, **changes)


def _label_and_option(rest: str, labels: Iterable[str]) -> tuple[str, str]:
    """``dice.tolerance_mm`` → label and option; a label may hold dots itself (``sensitivity_1.5mm``)."""
    known = [label for label in labels if rest == label or rest.startswith(f"{label}.")]
    label = max(known, key=len) if known else rest.partition(".")[0]
    return label, rest[len(label) + 1 :]


def _override_part(kind: str, part: Component | None, option: str, value: JSON, key: str) -> Component:
    registry = KINDS[kind]
    if not option:
        if not isinstance(value, str):
            raise OutOfRange(f"{key} must be the name of a {kind}, got {value!r}; one of {', '.join(registry.names())}")
        function = registry.get(value).function
        return part if part is not None and part.func is function else partial(function)
    if part is None:
        raise OutOfRange(f"{key} needs a {kind}, and this task has none; give it one: {kind}=NAME")
    known = _options(part.func)
    if option not in known:
        raise UnknownName(f"option of {kind} {registry.name_of(part.func)}", option, known)
    return partial(part.func, **{**part.keywords, option: _typed(part.func, option, value, key)})


@cache
def _options(function: Any) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters with a default: what a user may set."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is not parameter.empty
        and parameter.name not in SUPPLIED
    }


@cache
def _hints(function: Any) -> dict[str, Any]:
    return typing.get_type_hints(inspect.unwrap(function), include_extras=True)


def _typed(function: Any, option: str, value: JSON, key: str) -> Any:
    return checked(_hints(function).get(option, Any), value, key)


def checked(hint: Any, value: JSON, key: str) -> Any:
    """A value as the type that a hint declares.

    Raises
    ------
    OutOfRange
        With the relation that must hold and what came.
    """
    # pydantic is slow to import and needed only where a value is checked.
    from pydantic import ValidationError

    try:
        found = _adapter(hint).validate_python(value)
        why = "true and false are no numbers" if _counted(value, found) else ""
    except ValidationError as error:
        why = "; ".join(sorted({problem["msg"] for problem in error.errors()}))
    if why:
        raise OutOfRange(f"`{_relation(hint, key)}` must hold for {key}, got {value!r} ({why})")
    return found


def _counted(value: JSON, found: Any) -> bool:
    """Whether a truth value became a number, as Python's own conversion would have it."""
    if isinstance(value, bool):
        return isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(value, list | tuple) and isinstance(found, list | tuple):
        return any(map(_counted, value, found))
    return False


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # An identity is JSON, which has neither NaN nor infinity.
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def _relation(hint: Any, key: str) -> str:
    """``0 < recipe.lr`` for an annotated bound, else ``recipe.lr: type``."""
    if typing.get_origin(hint) is typing.Annotated:
        plain, *bounds = typing.get_args(hint)
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "is a multiple of"}
        found = [
            f"{key} {sign} {getattr(bound, name)}"
            for bound in bounds
            for name, sign in signs.items()
            if getattr(bound, name, None) is not None
        ]
        return f"{_name(plain)}, {' and '.join(found)}" if found else _name(plain)
    return f"{key}: {_name(hint)}"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _json(value: Any) -> JSON:
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise RequestError(f"an option of a part must be plain JSON, got {type(value).__name__}: {value!r}")
