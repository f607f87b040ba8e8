"""The HDF5 files of PatchCamelyon: reading, streaming, splits and faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.types import Array, SplitSample
from harness.data import patchcamelyon as reader
from harness.data.patchcamelyon import patchcamelyon
from harness.data.splits import by_column, check_leaks
from harness.data.targets.column import binary_column

COUNTS = {"train": 12, "valid": 6, "test": 5}
START = "camelyonpatch_level_2_split_"


def patches(split: str) -> Array:
    """Uniform noise, (N, 4, 4, 3) uint8."""
    return np.random.default_rng(COUNTS[split]).integers(0, 256, (COUNTS[split], 4, 4, 3), np.uint8)


def labels(split: str) -> Array:
    """Alternating labels, (N, 1, 1, 1) uint8."""
    return (np.arange(COUNTS[split]) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)


def masks(split: str) -> Array:
    """Masks with some pixels above 0, (N, 4, 4, 1) uint8."""
    return (patches(split)[..., :1] > 200).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files, three patches per slide."""
    root = tmp_path / "pcam"
    root.mkdir()
    for split, count in COUNTS.items():
        write(root, f"{split}_x", "x", patches(split), chunks=(2, 4, 4, 3) if split == "train" else None)
        write(root, f"{split}_y", "y", labels(split))
        slides = [f"{split}_slide_{number // 3}" for number in range(count)]
        write_table(root, split, slides, labels(split).ravel().tolist())
    write(root, "train_mask", "mask", masks("train"))
    return root


def write(root: Path, name: str, key: str, array: Array, **options: Any) -> None:
    """Write an HDF5 file with one array."""
    with h5py.File(root / f"{START}{name}.h5", "w") as file:
        file.create_dataset(key, data=array, **options)


def write_table(root: Path, split: str, slides: Sequence[str], truth: Sequence[int]) -> None:
    """Write the table of slides, as published."""
    lines = [
        f"{n},10,20,{bool(one)},{bool(one)},{slide}" for n, (slide, one) in enumerate(zip(slides, truth, strict=True))
    ]
    text = "\n".join([",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *lines, ""])
    (root / f"{START}{split}_meta.csv").write_text(text)


def kinds(root: Path, cache: Path) -> list[tuple[str, str]]:
    """Kind and file of each fault."""
    with pytest.raises(CohortError) as caught:
        patchcamelyon(root, cache)
    return [(one.kind, one.file.removeprefix(START)) for one in caught.value.faults]


def test_patches_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    """Of contiguous and of chunked arrays; masks are bool, and only there where a file of masks is."""
    cohort = patchcamelyon(folder, tmp_path / "cache")
    assert len(cohort.samples) == sum(COUNTS.values()) and cohort.name == "pcam"
    for sample in cohort.samples:
        split, number = sample.id.split("_")
        np.testing.assert_array_equal(sample.images["rgb"].load(), patches(split)[int(number)])
        assert sample.covariates == {"label": float(labels(split).flat[int(number)]), "split": split}
        assert sample.subject == f"{split}_slide_{int(number) // 3}"
        assert sorted(sample.masks) == (["target"] if split == "train" else [])
        if split == "train":
            np.testing.assert_array_equal(sample.masks["target"].load(), masks(split)[int(number), ..., 0] > 0)


def test_samples_are_sorted_by_id(folder: Path, tmp_path: Path) -> None:
    """As in every cohort."""
    ids = [one.id for one in patchcamelyon(folder, tmp_path / "cache").samples]
    assert ids == sorted(ids)


def test_a_second_reading_opens_no_file_of_patches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared patches are found by the checksum of the file and their number."""
    first = patchcamelyon(folder, tmp_path / "cache")
    monkeypatch.setattr(reader, "_read", lambda *of: pytest.fail("patches were read again"))
    assert [one.images for one in patchcamelyon(folder, tmp_path / "cache").samples] == [
        one.images for one in first.samples
    ]


def test_a_block_at_a_time_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is never in memory as a whole."""
    sizes: list[int] = []
    monkeypatch.setattr(reader, "_BLOCK", 5)
    read = reader._read
    monkeypatch.setattr(reader, "_read", lambda array, numbers: (sizes.append(len(numbers)), read(array, numbers))[1])
    patchcamelyon(folder, tmp_path / "cache")
    assert sizes == [5, 5, 2, 5, 5, 2, 5, 1, 5]  # patches and masks of train, then valid and test


@pytest.mark.parametrize("numbers", [[0, 1, 2], [3, 5, 6], [0, 11]])
def test_chosen_patches_are_read(folder: Path, numbers: list[int]) -> None:
    """Neighbours at once, others one by one."""
    with h5py.File(folder / f"{START}train_x.h5") as file:
        np.testing.assert_array_equal(reader._read(file["x"], numbers), patches("train")[numbers])


def test_some_patches_of_each_split(folder: Path, tmp_path: Path) -> None:
    """Drawn at random, always the same; splits with fewer patches are complete."""
    cohort = patchcamelyon(folder, tmp_path / "cache", patches=5)
    drawn = [one.id for one in cohort.samples]
    assert [sum(name.startswith(split) for name in drawn) for split in COUNTS] == [5, 5, 5]
    assert drawn == [one.id for one in patchcamelyon(folder, tmp_path / "other", patches=5).samples]
    assert "up to 5 patches of each split were drawn" in cohort.notes[0]


def test_official_splits_are_kept(folder: Path, tmp_path: Path) -> None:
    """``split=by_column`` trains on train, and no slide is in two subsets."""
    cohort = binary_column(patchcamelyon(folder, tmp_path / "cache"), tmp_path, column="label", positive="1")
    samples = [SplitSample(one.id, one.subject, one.targets, one.covariates) for one in cohort.samples]
    (split,) = by_column(samples, seed=0).folds
    for subset, ids in (("train", split.train), ("valid", split.validation), ("test", split.test)):
        assert len(ids) == COUNTS[subset] and all(name.startswith(subset) for name in ids)
    check_leaks(split, {one.id: one.subject for one in samples})


def test_without_a_table_of_slides_each_patch_is_a_subject(folder: Path, tmp_path: Path) -> None:
    """A note says that intervals are then too narrow."""
    (folder / f"{START}test_meta.csv").unlink()
    cohort = patchcamelyon(folder, tmp_path / "cache")
    assert all(one.subject == one.id for one in cohort.samples if one.covariates["split"] == "test")
    assert any("no table of slides (*_meta.csv) of test" in note for note in cohort.notes)


def test_excluded_slides(folder: Path, tmp_path: Path) -> None:
    """All patches of a slide are left out; a misspelt name is an error."""
    cohort = patchcamelyon(folder, tmp_path / "cache", exclude=("train_slide_1",))
    assert "train_slide_1" not in cohort.subjects and len(cohort.samples) == sum(COUNTS.values()) - 3
    assert [(one.subject, one.reason) for one in cohort.ineligible] == [("train_slide_1", "excluded by request")]
    with pytest.raises(UnknownName, match="train_slide_1"):
        patchcamelyon(folder, tmp_path / "cache", exclude=("train_slide",))


def test_equal_patches_are_counted(folder: Path, tmp_path: Path) -> None:
    """A patch of the training set in the test set is a leak, which a note tells."""
    array = patches("test")
    array[1], array[2] = patches("train")[0], array[0]
    write(folder, "test_x", "x", array)
    notes = patchcamelyon(folder, tmp_path / "cache").notes
    expected = "4 patches are equal to another one; of 2 groups of equal patches, 1 are in several splits and 1 have"
    assert any(note.startswith(expected) for note in notes)


def test_shares_of_tumour_are_told(folder: Path, tmp_path: Path) -> None:
    """The last note says how many patches are positive."""
    assert patchcamelyon(folder, tmp_path / "cache").notes[-1].endswith("train 6 of 12, valid 3 of 6, test 2 of 5")


def test_a_split_without_files_is_told(folder: Path, tmp_path: Path) -> None:
    """Two splits can be read; ``split=by_column`` then says that one is missing."""
    for path in folder.glob(f"{START}test_*"):
        path.unlink()
    cohort = patchcamelyon(folder, tmp_path / "cache")
    assert "there are no files of the split test" in cohort.notes
    samples = [SplitSample(one.id, one.subject, {}, one.covariates) for one in cohort.samples]
    with pytest.raises(OutOfRange, match="no sample has split=test"):
        by_column(samples, seed=0)


def remove(name: str) -> Callable[[Path], None]:
    """Remove a file."""
    return lambda root: (root / f"{START}{name}").unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("valid_y.h5"), [("no-file", "")]),
        (lambda root: write(root, "train_y", "y", labels("train")[:-1]), [("count", "train_y.h5")]),
        (lambda root: write(root, "test_y", "y", labels("test") * 2), [("label", "test_y.h5")]),
        (lambda root: write(root, "test_y", "labels", labels("test")), [("no-array", "test_y.h5")]),
        (lambda root: write(root, "test_x", "x", patches("test")[..., 0]), [("shape", "test_x.h5")]),
        (lambda root: write(root, "test_x", "x", patches("test") / 255), [("shape", "test_x.h5")]),
        (lambda root: write(root, "train_mask", "mask", masks("train")[1:]), [("count", "train_mask.h5")]),
        (lambda root: (root / f"{START}valid_x.h5").write_bytes(b"no hdf5"), [("unreadable", "valid_x.h5")]),
        (
            lambda root: (root / f"{START}test_meta.csv").write_text("wsi\n" + "a\n" * 4),
            [("count", "test_meta.csv")],
        ),
        (lambda root: (root / f"{START}test_meta.csv").write_text("slide\na\n"), [("no-column", "test_meta.csv")]),
        (
            lambda root: write_table(root, "test", [f"s{n}" for n in range(5)], [1, 1, 0, 1, 0]),
            [("label", "test_meta.csv")],
        ),
        (
            lambda root: write_table(root, "test", ["train_slide_0"] * 5, labels("test").ravel().tolist()),
            [("leak", "")],
        ),
        (lambda root: (root / "other_train_x.h5").touch(), [("several", "train_x.h5")]),
    ],
)  # fmt: skip
def test_faults_of_the_files(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], expected: list[tuple[str, str]]
) -> None:
    """Each is listed with its file, and nothing is cached."""
    change(folder)
    assert kinds(folder, tmp_path / "cache") == expected
    assert not (tmp_path / "cache" / "arrays").exists()


def elsewhere(root: Path) -> Path:
    """A file of labels outside of the data set."""
    path = root.parent / "elsewhere.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("y", data=labels("test"))
    return path


def linked(file: h5py.File, other: Path) -> None:
    """A link of HDF5 to an array of another file."""
    file["y"] = h5py.ExternalLink(other, "y")


def stored_outside(file: h5py.File, other: Path) -> None:
    """An array whose bytes are those of any other file."""
    file.create_dataset("y", labels("test").shape, np.uint8, external=[(str(other), 0, 5)])


def virtual(file: h5py.File, other: Path) -> None:
    """An array composed of those of other files."""
    layout = h5py.VirtualLayout(labels("test").shape, np.uint8)
    layout[...] = h5py.VirtualSource(other, "y", labels("test").shape)
    file.create_virtual_dataset("y", layout)


def soft(file: h5py.File, other: Path) -> None:
    """A link of HDF5 within the file."""
    file["z"] = labels("test")
    file["y"] = h5py.SoftLink("/z")


def group(file: h5py.File, other: Path) -> None:
    """A group in place of an array."""
    file.create_group("y")


def huge(file: h5py.File, other: Path) -> None:
    """A terabyte that is described and not stored."""
    file.create_dataset("y", (10**12, 1, 1, 1), np.uint8, chunks=(1024, 1, 1, 1))


def objects(file: h5py.File, other: Path) -> None:
    """Text in place of numbers."""
    file["y"] = ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (linked, "y is a link"),
        (soft, "y is a link"),
        (stored_outside, "the values of y are in other files"),
        (virtual, "the values of y are in other files"),
        (group, "y is a group"),
        (huge, "1,000,000,000,000 bytes, which a file of this size cannot hold"),
        (objects, "of type object"),
    ],
)
def test_arrays_whose_values_are_not_in_the_file(
    folder: Path, tmp_path: Path, made: Callable[[h5py.File, Path], None], value: str
) -> None:
    """They could show any file of this machine, or fill its memory."""
    with h5py.File(folder / f"{START}test_y.h5", "w") as file:
        made(file, elsewhere(folder))
    with pytest.raises(CohortError, match=rf"\[no-array\] .*test_y\.h5.*{value}"):
        patchcamelyon(folder, tmp_path / "cache")


def test_an_array_of_equal_values_is_small(folder: Path, tmp_path: Path) -> None:
    """The size that a file may describe is what its compression can reach."""
    write(folder, "test_x", "x", np.zeros((5, 400, 400, 3), np.uint8), compression="gzip", compression_opts=9)
    assert len(patchcamelyon(folder, tmp_path / "cache").samples) == sum(COUNTS.values())


@pytest.mark.parametrize("name", ["test_x.h5", "test_y.h5", "test_meta.csv", "train_mask.h5"])
def test_links_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """A link to another place is refused, unless that place is named."""
    place = tmp_path / "place"
    place.mkdir()
    (folder / f"{START}{name}").rename(place / "object")
    (folder / f"{START}{name}").symlink_to(place / "object")
    with pytest.raises(CohortError, match=rf"\[link-outside\] {START}{name}: a link to .*cohort\.links=.*place"):
        patchcamelyon(folder, tmp_path / "cache")
    assert len(patchcamelyon(folder, tmp_path / "cache", links=place).samples) == sum(COUNTS.values())


def test_faults_of_all_splits_are_listed_at_once(folder: Path, tmp_path: Path) -> None:
    """The user corrects all of them before the next try."""
    remove("valid_y.h5")(folder)
    write(folder, "test_y", "y", labels("test") * 3)
    assert kinds(folder, tmp_path / "cache") == [("no-file", ""), ("label", "test_y.h5")]


def test_packed_files_are_named(tmp_path: Path) -> None:
    """The files are published as ``.h5.gz``."""
    (tmp_path / f"{START}train_x.h5.gz").touch()
    with pytest.raises(CohortError, match=r"only packed files, such as .*train_x\.h5\.gz.*Unpack all of them"):
        patchcamelyon(tmp_path, tmp_path / "cache")


def test_a_folder_without_files(tmp_path: Path) -> None:
    """The message says which files are expected."""
    with pytest.raises(CohortError, match=r"\[no-files\] .*camelyonpatch_level_2_split_train_x\.h5"):
        patchcamelyon(tmp_path / "absent", tmp_path / "cache")


def test_unknown_sequence(folder: Path, tmp_path: Path) -> None:
    """Patches have the one image rgb."""
    with pytest.raises(OutOfRange, match="patches have the one image rgb, got T1w"):
        patchcamelyon(folder, tmp_path / "cache", sequences=("T1w",))
