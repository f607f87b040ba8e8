"""Generated faces in which age, sex and ethnicity depend on known regions.

A face is drawn from shapes in a frame of its own: u to the right and v down, in units of
half its height, with the origin between the eyes and the mouth. Age is visible in the grey
of the hair and in wrinkles, sex in the jaw and the brows, and ethnicity, a group from A to
D without a meaning, in the hue of the cheeks and the nose. The regions are disjoint and
move with the face. Pose, light, background, hair, eyes, smile and glasses say nothing of
the targets, unless glasses are correlated with one of them.

All constants were fixed before any network was trained.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from harness.core.registry import PHANTOMS
from harness.core.seeding import generator
from harness.core.types import NUISANCE, TRUTH, Array
from harness.simulation.phantom import PhantomPicture

__all__ = ["GROUPS", "faces_phantom"]

GROUPS = ("A", "B", "C", "D")
"""Values of the ethnicity, which have no meaning."""

Correlated = Literal["age", "sex", "ethnicity"]

_YOUNGEST, _OLDEST = 20.0, 80.0
# Standard deviation of the visible age in hair and in wrinkles, as a share of the range of ages: with both, the best
# prediction has an error of about (60 · .12)² / 2 = 26 years².
_AGE_NOISE = 0.12
_JAW, _JAW_STEP, _JAW_SD = 2.0, 0.8, 0.3  # exponent of the outline of the lower face
_BROW, _BROW_STEP, _BROW_SD = 0.025, 0.022, 0.0075  # half the thickness of a brow
_HUE_SD = 18.0  # degrees; the hues of the groups are 90° apart
_WRINKLE = 0.45  # darkening of the deepest wrinkles
_SHIFT, _ANGLE_DEG, _ZOOM = 0.05, 8.0, 0.06  # pose: share of the picture, degrees, share of the size


@dataclass(frozen=True)
class _Face:
    """What is visible of a person.

    Parameters
    ----------
    grey, wrinkles : visible age of hair and skin, in [0, 1]
    jaw : exponent of the outline of the lower face
    brow : half the thickness of the brows
    hue : hue of cheeks and nose, in [0, 1)
    glasses : whether the person wears glasses
    """

    grey: float
    wrinkles: float
    jaw: float
    brow: float
    hue: float
    glasses: bool


@PHANTOMS.register("faces", source="this project", layout="pictures")
def faces_phantom(
    seed: int,
    number: int,
    *,
    size: Annotated[int, Ge(32)] = 64,
    correlation: Annotated[float, Ge(0), Le(1)] = 0.0,
    correlated: Correlated = "sex",
) -> list[PhantomPicture]:
    """One face with its age, sex and ethnicity, and the regions on which they depend.

    Parameters
    ----------
    seed : seed of the cohort
    number : number of the face
    size : height and width in pixels
    correlation : share of the faces whose glasses follow a target; all others have glasses
        with a probability of one half. With two equally frequent labels this is the
        correlation of glasses and label; with 0, glasses say nothing
    correlated : the target that glasses follow: ``sex`` female, ``age`` of 50 or more, or
        ``ethnicity`` A or B

    Returns
    -------
    list of PhantomPicture
        One picture with the masks ``truth_age``, ``truth_sex``, ``truth_ethnicity`` and
        ``nuisance``, the rims of glasses, whether or not the person wears them. Covariates:
        ``age`` in years, ``sex``, ``ethnicity``, ``glasses`` (0 or 1).
    """
    rng = generator(seed, "faces", number)
    age = round(float(rng.uniform(_YOUNGEST, _OLDEST)), 1)
    female, group = bool(rng.random() < 0.5), int(rng.integers(len(GROUPS)))
    share = (age - _YOUNGEST) / (_OLDEST - _YOUNGEST)
    grey, wrinkles = np.clip(share + _AGE_NOISE * rng.standard_normal(2), 0, 1)
    follows = bool(rng.random() < correlation)
    drawn = bool(rng.random() < 0.5)
    bit = {"age": age >= 50, "sex": female, "ethnicity": group < 2}[correlated]
    face = _Face(
        grey=float(grey),
        wrinkles=float(wrinkles),
        jaw=max(_JAW + (0.0 if female else _JAW_STEP) + _JAW_SD * rng.standard_normal(), 1.6),
        brow=max(_BROW + (0.0 if female else _BROW_STEP) + _BROW_SD * rng.standard_normal(), 0.01),
        hue=((90.0 * group + _HUE_SD * rng.standard_normal()) % 360.0) / 360.0,
        glasses=bit if follows else drawn,
    )
    image, masks = _drawn(face, size, rng)
    facts: dict[str, float | str] = {
        "age": age,
        "sex": "female" if female else "male",
        "ethnicity": GROUPS[group],
        "glasses": int(face.glasses),
    }
    return [PhantomPicture(f"face-{number:05d}", f"face-{number:05d}", image, None, facts, masks)]


def _drawn(face: _Face, size: int, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """The picture, (size, size, 3) uint8, and the regions, (size, size) bool."""
    u, v = _frame(size, rng)
    regions = _regions(u, v)
    soft = 2.5 / size  # width of an edge in units of the frame, about a pixel
    tone = rng.uniform(0.55, 0.9)
    skin = tone * np.array([1.0, 0.82, 0.70])
    image = _background(size, rng)
    dark = rng.uniform(0.05, 0.35) * np.array([1.0, 0.75, 0.5])
    hair = (1 - face.grey) * dark + face.grey * np.array([0.82, 0.82, 0.84])
    end = rng.uniform(-0.2, 0.1)
    _paint(image, _inside(1 - (u / 1.0) ** 2 - ((v + 0.12) / 1.2) ** 2, soft) * _inside(end - v, soft), hair)
    face_shape = _inside(_outline(u, v, face.jaw), soft) * _inside(v + 0.72, soft)
    _paint(image, face_shape, skin)
    vivid = np.array(colorsys.hsv_to_rgb(face.hue, 0.55, tone))
    _paint(image, 0.6 * regions[f"{TRUTH}ethnicity"], vivid)
    lines = sum(_inside(0.018 - np.abs(v - at), soft) * (np.abs(u) < 0.5) for at in (-0.645, -0.59, -0.535))
    feet = sum(
        _inside(0.018 - np.abs(v + 0.12 - slope * (np.abs(u) - 0.66)), soft) * (np.abs(u) > 0.66) * (np.abs(u) < 0.80)
        for slope in (-0.7, 0.0, 0.7)
    )
    image *= 1 - (_WRINKLE * face.wrinkles * np.clip(lines + feet, 0, 1) * face_shape)[..., None]
    brows = _inside(face.brow - np.abs(v + 0.43), soft) * (np.abs(np.abs(u) - 0.38) < 0.22)
    _paint(image, brows, 0.5 * dark)
    eyes = _ellipse(np.abs(u) - 0.38, v + 0.12, 0.13, 0.065, soft)
    _paint(image, eyes, np.full(3, 0.95))
    iris = np.array(colorsys.hsv_to_rgb(rng.random(), 0.5, 0.35))
    _paint(image, _ellipse(np.abs(u) - 0.38 - rng.uniform(-0.03, 0.03), v + 0.12, 0.055, 0.055, soft), iris)
    bend = rng.uniform(-0.35, 0.35)
    mouth = _inside(0.035 - np.abs(v - 0.66 + bend * (u**2 - 0.06)), soft) * (np.abs(u) < 0.3)
    _paint(image, mouth, np.array([0.62, 0.25, 0.27]))
    colour = rng.uniform(0.0, 0.3, 3)
    if face.glasses:
        _paint(image, regions[NUISANCE].astype(float), colour)
    image = _lit(image, rng) + rng.normal(0, 0.02, image.shape)
    return np.clip(255 * image, 0, 255).astype(np.uint8), regions


def _frame(size: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates of the pixels in the frame of a face with a random pose, (size, size) each."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    x, y = x - rng.uniform(-_SHIFT, _SHIFT), y - 0.02 - rng.uniform(-_SHIFT, _SHIFT)
    angle = np.deg2rad(rng.uniform(-_ANGLE_DEG, _ANGLE_DEG))
    scale = 0.36 * (1 + rng.uniform(-_ZOOM, _ZOOM))
    return (np.cos(angle) * x + np.sin(angle) * y) / scale, (np.cos(angle) * y - np.sin(angle) * x) / scale


def _regions(u: Array, v: Array) -> dict[str, Array]:
    """Pixels that can depend on each target, and the rims of glasses, disjoint."""
    side = np.abs(u)
    hair = (u**2 + ((v + 0.12) / 1.2) ** 2 < 1) & (v < 0.1) & ((_outline(u, v, 2.0) < 0) | (v < -0.72))
    forehead = (side < 0.5) & (np.abs(v + 0.59) < 0.08)
    feet = (np.abs(side - 0.73) < 0.07) & (np.abs(v + 0.12) < 0.12)
    brows = (np.abs(side - 0.38) < 0.22) & (np.abs(v + 0.43) < 0.07)
    jaw = (v > 0.15) & (_outline(u, v, 1.6) < 0) & (_outline(u, v, 3.7) > 0)
    cheeks = ((side - 0.48) / 0.18) ** 2 + ((v - 0.32) / 0.17) ** 2 < 1
    nose = (side < 0.02 + 0.14 * (v + 0.1)) & (v > -0.05) & (v < 0.42)
    ring = np.hypot(side - 0.38, v + 0.12)
    rims = (np.abs(ring - 0.20) < 0.025) | ((side < 0.17) & (np.abs(v + 0.16) < 0.025))
    return {
        f"{TRUTH}age": hair | forehead | feet,
        f"{TRUTH}sex": brows | jaw,
        f"{TRUTH}ethnicity": (cheeks | nose) & ~rims,
        NUISANCE: rims,
    }


def _outline(u: Array, v: Array, exponent: float) -> Array:
    """Positive inside the face: an ellipse above v = 0, below it a superellipse with this exponent."""
    below = np.maximum(v, 0)
    found: Array = 1 - (np.abs(u) / 0.86) ** np.where(v > 0, exponent, 2.0)
    return np.asarray(found - (below / 1.05) ** exponent - (np.minimum(v, 0) / 1.05) ** 2)


def _ellipse(u: Array, v: Array, a: float, b: float, soft: float) -> Array:
    return _inside(min(a, b) * (1 - np.sqrt((u / a) ** 2 + (v / b) ** 2)), soft)


def _inside(distance: Array, soft: float) -> Array:
    """1 where a signed distance is positive, 0 where it is negative, with an edge of a width."""
    found: Array = np.clip(0.5 + np.asarray(distance) / soft, 0, 1)
    return found


def _paint(image: Array, opacity: Array, colour: Array) -> None:
    """Paint a shape over the picture in place."""
    image += np.asarray(opacity, float)[..., None] * (colour - image)


def _background(size: int, rng: np.random.Generator) -> Array:
    """A colour with smooth stripes in a random direction."""
    y, x = np.mgrid[:size, :size] / size
    angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(1, 5), rng.uniform(0, 2 * np.pi)
    stripes = np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.asarray(rng.uniform(0.2, 0.8, 3) + rng.uniform(0, 0.12) * stripes[..., None])


def _lit(image: Array, rng: np.random.Generator) -> Array:
    """The picture under a light of random strength and direction."""
    size = len(image)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    angle, slope, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4), rng.uniform(0.8, 1.1)
    light = strength * (1 + slope * (np.cos(angle) * x + np.sin(angle) * y))
    return np.asarray(image * light[..., None])
