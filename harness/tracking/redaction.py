"""Taking the names of subjects out of text that leaves this machine."""

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
    subjects : names to hide; those of the BIDS form (``sub-01``) are found without being listed

    Notes
    -----
    A name that is a plain number is hidden only in text that was not composed by us
    (an error message): elsewhere it is far more likely to be the value of an option.
    """

    subjects: Collection[str] = ()
    _composed: re.Pattern[str] = field(init=False, repr=False)
    _foreign: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Longer names first, each as a whole word: sub-1 must not leave the 2 of sub-12.
        longest = sorted(filter(None, self.subjects), key=lambda name: (-len(name), name))
        object.__setattr__(self, "_composed", _pattern([name for name in longest if not name.isdigit()]))
        object.__setattr__(self, "_foreign", _pattern(longest))

    def __call__(self, text: str, *, foreign: bool = False) -> str:
        """The text without names.

        Parameters
        ----------
        foreign : the text was not composed by us, so that a plain number may be a name
        """
        return (self._foreign if foreign else self._composed).sub(_HIDDEN, text)


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join([*map(re.escape, names), _BIDS])})(?![A-Za-z0-9])")
