"""Pseudonyms: keyed hashes of the names of subjects."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from harness.core.pseudonyms import Pseudonyms

KEY = bytes(range(32))
SAMPLES = [("sub-01_ses-2", "sub-01"), ("sub-012", "sub-012"), ("Anna B.", "Anna B."), ("17", "17"), ("a.b", "17")]


def digits(name: str, count: int = 12) -> str:
    """HMAC-SHA256 of a name, as written in RFC 2104."""
    return hmac.new(KEY, name.encode(), hashlib.sha256).hexdigest()[:count]


@pytest.fixture
def hide() -> Pseudonyms:
    """Pseudonyms of five samples."""
    return Pseudonyms(KEY, SAMPLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub-01", f"sub-p{digits('sub-01')}"),
        ("sub-012 and sub-01", f"sub-p{digits('sub-012')} and sub-p{digits('sub-01')}"),
        ("sub-01_ses-2/anat", f"sub-p{digits('sub-01')}_{digits('sub-01_ses-2', 8)}/anat"),
        ("sub-99, which is unknown", f"sub-p{digits('sub-99')}, which is unknown"),
        ("Example: Anna B.", f"Example: sub-p{digits('Anna B.')}"),
        ("17", f"sub-p{digits('17')}"),
        ("17 epochs", "17 epochs"),
        ("a.b", f"sub-p{digits('17')}_{digits('a.b', 8)}"),
        ("a-b subgroup", "a-b subgroup"),
        ("run exclude=01,17 seed=1", f"run exclude=sub-p{digits('sub-01')},sub-p{digits('17')} seed=1"),
        ("split.test_subjects=[01]", f"split.test_subjects=[sub-p{digits('sub-01')}]"),
        ("", ""),
    ],
)
def test_names_are_replaced(hide: Pseudonyms, text: str, expected: str) -> None:
    """Whole words only; numbers only where they must be names; twice is the same as once."""
    assert hide(text) == expected
    assert hide(hide(text)) == expected


def test_numbers_in_foreign_text(hide: Pseudonyms) -> None:
    """An error message may name a subject by its number."""
    assert hide("no voxel of 17", foreign=True) == f"no voxel of sub-p{digits('17')}"


def test_keys_give_other_pseudonyms(hide: Pseudonyms) -> None:
    """The same key gives the same pseudonyms, another key gives others."""
    assert Pseudonyms(KEY)("sub-01") == hide("sub-01") != Pseudonyms(KEY[::-1])("sub-01")


def test_short_keys_are_refused() -> None:
    """A short key could be guessed."""
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Pseudonyms(b"secret")
