"""Parsing of parameter descriptions in docstrings."""

from __future__ import annotations

from harness.core.docstrings import docstring_of, parse

_TEXT = """Blur an image.

A sentence more.

Parameters
----------
image : (X, Y) float, any range
fwhm_mm, fwhm_px : width of the kernel at half of
    its height, see :func:`~harness.core.seeding.generator`

    ``0`` does nothing
*axes : which axes
steps : int, optional
    Number of steps: one or more.
seed
    Of the noise.

Returns
-------
image : not a parameter
"""


def test_description_of_a_parameter_follows_its_name() -> None:
    """The description of a parameter is the text after its name and colon."""
    assert parse(_TEXT).parameters["image"] == "(X, Y) float, any range"


def test_parameters_that_share_an_entry_share_its_text() -> None:
    """Parameters that share an entry share its text, joined into one line without markup."""
    parameters = parse(_TEXT).parameters
    assert parameters["fwhm_mm"] == "width of the kernel at half of its height, see generator 0 does nothing"
    assert parameters["fwhm_px"] == parameters["fwhm_mm"]


def test_stars_are_not_part_of_a_name() -> None:
    """``*axes`` documents the parameter ``axes``."""
    assert parse(_TEXT).parameters["axes"] == "which axes"


def test_a_type_alone_on_the_first_line_is_left_out() -> None:
    """A type on the first line is left out of the description."""
    assert parse(_TEXT).parameters["steps"] == "Number of steps: one or more."


def test_a_name_may_stand_alone_on_its_line() -> None:
    """A parameter may stand on its line without a type."""
    assert parse(_TEXT).parameters["seed"] == "Of the noise."


def test_sections_after_the_parameters_are_not_parameters() -> None:
    """Sections after Parameters are not parsed as parameters."""
    assert list(parse(_TEXT).parameters) == ["image", "fwhm_mm", "fwhm_px", "axes", "steps", "seed"]


def test_text_holds_everything_but_the_parameters() -> None:
    """The text contains the summary, the description and all other sections in order."""
    assert parse(_TEXT).text == ("Blur an image.\n\nA sentence more.\n\nReturns\n-------\nimage : not a parameter")


def test_a_function_without_docstring_has_no_parameters() -> None:
    """A function without a docstring has no text and no parameters."""

    def bare(*, width: int = 1) -> int:
        return width

    assert docstring_of(bare) == parse("")
    assert docstring_of(bare).text == ""
