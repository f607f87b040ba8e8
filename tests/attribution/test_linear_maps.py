"""Maps of exact linear models against captum, and ceilings worked out for windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from harness.attribution.linear_maps import exact_map, windowed
from harness.core.errors import OutOfRange
from harness.core.types import Array


def _cube(corner: Sequence[int], size: int, shape: tuple[int, ...]) -> Array:
    """A cube from its first voxel, as a mask."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + size) for start in corner)] = True
    return mask


class _Oracle(nn.Module):
    """A model that computes scores exactly from the loads of the regions."""

    def __init__(self, regions: Sequence[Array], weights: Array) -> None:
        super().__init__()
        means = np.stack([region / region.sum() for region in regions])
        self.register_buffer("kernel", torch.as_tensor(np.tensordot(weights, means, axes=1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.einsum("ncxyz,kxyz->nk", x, self.kernel)
        return out


def _oracle(shape: tuple[int, int, int] = (11, 12, 10)) -> tuple[_Oracle, list[Array], Array, Tensor]:
    regions = [_cube(corner, 4, shape) for corner in ((1, 1, 1), (5, 7, 5), (1, 6, 2))]
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
    masks = torch.as_tensor(np.random.default_rng(2).random((5, 1, *shape)) < 0.4, dtype=torch.float64)
    return _Oracle(regions, weights), regions, weights, masks


def test_exact_map_is_integrated_gradients_of_the_exact_model() -> None:
    """The exact map agrees with captum's integrated gradients, summed over five subjects."""
    model, regions, weights, masks = _oracle()
    expected = IntegratedGradients(model).attribute(masks, target=1, n_steps=3).sum(dim=(0, 1))
    counts = masks.sum(dim=(0, 1)).numpy()
    np.testing.assert_allclose(exact_map(counts, regions, weights[1]), expected.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("window", "stride"),
    [((5, 5, 5), (3, 3, 3)), ((8, 8, 8), (4, 4, 4)), ((4, 5, 3), (3, 2, 3)), ((11, 3, 1), (5, 1, 1))],
)
def test_windowed_map_is_occlusion_of_the_exact_model(window: Any, stride: Any) -> None:
    """The windowed map agrees with captum's occlusion, also where the border cuts the last window."""
    model, regions, weights, masks = _oracle()
    maps = Occlusion(model).attribute(
        masks, sliding_window_shapes=(1, *window), strides=(1, *stride), target=2, perturbations_per_eval=64
    )
    exact = exact_map(masks.sum(dim=(0, 1)).numpy(), regions, weights[2])
    # captum divides in single precision.
    np.testing.assert_allclose(windowed(exact, window, stride), maps.sum(dim=(0, 1)).numpy(), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize(("window", "stride"), [(3, 4), (5, 0), (9, 3), ((3, 3, 3), (1, 4, 1))])
def test_windows_that_leave_gaps_or_do_not_fit_are_refused(window: Any, stride: Any) -> None:
    """A stride of zero or above the window, or a window above the image, is refused."""
    with pytest.raises(OutOfRange, match="1 <= stride <= window <= size"):
        windowed(np.zeros((8, 8, 8)), window, stride)


def _alignment(corner: tuple[int, int, int], size: int, window: int, stride: int) -> tuple[float, float]:
    """Average precision and mass inside a region with a given alignment to the stride."""
    grid = (30, 30, 30)
    inside = _cube([3 * stride + c for c in corner], size, grid)
    seen = windowed(exact_map(np.ones(grid), [inside], [1.0]), window, stride)
    return float(average_precision_score(inside.ravel(), seen.ravel())), float(seen[inside].sum() / seen.sum())


@pytest.mark.parametrize(
    ("corner", "precision", "mass"),
    [((0, 0, 0), 0.977, 0.348), ((0, 1, 0), 0.914, 0.340), ((2, 0, 1), 0.874, 0.333), ((1, 2, 2), 0.852, 0.325)],
)
def test_ceiling_of_window_5_stride_3(corner: tuple[int, int, int], precision: float, mass: float) -> None:
    """Ceilings of window 5 and stride 3, the published setting, by alignment of the region."""
    got = _alignment(corner, 5, 5, 3)
    assert got[0] == pytest.approx(precision, abs=5e-4) and got[1] == pytest.approx(mass, abs=5e-4)


@pytest.mark.parametrize(
    ("corner", "precision"),
    [
        ((0, 0, 0), 1.000),
        ((0, 0, 3), 0.911),
        ((0, 2, 0), 0.833),
        ((1, 0, 3), 0.795),
        ((0, 1, 2), 0.754),
        ((2, 0, 2), 0.661),
        ((1, 3, 1), 0.681),
        ((1, 2, 1), 0.652),
        ((2, 3, 2), 0.597),
        ((2, 2, 2), 0.514),
    ],
)
def test_ceiling_of_window_8_stride_4(corner: tuple[int, int, int], precision: float) -> None:
    """Ceilings of window 8 and stride 4, as for ResNet10, by alignment of the region."""
    assert _alignment(corner, 8, 8, 4)[0] == pytest.approx(precision, abs=5e-4)


@pytest.mark.parametrize(("size", "stride", "mean"), [(5, 3, 0.880), (8, 4, 0.733)])
def test_mean_ceiling_over_all_alignments(size: int, stride: int, mean: float) -> None:
    """The mean over 27 and 64 alignments, computed once for those that differ by the order of axes."""
    corners = list(itertools.product(range(stride), repeat=3))
    values = {corner: _alignment(corner, size, size, stride)[0] for corner in {tuple(sorted(c)) for c in corners}}
    assert np.mean([values[tuple(sorted(c))] for c in corners]) == pytest.approx(mean, abs=5e-4)


def test_overlapping_masks_are_added() -> None:
    """A voxel in two masks has the sum of their weights per voxel."""
    shape = (3, 3, 3)
    found = exact_map(np.full(shape, 2), [_cube((0, 0, 0), 2, shape), _cube((1, 1, 1), 2, shape)], [1.0, 0.5])
    assert (found[0, 0, 0], found[1, 1, 1], found[2, 2, 2], found[0, 2, 0]) == (2 / 8, 3 / 8, 1 / 8, 0)
