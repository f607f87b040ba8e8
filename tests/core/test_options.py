"""What a user may set: values, types as people write them, and meanings."""

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
    """The declared value wins over the default; an option without a line has an empty meaning."""
    assert component_options(partial(blur, width=5)) == (
        Option("width", 5, "whole number > 0", "edge of the kernel in voxels"),
        Option("edge", "zero", "one of zero, mirror", ""),
    )


def test_component_options_show_every_bound(epvs: Task) -> None:
    """Types and bounds as ``describe`` prints them."""
    assert {option.name: option.type for option in component_options(epvs.model)} == {
        "width": "whole number > 0",
        "depth": "whole number > 0",
        "output_bias": "number",
        "dropout": "number >= 0 and < 1",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_every_component_has_a_line_and_a_type(kind: str) -> None:
    """``harness describe`` explains whatever can be set."""
    bare = [
        f"{name}.{option.name}"
        for name in KINDS[kind].names()
        for option in component_options(partial(KINDS[kind].get(name).function))
        if not option.meaning or not option.type
    ]
    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_lines_of_options_stand_alone(kind: str) -> None:
    """A reader of ``harness describe`` has no other docstring beside it: nothing says "see …" or "as for …" only."""
    pointing = [
        f"{name}.{option.name}: {option.meaning}"
        for name in KINDS[kind].names()
        for option in component_options(partial(KINDS[kind].get(name).function))
        if option.meaning.startswith(("see ", "as for ", "of ", "likewise"))
    ]
    assert pointing == []


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_component_have_lines_of_their_own(kind: str) -> None:
    """One line for two options would leave the reader to guess which half belongs to which."""
    shared = {}
    for name in KINDS[kind].names():
        meanings = [option.meaning for option in component_options(partial(KINDS[kind].get(name).function))]
        if len(set(meanings)) < len(meanings):
            shared[name] = sorted({meaning for meaning in meanings if meanings.count(meaning) > 1})
    assert shared == {}


@pytest.mark.parametrize("kind", KINDS)
def test_docstrings_name_no_parameter_that_is_gone(kind: str) -> None:
    """A renamed option takes its line along."""
    stale = {}
    for name in KINDS[kind].names():
        function = KINDS[kind].get(name).function
        gone = set(docstring_of(function).parameters) - _parameters_of(function)
        if gone:
            stale[name] = sorted(gone)
    assert stale == {}


def _parameters_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_every_setting_has_a_line() -> None:
    """So do the options of ``harness run`` that change no result."""
    assert [option.name for option in setting_options() if not option.meaning or not option.type] == []


def test_settings_show_their_defaults_as_declared() -> None:
    """``out`` is shown as the user would type it, before it is made absolute."""
    assert {option.name: option.value for option in setting_options()}["out"] == "harness-runs"


def test_every_field_of_an_explanation_has_a_line() -> None:
    """The plain fields, in order."""
    options = explanation_options(Explanation(partial(blur)))
    assert [option.name for option in options if option.meaning and option.type] == list(FIELDS)


def test_every_plain_value_of_a_task_has_a_line(epvs: Task) -> None:
    """The values that are typed without a component before them."""
    options = task_options(epvs)
    assert [option.name for option in options if option.meaning and option.type] == list(SCALARS)
