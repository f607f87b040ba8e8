"""Options that messages about data name, and which users type, exist."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness.data
from harness.core.overrides import keys
from harness.core.registry import KINDS
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.request import RUN_KEYS

FOLDER = Path(harness.data.__file__).parent
TYPED = re.compile(r"(?<![\w.'\"-])([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)=(?![=\"'])")
# What is no option of a command: parts of NIfTI and JSON, and arguments of functions in Python.
OTHERS = {"pixdim"}


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """All string constants but docstrings, with their lines; values in f-strings are left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def known_keys() -> set[str]:
    """Keys of a run, of the tasks, and of the commands."""
    from harness.cli.keys import TAKES

    known = set(RUN_KEYS).union(*TAKES.values())
    for name in task_names():
        known |= set(keys(load_task(name)))
    for kind, registry in KINDS.items():  # a task may choose any component
        for name in registry.names():
            known |= {f"{kind}.{option}" for option in inspect.signature(registry.get(name).function).parameters}
    return known


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_options_in_messages_exist(path: Path) -> None:
    """An option is typed with the key that the command line knows: ``cohort.session=``, not ``session=``."""
    named = [(line, key) for line, text in strings(ast.parse(path.read_text())) for key in TYPED.findall(text)]
    unknown = [f"{path.name}:{line}: {key}=" for line, key in named if key not in known_keys() | OTHERS]
    assert unknown == []


def test_options_are_found_in_messages() -> None:
    """The search above finds what it is to find."""
    text = "Choose: session=first, or set cohort.size=[] and a lower occupied= (see exclude=sub-01)"
    assert TYPED.findall(text) == ["session", "cohort.size", "occupied", "exclude"]
    found = {
        key
        for path in FOLDER.rglob("*.py")
        for _, text in strings(ast.parse(path.read_text()))
        for key in TYPED.findall(text)
    }
    assert {"cohort.session", "cohort.truth", "cohort.box", "sequences", "exclude"} <= found
