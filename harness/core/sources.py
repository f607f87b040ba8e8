"""Static analysis of source code: what a module defines, and what each definition uses.

Code is parsed, never executed. For each name at the top level of a module,
:func:`analyse` returns a hash of the statements that define it and the names that
these statements use. Docstrings, comments and formatting are ignored.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Binding", "Code", "Definition", "analyse"]

Binding = tuple[int, str, str]
"""Origin of an imported name: level (0 if absolute, otherwise the number of dots), module, and name in it."""

_IMPORT = ast.Import | ast.ImportFrom
_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_ASSIGNMENT = ast.Assign | ast.AnnAssign | ast.AugAssign
_SCOPE = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

_EVERYTHING = ""  # stands for statements that may change anything in their module


@dataclass(frozen=True)
class Definition:
    """Definition of a name at the top level of a module.

    Parameters
    ----------
    digest : hash of the statements that bind the name or change its object
    uses : names of the module that these statements use, with attributes: ``layers.scale``
    imports : origins of the name, if it is imported
    """

    digest: str
    uses: tuple[str, ...]
    imports: tuple[Binding, ...]


@dataclass(frozen=True)
class Code:
    """Analysis of a source text.

    Parameters
    ----------
    digest : hash of all statements
    imports : origins of all imports, including those inside functions
    definitions : definitions by name. A name imported inside ``build`` is listed as
        ``build/name``; ``""`` holds statements that belong to no name
    """

    digest: str
    imports: tuple[Binding, ...]
    definitions: Mapping[str, Definition]


def _parsed(text: bytes) -> ast.Module:
    """The syntax tree of a source text."""
    try:
        return ast.parse(text)
    except SystemError:  # CPython before 3.12 may raise it if two threads parse at the same time (gh-106905)
        return ast.parse(text)


def analyse(text: bytes) -> Code:
    """Find the definitions in a source text.

    Notes
    -----
    A definition includes every statement that binds its name, and every statement
    that changes its object: by setting an item or attribute, by calling a method for
    its effect (``TABLE.update(…)``, ``@TABLE.add``), in any function, or by calling
    such a function when the module is imported. Any other statement belongs to the
    names that it uses, or to all names if it uses none.
    """
    tree = _without_docstrings(_parsed(text))
    imports = {binding for node in ast.walk(tree) if isinstance(node, _IMPORT) for _, binding in _imported(node)}
    statements = [_Statement(node) for node in tree.body if not isinstance(node, ast.Pass)]
    whole = _hash(statement.digest for statement in statements)
    return Code(whole, tuple(sorted(imports)), _definitions(statements))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove docstrings, including those of attributes."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and any(map(_is_text, body)):
                setattr(node, field, [one for one in body if not _is_text(one)] or [ast.Pass()])
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:20]


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Binding]]:
    """Origins of an import statement by the name that it binds: ``*`` for all names, empty for none."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            name = "" if alias.name == "*" else alias.name
            yield alias.asname or alias.name, (node.level, node.module or "", name)
        elif alias.asname:
            yield alias.asname, (0, alias.name, "")
        else:  # "import a.b" binds a
            top = alias.name.partition(".")[0]
            yield top, (0, top, "")
            yield "", (0, alias.name, "")


def _bound(nodes: Iterable[ast.AST], owner: str = "") -> Iterator[tuple[str, str]]:
    """Names bound in a body, without nested functions, and the module-level name that each stands for.

    This is empty for a local variable, the name itself if it is declared global, and
    ``owner/name`` for an import.
    """
    for node in nodes:
        if isinstance(node, _DEFINITION):
            yield node.name, ""
        elif isinstance(node, _IMPORT):
            yield from ((name, f"{owner}/{name}") for name, _ in _imported(node) if name.isidentifier())
        elif isinstance(node, ast.Global):
            yield from ((name, name) for name in node.names)
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                yield node.id, ""
        elif not isinstance(node, _SCOPE):
            for field in ("name", "rest"):  # except … as name, case {**rest}
                if isinstance(name := getattr(node, field, None), str):
                    yield name, ""
            yield from _bound(ast.iter_child_nodes(node), owner)


class _Statement(ast.NodeVisitor):
    """One statement at the top level of a module.

    Attributes
    ----------
    digest : hash of its syntax tree
    binds : names that it binds in the module
    uses : names of the module that it uses, with attributes
    at_once : names that it uses when the module is imported, without attributes
    changes : names whose objects it changes
    imported : name → origins, for imports in this statement
    """

    def __init__(self, node: ast.stmt) -> None:
        self.node = node
        self.digest = _hash([ast.dump(node)])
        self.binds = {name for name, _ in _bound([node])}
        self.uses: set[str] = set()
        self.at_once: set[str] = set()
        self.changes: set[str] = set()
        self.imported: dict[str, set[Binding]] = defaultdict(set)
        self._owner = node.name if isinstance(node, _DEFINITION) else ""
        self._scopes: list[Mapping[str, str]] = []  # see _bound
        self._depth = 0  # of functions
        self.visit(node)

    def _meaning(self, name: str) -> str:
        """Module-level name that a name stands for in the current scope, or empty."""
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), name)

    def _use(self, root: str, attributes: Sequence[str]) -> None:
        name = self._meaning(root)
        if name:
            self.uses.add(".".join([name, *attributes]))
            if not self._depth:
                self.at_once.add(name)

    def _change(self, node: ast.AST) -> None:
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
        if isinstance(node, ast.Name):
            self.changes.add(self._meaning(node.id))

    def _within(self, bound: Iterable[tuple[str, str]], nodes: Sequence[ast.AST]) -> None:
        scope: dict[str, str] = {}
        for name, meaning in bound:
            scope[name] = meaning or scope.get(name, "")
        self._scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self._scopes.pop()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._use(node.id, ())
        elif self._scopes and self._scopes[-1].get(node.id) == node.id:  # declared global
            self.changes.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        attributes: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            attributes.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            self._use(inner.id, attributes)
        else:
            self.visit(inner)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not isinstance(node.value.func, ast.Name):
            self._change(node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Skip the annotation."""
        for child in (node.target, node.value):
            if child is not None:
                self.visit(child)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, binding in _imported(node):
            if name:
                self.imported[self._meaning(name)].add(binding)

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._decorated(node.decorator_list)
        self._function(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node.args, [node.body])

    def _decorated(self, decorators: Sequence[ast.expr]) -> None:
        for decorator in decorators:
            if isinstance(decorator.func if isinstance(decorator, ast.Call) else decorator, ast.Attribute):
                self._change(decorator)  # @TABLE.add("name"), @function.register
            self.visit(decorator)

    def _function(self, arguments: ast.arguments, body: Sequence[ast.AST]) -> None:
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)
        names = [node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)]
        self._depth += 1
        self._within([*((name, "") for name in names), *_bound(body, self._owner)], body)
        self._depth -= 1

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._decorated(node.decorator_list)
        for child in (*node.bases, *node.keywords):
            self.visit(child)
        # Methods do not see names bound in the class body.
        self._within([found for found in _bound(node.body, self._owner) if found[1]], node.body)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *rest = node.generators
        self.visit(first.iter)  # evaluated in the enclosing scope
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        targets = _bound([generator.target for generator in node.generators])
        self._within(targets, [first.target, *first.ifs, *rest, *results])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def _definitions(statements: Sequence[_Statement]) -> dict[str, Definition]:
    bound = {name for statement in statements for name in statement.binds}
    starred = any("*" in statement.imported for statement in statements)
    belonging: dict[str, list[_Statement]] = defaultdict(list)
    imported: dict[str, set[Binding]] = defaultdict(set)
    made = _made(statements)
    for statement in statements:
        for name in _owners(statement, made):
            belonging[name].append(statement)
        for name, taken in statement.imported.items():
            imported[name] |= taken
    imported.pop("*", None)

    def known(use: str) -> bool:
        root = use.partition(".")[0]
        return root in bound or "/" in root or (starred and not hasattr(builtins, root))

    found = {}
    for name in sorted({*belonging, *imported}):
        uses = {use for statement in belonging[name] for use in statement.uses if known(use)}
        if name in made and _EVERYTHING in belonging:
            uses.add(_EVERYTHING)
        bindings = tuple(sorted(imported[name]))
        texts = [*(statement.digest for statement in belonging[name]), *map(str, bindings)]
        found[name] = Definition(_hash(texts), tuple(sorted(uses)), bindings)
    return found


def _made(statements: Sequence[_Statement]) -> Mapping[str, Sequence[_Statement]]:
    """Names that are defined here, not imported, with the statements that bind them."""
    found: dict[str, list[_Statement]] = defaultdict(list)
    for statement in statements:
        if not isinstance(statement.node, _IMPORT):
            for name in statement.binds:
                found[name].append(statement)
    return found


def _owners(statement: _Statement, made: Mapping[str, Sequence[_Statement]]) -> set[str]:
    """Names whose definition a statement belongs to."""
    if isinstance(statement.node, _IMPORT):
        return set()  # names imported by one statement do not depend on each other
    found = statement.binds | _changed(statement, made)
    if not isinstance(statement.node, _DEFINITION | _ASSIGNMENT):
        found |= {use.partition(".")[0] for use in statement.uses} & made.keys()
    return found or {_EVERYTHING}


def _changed(statement: _Statement, made: Mapping[str, Sequence[_Statement]]) -> set[str]:
    """Names whose objects a statement changes, directly or through what it calls on import."""
    changed, waiting, seen = set(statement.changes), list(statement.at_once), set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in made:
            seen.add(name)
            for one in made[name]:
                changed |= one.changes
                waiting += [use.partition(".")[0] for use in one.uses]
    return changed & made.keys()
