"""Output of ``harness describe``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from harness.cli import commands
from harness.core.errors import UnknownName
from harness.core.options import setting_options
from harness.core.overrides import keys
from harness.core.task import Task, describe


@pytest.fixture(scope="module")
def wide() -> Iterator[pytest.MonkeyPatch]:
    """A console wide enough that no table cell is wrapped."""
    patch = pytest.MonkeyPatch()
    patch.setattr("harness.cli.commands.console", lambda: Console(highlight=False, width=1000))
    yield patch
    patch.undo()


@pytest.fixture
def shown(wide: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The printed description of the ePVS task."""
    assert commands.describe(["task=epvs"]) == 0
    return capsys.readouterr().out


def test_a_task_shows_every_key_that_can_be_set(shown: str, epvs: Task) -> None:
    """The description lists components, options, short names, and labels with their options."""
    for key in keys(epvs):
        if key.startswith("explanations."):
            assert f"explanations.LABEL.{key.rpartition('.')[2]}" in shown, key
        elif key.startswith(("attributions.", "metrics.")):
            label = next(one for one in (*epvs.attributions, *epvs.metrics) if key.split(".", 1)[1].startswith(one))
            assert label in shown and key.rpartition(".")[2].removeprefix(label) in shown, key
        else:
            assert f" {key} " in shown, key


def test_a_row_has_value_type_and_meaning(shown: str) -> None:
    """Each option is a row with key, value, type and its docstring line."""
    (row,) = [line for line in shown.splitlines() if line.startswith(" recipe.lr ")]
    assert row.split() == ["recipe.lr", "0.001", "number", ">", "0", "and", "<=", "1", "learning", "rate"]


def test_types_are_not_python(shown: str) -> None:
    """Types are written in words, not as Python code."""
    assert not any(word in shown for word in ("Annotated", "tuple[", "Literal", "Optional", "NoneType"))


def test_values_are_shown_as_users_type_them(shown: str) -> None:
    """Booleans and missing values are words, and lists are in brackets."""
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["cohort.n4"][0] == "no"
    assert rows["phantom.shape"][:3] == ["[64,", "64,", "16]"]


def test_settings_of_a_run_are_explained(shown: str) -> None:
    """Every run setting has a row."""
    assert all(f" {option.name} " in shown for option in setting_options())


def test_json_has_the_values_alone(epvs: Task, capsys: pytest.CaptureFixture[str]) -> None:
    """``format=json`` prints only the values."""
    assert commands.describe(["task=epvs", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(describe(epvs)))


def test_another_format_is_refused() -> None:
    """Another format is refused, and the message lists the valid ones."""
    with pytest.raises(UnknownName, match=r"no format is named 'yaml'.*All: json, text"):
        commands.describe(["task=epvs", "format=yaml"])


def test_a_component_shows_documentation_source_and_options(
    wide: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A component shows its documentation, source and options, with inputs from the harness in another table."""
    assert commands.describe(["metric=sensitivity"]) == 0
    shown = capsys.readouterr().out
    documentation, options = shown.split("\nOptions ")
    assert "Share of true lesions that are detected." in documentation and "Source: Rashid et al. 2023" in documentation
    assert "target_lesions" in documentation and "tolerance_mm" not in documentation.split("Returns")[0]
    assert "tolerance_mm" in options and "number >= 0" in options


def test_defaults_for_own_data_are_shown(shown: str) -> None:
    """Options whose defaults differ for a user's data have a table."""
    table = shown.partition("Profiles with your own data")[2].partition("Experiments")[0]
    assert "cohort.crop=brain, cohort.brain=compute" in table and "cohort.size" not in table
