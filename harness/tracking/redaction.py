"""Remove the names of subjects from text that leaves this machine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

__all__ = ["Redaction"]

_BIDS = r"sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?"
_HIDDEN = "[subject]"


@dataclass(frozen=True)
class Redaction:
    """Replaces the names of subjects by ``[subject]``.

    Parameters
    ----------
    subjects : names to replace; names in BIDS form (``sub-01``) are always replaced

    Notes
    -----
    A name that is a plain number is replaced only in foreign text, such as an error
    message. Elsewhere, a number is far more likely to be the value of an option.
    """

    subjects: Collection[str] = ()
    _composed: re.Pattern[str] = field(init=False, repr=False)
    _foreign: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Longer names first and whole words only, so that sub-12 does not become [subject]2.
        longest = sorted(filter(None, self.subjects), key=lambda name: (-len(name), name))
        object.__setattr__(self, "_composed", _pattern([name for name in longest if not name.isdigit()]))
        object.__setattr__(self, "_foreign", _pattern(longest))

    def __call__(self, text: str, *, foreign: bool = False) -> str:
        """The text with all names replaced.

        Parameters
        ----------
        text : the text
        foreign : whether the text was not composed by this package, so that a plain
            number may be a name
        """
        return (self._foreign if foreign else self._composed).sub(_HIDDEN, text)


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join([*map(re.escape, names), _BIDS])})(?![A-Za-z0-9])")
