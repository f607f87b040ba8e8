"""Images of maps in three planes."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.core.errors import OutOfRange
from harness.report.previews import draw_map

RAS = np.eye(4)
RED, BLUE, AMBER = "red", "blue", "amber"


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) pixel values of a PNG image."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(png: bytes, colour: str) -> np.ndarray:
    """(H, W) bool, where the image is strongly red, strongly blue or amber, without the colour bar."""
    rgb = pixels(png)[:, :-110]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return {
        RED: (red > green + 60) & (red > blue + 40) & (red < 220),
        BLUE: (blue > red + 60) & (blue > green + 30),
        AMBER: (red > 220) & (abs(green - 159) < 30) & (blue < 60),
    }[colour]


@pytest.fixture
def strong_region() -> dict[str, Any]:
    """A map with one strong region at the right, front and top of a grey ellipsoid, in RAS+."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in (30, 34, 26)], indexing="ij"))
    brain = np.where((grid**2).sum(axis=0) < 0.9, 1.0 + 0.3 * grid[0], 0.0).astype(np.float32)
    values = np.zeros((1, 30, 34, 26), np.float32)
    values[0, 22:25, 26:29, 18:21] = 2.0
    truth = values[0] > 0
    return {"values": values, "affine": RAS, "background": brain, "outline": truth, "channels": ("T2w",)}


class TestPreview:
    """Content of the image."""

    def test_strong_voxels_are_at_their_position(self, strong_region: dict[str, Any]) -> None:
        """A region at the right and front is there in the axial plane, the first one."""
        found = coloured(draw_map(**strong_region), RED)
        third = found.shape[1] // 3
        rows, columns = np.nonzero(found[:, :third])
        assert columns.size and columns.mean() > third * 0.6
        assert rows.mean() < found.shape[0] * 0.5

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_orientation_comes_from_the_affine(self, strong_region: dict[str, Any], axis: int) -> None:
        """An image stored with a flipped axis gives the same preview."""
        turned = {
            **strong_region,
            "values": np.flip(strong_region["values"], axis + 1),
            **{name: np.flip(strong_region[name], axis) for name in ("background", "outline")},
            "affine": RAS.copy(),
        }
        turned["affine"][axis, axis] = -1
        turned["affine"][axis, 3] = strong_region["outline"].shape[axis] - 1
        one, two = draw_map(**strong_region), draw_map(**turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_axes_may_be_stored_in_another_order(self, strong_region: dict[str, Any]) -> None:
        """An image stored with another order of axes, as in a sagittal acquisition, gives the same preview."""
        turned = {
            **strong_region,
            "values": np.moveaxis(strong_region["values"], 1, 3),
            **{name: np.moveaxis(strong_region[name], 0, 2) for name in ("background", "outline")},
            "affine": RAS[:, [1, 2, 0, 3]],
        }
        one, two = draw_map(**strong_region), draw_map(**turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_negative_values_are_blue(self, strong_region: dict[str, Any]) -> None:
        """Negative values are blue, since the colour scale is centred at zero."""
        png = draw_map(**{**strong_region, "values": -strong_region["values"], "outline": None})
        assert coloured(png, BLUE).any() and not coloured(png, RED).any()

    def test_truth_is_outlined(self, strong_region: dict[str, Any]) -> None:
        """The truth is outlined in every plane, and without a truth there is no outline."""
        png = draw_map(**strong_region)
        parts = np.array_split(coloured(png, AMBER), 3, axis=1)
        assert all(part.any() for part in parts)
        assert not coloured(draw_map(**{**strong_region, "outline": None}), AMBER).any()

    def test_single_voxel_is_visible(self) -> None:
        """If several voxels share a pixel, the strongest is drawn."""
        values = np.zeros((1, 900, 40, 9), np.float32)
        values[0, 451, 20, 4] = 1.0
        found = coloured(draw_map(values, RAS), RED)
        assert found.any()

    def test_each_channel_has_a_row(self, strong_region: dict[str, Any]) -> None:
        """Each channel has a separate row with its own strongest voxel."""
        both = np.concatenate([strong_region["values"], -strong_region["values"]])
        one = draw_map(**strong_region)
        two = draw_map(**{**strong_region, "values": both, "outline": None, "channels": ("T2w", "FLAIR")})
        assert pixels(two).shape[0] > 1.7 * pixels(one).shape[0]
        upper, lower = np.array_split(coloured(two, RED), 2)
        assert upper.any() and not lower.any()

    def test_preview_is_the_same_in_another_process(self) -> None:
        """Equal input gives equal bytes in another process."""
        script = (
            "import sys, numpy as np; from harness.report.previews import draw_map;"
            "values = np.random.default_rng(0).normal(size=(2, 9, 8, 7));"
            "sys.stdout.buffer.write(draw_map(values, np.eye(4), title='x'))"
        )
        other_process = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
        assert draw_map(np.random.default_rng(0).normal(size=(2, 9, 8, 7)), np.eye(4), title="x") == other_process

    @pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
    def test_constant_map_shows_the_centre(self, strong_region: dict[str, Any], value: float) -> None:
        """For a constant map, the planes through the truth are shown."""
        png = draw_map(**{**strong_region, "values": np.full((1, 30, 34, 26), value)})
        assert all(part.any() for part in np.array_split(coloured(png, AMBER), 3, axis=1))

    def test_patch_is_one_plane(self) -> None:
        """A volume with one slice is shown in one plane."""
        flat = pixels(draw_map(np.ones((1, 40, 40, 1)), RAS))
        full = pixels(draw_map(np.ones((1, 40, 40, 40)), RAS))
        assert flat.shape[1] < 0.7 * full.shape[1]

    def test_another_grid_is_refused(self, strong_region: dict[str, Any]) -> None:
        """A background on another grid is refused."""
        with pytest.raises(OutOfRange, match=r"background and map must be on one grid, got \(29, 34, 26\) and"):
            draw_map(**{**strong_region, "background": strong_region["background"][1:]})
