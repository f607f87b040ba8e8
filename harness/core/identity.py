"""Identities: a hash of everything that determines a result.

An identity is the SHA-256 of canonical JSON. It includes the code of a component:
the syntax trees of its definition and of every definition that it uses, directly or
indirectly, in its module, in ``harness`` and in its own top-level package, without
docstrings and comments. Editing a function changes the digests of the components
that use it, and no other digest.

Notes
-----
Sources are parsed, never executed. Names are followed through imports, aliases and
re-exports (see :mod:`harness.core.sources`). Names in annotations are not followed,
but the annotations belong to the syntax tree. Where a module is used as a whole
(``getattr(module, name)``, a star import, an attribute that no statement binds), the
whole module and all its imports are included.

Not included are other libraries, changes that one module makes to another when it
is imported, and names that are looked up in a registry, except those that a
registration declares (see :func:`digest_of`).
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

_LENGTH = 20  # hex digits: with 80 bits, collisions are practically impossible

_FAMILY = "harness"
# Registries return functions unchanged, so that no result depends on their code.
_UNSEEN = frozenset({"harness.core.registry"})


def canonical(value: JSON) -> str:
    """JSON text with sorted keys and without spaces, equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def identify(value: JSON) -> str:
    """Hash of a JSON value, 20 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:_LENGTH]


def digest_of(component: functools.partial[Any], registry: Registry) -> str:
    """Hash of the code of a component and of the components that it refers to.

    Parameters
    ----------
    component : a registered function with its options
    registry : registry of the function and of the components that it refers to

    Returns
    -------
    str
        20 hex digits. A registration can refer to other components, whose code is
        included: ``wraps="method"`` declares that the option ``method`` holds the name
        of one, and ``chance`` and ``ceiling`` of a metric may be names of metrics.

    Raises
    ------
    RegistrationError
        If the code cannot be found (see :func:`component_digest`), or if components
        refer to each other in a circle.
    """
    return _digest_of(component, registry, ())


def component_digest(*functions: Callable[..., Any]) -> str:
    """Hash of the code of functions or classes and of everything that they use.

    Parameters
    ----------
    functions : functions or classes defined at the top level of a module

    Returns
    -------
    str
        20 hex digits. Comments, formatting, docstrings, and code that the functions
        do not use make no difference.

    Raises
    ------
    RegistrationError
        If the code of a function cannot be found because it was defined in a notebook,
        inside another function, or by a decorator in another module.
    """
    return code_digest([_name_of(function) for function in functions])


def code_digest(names: Iterable[str]) -> str:
    """Hash of the code of definitions or whole modules and of everything that they use.

    Parameters
    ----------
    names : ``package.module:name`` for a function, class or constant, or
        ``package.module`` for a module with its imports; in ``harness`` or in a
        third-party package

    Returns
    -------
    str
        20 hex digits, see :func:`component_digest`.

    Raises
    ------
    RegistrationError
        If a module has no file or does not define the name.
    """
    return identify(dict(_reached(tuple(sorted(set(names))))))


_read: dict[str, Code] = {}  # Python version and hash of a source text → its analysis


def codes_read() -> Mapping[str, Code]:
    """Source texts that this process has analysed, by Python version and hash."""
    return dict(_read)


def remember(codes: Mapping[str, Code]) -> None:
    """Reuse the analyses of another process, which saves about a second per task."""
    _read.update(codes)


@cache
def module_digest(module: str) -> str:
    """Hash of a module's syntax tree without docstrings, or of its file if it is compiled.

    Raises
    ------
    RegistrationError
        If the module has no file, as in a notebook, because changes would go unnoticed.
    """
    if _source(module):
        return _code(module).digest
    file = _file(module)
    if file is None:
        raise RegistrationError(
            f"the code of {module} must be in a file, so that changes to it are noticed; "
            "move its definitions to a module of your own and import that"
        )
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest_of(component: functools.partial[Any], registry: Registry, outer: tuple[str, ...]) -> str:
    entry = registry.get(registry.name_of(component.func))
    chain = (*outer, entry.name)
    if entry.name in outer:
        raise RegistrationError(f"{registry.kind}s must not refer to each other in a circle, got {' → '.join(chain)}")
    named = [functools.partial(registry.get(name).function) for name in _named(component, entry)]
    inner = [_digest_of(other, registry, chain) for other in named]
    return identify([component_digest(entry.function), *inner])


def _named(component: functools.partial[Any], entry: Entry) -> list[str]:
    """Names of the components that a component refers to."""
    found = [entry.facts.get(fact) for fact in ("chance", "ceiling")]
    option = entry.facts.get("wraps")
    if option is not None:
        default = inspect.signature(entry.function).parameters[option].default
        found.append(component.keywords.get(option, default))
    return [name for name in found if isinstance(name, str) and name]


def _name_of(function: Callable[..., Any]) -> str:
    """``module:name`` of a function: its name in the module, or that of its definition."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise RegistrationError(
            f"only functions and classes have a code digest, got {function!r}; use digest_of for a partial"
        )
    module = function.__module__
    if not _source(module):
        module_digest(module)  # a compiled module is hashed as a whole; raises if there is no file
        return module
    holder = sys.modules.get(module)
    names = [] if holder is None else [one for one, value in vars(holder).items() if value is function]
    if not (names or "<" in name or hasattr(function, "__wrapped__")):  # the name now refers to a wrapper
        names = [name.partition(".")[0]]
    defined = _code(module).definitions
    found = sorted((one for one in names if one in defined), key=lambda one: (one != name, one))
    if not found:
        raise RegistrationError(
            f"the code of {name} in {module} must be found by its name, so that changes to it are noticed; "
            "define it with def at the top level of a module, and use functools.wraps in decorators"
        )
    return f"{module}:{found[0]}"


_Place = tuple[str, str]  # module and a dotted name in it, empty for the whole module


@cache
def _reached(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Everything that the names use: ``module:name`` or a whole module, with its digest."""
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
    module_digest(module)  # raises if there is no file
    if definition and not (_source(module) and definition in _code(module).definitions):
        raise RegistrationError(f"{module} must define {definition!r} at its top level, or its code cannot be hashed")
    return module, definition


@cache
def _step(place: _Place) -> tuple[tuple[_Place, ...], tuple[tuple[str, str], ...]]:
    """The places that a place uses, and its own entries in a digest."""
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
        return (), ()  # a package without a file, or a module that is not installed
    return tuple((one, "") for one in _imports(module)), ((module, module_digest(module)),)


def _taken(module: str, binding: Binding, rest: str) -> Iterator[_Place]:
    """What an imported name refers to: an attribute of a module, or a submodule."""
    level, base, name = binding
    base = _absolute(module, level, base)
    if base.partition(".")[0] in _family(module):
        yield base, ".".join(filter(None, (name, rest)))


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Imported modules of ``harness`` and of the module's own top-level package."""
    if not _source(module):
        return ()
    found = set()
    for level, base, name in _code(module).imports:
        base = _absolute(module, level, base)
        if base.partition(".")[0] in _family(module):  # checked first: finding a module imports its parent packages
            # "from harness.models import unet" may refer to a module or an attribute.
            below = f"{base}.{name}"
            found.add(below if name and _is_module(below) else base)
    return tuple(sorted(found))


def _family(module: str) -> set[str]:
    """Top-level packages whose code is included."""
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
    # A script that runs as __main__ has a file but no specification.
    origin = getattr(sys.modules.get(module), "__file__", None) if spec is None else spec.origin
    return Path(origin) if origin is not None and Path(origin).is_file() else None


@cache
def _spec(module: str) -> ModuleSpec | None:
    holder = module.rpartition(".")[0]
    if holder and not _is_package(holder):
        return None  # find_spec would import the parent module
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None


@cache
def _code(module: str) -> Code:
    source = _source(module)
    assert source is not None
    text = source.read_bytes()
    # Syntax trees differ between versions of Python, and workers reuse the analyses of the driver.
    key = f"{sys.version_info[:2]} {hashlib.sha256(text).hexdigest()}"
    if key not in _read:
        _read[key] = analyse(text)
    return _read[key]


def _plain(value: Any) -> JSON:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"an identity must be plain JSON, got {type(value).__name__}: {value!r}")
