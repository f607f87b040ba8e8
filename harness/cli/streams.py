"""Standard streams and signals of the program: output in encodings such as ASCII, and its termination."""

from __future__ import annotations

import codecs
import io
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

__all__ = ["degrade", "exit_code_of_stop", "handle_termination"]

_NAME = "harness-ascii"

_ALTERNATIVES: Mapping[str, str] = {
    "−": "-", "–": "-", "·": "-", "─": "-", "│": "|", "…": "...", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">=",
    "√": "sqrt", "Σ": "sum", "Δ": "delta", "μ": "u", "µ": "u", "²": "2", "³": "3", "½": "1/2", "✓": "ok", "✗": "no",
    "☑": "ok", "’": "'", "“": '"', "”": '"', "\u00a0": " ",
}  # fmt: skip


_terminated = threading.Event()


def handle_termination() -> None:
    """Handle SIGTERM, as a batch system sends it at the end of the time limit, like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        _terminated.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def exit_code_of_stop() -> int:
    """Exit code after a ``KeyboardInterrupt``: 143 if it was caused by SIGTERM, 130 for Ctrl-C.

    Notes
    -----
    Ray Tune raises a new ``KeyboardInterrupt``, so that the exception cannot tell.
    """
    return 128 + (signal.SIGTERM if _terminated.is_set() else signal.SIGINT)


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
