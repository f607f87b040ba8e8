"""What a report is made of: figures, and tables of cells."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from harness.report.wording import interval_text, typographic

__all__ = ["Cell", "Figure", "ReportTable", "interval_cell"]


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    Parameters
    ----------
    title : what it shows
    caption : how to read it
    image : PNG bytes, or the text of an SVG
    broad : whether it takes the page's full width
    section : heading under which it stands; "Leaderboard" and "Explanations" hold their tables too
    """

    title: str
    caption: str
    image: bytes | str
    broad: bool = False
    section: str = "Figures"

    @property
    def uri(self) -> str:
        """The picture as a data URI; an SVG in it can neither run scripts nor load anything."""
        data = self.image.encode() if isinstance(self.image, str) else self.image
        kind = "svg+xml" if isinstance(self.image, str) else "png"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Parameters
    ----------
    text : content
    css : classes: ``number`` is aligned right, ``wrap`` may break, ``first`` stays in sight
    range : shown after the text in a softer colour
    flag : shown as a warning
    mark : ``good``, ``bad`` or ``open``: shown in a box of that colour
    link : relative address to which the text leads
    """

    text: str
    css: str = ""
    range: str = ""
    flag: bool = False
    mark: str = ""
    link: str = ""


def interval_cell(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    """A value with its interval; a dash where it is not known."""
    text, _, interval = typographic(interval_text(value, low, high)).partition(" ")
    return Cell(text, "number", interval)


@dataclass(frozen=True)
class ReportTable:
    """A plain table with its words.

    Parameters
    ----------
    title : what it holds
    columns : headings
    lines : as many fields as there are columns; the first names the line
    note : how to read it
    section : see :class:`Figure`
    folded : a longer table that opens on demand
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    section: str = "Leaderboard"
    folded: ReportTable | None = None
