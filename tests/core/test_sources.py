"""Source analysis: the statements that define a name and the names that they use."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from harness.core.sources import Definition, analyse


def definition(source: str, name: str = "f") -> Definition:
    """The definition of one name in a source text."""
    return analyse(source.encode()).definitions[name]


USES = {
    "call": ("def g(): ...\ndef f(x):\n    return g(x)", {"g"}),
    "alias": ("def g(): ...\nf = g", {"g"}),
    "table": ("def g(): ...\nf = {'a': [g]}", {"g"}),
    "attributes": ("from package import g\ndef f(x):\n    return g.scale.by(x)", {"g.scale.by"}),
    "attribute of a call": ("def g(): ...\ndef f():\n    return g().real.imag", {"g"}),
    "item": ("g = {}\ndef f(x):\n    return g[x]", {"g"}),
    "default": ("def g(): ...\ndef f(x=g, *, y=g()): ...", {"g"}),
    "decorator": ("def g(): ...\n@g\ndef f(): ...", {"g"}),
    "argument of a decorator": ("g = ('dice',)\n@library.metric(needs=g)\ndef f(): ...", {"g"}),
    "nested function": ("def g(): ...\ndef f():\n    def inner():\n        return g()\n    return inner", {"g"}),
    "lambda": ("def g(): ...\nf = lambda x: g(x)", {"g"}),
    "comprehension": ("def g(): ...\ndef f(xs):\n    return [g(x) for x in xs]", {"g"}),
    "where a comprehension comes from": ("g = [1]\ndef f():\n    return [g for g in g]", {"g"}),
    "dictionary comprehension": ("g = [1]\ndef f():\n    return {x: g for x in range(2)}", {"g"}),
    "formatted string": ("g = 1\ndef f():\n    return f'{g}'", {"g"}),
    "base class": ("class g: ...\nclass f(g): ...", {"g"}),
    "metaclass": ("class g: ...\nclass f(metaclass=g): ...", {"g"}),
    "method": ("def g(): ...\nclass f:\n    def call(self):\n        return g()", {"g"}),
    "method beside an attribute of that name": (
        "def g(): ...\nclass f:\n    g = 1\n    def call(self):\n        return g()",
        {"g"},
    ),
    "value of a class": ("g = 1\nclass f:\n    x: int = g", {"g"}),
    "pattern": ("class g: ...\ndef f(x):\n    match x:\n        case g(): return 1", {"g"}),
    "exception": ("class g(Exception): ...\ndef f():\n    try: pass\n    except g: pass", {"g"}),
    "asynchronous": ("def g(): ...\nasync def f():\n    await g()", {"g"}),
    "global": ("g = 1\ndef f():\n    global g\n    g = g + 1", {"g"}),
    "deleted": ("g = {}\ndef f():\n    del g['a']", {"g"}),
    "import in a function": ("def f():\n    from package import g\n    return g.scale(1)", {"f/g.scale"}),
    "import in a method": ("class f:\n    def a(self):\n        import package\n        package.g()", {"f/package.g"}),
    "annotation": ("g = 1\ndef f(x: g, *y: g) -> g:\n    z: g = x\n    return z", set()),
    "annotation of a field": ("g = 1\nclass f:\n    x: g", set()),
    "parameter": ("g = 1\ndef f(g):\n    return g", set()),
    "variable": ("g = 1\ndef f(x):\n    g = x\n    return g.real", set()),
    "variable of the function around": ("g = 1\ndef f(g):\n    return lambda x: x + g", set()),
    "variable of a loop": ("g = 1\ndef f(xs):\n    for g, h in xs:\n        print(g)", set()),
    "variable of a comprehension": ("g = 1\ndef f(xs):\n    return [g for g in xs]", set()),
    "variable of a context": ("g = 1\ndef f(x):\n    with x as g:\n        return g", set()),
    "variable of an exception": ("g = 1\ndef f(x):\n    try: x()\n    except E as g: return g", set()),
    "variable of a pattern": ("g = 1\ndef f(x):\n    match x:\n        case {'a': 1, **g}: return g", set()),
    "keyword of a call": ("g = 1\ndef f(x):\n    return x(g=1)", set()),
    "attribute of that name": ("g = 1\ndef f(x):\n    return x.g", set()),
    "text of that name": ("g = 1\ndef f(x):\n    return x['g']", set()),
    "builtin": ("def f(x):\n    return len(x)", set()),
}


@pytest.mark.parametrize("case", USES)
def test_uses_are_names_of_the_module(case: str) -> None:
    """The uses of a definition are the module-level names looked up when it runs, without local names."""
    source, uses = USES[case]
    assert set(definition(source).uses) == uses


CHANGES = {
    "another definition": "if DEBUG:\n    def f(): return {}",
    "another value": "f = {}",
    "unpacked": "f, g = {}, 1",
    "annotated": "f: int = {}",
    "augmented": "f += {}",
    "attribute": "f.name = {}",
    "item": "f[{}] = 1",
    "item of an attribute": "f.table['a'] = {}",
    "deleted": "del f[{}]",
    "method": "f.update({})",
    "method of an item": "f.setdefault('a', []).append({})",
    "method called in a function": "def change():\n    f.update({})",
    "item set in a function": "def change():\n    f['a'] = {}",
    "global": "def change():\n    global f\n    f = {}",
    "registration": "library.register({})(f)",
    "loop": "for name in ({}, 2):\n    library.register(name)(f)",
    "handler": "@f.register\ndef _(x):\n    return {}",
    "condition": "if f:\n    library.setup({})",
    "decorator that fills it": "@_into\ndef g():\n    return {}",
    "function that fills it": "first = _add({})",
    "subclass that is listed": "class g(_Base):\n    x = {}",
}


@pytest.mark.parametrize("case", CHANGES)
def test_definition_includes_changes_of_its_object(case: str) -> None:
    """A definition includes statements that set the name, its items or its attributes, or call its methods."""
    source = (
        "f = {}\n"
        "def _into(function):\n    f[function.__name__] = function\n    return function\n"
        "def _add(x):\n    return _into(x)\n"
        "class _Base:\n    def __init_subclass__(cls):\n        f[cls] = 1\n"
    )
    one, two = (definition(source + CHANGES[case].replace("{}", value)) for value in ("1", "2"))
    assert one.digest != two.digest


OTHERS = {
    "function": "def g():\n    return f() + {}",
    "registered function": "@library.register({})\ndef g():\n    return f()",
    "value": "g = f() + {}",
    "method that is asked": "g = f.copy({})",
    "import": "from package import n{}",
    "class with an attribute of that name": "class g:\n    f = {}",
    "field of that name": "class g:\n    f: int = {}",
    "variable of that name": "def g():\n    f = {}\n    f.append(1)",
}


@pytest.mark.parametrize("case", OTHERS)
def test_definition_excludes_its_users(case: str) -> None:
    """Statements that only use a name, or another object of that name, are not part of its definition."""
    one, two = (definition(f"def f(): ...\n{OTHERS[case].replace('{}', value)}") for value in ("1", "2"))
    assert one == two


def test_statement_without_a_name_is_part_of_every_definition() -> None:
    """A statement that binds no name, such as a library setting, is part of every definition."""
    one, two = (analyse(f"import torch\ntorch.fast = {value}\ndef f(): ...".encode()) for value in (True, False))
    assert one.definitions["f"].uses == ("",)
    assert one.definitions[""].digest != two.definitions[""].digest


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("from package.layers import f", (0, "package.layers", "f")),
        ("from package.layers import g as f", (0, "package.layers", "g")),
        ("from . import f", (1, "", "f")),
        ("from ..layers import f", (2, "layers", "f")),
        ("import f.layers", (0, "f", "")),
        ("import package.layers as f", (0, "package.layers", "")),
        ("try:\n    from package import f\nexcept ImportError:\n    f = None", (0, "package", "f")),
    ],
)
def test_definition_contains_its_import(source: str, imports: tuple[int, str, str]) -> None:
    """A definition contains the level, module and name of the import statement that binds it."""
    assert definition(source).imports == (imports,)


def test_import_from_another_library_is_another_definition() -> None:
    """Functions of one name from different modules have different definitions."""
    assert definition("from math import sqrt as f") != definition("from cmath import sqrt as f")


def test_names_imported_together_are_independent() -> None:
    """Importing one more name in the same statement does not change the definitions of the others."""
    assert definition("from package import f") == definition("from package import e, f, g")


def test_imports_of_a_text_are_those_of_all_its_functions() -> None:
    """The imports of a module include those inside its functions, as dotted names."""
    found = analyse(b"import a.b\nfrom c import *\ndef f():\n    from .d import e").imports
    assert set(found) == {(0, "a", ""), (0, "a.b", ""), (0, "c", ""), (1, "d", "e")}


def test_after_a_star_import_unknown_names_are_uses() -> None:
    """After a star import, a name that is neither bound in the module nor built in is a use."""
    assert definition("from package import *\ndef f(x):\n    return len(scale(x))").uses == ("scale",)


def test_parsing_is_repeated_if_threads_disturb_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython may raise SystemError once if two threads parse at the same time; errors that persist are raised."""
    original, failures = ast.parse, [SystemError("AST constructor recursion depth mismatch")]

    def parse(text: bytes) -> Any:
        if failures:
            raise failures.pop()
        return original(text)

    monkeypatch.setattr(ast, "parse", parse)
    assert analyse(b"a = 1").definitions.keys() == {"a"}
    failures += [SystemError("again"), SystemError("again")]
    with pytest.raises(SystemError, match="again"):
        analyse(b"a = 1")
