"""Predictions for new subjects: networks, grids and files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import harness
from harness.core.errors import CohortError, RequestError
from harness.core.types import Sample
from harness.data import nifti, transforms
from harness.pipeline import cell as cell_module
from harness.pipeline.prediction import find_networks, predict_subjects, read_subjects, write_masks
from harness.storage.store import CellRecord, Store

Overrides = Callable[..., dict[str, Any]]


@pytest.fixture
def store(finished: Path) -> Store:
    """The store of a finished tiny run with one configuration and three networks."""
    return Store(finished / "store")


@pytest.fixture
def row(store: Store) -> str:
    """The id of the configuration."""
    return next(store.records("train")).configuration


def again(store: Store, record: CellRecord, identity: str, code: str) -> CellRecord:
    """Copy a training under another identity and code version."""
    shutil.copytree(store.folder("train", record.identity), store.folder("train", identity))
    other = dataclasses.replace(record, identity=identity, code=code)
    (store.folder("train", identity) / "record.json").write_text(json.dumps(dataclasses.asdict(other)))
    return other


def identities(records: tuple[CellRecord, ...]) -> list[str]:
    """Sorted identities of trainings."""
    return sorted(record.identity for record in records)


class TestNetworks:
    """Trainings selected by an id."""

    def test_a_configuration_has_one_network_per_fold(self, store: Store, row: str) -> None:
        """The first digits of a configuration's id select one network per fold."""
        found = find_networks(store, row[:8])
        assert identities(found.records) == sorted(one.identity for one in store.records("train"))
        assert (found.left_out, found.is_older, found.name) == ((), False, row)

    def test_networks_of_other_code_are_left_out_and_named(self, store: Store, row: str) -> None:
        """Networks of another code version are left out, and the message names them."""
        before = identities(find_networks(store, row).records)
        other = again(store, next(store.records("train")), "0" * 20, "other code")
        found = find_networks(store, row)
        assert identities(found.records) == before
        assert found.left_out == (other,)
        assert f"left out 1 of other code or searches: {other.identity} (set model=CELL to use one)" in str(found)

    def test_training_selected_by_its_id_may_be_of_any_code(self, store: Store) -> None:
        """A training selected by its own id may be of any code version."""
        other = again(store, next(store.records("train")), "0" * 20, "other code")
        assert find_networks(store, other.identity).records == (other,)

    def test_older_networks_are_used_with_a_note(self, store: Store, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """If all networks are of older code, they are used and a note is shown."""
        monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
        found = find_networks(store, row)
        assert len(found.records) == 3 and found.is_older
        assert "trained with another version of the code" in str(found)

    def test_several_older_versions_are_refused(self, store: Store, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Networks of several older code versions are refused, and the message lists them."""
        again(store, next(store.records("train")), "0" * 20, "other code")
        monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
        with pytest.raises(RequestError, match=r"must be of one version of the code.*00000000.*model=CELL"):
            find_networks(store, row)

    def test_accepted_training_counts_once(
        self, finished: Path, store: Store, row: str, tiny_overrides: Overrides, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With ``accept_code``, a training of older code counts once."""
        before = identities(find_networks(store, row).records)
        monkeypatch.setattr(cell_module, "_stage_digest", lambda stage: f"edited {stage}")
        harness.run(**tiny_overrides(finished, accept_code=True))
        found = find_networks(store, row)
        assert len(list(store.records("train"))) == 6 and len(found.records) == 3
        assert identities(found.left_out) == before
        assert "3 accepted from older code" in str(found)

    def test_latest_training_of_a_fold_is_used(self, store: Store, row: str) -> None:
        """Of two trainings of a fold with the same code, the latest is used."""
        first = next(store.records("train"))
        newer = again(store, first, "0" * 20, first.code)
        found = find_networks(store, row)
        assert newer in found.records and found.left_out == (first,)


def with_images(root: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Path:
    """New subjects with changed images and masks."""
    for path in root.glob("sub-*/anat/*.nii.gz"):
        array, affine = change(*nifti.read(path))
        nifti.write(path, array, affine)
    return root


@pytest.fixture
def root(phantom_root: Path, tmp_path: Path) -> Path:
    """Two new subjects in a folder."""
    shutil.copytree(phantom_root, tmp_path / "new")
    for name in ("sub-03", "sub-04"):
        shutil.rmtree(tmp_path / "new" / name)
    table = tmp_path / "new" / "participants.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    return tmp_path / "new"


def finer(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image with half the voxel size along the first axis."""
    step = np.diag([0.5, 1, 1, 1])
    step[0, 3] = -0.25
    return np.repeat(array, 2, axis=0), affine @ step


class TestGrid:
    """The grid to which new subjects are resampled."""

    def test_subjects_with_the_training_voxel_size_keep_their_grid(self, store: Store, row: str, root: Path) -> None:
        """Subjects with the voxel size of the training keep their grid; a note mentions the missing label."""
        networks = find_networks(store, row)
        found = read_subjects(networks, root, root.parent / "cache")
        assert found.notes == ("reference=label, but new subjects have no label; the grid of T2w is used",)
        image, affine = transforms.reorient(*nifti.read(root / "sub-01/anat/sub-01_T2w.nii.gz"))
        assert found.cohort.samples[0].shape == image.shape
        np.testing.assert_allclose(found.cohort.samples[0].grid.affine, affine, atol=1e-5)

    def test_other_voxel_sizes_are_resampled_with_a_note(self, store: Store, row: str, root: Path) -> None:
        """Subjects with another voxel size are resampled to that of the training, with a note."""
        networks = find_networks(store, row)
        plain = read_subjects(networks, root, root.parent / "cache").cohort.samples[0]
        found = read_subjects(networks, with_images(root, finer), root.parent / "cache")
        assert found.cohort.samples[0].grid.spacing_mm == pytest.approx(plain.grid.spacing_mm)
        assert found.cohort.samples[0].shape == plain.shape
        assert found.places["sub-01"].shape == (2 * plain.shape[0], *plain.shape[1:])
        assert any(note.startswith("trained at ") and "sub-01 has" in note for note in found.notes)

    def test_voxel_sizes_outside_the_range_are_refused(self, store: Store, row: str, root: Path) -> None:
        """If the networks were trained on several voxel sizes, a subject outside their range is refused."""
        networks = find_networks(store, row)
        for record in networks.records:
            record.facts["grid"]["largest_mm"][1] *= 2  # type: ignore[index]
        with pytest.raises(RequestError, match=r"must be on the grid of the training, voxels from .*; sub-01 has"):
            read_subjects(networks, with_images(root, finer), root.parent / "cache")

    def test_reference_has_the_training_voxel_size(
        self, store: Store, row: str, root: Path, tiny_overrides: Overrides, tmp_path: Path
    ) -> None:
        """Without a label, the sequence with the voxel size of the training is the reference."""
        made = harness.run(**tiny_overrides(tmp_path / "two", sequences="FLAIR+T2w", attribution="none", fold=0))
        networks = find_networks(Store(tmp_path / "two" / "store"), made.leaderboard["configuration"][0].as_py())
        for path in root.glob("sub-*/anat/*_FLAIR.nii.gz"):
            nifti.write(path, *finer(*nifti.read(path)))
        found = read_subjects(networks, root, tmp_path / "cache")
        assert found.notes == ("reference=label, but new subjects have no label; the grid of T2w is used",)

    def test_files_are_chosen_as_for_the_training(self, store: Store, row: str, root: Path) -> None:
        """Images and grid are of the space of the training; its source of truth is not needed."""
        networks = find_networks(store, row)
        networks.configuration.task["cohort"] |= {"space": "MNI152", "truth": "derivatives/manual"}
        for path in sorted(root.glob("sub-*/anat/*_T2w.nii.gz")):
            array, affine = nifti.read(path)
            template = path.with_name(path.name.replace("_T2w", "_space-MNI152_T2w"))
            nifti.write(
                template, array[2:], affine @ np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            )
        found = read_subjects(networks, root, root.parent / "cache")
        x, y, z = array.shape
        assert {sample.shape for sample in found.cohort.samples} == {(x - 2, y, z)}
        assert {place.shape for place in found.places.values()} == {(x - 2, y, z)}
        assert {place.space for place in found.places.values()} == {"space-MNI152"}

    def test_faults_of_the_files_are_all_listed(self, store: Store, row: str, root: Path) -> None:
        """Faults of all files are listed in one message."""
        for name in ("sub-01", "sub-02"):
            (root / name / "anat" / f"{name}_T2w.nii.gz").write_bytes(b"no image")
        with pytest.raises(CohortError, match="2 faults"):
            read_subjects(find_networks(store, row), root, root.parent / "cache")


class TestFiles:
    """Files with predictions."""

    def test_space_and_codes_are_those_of_the_image(self, store: Store, row: str, root: Path, tmp_path: Path) -> None:
        """The space entity and the orientation codes of the image are kept."""
        for name in ("sub-01", "sub-02"):
            path = root / name / "anat" / f"{name}_T2w.nii.gz"
            header = dataclasses.replace(nifti.header(path), qform_code=4, sform_code=4)
            array, affine = nifti.read(path)
            nifti.write(path.with_name(f"{name}_space-MNI152NLin6Asym_acq-hi_T2w.nii.gz"), array, affine, like=header)
            path.unlink()
        networks = find_networks(store, row)
        subjects = read_subjects(networks, root, tmp_path / "cache")
        written, _ = predict_subjects(networks, subjects, store, tmp_path / "made", root=root)
        assert written[0].name == "sub-01_space-MNI152NLin6Asym_label-pvs_probseg.nii.gz"
        codes = [(nifti.header(path).qform_code, nifti.header(path).sform_code) for path in written]
        assert codes == [(4, 4)] * 4

    def test_slices_outside_the_field_are_noted(self, store: Store, row: str, root: Path, tmp_path: Path) -> None:
        """Slices outside the field of the networks, where predictions are zero, are mentioned in a note."""
        networks = find_networks(store, row)
        subjects = read_subjects(networks, root, tmp_path / "cache")
        x, y, z = subjects.places["sub-01"].shape
        larger = {key: dataclasses.replace(place, shape=(x, y + 2, z + 4)) for key, place in subjects.places.items()}
        _, notes = predict_subjects(
            networks, dataclasses.replace(subjects, places=larger), store, tmp_path / "made", root=root
        )
        assert notes == [
            f"2 of {y + 2} coronal slices and 4 of {z + 4} axial slices are outside the field of view of the networks, "
            "where predictions are 0: sub-01, sub-02"
        ]

    def test_mask_of_a_picture_is_a_picture(self, in_memory: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
        """The mask of a picture is written as a PNG file, with probabilities as grey levels."""
        probability = np.array([[0.0, 0.4], [0.6, 1.0]], np.float32)
        sample = Sample("patch-1", "sub-1", {"rgb": in_memory(np.zeros((2, 2, 3), np.uint8))}, {}, {})
        paths = write_masks(tmp_path, sample, probability, None, "tumour")
        assert [str(path.relative_to(tmp_path)) for path in paths] == [
            "probseg/patch-1_label-tumour.png", "mask/patch-1_label-tumour.png",
        ]  # fmt: skip
        read = [np.asarray(Image.open(path)) for path in paths]
        np.testing.assert_array_equal(read[0], [[0, 102], [153, 255]])
        np.testing.assert_array_equal(read[1], [[0, 0], [255, 255]])

    def test_probability_is_the_mean_of_all_networks(self, store: Store, row: str, root: Path, tmp_path: Path) -> None:
        """The probability is the mean over all networks."""
        networks = find_networks(store, row)
        subjects = read_subjects(networks, root, tmp_path / "cache")
        whole, _ = predict_subjects(networks, subjects, store, tmp_path / "all", root=root)
        alone = []
        for record in networks.records:
            one = find_networks(store, record.identity)
            made, _ = predict_subjects(one, subjects, store, tmp_path / record.identity, root=root)
            alone.append(nifti.read(made[0])[0])
        np.testing.assert_allclose(nifti.read(whole[0])[0], np.mean(alone, axis=0), atol=1e-6)
