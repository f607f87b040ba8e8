"""Output in encodings that lack characters of a message, such as ASCII."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Mapping

__all__ = ["degrade"]

_NAME = "harness-ascii"

_ALTERNATIVES: Mapping[str, str] = {
    "−": "-", "–": "-", "·": "-", "─": "-", "│": "|", "…": "...", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">=",
    "√": "sqrt", "Σ": "sum", "Δ": "delta", "μ": "u", "µ": "u", "²": "2", "³": "3", "½": "1/2", "✓": "ok", "✗": "no",
    "☑": "ok", "’": "'", "“": '"', "”": '"', "\u00a0": " ",
}  # fmt: skip


def degrade() -> None:
    """Write characters that standard output or error cannot encode in ASCII, instead of raising an error.

    Symbols of messages have an alternative (``x`` for ``×``). All other characters, such
    as the letters of a path, are written as escapes (``\\xe9`` for ``é``), so that different
    paths stay different.
    """
    codecs.register_error(_NAME, _alternative)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def _alternative(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ALTERNATIVES.get(one) or _escape(one) for one in text), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
