"""Overrides: a changed copy of a task, by the keys that users type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

from harness.core.errors import OutOfRange, UnknownName
from harness.core.explanations import FIELDS, Explanation
from harness.core.registry import KINDS
from harness.core.task import LABELLED, SCALARS, SINGLE, Component, Task, single_components
from harness.core.types import JSON
from harness.core.values import checked, hints_of, option_value, options_of

__all__ = ["component_of", "keys", "narrowed", "override", "preset"]


def override(task: Task, key: str, value: JSON) -> Task:
    """A copy of the task with one thing changed.

    Parameters
    ----------
    key : a short name from ``task.axes``, a component (``model``), an option
        (``recipe.lr``), or an option below a label (``metrics.dice.…``)
    value : plain value; for a component the name of another one, which starts with
        its own defaults

    Raises
    ------
    UnknownName
        No such key, component or option.
    OutOfRange
        The value breaks the type or the bound that the option declares.
    """
    path = task.axes.get(key, key)
    head, _, rest = path.partition(".")
    if head in SCALARS and not rest:
        return _replaced(task, head, checked(SCALARS[head], value, key))
    if head in SINGLE:
        return _replaced(task, head, _override_component(head, getattr(task, head), rest, value, key))
    if head == "explanations" and rest:
        return _replaced(task, head, _override_explanation(task, rest, value, key))
    if head in LABELLED and rest:
        components = dict(getattr(task, head))
        label, option = _label_and_option(rest, components)
        if option and label not in components:
            raise UnknownName(f"label in {head}", label, components)
        # A label that does not exist yet adds a component: metrics.mine=dice
        made = _override_component(LABELLED[head], components.get(label), option, value, key)
        if head == "attributions":
            return _replaced(task, "explanations", {**task.explanations, label: _with_attribution(task, label, made)})
        return _replaced(task, head, {**components, label: made})
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
    part = single_components(task).get(kind)
    return part is not None and KINDS[kind].name_of(part.func) == name


def keys(task: Task) -> list[str]:
    """Every key that :func:`override` takes for this task."""
    found = [*task.axes, *SCALARS]
    for kind, part in single_components(task).items():
        found += [kind, *(f"{kind}.{option}" for option in options_of(part.func))]
    for many in LABELLED:
        for label, part in getattr(task, many).items():
            found += [f"{many}.{label}", *(f"{many}.{label}.{option}" for option in options_of(part.func))]
    found += [f"explanations.{label}.{name}" for label in task.explanations for name in FIELDS]
    return sorted(set(found))


def component_of(task: Task, key: str) -> tuple[str, str]:
    """The component that a key addresses, and its option.

    Returns
    -------
    (str, str)
        ``("model", "width")``, ``("targets.scores", "noise")``; the option is empty if
        the key names a component or a plain value of the task
    """
    path = task.axes.get(key, key)
    head, _, rest = path.partition(".")
    if head in LABELLED and rest:
        label, option = _label_and_option(rest, getattr(task, head))
        return f"{head}.{label}", option
    return head, rest


def _with_attribution(task: Task, label: str, attribution: Component) -> Component | Explanation:
    # A new label is explained like the task's first one: of the same scalar, kept the same way.
    known = task.explanations.get(label, next(iter(task.explanations.values()), None))
    if isinstance(known, Explanation):
        return dataclasses.replace(known, attribution=attribution)
    return attribution


def _override_explanation(task: Task, rest: str, value: JSON, key: str) -> dict[str, Component | Explanation]:
    """All explanations with one field of one of them changed."""
    label, name = _label_and_option(rest, task.explanations)
    if label not in task.explanations:
        raise UnknownName("label in explanations", label, task.explanations)
    if name not in FIELDS:
        raise UnknownName(f"field of explanation {label}", name, FIELDS)
    known = task.explanations[label]
    whole = known if isinstance(known, Explanation) else Explanation(known)
    changed: dict[str, Any] = {name: checked(hints_of(Explanation)[name], value, key)}
    return {**task.explanations, label: dataclasses.replace(whole, **changed)}


def _replaced(task: Task, field_name: str, value: Any) -> Task:
    changes: dict[str, Any] = {field_name: value}
    return dataclasses.replace(task, **changes)


def _label_and_option(rest: str, labels: Iterable[str]) -> tuple[str, str]:
    """``dice.tolerance_mm`` → label and option; a label may hold dots itself (``sensitivity_1.5mm``)."""
    known = [label for label in labels if rest == label or rest.startswith(f"{label}.")]
    label = max(known, key=len) if known else rest.partition(".")[0]
    return label, rest[len(label) + 1 :]


def _override_component(kind: str, part: Component | None, option: str, value: JSON, key: str) -> Component:
    registry = KINDS[kind]
    if not option:
        if not isinstance(value, str):
            raise OutOfRange(f"{key} must be the name of a {kind}, got {value!r}; one of {', '.join(registry.names())}")
        function = registry.get(value).function
        return part if part is not None and part.func is function else partial(function)
    if part is None:
        raise OutOfRange(f"{key} needs a {kind}, and this task has none; give it one: {kind}=NAME")
    known = options_of(part.func)
    if option not in known:
        raise UnknownName(f"option of {kind} {registry.name_of(part.func)}", option, known)
    return partial(part.func, **{**part.keywords, option: option_value(part.func, option, value, key)})
