"""``harness describe``: a task or a component, with all options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from rich.console import Console

from harness.cli.console import show_table
from harness.core.docstrings import docstring_of
from harness.core.errors import UnknownName
from harness.core.options import Option, component_options, explanation_options, setting_options, task_options
from harness.core.registry import KINDS
from harness.core.space import Choice, Dimension, grids_of
from harness.core.task import LABELLED, Component, Task, describe, single_components
from harness.core.types import JSON

__all__ = ["describe_component", "describe_task"]

_HEADER = ["key", "value", "type", "meaning"]


def describe_component(kind: str, name: str, out: Console) -> None:
    """Show the documentation and the options of a component."""
    entry = KINDS[kind].get(name)
    component = Component(entry.function)
    documentation, options = docstring_of(entry.function), component_options(component)
    out.print(f"{kind} {entry.name}", style="bold")
    out.print(documentation.text)
    if entry.source:
        out.print(f"\nSource: {entry.source}")
    set_by_user = {option.name for option in options}
    given = [[name, meaning] for name, meaning in documentation.parameters.items() if name not in set_by_user]
    if given:
        show_table(out, ["name", "meaning"], given, "Supplied by the harness")
    if options:
        show_table(out, ["option", "default", "type", "meaning"], _rows("", options), "Options")


def describe_task(task: Task, style: str, out: Console) -> None:
    """Show a task with every key, its value, type and meaning.

    Parameters
    ----------
    task : the task
    style : ``text``, or ``json`` for the values only
    out : console to print to

    Raises
    ------
    UnknownName
        If ``style`` is neither of them.
    """
    if style not in ("json", "text"):
        raise UnknownName("format", style, ("json", "text"))
    if style == "json":
        print(json.dumps(describe(task), indent=1))
        return
    out.print(f"{task.name}: {task.question}", style="bold")
    out.print(str(task.source))
    _show_components(task, out)
    _show_explanations(task, out)
    for many in ("attributions", "metrics"):
        _show_labelled(task, many, out)
    show_table(out, ["short name", "key"], [[a, b] for a, b in task.axes.items()], "Short names")
    for title, values in (
        ("Profiles", task.profiles),
        ("Profiles with your own data (data=), in addition", task.data_profiles),
        ("Experiments", task.experiments),
    ):
        rows = [[name, "; and ".join(map(_assignments, grids_of(value)))] for name, value in values.items()]
        show_table(out, ["name", "sets"], rows, title)
    show_table(out, ["word", "means"], [[a, f"experiment={b}"] for a, b in task.synonyms.items()], "Other words")
    spaces = [[name, "; ".join(map(_dimension_text, space))] for name, space in task.spaces.items()]
    show_table(out, ["name", "dimensions"], spaces, "Search spaces (search=optuna space=NAME)")
    show_table(out, _HEADER, _rows("", setting_options()), "Settings of a run")


def _show_components(task: Task, out: Console) -> None:
    rows = _rows("", task_options(task))
    labelled = {f"targets.{label}": ("target", one) for label, one in task.targets.items()}
    single = {kind: (kind, one) for kind, one in single_components(task).items()}
    for key, (kind, component) in {**single, **labelled}.items():
        rows.append([key, *_use(kind, component)])
        rows += _rows(f"{key}.", component_options(component))
    show_table(out, _HEADER, rows, "Components and options")


def _show_explanations(task: Task, out: Console) -> None:
    """Show the values of each explanation, then the meaning of each field."""
    explained = {label: explanation_options(one) for label, one in task.explained.items()}
    fields = {option.name: option for options in explained.values() for option in options}
    rows = [[label, *(_shown(option.value) for option in options)] for label, options in explained.items()]
    show_table(out, ["label", *fields], rows, "Explanations")
    meanings = [[f"explanations.LABEL.{name}", option.type, option.meaning] for name, option in fields.items()]
    show_table(out, ["key", "type", "meaning"], meanings, "Options of explanations")


def _show_labelled(task: Task, many: str, out: Console) -> None:
    """Show labelled components with their values, then the meaning of each option, once per component."""
    kind = LABELLED[many]
    registry = KINDS[kind]
    components: Mapping[str, Component] = getattr(task, many)
    rows, options = [], {}
    for label, component in components.items():
        name, meaning = registry.name_of(component.func), _summary(component)
        values = component_options(component)
        rows.append([label, f"{name}({_assignments({one.name: one.value for one in values})})", meaning])
        options.update({(name, one.name): one for one in values})
    show_table(out, ["label", f"{kind} and options", "meaning"], rows, many.capitalize())
    meanings = [[name, option.name, option.type, option.meaning] for (name, _), option in options.items()]
    show_table(out, [kind, "option", "type", "meaning"], meanings, f"Options of {many} ({many}.LABEL.OPTION)")


def _use(kind: str, component: Component) -> list[str]:
    return [KINDS[kind].name_of(component.func), f"{kind} name", _summary(component)]


def _summary(component: Component) -> str:
    return docstring_of(component.func).text.partition("\n")[0]


def _rows(prefix: str, options: Iterable[Option]) -> list[list[str]]:
    return [[f"{prefix}{one.name}", _shown(one.value), one.type, one.meaning] for one in options]


def _assignments(values: Mapping[str, JSON]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in values.items())


def _dimension_text(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return f"{dimension.key}: {', '.join(map(_shown, dimension.values))}"
    scale = " (log)" if dimension.log else ""
    return f"{dimension.key}: {dimension.low:g} to {dimension.high:g}{scale}"


def _shown(value: JSON) -> str:
    """A value as text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
