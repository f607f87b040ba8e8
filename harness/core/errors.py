"""Every error the user can meet, in one tree.

::

    HarnessError
    ├── RequestError          the words of a command are wrong (exit code 2)
    │   ├── UnknownName       no such task, model, key, …; shows the near ones
    │   ├── OutOfRange        a value breaks the relation that must hold
    │   └── BadSyntax         a word that cannot be parsed
    ├── RegistrationError     a part that cannot be registered
    ├── CohortError           faults of the data, all of them listed
    ├── ImageError            an image file that cannot be read (in harness.data.nifti)
    ├── StoreError            a record or artifact that cannot be trusted
    └── CellError             a cell that cannot be computed
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.core.types import Fault

__all__ = [
    "BadSyntax",
    "CellError",
    "CohortError",
    "HarnessError",
    "OutOfRange",
    "RegistrationError",
    "RequestError",
    "StoreError",
    "UnknownName",
    "first_line",
]


def first_line(error: BaseException, *, where: bool = False) -> str:
    """An error as one line: its type, and the first line of its message.

    Parameters
    ----------
    where : add the file and line in which it was raised
    """
    line = str(error).strip().partition("\n")[0] or "no message"
    frames = traceback.extract_tb(error.__traceback__) if where else []
    place = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {line}{place}"


class HarnessError(Exception):
    """Root of all errors raised on purpose."""


class RequestError(HarnessError):
    """The request cannot be carried out as it was worded."""


class UnknownName(RequestError):
    """A name that is not in a closed list.

    Parameters
    ----------
    kind : what the name should have been ("model", "metric", "key", …)
    name : what came
    known : every name that would have been accepted
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        lines = [f"no {kind} is named {name!r}."]
        if near:
            lines.append(f"Near: {', '.join(near)}.")
        lines.append(f"All: {', '.join(self.known) or '(none)'}.")
        super().__init__(" ".join(lines))

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class OutOfRange(RequestError):
    """A value that breaks the relation that must hold."""


class BadSyntax(RequestError):
    """A word that the override grammar cannot read."""


class RegistrationError(HarnessError):
    """A part that was refused when it was registered."""


class CohortError(HarnessError):
    """The cohort has faults; nothing was trained and nothing was written.

    Parameters
    ----------
    faults : all faults that were found, in reading order
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        many = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        lines = [f"the cohort has {many}; nothing was trained:"]
        lines += [f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1)]
        subjects = sorted({fault.subject for fault in self.faults if fault.subject})
        if subjects:
            lines.append(f"Mend the files, or go on without them: exclude={','.join(subjects)}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[CohortError], tuple[tuple[Fault, ...]]]:
        return type(self), (self.faults,)


class StoreError(HarnessError):
    """A record or an artifact in the store that cannot be trusted."""


class CellError(HarnessError):
    """A cell that cannot be computed."""
