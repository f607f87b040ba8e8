"""Where text becomes a part: a name → a function, one registry per kind.

A part is a plain function with a decorator that gives its name and source and
returns the function untouched. Built-in parts live in the *home* of their
kind; third-party packages name a module under the entry-point group
``harness.plugins``, which is imported before the first look-up.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from harness.core.errors import RegistrationError, UnknownName

__all__ = [
    "ADAPTERS",
    "ATTRIBUTIONS",
    "COHORTS",
    "Entry",
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

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered part.

    Parameters
    ----------
    name : what the user types
    function : the part
    source : citation, empty if it is nobody's
    where : file and line of the definition
    facts : what else the decorator said (direction, range, …)
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
    """Names of one kind of part.

    Parameters
    ----------
    kind : singular noun for messages ("model")
    home : module or package whose import registers the built-in parts
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self.home = kind, home
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *, source: str = "", **facts: Any) -> Callable[[F], F]:
        """Decorator: give a function a name and return it untouched.

        Raises
        ------
        RegistrationError
            If another function has the name already; both places are shown.
        """

        def decorate(function: F) -> F:
            entry = Entry(name, function, source, _where(function), facts)
            known = self._entries.get(name)
            if known is not None and not _same_place(known, entry):
                raise RegistrationError(
                    f"two {self.kind}s are named {name!r}: {known.where} and {entry.where}; rename one of them"
                )
            self._entries[name] = entry
            return function

        return decorate

    def get(self, name: str) -> Entry:
        """The part with this name.

        Raises
        ------
        UnknownName
            With the near names, then all.
        """
        if name not in self._entries:
            # A worker that needs one part need not wait for what all others import.
            _import_mentioning(self.home, name)
            load_plugins()
        if name not in self._entries:
            self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(self.kind, name, self._entries) from None

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def name_of(self, function: Callable[..., Any]) -> str:
        """The name under which a function is registered."""
        for entry in self._entries.values():
            if entry.function is function:
                return entry.name
        raise RegistrationError(f"{_where(function)} is not registered as a {self.kind}; decorate it")

    def _load(self) -> None:
        _import_all(self.home)
        load_plugins()


def _same_place(one: Entry, other: Entry) -> bool:
    """Whether a module was merely imported again, be it after an edit that moved its lines."""
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
    for module in _modules(home):
        importlib.import_module(module)


def _import_mentioning(home: str, name: str) -> None:
    """Import those modules of a home in whose source a name stands in quotes: its own, and few others."""
    for module in _modules(home):
        spec = importlib.util.find_spec(module)
        loader = None if spec is None else spec.loader
        if isinstance(loader, importlib.abc.InspectLoader) and f'"{name}"' in (loader.get_source(module) or ""):
            importlib.import_module(module)


def _modules(home: str) -> list[str]:
    """A home that is a module is imported, and so is a package itself; these are the modules in the package."""
    package = importlib.import_module(home)
    return [f"{home}.{found.name}" for found in pkgutil.iter_modules(getattr(package, "__path__", []))]


@cache
def load_plugins() -> tuple[str, ...]:
    """Import the modules that installed packages name under ``harness.plugins``."""
    points = importlib.metadata.entry_points(group="harness.plugins")
    for point in points:
        point.load()
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
