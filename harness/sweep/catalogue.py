"""Find tasks by name: the project's own, and those of installed packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil

from harness.core.errors import HarnessError, RegistrationError, UnknownName, first_line
from harness.core.registry import load_plugins
from harness.core.task import Task

__all__ = ["declared", "load_task", "task_names"]

_HOME = "harness.tasks"
_GROUP = "harness.tasks"


def task_names() -> dict[str, str]:
    """Names of all tasks with their modules, none of which is imported."""
    home = importlib.import_module(_HOME)
    found = {module.name: f"{_HOME}.{module.name}" for module in pkgutil.iter_modules(home.__path__)}
    for point in importlib.metadata.entry_points(group=_GROUP):
        if point.name in found:
            raise RegistrationError(f"two tasks are named {point.name!r}: {found[point.name]} and {point.value}")
        found[point.name] = point.value.partition(":")[0]
    return dict(sorted(found.items()))


def load_task(name: str) -> Task:
    """The task with this name.

    Raises
    ------
    UnknownName
        If there is no such task; the message lists similar names, then all.
    RegistrationError
        If its module cannot be imported, or holds no task.
    """
    known = task_names()
    if name not in known:
        raise UnknownName("task", name, known)
    load_plugins()
    try:
        task = getattr(importlib.import_module(known[name]), "TASK", None)
    except HarnessError:
        raise
    except Exception as error:
        raise RegistrationError(
            f"the task {name} cannot be imported from {known[name]}: {first_line(error, where=True)}; fix the file"
        ) from error
    if not isinstance(task, Task):
        raise RegistrationError(f"{known[name]}.TASK must be a harness.core.task.Task, got {type(task).__name__}")
    return task


def declared(task: Task) -> Task:
    """The task as declared in its module, without overrides; the task itself if its module is not known."""
    try:
        return load_task(task.name)
    except UnknownName:
        return task
