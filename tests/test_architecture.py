"""Layers are folders: a module imports from its own layer or below, and each layer has its own rules.

Source files are parsed and not imported, so imports inside functions count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Folder → layer. A module belongs to the layer of its folder; add new folders here.
LAYERS = {
    "core": 0,
    "adapters": 1,
    "attribution": 1,
    "metrics": 1,
    "models": 1,
    "recipes": 1,
    "simulation": 1,
    "stats": 1,
    "testing": 1,  # harness/testing.py with the shipped conformance checks, which may use temporary folders
    "data": 2,
    "storage": 2,
    "pipeline": 3,
    "sweep": 4,
    "tracking": 4,
    "tuning": 4,
    "report": 5,
    "cli": 6,
    "__main__": 6,
}
COMPONENTS, CLI = 1, 6

# Found by name and never imported by harness itself.
STUDIES = ("harness.tasks", "harness.search_spaces")
# What a task may import beside components: the loaders of cohorts.
LOADERS = ("harness.data.",)

# Only loaders generate data; whatever evaluates them may not know how they were made.
GENERIC = ("pipeline", "sweep", "report")
# Large libraries, with the only folders that may import them.
CONFINED = {"ray": ("tuning",), "optuna": ("tuning",), "mlflow": ("tracking",), "matplotlib": ("report",)}
CORE_MAY_USE = {"annotated_types", "numpy"}
# Importing these takes 0.1 s or more, so only the functions that use them may do it.
CORE_MAY_USE_LATE = {"harness.core.values": {"pydantic"}, "harness.core.targets": {"scipy"}}
OUTSIDE_WORLD = {"datetime", "glob", "logging", "os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "time"}
GENERATORS = {"BitGenerator", "Generator", "PCG64", "SeedSequence", "default_rng"}
# These modules restore the global random state after third-party code.
GUARDS = ("harness.attribution.isolation", "harness.testing")


@dataclass(frozen=True)
class Import:
    """An imported name: ``module`` is the full dotted name, and ``late`` is true inside a function."""

    module: str
    line: int
    late: bool


def sources() -> dict[str, Path]:
    """Files of all installed modules by dotted name."""
    homes = {"harness": "harness", "harness.tasks": "tasks", "harness.search_spaces": "search_spaces"}
    found = {}
    for name, home in homes.items():
        for path in sorted((ROOT / home).rglob("*.py")):
            parts = [name, *path.relative_to(ROOT / home).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


SOURCES = sources()


def imports(module: str, tree: ast.Module, *, package: bool) -> Iterator[Import]:
    """All imports of a module, also inside functions, by full dotted name."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*home, *filter(None, [node.module])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield Import(below if below in SOURCES else base, node.lineno, id(node) in late)


def folder_of(module: str) -> str:
    """The folder of a module below ``harness``, or an empty string for ``harness`` itself."""
    return module.removeprefix("harness").lstrip(".").partition(".")[0]


def layer_of(module: str) -> int:
    """Number of a module's layer, which is 0 for ``harness`` itself."""
    return LAYERS.get(folder_of(module), 0)


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """Violations of the rules by a module.

    Parameters
    ----------
    module : dotted name
    source : its text
    package : whether it is an ``__init__``
    """
    study = _within(module, STUDIES)
    if not study and folder_of(module) and folder_of(module) not in LAYERS:
        return [f"{module} is in no layer: add its folder to LAYERS in tests/test_architecture.py"]
    tree = ast.parse(source)
    check = _import_in_study if study else _import_in_layer
    found = [
        f"{module}:{one.line} {problem}"
        for one in imports(module, tree, package=package)
        for problem in check(module, one)
    ]
    return found + [f"{module}:{line} {problem}" for line, problem in _calls(module, tree)]


def _import_in_layer(module: str, one: Import) -> Iterator[str]:
    layer, top = layer_of(module), one.module.partition(".")[0]
    if _within(one.module, (*STUDIES, "tasks", "search_spaces")):
        yield f"imports {one.module}: tasks are found by their name, never imported from inside"
    elif top == "harness":
        # The package imports its command line for type checkers, and lazily on access.
        if layer_of(one.module) > layer and module != "harness":
            yield f"imports {one.module}, which is in a higher layer: imports go downwards or sideways"
        elif folder_of(module) in GENERIC and folder_of(one.module) == "simulation":
            yield f"imports {one.module}: results may not depend on how data were simulated"
    elif top in CONFINED and folder_of(module) not in CONFINED[top]:
        yield f"imports {top}, which may be imported in harness/{CONFINED[top][0]} only"
    elif folder_of(module) == "core" and top not in sys.stdlib_module_names | CORE_MAY_USE:
        if not (one.late and top in CORE_MAY_USE_LATE.get(module, ())):
            yield f"imports {top}: core may import the standard library, {' and '.join(sorted(CORE_MAY_USE))} only"
    elif layer == COMPONENTS and top in OUTSIDE_WORLD and folder_of(module) != "testing":
        yield f"imports {top}: components take and give arrays, without files, clock or log"


def _import_in_study(module: str, one: Import) -> Iterator[str]:
    if _within(one.module, ("tasks", "search_spaces")):
        yield f"imports {one.module}, which may be a third-party module: say harness.{one.module}"
    elif one.module.partition(".")[0] == "harness" and not _within(one.module, STUDIES):
        if layer_of(one.module) > COMPONENTS and not one.module.startswith(LOADERS):
            yield f"imports {one.module}: a task may import core, components and the loaders in harness.data"
    elif one.module.partition(".")[0] in CONFINED:
        yield f"imports {one.module}, which tasks do not need"


def _calls(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    layer = COMPONENTS if _within(module, STUDIES) else layer_of(module)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"print", "sys.stdout.write", "sys.stderr.write", "sys.exit", "input"} and layer < CLI:
            yield node.lineno, f"calls {called}: only the command line prints, asks and exits"
        if called in {"os.chdir", "contextlib.chdir", "chdir"}:
            yield node.lineno, f"calls {called}: the working folder belongs to the user and to all threads"
        if layer == COMPONENTS and called == "open":
            yield node.lineno, "calls open: components take and give arrays, without files, clock or log"
        home, _, name = called.rpartition(".")
        if home in {"np.random", "numpy.random"} and name not in GENERATORS and module not in GUARDS:
            yield node.lineno, f"calls {called}, which touches the global random state: take a generator"


def _within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_follows_the_rules_of_its_layer(module: str) -> None:
    """Every module follows the rules of its layer."""
    path = SOURCES[module]
    found = violations(module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


def test_every_layer_exists() -> None:
    """Every folder in the table of layers exists."""
    assert not sorted(set(LAYERS) - {folder_of(module) for module in SOURCES})


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        ("harness.brand_new.module", "", "is in no layer"),
        ("harness.metrics.distance", "from harness.data.nifti import read", "imports go downwards or sideways"),
        ("harness.metrics.distance", "def f():\n    import harness.storage.store", "imports go downwards or sideways"),
        ("harness.metrics.distance", "from ..storage.store import Store", "imports go downwards or sideways"),
        ("harness.storage.store", "from harness.sweep import plan", "imports go downwards or sideways"),
        ("harness.pipeline.job", "from harness.tuning.jobs import session", "imports go downwards or sideways"),
        ("harness.pipeline.score", "from harness.simulation.lesion_scores import ROI", "how data were simulated"),
        ("harness.report.page", "def f():\n    from harness.simulation import mri", "how data were simulated"),
        ("harness.tracking.tracker", "from harness.report import page", "imports go downwards or sideways"),
        ("harness.cli.api", "from harness.tasks.epvs import TASK", "never imported from inside"),
        ("harness.cli.api", "from harness.tasks import epvs", "never imported from inside"),
        ("harness.cli.api", "import search_spaces", "never imported from inside"),
        ("harness.cli.api", "def f():\n    from ray import tune", "harness/tuning only"),
        ("harness.sweep.plan", "import optuna", "harness/tuning only"),
        ("harness.tuning.jobs", "import mlflow", "harness/tracking only"),
        ("harness.data.maps", "def f():\n    from matplotlib import colormaps", "harness/report only"),
        ("harness.core.errors", "import torch", "core may import"),
        ("harness.core.errors", "def f():\n    import pydantic", "core may import"),
        ("harness.core.task", "import pydantic", "core may import"),
        ("harness.core.targets", "import scipy.special", "core may import"),
        ("harness.adapters.volume_control", "from pathlib import Path", "take and give arrays"),
        ("harness.adapters.volume_control", "open('x')", "take and give arrays"),
        ("harness.simulation.mri", "import numpy as np\nnp.random.rand(3)", "global random state"),
        ("harness.sweep.plan", "print('hello')", "only the command line prints"),
        ("harness.tuning.jobs", "import contextlib\nwith contextlib.chdir('x'): pass", "working folder"),
        ("harness.tasks.epvs", "from tasks import other", "third-party"),
        ("harness.tasks.epvs", "from harness.storage.store import Store", "loaders in harness.data"),
        ("harness.tasks.epvs", "import mlflow", "do not need"),
    ],
)
def test_a_broken_rule_is_reported(module: str, source: str, violation: str) -> None:
    """Each rule reports the violation that it is for."""
    assert any(violation in one for one in violations(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.storage.store", "from harness.metrics import compute"),
        ("harness.storage.store", "import os\nfrom harness.data import nifti"),
        ("harness.tuning.search", "import optuna\nimport ray"),
        ("harness.cli.console", "print('hello')"),
        ("harness.core.values", "def f():\n    from pydantic import TypeAdapter"),
        ("harness.core.targets", "def f():\n    import scipy.special"),
        ("harness.tasks.epvs", "from harness.search_spaces.epvs import SPACES\nfrom harness.data.cohort import bids"),
    ],
)
def test_allowed_code_gives_no_violation(module: str, source: str) -> None:
    """Allowed imports and calls give no violation."""
    assert violations(module, source) == []


def test_core_imports_quickly() -> None:
    """Importing core and the command line loads no slow library such as torch."""
    core = [name for name in SOURCES if folder_of(name) == "core"]
    slow = {"captum", "hydra", "matplotlib", "mlflow", "monai", "optuna", "pandas", "pydantic", "ray", "scipy", "torch"}
    script = f"import sys, harness.cli.main, {', '.join(core)}; print(*sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
