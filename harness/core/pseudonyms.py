"""Replace the names of subjects by keyed hashes in text that is shown or shared."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

__all__ = ["Pseudonyms"]

_BIDS = r"sub-[A-Za-z0-9+]+(?:_ses-[A-Za-z0-9+]+)?"
_LISTS = r"(?P<key>\b(?:exclude|search_subjects|[\w.]*test_subjects)=)(?P<values>[^\s'\"]+)"
_NAME = r"[^\[\](),]+"
_SUBJECT, _SAMPLE = 12, 8  # hexadecimal digits


class Pseudonyms:
    """Replaces names by pseudonyms: ``sub-p`` and digits of HMAC-SHA256 (RFC 2104) of the name.

    Without the key, a pseudonym can neither be computed from a name nor be reversed. With
    the same key, a name always has the same pseudonym. Pseudonyms are left unchanged, so that
    a text may be passed through twice.

    Parameters
    ----------
    key : secret key, at least 32 bytes
    samples : pairs of sample id and subject; names in BIDS form (``sub-01``) are always replaced

    Notes
    -----
    Names that are plain numbers are replaced where they are a whole text, in lists of
    subjects (``exclude=17``) and, with ``foreign=True``, anywhere. Elsewhere, a number is
    far more likely to be the value of an option.
    """

    def __init__(self, key: bytes, samples: Iterable[tuple[str, str]] = ()) -> None:
        if len(key) < 32:
            raise ValueError("the key must have at least 32 bytes")
        self._key = key
        self._made: dict[str, str] = {}
        self._results: set[str] = set()
        for name, subject in samples:
            self._of(subject)
            self._of(name, subject)
        longest = sorted(filter(None, self._made), key=lambda name: (-len(name), name))
        self._composed = _pattern(name for name in longest if not name.isdigit())
        self._foreign = _pattern(longest)

    def __call__(self, text: str, *, foreign: bool = False) -> str:
        """The text with pseudonyms instead of names.

        Parameters
        ----------
        text : the text
        foreign : whether the text was not composed by this package, so that a plain number
            may be a name
        """
        if text in self._made and text not in self._results:
            return self._made[text]
        listed = re.sub(_LISTS, lambda found: found["key"] + re.sub(_NAME, self._listed, found["values"]), text)
        return (self._foreign if foreign else self._composed).sub(lambda found: self._of(found[0]), listed)

    def _listed(self, found: re.Match[str]) -> str:
        """A name in a list of subjects, where ``sub-`` may be left out."""
        name = found[0]
        known = name if name in self._made or name.startswith("sub-") else f"sub-{name}"
        return self._of(known)

    def _of(self, name: str, subject: str = "") -> str:
        """The pseudonym of a subject, or of a sample."""
        if not name or name in self._results:
            return name
        if name not in self._made:
            subject = subject or name.partition("_ses-")[0]
            made = f"sub-p{self._digits(subject, _SUBJECT)}"
            if name != subject:
                made += f"_{self._digits(name, _SAMPLE)}"
            self._made[name] = made
            self._results |= {made}
        return self._made[name]

    def _digits(self, name: str, count: int) -> str:
        return hmac.new(self._key, name.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:count]


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    # Longer names first and whole words only, so that sub-12 does not become a pseudonym and 2.
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join([*map(re.escape, names), _BIDS])})(?![A-Za-z0-9])")
