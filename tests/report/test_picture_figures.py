"""Figures of pictures: which methods and pictures are drawn, and what is hidden."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from harness.core.registry import ATTRIBUTIONS
from harness.core.types import Array
from harness.report import plots

SHAPE = (8, 12)
RNG = np.random.default_rng(0)
PICTURES = {name: RNG.random((*SHAPE, 3)) for name in ("a", "b")}
MAPS = {label: {name: RNG.normal(size=SHAPE) for name in ("a", "b")} for label in ("occlusion", "picture")}


def pixels(png: bytes) -> Array:
    """The pixels of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_equal_input_gives_equal_bytes() -> None:
    """Drawing is reproducible, and depends on the maps, the pictures and the outlines."""
    truth = {"a": np.eye(8, 12) > 0}
    first = plots.picture_maps(PICTURES, MAPS, truth, shape=SHAPE)
    assert first == plots.picture_maps(PICTURES, MAPS, truth, shape=SHAPE)
    others = [
        plots.picture_maps(PICTURES, {**MAPS, "occlusion": MAPS["picture"]}, truth, shape=SHAPE),
        plots.picture_maps({**PICTURES, "a": PICTURES["b"]}, MAPS, truth, shape=SHAPE),
        plots.picture_maps(PICTURES, MAPS, {}, shape=SHAPE),
    ]
    assert all(other != first for other in others)


def test_there_is_a_row_for_the_pictures_and_one_for_each_method() -> None:
    """A method with the label ``picture`` is not taken for the pictures; without pictures there is one row less."""
    height = {
        count: pixels(plots.picture_maps(shown, dict(list(MAPS.items())[:count]), {}, shape=SHAPE)).shape[0]
        for count, shown in ((1, PICTURES), (2, PICTURES))
    }
    hidden = pixels(plots.picture_maps({}, MAPS, {}, shape=SHAPE))
    assert height[2] > height[1] and abs(hidden.shape[0] - height[1]) < 20
    only_maps = plots.picture_maps({}, {"occlusion": MAPS["occlusion"]}, {}, shape=SHAPE)
    assert only_maps == plots.picture_maps({}, {"occlusion": MAPS["occlusion"]}, {}, shape=SHAPE)


def test_rows_of_a_picture_are_drawn_from_the_top() -> None:
    """A picture with a red top and a blue bottom is drawn that way up, and so is the outline of its top."""
    picture = np.zeros((*SHAPE, 3))
    picture[:4, :, 0], picture[4:, :, 2] = 1, 1
    shown = pixels(plots.picture_maps({"a": picture}, {}, {}, shape=SHAPE))
    red = np.argwhere((shown[..., 0] > 200) & (shown[..., 1] < 50) & (shown[..., 2] < 50))[:, 0]
    blue = np.argwhere((shown[..., 2] > 200) & (shown[..., 0] < 50) & (shown[..., 1] < 50))[:, 0]
    assert red.max() <= blue.min() + 2
    top = np.zeros(SHAPE, bool)
    top[:2, :6] = True
    outlined = pixels(plots.picture_maps({"a": picture}, {}, {"a": top}, shape=SHAPE))
    changed = np.argwhere(np.abs(outlined - shown).max(2) > 60)
    assert changed[:, 0].max() < np.median(red) + 5 and changed[:, 1].max() < shown.shape[1] * 0.75


def test_controls_that_show_the_input_are_marked() -> None:
    """Maps that are the input, or its edges, are hidden together with it; methods and random maps are not."""
    marked = {name for name in ATTRIBUTIONS.names() if ATTRIBUTIONS.get(name).facts.get("shows_input")}
    assert marked == {"input", "edge", "one_channel", "mean_of_channels"}
