"""Options that a user may set: values, types in words, and descriptions."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt

from harness.core.docstrings import docstring_of
from harness.core.explanations import FIELDS, Explanation
from harness.core.options import Option, component_options, explanation_options, setting_options, task_options
from harness.core.registry import KINDS
from harness.core.task import SCALARS, Task


def blur(image: Any, *, width: Annotated[int, Gt(0)] = 3, edge: Literal["zero", "mirror"] = "zero") -> Any:
    """Blur.

    Parameters
    ----------
    image : an array
    width : edge of the kernel in voxels
    """


def test_component_options_have_value_type_and_meaning() -> None:
    """An option has its declared value or default, its type and its docstring line, if there is one."""
    assert component_options(partial(blur, width=5)) == (
        Option("width", 5, "whole number > 0", "edge of the kernel in voxels"),
        Option("edge", "zero", "one of zero, mirror", ""),
    )


def test_component_options_show_every_bound(epvs: Task) -> None:
    """Types of options include their bounds."""
    assert {option.name: option.type for option in component_options(epvs.model)} == {
        "width": "whole number > 0 and <= 1024",
        "depth": "whole number > 0 and <= 10",
        "output_bias": "number",
        "dropout": "number >= 0 and < 1",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_description_and_a_type(kind: str) -> None:
    """Every option of every component has a description and a type."""
    bare = [
        f"{name}.{option.name}"
        for name in KINDS[kind].names()
        for option in component_options(partial(KINDS[kind].get(name).function))
        if not option.meaning or not option.type
    ]
    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions_do_not_refer_to_others(kind: str) -> None:
    """No description starts with a reference to another docstring, such as "see" or "as for"."""
    pointing = [
        f"{name}.{option.name}: {option.meaning}"
        for name in KINDS[kind].names()
        for option in component_options(partial(KINDS[kind].get(name).function))
        if option.meaning.startswith(("see ", "as for ", "of ", "likewise"))
    ]
    assert pointing == []


@pytest.mark.parametrize("kind", KINDS)
def test_options_have_separate_descriptions(kind: str) -> None:
    """No two options of a component share one description."""
    shared = {}
    for name in KINDS[kind].names():
        meanings = [option.meaning for option in component_options(partial(KINDS[kind].get(name).function))]
        if len(set(meanings)) < len(meanings):
            shared[name] = sorted({meaning for meaning in meanings if meanings.count(meaning) > 1})
    assert shared == {}


@pytest.mark.parametrize("kind", KINDS)
def test_docstrings_document_existing_parameters(kind: str) -> None:
    """Docstrings document only parameters that exist."""
    stale = {}
    for name in KINDS[kind].names():
        function = KINDS[kind].get(name).function
        unknown = set(docstring_of(function).parameters) - _parameters_of(function)
        if unknown:
            stale[name] = sorted(unknown)
    assert stale == {}


def _parameters_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_every_setting_has_a_description() -> None:
    """Every run setting has a description and a type."""
    assert [option.name for option in setting_options() if not option.meaning or not option.type] == []


def test_settings_show_their_defaults_as_declared() -> None:
    """``out`` is shown with its declared default, before it is made absolute."""
    assert {option.name: option.value for option in setting_options()}["out"] == "harness-runs"


def test_every_field_of_an_explanation_has_a_description() -> None:
    """Every plain field of an explanation has a description and a type."""
    options = explanation_options(Explanation(partial(blur)))
    assert [option.name for option in options if option.meaning and option.type] == list(FIELDS)


def test_every_plain_value_of_a_task_has_a_description(epvs: Task) -> None:
    """Every plain value of a task has a description and a type."""
    options = task_options(epvs)
    assert [option.name for option in options if option.meaning and option.type] == list(SCALARS)
