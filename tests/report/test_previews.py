"""Pictures of maps in three planes: what is seen, and where."""

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
    """(H, W, 3) of a picture."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(png: bytes, colour: str) -> np.ndarray:
    """Where a picture shows a strong red, a strong blue or the outline's amber, (H, W) bool; without the colour bar."""
    rgb = pixels(png)[:, :-110]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return {
        RED: (red > green + 60) & (red > blue + 40) & (red < 220),
        BLUE: (blue > red + 60) & (blue > green + 30),
        AMBER: (red > 220) & (abs(green - 159) < 30) & (blue < 60),
    }[colour]


@pytest.fixture
def bump() -> dict[str, Any]:
    """One strong voxel to the right, in front and at the top of a grey ellipsoid; RAS+."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in (30, 34, 26)], indexing="ij"))
    brain = np.where((grid**2).sum(axis=0) < 0.9, 1.0 + 0.3 * grid[0], 0.0).astype(np.float32)
    values = np.zeros((1, 30, 34, 26), np.float32)
    values[0, 22:25, 26:29, 18:21] = 2.0
    truth = values[0] > 0
    return {"values": values, "affine": RAS, "background": brain, "outline": truth, "channels": ("T2w",)}


class TestPreview:
    """What the picture shows."""

    def test_strong_voxels_are_seen_where_they_are(self, bump: dict[str, Any]) -> None:
        """To the right and the front in the axial plane, the first."""
        found = coloured(draw_map(**bump), RED)
        third = found.shape[1] // 3
        rows, columns = np.nonzero(found[:, :third])
        assert columns.size and columns.mean() > third * 0.6
        assert rows.mean() < found.shape[0] * 0.5

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_orientation_comes_from_the_affine(self, bump: dict[str, Any], axis: int) -> None:
        """The same head stored the other way round gives the same picture."""
        turned = {
            **bump,
            "values": np.flip(bump["values"], axis + 1),
            **{name: np.flip(bump[name], axis) for name in ("background", "outline")},
            "affine": RAS.copy(),
        }
        turned["affine"][axis, axis] = -1
        turned["affine"][axis, 3] = bump["outline"].shape[axis] - 1
        one, two = draw_map(**bump), draw_map(**turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_axes_may_be_stored_in_another_order(self, bump: dict[str, Any]) -> None:
        """A sagittal acquisition gives the same picture."""
        turned = {
            **bump,
            "values": np.moveaxis(bump["values"], 1, 3),
            **{name: np.moveaxis(bump[name], 0, 2) for name in ("background", "outline")},
            "affine": RAS[:, [1, 2, 0, 3]],
        }
        one, two = draw_map(**bump), draw_map(**turned)
        assert np.array_equal(pixels(one), pixels(two))

    def test_evidence_against_is_blue(self, bump: dict[str, Any]) -> None:
        """The scale is centred at zero: the sign is the colour."""
        png = draw_map(**{**bump, "values": -bump["values"], "outline": None})
        assert coloured(png, BLUE).any() and not coloured(png, RED).any()

    def test_truth_is_outlined(self, bump: dict[str, Any]) -> None:
        """In every plane; without a truth there is no line."""
        png = draw_map(**bump)
        parts = np.array_split(coloured(png, AMBER), 3, axis=1)
        assert all(part.any() for part in parts)
        assert not coloured(draw_map(**{**bump, "outline": None}), AMBER).any()

    def test_one_weak_voxel_among_many_is_not_lost(self) -> None:
        """Where several voxels share a pixel, the strongest is drawn."""
        values = np.zeros((1, 900, 40, 9), np.float32)
        values[0, 451, 20, 4] = 1.0
        found = coloured(draw_map(values, RAS), RED)
        assert found.any()

    def test_each_channel_has_a_row(self, bump: dict[str, Any]) -> None:
        """Two channels make the picture higher, and each shows its own strongest voxel."""
        both = np.concatenate([bump["values"], -bump["values"]])
        one = draw_map(**bump)
        two = draw_map(**{**bump, "values": both, "outline": None, "channels": ("T2w", "FLAIR")})
        assert pixels(two).shape[0] > 1.7 * pixels(one).shape[0]
        upper, lower = np.array_split(coloured(two, RED), 2)
        assert upper.any() and not lower.any()

    def test_equal_input_is_equal_bytes_in_another_process(self) -> None:
        """Nothing of the time or the process is in the picture."""
        script = (
            "import sys, numpy as np; from harness.report.previews import draw_map;"
            "values = np.random.default_rng(0).normal(size=(2, 9, 8, 7));"
            "sys.stdout.buffer.write(draw_map(values, np.eye(4), title='x'))"
        )
        there = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
        assert draw_map(np.random.default_rng(0).normal(size=(2, 9, 8, 7)), np.eye(4), title="x") == there

    @pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
    def test_constant_map_shows_the_centre(self, bump: dict[str, Any], value: float) -> None:
        """No voxel is the strongest: the plane through the truth is shown, so its outline is there."""
        png = draw_map(**{**bump, "values": np.full((1, 30, 34, 26), value)})
        assert all(part.any() for part in np.array_split(coloured(png, AMBER), 3, axis=1))

    def test_patch_is_one_plane(self) -> None:
        """A volume of one slice has no other planes to show."""
        flat = pixels(draw_map(np.ones((1, 40, 40, 1)), RAS))
        full = pixels(draw_map(np.ones((1, 40, 40, 40)), RAS))
        assert flat.shape[1] < 0.7 * full.shape[1]

    def test_another_grid_is_refused(self, bump: dict[str, Any]) -> None:
        """A background that does not lie under the map would show a false place."""
        with pytest.raises(OutOfRange, match=r"background and map must be on one grid, got \(29, 34, 26\) and"):
            draw_map(**{**bump, "background": bump["background"][1:]})
