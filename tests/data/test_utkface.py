"""The reader of UTKFace: labels from names, listed problems, duplicates, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.types import Cohort
from harness.data.utkface import utkface

STAMP = "20170109142408075"
FACES = {
    "26_0_0": ("male", "White"), "1_1_1": ("female", "Black"), "80_1_2": ("female", "Asian"),
    "116_0_3": ("male", "Indian"), "26_1_3": ("female", "Indian"),
}  # fmt: skip


def write(path: Path, number: int, shape: tuple[int, ...] = (20, 20, 3)) -> None:
    """Write noise as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.random.default_rng(number).integers(0, 256, shape, np.uint8)).save(path, quality=95)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with five faces, two of them in a subfolder."""
    for number, name in enumerate(FACES):
        folder = tmp_path / "UTKFace" / ("part1" if number > 2 else "")
        write(folder / f"{name}_{STAMP}.jpg.chip.jpg", number)
    return tmp_path / "UTKFace"


def read(root: Path, **options: object) -> Cohort:
    """Read the folder with a cache beside it."""
    return utkface(root, root.parent / "cache", **options)  # type: ignore[arg-type]


def test_labels_are_those_of_the_names(root: Path) -> None:
    """Each picture is a subject with age, sex and ethnicity, sorted by name."""
    cohort = read(root)
    assert [one.id for one in cohort.samples] == sorted(f"{name}_{STAMP}" for name in FACES)
    for one in cohort.samples:
        name = one.id.removesuffix(f"_{STAMP}")
        sex, ethnicity = FACES[name]
        assert one.covariates == {"age": float(name.partition("_")[0]), "sex": sex, "ethnicity": ethnicity}
        assert one.subject == one.id and one.shape == (20, 20, 3)
    assert cohort.ineligible == ()


def test_pixels_are_those_of_the_decoded_file(root: Path) -> None:
    """JPEG is decoded to (H, W, 3) uint8."""
    for one in read(root).samples:
        (path,) = root.rglob(f"{one.id}.jpg.chip.jpg")
        np.testing.assert_array_equal(one.images["rgb"].load(), np.asarray(Picture.open(path)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("61_1_20170109142408075", "3 fields"),
        ("61_1_2_3_20170109142408075", "5 fields"),
        ("portrait", "1 fields"),
        ("x_1_2_20170109142408075", "not a whole number"),
        ("61__2_20170109142408075", "not a whole number"),
        ("-1_1_2_20170109142408075", "not a whole number"),
        ("117_1_2_20170109142408075", "above 116"),
        ("61_3_2_20170109142408075", "neither 0 nor 1"),
        ("61_1_5_20170109142408075", "above 4"),
        ("61_1_2_2017", "8 to 17 digits"),
    ],
)
def test_names_that_cannot_be_read_are_listed(root: Path, name: str, reason: str) -> None:
    """They are left out with the reason, and the others are read."""
    write(root / f"{name}.jpg.chip.jpg", 99)
    cohort = read(root)
    assert len(cohort.samples) == 5
    ((left_out, why),) = [(one.subject, one.reason) for one in cohort.ineligible]
    assert left_out == f"{name}.jpg.chip.jpg" and reason in why


def test_links_out_of_the_folder(root: Path, tmp_path: Path) -> None:
    """A link to another place is refused, unless that place is named; links inside are followed."""
    place = tmp_path / "place"
    place.mkdir()
    first, *_ = sorted(root.glob("*.jpg"))
    first.rename(place / "object.jpg")
    first.symlink_to(place / "object.jpg")
    with pytest.raises(CohortError, match=rf"\[link-outside\] {first.name}: a link to .*cohort\.links=.*place"):
        read(root)
    assert len(read(root, links=place).samples) == len(FACES)
    first.unlink()
    (place / "object.jpg").rename(root / ".object")
    first.symlink_to(root / ".object")
    assert len(read(root).samples) == len(FACES)


def test_fifth_ethnicity_is_left_out_and_counted(root: Path) -> None:
    """Pictures of others are no sample, and a note counts them."""
    for number in range(3):
        write(root / f"{30 + number}_0_4_{STAMP}.jpg", 50 + number)
    cohort = read(root)
    assert len(cohort.samples) == 5
    assert "3 pictures of the fifth ethnicity (others) were left out" in cohort.notes


def test_terms_are_stated(root: Path) -> None:
    """The notes say that the data are for non-commercial research, and that identities are unknown."""
    text = "; ".join(read(root).notes)
    assert "non-commercial research" in text and "does not say who is shown" in text


def test_equal_pictures_are_used_once(root: Path) -> None:
    """Of two files with equal content and labels one is kept, and both are dropped if their labels differ."""
    first = next(root.glob("26_0_0_*"))
    (root / "26_0_0_20200101000000000.jpg").write_bytes(first.read_bytes())
    second = next(root.glob("1_1_1_*"))
    (root / "2_1_1_20200101000000000.jpg").write_bytes(second.read_bytes())
    cohort = read(root)
    reasons = {one.subject: one.reason for one in cohort.ineligible}
    assert set(reasons) == {"26_0_0_20200101000000000", f"1_1_1_{STAMP}", "2_1_1_20200101000000000"}
    assert "different labels" in reasons[f"1_1_1_{STAMP}"] and "is kept" in reasons["26_0_0_20200101000000000"]
    assert len(cohort.samples) == 4


def test_one_name_twice_is_a_fault(root: Path) -> None:
    """The aligned and the original picture of a face are not both read; all such names are listed."""
    for name in list(FACES)[:2]:
        write(root / "original" / f"{name}_{STAMP}.jpg", 77)
    with pytest.raises(CohortError) as found:
        read(root)
    assert [one.kind for one in found.value.faults] == ["twice", "twice"]


def test_faulty_files_are_listed(root: Path) -> None:
    """Files that cannot be read and pictures of another size are all listed with their names."""
    (root / f"40_0_0_{STAMP}.jpg").write_bytes(b"no picture")
    write(root / f"41_0_0_{STAMP}.jpg", 7, (20, 30, 3))
    with pytest.raises(CohortError) as found:
        read(root)
    assert {(one.kind, one.file) for one in found.value.faults} == {
        ("unreadable", f"40_0_0_{STAMP}.jpg"),
        ("size", f"41_0_0_{STAMP}.jpg"),
    }


def test_pictures_are_resampled(root: Path) -> None:
    """``side`` gives pictures of that size, the mean of the pixels; sizes may differ, but must be square."""
    write(root / f"41_0_0_{STAMP}.jpg", 7, (40, 40, 3))
    cohort = read(root, side=10)
    assert {one.shape for one in cohort.samples} == {(10, 10, 3)}
    (sample,) = [one for one in cohort.samples if one.id.startswith("26_0_0")]
    full = np.asarray(Picture.open(next(root.glob("26_0_0_*"))), float)
    expected = full.reshape(10, 2, 10, 2, 3).mean((1, 3))
    assert np.abs(sample.images["rgb"].load() - expected).max() <= 1
    assert read(root, side=5).samples[0].shape == (5, 5, 3)
    write(root / f"42_0_0_{STAMP}.jpg", 8, (40, 30, 3))
    with pytest.raises(CohortError, match="30 x 40 pixels; expected a square"):
        read(root, side=10)


def test_number_of_pictures(root: Path) -> None:
    """Pictures are drawn at random, the same ones each time; a note says of how many."""
    cohort = read(root, images=3)
    assert [one.id for one in cohort.samples] == [one.id for one in read(root, images=3).samples]
    assert len(cohort.samples) == 3 and "3 of 5 pictures were drawn (cohort.images=3)" in cohort.notes
    assert "all 5 pictures are used (cohort.images=9000)" in read(root, images=9000).notes


def test_excluded_pictures(root: Path) -> None:
    """Excluded pictures are ineligible, and unknown ones are refused."""
    cohort = read(root, exclude=(f"26_0_0_{STAMP}",))
    assert len(cohort.samples) == 4 and cohort.ineligible[0].reason == "excluded by request"
    with pytest.raises(UnknownName, match="no picture of UTKFace"):
        read(root, exclude=("nobody",))


def test_folder_without_faces(tmp_path: Path) -> None:
    """A missing folder, and a folder with other pictures, are refused."""
    with pytest.raises(CohortError, match="there is no folder"):
        read(tmp_path / "nowhere")
    write(tmp_path / "holiday" / "beach.jpg", 1)
    with pytest.raises(CohortError, match=r"0 pictures.*1 with other names \(beach.jpg"):
        read(tmp_path / "holiday")
    with pytest.raises(OutOfRange, match="one image rgb"):
        read(tmp_path / "holiday", sequences=("T1w",))
