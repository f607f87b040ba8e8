"""Stored verification of cohorts: which files are read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import CohortError
from harness.core.types import Fault
from harness.data import nifti, verified
from harness.data.bids import index
from harness.data.cache import Digests
from harness.data.verified import verify_once


@pytest.fixture
def check(cohort: Path, tmp_path: Path) -> Callable[..., None]:
    """Verify the cohort as a new process would."""

    def run(*sequences: str, label: str = "lesion", **options: Any) -> None:
        found = index(cohort, sequences=sequences, label=label or None)
        digests, notes = Digests(tmp_path / "digests", cohort), tmp_path / "notes"
        verify_once(found, label=label, sequences=sequences, minimum=1, digests=digests, folder=notes, **options)

    return run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry per verification of files."""
    seen: list[str] = []
    whole = verified.verify

    def counted(*given: Any, **options: Any) -> list[Fault]:
        seen.append("read")
        return whole(*given, **options)

    monkeypatch.setattr(verified, "verify", counted)
    return seen


def test_valid_cohort_is_not_read_again(check: Callable[..., None], reads: list[str]) -> None:
    """Nor is a subset of its sequences."""
    check("T1w", "FLAIR")
    check("T1w", "FLAIR")
    check("FLAIR")
    assert reads == ["read"]


@pytest.mark.parametrize(
    ("sequences", "options"),
    [(("T1w", "FLAIR"), {}), (("T1w",), {"optional": ("brain",)}), (("T1w",), {"label": ""})],
    ids=["another sequence", "another mask", "another label"],
)
def test_further_files_are_verified(
    check: Callable[..., None], reads: list[str], sequences: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Another sequence, mask or label is verified."""
    check("T1w")
    check(*sequences, **options)
    assert reads == ["read", "read"]


@pytest.mark.parametrize("name", ["sub-02_T1w", "sub-02_label-lesion_mask"])
def test_a_file_that_changes_is_read_again(check: Callable[..., None], cohort: Path, name: str) -> None:
    """The new fault of an image or a mask is found."""
    check("T1w")
    path = cohort / "sub-02" / "anat" / f"{name}.nii.gz"
    array, affine = nifti.read(path)
    nifti.write(path, np.zeros_like(array), affine)
    with pytest.raises(CohortError, match=name):
        check("T1w")


def test_changed_participants_are_verified_again(check: Callable[..., None], cohort: Path, reads: list[str]) -> None:
    """Values of participants.tsv are verified as well."""
    check("T1w")
    table = cohort / "participants.tsv"
    changed = table.read_text().replace("\t41", "\t43")
    assert changed != table.read_text()
    table.write_text(changed)
    check("T1w")
    assert reads == ["read", "read"]


def test_faults_are_raised_each_time(check: Callable[..., None], tmp_path: Path) -> None:
    """Additional faults are raised whether or not the verification is stored."""
    fault = Fault("brain-missing", "", "sub-03", "no brain", "a brain", "Add it.")
    with pytest.raises(CohortError) as caught:
        check("T1w", more=[fault])
    assert caught.value.faults == (fault,)
    assert not (tmp_path / "notes").exists()
    check("T1w")
    with pytest.raises(CohortError, match="no brain"):
        check("T1w", more=[fault])


def test_callback_is_called_once_per_file(check: Callable[..., None]) -> None:
    """Files that are not read again are not passed to the callback."""
    shown: list[str] = []
    for _ in range(2):
        check("T1w", seen=lambda path, values, header: shown.append(path.name))
    assert sorted(shown) == sorted(
        f"sub-0{number}_{end}.nii.gz" for number in (1, 2, 3) for end in ("T1w", "label-lesion_mask")
    )
