"""Registries: registration, lookup and errors."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core import registry
from harness.core.errors import RegistrationError, UnknownName
from harness.core.registry import KINDS, Registry


@pytest.fixture
def models() -> Registry:
    """An empty registry whose home registers nothing."""
    return Registry("model", "harness.core.errors")


def first() -> str:
    """First line.

    Second paragraph.
    """
    return "first"


def test_decorator_returns_the_function_itself(models: Registry) -> None:
    """The decorator returns the function itself."""
    assert models.register("one")(first) is first


def test_entry_contains_name_source_location_and_facts(models: Registry) -> None:
    """An entry contains the name, the function, its source, its location and its facts."""
    models.register("one", source="Smith 1999", direction="higher")(first)
    entry = models.get("one")
    assert (entry.name, entry.function, entry.source, entry.facts) == (
        "one", first, "Smith 1999", {"direction": "higher"}
    )  # fmt: skip
    assert entry.where == f"{__file__}:{first.__code__.co_firstlineno}"


def test_summary_is_the_first_line(models: Registry) -> None:
    """The summary is the first line of the docstring."""
    models.register("one")(first)
    assert models.get("one").summary == "First line."


def test_duplicate_name_is_refused_with_both_locations(models: Registry) -> None:
    """A second function of the same name is refused, and the message shows both locations."""
    models.register("one")(first)

    def second() -> None: ...

    places = f"{first.__code__.co_firstlineno} and .*{second.__code__.co_firstlineno}; rename one of them"
    with pytest.raises(RegistrationError, match=places):
        models.register("one")(second)


def test_registering_again_from_the_same_location_is_allowed(models: Registry) -> None:
    """A second registration from the same location replaces the first, as after a reload."""
    functions = [lambda: None for _ in range(2)]
    for function in functions:
        models.register("one")(function)
    assert models.get("one").function is functions[1]


def test_reload_after_an_edit_is_allowed(models: Registry, tmp_path: Path) -> None:
    """A function of the same name and file that moved within the file replaces the first."""
    for lines in ("", "\n\n"):
        space: dict[str, Any] = {"__name__": "theirs"}
        exec(compile(f"{lines}def mine(): ...", tmp_path / "theirs.py", "exec"), space)
        models.register("mine")(space["mine"])
    assert models.get("mine").where == f"{tmp_path / 'theirs.py'}:3"


def test_unknown_name_is_refused_with_suggestions(models: Registry) -> None:
    """An unknown name raises an error that lists near matches first and then all names."""
    for name in ("unet", "basic_unet", "resnet"):
        models.register(name)(lambda: None)
    with pytest.raises(UnknownName, match=r"no model is named 'unett'\. Near: unet, .*All: basic_unet, resnet, unet\."):
        models.get("unett")


def test_name_of_finds_the_function(models: Registry) -> None:
    """``name_of`` finds the name of a registered function."""
    models.register("one")(first)
    assert models.name_of(first) == "one"


def test_name_of_refuses_an_unregistered_function(models: Registry) -> None:
    """``name_of`` refuses a function that is not registered and shows its location."""
    with pytest.raises(RegistrationError, match=r"test_registry\.py:\d+ is not registered as a model; decorate it"):
        models.name_of(first)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_built_in_components(kind: str) -> None:
    """Every kind has built-in components, all with a summary."""
    names = KINDS[kind].names()
    assert names
    assert all(KINDS[kind].get(name).summary for name in names)


def test_plugins_are_imported_before_a_name_is_refused(models: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins are imported before an unknown name is refused."""
    plugin = SimpleNamespace(value="third_party", load=lambda: models.register("theirs")(first))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [plugin] if "plugins" in group else [])
    registry.load_plugins.cache_clear()
    try:
        assert models.get("theirs").function is first
    finally:
        registry.load_plugins.cache_clear()


def test_home_is_imported_before_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All modules of a home are imported before an unknown name is refused."""
    home = tmp_path / "home_package"
    home.mkdir()
    (home / "__init__.py").write_text(
        "from harness.core.registry import Registry\nLAYERS = Registry('layer', __name__)\n"
    )
    (home / "wide.py").write_text("from . import LAYERS\n@LAYERS.register('wi' + 'de')\ndef wide(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    layers: Registry = importlib.import_module("home_package").LAYERS
    assert layers.get("wide").function.__module__ == "home_package.wide"


def test_known_name_imports_nothing(models: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a registered name imports nothing."""
    models.register("one")(first)
    monkeypatch.setattr(registry, "_import_all", lambda home: pytest.fail("imported"))
    assert models.get("one").function is first


def test_wraps_must_name_an_option(models: Registry) -> None:
    """``wraps`` must name an option of the function."""
    with pytest.raises(
        RegistrationError,
        match=r"wraps='method' of model 'one' must be an option whose default is the name of another model",
    ):
        models.register("one", wraps="method")(first)


def test_wraps_is_a_fact(models: Registry) -> None:
    """``wraps`` is stored among the facts."""

    def wrapper(*, method: str = "one") -> str:
        return method

    models.register("two", wraps="method")(wrapper)
    assert models.get("two").facts == {"wraps": "method"}


@pytest.mark.parametrize(
    ("name", "near"), [("lr", "recipe.lr"), ("NOISE", "noise"), ("RECIPE.LR", "recipe.lr"), ("Sche\u0301ma", "Schéma")]
)
def test_names_that_differ_in_form_are_near(name: str, near: str) -> None:
    """Other letters, the last part alone, or a composed character come first."""
    known = ["noise", "recipe.lr", "report", "Schéma", *(f"unrelated.{number:03d}" for number in range(100))]
    with pytest.raises(UnknownName, match=f"Near: {near}[,.]"):
        raise UnknownName("key", name, known)
