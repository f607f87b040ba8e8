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
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from harness.types import JSON

__all__ = ["canonical", "code_digest", "identify", "module_digest"]

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


@cache
def module_digest(module: str) -> str:
    """Hash of one module's syntax tree without docstrings."""
    return hashlib.sha256(ast.dump(_without_docstrings(_tree(module))).encode()).hexdigest()


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
    family = {"harness", module.partition(".")[0]}
    found: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            # "from harness.models import unet" may name a module or an attribute.
            below = [f"{base}.{alias.name}" for alias in node.names]
            found += [name if _source(name) else base for name in below]
    return tuple(sorted({name for name in found if name.partition(".")[0] in family and _source(name)}))


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    source = _source(module)
    package = module if source and source.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


@cache
def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    source = _source(module)
    # Parts defined in a notebook or a script have no module of their own.
    return ast.parse(source.read_text(encoding="utf-8")) if source else ast.parse(repr(module))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _plain(value: Any) -> JSON:
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"an identity holds plain JSON only, got {type(value).__name__}: {value!r}")
