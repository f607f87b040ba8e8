"""Identities: equal for what is equal, different for what changes a result."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.core import identity
from harness.core.errors import RegistrationError
from harness.core.identity import canonical, code_digest, codes_read, identify, module_digest, remember

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


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write modules of a third party, and forget what was read of them before."""
    monkeypatch.syspath_prepend(str(tmp_path))

    caches = (identity.module_digest, identity._closure, identity._imports, identity._file, identity._code)

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()
        importlib.invalidate_caches()

    def one(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        forget()

    yield one
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("strange", "stranger")]:
        del sys.modules[name]


@pytest.mark.parametrize("edit", SAME)
def test_edit_that_computes_the_same_changes_no_digest(write: Callable, edit: str) -> None:
    """Docstrings, comments and formatting are not code."""
    write("stranger.py", SOURCE)
    before = module_digest("stranger")
    write("stranger.py", SAME[edit])
    assert module_digest("stranger") == before


@pytest.mark.parametrize("edit", OTHER)
def test_edit_of_code_changes_the_digest(write: Callable, edit: str) -> None:
    """What may compute something else is another code."""
    write("stranger.py", SOURCE)
    before = module_digest("stranger")
    write("stranger.py", OTHER[edit])
    assert module_digest("stranger") != before


@pytest.mark.parametrize(
    "statement",
    [
        "from .layers import scale",
        "from . import layers",
        "from strange.layers import scale",
        "import strange.layers",
        "def build():\n    from strange.layers import scale",
        "from strange.more import scale",
    ],
)
def test_digest_follows_imports_of_a_third_party(write: Callable, statement: str) -> None:
    """Editing what a part imports, directly or through another module, changes its digest."""
    write("strange/__init__.py", "")
    write("strange/layers.py", "def scale(x):\n    return x\n")
    write("strange/more.py", "from .layers import scale\n")
    write("strange/model.py", statement + "\n")
    before = code_digest(["strange.model"])
    write("strange/layers.py", "def scale(x):\n    return 2 * x\n")
    assert code_digest(["strange.model"]) != before


def test_digest_ignores_modules_that_are_not_imported(write: Callable) -> None:
    """Editing a neighbour changes nothing."""
    write("strange/__init__.py", "")
    write("strange/model.py", "x = 1\n")
    write("strange/report.py", "y = 1\n")
    before = code_digest(["strange.model"])
    write("strange/report.py", "y = 2\n")
    assert code_digest(["strange.model"]) == before


def test_third_party_parts_follow_their_imports_of_harness(monkeypatch: pytest.MonkeyPatch, write: Callable) -> None:
    """A stranger's model that uses a harness module depends on it."""
    write("stranger.py", "from harness.models.unet import unet\n")
    assert {"stranger", "harness.models.unet", "harness.models.padding"} <= _reached(monkeypatch, "stranger")


def test_closure_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training depends on its recipes and their augmentation, not on the door, reports or metrics."""
    reached = _reached(monkeypatch, "harness.pipeline.train")
    assert {
        "harness.pipeline.train",
        "harness.recipes.recipe",
        "harness.recipes.augmentation",
        "harness.core.seeding",
    } <= reached
    assert not [name for name in reached if name.startswith(("harness.cli", "harness.metrics", "harness.tuning"))]


def test_closure_of_explaining_holds_no_single_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Editing one attribution method leaves the maps of the others valid."""
    assert "harness.attribution.perturbations" not in _reached(monkeypatch, "harness.pipeline.explain")


def test_module_that_is_compiled_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a source, the bytes of the file count."""
    library = tmp_path / "binary.so"
    library.write_bytes(b"machine code")
    monkeypatch.setattr(identity, "_file", lambda module: library)
    assert module_digest.__wrapped__("binary") == hashlib.sha256(b"machine code").hexdigest()


def test_module_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part defined in a notebook could change unnoticed."""
    monkeypatch.setattr(identity, "_file", lambda module: None)
    with pytest.raises(RegistrationError, match=r"the code of notebook must be in a file, .*move what it defines"):
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
    with pytest.raises(TypeError, match="an identity holds plain JSON only, got object"):
        identify(object())


def _reached(monkeypatch: pytest.MonkeyPatch, module: str) -> set[str]:
    """Modules whose digest enters a code digest."""
    reached: set[str] = set()

    def digest(name: str) -> str:
        reached.add(name)
        return name

    monkeypatch.setattr(identity, "module_digest", digest)
    code_digest([module])
    return reached


def test_a_digest_imports_no_library() -> None:
    """Code is read, not run: what a module imports from outside is not looked for."""
    script = """
import sys
from harness.core.identity import code_digest
code_digest(["harness.models.unet", "harness.attribution.gradients"])
print(*sorted({"captum", "monai"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_another_process_read_is_not_analysed_again(monkeypatch: pytest.MonkeyPatch, write: Callable) -> None:
    """Equal bytes have one digest, whoever computed it; other bytes are analysed."""
    write("stranger.py", SOURCE)
    before = code_digest(["stranger"])
    known = codes_read()
    monkeypatch.setattr(identity, "_read", {})
    write("stranger.py", SOURCE)
    remember(known)
    monkeypatch.setattr(identity, "_analysed", lambda text: pytest.fail("analysed again"))
    assert code_digest(["stranger"]) == before
    write("stranger.py", SOURCE + "\nNEW = 1\n")
    with pytest.raises(pytest.fail.Exception, match="analysed again"):
        code_digest(["stranger"])
