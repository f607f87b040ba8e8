"""Pins, requirements and the list of licences agree with each other and with what is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
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
