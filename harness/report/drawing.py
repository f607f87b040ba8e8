"""Errors of drawing, which are listed and do not stop a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.core.errors import StoreError

__all__ = ["listed_errors"]


@contextlib.contextmanager
def listed_errors(what: str, failed: list[str]) -> Iterator[None]:
    """Append an error of drawing to a list instead of raising it.

    Parameters
    ----------
    what : name of the figure
    failed : gets one line per error

    Raises
    ------
    StoreError
        If the store is damaged; the message has the remedy.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        failed.append(f"{what}: {type(error).__name__}: {error}")
