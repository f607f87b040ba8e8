"""Identities: what exactly determines a result, as one hash.

An identity is the SHA-256 of canonical JSON. Code enters it as the syntax
trees, without docstrings, of the modules a stage is made of and of everything
they import inside ``harness``: editing a comment, a docstring, a report or
another task changes nothing, editing a model changes every training of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.errors import RegistrationError
from harness.core.types import JSON

__all__ = ["Code", "canonical", "code_digest", "codes_read", "identify", "module_digest", "remember"]

_LENGTH = 20  # hex digits: 80 bits, no clash within any thinkable store


def canonical(value: JSON) -> str:
    """JSON text that is equal for equal values (sorted keys, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def identify(value: JSON) -> str:
    """Hash of a JSON value, 20 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:_LENGTH]


def code_digest(modules: Iterable[str]) -> str:
    """Hash of the code of modules and of what they import inside ``harness``.

    Parameters
    ----------
    modules : dotted names, of ``harness`` or of a third-party package

    Returns
    -------
    str
        20 hex digits; equal for sources that differ in comments, formatting or
        docstrings only.
    """
    closure = sorted(_closure(tuple(sorted(set(modules)))))
    return identify({name: module_digest(name) for name in closure})


@dataclass(frozen=True)
class Code:
    """What is known of a source text.

    Parameters
    ----------
    digest : of its syntax tree without docstrings
    imports : level (0 absolute, 1 and more dots), module, and names taken from it, of every import
    """

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


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


@cache
def _closure(modules: tuple[str, ...]) -> frozenset[str]:
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _imports(name)
    return frozenset(seen)


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of the same top-level package, or of harness, that a module imports."""
    if not _source(module):
        return ()
    family = {"harness", module.partition(".")[0]}
    found: list[str] = []
    for level, base, names in _code(module).imports:
        if not names:
            found.append(base)
            continue
        base = _absolute(module, level, base)
        if base.partition(".")[0] in family:  # to look for a module imports the packages that hold it
            # "from harness.models import unet" may name a module or an attribute.
            below = [f"{base}.{name}" for name in names]
            found += [name if _source(name) else base for name in below]
    return tuple(sorted({name for name in found if name.partition(".")[0] in family and _source(name)}))


def _absolute(module: str, level: int, base: str) -> str:
    if not level:
        return base
    source = _source(module)
    package = module if source and source.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{base}" if base else package


def _source(module: str) -> Path | None:
    file = _file(module)
    return file if file is not None and file.suffix == ".py" else None


@cache
def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        spec = None
    # A script that is run as __main__ has a file and no specification.
    origin = getattr(sys.modules.get(module), "__file__", None) if spec is None else spec.origin
    return Path(origin) if origin is not None and Path(origin).is_file() else None


@cache
def _code(module: str) -> Code:
    source = _source(module)
    assert source is not None
    text = source.read_bytes()
    # Syntax trees differ between versions of Python, and workers take over what the driver found.
    key = f"{sys.version_info[:2]} {hashlib.sha256(text).hexdigest()}"
    if key not in _read:
        _read[key] = _analysed(text)
    return _read[key]


def _analysed(text: bytes) -> Code:
    tree = ast.parse(text)
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    digest = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
    return Code(digest, tuple(imports))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _plain(value: Any) -> JSON:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"an identity holds plain JSON only, got {type(value).__name__}: {value!r}")
