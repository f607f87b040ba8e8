"""Attribution maps as files: NIfTI in the input's affine, and a PNG to look at.

A cell that explains writes two files per sample, named by :func:`map_name` and
:func:`preview_name`; :func:`read_maps` finds them again by the cell's record.
Maps are ordered (C, X, Y, Z), C input channels on the sample's grid; a file has
the channels last, as NIfTI wants it.
"""

from __future__ import annotations

import io
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.data import nifti
from harness.storage.files import replace_file
from harness.storage.store import CellRecord, Store

__all__ = [
    "GroupMap",
    "group_map",
    "map_name",
    "preview_name",
    "read_map",
    "read_maps",
    "read_sums",
    "stored_samples",
    "write_map",
    "write_preview",
    "write_sums",
]

_START, _VOLUME, _PICTURE = "map_", ".nii.gz", ".npy"
_LARGEST = 15  # half precision reaches just below 2 to the 16th


def map_name(sample: str, output: str = "", *, volume: bool = True) -> str:
    """File name of a sample's map inside its cell; any id makes a plain, reversible name.

    Parameters
    ----------
    output : name of the explained scalar; empty for the first one of a cell
    volume : NIfTI for volumes, else an array for pictures
    """
    names = [urllib.parse.quote(name, safe="") for name in (sample, output) if name]
    return f"{_START}{','.join(names)}{_VOLUME if volume else _PICTURE}"


def preview_name(sample: str) -> str:
    """File name of the picture beside it."""
    return map_name(sample).removesuffix(_VOLUME) + ".png"


def write_map(path: Path, array: Array, affine: Array, *, channels: Sequence[str] = ()) -> Path:
    """Write the map of one sample; equal maps are equal bytes.

    Parameters
    ----------
    path : ends in ``.nii.gz``
    array : (C, X, Y, Z) or (X, Y, Z), stored as float32 (X, Y, Z, C), or (X, Y, Z) for one channel
    affine : (4, 4) voxel to world (mm, RAS+), of the input
    channels : names of the C channels, for the header's description, which holds 79 bytes

    Raises
    ------
    OutOfRange
        If the array has other axes, or another number of channels than names.
    """
    values = _with_channels(array, channels)
    stored = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    return nifti.write(path, stored, affine, dtype=np.float32, description=", ".join(channels))


def read_map(path: Path) -> Array:
    """The map of :func:`write_map`, (C, X, Y, Z) float32, bit for bit.

    Raises
    ------
    ImageError
        If the file cannot be read, or has not three axes or four.
    """
    facts, values = nifti.load(path)
    if len(facts.shape) not in (3, 4):
        raise nifti.dimensions_error(path, facts.shape)
    values = values[..., None] if values.ndim == 3 else values
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)


def stored_samples(store: Store, record: CellRecord) -> tuple[str, ...]:
    """Ids of the samples of which an explain cell holds maps; no map is read."""
    return tuple(sorted({_names_of(name)[0] for name in record.artifacts if _is_map(name)}))


def read_maps(
    store: Store, record: CellRecord, samples: Collection[str] | None = None, *, output: str = ""
) -> dict[str, Array]:
    """The maps of an explain cell.

    Parameters
    ----------
    samples : only these; ids that the cell does not hold are left out
    output : name of the explained scalar; empty for the first one

    Returns
    -------
    dict
        sample id → (C, X, Y, Z) float32, or (C, H, W) of pictures

    Raises
    ------
    StoreError
        If a file is not what the record says.
    """
    return dict(_stored(store, record, samples, output))


def write_sums(path: Path, sums: Array) -> Path:
    """Write sums of maps in half precision, which halves what a grid of trainings at 1 mm takes.

    Parameters
    ----------
    path : ends in ``.npz``
    sums : (B, T, C, X, Y, Z) float, finite, B blocks of subjects and T explained outputs

    Notes
    -----
    Each sum has a power of two of its own, so that values keep 11 significant bits
    (an error of 5e-4 at most) down to 4e-9 of the largest. Equal values of one sum stay equal.
    """
    axes = tuple(range(2, sums.ndim))
    _, exponent = np.frexp(np.abs(sums).max(axis=axes, keepdims=True))
    scale = np.ldexp(1.0, exponent - _LARGEST)
    halved = np.stack([(one / by).astype(np.float16) for one, by in zip(sums, scale, strict=True)])
    np.savez_compressed(path, sums=halved, scale=scale)
    return path


def read_sums(path: Path) -> Array:
    """The sums of :func:`write_sums`, (B, T, C, X, Y, Z) float32."""
    with np.load(path, allow_pickle=False) as file:
        sums: Array = np.multiply(file["sums"], file["scale"], dtype=np.float64).astype(np.float32)
        return sums


@dataclass(frozen=True)
class GroupMap:
    """The mean map of a group.

    Parameters
    ----------
    values : (C, X, Y, Z) float32, or ``None`` where there is none
    affine : (4, 4) of all its members
    subjects : how many went in
    reason : why there is none, empty if there is one
    """

    values: Array | None
    affine: Array
    subjects: int
    reason: str = ""


def group_map(
    store: Store, records: Iterable[CellRecord], affines: Mapping[str, Array], subjects: Mapping[str, str]
) -> GroupMap:
    """Mean over subjects of the means over each subject's maps (seeds, sessions), voxel by voxel.

    There is one only where all samples share one grid: the same shape and, to a
    thousandth of a millimetre, the same affine. Nothing is resampled here.

    Parameters
    ----------
    records : explain cells of one configuration and attribution
    affines : sample id → (4, 4) voxel to world
    subjects : sample id → subject

    Returns
    -------
    GroupMap
        Without values, but with the reason, where there is no map or no common grid.
    """
    records = tuple(records)
    held = [sample for record in records for sample in stored_samples(store, record)]
    if not held:
        return GroupMap(None, np.eye(4), 0, "no maps")
    first, affine = held[0], np.asarray(affines[held[0]], dtype=float)
    other = next((one for one in held if not np.allclose(affines[one], affine, rtol=0, atol=1e-3)), "")
    if other:
        return GroupMap(None, affine, 0, f"no common grid: {first} and {other} have different affines")
    counts = Counter(subjects[sample] for sample in held)
    total: Array | None = None
    # One map at a time: of hundreds at full resolution, two are enough to fill a laptop's memory budget.
    for sample, one in (pair for record in records for pair in _stored(store, record, None)):
        if total is None:
            first, total = sample, np.zeros(one.shape)
        if one.shape != total.shape:
            reason = f"no common grid: {first} has the shape {total.shape}, {sample} {one.shape}"
            return GroupMap(None, affine, 0, reason)
        total += one / (counts[subjects[sample]] * len(counts))
    return GroupMap(np.asarray(total, dtype=np.float32), affine, len(counts))


def write_preview(
    path: Path,
    array: Array,
    affine: Array,
    *,
    background: Array | None = None,
    outline: Array | None = None,
    channels: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write a picture of a map: three planes through the strongest voxel of each channel.

    Planes are axial, coronal and sagittal after turning the grid to the nearest
    RAS+ axes; the subject's right is on the right. Equal input gives equal bytes.

    Parameters
    ----------
    path : ends in ``.png``
    array : (C, X, Y, Z) or (X, Y, Z); more means more evidence
    affine : (4, 4) voxel to world (mm, RAS+)
    background : (X, Y, Z) for all channels or (C, X, Y, Z), drawn grey underneath; the picture is
        cropped to what differs from its first voxel, unless that is a small part
    outline : (X, Y, Z) bool, the truth
    channels : names of the C channels
    title : stands above

    Notes
    -----
    All channels share one colour scale, centred at zero: its end is the 99.5th
    percentile of the size of the values that are shown and not zero. Of several
    equally strong voxels the one nearest to the centre of the truth (else of the
    background, else of the grid) is shown.
    """
    values = np.nan_to_num(_with_channels(array, channels).astype(np.float32, copy=False))
    scene = _Scene.of(values, affine, background, outline)
    content = _png(*_composed(scene, list(channels) or _numbered(len(values)), title))
    replace_file(path, content, durable=False)
    return path


# Names and arrays


def _is_map(name: str) -> bool:
    return name.startswith(_START) and name.endswith((_VOLUME, _PICTURE))


def _names_of(name: str) -> tuple[str, str]:
    """Sample and output of a file name; the output is empty for the first one."""
    plain = name.removeprefix(_START).removesuffix(_VOLUME).removesuffix(_PICTURE)
    sample, _, output = plain.partition(",")
    return urllib.parse.unquote(sample), urllib.parse.unquote(output)


def _stored(
    store: Store, record: CellRecord, samples: Collection[str] | None, output: str = ""
) -> Iterator[tuple[str, Array]]:
    """Sample id and map, one at a time."""
    outputs = record.facts.get("outputs", ())
    wanted = "" if outputs and output == outputs[0] else output
    for name in sorted(filter(_is_map, record.artifacts)):
        sample, own = _names_of(name)
        if own == wanted and (samples is None or sample in samples):
            path = store.artifact(record, name)
            yield sample, read_map(path) if name.endswith(_VOLUME) else np.load(path, allow_pickle=False)


def _with_channels(array: Array, channels: Sequence[str]) -> Array:
    values = np.asarray(array)[None] if np.ndim(array) == 3 else np.asarray(array)
    if values.ndim != 4 or not values.size:
        raise OutOfRange(f"a map must have the axes (C, X, Y, Z) or (X, Y, Z), none empty; got {np.shape(array)}")
    if channels and len(channels) != len(values):
        raise OutOfRange(f"names == channels must hold for a map, got {list(channels)} for {len(values)} channels")
    return values


def _numbered(count: int) -> list[str]:
    return [""] if count == 1 else [f"channel {number}" for number in range(1, count + 1)]


# The picture. It is composed as indices of one palette: the axes of a plotting library would cost ten
# times as long, colours of their own three times the bytes, and every explained sample gets a picture.

_MARGIN, _GAP, _FRAME, _LINE, _BAR = 10, 6, 13, 18, 64  # pixels
_WIDEST, _TALLEST, _LOWEST, _TOTAL = 560, 230, 110, 640  # of the planes together, of a row, of all rows
_SPARSE = 0.05  # a background of fewer voxels is a lesion, to be seen where it lies in the grid

_GREYS, _SHADES, _STEPS = 39, 8, 12  # levels of grey, of grey under a colour, of colour to either side of zero
_TINTED, _PURE = _GREYS, _GREYS + 2 * _STEPS * _SHADES
_YELLOW = _PURE + 2 * _STEPS
_BLACK, _SOFT, _DARK, _LIGHT, _PALE, _WHITE = 4, 15, 2, 33, 37, 38  # of the greys


def _palette() -> Array:
    """(256, 3) uint8: greys, colours over greys, colours alone, yellow."""
    from matplotlib import colormaps  # a quarter of a second to import, also for workers that draw nothing

    greys = np.repeat(np.linspace(0, 255, _GREYS)[:, None], 3, axis=1)
    pure = np.asarray(colormaps["RdBu_r"](np.linspace(0.08, 0.92, 2 * _STEPS + 1)))[:, :3] * 255
    pure = np.delete(pure, _STEPS, axis=0)  # zero has no colour
    size = np.abs(np.delete(np.arange(-_STEPS, _STEPS + 1), _STEPS)) / _STEPS
    cover = np.minimum(0.25 + 0.9 * size, 0.95)[:, None, None]
    under = np.linspace(16, 240, _SHADES)[None, :, None]
    tinted = cover * pure[:, None] + (1 - cover) * under
    return np.concatenate([greys, tinted.reshape(-1, 3), pure, [[240, 228, 66]]]).round().astype(np.uint8)


@dataclass(frozen=True)
class _Text:
    """A text at its left end or centre, grey on grey."""

    x: float
    y: float
    text: str
    ink: int = _BLACK
    paper: int = _WHITE
    size: int = 11
    anchor: str = "lm"


@dataclass(frozen=True)
class _Plane:
    """One plane: the two axes that are seen, left to right and bottom to top, and their ends."""

    through: int
    across: int
    up: int
    letters: tuple[str, str, str, str]  # left, right, bottom, top


_PLANES = (
    _Plane(2, 0, 1, ("L", "R", "P", "A")),
    _Plane(1, 0, 2, ("L", "R", "I", "S")),
    _Plane(0, 1, 2, ("P", "A", "I", "S")),
)


@dataclass(frozen=True)
class _Scene:
    """What is drawn, on axes that run to the right, the front and the top."""

    values: Array  # (C, X, Y, Z)
    background: Array | None  # (1 or C, X, Y, Z)
    outline: Array | None  # (X, Y, Z)
    affine: Array
    spacing_mm: tuple[float, ...]
    box: tuple[slice, ...]
    peaks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Array, affine: Array, background: Array | None, outline: Array | None) -> _Scene:
        grid = values.shape[1:]
        for name, one in (("background", background), ("outline", outline)):
            if one is not None and (one.shape[-3:] != grid or one.ndim > (4 if name == "background" else 3)):
                raise OutOfRange(f"{name} and map must be on one grid, got {one.shape} and {values.shape}")
        turn = nib.orientations.io_orientation(affine)
        values = _turned(values, turn)
        grey = None if background is None else _turned(background[None] if background.ndim == 3 else background, turn)
        if grey is not None and len(grey) not in (1, len(values)):
            raise OutOfRange(f"a background must have one channel or {len(values)}, got {len(grey)}")
        truth = None if outline is None else _turned(np.asarray(outline)[None] > 0, turn)[0]
        seen = None if grey is None else (grey != grey[:, :1, :1, :1]).any(axis=0)
        box = _box(seen if seen is not None and seen.mean() > _SPARSE else None, truth, values.shape[1:])
        marked = next((one for one in (truth, seen) if one is not None and one.any()), None)
        centre = _centre(np.ones(values.shape[1:], bool) if marked is None else marked)
        moved = affine @ nib.orientations.inv_ornt_aff(turn, grid)
        spacing = tuple(float(side) for side in nib.affines.voxel_sizes(moved))
        return cls(values, grey, truth, moved, spacing, box, tuple(_peak(one, centre) for one in values))


def _turned(values: Array, turn: Array) -> Array:
    """(C, ...) on stored axes → on the nearest RAS+ axes."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(values, 0, -1), turn), -1, 0)


def _profile(mask: Array, axis: int) -> Array:
    """How many voxels of a mask lie at each place of an axis."""
    return np.asarray(mask.sum(axis=tuple(other for other in range(3) if other != axis)))


def _centre(mask: Array) -> Array:
    return np.array([np.average(np.arange(mask.shape[axis]), weights=_profile(mask, axis)) for axis in range(3)])


def _box(seen: Array | None, truth: Array | None, shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of the grid that is worth showing, with a margin of two voxels."""
    if seen is None:
        return tuple(slice(0, side) for side in shape)
    inside = seen if truth is None else seen | truth
    found = [np.flatnonzero(_profile(inside, axis)) for axis in range(3)]
    return tuple(
        slice(max(int(at[0]) - 2, 0), min(int(at[-1]) + 3, side)) for at, side in zip(found, shape, strict=True)
    )


def _peak(values: Array, centre: Array) -> tuple[int, ...]:
    """The strongest voxel; of several the one nearest to the centre, and the first of those."""
    size = np.abs(values)
    found = np.argwhere(size == size.max())
    return tuple(int(place) for place in found[np.argmin(((found - centre) ** 2).sum(axis=1))])


def _composed(scene: _Scene, channels: Sequence[str], title: str) -> tuple[Array, list[_Text]]:
    """Indices of the palette (H, W) and the texts to stand on them."""
    # A plane of one voxel's height, of a 2D patch, shows nothing.
    flat = [side.stop - side.start == 1 for side in scene.box]
    planes = [plane for plane in _PLANES if not (flat[plane.across] or flat[plane.up])] or [_PLANES[0]]
    extent = [(side.stop - side.start) * mm for side, mm in zip(scene.box, scene.spacing_mm, strict=True)]
    row = min(_TALLEST, max(_LOWEST, _TOTAL // len(scene.values)))
    scale = min(
        _WIDEST / sum(extent[plane.across] for plane in planes), row / max(extent[plane.up] for plane in planes)
    )
    pixels = [max(round(length * scale), 1) for length in extent]
    tall = max(pixels[plane.up] for plane in planes) + 2 * _FRAME
    wide = sum(pixels[plane.across] + 2 * _FRAME + _GAP for plane in planes)
    top = _MARGIN + (_LINE + 4 if title else 0)
    height = top + len(scene.values) * (_LINE + tall + _GAP) + _MARGIN - _GAP
    canvas = np.full((height, max(2 * _MARGIN + wide + _BAR, 300)), _WHITE, np.uint8)
    texts = [_Text(_MARGIN, _MARGIN + 6, title, size=13)] if title else []

    cuts = [[_cut(scene, number, plane, pixels) for plane in planes] for number in range(len(scene.values))]
    shown = np.concatenate([np.abs(values).ravel() for row_of_cuts in cuts for values, _, _ in row_of_cuts])
    limit = float(np.percentile(shown[shown > 0], 99.5)) if shown.any() else 1.0
    paper, ink = (_PALE, _SOFT) if scene.background is None else (_DARK, _LIGHT)
    for number, (name, peak) in enumerate(zip(channels, scene.peaks, strict=True)):
        x, y = _MARGIN, top + number * (_LINE + tall + _GAP)
        texts.append(_Text(x, y + 7, _heading(scene, number, name, peak)))
        for plane, cut in zip(planes, cuts[number], strict=True):
            picture = np.pad(_painted(*cut, limit), _FRAME, constant_values=paper)
            at = y + _LINE + (tall - len(picture)) // 2
            canvas[at : at + len(picture), x : x + picture.shape[1]] = picture
            texts += _letters(plane, x, at, picture.shape, ink, paper)
            x += picture.shape[1] + _GAP
    texts += _bar(canvas, _MARGIN + wide + 4, top + _LINE, min(tall, 150), limit)
    return canvas, texts


def _heading(scene: _Scene, number: int, name: str, peak: tuple[int, ...]) -> str:
    place = nib.affines.apply_affine(scene.affine, peak)
    where = ", ".join(f"{side:.0f}" if abs(side) >= 0.5 else "0" for side in place)
    text = _signed(f"strongest {scene.values[number][peak]:.3g} at ({where}) mm")
    return f"{name}: {text}" if name else text


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _cut(scene: _Scene, number: int, plane: _Plane, pixels: Sequence[int]) -> tuple[Array, Array | None, Array | None]:
    """Map, background and outline of one plane as images: rows from the top, pixels of equal size in mm."""
    at = scene.peaks[number][plane.through]
    where = tuple(at if axis == plane.through else side for axis, side in enumerate(scene.box))
    size = (pixels[plane.across], pixels[plane.up])
    values = scene.values[number][where]
    # Where several voxels share a pixel, the strongest of them is seen.
    high, low = _sampled(np.maximum(values, 0), size, np.maximum), _sampled(np.minimum(values, 0), size, np.minimum)
    grey = truth = None
    if scene.background is not None:
        grey = scene.background[number if len(scene.background) > 1 else 0][where].astype(np.float32)
        grey = _image(_sampled(_scaled(grey), size, np.maximum))
    if scene.outline is not None:
        truth = _image(_sampled(scene.outline[where], size, np.logical_or))
    return _image(np.where(high >= -low, high, low)), grey, truth


def _sampled(values: Array, size: tuple[int, int], join: np.ufunc) -> Array:
    """(A, B) → ``size``, by repeating voxels or by joining those that share a pixel."""
    for axis, length in enumerate(size):
        starts = np.arange(length) * values.shape[axis] // length
        values = join.reduceat(values, starts, axis=axis)
    return values


def _image(values: Array) -> Array:
    """(across, up) → rows from the top."""
    return np.ascontiguousarray(values[:, ::-1].T)


def _scaled(grey: Array) -> Array:
    """0 to 1 between the 1st and the 99th percentile."""
    low, high = np.percentile(grey, (1, 99))
    if not high > low:  # a lesion of few voxels
        low, high = grey.min(), max(grey.max(), grey.min() + 1)
    return np.asarray(np.clip((grey - low) / (high - low), 0, 1))


def _painted(values: Array, grey: Array | None, truth: Array | None, limit: float) -> Array:
    """Indices of the palette (H, W)."""
    step = np.round(np.clip(values / limit, -1, 1) * _STEPS).astype(int)
    colour = step + _STEPS - (step > 0)
    if grey is None:
        painted = np.where(step == 0, _PALE, _PURE + colour)
    else:
        bare = _DARK + np.round(grey * (_PALE - _DARK)).astype(int)
        shade = np.round(grey * (_SHADES - 1)).astype(int)
        painted = np.where(step == 0, bare, _TINTED + colour * _SHADES + shade)
    if truth is not None:
        # The pixels around it, so that a lesion of one voxel is not hidden under its own outline.
        padded = np.pad(truth, 1)
        near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        painted[near & ~truth] = _BLACK if grey is None else _YELLOW
    return painted.astype(np.uint8)


def _letters(plane: _Plane, x: int, y: int, shape: tuple[int, ...], ink: int, paper: int) -> list[_Text]:
    (tall, wide), half = shape, _FRAME / 2
    places = ((half, tall / 2), (wide - half, tall / 2), (wide / 2, tall - half), (wide / 2, half))
    return [
        _Text(x + across, y + down, letter, ink, paper, 10, "mm")
        for letter, (across, down) in zip(plane.letters, places, strict=True)
    ]


def _bar(canvas: Array, x: int, y: int, tall: int, limit: float) -> list[_Text]:
    """Paint the colour bar; the numbers beside it."""
    step = np.round(np.linspace(_STEPS, -_STEPS, tall)).astype(int)
    colours = np.where(step == 0, _PALE, _PURE + step + _STEPS - (step > 0))
    canvas[y : y + tall, x : x + 11] = colours[:, None]
    ends = ((f"{limit:.2g}", 5), ("0", tall / 2), (f"-{limit:.2g}", tall - 5))
    return [_Text(x + 15, y + down, _signed(text), _SOFT, size=10) for text, down in ends]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def _png(canvas: Array, texts: Sequence[_Text]) -> bytes:
    picture = Picture.fromarray(canvas)
    for one in texts:
        # Drawn apart as a mask, since a palette has no shades between ink and paper but the greys.
        left, top, right, bottom = (round(side) for side in _font(one.size).getbbox(one.text, anchor=one.anchor))
        mask = Picture.new("L", (right - left + 2, bottom - top + 2))
        ImageDraw.Draw(mask).text((1 - left, 1 - top), one.text, fill=255, font=_font(one.size), anchor=one.anchor)
        shades = one.paper + (one.ink - one.paper) * (np.asarray(mask) / 255)
        drawn = Picture.fromarray(np.round(shades).astype(np.uint8))
        picture.paste(
            drawn, (round(one.x) + left - 1, round(one.y) + top - 1), mask.point(lambda value: 255 * (value > 0))
        )
    picture.putpalette(_palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", compress_level=9)
    return buffer.getvalue()
