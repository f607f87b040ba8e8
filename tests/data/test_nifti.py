"""Reading and writing NIfTI files, compared with nibabel."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from harness.core.errors import HarnessError
from harness.data import nifti

AFFINE = nib.affines.from_matvec(
    np.array([[-1.5, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.75, 0.0]]), np.array([30.0, -12.5, 4.0])
)


@pytest.fixture
def volume() -> np.ndarray:
    """A small volume with three different lengths."""
    return np.random.default_rng(3).normal(50, 20, (5, 7, 4)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_written_files_are_read_by_nibabel(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    """Values and affine are preserved, compressed or not."""
    path = nifti.write(tmp_path / name, volume, AFFINE)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_scaled_integers_are_read_as_nibabel_reads_them(tmp_path: Path, volume: np.ndarray) -> None:
    """Slope and intercept of the header are applied."""
    image = nib.Nifti1Image(volume, AFFINE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled.nii.gz")
    array, affine = nifti.read(tmp_path / "scaled.nii.gz")
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, nib.load(tmp_path / "scaled.nii.gz").get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(affine, AFFINE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(tmp_path: Path, volume: np.ndarray, order: str) -> None:
    """Files may be little-endian or big-endian."""
    image = nib.Nifti1Image(volume, AFFINE, header=nib.Nifti1Header(endianness=order))
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii")[0], volume)


def test_nifti_2_is_read(tmp_path: Path, volume: np.ndarray) -> None:
    """NIfTI-2 has a longer header."""
    nib.save(nib.Nifti2Image(volume, AFFINE), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii.gz")[0], volume)
    assert nifti.header(tmp_path / "a.nii.gz").shape == volume.shape


def test_several_gzip_members_are_read(tmp_path: Path, volume: np.ndarray) -> None:
    """Parallel compressors write files of several members."""
    content = nib.Nifti1Image(volume, AFFINE).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii.gz")[0], volume)


def test_a_trailing_axis_of_length_one_is_dropped(tmp_path: Path, volume: np.ndarray) -> None:
    """(X, Y, Z, 1) is one volume."""
    path = nifti.write(tmp_path / "a.nii.gz", volume[..., None], AFFINE)
    np.testing.assert_array_equal(nifti.read(path)[0], volume)


def test_time_series_raises(tmp_path: Path, volume: np.ndarray) -> None:
    """The shape (X, Y, Z, 2) is not one volume; the message names the file."""
    path = nifti.write(tmp_path / "series.nii.gz", np.stack([volume, volume], -1), AFFINE)
    with pytest.raises(HarnessError, match=r"series\.nii\.gz: the shape is \(5, 7, 4, 2\); expected one volume"):
        nifti.read(path)


def test_header_agrees_with_nibabel(tmp_path: Path, volume: np.ndarray) -> None:
    """Shape, spacing, orientation, units, dtype and affine."""
    header = nifti.header(nifti.write(tmp_path / "a.nii.gz", volume, AFFINE))
    assert header.shape == (5, 7, 4)
    assert header.spacing_mm == pytest.approx((1.5, 0.75, 2.0))
    assert header.orientation == nib.aff2axcodes(AFFINE) == ("L", "S", "A")
    assert (header.units, header.dtype) == ("mm", np.float32)
    np.testing.assert_allclose(header.affine, AFFINE)


def test_the_header_is_read_without_the_voxels(tmp_path: Path, volume: np.ndarray) -> None:
    """A file whose voxels are missing still has a header."""
    path = tmp_path / "a.nii"
    path.write_bytes(nib.Nifti1Image(volume, AFFINE).to_bytes()[:400])
    assert nifti.header(path).shape == (5, 7, 4)
    with pytest.raises(nifti.ImageError, match=r"\[truncated\].*400 bytes; expected 912 bytes"):
        nifti.read(path)


def test_a_zero_voxel_size_is_not_repaired(tmp_path: Path, volume: np.ndarray) -> None:
    """Nibabel would set it to 1 and hide the fault."""
    path = nifti.write(tmp_path / "a.nii", volume, AFFINE)
    content = bytearray(path.read_bytes())
    content[76 + 12 : 76 + 16] = np.float32(0).tobytes()  # pixdim[3]
    path.write_bytes(content)
    assert nifti.header(path).spacing_mm == pytest.approx((1.5, 0.75, 0.0))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_bytes_are_reproducible(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    """Files contain neither the time nor their name."""
    one = nifti.write(tmp_path / name, volume, AFFINE)
    other = nifti.write(tmp_path / "elsewhere" / f"b{name}", volume, AFFINE)
    assert one.read_bytes() == other.read_bytes()
    assert name == "a.nii" or one.read_bytes()[4:8] == bytes(4)  # the time stamp of gzip


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is unchanged, and no temporary file remains."""
    path = nifti.write(tmp_path / "a.nii", volume, AFFINE)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        nifti.write(path, volume + 1, AFFINE)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize(
    ("given", "asked", "stored"),
    [
        (bool, None, np.uint8),
        (np.float64, None, np.float32),
        (np.int64, None, np.int32),
        (np.int16, None, np.int16),
        (np.float64, np.int16, np.int16),
    ],
)
def test_stored_dtype(tmp_path: Path, given: type, asked: type | None, stored: type) -> None:
    """Arrays are stored in dtypes that common software reads."""
    path = nifti.write(tmp_path / "a.nii", np.ones((2, 3, 4), dtype=given), AFFINE, dtype=asked)
    assert nifti.header(path).dtype == stored
    np.testing.assert_array_equal(nifti.read(path)[0], 1)


def test_values_are_rounded_to_integers(tmp_path: Path) -> None:
    """Truncation would bias intensities by half a unit."""
    path = nifti.write(tmp_path / "a.nii", np.full((2, 2, 2), 2.7), AFFINE, dtype=np.int16)
    np.testing.assert_array_equal(nifti.read(path)[0], 3)


@pytest.mark.parametrize("value", [300.0, np.nan])
def test_values_that_do_not_fit_are_refused(tmp_path: Path, value: float) -> None:
    """An overflow would wrap around silently."""
    with pytest.raises(HarnessError, match=r"0 <= values <= 255 must hold for uint8"):
        nifti.write(tmp_path / "a.nii", np.full((2, 2, 2), value), AFFINE, dtype=np.uint8)


def test_shear_is_stored_in_the_sform_only(tmp_path: Path, volume: np.ndarray) -> None:
    """A quaternion cannot represent shear, so that the qform is left unset."""
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.4
    header = nifti.header(nifti.write(tmp_path / "a.nii", volume, sheared))
    np.testing.assert_allclose(header.affine, sheared, rtol=1e-6)
    assert header.qform is None


@pytest.mark.parametrize(
    ("name", "affine", "message"),
    [
        ("a.nii.gz", np.zeros((4, 4)), "the affine must be an invertible"),
        ("a.nii.gz", np.full((4, 4), np.nan), "the affine must be an invertible"),
        ("a.img", AFFINE, r"must end in \.nii or \.nii\.gz"),
    ],
)
def test_invalid_affine_or_extension_raises(tmp_path: Path, name: str, affine: np.ndarray, message: str) -> None:
    """Nothing is written with a singular affine or an unknown extension."""
    with pytest.raises(HarnessError, match=message):
        nifti.write(tmp_path / name, np.zeros((2, 2, 2)), affine)
    assert not list(tmp_path.iterdir())


def test_two_dimensional_array_raises(tmp_path: Path) -> None:
    """A slice needs a third axis."""
    with pytest.raises(HarnessError, match=r"3 or 4 axes, got the shape \(2, 2\)"):
        nifti.write(tmp_path / "a.nii", np.zeros((2, 2)), AFFINE)


def test_damaged_header_does_not_allocate_memory(tmp_path: Path, volume: np.ndarray) -> None:
    """A shape larger than the file raises before memory is allocated."""
    content = bytearray(nib.Nifti1Image(volume, AFFINE).to_bytes())
    content[40:48] = np.array([3, 32767, 32767, 32767], dtype="<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(nifti.ImageError, match=r"\[truncated\]"):
        nifti.read(tmp_path / "a.nii")


def test_an_image_error_survives_pickling(tmp_path: Path) -> None:
    """Workers send their errors to the driver."""
    with pytest.raises(nifti.ImageError, match="there is no such file") as caught:
        nifti.read(tmp_path / "absent.nii")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.kind) == (str(caught.value), "missing-file")


def with_header(path: Path, image: nib.Nifti1Image, **fields: object) -> Path:
    """Save an image and change fields of its header, unchecked."""
    content = bytearray(image.to_bytes())
    kind = type(image.header)
    raw = kind(bytes(content[: kind.template_dtype.itemsize]), check=False)
    for name, value in fields.items():
        raw[name] = value
    content[: kind.template_dtype.itemsize] = raw.binaryblock
    path.write_bytes(bytes(content))
    return path


def turned(volume: np.ndarray, angle: float, *, flip: bool = False) -> nib.Nifti1Image:
    """An image with a qform only, turned about two axes."""
    turn = nib.eulerangles.euler2mat(angle, angle / 2, 0) @ np.diag([1.5, 2.0, -0.75 if flip else 0.75])
    image = nib.Nifti1Image(volume, None)
    image.set_qform(nib.affines.from_matvec(turn, [30.0, -12.5, 4.0]), code=1)
    return image


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.5, 3.0, 3.14159])
@pytest.mark.parametrize("flip", [False, True])
def test_qforms_are_those_of_nibabel(tmp_path: Path, volume: np.ndarray, angle: float, flip: bool) -> None:
    """Of sound headers, whatever the rotation."""
    image = turned(volume, angle, flip=flip)
    found = nifti.header(with_header(tmp_path / "a.nii", image))
    np.testing.assert_allclose(found.affine, image.header.get_qform(), atol=1e-6)


def by_itk(path: Path) -> np.ndarray:
    """The affine that ITK reads, in RAS+."""
    image = SimpleITK.ReadImage(str(path))
    directions = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    return np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(directions, image.GetOrigin())


@pytest.mark.parametrize("sign", [0, 1, -1])
@pytest.mark.parametrize("excess", [0, 4e-7, 1e-4])
def test_qforms_that_nibabel_refuses_are_those_of_itk(
    tmp_path: Path, volume: np.ndarray, sign: int, excess: float
) -> None:
    """A sign of 0, and quaternions a little too long."""
    sizes = [sign, 1.5, 2.0, 0.75, 1, 1, 1, 1]
    fields = {"quatern_b": 0, "quatern_c": 0.6 * (1 + excess), "quatern_d": 0.8 * (1 + excess), "qform_code": 1}
    image = nib.Nifti1Image(volume, None)
    path = with_header(tmp_path / "a.nii", image, pixdim=sizes, qoffset_x=3, qoffset_y=4, qoffset_z=5, **fields)
    np.testing.assert_allclose(nifti.header(path).affine, by_itk(path), atol=2e-3 if 0 < excess < 1e-5 else 1e-4)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("sign", [0, 0.5, 7, np.nan])
def test_an_undefined_sign_of_the_third_axis_is_positive(
    tmp_path: Path, volume: np.ndarray, kind: type[nib.Nifti1Image], sign: float
) -> None:
    """The NIfTI library takes pixdim[0] < 0 as -1 and everything else as 1; nibabel refuses other values."""
    image = kind(volume, None)
    image.set_qform(AFFINE, code=1)
    expected = image.header.get_qform()
    sizes = image.header["pixdim"].copy()
    assert sizes[0] == 1
    sizes[0] = sign
    found = nifti.header(with_header(tmp_path / "a.nii", image, pixdim=sizes))
    np.testing.assert_allclose(found.affine, expected, atol=1e-12)


@pytest.mark.parametrize("excess", [1e-7, 4e-7, 1e-6, 1e-4])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternions_a_little_too_long_are_half_turns(
    tmp_path: Path, volume: np.ndarray, excess: float, axis: int
) -> None:
    """nibabel tolerates 3.6e-7; the NIfTI library normalises."""
    turn = -np.ones(3)
    turn[axis] = 1
    image = nib.Nifti1Image(volume, None)
    image.set_qform(nib.affines.from_matvec(np.diag(turn * [1.5, 2.0, 0.75]), [3, 4, 5]), code=1)
    fields = {f"quatern_{'bcd'[axis]}": 1 + excess}
    found = nifti.header(with_header(tmp_path / "a.nii", image, **fields))
    np.testing.assert_allclose(found.affine, image.header.get_qform(), atol=1e-5)


@pytest.mark.parametrize("fields", [{"quatern_b": 1.2}, {"quatern_c": np.nan}, {"qoffset_x": np.inf}])
def test_a_qform_that_cannot_be_computed_is_not_finite(
    tmp_path: Path, volume: np.ndarray, fields: dict[str, float]
) -> None:
    """And the sform is used where there is one."""
    found = nifti.header(with_header(tmp_path / "a.nii", nib.Nifti1Image(volume, AFFINE), qform_code=1, **fields))
    assert found.qform is not None and not np.all(np.isfinite(found.qform))
    np.testing.assert_allclose(found.affine, AFFINE)


@pytest.mark.parametrize("code", [0, -1])
def test_codes_that_are_not_positive_mean_none(tmp_path: Path, volume: np.ndarray, code: int) -> None:
    """As in the NIfTI library."""
    image = turned(volume, 0.3)
    found = nifti.header(with_header(tmp_path / "a.nii", image, sform_code=code))
    assert found.sform is None and found.qform is not None


@pytest.mark.parametrize("offset", [352, 353, 360, 368, 1000])
def test_voxels_start_where_the_header_says(tmp_path: Path, volume: np.ndarray, offset: int) -> None:
    """At any whole byte behind the header, also if it is no multiple of 16, which only SPM requires."""
    image = nib.Nifti1Image(volume, AFFINE)
    content = bytearray(image.to_bytes())
    raw = nib.Nifti1Header(bytes(content[:348]), check=False)
    raw["vox_offset"] = offset
    path = tmp_path / "a.nii"
    path.write_bytes(raw.binaryblock + bytes(4) + bytes(offset - 352) + bytes(content[352:]))
    np.testing.assert_array_equal(nifti.read(path)[0], volume)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), volume)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("offset", [0, 16, 347, -352])
def test_voxels_do_not_start_inside_the_header(
    tmp_path: Path, volume: np.ndarray, kind: type[nib.Nifti1Image], offset: int
) -> None:
    """nibabel refuses the file or reads bytes of the header, and ITK reads from byte 348."""
    path = with_header(tmp_path / "a.nii", kind(volume, AFFINE), vox_offset=offset)
    with pytest.raises(
        nifti.ImageError,
        match=rf"voxel-offset.*vox_offset is {offset}; expected.* {352 if kind is nib.Nifti1Image else 544} or more",
    ):
        nifti.read(path)
    try:
        by_nibabel = np.asarray(nib.load(path).dataobj)
    except nib.spatialimages.HeaderDataError:
        return
    assert not np.array_equal(by_nibabel, volume)
    if kind is nib.Nifti2Image:
        return  # which ITK does not read
    of_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
    assert not np.array_equal(of_itk, by_nibabel)
