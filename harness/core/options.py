"""Options as users see them: value, accepted values, and meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.docstrings import docstring_of
from harness.core.explanations import FIELDS, Explanation
from harness.core.settings import RunSettings
from harness.core.task import SCALARS, Component, Task
from harness.core.types import JSON
from harness.core.values import hints_of, options_of, plain, type_text

__all__ = ["Option", "component_options", "explanation_options", "setting_options", "task_options"]


@dataclass(frozen=True)
class Option:
    """One option.

    Parameters
    ----------
    name : name without the component, e.g. ``lr``
    value : current value as plain JSON
    type : accepted values, e.g. ``number > 0``
    meaning : description from the docstring; empty if there is none
    """

    name: str
    value: JSON
    type: str
    meaning: str


def component_options(component: Component) -> tuple[Option, ...]:
    """Options of a component with their current values."""
    values = {name: parameter.default for name, parameter in options_of(component.func).items()}
    return _options({**values, **component.keywords}, hints_of(component.func), component.func)


def explanation_options(explanation: Explanation) -> tuple[Option, ...]:
    """Options of an explanation."""
    return _options({name: getattr(explanation, name) for name in FIELDS}, hints_of(Explanation), Explanation)


def task_options(task: Task) -> tuple[Option, ...]:
    """Options of a task that belong to no component."""
    return _options({name: getattr(task, name) for name in SCALARS}, SCALARS, Task)


def setting_options() -> tuple[Option, ...]:
    """Settings of a run with their defaults."""
    values = {field.name: field.default for field in dataclasses.fields(RunSettings)}
    return _options(values, hints_of(RunSettings), RunSettings)


def _options(values: Mapping[str, Any], hints: Mapping[str, Any], documented: Any) -> tuple[Option, ...]:
    meanings = docstring_of(documented).parameters
    return tuple(
        Option(name, plain(value), type_text(hints.get(name, Any)), meanings.get(name, ""))
        for name, value in values.items()
    )
