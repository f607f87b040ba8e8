"""Names become parts: registering, finding, refusing."""

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


def test_decorator_returns_the_function_untouched(models: Registry) -> None:
    """What is decorated stays the very same object."""
    assert models.register("one")(first) is first


def test_entry_tells_name_source_place_and_facts(models: Registry) -> None:
    """An entry holds what the decorator said and where the function stands."""
    models.register("one", source="Somebody 1999", direction="higher")(first)
    entry = models.get("one")
    assert (entry.name, entry.function, entry.source, entry.facts) == (
        "one", first, "Somebody 1999", {"direction": "higher"}
    )  # fmt: skip
    assert entry.where == f"{__file__}:{first.__code__.co_firstlineno}"


def test_summary_is_the_first_line(models: Registry) -> None:
    """The summary is the first line of the docstring."""
    models.register("one")(first)
    assert models.get("one").summary == "First line."


def test_same_name_twice_shows_both_places(models: Registry) -> None:
    """Two functions of one name are refused, with both places."""
    models.register("one")(first)

    def second() -> None: ...

    places = f"{first.__code__.co_firstlineno} and .*{second.__code__.co_firstlineno}; rename one of them"
    with pytest.raises(RegistrationError, match=places):
        models.register("one")(second)


def test_second_import_of_a_module_is_no_conflict(models: Registry) -> None:
    """The same place registers again, as a reload does, and the newer function counts."""
    functions = [lambda: None for _ in range(2)]
    for function in functions:
        models.register("one")(function)
    assert models.get("one").function is functions[1]


def test_reload_after_an_edit_is_no_conflict(models: Registry, tmp_path: Path) -> None:
    """A function of the same name in the same file that has moved replaces the old one."""
    for lines in ("", "\n\n"):
        space: dict[str, Any] = {"__name__": "theirs"}
        exec(compile(f"{lines}def mine(): ...", tmp_path / "theirs.py", "exec"), space)
        models.register("mine")(space["mine"])
    assert models.get("mine").where == f"{tmp_path / 'theirs.py'}:3"


def test_unknown_name_shows_near_ones_then_all(models: Registry) -> None:
    """A misspelt name is answered by the near names, then by all."""
    for name in ("unet", "basic_unet", "resnet"):
        models.register(name)(lambda: None)
    with pytest.raises(UnknownName, match=r"no model is named 'unett'\. Near: unet, .*All: basic_unet, resnet, unet\."):
        models.get("unett")


def test_name_of_finds_the_function(models: Registry) -> None:
    """The name of a registered function is found by identity."""
    models.register("one")(first)
    assert models.name_of(first) == "one"


def test_name_of_refuses_a_stranger(models: Registry) -> None:
    """A function that nobody registered has no name, and the message says where it is."""
    with pytest.raises(RegistrationError, match=r"test_registry\.py:\d+ is not registered as a model; decorate it"):
        models.name_of(first)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_parts_at_home(kind: str) -> None:
    """Importing the home of a kind registers its built-in parts, all with a first docstring line."""
    names = KINDS[kind].names()
    assert names
    assert all(KINDS[kind].get(name).summary for name in names)


def test_plugins_are_imported_before_a_name_is_refused(models: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module under the entry point group is imported when a name is not known yet."""
    plugin = SimpleNamespace(value="stranger", load=lambda: models.register("theirs")(first))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [plugin] if "plugins" in group else [])
    registry.load_plugins.cache_clear()
    try:
        assert models.get("theirs").function is first
    finally:
        registry.load_plugins.cache_clear()


def test_home_is_imported_before_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All modules of a home are imported when a name is not known yet, however they spell it."""
    home = tmp_path / "strange_home"
    home.mkdir()
    (home / "__init__.py").write_text(
        "from harness.core.registry import Registry\nLAYERS = Registry('layer', __name__)\n"
    )
    (home / "wide.py").write_text("from . import LAYERS\n@LAYERS.register('wi' + 'de')\ndef wide(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    layers: Registry = importlib.import_module("strange_home").LAYERS
    assert layers.get("wide").function.__module__ == "strange_home.wide"


def test_known_name_imports_nothing(models: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is registered already needs no module of its home."""
    models.register("one")(first)
    monkeypatch.setattr(registry, "_import_all", lambda home: pytest.fail("imported"))
    assert models.get("one").function is first


def test_wraps_must_name_an_option(models: Registry) -> None:
    """A registration that says what it wraps is refused if it has no such option."""
    with pytest.raises(
        RegistrationError,
        match=r"wraps='method' of model 'one' must be an option whose default is the name of another model",
    ):
        models.register("one", wraps="method")(first)


def test_wraps_is_a_fact(models: Registry) -> None:
    """What an option names is kept with the component."""

    def wrapper(*, method: str = "one") -> str:
        return method

    models.register("two", wraps="method")(wrapper)
    assert models.get("two").facts == {"wraps": "method"}
