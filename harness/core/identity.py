"""Identities: what exactly determines a result, as one hash.

An identity is the SHA-256 of canonical JSON. Code enters it as the syntax trees,
without docstrings and comments, of a component's own definition and of every
definition that it reaches: in its module, in ``harness``, and in its own top-level
package. Editing a helper changes the digest of the components that reach it; adding
or editing a neighbour changes no other digest.

Notes
-----
Sources are read, never run. Names are followed through imports, aliases and
re-exports (see :mod:`harness.core.sources` for what belongs to a name). Names in
annotations are not followed; the annotations themselves are part of the tree.
Where a module is used as a whole (``getattr(module, name)``, a star import, an
attribute that no statement binds), all of it counts, with all that it imports.

Not seen are libraries outside, what one module changes in another when it is
imported, and names that are looked up in a registry; :func:`digest_of` follows
those that a registration states.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from harness.core.errors import RegistrationError
from harness.core.registry import Entry, Registry
from harness.core.sources import Binding, Code, analyse
from harness.core.types import JSON

__all__ = [
    "Code",
    "canonical",
    "code_digest",
    "codes_read",
    "component_digest",
    "digest_of",
    "identify",
    "module_digest",
    "remember",
]

_LENGTH = 20  # hex digits: 80 bits, no clash within any thinkable store

_FAMILY = "harness"
# A registry gives names to functions and hands them back untouched: no result depends on its code.
_UNSEEN = frozenset({"harness.core.registry"})


def canonical(value: JSON) -> str:
    """JSON text that is equal for equal values (sorted keys, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def identify(value: JSON) -> str:
    """Hash of a JSON value, 20 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:_LENGTH]


def digest_of(component: functools.partial[Any], registry: Registry) -> str:
    """Hash of the code of a component and of the components that it names.

    Parameters
    ----------
    component : a registered function with its options
    registry : in which the function is registered, and what it names

    Returns
    -------
    str
        20 hex digits. Two facts of a registration name other components, whose
        code is included: ``wraps="method"`` says that the option ``method`` holds
        the name of one, and ``chance`` and ``ceiling`` of a metric may be names.

    Raises
    ------
    RegistrationError
        See :func:`component_digest`; or if components name each other in a circle.
    """
    return _digest_of(component, registry, ())


def component_digest(*functions: Callable[..., Any]) -> str:
    """Hash of the code of functions or classes and of all that they reach.

    Parameters
    ----------
    functions : each defined by a statement at the top level of a module

    Returns
    -------
    str
        20 hex digits; equal for sources that differ in comments, formatting,
        docstrings, or in what the functions do not reach.

    Raises
    ------
    RegistrationError
        If the code of a function cannot be found: it was made in a notebook, inside
        another function, or by a decorator in another module.
    """
    return code_digest([_name_of(function) for function in functions])


def code_digest(names: Iterable[str]) -> str:
    """Hash of the code of definitions or whole modules, and of all that they reach.

    Parameters
    ----------
    names : ``package.module:name`` for a function, class or constant,
        ``package.module`` for a module and the modules that it imports; of
        ``harness`` or of a third-party package

    Returns
    -------
    str
        20 hex digits, see :func:`component_digest`

    Raises
    ------
    RegistrationError
        If a module has no file, or nothing in it has that name.
    """
    return identify(dict(_reached(tuple(sorted(set(names))))))


_read: dict[str, Code] = {}  # version of Python and hash of a source text → what was found in it


def codes_read() -> Mapping[str, Code]:
    """What this process has found in source texts, by the hash of their bytes."""
    return dict(_read)


def remember(codes: Mapping[str, Code]) -> None:
    """Take over what another process has found, so that equal texts need no analysis (a second for a task)."""
    _read.update(codes)


@cache
def module_digest(module: str) -> str:
    """Hash of one module's syntax tree without docstrings, or of its file if it is compiled.

    Raises
    ------
    RegistrationError
        If the module has no file, as in a notebook: a change of it would go unnoticed.
    """
    if _source(module):
        return _code(module).digest
    file = _file(module)
    if file is None:
        raise RegistrationError(
            f"the code of {module} must be in a file, so that a change of it is noticed; "
            "move what it defines to a module of your own and import that"
        )
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest_of(component: functools.partial[Any], registry: Registry, outer: tuple[str, ...]) -> str:
    entry = registry.get(registry.name_of(component.func))
    chain = (*outer, entry.name)
    if entry.name in outer:
        raise RegistrationError(f"{registry.kind}s must not name each other in a circle, got {' → '.join(chain)}")
    named = [functools.partial(registry.get(name).function) for name in _named(component, entry)]
    inner = [_digest_of(other, registry, chain) for other in named]
    return identify([component_digest(entry.function), *inner])


def _named(component: functools.partial[Any], entry: Entry) -> list[str]:
    """Names of other components that a component holds."""
    found = [entry.facts.get(fact) for fact in ("chance", "ceiling")]
    option = entry.facts.get("wraps")
    if option is not None:
        default = inspect.signature(entry.function).parameters[option].default
        found.append(component.keywords.get(option, default))
    return [name for name in found if isinstance(name, str) and name]


def _name_of(function: Callable[..., Any]) -> str:
    """``module:name`` of a function: the name under which its module holds it, or that of its definition."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise RegistrationError(
            f"only functions and classes have a code digest, got {function!r}; for one with options take digest_of"
        )
    module = function.__module__
    if not _source(module):
        module_digest(module)  # a compiled module counts as a whole; one without a file is refused
        return module
    holder = sys.modules.get(module)
    names = [] if holder is None else [one for one, value in vars(holder).items() if value is function]
    if not (names or "<" in name or hasattr(function, "__wrapped__")):  # its name was given to a wrapper
        names = [name.partition(".")[0]]
    defined = _code(module).definitions
    found = sorted((one for one in names if one in defined), key=lambda one: (one != name, one))
    if not found:
        raise RegistrationError(
            f"the code of {name} in {module} must be found by its name, so that a change of it is noticed; "
            "define it with def at the top level of a module, and use functools.wraps in decorators"
        )
    return f"{module}:{found[0]}"


_Place = tuple[str, str]  # module and a dotted name in it, empty for the whole module


@cache
def _reached(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """``module:name``, or a module as a whole, and its digest, of everything that names reach."""
    waiting = [_place(name) for name in names]
    seen: set[_Place] = set()
    digests: dict[str, str] = {}
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            more, found = _step(place)
            waiting += [one for one in more if one[0] not in _UNSEEN]
            digests.update(found)
    return tuple(sorted(digests.items()))


def _place(name: str) -> _Place:
    module, _, definition = name.partition(":")
    module_digest(module)  # refuses what has no file
    if definition and not (_source(module) and definition in _code(module).definitions):
        raise RegistrationError(f"{module} must define {definition!r} at its top level, to take the digest of it")
    return module, definition


@cache
def _step(place: _Place) -> tuple[tuple[_Place, ...], tuple[tuple[str, str], ...]]:
    """Where a place leads, and what it adds to a digest."""
    module, dotted = place
    name, _, rest = dotted.partition(".")
    definition = _code(module).definitions.get(name) if dotted and _source(module) else None
    if definition is not None:
        leads = [(module, use) for use in definition.uses]
        leads += [place for binding in definition.imports for place in _taken(module, binding, rest)]
        return tuple(leads), ((f"{module}:{name}", definition.digest),)
    if dotted and _is_module(f"{module}.{name}"):
        return ((f"{module}.{name}", rest),), ()
    if _file(module) is None:
        return (), ()  # a package without a file, or nothing that is installed
    return tuple((one, "") for one in _imports(module)), ((module, module_digest(module)),)


def _taken(module: str, binding: Binding, rest: str) -> Iterator[_Place]:
    """What an imported name is: an attribute of a module, or the module below of that name."""
    level, base, name = binding
    base = _absolute(module, level, base)
    if base.partition(".")[0] in _family(module):
        yield base, ".".join(part for part in (name, rest) if part)


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of the same top-level package, or of harness, that a module imports."""
    if not _source(module):
        return ()
    found = set()
    for level, base, name in _code(module).imports:
        base = _absolute(module, level, base)
        if base.partition(".")[0] in _family(module):  # to look for a module imports the packages that hold it
            # "from harness.models import unet" may name a module or an attribute.
            below = f"{base}.{name}"
            found.add(below if name and _is_module(below) else base)
    return tuple(sorted(found))


def _family(module: str) -> set[str]:
    """Top-level packages whose code is followed."""
    return {_FAMILY, module.partition(".")[0]}


def _absolute(module: str, level: int, base: str) -> str:
    if not level:
        return base
    package = module if _is_package(module) else module.rpartition(".")[0]
    for _ in range(level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{base}" if base else package


def _is_package(module: str) -> bool:
    spec = _spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _is_module(name: str) -> bool:
    return _spec(name) is not None


def _source(module: str) -> Path | None:
    file = _file(module)
    return file if file is not None and file.suffix == ".py" else None


@cache
def _file(module: str) -> Path | None:
    spec = _spec(module)
    # A script that is run as __main__ has a file and no specification.
    origin = getattr(sys.modules.get(module), "__file__", None) if spec is None else spec.origin
    return Path(origin) if origin is not None and Path(origin).is_file() else None


@cache
def _spec(module: str) -> ModuleSpec | None:
    holder = module.rpartition(".")[0]
    if holder and not _is_package(holder):
        return None  # to ask Python for what is below a module would import that
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None


@cache
def _code(module: str) -> Code:
    source = _source(module)
    assert source is not None
    text = source.read_bytes()
    # Syntax trees differ between versions of Python, and workers take over what the driver found.
    key = f"{sys.version_info[:2]} {hashlib.sha256(text).hexdigest()}"
    if key not in _read:
        _read[key] = analyse(text)
    return _read[key]


def _plain(value: Any) -> JSON:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"an identity holds plain JSON only, got {type(value).__name__}: {value!r}")
