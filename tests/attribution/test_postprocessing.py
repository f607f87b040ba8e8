"""What is done to a subject's map before it is judged: from the definition, and identities."""

from __future__ import annotations

import numpy as np
import pytest

from harness.attribution.postprocessing import rectified, smoothed, unit_mass
from harness.core.registry import POSTPROCESSINGS
from harness.core.types import Array

SPACING = (1.0, 2.0, 4.0)


@pytest.fixture
def maps() -> Array:
    """(2, 12, 10, 8) float32 of both signs."""
    return np.random.default_rng(0).normal(size=(2, 12, 10, 8)).astype(np.float32)


@pytest.mark.parametrize("name", POSTPROCESSINGS.names())
def test_shape_and_zeros_stay(maps: Array, name: str) -> None:
    """Every registered one gives float32 of the same shape, finite, and nothing of nothing."""
    function = POSTPROCESSINGS.get(name).function
    made = function(maps, SPACING)
    assert made.shape == maps.shape and made.dtype == np.float32 and np.isfinite(made).all()
    assert not function(np.zeros_like(maps), SPACING).any()


@pytest.mark.parametrize("name", [name for name in POSTPROCESSINGS.names()])
def test_what_keeps_positive_maps_says_so(maps: Array, name: str) -> None:
    """Maps without negative values come back as they are, exactly where the decorator says so."""
    entry = POSTPROCESSINGS.get(name)
    same = np.array_equal(entry.function(np.abs(maps), SPACING), np.abs(maps))
    assert same == bool(entry.facts.get("keeps_positive"))


def test_rectified_parts_add_up(maps: Array) -> None:
    """Size = positive part + positive part of the negative; signed = their difference."""
    up, down = rectified(maps, SPACING), rectified(-maps, SPACING)
    assert np.array_equal(up + down, rectified(maps, SPACING, keep="size"))
    assert np.array_equal(up - down, maps)


@pytest.mark.parametrize("keep", ["all", "positive"])
def test_sizes_add_up_to_one(maps: Array, keep: str) -> None:
    """Over all channels together; a map ten times as strong has no more say."""
    made = unit_mass(maps, SPACING, keep=keep)  # type: ignore[arg-type]
    assert np.abs(made).sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(unit_mass(10 * maps, SPACING, keep=keep), made, rtol=1e-5)  # type: ignore[arg-type]
    assert (keep == "all") == bool((made < 0).any())


def test_a_point_becomes_a_normal_kernel_of_that_width() -> None:
    """Half the width away from a point the value is half, in mm along every axis; channels stay apart."""
    point = np.zeros((2, 41, 41, 41), np.float32)
    point[1, 20, 20, 20] = 1
    made = smoothed(point, SPACING, fwhm_mm=16.0)
    assert not made[0].any() and made.sum() == pytest.approx(1, rel=5e-3)
    peak = made[1, 20, 20, 20]
    for place in ((28, 20, 20), (20, 24, 20), (20, 20, 22)):
        assert made[1][place] == pytest.approx(peak / 2, rel=0.02)
