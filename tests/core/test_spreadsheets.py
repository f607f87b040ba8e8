"""Texts in tables are no formulas of spreadsheet programs."""

from __future__ import annotations

import pytest

from harness.core.spreadsheets import plain_cell


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://e/0")', "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "=", "-", "--1", "＝1+1"]
)
def test_formulas_become_text(text: str) -> None:
    """An apostrophe comes before whatever begins like a formula."""
    assert plain_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-0.5", "+3", "-inf", "-1e-07", "−0.5", "T2w+FLAIR", "a=b", "", "'=1", "sub-01", "mail@host", "0"]
)
def test_numbers_and_other_texts_are_unchanged(text: str) -> None:
    """Negative numbers stay numbers, and a character inside of a text is no formula."""
    assert plain_cell(text) == text


def test_carriage_returns_begin_no_cell() -> None:
    """Python writes them without quotes, and spreadsheet programs end a line there."""
    assert plain_cell("\r=1") == "'\n=1"
    assert plain_cell("left\r=1\r\n=2") == "left\n=1\n=2"
