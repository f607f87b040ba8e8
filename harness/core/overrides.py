"""Overrides: copies of a task with one value changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from harness.core.errors import OutOfRange, UnknownName
from harness.core.explanations import FIELDS, Explanation
from harness.core.registry import KINDS
from harness.core.space import text_of
from harness.core.task import LABELLED, SCALARS, SINGLE, Component, Task, describe, single_components
from harness.core.types import JSON
from harness.core.values import checked, hints_of, option_value, options_of, sweep_hint, typed

__all__ = ["component_of", "keys", "narrowed", "override", "preset", "value_of"]


def override(task: Task, key: str, value: JSON) -> Task:
    """Return a copy of the task with one value changed.

    Parameters
    ----------
    key : ``attribution``, a short name from ``task.axes``, a component (``model``), an option
        (``recipe.lr``), or an option of a labelled component (``metrics.dice.…``)
    value : plain value. For ``attribution``: labels of explanations to keep, joined by ``+``,
        or ``none``. For a component: the name of another component, whose options
        then have their defaults

    Raises
    ------
    UnknownName
        If there is no such key, component or option.
    OutOfRange
        If the value has the wrong type or violates a bound of the option.
    """
    path = task.axes.get(key, key)
    head, _, rest = path.partition(".")
    if path == "attribution":
        return _chosen(task, value)
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
        # A new label adds a component: metrics.mine=dice
        made = _override_component(LABELLED[head], components.get(label), option, value, key)
        if head == "attributions":
            return _replaced(task, "explanations", {**task.explanations, label: _with_attribution(task, label, made)})
        return _replaced(task, head, {**components, label: made})
    raise UnknownName("key", key, keys(task))


def _chosen(task: Task, labels: JSON) -> Task:
    """The task with some of its explanations, given by their labels joined by ``+``, or ``none``."""
    names = [] if labels == "none" else str(labels).split("+")
    for name in names:
        if name not in task.explanations:
            raise UnknownName(f"explanation of task {task.name}", name, task.explanations)
    return dataclasses.replace(task, explanations={name: task.explanations[name] for name in names})


def preset(task: Task, *, but: Iterable[str] = (), of_options: bool = False) -> Task:
    """Apply the presets whose conditions hold, in their order.

    Parameters
    ----------
    task : a task whose presets depend on components and their options only (see :func:`narrowed`)
    but : full keys to leave unchanged, because the user sets them
    of_options : apply the presets whose conditions name options, rather than the others; options
        must be set by then
    """
    kept = set(but)
    for condition, values in task.presets.items():
        clauses = condition.split()
        names_options = not all(clause.partition("=")[0] in SINGLE for clause in clauses)
        if names_options is of_options and all(_holds(clause, task) for clause in clauses):
            for key, value in values.items():
                if task.axes.get(key, key) not in kept:
                    task = override(task, key, value)
    return task


def narrowed(task: Task, **facts: str) -> Task:
    """Keep the presets that can apply to a run, and drop the facts from their conditions.

    Parameters
    ----------
    facts : ``profile``, ``experiment`` and ``subjects`` of the run
    """
    presets: dict[str, dict[str, JSON]] = {}
    for condition, values in task.presets.items():
        clauses = dict(clause.split("=", 1) for clause in condition.split())
        if all(facts[key] == clauses[key] for key in clauses if key in facts):
            rest = " ".join(f"{key}={value}" for key, value in clauses.items() if key not in facts)
            presets[rest] = {**presets.get(rest, {}), **values}
    return dataclasses.replace(task, presets=presets)


def _holds(clause: str, task: Task) -> bool:
    key, _, value = clause.partition("=")
    if key in SINGLE:
        component = single_components(task).get(key)
        return component is not None and KINDS[key].name_of(component.func) == value
    return task.axes.get(key, key) in keys(task) and text_of(value_of(describe(task), task, key)) == value


def keys(task: Task) -> list[str]:
    """All keys that :func:`override` accepts for this task."""
    found = [*task.axes, *SCALARS]
    for kind, component in single_components(task).items():
        found += [kind, *(f"{kind}.{option}" for option in options_of(component.func))]
    for many in LABELLED:
        for label, component in getattr(task, many).items():
            found += [f"{many}.{label}", *(f"{many}.{label}.{option}" for option in options_of(component.func))]
    found += [f"explanations.{label}.{name}" for label in task.explanations for name in FIELDS]
    return sorted(set(found))


def component_of(task: Task, key: str) -> tuple[str, str]:
    """Split a key into component and option.

    Returns
    -------
    (str, str)
        For example ``("model", "width")`` or ``("targets.scores", "noise")``. The option
        is empty if the key names a component or a plain value of the task.
    """
    path = task.axes.get(key, key)
    head, _, rest = path.partition(".")
    if head in LABELLED and rest:
        label, option = _label_and_option(rest, getattr(task, head))
        return f"{head}.{label}", option
    return head, rest


def value_of(described: Mapping[str, JSON], task: Task, key: str) -> JSON:
    """Value of a key in a described task (:func:`harness.core.task.describe`); for a component, its name.

    Parameters
    ----------
    described : the task as plain JSON
    task : the task, whose short names a key may use
    key : one of :func:`keys`, but no field of an explanation
    """
    component, option = component_of(task, key)
    head, _, label = component.partition(".")
    found = described[head][label] if label else described[head]
    return found[option or "use"] if isinstance(found, Mapping) else found


def _with_attribution(task: Task, label: str, attribution: Component) -> Component | Explanation:
    # A new label takes the other fields from the task's first explanation.
    known = task.explanations.get(label, next(iter(task.explanations.values()), None))
    if isinstance(known, Explanation):
        return dataclasses.replace(known, attribution=attribution)
    return attribution


def _override_explanation(task: Task, rest: str, value: JSON, key: str) -> dict[str, Component | Explanation]:
    """All explanations, with one field changed."""
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
    """Split ``dice.tolerance_mm`` into label and option; labels may contain dots (``sensitivity_1.5mm``)."""
    known = [label for label in labels if rest == label or rest.startswith(f"{label}.")]
    label = max(known, key=len) if known else rest.partition(".")[0]
    return label, rest[len(label) + 1 :]


def _override_component(kind: str, component: Component | None, option: str, value: JSON, key: str) -> Component:
    registry = KINDS[kind]
    if not option:
        if not isinstance(value, str):
            raise OutOfRange(
                f"{key} must be the name of a {kind}, got {value!r}{sweep_hint(key, value)}; one of "
                + ", ".join(registry.names())
            )
        function = registry.get(value).function
        return component if component is not None and component.func is function else partial(function)
    if component is None:
        raise OutOfRange(f"{key} needs a {kind}, but this task has none; set {kind}=NAME first")
    known = options_of(component.func)
    if option not in known:
        raise UnknownName(f"option of {kind} {registry.name_of(component.func)}", option, known)
    meant = typed(hints_of(component.func).get(option, Any), value)
    checked_value = option_value(component.func, option, meant, key)
    return partial(component.func, **{**component.keywords, option: checked_value})
