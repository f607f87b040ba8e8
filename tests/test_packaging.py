"""Pins, requirements and licences agree with what is installed; a wheel is whole and imports nobody else's code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


@pytest.fixture
def licences(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module ``tools/licences.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("licences", ROOT / "tools" / "licences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("dependencies", None)


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    """What pyproject.toml asks for, constraints.txt gives."""
    project = PROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"], *PROJECT["build-system"]["requires"]]
    wrong = [
        text
        for text in asked
        if (pin := PINS.get(canonicalize_name(Requirement(text).name))) is None
        or not Requirement(text).specifier.contains(pin)
    ]
    assert wrong == []


def test_every_imported_package_is_required() -> None:
    """What the package imports is among its own dependencies, not only among those of another one."""
    required = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    distributions = packages_distributions()
    missing = {}
    for path in [path for folder in ("harness", "tasks", "search_spaces") for path in (ROOT / folder).rglob("*.py")]:
        for package in imported(path) - sys.stdlib_module_names - {"harness"}:
            if not required & {canonicalize_name(name) for name in distributions.get(package, ())}:
                missing.setdefault(package, path.relative_to(ROOT).as_posix())
    assert missing == {}


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_a_pin_is_a_plain_version() -> None:
    """No local part (+cpu), hash or address: each machine takes the build that suits it."""
    assert [pin for pin in PINS.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", pin)] == []


def test_torch_is_pinned_exactly() -> None:
    """Another torch trains other weights."""
    assert PINS["torch"] == version("torch").partition("+")[0] == "2.13.0"


def test_the_list_of_licences_is_current(licences: ModuleType) -> None:
    """THIRD_PARTY_LICENSES.md is what ``make licences`` writes."""
    assert licences.PAGE.read_text() == licences.page()


def test_every_package_on_the_list_has_a_licence() -> None:
    """No row of THIRD_PARTY_LICENSES.md leaves the licence open."""
    rows = [line.split(" | ") for line in (ROOT / "THIRD_PARTY_LICENSES.md").read_text().splitlines() if " | " in line]
    assert len(rows) > 100 and all(len(row) == 3 and row[2].strip(" |") for row in rows)


def test_every_folder_of_the_package_is_installed() -> None:
    """The list of packages in pyproject.toml misses no folder."""
    below = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "harness").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == below | {"harness.tasks", "harness.search_spaces"}


# What setuptools reads to build the package.
SOURCES = ("harness", "tasks", "search_spaces", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a wheel, built from a copy: a build writes beside its sources."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(made), str(source)], check=True, timeout=120, capture_output=True)
    return next(made.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment into which the wheel was installed, as a user does.

    Its libraries are those of this environment, without the editable harness: that one
    would lend its ``harness.tasks`` to whatever ``harness`` was imported.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    found = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(found / "python"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    libraries = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))  # .pth files that lie there are not read
    return found


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A working folder laid out like another clone, whose every package fails when it is imported."""
    for package in ("harness", "tasks", "search_spaces"):
        (tmp_path / package).mkdir()
        for module in ("__init__", "epvs", "lsm"):
            (tmp_path / package / f"{module}.py").write_text(f"raise RuntimeError('the {package} of this folder')\n")
    return tmp_path


def started(words: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_holds_every_module_and_what_they_read(wheel: Path) -> None:
    """The tasks and search spaces under ``harness``, the template of the report and the mark of types; nothing bare."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "harness").rglob("*.py")}
    gardens = {
        f"harness/{folder}/{path.name}" for folder in ("tasks", "search_spaces") for path in ROOT.glob(f"{folder}/*.py")
    }
    assert {"harness/tasks/epvs.py", "harness/tasks/lsm.py", "harness/search_spaces/lsm.py"} <= gardens
    assert inside == ours | gardens | {"harness/py.typed", "harness/report/report.html.j2"}


def test_the_installed_program_lists_its_own_tasks_in_a_clone(programs: Path) -> None:
    """Started from a clone's root, beside bare ``tasks/`` and ``harness/`` folders."""
    done = started([str(programs / "harness"), "list", "tasks"], ROOT)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ (\w+) +W", done.stdout, flags=re.MULTILINE) == ["epvs", "lsm"]


SHOW = (
    "import harness.tasks.epvs, harness.tasks.lsm, harness.search_spaces.lsm as spaces, harness;"
    "print(harness.__file__, harness.tasks.epvs.__file__, harness.tasks.lsm.__file__, spaces.__file__, sep='\\n')"
)


def test_python_takes_the_wheel_beside_strangers_tasks(programs: Path, strangers: Path) -> None:
    """With the working folder on Python's path, too: a stranger's ``tasks/`` has another name than ours."""
    shutil.rmtree(strangers / "harness")
    done = started([str(programs / "python"), "-c", SHOW], strangers)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.split()]
    assert len(paths) == 4 and all(path.is_relative_to(programs.parent) for path in paths)


def test_python_with_a_safe_path_takes_the_wheel_in_a_clone(programs: Path) -> None:
    """``PYTHONSAFEPATH`` keeps the clone's own ``harness/`` from being taken for the installed one."""
    done = started([str(programs / "python"), "-c", SHOW], ROOT, PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(programs.parent) for line in done.stdout.split())


@pytest.mark.ray
def test_workers_of_the_installed_program_import_no_stranger(
    programs: Path, strangers: Path, small_run: tuple[str, ...]
) -> None:
    """Ray would put the working folder first on its workers' path, though the program does not look there."""
    words = [*small_run, "sequences=T2w", "fold=0", "attribution=none", "report=false", "mlflow=off", "out=out"]
    done = started([str(programs / "harness"), "run", *words], strangers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells done, 0 failed" in done.stdout
