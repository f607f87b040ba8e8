"""Identities: equal for what is equal, different for what changes a result."""

from __future__ import annotations

import dis
import hashlib
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from harness.core import identity
from harness.core.errors import RegistrationError
from harness.core.identity import (
    canonical,
    code_digest,
    codes_read,
    component_digest,
    digest_of,
    identify,
    module_digest,
    remember,
)
from harness.core.registry import KINDS, Registry

Write = Callable[[str, str], None]

SOURCE = '''"""A module."""

import math


class Layer:
    """A layer."""

    def scale(self, x):
        """Scale it."""
        return math.sqrt(x) * 2
'''

SAME = {
    "docstring of the module": SOURCE.replace("A module", "Quite another text"),
    "docstring of a class": SOURCE.replace("A layer", "Something"),
    "docstring of a function": SOURCE.replace("Scale it", "Root, then double"),
    "no docstring": SOURCE.replace('        """Scale it."""\n', ""),
    "comment": SOURCE.replace("* 2", "* 2  # twice"),
    "blank lines": SOURCE.replace("\n\n\n", "\n"),
    "line breaks": SOURCE.replace("math.sqrt(x) * 2", "(\n            math.sqrt(x)\n            * 2\n        )"),
    "quotes": SOURCE.replace('"""A module."""', "'A module.'"),
}
OTHER = {
    "number": SOURCE.replace("* 2", "* 3"),
    "name": SOURCE.replace("def scale", "def resize"),
    "import": SOURCE.replace("import math", "import math\nimport cmath"),
    "string that is no docstring": SOURCE + '\nNAME = "text"\n',
}


CACHES = ("module_digest", "_reached", "_step", "_imports", "_file", "_spec", "_code")


def forget() -> None:
    """Forget which files modules have and what was read of them."""
    for name in CACHES:
        getattr(getattr(identity, name), "cache_clear", lambda: None)()  # a test may have replaced one
    importlib.invalidate_caches()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules of a third party, and forget what was read of them before."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def one(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        forget()

    yield one
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("strange", "stranger")]:
        del sys.modules[name]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Pretend that a module that exists has another source text."""
    texts: dict[str, Path] = {}
    where = identity._file.__wrapped__
    monkeypatch.setattr(identity, "_file", lambda module: texts.get(module) or where(module))

    def one(module: str, text: str) -> None:
        texts[module] = tmp_path / f"{module}.py"
        texts[module].write_text(text)
        forget()

    yield one
    texts.clear()
    forget()


@pytest.mark.parametrize("case", SAME)
def test_edit_that_computes_the_same_changes_no_digest(write: Write, case: str) -> None:
    """Docstrings, comments and formatting are not code."""
    write("stranger.py", SOURCE)
    before = module_digest("stranger"), code_digest(["stranger:Layer"])
    write("stranger.py", SAME[case])
    assert (module_digest("stranger"), code_digest(["stranger:Layer"])) == before


@pytest.mark.parametrize("case", OTHER)
def test_edit_of_code_changes_the_digest(write: Write, case: str) -> None:
    """What may compute something else is another code."""
    write("stranger.py", SOURCE)
    before = module_digest("stranger")
    write("stranger.py", OTHER[case])
    assert module_digest("stranger") != before


FORMS = {
    "from import": ("from strange.layers import scale\n", "scale(x)"),
    "relative import": ("from .layers import scale\n", "scale(x)"),
    "renamed import": ("from .layers import scale as by\n", "by(x)"),
    "module": ("from . import layers\n", "layers.scale(x)"),
    "renamed module": ("from . import layers as them\n", "them.scale(x)"),
    "dotted module": ("import strange.layers\n", "strange.layers.scale(x)"),
    "renamed dotted module": ("import strange.layers as them\n", "them.scale(x)"),
    "re-export": ("from strange.more import scale\n", "scale(x)"),
    "re-export of a package": ("from strange import scale\n", "scale(x)"),
    "re-export as an attribute": ("import strange\n", "strange.scale(x)"),
    "package below": ("import strange.below\n", "strange.below.scale(x)"),
    "two levels up": ("from strange.below import deep\n", "deep.scale(x)"),
    "alias": ("from .layers import scale\nby = scale\n", "by(x)"),
    "table": ("from .layers import scale\nTABLE = {'a': scale}\n", "TABLE['a'](x)"),
    "partial": ("from functools import partial\nfrom .layers import scale\nby = partial(scale, 2)\n", "by(x)"),
    "helper": ("from .layers import scale\ndef helper(x):\n    return scale(x)\n", "helper(x)"),
    "method": (
        "from .layers import scale\nclass Helper:\n    def call(self, x):\n        return scale(x)\n",
        "Helper().call(x)",
    ),
    "base class": ("from . import layers\nclass Helper(layers.Scale):\n    pass\n", "Helper()(x)"),
    "decorator": ("from .layers import scale\n@scale\ndef helper(x):\n    return x\n", "helper(x)"),
    "default": ("from .layers import scale\ndef helper(x, *, by=scale):\n    return by(x)\n", "helper(x)"),
    "import in the function": ("", "__import__('x') or 1\n    from .layers import scale\n    return scale(x)"),
    "import of a module in the function": ("", "1\n    import strange.layers\n    return strange.layers.scale(x)"),
    "fallback": ("try:\n    from .layers import scale\nexcept ImportError:\n    scale = None\n", "scale(x)"),
    "condition": ("import sys\nif sys.platform:\n    from .layers import scale\nelse:\n    scale = abs\n", "scale(x)"),
    "table that is filled": (
        "from .layers import scale\nTABLE = {}\nTABLE['a'] = scale\n",
        "TABLE['a'](x)",
    ),
}
WHOLE = {
    "name in a text": ("from . import layers\n", "getattr(layers, 'scale')(x)"),
    "module that is handed on": ("from . import layers\n", "list(map(vars, [layers]))"),
    "alias of a module": ("from . import layers\nthem = layers\n", "them.scale(x)"),
    "star import": ("from .layers import *\n", "scale(x)"),
    "star import of a star import": ("from .stars import *\n", "scale(x)"),
    "attribute that no statement binds": ("from . import layers\n", "layers.anything(x)"),
}
LAYERS = """
class Scale:
    def __call__(self, x):
        return scale(x)


def scale(x):
    return _factor() * x


def _factor():
    return 2


def neighbour(x):
    return x
"""


def _package(write: Write, head: str, body: str, layers: str = LAYERS) -> None:
    write("strange/__init__.py", "from .layers import scale\n")
    write("strange/layers.py", layers)
    write("strange/more.py", "from .layers import scale\n")
    write("strange/stars.py", "from .layers import *\n")
    write("strange/below/__init__.py", "from ..layers import scale\n")
    write("strange/below/deep.py", "from .. import layers\nfrom ..layers import scale\n")
    write("strange/model.py", f"{head}def model(x):\n    return {body}\n\n\ndef beside(x):\n    return x\n")


def _edits(write: Write, head: str, body: str) -> dict[str, bool]:
    """Which definitions of the layers change the digest of the model that uses them."""
    _package(write, head, body)
    before = code_digest(["strange.model:model"])
    edits = {"_factor": ("return 2", "return 3"), "neighbour": ("    return x\n", "    return 2 * x\n")}
    changed = {}
    for name, (old, new) in edits.items():
        assert LAYERS.count(old) == 1
        write("strange/layers.py", LAYERS.replace(old, new))
        changed[name] = code_digest(["strange.model:model"]) != before
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_digest_follows_names_to_their_definitions(write: Write, form: str) -> None:
    """Whatever way leads to a function, what that uses is in the digest, and its neighbours are not."""
    assert _edits(write, *FORMS[form]) == {"_factor": True, "neighbour": False}


@pytest.mark.parametrize("form", WHOLE)
def test_digest_holds_the_whole_module_where_it_cannot_follow(write: Write, form: str) -> None:
    """What is looked up when the code runs may be anything in the module."""
    assert _edits(write, *WHOLE[form]) == {"_factor": True, "neighbour": True}


@pytest.mark.parametrize("body", ["x", "(lambda scale: scale(x))(abs)", "[scale for scale in x]", "x.scale(x)"])
def test_digest_ignores_what_is_imported_and_not_used(write: Write, body: str) -> None:
    """An import that the function does not use, and local names that look like it, lead nowhere."""
    assert _edits(write, "from .layers import scale\n", body) == {"_factor": False, "neighbour": False}


def test_digest_ignores_names_in_annotations(write: Write) -> None:
    """What stands in an annotation only is not run."""
    head = (
        "from __future__ import annotations\nfrom .layers import Scale\ndef helper(x: Scale) -> Scale:\n    return x\n"
    )
    assert _edits(write, head, "helper(x)") == {"_factor": False, "neighbour": False}


def test_digest_holds_the_annotations_of_a_function(write: Write) -> None:
    """A bound that an option declares is part of the definition."""
    text = "from annotated_types import Ge\ndef model(*, width: Annotated[int, Ge(1)] = 2): ...\n"
    write("stranger.py", text)
    before = code_digest(["stranger:model"])
    write("stranger.py", text.replace("Ge(1)", "Ge(2)"))
    assert code_digest(["stranger:model"]) != before


@pytest.mark.parametrize(
    "addition", ["def new(x):\n    return x\n", "import math\n", "NEW = 1\n", "from .layers import scale as new\n"]
)
def test_additions_to_a_module_change_no_digest(write: Write, addition: str) -> None:
    """A component beside another, with what it imports, changes nothing for that one."""
    head, body = FORMS["helper"]
    _package(write, head, body)
    before = code_digest(["strange.model:model"])
    write("strange/model.py", f"{addition}{head}def model(x):\n    return {body}\n")
    assert code_digest(["strange.model:model"]) == before


def test_digest_of_a_module_holds_all_that_it_imports(write: Write) -> None:
    """A module as a whole counts with the whole modules that it imports."""
    _package(write, *FORMS["from import"])
    before = code_digest(["strange.model"])
    write("strange/layers.py", LAYERS + "NEW = 1\n")
    assert code_digest(["strange.model"]) != before


def test_digest_ignores_modules_that_are_not_imported(write: Write) -> None:
    """Editing a neighbour changes nothing."""
    write("strange/__init__.py", "")
    write("strange/model.py", "x = 1\n")
    write("strange/report.py", "y = 1\n")
    before = code_digest(["strange.model"])
    write("strange/report.py", "y = 2\n")
    assert code_digest(["strange.model"]) == before


def test_package_without_a_file_is_followed(write: Write) -> None:
    """A namespace package has no source, and its modules do."""
    write("strange/layers.py", "def scale(x):\n    return x\n")
    write("strange/model.py", "from strange import layers\ndef model(x):\n    return layers.scale(x)\n")
    assert set(_reached("strange.model:model")) == {
        "strange.layers:scale",
        "strange.model:layers",
        "strange.model:model",
    }


def test_modules_that_import_each_other_are_read_once(write: Write) -> None:
    """A circle of imports ends."""
    write("strange/__init__.py", "")
    write("strange/a.py", "from . import b\ndef f():\n    return b.g()\n")
    write("strange/b.py", "from .a import f\ndef g():\n    return f()\n")
    assert set(_reached("strange.a:f")) == {"strange.a:b", "strange.a:f", "strange.b:f", "strange.b:g"}


def test_third_party_components_follow_their_imports_of_harness(write: Write) -> None:
    """A third-party model that uses a harness module depends on what it uses of it."""
    write("stranger.py", "from harness.models.unet import unet\ndef mine(x):\n    return unet(x)\n")
    reached = _reached("stranger:mine")
    assert {"stranger:mine", "harness.models.unet:_UNet", "harness.models.padding:Padded"} <= reached
    assert "harness.models.unet:basic_unet" not in reached


def test_closure_of_training() -> None:
    """Training depends on its loop and random streams, not on the command line, reports, metrics or single recipes."""
    reached = _reached("harness.pipeline.train:train")
    assert {"harness.pipeline.train:_one_epoch", "harness.core.seeding:seed_of"} <= reached
    above = ("harness.cli", "harness.metrics", "harness.tuning", "harness.recipes.augmentation")
    assert not [name for name in reached if name.startswith(above)]


def test_closure_of_explaining_holds_no_single_method() -> None:
    """Editing one attribution method leaves the maps of the others valid."""
    methods = {identity._name_of(KINDS["attribution"].get(name).function) for name in KINDS["attribution"].names()}
    assert not _reached("harness.pipeline.explain:explain") & methods


def test_code_of_a_registry_is_in_no_digest() -> None:
    """A registry hands functions back as they are, so that none depends on its code."""
    assert not [name for name in _reached("harness.models.unet:unet") if name.startswith("harness.core.registry")]


def test_definition_that_does_not_exist_is_refused(write: Write) -> None:
    """A misspelt name has no digest."""
    write("stranger.py", SOURCE)
    with pytest.raises(RegistrationError, match="stranger must define 'Leyer' at its top level"):
        code_digest(["stranger:Leyer"])


# Components: functions that were imported.


def _imported(write: Write, text: str, name: str = "stranger") -> ModuleType:
    write(f"{name.replace('.', '/')}.py", text)
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("text", "definition"),
    [
        ("def mine(x): ...", "mine"),
        ("class mine: ...", "mine"),
        ("def _plain(x): ...\nmine = _plain", "_plain"),
        ("_make = lambda by: lambda x: by\nmine = _make(2)", "mine"),
        ("import functools\n@functools.cache\ndef mine(x): ...", "mine"),
        ("def _twice(f):\n    return lambda x: f(f(x))\n@_twice\ndef mine(x): ...", "mine"),
        ("import functools\ndef _plain(x): ...\nmine = functools.wraps(_plain)(lambda x: 2)", "mine"),
    ],
)
def test_component_is_found_by_its_name(write: Write, text: str, definition: str) -> None:
    """The definition of a component is the statement that gives its module the function."""
    mine = _imported(write, f"{text}\n").mine
    assert component_digest(mine) == code_digest([f"stranger:{definition}"])


def test_component_whose_name_was_given_to_a_wrapper_is_its_own_definition(write: Write) -> None:
    """A decorator above the one that registers leaves a component without a name."""
    module = _imported(write, "KEPT = []\n@lambda f: 1\n@lambda f: KEPT.append(f) or f\ndef mine(x): ...\n")
    assert component_digest(module.KEPT[0]) == code_digest(["stranger:mine"])


@pytest.mark.parametrize(
    "text",
    [
        "def _make():\n    def inner(x): ...\n    return [inner]\nmine = _make()",
        "mine = [lambda x: 2]",
        "import functools\ndef _plain(x): ...\nmine = [functools.wraps(_plain)(lambda x: 2)]",
    ],
)
def test_component_without_a_name_is_refused(write: Write, text: str) -> None:
    """What made a function that no name holds cannot be told from its code."""
    (mine,) = _imported(write, f"{text}\n").mine
    with pytest.raises(RegistrationError, match=r"in stranger must be found by its name, .*define it with def"):
        component_digest(mine)


def test_component_of_a_notebook_is_refused() -> None:
    """A function of a module without a file could change unnoticed."""
    space: dict[str, Any] = {"__name__": "notebook"}
    exec("def mine(x): ...", space)
    with pytest.raises(RegistrationError, match=r"the code of notebook must be in a file, .*move its definitions"):
        component_digest(space["mine"])


def test_partial_is_refused() -> None:
    """Options may name other components, which the digest of a function alone would miss."""
    with pytest.raises(RegistrationError, match="only functions and classes have a code digest, .* use digest_of"):
        component_digest(partial(identify))


def test_digest_of_several_functions_has_no_order(write: Write) -> None:
    """The digest of several functions is that of the set."""
    module = _imported(write, "def a(x): ...\ndef b(x): ...\n")
    assert component_digest(module.a, module.b) == component_digest(module.b, module.a) != component_digest(module.a)


COMPONENTS = [(kind, name) for kind in sorted(KINDS) for name in KINDS[kind].names()]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_addition_beside_built_in_components_changes_no_digest(edit: Write, kind: str) -> None:
    """A new component in the module of another changes the digest of none."""
    functions = [KINDS[kind].get(name).function for name in KINDS[kind].names()]
    before = [component_digest(function) for function in functions]
    new = f'\n\n@KINDS["{kind}"].register("new")\ndef new(x, *, width: int = 1):\n    return np.exp(width * x)\n'
    for module in {function.__module__ for function in functions}:
        edit(module, Path(sys.modules[module].__file__ or "").read_text() + new)
    assert [component_digest(function) for function in functions] == before


METRICS = [KINDS["metric"].get(name).function for name in KINDS["metric"].names()]


@pytest.mark.parametrize("module", sorted({metric.__module__ for metric in METRICS}))
def test_edit_changes_exactly_the_metrics_that_reach_it(edit: Write, module: str) -> None:
    """Replica: a metric reaches the functions that its compiled code names, and those of what it names."""
    source = Path(sys.modules[module].__file__ or "").read_text()
    reached = {metric: _named_by(metric) for metric in METRICS if metric.__module__ == module}
    before = {metric: component_digest(metric) for metric in reached}
    functions = re.findall(r"^def (\w+)\(", source, flags=re.MULTILINE)
    assert set.union(*reached.values()) <= set(functions)
    for name in functions:
        edit(module, re.sub(rf"^def {name}\(", rf"@edited\ndef {name}(", source, flags=re.MULTILINE))
        changed = {metric for metric in reached if component_digest(metric) != before[metric]}
        assert changed == {metric for metric in reached if name in reached[metric]}, name


def _named_by(value: Any) -> set[str]:
    """Names of the functions of a module that one of them calls, directly, through tables or classes."""
    found: set[str] = set()
    home = vars(sys.modules[value.__module__])
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType) and value.__globals__ is home:
            found |= {value.__name__} & home.keys()
            waiting += [home[name] for name in _globals(value.__code__) if name in home]
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, type) and value.__module__ == home["__name__"]:
            waiting += vars(value).values()
        elif isinstance(value, property):
            waiting.append(value.fget)
    return found


def _globals(code: CodeType) -> list[str]:
    found = [step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    for constant in code.co_consts:
        found += _globals(constant) if isinstance(constant, CodeType) else []
    return found


# Components that name others.

WRAPPERS = """
def first(x):
    return 1


def second(x):
    return 2


def noisy(x, *, method="first"):
    return x


def twice(x, *, method="noisy"):
    return x
"""


@pytest.fixture
def methods(write: Write) -> Registry:
    """Two methods, and two that wrap the one that an option names."""
    module = _imported(write, WRAPPERS)
    registry = Registry("attribution", "stranger")
    for name in ("first", "second"):
        registry.register(name)(getattr(module, name))
    for name in ("noisy", "twice"):
        registry.register(name, wraps="method")(getattr(module, name))
    return registry


def _changed_by(write: Write, old: str, registry: Registry, name: str, **options: Any) -> bool:
    """Whether an edit of the methods changes the digest of one of them."""
    component = partial(registry.get(name).function, **options)
    before = digest_of(component, registry)
    assert WRAPPERS.count(old) == 1
    write("stranger.py", WRAPPERS.replace(old, "return 3"))
    after = digest_of(component, registry)
    write("stranger.py", WRAPPERS)
    return after != before


@pytest.mark.parametrize(("options", "wrapped"), [({}, "return 1"), ({"method": "second"}, "return 2")])
def test_digest_follows_the_component_that_an_option_names(
    write: Write, methods: Registry, options: Any, wrapped: str
) -> None:
    """A wrapper depends on the method that it wraps, by default or as its option says, and on no other."""
    changed = {old for old in ("return 1", "return 2") if _changed_by(write, old, methods, "noisy", **options)}
    assert changed == {wrapped}


def test_wrapper_of_a_wrapper_follows_both(write: Write, methods: Registry) -> None:
    """A wrapper that wraps another depends on what that one wraps."""
    assert _changed_by(write, "return 1", methods, "twice")


@pytest.mark.parametrize("nothing", [None, ""])
def test_wrapper_that_wraps_nothing_is_itself(write: Write, methods: Registry, nothing: Any) -> None:
    """An option without a name leads to no other component."""
    assert not _changed_by(write, "return 1", methods, "noisy", method=nothing)


def test_wrapper_of_itself_is_refused(methods: Registry) -> None:
    """A circle of wrappers has no digest."""
    with pytest.raises(RegistrationError, match="must not refer to each other in a circle, got noisy → noisy"):
        digest_of(partial(methods.get("noisy").function, method="noisy"), methods)


@pytest.mark.parametrize("fact", ["chance", "ceiling"])
def test_digest_of_a_metric_follows_its_chance_and_ceiling(write: Write, methods: Registry, fact: str) -> None:
    """The value that no skill scores stands beside the metric's, and so must the code that makes it."""
    methods.register("second", **{fact: "first"})(methods.get("second").function)
    assert _changed_by(write, "return 1", methods, "second")


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_has_a_digest(kind: str, name: str) -> None:
    """The code of every built-in component is found, and nothing counts as a whole module."""
    function = KINDS[kind].get(name).function
    assert len(digest_of(partial(function), KINDS[kind])) == 20
    assert not [found for found in _reached(identity._name_of(function)) if ":" not in found]


def test_module_that_is_compiled_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a source, the bytes of the file count."""
    library = tmp_path / "binary.so"
    library.write_bytes(b"machine code")
    monkeypatch.setattr(identity, "_file", lambda module: library)
    assert module_digest.__wrapped__("binary") == hashlib.sha256(b"machine code").hexdigest()


def test_module_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part defined in a notebook could change unnoticed."""
    monkeypatch.setattr(identity, "_file", lambda module: None)
    with pytest.raises(RegistrationError, match=r"the code of notebook must be in a file, .*move its definitions"):
        module_digest.__wrapped__("notebook")


def test_script_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part defined in a script that is run has the script's code."""
    script = tmp_path / "script.py"
    script.write_text("x = 1\n")
    main = type(sys)("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert identity._file.__wrapped__("__main__") == script


def test_canonical_text_is_that_of_equal_values() -> None:
    """Order of keys, tuples and numpy numbers make no difference."""
    assert canonical({"b": (1, 2), "a": np.float64(0.5)}) == '{"a":0.5,"b":[1,2]}'


def test_sets_have_no_order() -> None:
    """A set is written sorted."""
    assert canonical({"c", "a", "b"}) == '["a","b","c"]'


def test_identity_is_the_hash_of_the_text() -> None:
    """Replica: the first 20 hex digits of SHA-256."""
    assert identify({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:20]


def test_nan_has_no_identity() -> None:
    """NaN is not equal to itself."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        identify(float("nan"))


def test_objects_have_no_identity() -> None:
    """Only plain JSON can be identified."""
    with pytest.raises(TypeError, match="an identity must be plain JSON, got object"):
        identify(object())


def _reached(name: str) -> set[str]:
    """Definitions, and modules as a whole, whose digest enters a code digest."""
    return {found for found, _ in identity._reached((name,))}


def test_a_digest_imports_no_library() -> None:
    """Code is read, not run: what a module imports from outside is not looked for."""
    script = """
import sys
from harness.core.identity import code_digest
code_digest(["harness.models.unet", "harness.models.unet:basic_unet", "harness.attribution.gradients:saliency"])
print(*sorted({"captum", "monai"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_another_process_read_is_not_analysed_again(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """Equal bytes have one digest, whoever computed it; other bytes are analysed."""
    write("stranger.py", SOURCE)
    before = code_digest(["stranger"])
    known = codes_read()
    monkeypatch.setattr(identity, "_read", {})
    write("stranger.py", SOURCE)
    remember(known)
    monkeypatch.setattr(identity, "analyse", lambda text: pytest.fail("analysed again"))
    assert code_digest(["stranger"]) == before
    write("stranger.py", SOURCE + "\nNEW = 1\n")
    with pytest.raises(pytest.fail.Exception, match="analysed again"):
        code_digest(["stranger"])
