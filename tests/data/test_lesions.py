"""Cohorts of lesion masks on a common grid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import CohortError, OutOfRange
from harness.core.types import Reads
from harness.data import nifti
from harness.data.lesions import lesions
from harness.data.table import open_cohort, save
from harness.data.targets.scores import scores


@pytest.fixture
def own_root(lesion_root: Path, tmp_path: Path) -> Path:
    """A copy of the masks, which a test may change."""
    return Path(shutil.copytree(lesion_root, tmp_path / "own"))


def mask_path(root: Path, name: str) -> Path:
    """Path of a subject's mask."""
    return root / name / "anat" / f"{name}_space-MNI152_label-lesion_mask.nii.gz"


@pytest.mark.parametrize(
    ("spacing", "shape"), [((), (152, 179, 142)), ((4.0,), (38, 45, 36)), ((5.0, 5.0, 5.0), (30, 36, 28))]
)
def test_the_published_box(
    lesion_root: Path, tmp_path: Path, spacing: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    """All samples have the shape of the published box."""
    cohort = lesions(lesion_root, tmp_path, box="published", spacing_mm=spacing)
    assert {sample.shape for sample in cohort.samples} == {shape}
    assert len(cohort.samples) == 14


def move_lesion(path: Path, mm: float) -> None:
    """Move the grid of a mask along the third axis."""
    array, affine = nifti.read(path)
    affine[2, 3] += mm
    nifti.write(path, array.astype(np.uint8), affine)


def test_the_default_box_holds_brainstem_and_cerebellum(own_root: Path, tmp_path: Path) -> None:
    """The published one does not, and a note says which subjects lose how much."""
    # The lesion of sub-03 is 14 mm high; its lowest voxel is at -70 mm.
    array, affine = nifti.read(mask_path(own_root, "sub-03"))
    lowest = affine[2, 3] + 2 * np.argwhere(array)[:, 2].min()
    move_lesion(mask_path(own_root, "sub-03"), -70 - lowest)
    whole = lesions(own_root, tmp_path)
    assert whole.notes == ()
    assert whole.samples[2].masks["lesion"].load().sum() == pytest.approx(8 * array.sum())
    cut = lesions(own_root, tmp_path, box="published")
    (note,) = cut.notes
    assert note.startswith("field of view of 152×179×142 voxels of 1×1×1 mm: ")
    assert (
        "57 %" in note and "in 1 of 14 samples (sub-03 57 %); cohort.box=brain or cohort.box=native keeps more" in note
    )
    again = lesions(own_root, tmp_path, box="published")
    assert again.notes == cut.notes, "also if nothing is read again"
    assert again.samples[2].masks["lesion"].load().sum() < 8 * array.sum()


def test_oblique_axes_are_told(own_root: Path, tmp_path: Path) -> None:
    """An image of a scanner may be named after a template."""
    path = mask_path(own_root, "sub-05")
    array, affine = nifti.read(path)
    cosine, sine = np.cos(0.1), np.sin(0.1)
    turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nifti.write(path, array.astype(np.uint8), turn @ affine)
    assert lesions(own_root, tmp_path).notes == ("the axes of 1 masks are oblique, unlike those of a template: sub-05",)


def without_space(root: Path) -> None:
    """Remove the space from all names."""
    for path in list(root.glob("sub-*/anat/*")):
        path.rename(path.with_name(path.name.replace("_space-MNI152", "")))


def test_masks_that_name_no_space_need_one_grid(own_root: Path, tmp_path: Path) -> None:
    """On one grid they are taken to be in MNI space; on several they hardly are."""
    without_space(own_root)
    assert lesions(own_root, tmp_path).notes[0].startswith("the names of the masks state no space; they are taken")
    move_lesion(own_root / "sub-05/anat/sub-05_label-lesion_mask.nii.gz", 7)
    with pytest.raises(CohortError, match=r"space-native.*14 masks name no space and are on 2 grids.*\(sub-05\)"):
        lesions(own_root, tmp_path)


@pytest.mark.parametrize("space", ["Talairach", "fsaverage", "MNIColin27", "StudyTemplate"])
def test_boxes_are_defined_in_mni_space(own_root: Path, tmp_path: Path, space: str) -> None:
    """Masks in another template have their own grid only."""
    for path in list(own_root.glob("sub-*/anat/*")):
        path.rename(path.with_name(path.name.replace("space-MNI152", f"space-{space}")))
    for options in ({}, {"box": "published"}, {"box": "native", "box_mm": (-9, 9, -9, 9, -9, 9)}):
        with pytest.raises(CohortError, match=rf"space-template.*14 masks are in space-{space} .*cohort\.box=native"):
            lesions(own_root, tmp_path, **options)  # type: ignore[arg-type]
    found = lesions(own_root, tmp_path, box="native")
    assert len(found.samples) == 14
    assert f"space-{space} of the masks is not an MNI152 template" in found.notes[0]


def test_native_masks_are_not_read_beside_normalised_ones(own_root: Path, tmp_path: Path) -> None:
    """Whether they lie in the data set itself or in a derivative."""
    for path in sorted(own_root.glob("sub-*/anat/*")):
        normalised = own_root / "derivatives/norm" / path.relative_to(own_root)
        normalised.parent.mkdir(parents=True)
        shutil.copy(path, normalised)
        array, affine = nifti.read(path)
        nifti.write(
            path.with_name(path.name.replace("_space-MNI152", "")), np.roll(array, 3, 0).astype(np.uint8), affine
        )
        path.unlink()
    found = lesions(own_root, tmp_path)
    array, _ = nifti.read(own_root / "derivatives/norm" / mask_path(own_root, "sub-01").relative_to(own_root))
    assert found.samples[0].masks["lesion"].load().sum() == pytest.approx(8 * array.sum())
    assert "is taken from derivatives/norm" in found.notes[0]
    assert found.files == {"lesion": {"derivatives/norm/space-MNI152_label-lesion_mask": 14}}


def test_volume_is_preserved_on_a_coarse_grid(lesion_root: Path, tmp_path: Path) -> None:
    """The sum of occupancies times the voxel volume equals the lesion volume of the file, in mm³."""
    cohort = lesions(lesion_root, tmp_path, spacing_mm=(5.0,))
    for sample in cohort.samples:
        array, _ = nifti.read(mask_path(lesion_root, sample.id))
        assert sample.masks["lesion"].load().sum() * 125 == pytest.approx(array.sum() * 8, rel=1e-5)


def test_a_voxel_keeps_its_world_coordinate(own_root: Path, tmp_path: Path) -> None:
    """A lesion of one voxel of 2 mm fills the eight voxels of 1 mm around its centre."""
    mask = np.zeros((20, 24, 18), np.uint8)
    mask[7, 11, 5] = 1
    affine = nifti.header(mask_path(own_root, "sub-03")).affine
    nifti.write(mask_path(own_root, "sub-03"), mask, affine)
    sample = next(one for one in lesions(own_root, tmp_path).samples if one.id == "sub-03")
    filled = sample.masks["lesion"].load()
    centre = np.argwhere(filled > 0) @ sample.affine[:3, :3].T + sample.affine[:3, 3]
    weights = filled[filled > 0]
    np.testing.assert_allclose(np.average(centre, axis=0, weights=weights), affine[:3] @ [7, 11, 5, 1])
    assert filled.sum() == pytest.approx(8)


def test_the_native_grid(lesion_root: Path, tmp_path: Path) -> None:
    """With box=native masks are those of the files, reoriented to RAS+."""
    cohort = lesions(lesion_root, tmp_path, box="native")
    array, _ = nifti.read(mask_path(lesion_root, "sub-01"))
    np.testing.assert_array_equal(cohort.samples[0].masks["lesion"].load(), array[::-1])


def test_native_needs_one_grid(own_root: Path, tmp_path: Path) -> None:
    """The error names masks on another grid."""
    path = mask_path(own_root, "sub-05")
    array, affine = nifti.read(path)
    nifti.write(path, array[1:].astype(np.uint8), affine)
    with pytest.raises(CohortError, match=r"grids-differ.*not on that of the others: sub-05"):
        lesions(own_root, tmp_path, box="native")


def test_a_mask_outside_of_the_box_is_a_fault(lesion_root: Path, tmp_path: Path) -> None:
    """All masks without a voxel in the box are listed."""
    with pytest.raises(CohortError, match="14 faults") as caught:
        lesions(lesion_root, tmp_path, box_mm=(40, 60, 40, 60, 40, 60))
    assert {fault.kind for fault in caught.value.faults} == {"label-vanished"}


def test_reversed_box_raises(lesion_root: Path, tmp_path: Path) -> None:
    """The message states the relation that must hold."""
    with pytest.raises(OutOfRange, match="x0 <= x1"):
        lesions(lesion_root, tmp_path, box_mm=(60, 40, 0, 1, 0, 1))


def test_faulty_files_raise_before_caching(own_root: Path, tmp_path: Path) -> None:
    """An empty mask is a fault, and nothing is cached."""
    path = mask_path(own_root, "sub-02")
    array, affine = nifti.read(path)
    nifti.write(path, np.zeros_like(array, np.uint8), affine)
    with pytest.raises(CohortError, match="empty-mask"):
        lesions(own_root, tmp_path / "cache")
    assert not (tmp_path / "cache" / "arrays").exists()


def test_a_second_reading_opens_no_mask(lesion_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verified and cached masks are found by their digests."""
    first = lesions(lesion_root, tmp_path, spacing_mm=(4.0,))

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(nifti, "read", refuse)
    monkeypatch.setattr(nifti, "load", refuse)
    again = lesions(lesion_root, tmp_path, spacing_mm=(4.0,))
    reads = Reads(masks=("lesion",))
    assert again.fingerprint(reads) == first.fingerprint(reads)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("nifti:read", True),
        ("transforms:occupancy", True),
        ("lesions:_cropped", True),
        ("cache:_voxels_of", True),
        ("transforms:n4", False),
        ("lesions:lesions", False),
        ("cache:CachedImage", False),
    ],
)
def test_key_covers_the_code_that_prepares_a_mask(
    lesion_root: Path, tmp_path: Path, edit: Callable[[str], None], name: str, changed: bool
) -> None:
    """Editing code that reads, prepares or stores masks changes their fingerprints; other code does not."""
    reads = Reads(masks=("lesion",))
    before = lesions(lesion_root, tmp_path, spacing_mm=(4.0,)).fingerprint(reads)
    edit(f"harness.data.{name}")
    assert (lesions(lesion_root, tmp_path, spacing_mm=(4.0,)).fingerprint(reads) != before) is changed


def test_each_mask_is_read_once(lesion_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks read by the verification are prepared without a second read."""
    opened: list[Path] = []
    load = nifti.load

    def counted(path: Path) -> object:
        opened.append(path)
        return load(path)

    monkeypatch.setattr(nifti, "load", counted)
    cohort = lesions(lesion_root, tmp_path / "cache")
    assert len(opened) == len(set(opened)) == len(cohort.samples)


def test_saved_cohort_keeps_scores_and_truth(lesion_root: Path, tmp_path: Path) -> None:
    """A cohort opened by a worker equals that of the driver."""
    cohort = scores(lesions(lesion_root, tmp_path, box="native"), tmp_path, patients=3, size=3, noise=0.2)
    opened = open_cohort(save(cohort, tmp_path / "cohort.arrow"), check_content=True)
    assert [one.targets for one in opened.samples] == [one.targets for one in cohort.samples]
    assert opened.targets == cohort.targets and len(cohort.targets) == 3
    assert [one.clean for one in opened.samples] == [one.clean for one in cohort.samples]
    assert opened.truth is not None and cohort.truth is not None
    assert opened.truth.fingerprint == cohort.truth.fingerprint
    assert opened.truth.weights == cohort.truth.weights
    np.testing.assert_array_equal(opened.truth.rois["roi1"].load(), cohort.truth.rois["roi1"].load())


def test_label_and_grid_are_checked_before_anything_is_read(lesion_root: Path, tmp_path: Path) -> None:
    """An empty label, and voxels so small that no image fits into memory."""
    with pytest.raises(OutOfRange, match="cohort.label must be the label of the lesion masks"):
        lesions(lesion_root, tmp_path, label="")
    with pytest.raises(OutOfRange, match=r"an image must fit into memory.*set a larger cohort.spacing_mm"):
        lesions(lesion_root, tmp_path, label="lesion", spacing_mm=(1e-4,))


def test_other_voxel_sizes_are_told(own_root: Path, tmp_path: Path) -> None:
    """They are resampled correctly, but small lesions are lost in large voxels."""
    path = mask_path(own_root, "sub-02")
    array, affine = nifti.read(path)
    step = 2.0 * np.ones(3)
    nifti.write(path, array[::2, ::2, ::2], affine @ np.diag([*step, 1.0]), dtype=np.uint8)
    notes = lesions(own_root, tmp_path, label="lesion").notes
    assert any(note.startswith("voxels of lesion are") and "sub-02" in note for note in notes)
