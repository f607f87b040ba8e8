"""Generated patches of lymph node tissue, stained with haematoxylin and eosin (H&E).

Light is absorbed by two stains: an image is I₀ · 10^(−(c_H v_H + c_E v_E)), with the
optical densities v of each stain per channel. Eosin stains fibres, haematoxylin nuclei.
Tumour has larger nuclei of irregular shape and uneven density, which lie closer together.
Clusters of small, dark, round nuclei (inflammation) are no tumour, but as dark as tumour. A
patch is positive if tumour touches its central square, as in PatchCamelyon; tumour that
only lies outside the centre does not make it positive.

Slides differ in their stains, light, focus and prevalence of tumour, so that a split that
ignores slides would be too optimistic. All constants were fixed before any network was
trained.

References
----------
Ruifrok & Johnston 2001, Quantification of histochemical staining by color deconvolution.
Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250. Veeling et al. 2018, arXiv:1806.03962.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from scipy.ndimage import gaussian_filter

from harness.core.registry import PHANTOMS
from harness.core.seeding import generator
from harness.core.types import Array
from harness.simulation.phantom import PhantomPicture

__all__ = ["CENTRE", "EOSIN", "HAEMATOXYLIN", "histology_phantom"]

CENTRE = 32
"""Edge length of the central square that decides the label, in pixels."""

# Optical density per channel (red, green, blue), half way between the vectors of Ruifrok and of Macenko.
HAEMATOXYLIN = np.array([0.606, 0.712, 0.348])
EOSIN = np.array([0.144, 0.896, 0.334])

_NORMAL = (3.0, 0.35, 1.15)  # radius in pixels, its standard deviation, largest ratio of the axes
_TUMOUR = (4.6, 0.9, 1.7)
_LYMPHOCYTE = (2.5, 0.15, 1.05)
_GAPS = {"normal": 11.0, "tumour": 9.5, "inflamed": 6.0}  # mean distance of nuclei in pixels
_DENSITY = {"normal": 0.75, "tumour": 0.80, "inflamed": 1.05}  # of haematoxylin in nuclei


@dataclass(frozen=True)
class _Slide:
    """What all patches of a slide share.

    Parameters
    ----------
    stains : (2, 3) optical density of haematoxylin and eosin per channel
    strengths : (2,) amounts of both
    light : (3,) light without tissue, in [0, 1]
    blur : standard deviation of the focus in pixels
    prevalence : probability that a patch is positive
    """

    stains: Array
    strengths: Array
    light: Array
    blur: float
    prevalence: float


@PHANTOMS.register("histology", source="this project", layout="pictures")
def histology_phantom(
    seed: int,
    number: int,
    *,
    patches: Annotated[int, Ge(1)] = 30,
    size: Annotated[int, Ge(64)] = 96,
    stain_shift: Annotated[float, Ge(0), Le(1)] = 1.0,
) -> list[PhantomPicture]:
    """All patches of one slide.

    Parameters
    ----------
    seed : seed of the cohort
    number : number of the slide
    patches : patches of the slide
    size : height and width in pixels
    stain_shift : how much slides differ in stain, light and focus; 0 for not at all

    Returns
    -------
    list of PhantomPicture
        Pictures with the tumour as mask, also outside the centre. Covariates: ``label`` (1 if
        tumour touches the central 32 × 32 pixels), ``tumour_share``, the share of the patch that is
        tumour, and ``inflamed`` (1 if there is a cluster of inflammatory nuclei).
    """
    slide = _slide(generator(seed, "histology", "slide", number), stain_shift)
    return [
        _patch(generator(seed, "histology", number, patch), slide, f"slide-{number:03d}", patch, size)
        for patch in range(patches)
    ]


def _slide(rng: np.random.Generator, shift: float) -> _Slide:
    stains = np.stack([HAEMATOXYLIN, EOSIN]) + shift * 0.04 * rng.standard_normal((2, 3))
    stains = np.clip(stains, 0.02, None)
    return _Slide(
        stains=stains / np.linalg.norm(stains, axis=1, keepdims=True),
        strengths=np.exp(shift * 0.15 * rng.standard_normal(2)),
        light=1 - np.abs(shift * 0.03 * rng.standard_normal(3)),
        blur=float(0.5 + shift * 0.3 * rng.random()),
        prevalence=float(np.clip(rng.beta(3, 3), 0.15, 0.85)),
    )


def _patch(rng: np.random.Generator, slide: _Slide, name: str, number: int, size: int) -> PhantomPicture:
    positive = bool(rng.random() < slide.prevalence)
    # A third of the negative patches has tumour outside the centre.
    tumour = _region(rng, size, inside=positive) if positive or rng.random() < 1 / 3 else np.zeros((size, size), bool)
    inflamed = bool(rng.random() < 0.4)
    cluster = (_blob(rng, size, _anywhere(rng, size)) if inflamed else np.zeros((size, size), bool)) & ~tumour
    haematoxylin, eosin = _tissue(rng, tumour, cluster)
    density = np.tensordot(
        np.stack([haematoxylin, eosin], axis=-1) * slide.strengths, slide.stains, axes=1
    )  # (size, size, 3)
    light = slide.light * 10 ** -np.clip(density, 0, None)
    light = np.stack(
        [gaussian_filter(light[..., channel], slide.blur, mode="nearest") for channel in range(3)], axis=-1
    )
    light = light + 0.012 * rng.standard_normal(light.shape)
    image = np.round(255 * np.clip(light, 0, 1)).astype(np.uint8)
    facts: dict[str, float | str] = {
        "label": int(bool(tumour[_centre(size)].any())),
        "tumour_share": round(float(tumour.mean()), 4),
        "inflamed": int(bool(cluster.any())),
    }
    return PhantomPicture(f"{name}_{number:04d}", name, image, tumour, facts)


def _centre(size: int) -> tuple[slice, slice]:
    start = (size - CENTRE) // 2
    return slice(start, start + CENTRE), slice(start, start + CENTRE)


def _anywhere(rng: np.random.Generator, size: int) -> Array:
    found: Array = rng.uniform(0, size, 2)
    return found


def _region(rng: np.random.Generator, size: int, *, inside: bool) -> Array:
    """A region of tumour that touches the centre, or one that does not."""
    middle = (size - 1) / 2
    for _ in range(200):
        where = middle + rng.uniform(-CENTRE / 2, CENTRE / 2, 2) if inside else _anywhere(rng, size)
        found = _blob(rng, size, where)
        if bool(found[_centre(size)].any()) == inside and found.any():
            return found
    # Blobs of any size fit beside the centre only in large patches; a corner always does.
    corner = np.zeros((size, size), bool)
    edge = (size - CENTRE) // 2
    corner[: edge - 2, : edge - 2] = True
    return corner if not inside else ~corner


def _blob(rng: np.random.Generator, size: int, where: Array) -> Array:
    """A region with a wavy outline around a position, (size, size) bool."""
    radius = rng.uniform(0.12, 0.32) * size
    phases, amplitudes = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, 0.18, 4)
    y, x = np.mgrid[:size, :size] - where[:, None, None]
    angle = np.arctan2(y, x)
    waves = sum(
        amplitude * np.cos((order + 2) * angle + phase)
        for order, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True))
    )
    inside: Array = np.hypot(y, x) < radius * (1 + waves)
    return inside


def _tissue(rng: np.random.Generator, tumour: Array, cluster: Array) -> tuple[Array, Array]:
    """Amounts of haematoxylin and eosin, (size, size) each."""
    size = len(tumour)
    fibres = gaussian_filter(rng.standard_normal((size, size)), (1.0, 5.0), mode="wrap")
    if rng.random() < 0.5:
        fibres = fibres.T
    cloud = gaussian_filter(rng.standard_normal((size, size)), 8.0, mode="wrap")
    eosin = 0.30 + 0.10 * fibres / fibres.std() + 0.06 * cloud / cloud.std()
    haematoxylin = 0.06 + 0.02 * cloud / cloud.std()
    kinds = {"tumour": tumour, "inflamed": cluster, "normal": ~(tumour | cluster)}
    for kind, region in kinds.items():
        if region.any():
            _add_nuclei(rng, haematoxylin, eosin, region, kind)
    return np.clip(haematoxylin, 0, None), np.clip(eosin, 0.02, None)


def _add_nuclei(rng: np.random.Generator, haematoxylin: Array, eosin: Array, region: Array, kind: str) -> None:
    """Draw the nuclei of one kind of tissue, on a jittered grid."""
    gap, size = _GAPS[kind], len(region)
    radius, spread, ratio = {"normal": _NORMAL, "tumour": _TUMOUR, "inflamed": _LYMPHOCYTE}[kind]
    count = int(size // gap) + 2
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), axis=-1).reshape(-1, 2)
    places = (grid + rng.uniform(-0.35, 0.35, grid.shape)) * gap + rng.uniform(-gap, 0, 2)
    for y, x in places:
        inside = 0 <= round(y) < size and 0 <= round(x) < size and region[round(y), round(x)]
        if not inside or rng.random() < 0.12:
            continue
        first = max(radius + spread * rng.standard_normal(), 1.5)
        second = first / rng.uniform(1.0, ratio)
        angle, dark = rng.uniform(0, np.pi), _DENSITY[kind] * np.exp(0.12 * rng.standard_normal())
        low_y, low_x = max(int(y - 9), 0), max(int(x - 9), 0)
        window = (slice(low_y, min(int(y + 10), size)), slice(low_x, min(int(x + 10), size)))
        dy, dx = np.mgrid[window]
        dy, dx = dy - y, dx - x
        along = (np.cos(angle) * dy + np.sin(angle) * dx) / first
        across = (-np.sin(angle) * dy + np.cos(angle) * dx) / second
        edge = 1 / (1 + np.exp(4 * first * (np.hypot(along, across) - 1)))
        texture = 1.0
        if kind == "tumour":  # light chromatin with a dark nucleolus
            spot = rng.uniform(-0.4, 0.4, 2)
            texture = 0.75 + 0.6 * np.exp(-(((along - spot[0]) ** 2 + (across - spot[1]) ** 2) / 0.06))
        amount = dark * edge * texture
        haematoxylin[window] = np.maximum(haematoxylin[window], amount)
        eosin[window] *= 1 - 0.5 * edge
