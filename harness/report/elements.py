"""Elements of a report: figures and tables."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from harness.report.wording import interval_text, typographic

__all__ = ["Cell", "Figure", "ReportTable", "interval_cell"]


@dataclass(frozen=True)
class Figure:
    """An image with title and caption.

    Parameters
    ----------
    title : title
    caption : text below the image
    image : PNG bytes, or the text of an SVG
    broad : whether it takes the full width of the page
    section : heading of its section; "Leaderboard" and "Explanations" also contain their tables
    """

    title: str
    caption: str
    image: bytes | str
    broad: bool = False
    section: str = "Figures"

    @property
    def uri(self) -> str:
        """The image as a data URI, in which an SVG can neither run scripts nor load resources."""
        data = self.image.encode() if isinstance(self.image, str) else self.image
        kind = "svg+xml" if isinstance(self.image, str) else "png"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Parameters
    ----------
    text : content
    css : CSS classes: ``number`` is right-aligned, ``wrap`` may break lines, ``first`` stays
        visible when scrolling
    range : text shown after the content in a softer colour
    flag : whether the cell is shown as a warning
    mark : ``good``, ``bad`` or ``open``, shown as a box of that colour
    link : relative address of a link
    """

    text: str
    css: str = ""
    range: str = ""
    flag: bool = False
    mark: str = ""
    link: str = ""


def interval_cell(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    """A cell with a value and its interval; a dash if the value is not known."""
    text, _, interval = typographic(interval_text(value, low, high)).partition(" ")
    return Cell(text, "number", interval)


@dataclass(frozen=True)
class ReportTable:
    """A plain table with title and note.

    Parameters
    ----------
    title : title
    columns : headings of the columns
    lines : rows, each with one cell per column; the first cell names the row
    note : text below the table
    section : heading of its section, see :class:`Figure`
    folded : a longer, collapsed table
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    section: str = "Leaderboard"
    folded: ReportTable | None = None
