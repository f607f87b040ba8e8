"""Cohorts of pictures: reading, caching and faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.types import Array, Reads
from harness.data.pictures import pictures, write_pictures
from harness.simulation.phantom import PhantomPicture


def picture(number: int, shape: tuple[int, ...] = (6, 8, 3)) -> Array:
    """Uniform noise, uint8."""
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Factory that writes arrays by file name and the table of labels."""

    def make(images: Mapping[str, Array], table: str, masks: Mapping[str, Array] | None = None) -> Path:
        for folder, arrays in (("images", images), ("masks", masks or {})):
            for name, array in arrays.items():
                path = tmp_path / "patches" / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Picture.fromarray(array).save(path)
        (tmp_path / "patches" / "labels.csv").write_text(table)
        return tmp_path / "patches"

    return make


FOUR = {f"{name}.png": picture(number) for number, name in enumerate("dbca")}
TABLE = "image,subject,age,sex\nd.png,one,40,F\nb.png,two,n/a,M\nc.png,one,41.5,\na.png,three,89+,F\n"


def test_rows_become_samples(write: Callable[..., Path], tmp_path: Path) -> None:
    """Samples are sorted by id (the file name); columns become covariates, as numbers where possible."""
    cohort = pictures(write(FOUR, TABLE), tmp_path / "cache")
    assert (cohort.name, cohort.subjects) == ("patches", ("three", "two", "one"))
    assert [(one.id, one.subject, one.covariates) for one in cohort.samples] == [
        ("a", "three", {"age": "89+", "sex": "F"}),
        ("b", "two", {"age": None, "sex": "M"}),
        ("c", "one", {"age": 41.5, "sex": None}),
        ("d", "one", {"age": 40.0, "sex": "F"}),
    ]


def test_pixels_are_those_of_the_files(write: Callable[..., Path], tmp_path: Path) -> None:
    """(H, W, 3) uint8, with neither affine nor spacing."""
    cohort = pictures(write(FOUR, TABLE), tmp_path / "cache")
    for sample in cohort.samples:
        np.testing.assert_array_equal(sample.images["rgb"].load(), FOUR[f"{sample.id}.png"])
        assert sample.images["rgb"].load().dtype == np.uint8
        assert (sample.affine, sample.spacing_mm, sample.shape) == (None, None, (6, 8, 3))


def test_without_a_subject_column_each_picture_is_a_subject(write: Callable[..., Path], tmp_path: Path) -> None:
    """Pictures may then be in different folds."""
    cohort = pictures(write(FOUR, "image\nd.png\nb.png\nc.png\na.png\n"), tmp_path / "cache")
    assert cohort.subjects == ("a", "b", "c", "d")


def test_grey_pictures_have_three_equal_channels(write: Callable[..., Path], tmp_path: Path) -> None:
    """All pictures have the same number of channels."""
    grey = {f"{name}.png": picture(number, (6, 8)) for number, name in enumerate("abc")}
    cohort = pictures(write(grey, "image\na.png\nb.png\nc.png\n"), tmp_path / "cache")
    for sample in cohort.samples:
        expected = np.repeat(grey[f"{sample.id}.png"][..., None], 3, axis=2)
        np.testing.assert_array_equal(sample.images["rgb"].load(), expected)


def test_masks_are_read_with_their_pictures(write: Callable[..., Path], tmp_path: Path) -> None:
    """Masks are optional; positive pixels belong to the mask."""
    drawn = np.zeros((6, 8), np.uint8)
    drawn[2:4, 3] = 1
    cohort = pictures(write(FOUR, TABLE, masks={"c.png": drawn}), tmp_path / "cache")
    masks = {one.id: dict(one.masks) for one in cohort.samples}
    assert [name for name, found in masks.items() if found] == ["c"]
    np.testing.assert_array_equal(masks["c"]["target"].load(), drawn > 0)


def test_all_pictures_are_in_one_file(write: Callable[..., Path], tmp_path: Path) -> None:
    """The cache has one pack, and each picture has its own fingerprint."""
    cohort = pictures(write(FOUR, TABLE, masks={"c.png": np.eye(6, 8, dtype=np.uint8)}), tmp_path / "cache")
    images = [one.images["rgb"] for one in cohort.samples]
    assert len({image.path for image in images}) == 1 and len({image.fingerprint for image in images}) == 4
    assert len(list((tmp_path / "cache" / "arrays").iterdir())) == 2


def test_a_moved_folder_has_the_same_images(write: Callable[..., Path], tmp_path: Path) -> None:
    """Fingerprints depend on the content only, so that nothing is prepared again."""
    root = write(FOUR, TABLE)
    first = pictures(root, tmp_path / "cache")
    root.rename(tmp_path / "moved")
    moved = pictures(tmp_path / "moved", tmp_path / "cache")
    assert [one.images for one in moved.samples] == [one.images for one in first.samples]


def test_only_new_pictures_are_read(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one was added, the others are not opened, and sizes are still compared."""
    opened: list[str] = []
    open_picture = Picture.open
    root = write(FOUR, TABLE)
    first = pictures(root, tmp_path / "cache")
    root = write({**FOUR, "e.png": picture(5)}, TABLE + "e.png,four,1,F\n")
    monkeypatch.setattr(Picture, "open", lambda path: (opened.append(path.name), open_picture(path))[1])
    more = pictures(root, tmp_path / "cache")
    assert set(opened) == {"e.png"}
    assert [one.images for one in more.samples[:4]] == [one.images for one in first.samples]
    root = write({**FOUR, "e.png": picture(5, (6, 7, 3))}, TABLE + "e.png,four,1,F\n")
    with pytest.raises(CohortError, match=r"\[size\] images/e\.png: 7 x 6 pixels; expected 8 x 6 as most"):
        pictures(root, tmp_path / "cache")


def test_mask_with_the_bytes_of_its_picture(write: Callable[..., Path], tmp_path: Path) -> None:
    """The same file in both folders is read as picture and as mask."""
    cohort = pictures(write(FOUR, TABLE, masks={"c.png": FOUR["c.png"]}), tmp_path / "cache")
    sample = next(one for one in cohort.samples if one.id == "c")
    np.testing.assert_array_equal(sample.images["rgb"].load(), FOUR["c.png"])
    np.testing.assert_array_equal(sample.masks["target"].load(), FOUR["c.png"].max(axis=2) > 0)


def test_a_second_reading_opens_no_picture(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged pictures are taken from the cache."""
    root = write(FOUR, TABLE)
    first = pictures(root, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "open", lambda path: pytest.fail(f"{path} was read again"))
        again = pictures(root, tmp_path / "cache")
    reads = Reads(images=("rgb",))
    assert again.fingerprint(reads) == first.fingerprint(reads)


def test_a_picture_that_changes_is_read_again(write: Callable[..., Path], tmp_path: Path) -> None:
    """Only its fingerprint changes."""
    root = write(FOUR, TABLE)
    before = {one.id: one.images["rgb"].fingerprint for one in pictures(root, tmp_path / "cache").samples}
    Picture.fromarray(picture(99)).save(root / "images" / "c.png")
    after = pictures(root, tmp_path / "cache")
    assert {one.id for one in after.samples if one.images["rgb"].fingerprint != before[one.id]} == {"c"}
    np.testing.assert_array_equal(after.samples[2].images["rgb"].load(), picture(99))


@pytest.mark.parametrize(("name", "changed"), [("_read", True), ("_as_mask", True), ("pictures", False)])
def test_key_covers_the_code_that_decodes_a_picture(
    write: Callable[..., Path], tmp_path: Path, edit: Callable[[str], None], name: str, changed: bool
) -> None:
    """Editing code that decodes pictures changes their fingerprints; other code of the module does not."""
    root, reads = write(FOUR, TABLE), Reads(images=("rgb",))
    before = pictures(root, tmp_path / "cache").fingerprint(reads)
    edit(f"harness.data.pictures:{name}")
    assert (pictures(root, tmp_path / "cache").fingerprint(reads) != before) is changed


def test_excluded_subjects_are_left_out_by_name(write: Callable[..., Path], tmp_path: Path) -> None:
    """All of their pictures are left out, and the subjects are listed as ineligible."""
    cohort = pictures(write(FOUR, TABLE), tmp_path / "cache", exclude=("one",), minimum=2)
    assert [one.id for one in cohort.samples] == ["a", "b"]
    assert [(one.subject, one.reason) for one in cohort.ineligible] == [("one", "excluded by request")]


def test_excluding_an_unknown_subject_raises(write: Callable[..., Path], tmp_path: Path) -> None:
    """Otherwise a misspelt name would keep the subject in the cohort."""
    with pytest.raises(UnknownName, match=r"no subject of patches \(exclude\) is named 'on'\. Near: one"):
        pictures(write(FOUR, TABLE), tmp_path / "cache", exclude=("on",))


def test_faults_of_excluded_subjects_are_ignored(write: Callable[..., Path], tmp_path: Path) -> None:
    """Excluding the subject named in the message is sufficient."""
    root = write(FOUR, TABLE.replace("a.png,three", "missing.png,three") + "e.png,four,1,F\n")
    Picture.fromarray(picture(4)).save(root / "images" / "e.png")
    with pytest.raises(CohortError, match="exclude=three"):
        pictures(root, tmp_path / "cache")
    assert pictures(root, tmp_path / "cache", exclude=("three",)).subjects == ("two", "one", "four")


def test_path_may_contain_dots(write: Callable[..., Path], tmp_path: Path) -> None:
    """Paths of pictures are resolved before they are compared with the folder."""
    root = write(FOUR, TABLE)
    assert len(pictures(root / ".." / root.name, tmp_path / "cache").samples) == 4


def test_links_are_followed(write: Callable[..., Path], tmp_path: Path) -> None:
    """git-annex stores files as symbolic links to a folder of the data set."""
    root = write(FOUR, TABLE)
    (root / ".git").mkdir()
    (root / "images" / "a.png").rename(root / ".git" / "object")
    (root / "images" / "a.png").symlink_to(root / ".git" / "object")
    np.testing.assert_array_equal(pictures(root, tmp_path / "cache").samples[0].images["rgb"].load(), FOUR["a.png"])


@pytest.mark.parametrize("file", ["images/a.png", "labels.csv"])
def test_links_out_of_the_folder(write: Callable[..., Path], tmp_path: Path, file: str) -> None:
    """A link to another place is refused, unless that place is named."""
    root = write(FOUR, TABLE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / file).rename(elsewhere / "object")
    (root / file).symlink_to(elsewhere / "object")
    with pytest.raises(CohortError, match=rf"\[link-outside\] {file}: a link to .*cohort\.links=.*elsewhere"):
        pictures(root, tmp_path / "cache")
    assert len(pictures(root, tmp_path / "cache", links=elsewhere).samples) == 4


def test_values_that_are_not_finite(write: Callable[..., Path], tmp_path: Path) -> None:
    """Missing values have several spellings; infinity stays text, which targets refuse."""
    rows = zip("dbca", ("NaN", " N/A ", "inf", "-1e3"), strict=True)
    table = "image,x\n" + "".join(f"{name}.png,{value}\n" for name, value in rows)
    cohort = pictures(write(FOUR, table), tmp_path / "cache")
    assert [one.covariates["x"] for one in cohort.samples] == [-1000.0, None, "inf", None]


def test_pictures_of_more_than_8_bits_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    """Their values would be clipped at 255."""
    deep = np.full((6, 8), 40_000, np.uint16)
    with pytest.raises(CohortError, match=r"\[depth\] images/a\.png: pixels of type I;16; expected 8 bits per channel"):
        pictures(write({**FOUR, "a.png": deep}, TABLE), tmp_path / "cache")


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        ("image,age\nd.png,1\nd.png,2\nmissing.png,3\nb.png,4\nabsent.png,5\n", ["no-file", "no-file", "twice"]),
        ("name,age\nd.png,1\n", ["no-column"]),
        ("image\n", ["no-row"]),
        ("image\n../../patches/images/d.png\n../masks/a.png\n../images/b.png\nc.png\n", ["outside"]),
        ("image,subject\n\nd.png,a\n ,b\n,\nb.png,b\n,c\n", ["no-name", "no-name"]),
        ("image,subject\nd.png,a\nb.png,a\n", ["too-few-subjects"]),
    ],
)
def test_faults_of_the_table(write: Callable[..., Path], tmp_path: Path, table: str, kinds: list[str]) -> None:
    """All faults are listed at once, and nothing is cached."""
    root = write(FOUR, table, masks={"a.png": np.zeros((6, 8), np.uint8)})
    with pytest.raises(CohortError) as caught:
        pictures(root, tmp_path / "cache")
    assert [fault.kind for fault in caught.value.faults] == kinds
    assert not (tmp_path / "cache").exists()


def test_missing_table_raises(tmp_path: Path) -> None:
    """The message says which file to write."""
    with pytest.raises(CohortError, match=r"\[no-table\] labels\.csv: .*Write labels\.csv into"):
        pictures(tmp_path, tmp_path / "cache")


def test_faults_of_the_files_are_all_listed(write: Callable[..., Path], tmp_path: Path) -> None:
    """One file cannot be read, and one has another size than most."""
    root = write({**FOUR, "a.png": picture(3, (6, 9, 3))}, TABLE)
    (root / "images" / "b.png").write_bytes(b"no picture")
    with pytest.raises(CohortError) as caught:
        pictures(root, tmp_path / "cache")
    assert [(fault.kind, fault.file) for fault in caught.value.faults] == [
        ("unreadable", "images/b.png"),
        ("size", "images/a.png"),
    ]
    assert "9 x 6 pixels; expected 8 x 6 as most" in str(caught.value)
    assert [fault.subject for fault in caught.value.faults] == ["two", "three"]


def test_a_mask_of_another_size_than_its_picture_is_a_fault(write: Callable[..., Path], tmp_path: Path) -> None:
    """Mask and picture must have the same size."""
    masks = {"c.png": np.zeros((6, 7), np.uint8), "d.png": np.zeros((6, 7), np.uint8)}
    with pytest.raises(CohortError) as caught:
        pictures(write(FOUR, TABLE, masks=masks), tmp_path / "cache")
    assert [(fault.kind, fault.file) for fault in caught.value.faults] == [
        ("size", "masks/d.png"),
        ("size", "masks/c.png"),
    ]


def test_unknown_sequence_raises(write: Callable[..., Path], tmp_path: Path) -> None:
    """Pictures have the one image rgb."""
    with pytest.raises(OutOfRange, match="pictures have the one image rgb, got T1w"):
        pictures(write(FOUR, TABLE), tmp_path / "cache", sequences=("rgb", "T1w"))


def test_generated_pictures_are_read_like_any_other(tmp_path: Path) -> None:
    """Images, masks and table of a phantom are read as they were written."""
    made = [
        [
            PhantomPicture(
                f"p{number}_visit-{visit}", f"p{number}", picture(10 * number + visit),
                picture(number, (6, 8)) > 128 if visit else None,
                {"age": 40.5 + number, "note": 'tall, "dark"', **({"site": "A"} if visit else {})},
            )
            for visit in range(2)
        ]
        for number in range(3)
    ]  # fmt: skip
    write_pictures(tmp_path / "phantom", iter(made))
    cohort = pictures(tmp_path / "phantom", tmp_path / "cache")
    flat: list[Any] = [one for visits in made for one in visits]
    assert [(one.id, one.subject) for one in cohort.samples] == [(one.id, one.subject) for one in flat]
    for sample, one in zip(cohort.samples, flat, strict=True):
        assert sample.covariates == {"site": None, **one.covariates}
        np.testing.assert_array_equal(sample.images["rgb"].load(), one.image)
        assert ("target" in sample.masks) == (one.mask is not None)
        if one.mask is not None:
            np.testing.assert_array_equal(sample.masks["target"].load(), one.mask)


def test_each_target_has_a_mask(write: Callable[..., Path], tmp_path: Path) -> None:
    """Folders ``masks-<name>`` give masks by name, beside that of ``masks``."""
    drawn = np.zeros((6, 8), np.uint8)
    drawn[1, 2] = 255
    root = write(FOUR, TABLE, masks={"c.png": drawn})
    for name, folder in (("c.png", "masks-truth_age"), ("b.png", "masks-truth_age"), ("b.png", "masks-nuisance")):
        (root / folder).mkdir(exist_ok=True)
        Picture.fromarray(drawn.T.copy().reshape(6, 8)).save(root / folder / name)
    masks = {one.id: dict(one.masks) for one in pictures(root, tmp_path / "cache").samples}
    assert {name: sorted(found) for name, found in masks.items()} == {
        "a": [], "b": ["nuisance", "truth_age"], "c": ["target", "truth_age"], "d": [],
    }  # fmt: skip
    np.testing.assert_array_equal(masks["c"]["target"].load(), drawn > 0)
    np.testing.assert_array_equal(masks["b"]["truth_age"].load(), drawn.T.reshape(6, 8) > 0)


def test_generated_masks_are_read_again(tmp_path: Path) -> None:
    """Masks of a phantom are written and read under their names."""
    rng = np.random.default_rng(0)
    made = [
        [PhantomPicture(f"p{n}", f"p{n}", picture(n), None, {}, {"truth_sex": rng.random((6, 8)) < 0.4})]
        for n in range(3)
    ]
    write_pictures(tmp_path / "made", iter(made))
    for (one,), sample in zip(made, pictures(tmp_path / "made", tmp_path / "cache").samples, strict=True):
        np.testing.assert_array_equal(sample.masks["truth_sex"].load(), one.masks["truth_sex"])


@pytest.mark.parametrize(("image", "subject"), [("file", "subject_id"), ("filename", "slide"), ("path", "patient")])
def test_other_names_of_columns(write: Callable[..., Path], tmp_path: Path, image: str, subject: str) -> None:
    """Common names are understood, with the folder before the file or without it; a note names the subjects' column."""
    table = f"{image},{subject},label\nimages/d.png,one,1\nb.png,two,0\nimages/c.png,one,1\na.png,three,0\n"
    cohort = pictures(write(FOUR, table), tmp_path / "cache")
    assert [(one.id, one.subject, one.covariates) for one in cohort.samples] == [
        ("a", "three", {"label": 0.0}), ("b", "two", {"label": 0.0}), ("c", "one", {"label": 1.0}),
        ("d", "one", {"label": 1.0}),
    ]  # fmt: skip
    assert cohort.notes == (f"subjects are those of the column {subject} of labels.csv; their pictures stay together",)


def test_columns_can_be_named(write: Callable[..., Path], tmp_path: Path) -> None:
    """Of several columns that could name the subjects, the user chooses; the other one is a covariate."""
    table = "Bild,patient,slide\nd.png,one,1\nb.png,two,2\nc.png,one,3\na.png,three,4\n"
    cohort = pictures(write(FOUR, table), tmp_path / "cache", image_column="Bild", subject_column="patient")
    assert cohort.subjects == ("three", "two", "one")
    assert [one.covariates for one in cohort.samples] == [{"slide": float(number)} for number in (4, 2, 3, 1)]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("file,path\nd.png,d.png\n", {}, r"\[columns\] labels\.csv: file and path may both name the pictures; .*"
         r"cohort\.image_column="),
        ("image,patient,slide\nd.png,a,b\n", {}, "patient and slide may both name the subjects"),
        ("image\nd.png\n", {"subject_column": "slide"}, r"no column slide, only image; .*cohort\.subject_column="),
        ("name,label\nd.png,1\n", {}, "no column names the pictures, only name, label"),
    ],
)  # fmt: skip
def test_columns_that_are_absent_or_ambiguous(
    write: Callable[..., Path], tmp_path: Path, table: str, options: dict[str, str], message: str
) -> None:
    """Columns are never guessed among several."""
    with pytest.raises(CohortError, match=message):
        pictures(write(FOUR, table), tmp_path / "cache", **options)


def test_without_subjects_a_note_warns(write: Callable[..., Path], tmp_path: Path) -> None:
    """Pictures of one slide may then be on both sides of a split."""
    (note,) = pictures(write(FOUR, "image\nd.png\nb.png\nc.png\na.png\n"), tmp_path / "cache").notes
    assert note.startswith("labels.csv has no column for the subject, patient or slide: each of the 4 pictures counts")


def test_pictures_beside_the_table(tmp_path: Path) -> None:
    """Without a folder ``images``, files are named relative to the table."""
    root = tmp_path / "patches"
    for name, one in FOUR.items():
        (root / "sub").mkdir(parents=True, exist_ok=True)
        Picture.fromarray(one).save(root / "sub" / name)
    (root / "labels.csv").write_text("file\n" + "".join(f"sub/{name}\n" for name in FOUR))
    for sample in pictures(root, tmp_path / "cache").samples:
        np.testing.assert_array_equal(sample.images["rgb"].load(), FOUR[f"{sample.id}.png"])


def test_files_of_patchcamelyon_are_recognised(tmp_path: Path) -> None:
    """The message names the reader that reads them."""
    (tmp_path / "camelyonpatch_level_2_split_test_x.h5").touch()
    with pytest.raises(CohortError, match="set cohort=patchcamelyon"):
        pictures(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace(",", ";").replace("41.5", "41,5").encode(),
        TABLE.replace(",", "\t").encode(),
        TABLE.replace("image,subject", "Image, Subject").encode(),
        TABLE.replace("d.png", '"d.png"').replace("\nb", "\n\n b").encode(),
    ],
    ids=["BOM", "UTF-16", "CRLF", "semicolons", "tabs", "letter case", "quotes and blanks"],
)
def test_the_table_is_read_as_spreadsheets_write_it(write: Callable[..., Path], tmp_path: Path, content: bytes) -> None:
    """Encodings, separators, ends of lines and letter case, as of participants.tsv."""
    expected = pictures(write(FOUR, TABLE), tmp_path / "cache")
    root = write(FOUR, TABLE)
    (root / "labels.csv").write_bytes(content)
    found = pictures(root, tmp_path / "cache")
    assert [(one.id, one.subject, one.covariates) for one in found.samples] == [
        (one.id, one.subject, one.covariates) for one in expected.samples
    ]


def test_a_table_in_another_encoding_is_a_fault(write: Callable[..., Path], tmp_path: Path) -> None:
    """Latin-1 text is no UTF-8."""
    root = write(FOUR, TABLE)
    (root / "labels.csv").write_bytes(TABLE.replace("one", "Müller").encode("latin-1"))
    with pytest.raises(CohortError, match=r"it cannot be read .*Save it as CSV in UTF-8"):
        pictures(root, tmp_path / "cache")
