"""Maps as files: exact, deterministic, found again by the record, and pictures that show what is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from harness.core.errors import OutOfRange, StoreError
from harness.data.maps import (
    GroupMap,
    group_map,
    map_name,
    preview_name,
    read_map,
    read_maps,
    read_sums,
    stored_samples,
    write_map,
    write_preview,
    write_sums,
)
from harness.data.nifti import ImageError, write
from harness.storage.store import CellRecord, Store, write_record

AFFINE = np.array([[0.0, -1.5, 0, 3], [1.2, 0, 0, -5], [0, 0, 2.0, 7], [0, 0, 0, 1]])
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
RED, BLUE, YELLOW = "red", "blue", "yellow"


@pytest.fixture
def maps() -> np.ndarray:
    """Two channels of noise, not a cube."""
    return np.random.default_rng(3).normal(size=(2, 7, 5, 4)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def explained(store: Store, tmp_path: Path) -> Callable[..., CellRecord]:
    """Commit an explain cell with the given maps."""

    def make(maps: dict[str, np.ndarray], *, identity: str = "abc", archive: bool = False) -> CellRecord:
        folder = tmp_path / f"cell-{identity}"
        folder.mkdir()
        if archive:
            np.savez_compressed(folder / "maps.npz", **maps)  # type: ignore[arg-type]
        for sample, one in () if archive else maps.items():
            write_map(folder / map_name(sample), one, AFFINE)
            (folder / preview_name(sample)).write_bytes(b"a picture")
        record = CellRecord(identity, "explain", "done", "conf", 0, 0, "saliency")
        write_record(folder, record)
        return store.commit(folder)

    return make


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) of a picture."""
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(path: Path, colour: str, *, without_bar: bool = True) -> np.ndarray:
    """Where a picture shows a strong red, a strong blue or the yellow of the outline, (H, W) bool."""
    rgb = pixels(path)[:, :-74] if without_bar else pixels(path)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return {
        RED: (red > green + 90) & (red > blue + 70),
        BLUE: (blue > red + 90) & (blue > green + 40),
        YELLOW: (red > 200) & (green > 190) & (blue < 110),
    }[colour]


class TestFiles:
    """Writing and reading."""

    @pytest.mark.parametrize("channels", [1, 2])
    def test_round_trip_is_exact(self, tmp_path: Path, maps: np.ndarray, channels: int) -> None:
        """Every bit of every channel comes back, in order."""
        path = write_map(tmp_path / "a.nii.gz", maps[:channels], AFFINE)
        found = read_map(path)
        assert found.dtype == np.float32 and np.array_equal(found, maps[:channels])

    def test_volume_is_one_channel(self, tmp_path: Path, maps: np.ndarray) -> None:
        """A map without an axis of channels has one."""
        assert read_map(write_map(tmp_path / "a.nii.gz", maps[0], AFFINE)).shape == (1, 7, 5, 4)

    def test_flat_grid_keeps_its_axes(self, tmp_path: Path) -> None:
        """A 2D patch is a volume of one slice, also with one channel."""
        for channels in (1, 3):
            array = np.ones((channels, 6, 5, 1), np.float32)
            assert read_map(write_map(tmp_path / "a.nii.gz", array, AFFINE)).shape == array.shape

    def test_file_is_what_viewers_expect(self, tmp_path: Path, maps: np.ndarray) -> None:
        """nibabel reads channels last, float32, in the input's affine, with their names."""
        image: Any = nib.load(write_map(tmp_path / "a.nii.gz", maps, AFFINE, channels=("T2w", "FLAIR")))
        assert image.shape == (7, 5, 4, 2) and image.get_data_dtype() == np.float32
        assert np.allclose(image.affine, AFFINE)
        assert np.array_equal(np.asarray(image.dataobj)[..., 1], maps[1])
        assert bytes(image.header["descrip"]).rstrip(b"\0") == b"T2w, FLAIR"

    def test_equal_maps_are_equal_bytes(self, tmp_path: Path, maps: np.ndarray) -> None:
        """Neither the name nor the clock is in the file."""
        one, two = (write_map(tmp_path / f"{name}.nii.gz", maps, AFFINE) for name in "ab")
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes()[4:8] == bytes(4)  # gzip's time of modification

    def test_as_many_names_as_channels(self, tmp_path: Path, maps: np.ndarray) -> None:
        """A name too few is refused."""
        with pytest.raises(OutOfRange, match=r"names == channels must hold for a map, got \['T2w'\] for 2 channels"):
            write_map(tmp_path / "a.nii.gz", maps, AFFINE, channels=("T2w",))

    def test_a_plane_is_no_map(self, tmp_path: Path) -> None:
        """Two axes are refused with what came."""
        with pytest.raises(OutOfRange, match=r"the axes \(C, X, Y, Z\) or \(X, Y, Z\), none empty; got \(3, 4\)"):
            write_map(tmp_path / "a.nii.gz", np.ones((3, 4)), AFFINE)

    def test_other_axes_are_refused(self, tmp_path: Path) -> None:
        """A file of five axes is no map."""
        path = tmp_path / "five.nii.gz"
        nib.Nifti1Image(np.ones((2, 2, 2, 2, 2), np.float32), RAS).to_filename(path)
        with pytest.raises(ImageError, match=r"\[dimensions\].*\(2, 2, 2, 2, 2\)"):
            read_map(path)


class TestStored:
    """Finding maps by a cell's record."""

    @pytest.mark.parametrize("archive", [False, True])
    def test_maps_come_back_by_sample(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray, archive: bool
    ) -> None:
        """From files of their own and from the archive of older stores; pictures are not maps."""
        given = {"sub-01": maps, "sub-02_ses-1": maps + 1}
        record = explained(given, archive=archive)
        found = read_maps(store, record)
        assert list(found) == ["sub-01", "sub-02_ses-1"]
        assert all(np.array_equal(found[name], given[name]) for name in given)
        assert stored_samples(store, record) == ("sub-01", "sub-02_ses-1")

    @pytest.mark.parametrize("archive", [False, True])
    def test_some_samples(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray, archive: bool
    ) -> None:
        """Only what is asked for is read, and what is not there is left out."""
        record = explained({"sub-01": maps, "sub-02": maps}, archive=archive)
        assert list(read_maps(store, record, ["sub-02", "sub-09"])) == ["sub-02"]

    def test_cell_without_maps(self, store: Store, tmp_path: Path) -> None:
        """A record that lists none gives none."""
        assert read_maps(store, CellRecord("abc", "explain", "done", "conf", 0, 0)) == {}

    def test_damage_is_told(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """A map that changed since it was written is refused."""
        record = explained({"sub-01": maps})
        (store.folder("explain", "abc") / map_name("sub-01")).write_bytes(b"other")
        with pytest.raises(StoreError, match="is missing or has changed"):
            read_maps(store, record)

    @pytest.mark.parametrize("sample", ["patient 7/slide 3.png", "../up", "ß", "map_.nii.gz"])
    def test_any_id_is_a_plain_name(
        self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray, sample: str
    ) -> None:
        """Ids that are no file names survive the way to the store and back."""
        assert "/" not in map_name(sample)
        assert list(read_maps(store, explained({sample: maps}))) == [sample]

    def test_picture_lies_beside_the_map(self) -> None:
        """Both names differ in their end."""
        assert (map_name("sub-01"), preview_name("sub-01")) == ("map_sub-01.nii.gz", "map_sub-01.png")


class TestGroup:
    """The mean map of a configuration and attribution."""

    def test_mean_of_subjects(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """By hand: each subject counts once, however many seeds and sessions it has."""
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

    def test_shapes_differ(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """No mean, and the reason names both."""
        record = explained({"sub-01": maps, "sub-02": maps[:, :6]})
        found = self.of_two(store, record)
        assert found.values is None
        assert found.reason == "no common grid: sub-01 has the shape (2, 7, 5, 4), sub-02 (2, 6, 5, 4)"

    def test_affines_differ(self, store: Store, explained: Callable[..., CellRecord], maps: np.ndarray) -> None:
        """Equal shapes at different places are no common grid."""
        moved = AFFINE + np.diag([0, 0, 0.01, 0])
        found = self.of_two(store, explained({"sub-01": maps, "sub-02": maps}), second=moved)
        assert found.values is None and found.reason == "no common grid: sub-01 and sub-02 have different affines"

    def test_nothing(self, store: Store) -> None:
        """Without cells there is no mean."""
        assert group_map(store, [], {}, {}).reason == "no maps"

    @staticmethod
    def of_two(store: Store, record: CellRecord, second: np.ndarray = AFFINE) -> GroupMap:
        names = {"sub-01": "sub-01", "sub-02": "sub-02"}
        return group_map(store, [record], {"sub-01": AFFINE, "sub-02": second}, names)


@pytest.fixture
def bump() -> dict[str, Any]:
    """One strong voxel to the right, in front and at the top of a grey ellipsoid; RAS+."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in (30, 34, 26)], indexing="ij"))
    brain = np.where((grid**2).sum(axis=0) < 0.9, 1.0 + 0.3 * grid[0], 0.0).astype(np.float32)
    values = np.zeros((1, 30, 34, 26), np.float32)
    values[0, 22:25, 26:29, 18:21] = 2.0
    truth = values[0] > 0
    return {"array": values, "affine": RAS, "background": brain, "outline": truth, "channels": ("T2w",)}


class TestPreview:
    """What the picture shows."""

    def test_strong_voxels_are_seen_where_they_are(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """To the right and the front in the axial plane, the first."""
        found = coloured(write_preview(tmp_path / "a.png", **bump), RED)
        third = found.shape[1] // 3
        rows, columns = np.nonzero(found[:, :third])
        assert columns.size and columns.mean() > third * 0.6
        assert rows.mean() < found.shape[0] * 0.5

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_orientation_comes_from_the_affine(self, tmp_path: Path, bump: dict[str, Any], axis: int) -> None:
        """The same head stored the other way round gives the same picture."""
        turned = {
            **bump,
            "array": np.flip(bump["array"], axis + 1),
            **{name: np.flip(bump[name], axis) for name in ("background", "outline")},
            "affine": RAS.copy(),
        }
        turned["affine"][axis, axis] = -1
        turned["affine"][axis, 3] = bump["outline"].shape[axis] - 1
        one, two = write_preview(tmp_path / "a.png", **bump), write_preview(tmp_path / "b.png", **turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_axes_may_be_stored_in_another_order(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """A sagittal acquisition gives the same picture."""
        turned = {
            **bump,
            "array": np.moveaxis(bump["array"], 1, 3),
            **{name: np.moveaxis(bump[name], 0, 2) for name in ("background", "outline")},
            "affine": RAS[:, [1, 2, 0, 3]],
        }
        one, two = write_preview(tmp_path / "a.png", **bump), write_preview(tmp_path / "b.png", **turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_evidence_against_is_blue(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """The scale is centred at zero: the sign is the colour."""
        path = write_preview(tmp_path / "a.png", **{**bump, "array": -bump["array"]})
        assert coloured(path, BLUE).any() and not coloured(path, RED).any()

    def test_truth_is_outlined(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """In every plane; without a truth there is no line."""
        path = write_preview(tmp_path / "a.png", **bump)
        parts = np.array_split(coloured(path, YELLOW), 3, axis=1)
        assert all(part.any() for part in parts)
        assert not coloured(write_preview(tmp_path / "b.png", **{**bump, "outline": None}), YELLOW).any()

    def test_one_weak_voxel_among_many_is_not_lost(self, tmp_path: Path) -> None:
        """Where several voxels share a pixel, the strongest is drawn."""
        values = np.zeros((1, 900, 40, 9), np.float32)
        values[0, 451, 20, 4] = 1.0
        found = coloured(write_preview(tmp_path / "a.png", values, RAS), RED)
        assert found.any()

    def test_each_channel_has_a_row(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """Two channels make the picture higher, and each shows its own strongest voxel."""
        both = np.concatenate([bump["array"], -bump["array"]])
        one = write_preview(tmp_path / "a.png", **bump)
        two = write_preview(tmp_path / "b.png", **{**bump, "array": both, "channels": ("T2w", "FLAIR")})
        assert pixels(two).shape[0] > 1.7 * pixels(one).shape[0]
        upper, lower = np.array_split(coloured(two, RED), 2)
        assert upper.any() and not lower.any()

    def test_equal_input_is_equal_bytes_in_another_process(self, tmp_path: Path) -> None:
        """Nothing of the time or the process is in the picture."""
        script = (
            "import sys, numpy as np; from pathlib import Path; from harness.data.maps import write_preview;"
            "write_preview(Path(sys.argv[1]), np.random.default_rng(0).normal(size=(2, 9, 8, 7)), np.eye(4), title='x')"
        )
        subprocess.run([sys.executable, "-c", script, tmp_path / "a.png"], check=True)
        values = np.random.default_rng(0).normal(size=(2, 9, 8, 7))
        here = write_preview(tmp_path / "b.png", values, np.eye(4), title="x")
        assert here.read_bytes() == (tmp_path / "a.png").read_bytes()

    def test_noise_on_three_channels_is_small(self, tmp_path: Path) -> None:
        """A picture of noise over noise, the worst there is, stays far below a megabyte's tenth."""
        rng = np.random.default_rng(0)
        values = rng.normal(size=(3, 64, 64, 32)).astype(np.float32)
        path = write_preview(tmp_path / "a.png", values, RAS, background=rng.normal(size=(64, 64, 32)))
        assert path.stat().st_size < 60_000

    @pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
    def test_constant_map_shows_the_centre(self, tmp_path: Path, bump: dict[str, Any], value: float) -> None:
        """No voxel is the strongest: the plane through the truth is shown, so its outline is there."""
        path = write_preview(tmp_path / "a.png", **{**bump, "array": np.full((1, 30, 34, 26), value)})
        assert all(part.any() for part in np.array_split(coloured(path, YELLOW), 3, axis=1))

    def test_patch_is_one_plane(self, tmp_path: Path) -> None:
        """A volume of one slice has no other planes to show."""
        flat = pixels(write_preview(tmp_path / "a.png", np.ones((1, 40, 40, 1)), RAS))
        full = pixels(write_preview(tmp_path / "b.png", np.ones((1, 40, 40, 40)), RAS))
        assert flat.shape[1] < 0.7 * full.shape[1]

    def test_another_grid_is_refused(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """A background that does not lie under the map would show a false place."""
        with pytest.raises(OutOfRange, match=r"background and map must be on one grid, got \(29, 34, 26\) and"):
            write_preview(tmp_path / "a.png", **{**bump, "background": bump["background"][1:]})

    def test_nothing_but_the_picture_is_left(self, tmp_path: Path, bump: dict[str, Any]) -> None:
        """No half-written file lies beside it."""
        path = write_preview(tmp_path / "new" / "a.png", **bump)
        assert list(path.parent.iterdir()) == [path]


def test_description_is_cut_to_what_the_header_holds(tmp_path: Path) -> None:
    """A hundred channels are still a file."""
    path = write(tmp_path / "a.nii.gz", np.ones((2, 2, 2)), RAS, description="é" * 60)
    image: Any = nib.load(path)
    assert bytes(image.header["descrip"]).startswith("é".encode())


class TestSums:
    """Sums of maps, in half precision."""

    @pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 7e4, 1e30])
    def test_hold_eleven_bits_at_any_size(self, tmp_path: Path, size: float) -> None:
        """Each block and output by its own scale: a small one beside a large one loses nothing."""
        sums = np.random.default_rng(0).normal(size=(2, 3, 1, 6, 5, 4)).astype(np.float32)
        sums *= np.array([[size, 1.0, 1e3 * size], [1.0, size, 1e-3]]).reshape(2, 3, 1, 1, 1, 1).astype(np.float32)
        found = read_sums(write_sums(tmp_path / "sums.npz", sums))
        assert found.dtype == np.float32 and found.shape == sums.shape
        assert np.all(np.abs(found - sums) <= 2.0**-11 * np.abs(sums))

    def test_zeros_and_equal_values_stay_what_they_are(self, tmp_path: Path) -> None:
        """A map of zeros has no largest value; windows of equal effect stay a plateau."""
        sums = np.zeros((2, 1, 1, 3, 3, 3), dtype=np.float32)
        sums[1, 0, 0, :2] = np.float32(1 / 3)
        found = read_sums(write_sums(tmp_path / "sums.npz", sums))
        assert not found[0].any() and np.array_equal(found != 0, sums != 0) and len(np.unique(found)) == 2

    def test_of_an_older_store_are_read(self, tmp_path: Path) -> None:
        """They were kept in single precision."""
        sums = np.random.default_rng(0).normal(size=(1, 1, 1, 2, 2, 2)).astype(np.float32)
        np.savez_compressed(tmp_path / "sums.npz", sums=sums)
        assert np.array_equal(read_sums(tmp_path / "sums.npz"), sums)

    def test_noise_takes_half_the_disk(self, tmp_path: Path) -> None:
        """What random maps and GradientSHAP leave does not compress."""
        sums = np.random.default_rng(0).normal(size=(1, 1, 1, 60, 60, 60)).astype(np.float32)
        np.savez_compressed(tmp_path / "single.npz", sums=sums)
        half = write_sums(tmp_path / "sums.npz", sums).stat().st_size
        assert half < 0.55 * (tmp_path / "single.npz").stat().st_size
