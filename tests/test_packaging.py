"""Pins, requirements and licences agree with what is installed, and the wheel is complete and self-contained."""

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
    """Every requirement in pyproject.toml is pinned in constraints.txt within its bounds."""
    project = PROJECT["project"]
    requirements = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    ]
    wrong = [
        text
        for text in requirements
        if (pin := PINS.get(canonicalize_name(Requirement(text).name))) is None
        or not Requirement(text).specifier.contains(pin)
    ]
    assert wrong == []


def test_every_imported_package_is_required() -> None:
    """Every imported package is among the project's own requirements, or those of an extra that is asked for."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["s3"], *extras["jobs"]]
    required = {canonicalize_name(Requirement(text).name) for text in texts}
    distributions = packages_distributions()
    missing = {}
    for path in [path for folder in ("harness", "tasks", "search_spaces") for path in (ROOT / folder).rglob("*.py")]:
        for package in imported(path) - sys.stdlib_module_names - {"harness"}:
            if not required & {canonicalize_name(name) for name in distributions.get(package, ())}:
                missing.setdefault(package, path.relative_to(ROOT).as_posix())
    assert missing == {}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_a_pin_is_a_plain_version() -> None:
    """Pins have no local version (+cpu), hash or address, so that each machine takes a suitable build."""
    assert [pin for pin in PINS.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", pin)] == []


def test_torch_is_pinned_exactly() -> None:
    """Torch is pinned exactly, since another version may train other weights."""
    assert PINS["torch"] == version("torch").partition("+")[0] == "2.13.0"


def test_the_list_of_licences_is_current(licences: ModuleType) -> None:
    """THIRD_PARTY_LICENSES.md is the output of ``make licences``."""
    assert licences.PAGE.read_text() == licences.page()


def test_every_package_on_the_list_has_a_licence() -> None:
    """Every row of THIRD_PARTY_LICENSES.md has a licence."""
    rows = [line.split(" | ") for line in (ROOT / "THIRD_PARTY_LICENSES.md").read_text().splitlines() if " | " in line]
    assert len(rows) > 100 and all(len(row) == 3 and row[2].strip(" |") for row in rows)


def test_every_folder_of_the_package_is_installed() -> None:
    """pyproject.toml lists every package folder."""
    below = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "harness").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == below | {"harness.tasks", "harness.search_spaces"}


# Files that setuptools needs to build the package.
SOURCES = ("harness", "tasks", "search_spaces", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the project, since a build writes beside its sources."""
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
    """Folder of the programs of an environment in which the wheel is installed.

    Its libraries are those of this environment, without the editable harness, whose
    ``harness.tasks`` would be found from any other ``harness``.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    found = folder / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(found / "python"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    libraries = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))  # .pth files in these folders are not read
    return found


@pytest.fixture
def other_packages(tmp_path: Path) -> Path:
    """A working folder with packages of the same names as the project's, which fail when imported."""
    for package in ("harness", "tasks", "search_spaces"):
        (tmp_path / package).mkdir()
        for module in ("__init__", "epvs", "lsm"):
            (tmp_path / package / f"{module}.py").write_text(f"raise RuntimeError('the {package} of this folder')\n")
    return tmp_path


def run_program(command: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_contents_of_the_wheel(wheel: Path) -> None:
    """The wheel contains all modules, tasks, search spaces, the report template and py.typed, and nothing else."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "harness").rglob("*.py")}
    studies = {
        f"harness/{folder}/{path.name}" for folder in ("tasks", "search_spaces") for path in ROOT.glob(f"{folder}/*.py")
    }
    assert {"harness/tasks/epvs.py", "harness/tasks/lsm.py", "harness/search_spaces/lsm.py"} <= studies
    assert inside == ours | studies | {"harness/py.typed", "harness/report/report.html.j2"}


def test_the_installed_program_lists_its_own_tasks_in_a_clone(programs: Path) -> None:
    """Within a clone of the repository, the installed program lists its own tasks."""
    done = run_program([str(programs / "harness"), "list", "tasks"], ROOT)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ (\w+) +[A-Z]", done.stdout, flags=re.MULTILINE) == [
        "epvs",
        "faces",
        "histopathology",
        "lsm",
        "ms",
    ]


SHOW = (
    "import harness.tasks.epvs, harness.tasks.lsm, harness.search_spaces.lsm as spaces, harness;"
    "print(harness.__file__, harness.tasks.epvs.__file__, harness.tasks.lsm.__file__, spaces.__file__, sep='\\n')"
)


def test_python_imports_the_wheel_beside_other_packages(programs: Path, other_packages: Path) -> None:
    """With packages of the same name on the path, Python imports tasks from the wheel."""
    shutil.rmtree(other_packages / "harness")
    done = run_program([str(programs / "python"), "-c", SHOW], other_packages)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.split()]
    assert len(paths) == 4 and all(path.is_relative_to(programs.parent) for path in paths)


def test_python_with_a_safe_path_takes_the_wheel_in_a_clone(programs: Path) -> None:
    """With ``PYTHONSAFEPATH``, Python in a clone imports the installed package."""
    done = run_program([str(programs / "python"), "-c", SHOW], ROOT, PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(programs.parent) for line in done.stdout.split())


@pytest.mark.ray
@pytest.mark.slow
def test_workers_do_not_import_other_packages(programs: Path, other_packages: Path, small_run: tuple[str, ...]) -> None:
    """Workers of the installed program do not import packages from the working folder."""
    overrides = [*small_run, "sequences=T2w", "fold=0", "attribution=none", "report=false", "mlflow=off", "out=out"]
    done = run_program([str(programs / "harness"), "run", *overrides], other_packages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells done, 0 failed" in done.stdout
