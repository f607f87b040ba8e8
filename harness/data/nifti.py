"""Read and write NIfTI images.

Axes are ordered (X, Y, Z) as stored; the affine maps voxel indices to world coordinates in
mm, RAS+. nibabel decodes the bytes, but its silent repairs of headers are off, so that errors
in a file stay visible.
"""

from __future__ import annotations

import errno
import gzip
import math
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from harness.core.errors import HarnessError
from harness.core.types import Array
from harness.storage.files import replace_file

__all__ = ["Header", "IMAGE_FAULTS", "ImageError", "header", "load", "read", "write"]

_GZIP_MAGIC = b"\x1f\x8b"
_PLACEHOLDERS = (b"version https://git-lfs", b"/annex/objects/")  # texts in place of files that were not fetched
_HEADER_BYTES = 540  # the larger of the two NIfTI headers
_MOST_AFTER = 2**20  # bytes behind the last voxel that padding explains
_DEFLATE_RATIO = 1032  # the largest of the DEFLATE format
_MOST_VOXELS = 2**31  # 8 GB in single precision; a whole brain at 0.1 mm has fewer
_LONGEST_QUATERNION = 1.001  # square of its imaginary part; rounding stays far below

IMAGE_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "broken-symlink": "a link points to a file that does not exist (the data set was not fetched)",
        "corrupt-gzip": "the compressed stream is damaged",
        "datatype": "the voxels are not real numbers (colour, complex)",
        "dimensions": "the image is not one three-dimensional volume",
        "empty-file": "the file has no bytes",
        "inflated": "the compressed stream holds far more bytes than the header describes",
        "missing-file": "the file does not exist",
        "not-a-file": "the path is a folder, a pipe or a device",
        "not-nifti": "the content is not a single-file NIfTI-1 or NIfTI-2 image",
        "placeholder": "a text of git-annex or git-lfs stands for the image, which was not fetched",
        "permission": "this user has no permission to read the file",
        "too-large": "the header describes more voxels than a volume has",
        "truncated": "the file ends before its last voxel",
        "unreadable": "the operating system cannot read the file",
        "voxel-offset": "the header says that the voxels start inside the header, or at no whole byte",
        "wrong-extension": "the name ends in .gz and the content is not compressed, or the reverse",
    }
)


class ImageError(HarnessError):
    """A file that cannot be read as a volume.

    Parameters
    ----------
    kind : one of :data:`IMAGE_FAULTS`
    path : the file
    value : what was found
    expected : what must hold
    remedy : what the user can do next
    """

    def __init__(self, kind: str, path: Path, value: str, expected: str, remedy: str) -> None:
        self.kind, self.path, self.value, self.expected, self.remedy = kind, path, value, expected, remedy
        super().__init__(f"[{kind}] {path}: {value}; expected {expected}. {remedy}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, Path, str, str, str]]:
        return type(self), (self.kind, self.path, self.value, self.expected, self.remedy)


@dataclass(frozen=True)
class Header:
    """Contents of a NIfTI header, without repairs.

    Parameters
    ----------
    shape : axis lengths; trailing axes of length one beyond the third are dropped
    affine : (4, 4) float64, voxel to world; sform before qform; NaN if it cannot be computed.
        A qform is computed as in the NIfTI library (ITK, FSL, ANTs)
    spacing_mm : (3,) voxel size along X, Y, Z as stored in ``pixdim``, whatever the units
    orientation : direction in which each axis grows, e.g. ``("L", "A", "S")``; ``"?"`` if undefined
    units : ``"mm"``, ``"meter"``, ``"micron"`` or ``"unknown"``
    dtype : stored number type
    qform, sform : (4, 4) float64 or ``None`` if the code is zero; NaN if it cannot be computed
    qform_code, sform_code : target space of the transforms (0 unknown, 1 scanner, 2 aligned, 3 Talairach, 4 MNI)
    """

    shape: tuple[int, ...]
    affine: Array
    spacing_mm: tuple[float, ...]
    orientation: tuple[str, ...]
    units: str
    dtype: np.dtype[Any]
    qform: Array | None
    sform: Array | None
    qform_code: int
    sform_code: int


def read(path: str | Path) -> tuple[Array, Array]:
    """Read one volume.

    Parameters
    ----------
    path : ``.nii`` or ``.nii.gz``

    Returns
    -------
    array : (X, Y, Z) float32, scaled by the header's slope and intercept
    affine : (4, 4) float64, voxel to world in mm

    Raises
    ------
    ImageError
        If the file cannot be read, or is not one three-dimensional volume.
    """
    path = Path(path)
    facts, array = load(path)
    if len(facts.shape) != 3:
        raise dimensions_error(path, facts.shape)
    with np.errstate(over="ignore"):  # values that single precision cannot hold become infinite, which is a fault
        return np.asarray(array, dtype=np.float32), facts.affine


def header(path: str | Path) -> Header:
    """Read the header only; of a compressed file, only the beginning is decompressed.

    Raises
    ------
    ImageError
        If the file cannot be read or has no NIfTI header.
    """
    path = Path(path)
    return _facts(_parse(_content(path, limit=_HEADER_BYTES), path), path)


def load(path: str | Path) -> tuple[Header, Array]:
    """Read header and voxels, in the stored number type if the header defines no scaling.

    Returns
    -------
    header : see :class:`Header`
    array : of shape ``header.shape``, any number of axes

    Raises
    ------
    ImageError
        If the file cannot be read.

    Notes
    -----
    The header is read first, and no more is decompressed than it describes: a few
    kilobytes can be compressed terabytes.
    """
    path = Path(path)
    stored = _checked_name(path, _stored(path, limit=None))
    compressed = stored[:2] == _GZIP_MAGIC
    raw = _parse(_decompressed(stored, path, _HEADER_BYTES) if compressed else stored, path)
    facts = _facts(raw, path)
    needed = _length_of(raw, facts, path)
    if needed > len(stored) * (_DEFLATE_RATIO if compressed else 1):
        value = f"{len(stored)} compressed bytes" if compressed else f"{len(stored)} bytes"
        raise _truncated(path, value, _described(needed, facts))
    _check_size(facts, path)
    content = _decompressed(stored, path, None, most=needed + _MOST_AFTER) if compressed else stored
    if len(content) < needed:
        raise _truncated(path, f"{len(content)} bytes", _described(needed, facts))
    try:
        with np.errstate(all="ignore"):  # of the header's slope
            array = np.asarray(raw.data_from_fileobj(BytesIO(content)))
    except (ValueError, OSError, OverflowError, MemoryError, nib.spatialimages.HeaderDataError) as error:
        raise _not_nifti(path, f"the voxels cannot be decoded ({error})") from error
    return facts, array.reshape(facts.shape)


def write(
    path: str | Path,
    array: Array,
    affine: Array,
    *,
    dtype: npt.DTypeLike | None = None,
    like: Header | None = None,
) -> Path:
    """Write one volume; the file appears complete or not at all.

    The same array and affine give the same bytes, whenever and wherever they are written. The
    header has the grid and the number type; its free texts are empty.

    Parameters
    ----------
    path : ends in ``.nii`` or ``.nii.gz``; missing folders are created
    array : (X, Y, Z) or (X, Y, Z, N) numbers
    affine : (4, 4) voxel to world in mm, RAS+
    dtype : number type in the file; by default uint8 for bool, float32 for floating point, and the
        array's own otherwise (int32 for 64-bit integers). Rounded if it is an integer type.
    like : header of an image on the same grid, whose qform and sform codes are copied;
        by default, the codes are those of scanner space

    Raises
    ------
    HarnessError
        If the name or the shape is invalid, the affine cannot be inverted, or values do not
        fit the number type.
    """
    path = Path(path)
    values = _converted(np.asarray(array), np.dtype(dtype) if dtype is not None else None, path)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.all(np.isfinite(affine)) or np.linalg.det(affine[:3, :3]) == 0:
        raise HarnessError(f"{path}: the affine must be an invertible (4, 4) matrix, got {affine.tolist()}")
    codes = (like.qform_code, like.sform_code) if like is not None and like.qform_code + like.sform_code else (1, 1)
    content = _encoded(values, affine, codes)
    if path.name.endswith(".nii.gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    elif path.suffix != ".nii":
        raise HarnessError(f"{path}: the name must end in .nii or .nii.gz")
    replace_file(path, content, durable=False)
    return path


def dimensions_error(path: Path, shape: tuple[int, ...]) -> ImageError:
    """The error for an image that is not one volume."""
    return ImageError(
        "dimensions",
        path,
        f"the shape is {shape}",
        "one volume (X, Y, Z)",
        "Save one volume of the series as a file of its own.",
    )


def _content(path: Path, *, limit: int) -> bytes:
    """The first ``limit`` decompressed bytes of a file, or more."""
    stored = _checked_name(path, _stored(path, limit=64 * limit))
    return _decompressed(stored, path, limit) if stored[:2] == _GZIP_MAGIC else stored


def _checked_name(path: Path, stored: bytes) -> bytes:
    """The stored bytes, which must be compressed as the name says."""
    if not stored:
        raise ImageError("empty-file", path, "0 bytes", "a NIfTI image", "Copy the file again from its source.")
    if stored.startswith(_PLACEHOLDERS):
        raise ImageError(
            "placeholder",
            path,
            f"a text that stands for the image ({stored[:40].split(maxsplit=1)[0]!r} …)",
            "the image itself",
            "Fetch the content: git annex get, datalad get, or git lfs pull.",
        )
    compressed = stored[:2] == _GZIP_MAGIC
    if compressed != path.name.endswith(".gz"):
        is_what = "compressed" if compressed else "not compressed"
        raise ImageError(
            "wrong-extension",
            path,
            f"the content is {is_what} (it starts with {stored[:4]!r})",
            ".nii.gz for compressed and .nii for plain content",
            "Rename the file, or copy it again if it is a web page or a text placeholder.",
        )
    return stored


def _stored(path: Path, *, limit: int | None) -> bytes:
    """The bytes on disk; errors of the operating system become :class:`ImageError`."""
    copy = "Copy the file again from its source."
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):  # a pipe would wait for ever
            raise ImageError("not-a-file", path, "a pipe or device", "a file", "Move it away.")
        if limit is None:
            return path.read_bytes()
        with path.open("rb") as stream:
            return stream.read(limit)
    except FileNotFoundError as error:
        if path.is_symlink():
            value = f"a link to {path.readlink()}, which is not there"
            remedy = "Fetch the content (git annex get, datalad get), or fix the link."
            raise ImageError("broken-symlink", path, value, "a link to a file", remedy) from error
        raise ImageError("missing-file", path, "there is no such file", "a NIfTI image", copy) from error
    except IsADirectoryError as error:
        raise ImageError("not-a-file", path, "a folder", "a file", "Move the folder away.") from error
    except PermissionError as error:
        remedy = "Ask its owner for access, or chmod u+r it."
        raise ImageError("permission", path, "reading is not permitted", "a readable file", remedy) from error
    except OSError as error:
        kind = "broken-symlink" if error.errno == errno.ELOOP else "unreadable"
        raise ImageError(kind, path, error.strerror or str(error), "a readable file", copy) from error


def _decompressed(stored: bytes, path: Path, limit: int | None, *, most: int = 0) -> bytes:
    """Undo gzip (several members too); a stream that stops early or fails its checksum is an error.

    Parameters
    ----------
    limit : stop after these bytes of the first member; ``None`` for all
    most : number of bytes above which a whole stream is refused
    """
    copy = "Copy the file again from its source."
    parts: list[bytes] = []
    length = 0
    while stored:
        machine = zlib.decompressobj(wbits=31)
        try:
            # zlib takes 0 for no limit, so that one byte more than allowed is asked for.
            parts.append(machine.decompress(stored, most - length + 1 if limit is None else limit))
        except zlib.error as error:
            # Bytes behind the last member are padding, and gzip itself ignores them.
            if parts and stored[:2] != _GZIP_MAGIC:
                break
            raise ImageError("corrupt-gzip", path, str(error), "an intact gzip stream", copy) from error
        if limit is not None:
            break
        length += len(parts[-1])
        if length > most:
            value = f"the compressed stream holds more than {most} bytes"
            expected = f"at most {most - _MOST_AFTER} for the voxels of the header, and 1 MiB of padding"
            raise ImageError("inflated", path, value, expected, copy)
        if not machine.eof:
            value = f"the compressed stream stops after {len(parts[-1])} decompressed bytes"
            raise ImageError("truncated", path, value, "a complete gzip stream", copy)
        stored = machine.unused_data
    return b"".join(parts)


def _parse(content: bytes, path: Path) -> nib.Nifti1Header:
    """The header as stored, without nibabel's checks, which repair it."""
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    if not sizes & {348, 540}:
        raise _not_nifti(path, f"it starts with {content[:8]!r}")
    kind: Any = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header
    length = 348 if 348 in sizes else 540
    if len(content) < length:
        raise _truncated(path, f"{len(content)} bytes", f"at least the {length} bytes of the header")
    raw: nib.Nifti1Header = kind(content[:length], check=False)
    if bytes(raw["magic"])[:3] not in (b"n+1", b"n+2"):
        raise _not_nifti(path, f"the magic word is {bytes(raw['magic'])!r}")
    return raw


def _not_nifti(path: Path, value: str) -> ImageError:
    expected = "a single-file NIfTI image"
    return ImageError("not-nifti", path, value, expected, "Convert the original again, e.g. with dcm2niix.")


def _truncated(path: Path, value: str, expected: str) -> ImageError:
    return ImageError("truncated", path, value, expected, "Copy the file again from its source.")


def _facts(raw: nib.Nifti1Header, path: Path) -> Header:
    try:
        shape = tuple(int(length) for length in raw.get_data_shape())
        dtype = np.dtype(raw.get_data_dtype())
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError) as error:
        raise _not_nifti(path, f"the header contradicts itself ({error})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    with np.errstate(all="ignore"):  # numbers near the largest; verification refuses what they give
        qform, sform = _qform(raw), _sform(raw)
        affine = sform if sform is not None else qform if qform is not None else _fallback(raw)
    return Header(
        shape=shape,
        affine=affine,
        spacing_mm=tuple(float(size) for size in raw["pixdim"][1:4]),
        orientation=orientation(affine),
        units=_units(raw),
        dtype=dtype,
        qform=qform,
        sform=sform,
        qform_code=int(raw["qform_code"]),
        sform_code=int(raw["sform_code"]),
    )


def _sform(raw: nib.Nifti1Header) -> Array | None:
    """The sform, ``None`` if its code is not positive."""
    if int(raw["sform_code"]) <= 0:
        return None
    return np.vstack([raw["srow_x"], raw["srow_y"], raw["srow_z"], [0, 0, 0, 1]]).astype(np.float64)


def _qform(raw: nib.Nifti1Header) -> Array | None:
    """The qform, ``None`` if its code is not positive; NaN if a number is not finite or the quaternion is far too long.

    As in the NIfTI library: a sign of the third axis (``pixdim[0]``) of 0 means 1, and a
    quaternion that is a little longer than 1 by rounding is a half turn.
    """
    if int(raw["qform_code"]) <= 0:
        return None
    imaginary = np.array([raw["quatern_b"], raw["quatern_c"], raw["quatern_d"]], np.float64)
    square = float(imaginary @ imaginary)
    if not square <= _LONGEST_QUATERNION:
        return np.full((4, 4), np.nan)
    real = np.sqrt(1 - square) if square < 1 - 1e-7 else 0.0
    quaternion = np.array([real, *(imaginary if real else imaginary / np.sqrt(square))])
    sizes = np.asarray(raw["pixdim"][1:4], np.float64) * [1, 1, -1 if raw["pixdim"][0] < 0 else 1]
    turn = nib.quaternions.quat2mat(quaternion) * sizes
    shift = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
    return np.asarray(nib.affines.from_matvec(turn, shift), dtype=np.float64)


def _fallback(raw: nib.Nifti1Header) -> Array:
    """The affine that NIfTI prescribes if both codes are zero: voxel sizes, centred."""
    try:
        return np.asarray(raw.get_base_affine(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError):
        return np.full((4, 4), np.nan)


def orientation(affine: Array) -> tuple[str, ...]:
    """Direction in which each axis of a grid grows, e.g. ``("L", "A", "S")``; ``"?"`` if undefined."""
    if not np.all(np.isfinite(affine)):
        return ("?", "?", "?")
    try:
        with np.errstate(all="ignore"):  # sizes near the largest number
            return tuple(code or "?" for code in nib.aff2axcodes(affine))
    except np.linalg.LinAlgError:
        return ("?", "?", "?")


def _units(raw: nib.Nifti1Header) -> str:
    known = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
    code = int(raw["xyzt_units"]) % 8
    return known.get(code, f"code {code}")


def _length_of(raw: nib.Nifti1Header, facts: Header, path: Path) -> int:
    """Bytes up to the last voxel; checked before memory is allocated, because a header can demand terabytes."""
    if any(size < 1 for size in facts.shape) or not facts.shape:
        raise dimensions_error(path, facts.shape)
    if facts.dtype.kind not in "iuf":
        raise ImageError(
            "datatype",
            path,
            f"the number type is {facts.dtype}",
            "integers or floating point",
            "Save one channel (or the magnitude) as a file of its own.",
        )
    _check_offset(raw, path)
    # Python's integers do not overflow.
    return int(raw["vox_offset"]) + facts.dtype.itemsize * math.prod(facts.shape)


def _check_size(facts: Header, path: Path) -> None:
    voxels = math.prod(facts.shape)
    if voxels > _MOST_VOXELS:
        value, expected = f"the header describes {voxels} voxels, {facts.shape}", f"at most {_MOST_VOXELS}"
        raise ImageError("too-large", path, value, expected, "Convert the original again, or crop the image.")


def _described(needed: int, facts: Header) -> str:
    return f"{needed} bytes for {facts.shape} voxels of {facts.dtype}"


def _check_offset(raw: nib.Nifti1Header, path: Path) -> None:
    """Check where the voxels start: programs read an impossible place differently (ITK at 348, nibabel not at all)."""
    offset, first = float(raw["vox_offset"]), int(raw["sizeof_hdr"]) + 4
    if np.isfinite(offset) and offset >= first and offset.is_integer():
        return
    value, expected = f"vox_offset is {offset:g}", f"a whole number of bytes, {first} or more"
    remedy = f"Convert the original again or, if the header is followed by the voxels, set vox_offset to {first}."
    raise ImageError("voxel-offset", path, value, expected, remedy)


def _converted(array: Array, dtype: np.dtype[Any] | None, path: Path) -> Array:
    if array.ndim not in (3, 4):
        raise HarnessError(f"{path}: an image must have 3 or 4 axes, got the shape {array.shape}")
    target = dtype or _default_dtype(array.dtype)
    if target.kind not in "iu" or array.dtype.kind == "b":
        return array.astype(target)
    values = np.rint(array) if array.dtype.kind == "f" else array
    limits = np.iinfo(target)
    if values.size and not (values.min() >= limits.min and values.max() <= limits.max):
        raise HarnessError(
            f"{path}: {limits.min} <= values <= {limits.max} must hold for {target}, "
            f"got {values.min()} to {values.max()}; choose a wider dtype"
        )
    return values.astype(target)


def _default_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if dtype.itemsize == 8 else dtype


def _encoded(values: Array, affine: Array, codes: tuple[int, int]) -> bytes:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    qform_code, sform_code = codes
    image.set_sform(affine, code=sform_code)
    image.set_qform(affine, code=qform_code)
    # A quaternion cannot represent shear, and a qform that disagrees is worse than none.
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(affine, code=0)
        image.set_sform(affine, code=sform_code or qform_code)
    return bytes(image.to_bytes())
