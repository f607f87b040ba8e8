"""Postprocessing of maps against its definition and identities."""

from __future__ import annotations

import numpy as np
import pytest

from harness.attribution.postprocessing import rectified, smoothed, unit_mass
from harness.core.registry import POSTPROCESSINGS
from harness.core.types import Array

SPACING = (1.0, 2.0, 4.0)


@pytest.fixture
def maps() -> Array:
    """(2, 12, 10, 8) float32 with positive and negative values."""
    return np.random.default_rng(0).normal(size=(2, 12, 10, 8)).astype(np.float32)


@pytest.mark.parametrize("name", POSTPROCESSINGS.names())
def test_shape_and_zeros_stay(maps: Array, name: str) -> None:
    """Every postprocessing gives finite float32 maps of the same shape, and maps zeros to zeros."""
    function = POSTPROCESSINGS.get(name).function
    made = function(maps, SPACING)
    assert made.shape == maps.shape and made.dtype == np.float32 and np.isfinite(made).all()
    assert not function(np.zeros_like(maps), SPACING).any()


@pytest.mark.parametrize("name", [name for name in POSTPROCESSINGS.names()])
def test_keeps_positive_is_declared_correctly(maps: Array, name: str) -> None:
    """Non-negative maps are unchanged exactly if the decorator declares ``keeps_positive``."""
    entry = POSTPROCESSINGS.get(name)
    same = np.array_equal(entry.function(np.abs(maps), SPACING), np.abs(maps))
    assert same == bool(entry.facts.get("keeps_positive"))


def test_rectified_maps_sum_to_the_size(maps: Array) -> None:
    """The size is the positive part of a map plus that of its negative; the signed map is their difference."""
    up, down = rectified(maps, SPACING), rectified(-maps, SPACING)
    assert np.array_equal(up + down, rectified(maps, SPACING, keep="size"))
    assert np.array_equal(up - down, maps)


@pytest.mark.parametrize("keep", ["all", "positive"])
def test_unit_mass_sums_to_one(maps: Array, keep: str) -> None:
    """Absolute values over all channels sum to one, so scaling a map has no effect."""
    made = unit_mass(maps, SPACING, keep=keep)  # type: ignore[arg-type]
    assert np.abs(made).sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(unit_mass(10 * maps, SPACING, keep=keep), made, rtol=1e-5)  # type: ignore[arg-type]
    assert (keep == "all") == bool((made < 0).any())


def test_smoothing_kernel_has_the_given_fwhm() -> None:
    """At half the FWHM from a point, the smoothed value is half the peak along every axis; channels do not mix."""
    point = np.zeros((2, 41, 41, 41), np.float32)
    point[1, 20, 20, 20] = 1
    made = smoothed(point, SPACING, fwhm_mm=16.0)
    assert not made[0].any() and made.sum() == pytest.approx(1, rel=5e-3)
    peak = made[1, 20, 20, 20]
    for place in ((28, 20, 20), (20, 24, 20), (20, 20, 22)):
        assert made[1][place] == pytest.approx(peak / 2, rel=0.02)
