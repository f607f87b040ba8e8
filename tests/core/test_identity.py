"""Identities are equal for equal content and differ if anything that affects a result differs."""

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
from harness.metrics.resampling import resampled_by

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


def clear_caches() -> None:
    """Clear the caches of module files and source analyses."""
    for name in CACHES:
        getattr(getattr(identity, name), "cache_clear", lambda: None)()  # a test may have replaced the function
    importlib.invalidate_caches()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that writes a third-party module and clears the caches."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def one(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        clear_caches()

    yield one
    clear_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("package", "third_party")]:
        del sys.modules[name]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that replaces the source text of an existing module."""
    texts: dict[str, Path] = {}
    where = identity._file.__wrapped__
    monkeypatch.setattr(identity, "_file", lambda module: texts.get(module) or where(module))

    def one(module: str, text: str) -> None:
        texts[module] = tmp_path / f"{module}.py"
        texts[module].write_text(text)
        clear_caches()

    yield one
    texts.clear()
    clear_caches()


@pytest.mark.parametrize("case", SAME)
def test_edit_without_effect_changes_no_digest(write: Write, case: str) -> None:
    """Docstrings, comments and formatting do not change the digest."""
    write("third_party.py", SOURCE)
    before = module_digest("third_party"), code_digest(["third_party:Layer"])
    write("third_party.py", SAME[case])
    assert (module_digest("third_party"), code_digest(["third_party:Layer"])) == before


@pytest.mark.parametrize("case", OTHER)
def test_edit_of_code_changes_the_digest(write: Write, case: str) -> None:
    """A change of code changes the digest."""
    write("third_party.py", SOURCE)
    before = module_digest("third_party")
    write("third_party.py", OTHER[case])
    assert module_digest("third_party") != before


FORMS = {
    "from import": ("from package.layers import scale\n", "scale(x)"),
    "relative import": ("from .layers import scale\n", "scale(x)"),
    "renamed import": ("from .layers import scale as by\n", "by(x)"),
    "module": ("from . import layers\n", "layers.scale(x)"),
    "renamed module": ("from . import layers as them\n", "them.scale(x)"),
    "dotted module": ("import package.layers\n", "package.layers.scale(x)"),
    "renamed dotted module": ("import package.layers as them\n", "them.scale(x)"),
    "re-export": ("from package.more import scale\n", "scale(x)"),
    "re-export of a package": ("from package import scale\n", "scale(x)"),
    "re-export as an attribute": ("import package\n", "package.scale(x)"),
    "package below": ("import package.below\n", "package.below.scale(x)"),
    "two levels up": ("from package.below import deep\n", "deep.scale(x)"),
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
    "import of a module in the function": ("", "1\n    import package.layers\n    return package.layers.scale(x)"),
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
    write("package/__init__.py", "from .layers import scale\n")
    write("package/layers.py", layers)
    write("package/more.py", "from .layers import scale\n")
    write("package/stars.py", "from .layers import *\n")
    write("package/below/__init__.py", "from ..layers import scale\n")
    write("package/below/deep.py", "from .. import layers\nfrom ..layers import scale\n")
    write("package/model.py", f"{head}def model(x):\n    return {body}\n\n\ndef beside(x):\n    return x\n")


def _edits(write: Write, head: str, body: str) -> dict[str, bool]:
    """For each edited definition, whether the digest of the model that uses the module changes."""
    _package(write, head, body)
    before = code_digest(["package.model:model"])
    edits = {"_factor": ("return 2", "return 3"), "neighbour": ("    return x\n", "    return 2 * x\n")}
    changed = {}
    for name, (old, new) in edits.items():
        assert LAYERS.count(old) == 1
        write("package/layers.py", LAYERS.replace(old, new))
        changed[name] = code_digest(["package.model:model"]) != before
    return changed


@pytest.mark.parametrize("form", FORMS)
def test_digest_follows_names_to_their_definitions(write: Write, form: str) -> None:
    """However a function is imported, its own dependencies are in the digest and its neighbours are not."""
    assert _edits(write, *FORMS[form]) == {"_factor": True, "neighbour": False}


@pytest.mark.parametrize("form", WHOLE)
def test_digest_covers_the_whole_module_for_dynamic_lookups(write: Write, form: str) -> None:
    """If a name is looked up at run time, the digest covers the whole module."""
    assert _edits(write, *WHOLE[form]) == {"_factor": True, "neighbour": True}


@pytest.mark.parametrize("body", ["x", "(lambda scale: scale(x))(abs)", "[scale for scale in x]", "x.scale(x)"])
def test_digest_ignores_unused_imports(write: Write, body: str) -> None:
    """An unused import, or a local name equal to an imported one, adds nothing to the digest."""
    assert _edits(write, "from .layers import scale\n", body) == {"_factor": False, "neighbour": False}


def test_digest_ignores_names_in_annotations(write: Write) -> None:
    """Names that occur only in annotations are not in the digest."""
    head = (
        "from __future__ import annotations\nfrom .layers import Scale\ndef helper(x: Scale) -> Scale:\n    return x\n"
    )
    assert _edits(write, head, "helper(x)") == {"_factor": False, "neighbour": False}


def test_digest_covers_annotations_of_the_function(write: Write) -> None:
    """Annotations of the function itself, such as the bound of an option, are in the digest."""
    text = "from annotated_types import Ge\ndef model(*, width: Annotated[int, Ge(1)] = 2): ...\n"
    write("third_party.py", text)
    before = code_digest(["third_party:model"])
    write("third_party.py", text.replace("Ge(1)", "Ge(2)"))
    assert code_digest(["third_party:model"]) != before


@pytest.mark.parametrize(
    "addition", ["def new(x):\n    return x\n", "import math\n", "NEW = 1\n", "from .layers import scale as new\n"]
)
def test_additions_to_a_module_change_no_digest(write: Write, addition: str) -> None:
    """A new component or import beside a component does not change its digest."""
    head, body = FORMS["helper"]
    _package(write, head, body)
    before = code_digest(["package.model:model"])
    write("package/model.py", f"{addition}{head}def model(x):\n    return {body}\n")
    assert code_digest(["package.model:model"]) == before


def test_digest_of_a_module_covers_its_imports(write: Write) -> None:
    """The digest of a whole module covers the modules that it imports."""
    _package(write, *FORMS["from import"])
    before = code_digest(["package.model"])
    write("package/layers.py", LAYERS + "NEW = 1\n")
    assert code_digest(["package.model"]) != before


def test_digest_ignores_modules_that_are_not_imported(write: Write) -> None:
    """Editing a module that is not imported does not change the digest."""
    write("package/__init__.py", "")
    write("package/model.py", "x = 1\n")
    write("package/report.py", "y = 1\n")
    before = code_digest(["package.model"])
    write("package/report.py", "y = 2\n")
    assert code_digest(["package.model"]) == before


def test_package_without_a_file_is_followed(write: Write) -> None:
    """Modules of a namespace package, which has no source file, are followed."""
    write("package/layers.py", "def scale(x):\n    return x\n")
    write("package/model.py", "from package import layers\ndef model(x):\n    return layers.scale(x)\n")
    assert set(_reached("package.model:model")) == {
        "package.layers:scale",
        "package.model:layers",
        "package.model:model",
    }


def test_modules_that_import_each_other_are_read_once(write: Write) -> None:
    """Circular imports are followed once."""
    write("package/__init__.py", "")
    write("package/a.py", "from . import b\ndef f():\n    return b.g()\n")
    write("package/b.py", "from .a import f\ndef g():\n    return f()\n")
    assert set(_reached("package.a:f")) == {"package.a:b", "package.a:f", "package.b:f", "package.b:g"}


def test_third_party_components_follow_their_imports_of_harness(write: Write) -> None:
    """A third-party model depends on the definitions of ``harness`` that it uses and on no others."""
    write("third_party.py", "from harness.models.unet import unet\ndef mine(x):\n    return unet(x)\n")
    reached = _reached("third_party:mine")
    assert {"third_party:mine", "harness.models.unet:_UNet", "harness.models.padding:Padded"} <= reached
    assert "harness.models.unet:basic_unet" not in reached


def test_closure_of_training() -> None:
    """Training depends on its loop and random streams, not on command line, tuning, metrics or augmentation."""
    reached = _reached("harness.pipeline.train:train")
    assert {"harness.pipeline.train:_one_epoch", "harness.core.seeding:seed_of"} <= reached
    above = ("harness.cli", "harness.metrics", "harness.tuning", "harness.recipes.augmentation")
    assert not [name for name in reached if name.startswith(above)]


def test_closure_of_explain_contains_no_attribution_method() -> None:
    """The code of ``explain`` contains no single attribution method, so editing one keeps the maps of others."""
    methods = {identity._name_of(KINDS["attribution"].get(name).function) for name in KINDS["attribution"].names()}
    assert not _reached("harness.pipeline.explain:explain") & methods


def test_code_of_a_registry_is_in_no_digest() -> None:
    """The code of a registry is in no digest, since a registry returns functions unchanged."""
    assert not [name for name in _reached("harness.models.unet:unet") if name.startswith("harness.core.registry")]


def test_unknown_definition_is_refused(write: Write) -> None:
    """A name that the module does not define is refused."""
    write("third_party.py", SOURCE)
    with pytest.raises(RegistrationError, match="third_party must define 'Leyer' at its top level"):
        code_digest(["third_party:Leyer"])


# Components: functions that were imported.


def _imported(write: Write, text: str, name: str = "third_party") -> ModuleType:
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
    """The definition of a component is the statement that binds its name in the module."""
    mine = _imported(write, f"{text}\n").mine
    assert component_digest(mine) == code_digest([f"third_party:{definition}"])


def test_component_whose_name_is_bound_to_a_wrapper(write: Write) -> None:
    """A component whose name was bound to a wrapper is identified by its own definition."""
    module = _imported(write, "KEPT = []\n@lambda f: 1\n@lambda f: KEPT.append(f) or f\ndef mine(x): ...\n")
    assert component_digest(module.KEPT[0]) == code_digest(["third_party:mine"])


@pytest.mark.parametrize(
    "text",
    [
        "def _make():\n    def inner(x): ...\n    return [inner]\nmine = _make()",
        "mine = [lambda x: 2]",
        "import functools\ndef _plain(x): ...\nmine = [functools.wraps(_plain)(lambda x: 2)]",
    ],
)
def test_component_without_a_name_is_refused(write: Write, text: str) -> None:
    """A function that cannot be found by its name is refused."""
    (mine,) = _imported(write, f"{text}\n").mine
    with pytest.raises(RegistrationError, match=r"in third_party must be found by its name, .*define it with def"):
        component_digest(mine)


def test_component_of_a_notebook_is_refused() -> None:
    """A function of a module without a file is refused, since it could change unnoticed."""
    space: dict[str, Any] = {"__name__": "notebook"}
    exec("def mine(x): ...", space)
    with pytest.raises(RegistrationError, match=r"the code of notebook must be in a file, .*move its definitions"):
        component_digest(space["mine"])


def test_partial_is_refused() -> None:
    """A partial is refused, since its options may name other components."""
    with pytest.raises(RegistrationError, match="only functions and classes have a code digest, .* use digest_of"):
        component_digest(partial(identify))


def test_digest_of_several_functions_ignores_order(write: Write) -> None:
    """The digest of several functions does not depend on their order."""
    module = _imported(write, "def a(x): ...\ndef b(x): ...\n")
    assert component_digest(module.a, module.b) == component_digest(module.b, module.a) != component_digest(module.a)


COMPONENTS = [(kind, name) for kind in sorted(KINDS) for name in KINDS[kind].names()]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_addition_beside_built_in_components_changes_no_digest(edit: Write, kind: str) -> None:
    """Adding a component to a module changes the digest of no existing component."""
    functions = [KINDS[kind].get(name).function for name in KINDS[kind].names()]
    before = [component_digest(function) for function in functions]
    new = f'\n\n@KINDS["{kind}"].register("new")\ndef new(x, *, width: int = 1):\n    return np.exp(width * x)\n'
    for module in {function.__module__ for function in functions}:
        edit(module, Path(sys.modules[module].__file__ or "").read_text() + new)
    assert [component_digest(function) for function in functions] == before


METRICS = [KINDS["metric"].get(name).function for name in KINDS["metric"].names()]


@pytest.mark.parametrize("module", sorted({metric.__module__ for metric in METRICS}))
def test_edit_changes_exactly_the_metrics_that_reach_it(edit: Write, module: str) -> None:
    """An edit changes exactly the metrics whose compiled code reaches the edited function."""
    source = Path(sys.modules[module].__file__ or "").read_text()
    reached = {metric: _named_by(metric) for metric in METRICS if metric.__module__ == module}
    for metric in reached:  # the values of bootstrap samples belong to a metric as well
        if resample := resampled_by(metric):
            reached[metric] |= _named_by(resample)
    before = {metric: component_digest(metric) for metric in reached}
    functions = re.findall(r"^def (\w+)\(", source, flags=re.MULTILINE)
    assert set.union(*reached.values()) <= set(functions)
    for name in functions:
        edit(module, re.sub(rf"^def {name}\(", rf"@edited\ndef {name}(", source, flags=re.MULTILINE))
        changed = {metric for metric in reached if component_digest(metric) != before[metric]}
        assert changed == {metric for metric in reached if name in reached[metric]}, name


def _named_by(value: Any) -> set[str]:
    """Names of the functions in a module that one function reaches by calls, tables or classes."""
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


# Components that name other components.

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
    """Two methods and two wrappers, whose option names the wrapped method."""
    module = _imported(write, WRAPPERS)
    registry = Registry("attribution", "third_party")
    for name in ("first", "second"):
        registry.register(name)(getattr(module, name))
    for name in ("noisy", "twice"):
        registry.register(name, wraps="method")(getattr(module, name))
    return registry


def _changed_by(write: Write, old: str, registry: Registry, name: str, **options: Any) -> bool:
    """Whether editing one method changes the digest of the named component."""
    component = partial(registry.get(name).function, **options)
    before = digest_of(component, registry)
    assert WRAPPERS.count(old) == 1
    write("third_party.py", WRAPPERS.replace(old, "return 3"))
    after = digest_of(component, registry)
    write("third_party.py", WRAPPERS)
    return after != before


@pytest.mark.parametrize(("options", "wrapped"), [({}, "return 1"), ({"method": "second"}, "return 2")])
def test_digest_follows_the_component_that_an_option_names(
    write: Write, methods: Registry, options: Any, wrapped: str
) -> None:
    """A wrapper depends on the method that its option names, and on no other."""
    changed = {old for old in ("return 1", "return 2") if _changed_by(write, old, methods, "noisy", **options)}
    assert changed == {wrapped}


def test_wrapper_of_a_wrapper_follows_both(write: Write, methods: Registry) -> None:
    """A wrapper of a wrapper depends on the innermost method."""
    assert _changed_by(write, "return 1", methods, "twice")


@pytest.mark.parametrize("nothing", [None, ""])
def test_wrapper_without_a_method_follows_nothing(write: Write, methods: Registry, nothing: Any) -> None:
    """A wrapper without a wrapped method depends on no method."""
    assert not _changed_by(write, "return 1", methods, "noisy", method=nothing)


def test_wrapper_of_itself_is_refused(methods: Registry) -> None:
    """Wrappers that refer to each other in a circle are refused."""
    with pytest.raises(RegistrationError, match="must not refer to each other in a circle, got noisy → noisy"):
        digest_of(partial(methods.get("noisy").function, method="noisy"), methods)


@pytest.mark.parametrize("fact", ["chance", "ceiling"])
def test_digest_of_a_metric_follows_its_chance_and_ceiling(write: Write, methods: Registry, fact: str) -> None:
    """The digest of a metric covers the functions that compute its chance level and ceiling."""
    methods.register("second", **{fact: "first"})(methods.get("second").function)
    assert _changed_by(write, "return 1", methods, "second")


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_has_a_digest(kind: str, name: str) -> None:
    """Every built-in component has a digest that covers no module as a whole."""
    function = KINDS[kind].get(name).function
    assert len(digest_of(partial(function), KINDS[kind])) == 20
    assert not [found for found in _reached(identity._name_of(function)) if ":" not in found]


def test_compiled_module_is_identified_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled module is identified by the bytes of its file."""
    library = tmp_path / "binary.so"
    library.write_bytes(b"machine code")
    monkeypatch.setattr(identity, "_file", lambda module: library)
    assert module_digest.__wrapped__("binary") == hashlib.sha256(b"machine code").hexdigest()


def test_module_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a file is refused, since its code could change unnoticed."""
    monkeypatch.setattr(identity, "_file", lambda module: None)
    with pytest.raises(RegistrationError, match=r"the code of notebook must be in a file, .*move its definitions"):
        module_digest.__wrapped__("notebook")


def test_file_of_main_is_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of ``__main__`` is the script that is run."""
    script = tmp_path / "script.py"
    script.write_text("x = 1\n")
    main = type(sys)("__main__")
    main.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert identity._file.__wrapped__("__main__") == script


def test_equal_values_have_equal_canonical_text() -> None:
    """Order of keys, tuples and numpy numbers do not change the canonical text."""
    assert canonical({"b": (1, 2), "a": np.float64(0.5)}) == '{"a":0.5,"b":[1,2]}'


def test_order_of_sets_is_ignored() -> None:
    """Sets are written in sorted order."""
    assert canonical({"c", "a", "b"}) == '["a","b","c"]'


def test_identity_is_the_hash_of_the_canonical_text() -> None:
    """The identity is the first 20 hexadecimal digits of the SHA-256 of the canonical text."""
    assert identify({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:20]


def test_nan_has_no_identity() -> None:
    """NaN has no identity, since it is not valid JSON."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        identify(float("nan"))


def test_objects_have_no_identity() -> None:
    """Objects that are not plain JSON have no identity."""
    with pytest.raises(TypeError, match="an identity must be plain JSON, got object"):
        identify(object())


def _reached(name: str) -> set[str]:
    """Definitions and whole modules that a code digest covers."""
    return {found for found, _ in identity._reached((name,))}


def test_computing_a_digest_imports_no_library() -> None:
    """Computing a digest reads source code and imports no library."""
    script = """
import sys
from harness.core.identity import code_digest
code_digest(["harness.models.unet", "harness.models.unet:basic_unet", "harness.attribution.gradients:saliency"])
print(*sorted({"captum", "monai"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_remembered_source_is_not_analysed_again(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """Source analysed by another process is not analysed again; changed source is."""
    write("third_party.py", SOURCE)
    before = code_digest(["third_party"])
    known = codes_read()
    monkeypatch.setattr(identity, "_read", {})
    write("third_party.py", SOURCE)
    remember(known)
    monkeypatch.setattr(identity, "analyse", lambda text: pytest.fail("analysed again"))
    assert code_digest(["third_party"]) == before
    write("third_party.py", SOURCE + "\nNEW = 1\n")
    with pytest.raises(pytest.fail.Exception, match="analysed again"):
        code_digest(["third_party"])
