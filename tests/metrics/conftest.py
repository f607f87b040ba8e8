"""Masks on a grid with unequal axes and spacing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from harness.metrics.metric_inputs import Lesions, find_lesions

SHAPE = (20, 18, 16)
SPACING_MM = (1.0, 0.8, 2.0)


@pytest.fixture
def spacing_mm() -> tuple[float, float, float]:
    """Voxel size along X, Y, Z."""
    return SPACING_MM


@pytest.fixture
def blobs() -> Callable[[int], np.ndarray]:
    """A function that makes a (X, Y, Z) bool mask of smooth random blobs, about 5 % of the volume."""

    def make(seed: int) -> np.ndarray:
        field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.0)
        return field > np.quantile(field, 0.95)

    return make


@pytest.fixture
def points() -> Callable[..., Lesions]:
    """A function that makes lesions of one voxel each at the given indices."""

    def make(*voxels: tuple[int, int, int], shape=SHAPE, spacing_mm=SPACING_MM) -> Lesions:
        mask = np.zeros(shape, dtype=bool)
        for voxel in voxels:
            mask[voxel] = True
        return find_lesions(mask, spacing_mm)

    return make
