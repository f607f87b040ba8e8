"""All errors raised on purpose.

::

    HarnessError
    ├── RequestError          the request is wrong (exit code 2)
    │   ├── UnknownName       no such task, model, key, …; lists similar names
    │   ├── OutOfRange        a value violates a condition
    │   └── BadSyntax         an override that cannot be parsed
    ├── RegistrationError     a component that cannot be registered
    ├── CohortError           faults in the data, all of them listed
    ├── ImageError            an image file that cannot be read (in harness.data.nifti)
    ├── StoreError            a record or artifact that cannot be trusted
    └── CellError             a cell that cannot be computed
"""

from __future__ import annotations

import difflib
import traceback
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.core.types import Fault, Ineligible

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
    "raise_together",
]


def first_line(error: BaseException, *, where: bool = False) -> str:
    """An error as one line: its type and the first line of its message.

    Parameters
    ----------
    where : add the file and line that raised it
    """
    line = str(error).strip().partition("\n")[0] or "no message"
    frames = traceback.extract_tb(error.__traceback__) if where else []
    place = f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {line}{place}"


class HarnessError(Exception):
    """Base class of all errors raised on purpose."""


class RequestError(HarnessError):
    """A request that cannot be carried out."""


_LISTED = 60  # names that a message lists


class UnknownName(RequestError):
    """A name that does not exist.

    Parameters
    ----------
    kind : what is named ("model", "metric", "key", …)
    name : the unknown name
    known : all names that exist; if there are many, the message has only similar ones
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = _near(name, self.known) if isinstance(name, str) else []  # in Python, anything can be given
        lines = [f"no {kind} is named {name!r}."]
        if near:
            lines.append(f"Near: {', '.join(near)}.")
        if len(self.known) <= _LISTED:
            lines.append(f"All: {', '.join(self.known) or '(none)'}.")
        elif not near:
            lines.append(f"{_LISTED} of {len(self.known)}: {', '.join(self.known[:_LISTED])}, …")
        super().__init__(" ".join(lines))

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


def _near(name: str, known: Sequence[str], most: int = 3) -> list[str]:
    """Similar names: the same in other letters or as the last part (``recipe.lr`` for ``lr``), then the closest."""
    plain = unicodedata.normalize("NFC", name).casefold()
    same = [one for one in known if plain in (unicodedata.normalize("NFC", one).casefold(), _last_part(one))]
    return list(dict.fromkeys((*same, *difflib.get_close_matches(name, known, n=most, cutoff=0.5))))[:most]


def _last_part(name: str) -> str:
    return name.rpartition(".")[2].casefold()


class OutOfRange(RequestError):
    """A value that violates a condition."""


class BadSyntax(RequestError):
    """An override that cannot be parsed."""


def raise_together(faults: Sequence[RequestError]) -> None:
    """Raise the faults of a request as one error, so that all of them can be mended at once; nothing without faults."""
    texts = list(dict.fromkeys(map(str, faults)))
    if len(texts) == 1:
        raise faults[0]
    if texts:
        raise RequestError("\n".join([f"{len(texts)} faults in the request:", *(f"- {text}" for text in texts)]))


class RegistrationError(HarnessError):
    """A component that cannot be registered."""


class CohortError(HarnessError):
    """The cohort has faults; nothing was trained or written.

    Parameters
    ----------
    faults : all faults, in the order in which they were found
    notes : what was read with a reservation, which may explain a fault
    ineligible : subjects that were left out
    """

    def __init__(
        self, faults: Sequence[Fault], notes: Sequence[str] = (), ineligible: Sequence[Ineligible] = ()
    ) -> None:
        self.faults, self.notes, self.ineligible = tuple(faults), tuple(notes), tuple(ineligible)
        many = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        lines = [f"the cohort has {many}; nothing was computed:"]
        lines += [f"  {number}. {fault}" for number, fault in enumerate(self.faults, 1)]
        subjects = sorted({fault.subject for fault in self.faults if fault.subject})
        if subjects:
            lines.append(f"Fix the files, or leave these subjects out: exclude={','.join(subjects)}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[CohortError], tuple[object, ...]]:
        return type(self), (self.faults, self.notes, self.ineligible)


class StoreError(HarnessError):
    """A record or an artifact in the store that cannot be trusted."""


class CellError(HarnessError):
    """A cell that cannot be computed."""
