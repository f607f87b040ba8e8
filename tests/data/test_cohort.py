"""Reading of BIDS cohorts: prepared arrays, their cache, and world coordinates."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest

import harness.data.cache as cache_module
from harness.core.errors import CohortError, OutOfRange, StoreError, UnknownName
from harness.core.registry import COHORTS
from harness.core.targets import Target
from harness.core.types import Cohort, Reads, Sample
from harness.data import nifti, transforms
from harness.data.cache import ArrayCache, CachedImage
from harness.data.cohort import bids
from harness.data.summary import describe
from harness.data.table import open_cohort, save

SHAPE = (20, 18, 14)
# LAS+ and slightly oblique: RAS+ only after reorientation.
TURN = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-1.0, 1.0, 1.5])
AFFINE[:3, 3] = (12, -20, 5)
# SWI: another slab with thick slices and permuted axes (PLI).
SWI_SHAPE = (40, 44, 9)
SWI_AFFINE = np.array([[0, -0.8, 0, 22], [-0.7, 0, 0, 8], [0, 0, -3.0, 28], [0, 0, 0, 1]])
LESION_MM = nib.affines.apply_affine(AFFINE, (8, 9, 7))


def world_of(shape, affine) -> np.ndarray:
    """World coordinate of every voxel."""
    return nib.affines.apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))


def ball(shape, affine, centre_mm, radius_mm) -> np.ndarray:
    """Voxels within some mm of a world coordinate."""
    return ((world_of(shape, affine) - centre_mm) ** 2).sum(-1) <= radius_mm**2


def image_of(shape, affine, rng, contrast) -> np.ndarray:
    """A head of intensity 100 with a smooth lesion of another intensity, and noise."""
    head = ball(shape, affine, nib.affines.apply_affine(AFFINE, (10, 9, 7)), 8.5)
    distance = ((world_of(shape, affine) - LESION_MM) ** 2).sum(-1)
    image = np.where(head, 100.0, 10.0) + contrast * np.exp(-distance / (2 * 2.5**2))
    return (image + rng.normal(0, 2, shape)).astype(np.float32)


def write_subject(root: Path, number: int, *, brain=True, regions=True) -> None:
    """T1w, T2w, FLAIR on one grid, SWI on its own, and the masks."""
    rng = np.random.default_rng(100 + number)
    stem = root / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}"
    for name, contrast in [("T1w", -40), ("T2w", 60), ("FLAIR", -20)]:
        nifti.write(Path(f"{stem}_{name}.nii.gz"), image_of(SHAPE, AFFINE, rng, contrast), AFFINE)
    nifti.write(Path(f"{stem}_SWI.nii.gz"), image_of(SWI_SHAPE, SWI_AFFINE, rng, 80), SWI_AFFINE)
    label = ball(SHAPE, AFFINE, LESION_MM, 2.5)
    label[3 + number, 9, 4] = True
    nifti.write(Path(f"{stem}_label-pvs_mask.nii.gz"), label, AFFINE)
    head = ball(SHAPE, AFFINE, nib.affines.apply_affine(AFFINE, (10, 9, 7)), 8.5)
    if brain:
        nifti.write(Path(f"{stem}_label-brain_mask.nii.gz"), head, AFFINE)
    if regions:
        left = np.where(head, 1 + (world_of(SHAPE, AFFINE)[..., 0] > 2), 0).astype(np.uint8)
        nifti.write(Path(f"{stem}_label-regions_dseg.nii.gz"), left, AFFINE)


def write_tables(root: Path, numbers) -> None:
    """dataset_description.json, participants.tsv, names of the regions."""
    (root / "dataset_description.json").write_text('{"Name": "tiny", "BIDSVersion": "1.10.0"}')
    rows = [f"sub-{n:02d}\t{'F' if n % 2 else 'M'}\t{60 + n}" for n in numbers]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tsex\tage", *rows]) + "\n")
    (root / "label-regions_dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Three subjects in a BIDS folder, written once."""
    folder = tmp_path_factory.mktemp("original") / "data"
    for number in (1, 2, 3):
        write_subject(folder, number)
    write_tables(folder, (1, 2, 3))
    return folder


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy of the three subjects, which a test may change."""
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Folder of the cache, which does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of source files that are read or hashed."""
    seen: list[str] = []
    for name in ("read", "load"):
        before = getattr(nifti, name)
        monkeypatch.setattr(
            nifti, name, lambda path, _do=before, **o: (seen.append(Path(path).name), _do(path, **o))[1]
        )
    hashed = cache_module.checksum
    monkeypatch.setattr(cache_module, "checksum", lambda path: (seen.append(path.name), hashed(path))[1])
    return seen


ALL = ("T1w", "T2w", "FLAIR", "SWI")


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def arrays_of(folder: Path) -> dict[str, int]:
    """Files of prepared arrays with the time of their last change."""
    return files_of(folder / "arrays")


def keys_of(cohort: Cohort) -> dict[str, str]:
    """Fingerprint of every image and mask."""
    return {
        f"{sample.id}/{name}": image.fingerprint
        for sample in cohort.samples
        for name, image in (*sample.images.items(), *sample.masks.items())
    }


def assert_equal(one: Cohort, two: Cohort) -> None:
    """The same samples with the same values."""
    for a, b in zip(one.samples, two.samples, strict=True):
        assert (a.id, a.subject, a.covariates, a.spacing_mm) == (b.id, b.subject, b.covariates, b.spacing_mm)
        assert (a.targets, a.clean, a.weights) == (b.targets, b.clean, b.weights)
        assert (a.affine is None) == (b.affine is None)
        if a.affine is not None:
            np.testing.assert_array_equal(a.affine, b.affine)
        assert a.images == b.images and a.masks == b.masks


# --- what a cohort holds ---


def test_cohort_of_three_subjects(root, cache):
    """Sequences are in the requested order, samples sorted by id, and all arrays on one grid."""
    made = bids(root, cache, sequences=ALL)
    assert made.name == "tiny"
    assert [sample.id for sample in made.samples] == ["sub-01", "sub-02", "sub-03"]
    first = made.samples[0]
    assert tuple(first.images) == ALL
    assert list(first.masks) == ["target", "brain", "regions"]
    assert {image.shape for image in (*first.images.values(), *first.masks.values())} == {SHAPE}
    assert first.covariates == {"sex": "F", "age": 61.0}
    assert dict(made.regions) == {1: "left", 2: "right"}


def test_the_grid_is_the_reoriented_grid_of_the_label(root, cache):
    """RAS+, with the label's spacing."""
    first = bids(root, cache, sequences=("T2w",)).samples[0]
    assert nib.aff2axcodes(first.affine) == ("R", "A", "S")
    np.testing.assert_allclose(first.spacing_mm, (1, 1, 1.5), atol=1e-6)
    expected = nib.as_closest_canonical(nib.load(root / "sub-01/anat/sub-01_label-pvs_mask.nii.gz"))
    np.testing.assert_allclose(first.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(first.masks["target"].load(), expected.get_fdata() > 0)


def test_images_are_float_and_masks_bool(root, cache):
    """Dtypes are as documented, and arrays cannot be written to."""
    first = bids(root, cache, sequences=("T2w",)).samples[0]
    image = first.images["T2w"].load()
    assert image.dtype == np.float32
    assert (first.masks["target"].load().dtype, first.masks["regions"].load().dtype) == (bool, np.int32)
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0] = 1


def test_intensities_are_normalised_in_the_brain(root, cache):
    """Voxels of the brain mask have mean 0 and standard deviation 1."""
    for sample in bids(root, cache, sequences=ALL).samples:
        inside = sample.masks["brain"].load()
        for image in sample.images.values():
            values = image.load()[inside].astype(float)
            assert values.mean() == pytest.approx(0, abs=1e-5)
            assert values.std() == pytest.approx(1, abs=1e-5)


def test_without_a_brain_the_whole_volume_is_normalised(root, cache):
    """brain=none ignores an existing mask, as published."""
    first = bids(root, cache, sequences=("T2w",), brain="none").samples[0]
    values = first.images["T2w"].load().astype(float)
    assert "brain" not in first.masks
    assert (values.mean(), values.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_anisotropic_swi_is_resampled_to_the_right_position(root, cache):
    """The bright lesion of the SWI slab overlaps the label, despite permuted axes and thick slices."""
    first = bids(root, cache, sequences=("SWI",), normalise="none", antialias=False).samples[0]
    made = first.images["SWI"].load()
    near = ball(made.shape, first.affine, LESION_MM, 7.0)
    weight = np.where(near, np.clip(made - 110, 0, None), 0)
    centre = (world_of(made.shape, first.affine) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(centre, LESION_MM, atol=0.2)
    assert made[first.masks["target"].load()].mean() > made[first.masks["brain"].load()].mean() + 30


def test_swi_agrees_with_nibabel_resampling(root, cache):
    """Values inside the slab equal those of nibabel.processing."""
    from nibabel.processing import resample_from_to

    first = bids(root, cache, sequences=("SWI",), normalise="none", antialias=False).samples[0]
    original = nib.load(root / "sub-01/anat/sub-01_SWI.nii.gz")
    expected = resample_from_to(original, (SHAPE, first.affine), order=1, cval=np.nan).get_fdata()
    inside = np.isfinite(expected)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(first.images["SWI"].load()[inside], expected[inside], atol=1e-2)


def test_a_sequence_as_reference_gives_its_grid(root, cache):
    """The label is resampled to the grid of SWI and keeps its position."""
    first = bids(root, cache, sequences=("T2w", "SWI"), reference="SWI").samples[0]
    assert sorted(first.spacing_mm) == pytest.approx([0.7, 0.8, 3.0])
    assert first.images["T2w"].shape == first.masks["target"].shape == (44, 40, 9)
    label = first.masks["target"].load()
    np.testing.assert_allclose(world_of(label.shape, first.affine)[label].mean(axis=0), LESION_MM, atol=0.8)


def test_reference_that_is_not_an_input_is_not_loaded(root, cache):
    """With reference=SWI and T2w as the only sequence, samples hold T2w on the grid of SWI."""
    first = bids(root, cache, sequences=("T2w",), reference="SWI").samples[0]
    assert list(first.images) == ["T2w"]
    assert first.images["T2w"].shape == (44, 40, 9)


def test_another_spacing_downsamples_the_mask_by_occupancy(root, cache):
    """At half the resolution, voxels belong to the target if at least ``occupied`` of them is filled."""
    half, touched = (
        bids(root, cache, sequences=("T2w",), spacing_mm=(2, 2, 3), occupied=share).samples[0] for share in (0.5, 1e-3)
    )
    full = bids(root, cache, sequences=("T2w",)).samples[0]
    blocks = full.masks["target"].load().reshape(10, 2, 9, 2, 7, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(half.masks["target"].load(), blocks >= 0.5)
    np.testing.assert_array_equal(touched.masks["target"].load(), blocks > 0)
    np.testing.assert_allclose(half.spacing_mm, (2, 2, 3), atol=1e-6)


def test_crop_to_the_brain_keeps_values_and_world_coordinates(root, cache):
    """The crop is a part of the full image."""
    full = bids(root, cache, sequences=("T2w",)).samples[0]
    cut = bids(root, cache, sequences=("T2w",), crop="brain", margin_mm=1.0).samples[0]
    start = np.rint(nib.affines.apply_affine(np.linalg.inv(full.affine), cut.affine[:3, 3])).astype(int)
    shape = cut.images["T2w"].shape
    assert np.prod(shape) < np.prod(SHAPE)
    part = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(cut.images["T2w"].load(), full.images["T2w"].load()[part])
    assert cut.masks["brain"].load().sum() == full.masks["brain"].load().sum()


def test_fixed_size_pads_and_crops(root, cache):
    """All subjects get the requested shape; 0 keeps the extent of an axis."""
    made = bids(root, cache, sequences=("T2w",), size=(32, 10, 0))
    assert {sample.images["T2w"].shape for sample in made.samples} == {(32, 10, 14)}
    first = made.samples[0]
    lesion = first.masks["target"].load()
    assert not lesion[:6].any() and not lesion[26:].any()
    np.testing.assert_allclose(
        world_of(lesion.shape, first.affine)[lesion].mean(axis=0),
        world_of(SHAPE, AFFINE)[nib.load(root / "sub-01/anat/sub-01_label-pvs_mask.nii.gz").get_fdata() > 0].mean(
            axis=0
        ),
        atol=1e-4,
    )


def test_skull_strip_sets_the_outside_to_zero(root, cache):
    """Voxels outside the brain are 0, and those inside are unchanged."""
    plain = bids(root, cache, sequences=("T2w",)).samples[0]
    stripped = bids(root, cache, sequences=("T2w",), skull_strip=True).samples[0]
    inside = plain.masks["brain"].load()
    made = stripped.images["T2w"].load()
    assert np.all(made[~inside] == 0)
    np.testing.assert_array_equal(made[inside], plain.images["T2w"].load()[inside])


def test_a_computed_brain_does_not_depend_on_the_sequences(tmp_path, cache):
    """Without masks in the data it is computed from T1w, even if only T2w is requested."""
    root = tmp_path / "bare"
    for number in (1, 2, 3):
        write_subject(root, number, brain=False, regions=False)
    write_tables(root, (1, 2, 3))
    every = bids(root, cache, sequences=("T1w", "T2w"), brain="compute", n4=True)
    alone = bids(root, cache, sequences=("T2w",), brain="compute", n4=True)
    assert every.samples[0].masks["brain"] == alone.samples[0].masks["brain"]
    assert every.samples[0].images["T2w"] == alone.samples[0].images["T2w"]
    head = ball(SHAPE, every.samples[0].affine, nib.affines.apply_affine(AFFINE, (10, 9, 7)), 8.5)
    assert (every.samples[0].masks["brain"].load() ^ head).mean() < 0.02


def test_without_a_label_the_first_sequence_gives_the_grid(root, cache):
    """Subjects without a label have images and no target."""
    for path in root.glob("sub-*/anat/*label-pvs*"):
        path.unlink()
    first = bids(root, cache, label="", sequences=("SWI", "T2w")).samples[0]
    assert "target" not in first.masks
    assert first.images["T2w"].shape == (44, 40, 9)


def test_default_sequences_are_those_of_all_subjects(root, cache):
    """FLAIR is not used if one subject lacks it."""
    (root / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()
    assert list(bids(root, cache).samples[0].images) == ["SWI", "T1w", "T2w"]


def test_a_subject_without_a_required_sequence_is_named_and_left_out(root, cache):
    """The subject is ineligible, not faulty."""
    (root / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()
    made = bids(root, cache, sequences=("FLAIR",), minimum=2)
    assert made.subjects == ("sub-01", "sub-03")
    assert [one.subject for one in made.ineligible] == ["sub-02"]


def test_excluded_subjects_are_left_out(root, cache):
    """Subjects are excluded by name."""
    assert bids(root, cache, sequences=("T2w",), exclude=("sub-02",), minimum=2).subjects == ("sub-01", "sub-03")


# --- the cache ---


def test_the_same_cohort_twice_writes_nothing(root, cache):
    """No file of the cache is touched, and the samples are equal."""
    first = bids(root, cache, sequences=ALL)
    before = arrays_of(cache)
    second = bids(root, cache, sequences=ALL)
    assert arrays_of(cache) == before
    assert_equal(first, second)


def test_a_subset_of_sequences_reads_and_writes_nothing(root, cache, reads, monkeypatch):
    """Once four sequences are cached, subsets are loaded without reading source files."""
    monkeypatch.setattr(cache_module, "_SETTLED_NS", -1)
    every = bids(root, cache, sequences=ALL)
    assert reads
    before = files_of(cache)
    reads.clear()
    for subset in [("T2w",), ("SWI", "T1w"), ALL]:
        some = bids(root, cache, sequences=subset)
        for one, other in zip(some.samples, every.samples, strict=True):
            assert one.images == {name: other.images[name] for name in subset}
            assert one.masks == other.masks
    assert reads == []
    assert files_of(cache) == before


def test_a_superset_of_sequences_prepares_only_what_is_new(root, cache):
    """T2w is cached; the three arrays of FLAIR are added in a pack of their own."""
    first = bids(root, cache, sequences=("T2w",))
    before = arrays_of(cache)
    made = bids(root, cache, sequences=("T2w", "FLAIR"))
    assert before.items() <= arrays_of(cache).items()
    (added,) = arrays_of(cache).keys() - before.keys() - {f"{made.samples[0].images['FLAIR'].path.stem}.bin"}
    assert len((cache / "arrays" / added).read_text().splitlines()) == 3
    for one, other in zip(first.samples, made.samples, strict=True):
        assert (one.images["T2w"], one.masks) == (other.images["T2w"], other.masks)


def test_a_further_subject_prepares_only_its_own_images(root, cache):
    """Its images and label are added; brain and regions are identical to those of the others."""
    bids(root, cache, sequences=("T1w", "T2w"))
    known = arrays_of(cache)
    write_subject(root, 4)
    write_tables(root, (1, 2, 3, 4))
    made = keys_of(bids(root, cache, sequences=("T1w", "T2w")))
    (index,) = [name for name in arrays_of(cache).keys() - known.keys() if name.endswith(".jsonl")]
    lines = [json.loads(line) for line in (cache / "arrays" / index).read_text().splitlines()]
    kept = {line["key"] for line in lines if line["shape"] == [4]}  # what the grid keeps of the label
    assert len(kept) == 1
    added = {line["key"] for line in lines}
    assert added == {made["sub-04/T1w"], made["sub-04/T2w"], made["sub-04/target"]} | kept


def test_a_preparation_writes_two_files(root, cache):
    """3 subjects with 4 images and 3 masks each are stored in one pack."""
    bids(root, cache, sequences=ALL)
    assert sorted(Path(name).suffix for name in arrays_of(cache)) == [".bin", ".jsonl"]


def test_a_file_changed_a_moment_ago_is_hashed_again(root, cache):
    """Its digest is not stored, because the file could change again without a new time stamp."""
    bids(root, cache, sequences=("T2w",))
    assert not (cache / "digests").exists()


def test_the_digests_of_a_cohort_are_one_file(root, cache, monkeypatch):
    """There is no file of digests per source file."""
    monkeypatch.setattr(cache_module, "_SETTLED_NS", -1)
    bids(root, cache, sequences=ALL)
    assert len(list((cache / "digests").iterdir())) == 1


def test_changed_content_gives_a_new_key(root, cache, monkeypatch):
    """After one voxel changed, only that image is prepared again, and the old array is kept."""
    monkeypatch.setattr(cache_module, "_SETTLED_NS", -1)
    before = keys_of(bids(root, cache, sequences=("T1w", "T2w")))
    path = root / "sub-02/anat/sub-02_T2w.nii.gz"
    array, affine = nifti.read(path)
    array[3, 3, 3] += 5
    nifti.write(path, array, affine)
    after = keys_of(bids(root, cache, sequences=("T1w", "T2w")))
    assert {name for name in after if after[name] != before[name]} == {"sub-02/T2w"}
    with ArrayCache(cache / "arrays") as arrays:
        assert arrays.known(before["sub-02/T2w"]) is not None


def test_a_changed_brain_mask_gives_new_images_of_that_subject(root, cache):
    """The brain mask determines the normalisation."""
    before = keys_of(bids(root, cache, sequences=("T1w",)))
    path = root / "sub-02/anat/sub-02_label-brain_mask.nii.gz"
    array, affine = nifti.read(path)
    array[10, 9, 7] = 0
    nifti.write(path, array, affine, dtype=np.uint8)
    after = keys_of(bids(root, cache, sequences=("T1w",)))
    assert {name for name in after if after[name] != before[name]} == {"sub-02/T1w", "sub-02/brain"}


@pytest.mark.parametrize(
    "option",
    [
        {"n4": True},
        {"normalise": "minmax"},
        {"skull_strip": True},
        {"brain": "none"},
        {"interpolation": "bspline"},
        {"antialias": False},
        {"reference": "T2w", "spacing_mm": (1.1, 1, 1)},
        {"size": (16, 16, 16)},
        {"reorient": False},
    ],
    ids=str,
)
def test_another_option_gives_another_key(root, cache, option):
    """Every option that changes the values of an image changes its fingerprint."""
    before = bids(root, cache, sequences=("SWI",)).samples[0].images["SWI"].fingerprint
    assert bids(root, cache, sequences=("SWI",), **option).samples[0].images["SWI"].fingerprint != before


def test_option_of_masks_does_not_change_images(root, cache):
    """``occupied`` affects the target only."""
    one, other = (bids(root, cache, sequences=("T2w",), occupied=share).samples[0] for share in (0.5, 0.25))
    assert one.images == other.images
    assert one.masks["target"] != other.masks["target"]


@pytest.mark.parametrize(
    "name", ["nifti:read", "nifti:_decompressed", "transforms:occupancy", "transforms:normalise", "cohort:_prepared"]
)
def test_editing_code_that_prepares_images_changes_keys(root, cache, edit, name):
    """Editing code that decodes or transforms images changes all fingerprints."""
    before = set(keys_of(bids(root, cache, sequences=("T2w",))).values())
    edit(f"harness.data.{name}")
    assert before.isdisjoint(keys_of(bids(root, cache, sequences=("T2w",))).values())


@pytest.mark.parametrize("name", ["nifti:write", "transforms:crop", "cohort:bids", "cohort:_Subject"])
def test_editing_other_code_keeps_keys(root, cache, edit, name):
    """Editing other code of the same modules does not change fingerprints."""
    before = keys_of(bids(root, cache, sequences=("T2w",)))
    edit(f"harness.data.{name}")
    assert keys_of(bids(root, cache, sequences=("T2w",))) == before


def test_location_of_the_folder_does_not_matter(root, cache, tmp_path):
    """The arrays of a moved data set are found in the cache."""
    before = keys_of(bids(root, cache, sequences=("T2w",)))
    root.rename(tmp_path / "moved")
    stamps = arrays_of(cache)
    assert keys_of(bids(tmp_path / "moved", cache, sequences=("T2w",))) == before
    assert arrays_of(cache) == stamps


def test_truncated_array_is_prepared_again(root, cache):
    """A truncated pack is replaced from the source files."""
    image = bids(root, cache, sequences=("T2w",)).samples[-1].images["T2w"]
    whole, values = image.path.read_bytes(), np.array(image.load())
    image.path.write_bytes(whole[:-100])
    again = bids(root, cache, sequences=("T2w",)).samples[-1].images["T2w"]
    assert (again.fingerprint, again.sha256) == (image.fingerprint, image.sha256)
    np.testing.assert_array_equal(again.load(), values)


def prepare(root: Path, cache: Path) -> dict[str, str]:
    """Fingerprints of a cohort; runs in another process."""
    return keys_of(bids(root, cache, sequences=("T1w", "T2w")))


def test_processes_may_prepare_at_once(root, cache):
    """Two concurrent processes agree and leave no incomplete file."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        one, other = pool.starmap(prepare, [(root, cache)] * 2)
    assert one == other
    assert {path.suffix for path in (cache / "arrays").iterdir()} == {".bin", ".jsonl"}
    for image in bids(root, cache, sequences=("T1w", "T2w")).samples[0].images.values():
        image.check()


# --- faults ---


def test_a_faulty_cohort_raises_all_faults_and_writes_nothing(root, cache):
    """NaN in one file and another that is truncated: both are listed, and nothing is cached."""
    path = root / "sub-01/anat/sub-01_T2w.nii.gz"
    array, affine = nifti.read(path)
    array[0, 0, 0] = np.nan
    nifti.write(path, array, affine)
    broken = root / "sub-03/anat/sub-03_T2w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(CohortError, match=r"(?s)nothing was computed.*sub-01_T2w.*sub-03_T2w") as caught:
        bids(root, cache, sequences=("T2w",))
    assert {fault.subject for fault in caught.value.faults} == {"sub-01", "sub-03"}
    assert not cache.exists()


def test_verified_cohort_is_verified_again_after_a_change(root, cache, monkeypatch):
    """A stored verification does not hide a new fault."""
    monkeypatch.setattr(cache_module, "_SETTLED_NS", -1)
    bids(root, cache, sequences=ALL)
    path = root / "sub-01/anat/sub-01_T2w.nii.gz"
    array, affine = nifti.read(path)
    array[0, 0, 0] = np.nan
    nifti.write(path, array, affine)
    with pytest.raises(CohortError, match="sub-01_T2w"):
        bids(root, cache, sequences=("T2w",))


def test_too_few_subjects_are_a_fault_after_verification(root, cache):
    """Excluding one of three subjects leaves fewer than the minimum."""
    bids(root, cache, sequences=("T2w",))
    with pytest.raises(CohortError):
        bids(root, cache, sequences=("T2w",), exclude=("sub-02",))


def test_a_brain_mask_of_some_subjects_only_is_a_fault(root, cache):
    """Intensities of the subjects would not be comparable."""
    (root / "sub-02/anat/sub-02_label-brain_mask.nii.gz").unlink()
    with pytest.raises(
        CohortError, match=r"1 of 3 subjects have no brain mask: sub-02.*cohort.brain=compute or cohort.brain=none"
    ):
        bids(root, cache, sequences=("T2w",))
    assert not cache.exists()


@pytest.mark.parametrize("option", [{"skull_strip": True}, {"crop": "brain"}], ids=str)
def test_skull_strip_and_crop_need_a_brain_mask(root, cache, option):
    """Without brain masks in the data, the message names the remedy."""
    for path in root.glob("sub-*/anat/*brain*"):
        path.unlink()
    with pytest.raises(CohortError, match=r"the data have no brain masks; .*cohort.brain=compute"):
        bids(root, cache, sequences=("T2w",), **option)


def test_a_label_that_vanishes_on_the_grid_is_a_fault(root, cache):
    """All subjects whose lesions vanish by resampling are listed."""
    with pytest.raises(CohortError, match=r"(?s)label-vanished.*69 mm³ in the file, nothing on the grid") as caught:
        bids(root, cache, sequences=("T2w",), spacing_mm=(9, 9, 9))
    assert [fault.subject for fault in caught.value.faults] == ["sub-01", "sub-02", "sub-03"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"skull_strip": True, "brain": "none"}, "cohort.skull_strip=true needs a brain mask, got cohort.brain=none"),
        ({"crop": "brain", "brain": "none"}, "cohort.crop=brain needs a brain mask, got cohort.brain=none"),
        ({"spacing_mm": (2.0,)}, r"spacing_mm must have three numbers .* got \(2.0,\)"),
        ({"size": (2, 2)}, "size must have three numbers"),
        ({"occupied": 0.0}, "0 < occupied <= 1 must hold"),
    ],
)
def test_invalid_options_raise(root, cache, option, message):
    """Options are checked before files are read."""
    with pytest.raises(OutOfRange, match=message):
        bids(root, cache, sequences=("T2w",), **option)


@pytest.mark.parametrize("name", ["brain", "crop", "interpolation", "normalise"])
def test_unknown_value_of_an_option_raises(root, cache, name):
    """The message names the option and the value."""
    with pytest.raises(UnknownName, match=f"no value of {name} is named 'other'"):
        bids(root, cache, sequences=("T2w",), **{name: "other"})


def test_bids_is_registered():
    """The registry returns the function by its name."""
    assert COHORTS.get("bids").function is bids


# --- pickled images and saved cohorts ---


def test_an_image_survives_pickling(root, cache):
    """A worker receives the path and maps the same file."""
    image = bids(root, cache, sequences=("T2w",)).samples[0].images["T2w"]
    there = pickle.loads(pickle.dumps(image))
    assert there == image
    np.testing.assert_array_equal(there.load(), image.load())
    assert len(pickle.dumps(image)) < 1000


def test_a_saved_cohort_opens_equal(root, cache, tmp_path):
    """Name, samples, covariates, regions and ineligible subjects are kept; source files are not needed."""
    write_subject(root, 4)
    (root / "sub-04/anat/sub-04_T2w.nii.gz").unlink()
    write_tables(root, (1, 2, 3, 4))
    made = bids(root, cache, sequences=("T1w", "T2w"))
    save(made, tmp_path / "tables" / "cohort.arrow")
    root.rename(tmp_path / "gone")
    opened = open_cohort(tmp_path / "tables" / "cohort.arrow", check_content=True)
    assert_equal(made, opened)
    assert (opened.name, opened.ineligible, opened.label_source) == (made.name, made.ineligible, made.label_source)
    assert dict(opened.regions) == dict(made.regions)
    reads = Reads(images=("T1w", "T2w"), masks=("target", "brain"), covariates=("age", "sex"))
    assert opened.fingerprint(reads) == made.fingerprint(reads)


TARGETS = (
    Target("target", "mask"),
    Target("age", "number", loss_weight=0.01),
    Target("sex", "binary"),
    Target("group", "classes", ("control", "patient", "n/a, or other")),
)


def with_targets(cohort: Cohort) -> Cohort:
    """The cohort with targets of every kind, a clean value and weights of some samples."""
    samples = [
        dataclasses.replace(
            one,
            targets={"age": 61 + number / 3, "sex": float(number % 2), "group": float(number)},
            clean={"age": 61.0} if number else {},
            weights={"group": 0.1 * number} if number else {},
        )
        for number, one in enumerate(cohort.samples)
    ]
    return dataclasses.replace(cohort, samples=tuple(samples), targets=TARGETS)


def test_targets_clean_values_and_weights_are_saved(root, cache, tmp_path):
    """Values are exact, order is kept, and missing ones stay missing."""
    made = with_targets(bids(root, cache, sequences=("T2w",)))
    opened = open_cohort(save(made, tmp_path / "cohort.arrow"))
    assert_equal(made, opened)
    assert opened.targets == TARGETS
    assert opened.samples[0].clean == {} and opened.samples[0].weights == {}
    assert list(opened.samples[1].targets) == ["age", "sex", "group"]
    reads = Reads(covariates=("age",), targets=("age", "sex", "group"))
    assert opened.fingerprint(reads) == made.fingerprint(reads)


def cached(cache: Path, arrays: np.ndarray) -> list[CachedImage]:
    """Arrays (N, …) as cached images."""
    with ArrayCache(cache / "arrays") as folder:
        return [folder.add(f"picture {number}", array) for number, array in enumerate(arrays)]


def test_cohort_of_pictures_is_saved(cache, tmp_path):
    """Pictures have neither affine nor spacing."""
    arrays = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    packed = cached(cache, arrays)
    samples = [Sample(f"p{n}", "sub-1", {"rgb": image}, {}, {"age": None}) for n, image in enumerate(packed)]
    made = with_targets(Cohort("pictures", tuple(samples)))
    opened = open_cohort(save(made, tmp_path / "cohort.arrow"), check_content=True)
    assert_equal(made, opened)
    assert {(one.affine, one.spacing_mm) for one in opened.samples} == {(None, None)}
    for sample, array in zip(opened.samples, arrays, strict=True):
        np.testing.assert_array_equal(sample.images["rgb"].load(), array)


@pytest.mark.parametrize("order", [1, -1])
def test_truncated_pack_raises(cache, tmp_path, order):
    """The error does not depend on the order of samples in the table."""
    packed = cached(cache, np.zeros((3, 4, 5), np.uint8))
    samples = [Sample(f"p{n}", f"p{n}", {"rgb": image}, {}, {}) for n, image in enumerate(packed)]
    path = save(Cohort("pictures", tuple(samples[::order])), tmp_path / "cohort.arrow")
    with packed[0].path.open("r+b") as file:
        file.truncate(2 * 64)
    with pytest.raises(StoreError, match=r"its images cannot be used:(.|\n)*must have at least 148 bytes: .* has 128"):
        open_cohort(path)


def test_missing_covariates_stay_missing(root, cache, tmp_path):
    """Missing values are None after loading, and text stays text."""
    made = bids(root, cache, sequences=("T2w",))
    some = dataclasses.replace(made.samples[0], covariates={"age": "89+", "edss": None})
    save(dataclasses.replace(made, samples=(some,)), tmp_path / "cohort.arrow")
    assert open_cohort(tmp_path / "cohort.arrow").samples[0].covariates == {"age": "89+", "edss": None}


def test_saving_twice_gives_the_same_bytes(root, cache, tmp_path):
    """The file depends neither on the time nor on hash order."""
    for name in ("a", "b"):
        save(bids(root, cache, sequences=("T2w",)), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_table_can_be_read_without_this_package(root, cache, tmp_path):
    """An Arrow IPC file of one row per sample."""
    save(bids(root, cache, sequences=("T2w",)), tmp_path / "cohort.arrow")
    with pa.OSFile(str(tmp_path / "cohort.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column("id").to_pylist() == ["sub-01", "sub-02", "sub-03"]
    assert json.loads(table.schema.metadata[b"harness.cohort"])["name"] == "tiny"


@pytest.fixture
def saved(root, cache, tmp_path) -> tuple[Path, CachedImage]:
    """A table, and one of its images."""
    made = bids(root, cache, sequences=("T2w",))
    return save(made, tmp_path / "cohort.arrow"), made.samples[1].images["T2w"]


def test_a_missing_array_is_named_with_the_remedy(saved):
    """The error names the file of a cache that was moved or emptied."""
    table, image = saved
    image.path.unlink()
    with pytest.raises(StoreError, match=rf"its images cannot be used:\n.*missing: {image.path}. Run .* again"):
        open_cohort(table)


def test_a_truncated_array_is_named_with_the_remedy(saved):
    """The error names the required and the actual size."""
    table, image = saved
    image.path.write_bytes(image.path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=rf"must have at least \d+ bytes: {image.path} has \d+. Run .* again"):
        open_cohort(table)


def test_flipped_bit_is_detected_by_the_checksum(saved):
    """Only with ``check_content``, which reads all arrays."""
    table, image = saved
    content = bytearray(image.path.read_bytes())
    content[image.offset] ^= 1
    image.path.write_bytes(content)
    open_cohort(table)
    with pytest.raises(StoreError, match=rf"must match their checksum: {image.path}, bytes {image.offset} to"):
        open_cohort(table, check_content=True)


def test_missing_table_raises(tmp_path):
    """The message names the remedy."""
    with pytest.raises(StoreError, match=r"table is missing: .*Run the command"):
        open_cohort(tmp_path / "none.arrow")


def test_corrupted_table_raises(saved):
    """A truncated table cannot be read."""
    table, _ = saved
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(StoreError, match="is no cohort that can be read"):
        open_cohort(table)


def test_images_outside_a_cache_cannot_be_saved(root, cache, tmp_path):
    """Readers of other formats must cache their arrays, too."""
    made = bids(root, cache, sequences=("T2w",))
    bad = dataclasses.replace(made.samples[0], images={"T2w": object()})
    with pytest.raises(StoreError, match="images of a cache only, got object for T2w"):
        save(dataclasses.replace(made, samples=(bad,)), tmp_path / "cohort.arrow")


# --- describe ---


def test_describe_counts_lesions(root, cache):
    """Each subject has a ball and a single voxel: two lesions; a voxel has 1.5 mm³."""
    made = bids(root, cache, sequences=("T1w", "SWI"))
    facts = describe(made)
    voxels = int(ball(SHAPE, AFFINE, LESION_MM, 2.5).sum()) + 1
    assert facts["lesions"]["count"] == {"total": 6, "mean": 2, "lowest": 2, "highest": 2}
    assert facts["lesions"]["volume_mm3"]["mean"] == pytest.approx(voxels * 1.5, abs=1e-3)
    assert facts["lesions"]["mean_voxels"] == pytest.approx(voxels / 2, abs=0.01)
    assert facts["lesions"]["without"] == []


def test_describe_is_json(root, cache):
    """Counts of subjects, grids, sequences, ages and sexes can be serialised."""
    facts = json.loads(json.dumps(describe(bids(root, cache, sequences=("T1w", "SWI")))))
    assert (facts["name"], facts["subjects"], facts["samples"]) == ("tiny", 3, 3)
    assert facts["shapes"] == {"20×18×14": 3} and facts["spacing_mm"] == {"1×1×1.5": 3}
    assert facts["sequences"] == {"T1w": 3, "SWI": 3}
    assert facts["age"] == {"mean": 62, "lowest": 61, "highest": 63, "n": 3, "unknown": 0, "not_numbers": []}
    assert facts["sex"] == {"F": 2, "M": 1}


def test_describe_lists_ages_that_are_not_numbers(root, cache):
    """``89+`` is excluded from the mean and listed."""
    made = bids(root, cache, sequences=("T2w",))
    ages = [70.0, "89+", None]
    samples = tuple(dataclasses.replace(s, covariates={"age": a}) for s, a in zip(made.samples, ages, strict=True))
    facts = describe(dataclasses.replace(made, samples=samples))
    assert facts["age"] == {"mean": 70, "lowest": 70, "highest": 70, "n": 1, "unknown": 1, "not_numbers": ["89+"]}


def test_describe_without_a_target_has_no_lesions(root, cache):
    """Lesions are None for a cohort without labels."""
    assert describe(bids(root, cache, label="", sequences=("T2w",)))["lesions"] is None


def test_a_fault_of_preparation_names_the_file(root, cache):
    """A brain of constant intensity cannot be normalised."""
    path = root / "sub-01/anat/sub-01_T2w.nii.gz"
    array, affine = nifti.read(path)
    head = nifti.read(root / "sub-01/anat/sub-01_label-brain_mask.nii.gz")[0] > 0
    array[head] = 50.0
    nifti.write(path, array, affine)
    with pytest.raises(CohortError, match=r"\[preparation\] sub-01/anat/sub-01_T2w.nii.gz: .*voxels that differ"):
        bids(root, cache, sequences=("T2w",))


def add_lesion(root: Path, number: int, voxel: tuple[int, int, int], size: int = 2) -> None:
    """Add a cube to the label of a subject."""
    path = root / f"sub-{number:02d}/anat/sub-{number:02d}_label-pvs_mask.nii.gz"
    mask, affine = nifti.read(path)
    mask[tuple(slice(place, place + size) for place in voxel)] = 1
    nifti.write(path, mask > 0, affine)


def small_brains(root: Path) -> None:
    """Brain masks around the lesion only."""
    for number in (1, 2, 3):
        path = root / f"sub-{number:02d}/anat/sub-{number:02d}_label-brain_mask.nii.gz"
        nifti.write(path, ball(SHAPE, AFFINE, LESION_MM, 5), AFFINE)


def volume_of(sample: Sample) -> float:
    """Volume of the prepared label in mm³."""
    return float(sample.masks["target"].load().sum() * np.prod(sample.grid.spacing_mm))


def test_cropping_to_the_brain_keeps_a_label_outside_of_it(root, cache, monkeypatch):
    """A crude brain mask may miss a lesion; nothing of the truth is lost, and nothing is to be said."""
    monkeypatch.setattr("harness.data.verify._OUTSIDE_BRAIN", 1.0)
    small_brains(root)
    whole = bids(root, cache)
    cropped = bids(root, cache, crop="brain", margin_mm=1.0)
    add_lesion(root, 2, (1, 1, 1))
    extended = bids(root, cache, crop="brain", margin_mm=1.0)
    assert cropped.samples[1].shape != whole.samples[1].shape
    assert extended.samples[1].shape != cropped.samples[1].shape
    assert volume_of(extended.samples[1]) == pytest.approx(volume_of(whole.samples[1]) + 8 * 1.5)
    assert extended.notes == ()


@pytest.mark.parametrize("again", [False, True])
def test_label_outside_of_the_field_is_told(root, cache, monkeypatch, again):
    """With the share of the volume, the subjects and the option that keeps it; also from the cache."""
    monkeypatch.setattr("harness.data.verify._OUTSIDE_BRAIN", 1.0)
    add_lesion(root, 2, (0, 0, 0), 3)
    size = (10, 10, 8)
    for _ in range(1 + again):
        found = bids(root, cache, sequences=("T1w",), size=size)
    inside = [volume_of(sample) for sample in found.samples]
    files = [float(nifti.read(path)[0].sum()) * 1.5 for path in sorted(root.glob("sub-*/anat/*pvs_mask*"))]
    lost = [1 - one / of for one, of in zip(inside, files, strict=True)]
    label, brain = found.notes
    assert lost[1] > 0.2
    assert label.startswith(
        f"field of view of 10×10×8 voxels of 1×1×1.5 mm: {1 - sum(inside) / sum(files):.0%}".replace("%", " %")
    )
    assert f"sub-02 {100 * lost[1]:.0f} %" in label and label.endswith(
        "cohort.crop=none cohort.size=[] keeps the whole image"
    )
    assert "of the brain volume lies outside, in 3 of 3 samples" in brain


def test_nothing_is_told_of_a_field_that_keeps_everything(root, cache):
    """Neither if images are padded, nor if only air is cut off."""
    assert bids(root, cache, size=(40, 40, 40)).notes == ()
    assert bids(root, cache, crop="brain").notes == ()


def test_lesions_that_vanish_in_resampling_are_told(root, cache):
    """The single voxel of each subject is less than half of a voxel of 2 × 2 × 3 mm, and the ball stays."""
    (note,) = bids(root, cache, spacing_mm=(2.0, 2.0, 3.0)).notes
    assert note.startswith("3 of 6 lesions vanish when the label is resampled (sub-01 1, sub-02 1, sub-03 1)")
    assert "cohort.spacing_mm" in note and "cohort.occupied" in note
    assert bids(root, cache, spacing_mm=(2.0, 2.0, 3.0), occupied=0.05).notes == ()
    (note,) = bids(root, cache, reference="SWI").notes
    assert note.startswith("1 of 6 lesions vanish when the label is resampled (sub-01 1)")


def test_subjects_with_other_voxel_sizes_are_told(root, cache):
    """A localiser under the plain name has thick slices; a difference of rounding is none."""
    for number, step in ((2, 4), (3, 1)):
        path = root / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        image, affine = nifti.read(path)
        scale = np.diag([1.0, 1.0, step, 1.0]) if step > 1 else np.diag([1.001, 1.0, 1.0, 1.0])
        nifti.write(path, image[:, :, ::step], affine @ scale)
    found = bids(root, cache, sequences=("T1w", "T2w"))
    assert found.notes == ("voxels of T1w are 1×1×1.5 mm in most subjects, but: sub-02 1×1×6 mm",)


def test_notes_and_files_are_saved(root, cache, tmp_path):
    """Reports are made from the saved table."""
    (root / "sub-02/anat/sub-02_T1w.nii.gz").rename(root / "sub-02/anat/sub-02_rec-moco_T1w.nii.gz")
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("\t61", "\t90+"))
    found = bids(root, cache)
    assert found.notes == (
        "sub-01: age 90+ is read as 90",
        "T1w is rec-moco_T1w in 1 of 3 subjects (sub-02), else T1w",
    )
    opened = open_cohort(save(found, tmp_path / "cohort.arrow"))
    assert (opened.notes, opened.files) == (found.notes, found.files)
    facts = describe(opened)
    assert facts["files"]["T1w"] == {"T1w": 2, "rec-moco_T1w": 1} and facts["notes"] == list(found.notes)


def test_a_nuisance_is_read_where_there_is_one(root, cache):
    """The mask of this label becomes ``nuisance``, on the grid of the subject; other subjects have none."""
    stem = root / "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    lesion = ball(SHAPE, AFFINE, nib.affines.apply_affine(AFFINE, (7, 9, 7)), 3.0)
    nifti.write(stem, lesion, AFFINE)
    plain = bids(root, cache)
    found = bids(root, cache, nuisance="lesion", spacing_mm=(3.0, 3.0, 3.0))
    assert ["nuisance" in one.masks for one in found.samples] == [False, True, False]
    grid = found.samples[1].grid
    mask = found.samples[1].masks["nuisance"].load()
    expected = transforms.occupancy(lesion, AFFINE, found.samples[1].shape, grid.affine) >= 0.5
    np.testing.assert_array_equal(mask, expected)
    assert not any("nuisance" in one.masks for one in plain.samples)
    with pytest.raises(OutOfRange, match="another mask than the label, brain and regions, got pvs"):
        bids(root, cache, nuisance="pvs")
