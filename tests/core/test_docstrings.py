"""Reading what a docstring says of each parameter."""

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


def test_a_parameter_has_what_follows_its_name() -> None:
    """The line of a parameter is the text after the colon."""
    assert parse(_TEXT).parameters["image"] == "(X, Y) float, any range"


def test_parameters_that_share_an_entry_share_its_text() -> None:
    """``a, b : text`` says the same of both; continued lines, paragraphs and markup become one plain line."""
    parameters = parse(_TEXT).parameters
    assert parameters["fwhm_mm"] == "width of the kernel at half of its height, see generator 0 does nothing"
    assert parameters["fwhm_px"] == parameters["fwhm_mm"]


def test_stars_are_not_part_of_a_name() -> None:
    """``*axes`` documents the parameter ``axes``."""
    assert parse(_TEXT).parameters["axes"] == "which axes"


def test_a_type_alone_on_the_first_line_is_left_out() -> None:
    """Standard numpydoc has the type first and the meaning below it."""
    assert parse(_TEXT).parameters["steps"] == "Number of steps: one or more."


def test_a_name_may_stand_alone_on_its_line() -> None:
    """numpydoc allows a parameter without a type."""
    assert parse(_TEXT).parameters["seed"] == "Of the noise."


def test_sections_after_the_parameters_are_not_parameters() -> None:
    """The section Parameters ends where the next one begins."""
    assert list(parse(_TEXT).parameters) == ["image", "fwhm_mm", "fwhm_px", "axes", "steps", "seed"]


def test_text_holds_everything_but_the_parameters() -> None:
    """Summary, description and the other sections stay, in order."""
    assert parse(_TEXT).text == ("Blur an image.\n\nA sentence more.\n\nReturns\n-------\nimage : not a parameter")


def test_a_function_without_docstring_has_no_parameters() -> None:
    """Nothing is made up."""

    def bare(*, width: int = 1) -> int:
        return width

    assert docstring_of(bare) == parse("")
    assert docstring_of(bare).text == ""
