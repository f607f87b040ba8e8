"""Storage of attribution maps: files, cell records, group means and sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harness.core.errors import OutOfRange, StoreError, UnknownName
from harness.data.maps import (
    GroupMap,
    group_map,
    map_name,
    read_map,
    read_maps,
    read_sums,
    stored_samples,
    with_channels,
    write_map,
    write_sums,
)
from harness.data.nifti import ImageError
from harness.storage.store import CellRecord, Store, write_record

AFFINE = np.array([[0.0, -1.5, 0, 3], [1.2, 0, 0, -5], [0, 0, 2.0, 7], [0, 0, 0, 1]])
RAS = np.diag([1.0, 1.0, 1.0, 1.0])


@pytest.fixture
def maps() -> np.ndarray:
    """Two channels of noise with three different lengths."""
    return np.random.default_rng(3).normal(size=(2, 7, 5, 4)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def explained(store: Store, tmp_path: Path) -> Callable[..., CellRecord]:
    """Commit an explain cell with the given maps."""

    def make(
        maps: dict[str, np.ndarray], *, identity: str = "abc", outputs: tuple[str, ...] = (), pictures: bool = False
    ) -> CellRecord:
        folder = tmp_path / f"cell-{identity}"
        folder.mkdir()
        for sample, one in maps.items():
            for number, output in enumerate(outputs or ("",)):
                path = folder / map_name(sample, output if number else "", volume=not pictures)
                if pictures:
                    np.save(path, one + number)
                else:
                    write_map(path, one + number, AFFINE)
        (folder / "note.txt").write_text("no map")
        record = CellRecord(identity, "explain", "done", "conf", 0, 0, "saliency", facts={"outputs": outputs})
        write_record(folder, record)
        return store.commit(folder)

    return make


class TestFiles:
    """Writing and reading."""

    @pytest.mark.parametrize("channels", [1, 2])
    def test_round_trip_is_exact(self, tmp_path: Path, maps: np.ndarray, channels: int) -> None:
        """Values and order of the channels are exact."""
        path = write_map(tmp_path / "a.nii.gz", maps[:channels], AFFINE)
        found = read_map(path)
        assert found.dtype == np.float32 and np.array_equal(found, maps[:channels])

    def test_volume_is_one_channel(self, tmp_path: Path, maps: np.ndarray) -> None:
        """A map without a channel axis is read with one channel."""
        assert read_map(write_map(tmp_path / "a.nii.gz", maps[0], AFFINE)).shape == (1, 7, 5, 4)

    def test_single_slice_keeps_its_axes(self, tmp_path: Path) -> None:
        """A 2D patch is a volume of one slice, with one channel or several."""
        for channels in (1, 3):
            array = np.ones((channels, 6, 5, 1), np.float32)
            assert read_map(write_map(tmp_path / "a.nii.gz", array, AFFINE)).shape == array.shape

    def test_file_is_readable_by_nibabel(self, tmp_path: Path, maps: np.ndarray) -> None:
        """Channels are last, values float32, the affine that of the input, and the header has no text."""
        image: Any = nib.load(write_map(tmp_path / "a.nii.gz", maps, AFFINE))
        assert image.shape == (7, 5, 4, 2) and image.get_data_dtype() == np.float32
        assert np.allclose(image.affine, AFFINE)
        assert np.array_equal(np.asarray(image.dataobj)[..., 1], maps[1])
        texts = (image.header[name].item() for name in ("descrip", "aux_file", "intent_name", "db_name"))
        assert not any(texts)

    def test_equal_maps_give_equal_bytes(self, tmp_path: Path, maps: np.ndarray) -> None:
        """Files contain neither their name nor the time."""
        one, two = (write_map(tmp_path / f"{name}.nii.gz", maps, AFFINE) for name in "ab")
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes()[4:8] == bytes(4)  # gzip's time of modification

    def test_number_of_names_must_equal_number_of_channels(self, maps: np.ndarray) -> None:
        """One name for two channels raises."""
        with pytest.raises(OutOfRange, match=r"names == channels must hold for a map, got \['T2w'\] for 2 channels"):
            with_channels(maps, ("T2w",))

    def test_two_dimensional_map_raises(self, tmp_path: Path) -> None:
        """The message shows the shape."""
        with pytest.raises(OutOfRange, match=r"the axes \(C, X, Y, Z\) or \(X, Y, Z\), none empty; got \(3, 4\)"):
            write_map(tmp_path / "a.nii.gz", np.ones((3, 4)), AFFINE)

    def test_five_dimensional_file_raises(self, tmp_path: Path) -> None:
        """A map has three or four dimensions."""
        path = tmp_path / "five.nii.gz"
        nib.Nifti1Image(np.ones((2, 2, 2, 2, 2), np.float32), RAS).to_filename(path)
        with pytest.raises(ImageError, match=r"\[dimensions\].*\(2, 2, 2, 2, 2\)"):
            read_map(path)


class TestStored:
    """Reading maps by the record of a cell."""

    def test_maps_are_read_by_sample(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray
    ) -> None:
        """Values are exact, samples are sorted, and other files are ignored."""
        given = {"sub-01": maps, "sub-02_ses-1": maps + 1}
        record = explained(given)
        found = read_maps(store, record)
        assert list(found) == ["sub-01", "sub-02_ses-1"]
        assert all(np.array_equal(found[name], given[name]) for name in given)
        assert stored_samples(store, record) == ("sub-01", "sub-02_ses-1")

    def test_maps_of_pictures_are_read(self, store: Store, explained: Callable[..., CellRecord]) -> None:
        """They have no affine and are stored as arrays, (C, H, W)."""
        given = {"a": np.ones((3, 5, 7), np.float32), "b": np.zeros((3, 5, 7), np.float32)}
        record = explained(given, pictures=True)
        found = read_maps(store, record)
        assert list(found) == ["a", "b"] and all(np.array_equal(found[name], given[name]) for name in given)
        assert stored_samples(store, record) == ("a", "b")

    @pytest.mark.parametrize(("output", "added"), [("", 0), ("age", 0), ("hair:red, dark", 1), ("gate", 2)])
    @pytest.mark.parametrize("pictures", [False, True])
    def test_each_explained_scalar_has_its_map(
        self, store: Store, explained: Callable[..., CellRecord], output: str, added: int, pictures: bool
    ) -> None:
        """The first is the default; each sample is listed once."""
        given = {"sub-01,b": np.ones((1, 3, 2) if pictures else (1, 3, 2, 2), np.float32)}
        record = explained(given, outputs=("age", "hair:red, dark", "gate"), pictures=pictures)
        found = read_maps(store, record, output=output)
        assert list(found) == ["sub-01,b"] and np.array_equal(found["sub-01,b"], given["sub-01,b"] + added)
        assert stored_samples(store, record) == ("sub-01,b",)

    def test_unknown_scalar_raises(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """The message lists the explained scalars."""
        record = explained({"sub-01": maps}, outputs=("age", "sex"))
        with pytest.raises(UnknownName, match=r"no explained scalar of abc is named 'aeg'\. Near: age\. All: age, sex"):
            read_maps(store, record, output="aeg")

    def test_selected_samples_are_read(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray
    ) -> None:
        """Samples without a map are left out."""
        record = explained({"sub-01": maps, "sub-02": maps})
        assert list(read_maps(store, record, ["sub-02", "sub-09"])) == ["sub-02"]

    def test_cell_without_maps(self, store: Store, tmp_path: Path) -> None:
        """The result is empty if the record lists no maps."""
        assert read_maps(store, CellRecord("abc", "explain", "done", "conf", 0, 0)) == {}

    def test_changed_file_raises(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """A map that changed since it was written is not used."""
        record = explained({"sub-01": maps})
        (store.folder("explain", "abc") / map_name("sub-01")).write_bytes(b"other")
        with pytest.raises(StoreError, match="is missing or has changed"):
            read_maps(store, record)

    @pytest.mark.parametrize("sample", ["patient 7/slide 3.png", "../up", "ß", "map_.nii.gz"])
    def test_any_id_is_a_valid_file_name(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray, sample: str
    ) -> None:
        """Ids with special characters are encoded and decoded."""
        assert "/" not in map_name(sample)
        assert list(read_maps(store, explained({sample: maps}))) == [sample]


class TestGroup:
    """Mean map over subjects."""

    def test_mean_of_subjects(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """Each subject has the same weight, regardless of its seeds and sessions."""
        records = [
            explained({"sub-01": maps, "sub-02": 2 * maps}, identity="a"),
            explained({"sub-01": 4 * maps}, identity="b"),
            explained({"sub-02_ses-2": 6 * maps}, identity="c"),
        ]
        names = ("sub-01", "sub-02", "sub-02_ses-2")
        found = group_map(store, records, dict.fromkeys(names, AFFINE), {name: name[:6] for name in names})
        assert found.values is not None and found.values.dtype == np.float32
        assert np.allclose(found.values, ((1 + 4) / 2 + (2 + 6) / 2) / 2 * maps, rtol=1e-6)
        assert (found.subjects, found.reason) == (2, "") and np.array_equal(found.affine, AFFINE)

    def test_different_shapes_have_no_mean(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray
    ) -> None:
        """The reason names both shapes."""
        record = explained({"sub-01": maps, "sub-02": maps[:, :6]})
        found = self.of_two(store, record)
        assert found.values is None
        assert found.reason == "no common grid: sub-01 has the shape (2, 7, 5, 4), sub-02 (2, 6, 5, 4)"

    def test_different_affines_have_no_mean(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray
    ) -> None:
        """Equal shapes with different affines are not a common grid."""
        moved = AFFINE + np.diag([0, 0, 0.01, 0])
        found = self.of_two(store, explained({"sub-01": maps, "sub-02": maps}), second=moved)
        assert found.values is None and found.reason == "no common grid: sub-01 and sub-02 have different affines"

    def test_no_cells_have_no_mean(self, store: Store) -> None:
        """The reason says that there are no maps."""
        assert group_map(store, [], {}, {}).reason == "no maps"

    @staticmethod
    def of_two(store: Store, record: CellRecord, second: np.ndarray = AFFINE) -> GroupMap:
        names = {"sub-01": "sub-01", "sub-02": "sub-02"}
        return group_map(store, [record], {"sub-01": AFFINE, "sub-02": second}, names)


class TestSums:
    """Sums of maps, stored in half precision."""

    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 7e4, 1e30])
    def test_relative_error_is_that_of_half_precision(self, tmp_path: Path, size: float) -> None:
        """Each block and output has its own scale, so that small sums beside large ones keep their precision."""
        sums = np.random.default_rng(0).normal(size=(2, 3, 1, 6, 5, 4)).astype(np.float32)
        sums *= np.array([[size, 1.0, 1e3 * size], [1.0, size, 1e-3]]).reshape(2, 3, 1, 1, 1, 1).astype(np.float32)
        found = read_sums(write_sums(tmp_path / "sums.npz", sums))
        assert found.dtype == np.float32 and found.shape == sums.shape
        assert np.all(np.abs(found - sums) <= 2.0**-11 * np.abs(sums))

    def test_zeros_and_equal_values_are_preserved(self, tmp_path: Path) -> None:
        """Maps of zeros stay zero, and equal values stay equal."""
        sums = np.zeros((2, 1, 1, 3, 3, 3), dtype=np.float32)
        sums[1, 0, 0, :2] = np.float32(1 / 3)
        found = read_sums(write_sums(tmp_path / "sums.npz", sums))
        assert not found[0].any() and np.array_equal(found != 0, sums != 0) and len(np.unique(found)) == 2

    def test_half_precision_halves_the_file_size_of_noise(self, tmp_path: Path) -> None:
        """Noisy maps such as those of GradientSHAP do not compress well."""
        sums = np.random.default_rng(0).normal(size=(1, 1, 1, 60, 60, 60)).astype(np.float32)
        np.savez_compressed(tmp_path / "single.npz", sums=sums)
        half = write_sums(tmp_path / "sums.npz", sums).stat().st_size
        assert half < 0.55 * (tmp_path / "single.npz").stat().st_size
