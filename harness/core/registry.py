"""Registries: from the name of a component to its function, one registry per kind.

A component is a plain function. A decorator registers its name and source and
returns the function unchanged. Built-in components are in the *home* package of
their kind. Third-party packages list a module under the entry-point group
``harness.plugins``. Both are imported when an unknown name is looked up. A home
package is imported as a whole; in a worker, where torch is loaded anyway, this
costs at most 0.2 s.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from harness.core.errors import RegistrationError, UnknownName, first_line

__all__ = [
    "ADAPTERS",
    "ATTRIBUTIONS",
    "COHORTS",
    "Entry",
    "GENERATED",
    "KINDS",
    "METRICS",
    "MODELS",
    "PHANTOMS",
    "POSTPROCESSINGS",
    "RECIPES",
    "Registry",
    "SPLITS",
    "TARGETS",
    "load_plugins",
]

GENERATED = "generated"
"""Value of ``oracle`` for models that know the truth of generated subjects, and say nothing of others."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered component.

    Parameters
    ----------
    name : name on the command line
    function : the component
    source : citation; empty if there is none
    where : file and line of the definition
    facts : further arguments of the decorator (direction, range, …)
    """

    name: str
    function: Callable[..., Any]
    source: str
    where: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


class Registry:
    """All components of one kind, by name.

    Parameters
    ----------
    kind : the kind in the singular, for messages ("model")
    home : module or package that holds the built-in components
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self.home = kind, home
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *, source: str = "", **facts: Any) -> Callable[[F], F]:
        """Register the decorated function and return it unchanged.

        Parameters
        ----------
        name : name on the command line
        source : citation
        facts : further properties. ``wraps="method"`` declares that the option
            ``method`` holds the name of another component of this registry, whose
            code then determines results as well

        Raises
        ------
        RegistrationError
            If another function has this name (both locations are shown), or if
            ``wraps`` is not an option.
        """

        def decorate(function: F) -> F:
            self._check_wraps(name, function, facts.get("wraps"))
            entry = Entry(name, function, source, _where(function), facts)
            known = self._entries.get(name)
            if known is not None and not _same_place(known, entry):
                raise RegistrationError(
                    f"two {self.kind}s are named {name!r}: {known.where} and {entry.where}; rename one of them"
                )
            self._entries[name] = entry
            return function

        return decorate

    def _check_wraps(self, name: str, function: Callable[..., Any], option: str | None) -> None:
        if option is None:
            return
        parameter = inspect.signature(function).parameters.get(option)
        if parameter is None or parameter.default is parameter.empty:
            raise RegistrationError(
                f"wraps={option!r} of {self.kind} {name!r} must be an option whose default is the name of "
                f"another {self.kind}; add `*, {option}: str = …` to {_where(function)}"
            )

    def get(self, name: str) -> Entry:
        """Look up a component.

        Raises
        ------
        UnknownName
            If there is no such component; the message lists similar names, then all.
        """
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        self._load()
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownName(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def name_of(self, function: Callable[..., Any]) -> str:
        """Name under which a function is registered."""
        for entry in self._entries.values():
            if entry.function is function:
                return entry.name
        raise RegistrationError(f"{_where(function)} is not registered as a {self.kind}; decorate it")

    def _load(self) -> None:
        _import_all(self.home)
        load_plugins()


def _same_place(one: Entry, other: Entry) -> bool:
    """Whether both entries are the same definition, imported twice, perhaps after an edit that moved lines."""
    names = [getattr(entry.function, "__qualname__", "") for entry in (one, other)]
    files = [entry.where.rpartition(":")[0] for entry in (one, other)]
    moved = files[0] == files[1] and names[0] == names[1] and "<" not in names[0]
    return one.where == other.where or moved


def _where(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return f"{function.__module__}.{function.__qualname__}"
    return f"{code.co_filename}:{code.co_firstlineno}"


@cache
def _import_all(home: str) -> None:
    """Import a home package with all its modules."""
    package = importlib.import_module(home)
    for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
        importlib.import_module(f"{home}.{found.name}")


@cache
def load_plugins() -> tuple[str, ...]:
    """Import the modules that installed packages list under ``harness.plugins``.

    Raises
    ------
    RegistrationError
        If one cannot be imported; it names the package.
    """
    points = importlib.metadata.entry_points(group="harness.plugins")
    for point in points:
        try:
            point.load()
        except RegistrationError:
            raise
        except Exception as error:
            package = getattr(getattr(point, "dist", None), "name", "") or point.value
            raise RegistrationError(
                f"the plug-in {point.value} cannot be imported: {first_line(error, where=True)}; fix it, or remove "
                f"its package: pip uninstall {package}"
            ) from error
    return tuple(point.value for point in points)


COHORTS = Registry("cohort", "harness.data")
TARGETS = Registry("target", "harness.data.targets")
PHANTOMS = Registry("phantom", "harness.simulation")
SPLITS = Registry("split", "harness.data.splits")
ADAPTERS = Registry("adapter", "harness.adapters")
MODELS = Registry("model", "harness.models")
RECIPES = Registry("recipe", "harness.recipes")
ATTRIBUTIONS = Registry("attribution", "harness.attribution")
POSTPROCESSINGS = Registry("postprocessing", "harness.attribution.postprocessing")
METRICS = Registry("metric", "harness.metrics")

KINDS: Mapping[str, Registry] = {
    registry.kind: registry
    for registry in (
        *(COHORTS, TARGETS, PHANTOMS, SPLITS, ADAPTERS, MODELS, RECIPES),
        *(ATTRIBUTIONS, POSTPROCESSINGS, METRICS),
    )
}
