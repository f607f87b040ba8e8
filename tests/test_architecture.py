"""The house stands: imports go down or sideways, and each floor keeps to what it is for.

Sources are read, not imported, so an import inside a function counts as well.
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

# Every module of harness → its floor: 0 words, 1 maths, 2 files, 3 one cell,
# 4 many cells, 5 the door. A new module is added here by whoever writes it.
FLOORS = {
    "harness": 0,
    "harness.claims": 0,
    "harness.errors": 0,
    "harness.identity": 0,
    "harness.registry": 0,
    "harness.seeding": 0,
    "harness.settings": 0,
    "harness.space": 0,
    "harness.spec": 0,
    "harness.types": 0,
    "harness.adjustment": 1,
    "harness.attribution": 1,
    "harness.attribution.activations": 1,
    "harness.attribution.batches": 1,
    "harness.attribution.boxes": 1,
    "harness.attribution.controls": 1,
    "harness.attribution.gradients": 1,
    "harness.attribution.incremental": 1,
    "harness.attribution.isolation": 1,
    "harness.attribution.occlusion": 1,
    "harness.attribution.perturbations": 1,
    "harness.attribution.postprocessing": 1,
    "harness.attribution.products": 1,
    "harness.augmentation": 1,
    "harness.data": 1,
    "harness.data.splits": 1,
    "harness.data.transforms": 1,
    "harness.metrics": 1,
    "harness.metrics.agreement": 1,
    "harness.metrics.detection": 1,
    "harness.metrics.distance": 1,
    "harness.metrics.evidence": 1,
    "harness.metrics.localisation": 1,
    "harness.metrics.regions": 1,
    "harness.metrics.register": 1,
    "harness.metrics.regression": 1,
    "harness.metrics.segmentation": 1,
    "harness.models": 1,
    "harness.models.fitting": 1,
    "harness.models.layers": 1,
    "harness.models.lesion_field": 1,
    "harness.models.lesion_kernel": 1,
    "harness.models.lesion_linear": 1,
    "harness.models.lesion_networks": 1,
    "harness.models.lesion_univariate": 1,
    "harness.models.padding": 1,
    "harness.models.unet": 1,
    "harness.orderings": 1,
    "harness.recipes": 1,
    "harness.simulation": 1,
    "harness.simulation.brain": 1,
    "harness.simulation.epvs": 1,
    "harness.simulation.lesion_scores": 1,
    "harness.simulation.mri": 1,
    "harness.simulation.phantom": 1,
    "harness.simulation.wmh": 1,
    "harness.statistics": 1,
    "harness.testing": 1,
    "harness.views": 1,
    "harness.data.bids": 2,
    "harness.data.cache": 2,
    "harness.data.cohort": 2,
    "harness.data.lesions": 2,
    "harness.data.maps": 2,
    "harness.data.nifti": 2,
    "harness.data.outcomes": 2,
    "harness.data.participants": 2,
    "harness.data.verify": 2,
    "harness.files": 2,
    "harness.leaderboard": 2,
    "harness.machine": 2,
    "harness.store": 2,
    "harness.cell": 3,
    "harness.contribution": 3,
    "harness.explaining": 3,
    "harness.groups": 3,
    "harness.pooling": 3,
    "harness.scoring": 3,
    "harness.stages": 3,
    "harness.training": 3,
    "harness.estimate": 4,
    "harness.sweep": 4,
    "harness.tuning": 4,
    "harness.tuning.bundles": 4,
    "harness.tuning.nested": 4,
    "harness.tuning.resources": 4,
    "harness.tuning.search": 4,
    "harness.tuning.spaces": 4,
    "harness.tuning.tracking": 4,
    "harness.tuning.trials": 4,
    "harness.__main__": 5,
    "harness.door": 5,
    "harness.door.api": 5,
    "harness.door.catalogue": 5,
    "harness.door.cli": 5,
    "harness.door.cohorts": 5,
    "harness.door.commands": 5,
    "harness.door.console": 5,
    "harness.door.doctor": 5,
    "harness.door.figures": 5,
    "harness.door.parents": 5,
    "harness.door.plots": 5,
    "harness.door.prediction": 5,
    "harness.door.report": 5,
    "harness.door.request": 5,
    "harness.door.sheets": 5,
    "harness.door.vocabulary": 5,
    "harness.door.words": 5,
}

# Gardens: no floor of their own, found by name and never imported from inside.
GARDENS = ("harness.tasks", "harness.search_spaces")
# What a garden may use above the maths: the loaders of cohorts.
LOADERS = ("harness.data.cohort", "harness.data.lesions", "harness.data.outcomes")

MANY_CELLS = {"mlflow", "optuna", "ray"}
WORDS_MAY_USE = {"annotated_types", "numpy"}
# pydantic takes .1 s to import; only the function that checks a value may do so.
WORDS_MAY_USE_LATE = {"harness.spec": {"pydantic"}}
OUTSIDE_WORLD = {"datetime", "glob", "logging", "os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "time"}
GENERATORS = {"BitGenerator", "Generator", "PCG64", "SeedSequence", "default_rng"}
# These fix the global random state around code of others and put it back as it was.
GUARDS = ("harness.attribution.isolation", "harness.testing")


@dataclass(frozen=True)
class Import:
    """One imported name: ``module`` is the dotted name, ``late`` whether it stands inside a function."""

    module: str
    line: int
    late: bool


def sources() -> dict[str, Path]:
    """Dotted name → file of every module that is installed."""
    homes = {"harness": "harness", "harness.tasks": "tasks", "harness.search_spaces": "search_spaces"}
    found = {}
    for name, home in homes.items():
        for path in sorted((ROOT / home).rglob("*.py")):
            parts = [name, *path.relative_to(ROOT / home).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


SOURCES = sources()


def imports(module: str, tree: ast.Module, *, package: bool) -> Iterator[Import]:
    """Everything a module imports, in functions too; names of modules in full."""
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


def complaints(module: str, source: str, *, package: bool = False) -> list[str]:
    """What a module breaks.

    Parameters
    ----------
    module : dotted name
    source : its text
    package : whether it is an ``__init__``
    """
    garden = _within(module, GARDENS)
    if not garden and module not in FLOORS:
        return [f"{module} is on no floor: add it to FLOORS in tests/test_architecture.py"]
    tree = ast.parse(source)
    found = [
        f"{module}:{one.line} {trouble}"
        for one in imports(module, tree, package=package)
        for trouble in (_of_garden(module, one) if garden else _of_floor(module, one))
    ]
    return found + [f"{module}:{line} {trouble}" for line, trouble in _of_calls(module, tree)]


def _of_floor(module: str, one: Import) -> Iterator[str]:
    floor, top = FLOORS[module], one.module.partition(".")[0]
    if _within(one.module, (*GARDENS, "tasks", "search_spaces")):
        yield f"imports {one.module}: tasks are found by their name, never imported from inside"
    elif top == "harness":
        # The package itself names its door for type checkers and gets it when it is asked for.
        if FLOORS.get(one.module, 0) > floor and module != "harness":
            yield f"(floor {floor}) imports {one.module} (floor {FLOORS[one.module]}): imports go down or sideways"
    elif top in MANY_CELLS and not _within(module, ("harness.tuning",)):
        yield f"imports {top}, which lives in harness.tuning and nowhere else"
    elif floor == 0 and top not in sys.stdlib_module_names | WORDS_MAY_USE:
        if not (one.late and top in WORDS_MAY_USE_LATE.get(module, ())):
            yield f"imports {top}: words know the standard library, {' and '.join(sorted(WORDS_MAY_USE))} only"
    elif floor == 1 and top in OUTSIDE_WORLD:
        yield f"imports {top}: maths is arrays in, arrays out, without files, clock or log"


def _of_garden(module: str, one: Import) -> Iterator[str]:
    if _within(one.module, ("tasks", "search_spaces")):
        yield f"imports {one.module}, which may be a stranger's: say harness.{one.module}"
    elif one.module.partition(".")[0] == "harness" and not _within(one.module, GARDENS):
        if FLOORS.get(one.module, 0) > 1 and one.module not in LOADERS:
            yield f"imports {one.module} (floor {FLOORS[one.module]}): a task uses words, maths and cohort loaders"
    elif one.module.partition(".")[0] in MANY_CELLS:
        yield f"imports {one.module}, which lives in harness.tuning and nowhere else"


def _of_calls(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    floor = FLOORS.get(module, 1)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"print", "sys.stdout.write", "sys.stderr.write", "sys.exit", "input"} and floor < 5:
            yield node.lineno, f"calls {called}: only the door prints, asks and exits"
        if floor == 1 and called == "open":
            yield node.lineno, "calls open: maths is arrays in, arrays out, without files, clock or log"
        home, _, name = called.rpartition(".")
        if home in {"np.random", "numpy.random"} and name not in GENERATORS and module not in GUARDS:
            yield node.lineno, f"calls {called}, which touches the global state: take a generator"


def _within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_keeps_to_its_floor(module: str) -> None:
    """No module breaks a rule of the house."""
    path = SOURCES[module]
    found = complaints(module, path.read_text(encoding="utf-8"), package=path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


def test_the_table_holds_no_module_that_is_gone() -> None:
    """Every module with a floor exists."""
    assert not sorted(set(FLOORS) - set(SOURCES))


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("harness.brand_new", "", "is on no floor"),
        ("harness.metrics.distance", "from harness.data.nifti import read", "imports go down or sideways"),
        ("harness.metrics.distance", "def f():\n    import harness.store", "imports go down or sideways"),
        ("harness.metrics.distance", "from ..store import Store", "imports go down or sideways"),
        ("harness.store", "from harness import sweep", "imports go down or sideways"),
        ("harness.stages", "from harness.tuning.bundles import session", "imports go down or sideways"),
        ("harness.door.api", "from harness.tasks.epvs import TASK", "never imported from inside"),
        ("harness.door.api", "from harness.tasks import epvs", "never imported from inside"),
        ("harness.door.api", "import search_spaces", "never imported from inside"),
        ("harness.door.api", "def f():\n    from ray import tune", "lives in harness.tuning"),
        ("harness.sweep", "import optuna", "lives in harness.tuning"),
        ("harness.errors", "import torch", "words know"),
        ("harness.errors", "def f():\n    import pydantic", "words know"),
        ("harness.spec", "import pydantic", "words know"),
        ("harness.views", "from pathlib import Path", "arrays in, arrays out"),
        ("harness.views", "open('x')", "arrays in, arrays out"),
        ("harness.simulation.mri", "import numpy as np\nnp.random.rand(3)", "global state"),
        ("harness.sweep", "print('hello')", "only the door prints"),
        ("harness.tasks.epvs", "from tasks import other", "a stranger's"),
        ("harness.tasks.epvs", "from harness.store import Store", "words, maths and cohort loaders"),
        ("harness.tasks.epvs", "import mlflow", "lives in harness.tuning"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str, complaint: str) -> None:
    """Each rule finds the fault that it is for."""
    assert any(complaint in one for one in complaints(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.store", "from harness.metrics import compute"),
        ("harness.store", "import os\nfrom harness import leaderboard"),
        ("harness.tuning.search", "import optuna\nimport ray"),
        ("harness.door.console", "print('hello')"),
        ("harness.spec", "def f():\n    from pydantic import TypeAdapter"),
        ("harness.tasks.epvs", "from harness.search_spaces.epvs import SPACES\nfrom harness.data.cohort import bids"),
    ],
)
def test_what_is_allowed_is_let_through(module: str, source: str) -> None:
    """Imports down or sideways, and what a floor is for, raise no complaint."""
    assert complaints(module, source) == []


def test_words_are_quick_to_import() -> None:
    """The ground floor and the command line load neither torch nor anything else that is slow."""
    words = [name for name, floor in FLOORS.items() if floor == 0]
    slow = {"captum", "hydra", "matplotlib", "mlflow", "monai", "optuna", "pandas", "pydantic", "ray", "scipy", "torch"}
    script = f"import sys, harness.door.cli, {', '.join(words)}; print(*sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
