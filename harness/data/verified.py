"""Verification that is remembered: a faultless cohort is not read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.core.errors import CohortError
from harness.core.identity import canonical, code_digest
from harness.core.types import Array, Candidate, Fault
from harness.data import nifti
from harness.data.bids import BidsIndex
from harness.data.cache import Digests, hash_of, read_json
from harness.data.verify import verify
from harness.storage.files import replace_file

__all__ = ["READERS", "verify_once"]

READERS = 4
"""Threads that read files; decompression and hashing leave Python's lock."""


def verify_once(
    found: BidsIndex,
    *,
    label: str,
    sequences: Sequence[str] = (),
    optional: Sequence[str] = (),
    minimum: int,
    digests: Digests,
    folder: Path,
    more: Sequence[Fault] = (),
    seen: Callable[[Path, Array, nifti.Header], None] | None = None,
) -> None:
    """Raise all faults of a cohort, or note that it has none.

    A cohort with a note is not read again, nor is a subset of its sequences.

    Parameters
    ----------
    found : what the folder holds
    label : mask that every subject must have; empty for none
    sequences, optional, minimum, seen : see :func:`harness.data.verify.verify`
    digests : of the originals
    folder : folder of the notes
    more : faults that were found otherwise

    Raises
    ------
    CohortError
        With all faults.
    """
    rest, images = _what_is_verified(found, sequences, label, optional, minimum, digests)
    known = [] if rest is None else [set(map(tuple, read_json(path) or ())) for path in folder.glob(f"{rest}-*.json")]
    clean = any(images <= one for one in known)
    checked = [] if clean else verify(
        found, sequences=sequences, label=label or None, optional=optional, minimum=minimum, seen=seen
    )  # fmt: skip
    faults = list(dict.fromkeys((*found.faults, *checked, *more)))
    if faults:
        raise CohortError(faults, found.notes, found.ineligible)
    if rest is not None and not clean:
        content = canonical(sorted(images))
        replace_file(folder / f"{rest}-{hash_of(content)[:20]}.json", content.encode())


def _what_is_verified(
    found: BidsIndex, sequences: Sequence[str], label: str, optional: Sequence[str], minimum: int, digests: Digests
) -> tuple[str | None, set[tuple[str, ...]]]:
    """Hash of what must be equal, and the images, of which a subset is as good; ``None`` if a file is unreadable.

    A fault belongs to files that are there, so fewer images of the same
    subjects with the same masks cannot have more faults.
    """

    def entry(one: Candidate, name: str, path: Path) -> tuple[str, ...]:
        return one.id, name, path.name, digests.of(path)

    kept = [name for name in (label, *optional) if name]
    try:
        used = [(one, name, one.images[name]) for one in found.candidates for name in sequences]
        drawn = [(one, name, one.masks[name]) for one in found.candidates for name in kept if name in one.masks]
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(digests.of, dict.fromkeys(path for _, _, path in (*used, *drawn))))
        images, masks = {entry(*one) for one in used}, [entry(*one) for one in drawn]
    except (OSError, KeyError):
        return None, set()
    rest = {
        "code": code_digest(["harness.data.verify"]),
        "subjects": [[one.id, one.subject, dict(one.covariates)] for one in found.candidates],
        "masks": masks,
        "regions": {str(value): name for value, name in found.regions.items()},
        "ranges": {column: list(limits) for column, limits in found.ranges.items()},
        "names": [label, *optional],
        "minimum": minimum,
    }
    return hash_of(repr(rest))[:20], images
