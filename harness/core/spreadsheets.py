"""Text in tables that spreadsheet programs open."""

from __future__ import annotations

import contextlib
import re

__all__ = ["plain_cell"]

# With these, Excel, LibreOffice and Google Sheets take a cell for a formula
# (https://owasp.org/www-community/attacks/CSV_Injection).
_STARTS = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")


def plain_cell(text: str) -> str:
    """Text of a cell that no spreadsheet program runs as a formula.

    Parameters
    ----------
    text : name or other text, which may be of foreign origin

    Returns
    -------
    str
        With an apostrophe before a text that begins like a formula; numbers, such as
        ``-0.5`` and ``-inf``, are unchanged. Carriage returns become line feeds, because Python
        writes them without quotes, so that the next character would begin a cell.
    """
    text = re.sub("\r\n?", "\n", text)
    if not text.startswith(_STARTS):
        return text
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}"
