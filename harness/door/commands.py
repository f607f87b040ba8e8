"""The commands: words in, exit code out."""

from __future__ import annotations

from collections.abc import Sequence

from harness.door.api import carry_out
from harness.door.words import parse

__all__ = ["run"]


def run(texts: Sequence[str]) -> int:
    """``harness run``."""
    from harness.door.api import Silent
    result = carry_out(parse(texts), tuple(texts), Silent())
    from harness.leaderboard import to_console_rows
    head, rows = to_console_rows(result.leaderboard)
    print(head)
    for r in rows: print(r)
    print(result.verdict)
    return 0 if result.complete else 1
