"""Several visits of a subject: written by phantoms, read with the values of each visit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.data import bids
from harness.data.bids_writing import write_phantom
from harness.simulation.phantom import PhantomSubject


def visit(edss: float, age: float, sex: str = "F") -> PhantomSubject:
    """A visit with a random image and a mask."""
    rng = np.random.default_rng(int(10 * edss + age))
    image = rng.random((6, 6, 6)).astype(np.float32)
    masks = {"tract": ((image > 0.7).astype(np.uint8), np.eye(4))}
    return PhantomSubject({"NDI": (image, np.eye(4))}, masks, {"edss": edss, "age": age, "sex": sex})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of one subject with two visits and two subjects with one."""
    subjects = [[visit(3.0, 40.0), visit(5.5, 42.0)], visit(2.0, 55.0, "M"), [visit(6.0, 61.0)]]
    return write_phantom(tmp_path / "visits", subjects, name="visits", label_sources={"tract": ("NDI",)})


def test_visits_have_their_own_values(root: Path) -> None:
    """What differs between visits is in a table of sessions, everything else in participants.tsv."""
    found = bids.index(root, sequences=("NDI",), label="tract", session="all")
    assert not found.faults
    values = [tuple(one.covariates[name] for name in ("edss", "age", "sex")) for one in found.candidates]
    assert dict(zip([one.id for one in found.candidates], values, strict=True)) == {
        "sub-01_ses-1": (3.0, 40.0, "F"),
        "sub-01_ses-2": (5.5, 42.0, "F"),
        "sub-02": (2.0, 55.0, "M"),
        "sub-03": (6.0, 61.0, "F"),
    }
    table = (root / "sub-01" / "sub-01_sessions.tsv").read_text().splitlines()
    assert table == ["session_id\tedss\tage", "ses-1\t3\t40", "ses-2\t5.5\t42"]
    lines = (root / "participants.tsv").read_text().splitlines()
    assert lines[:2] == ["participant_id\tsex\tedss\tage", "sub-01\tF\tn/a\tn/a"]


def test_first_visit_has_its_values(root: Path) -> None:
    """With ``session=first``, the values are those of the first visit."""
    found = bids.index(root, sequences=("NDI",), session="first")
    assert [one.covariates["edss"] for one in found.candidates] == [3.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("session\tedss\nses-1\t3\nses-2\t4\n", "without session_id"),
        ("session_id\tedss\nses-1\t3\nses-1\t4\n", "line 3 repeats ses-1"),
        ("session_id\tedss\nses-1\t3\t7\nses-2\t4\n", "has 3 cells for 2 columns"),
        ("session_id\tedss\nses-8\t3\nses-9\t4\n", "the sessions are ses-8, ses-9, but the folders are ses-1, ses-2"),
        ("", "the columns are none"),
    ],
)
def test_faulty_tables_are_named(root: Path, content: str, text: str) -> None:
    """The fault names the file, and what is wrong with it."""
    (root / "sub-01" / "sub-01_sessions.tsv").write_text(content)
    (fault,) = bids.index(root, sequences=("NDI",), session="all").faults
    assert (fault.kind, fault.file) == ("sessions-table", "sub-01/sub-01_sessions.tsv") and text in str(fault)


def test_values_are_checked_like_those_of_participants(root: Path) -> None:
    """Text among numbers is a fault of the file; ``2`` is read as ``ses-2``; n/a leaves the value of the subject."""
    path = root / "sub-01" / "sub-01_sessions.tsv"
    path.write_text("session_id\tedss\tage\n1\t3\t>40\n2\tn/a\t42\n")
    found = bids.index(root, sequences=("NDI",), session="all")
    assert [one.covariates["edss"] for one in found.candidates][:2] == [3.0, None]
    assert any("age >40 is read as 40" in note for note in found.notes)
    path.write_text("session_id\tedss\tage\nses-1\t3\t40\nses-2\t5\tmany\n")
    (root / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tedss\tage\n")
    faults = bids.index(root, sequences=("NDI",), session="all").faults
    assert all("sessions.tsv" in fault.file for fault in faults)
