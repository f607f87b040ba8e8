"""The lesion field: recovery of unknown regions, and its components against slow replicas."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.interpolate import BPoly, RegularGridInterpolator
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score, r2_score

from harness import models
from harness.core.errors import OutOfRange
from harness.models.lesion_field import (
    _bounding_box,
    _curve,
    _Field,
    _Loads,
    _squared_correlation,
    _surface,
    _TotalVariation,
)

SHAPE = (14, 12, 10)


def cohort(patients: int = 200, *, seed: int = 0) -> np.ndarray:
    """(n, *SHAPE) boxes of many sizes with partial occupancy at one face."""
    rng = np.random.default_rng(seed)
    lesions = np.zeros((patients, *SHAPE), dtype=np.float32)
    for lesion in lesions:
        low = [int(rng.integers(-2, size - 1)) for size in SHAPE]
        high = [a + int(rng.integers(3, 8)) for a in low]
        lesion[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))] = 1
        lesion[max(low[0], 0)] *= rng.uniform(0.2, 1)
    return lesions


def region(*corner: int) -> np.ndarray:
    """A box of 4×3×3 voxels."""
    inside = np.zeros(SHAPE, dtype=bool)
    inside[tuple(slice(a, a + s) for a, s in zip(corner, (4, 3, 3), strict=True))] = True
    return inside


REGIONS = (region(2, 3, 2), region(8, 7, 5))


def loads(lesions: np.ndarray) -> np.ndarray:
    """(n, 2) lesion loads of the two regions."""
    return np.stack([lesions[:, inside].mean(1) for inside in REGIONS], axis=1).astype(np.float64)


def fitted(lesions: np.ndarray, scores: np.ndarray, *, seed: int = 0, **options: Any) -> Any:
    """A fitted lesion field."""
    model: Any = models.build(
        "lesion_field", outputs=scores.shape[1], image_shape=SHAPE, **{"steps": 150, "minimum": 1, **options}
    )
    model.fit(scipy.sparse.csr_array(lesions.reshape(len(lesions), -1)), scores, rng=np.random.default_rng(seed))
    model.eval()
    return model


def predicted(model: Any, lesions: np.ndarray) -> np.ndarray:
    """(n, K) predicted scores."""
    with torch.no_grad():
        scores: np.ndarray = model(torch.from_numpy(lesions)[:, None]).numpy()
        return scores


def precision(model: Any, output: int, inside: np.ndarray) -> float:
    """Average precision of the model's map."""
    return float(average_precision_score(inside.ravel(), model.weight_map()[output].numpy().ravel()))


def test_new_patients_are_predicted_and_both_regions_found() -> None:
    """Without noise, scores of new patients are predicted and both regions are found."""
    model, others = fitted(cohort(), loads(cohort())), cohort(seed=1)
    assert r2_score(loads(others), predicted(model, others)) > 0.97
    assert min(precision(model, k, inside) for k, inside in enumerate(REGIONS)) > 0.95


def test_a_score_may_have_several_regions() -> None:
    """A score of two regions gives a map that contains both."""
    lesions = cohort()
    model = fitted(lesions, loads(lesions).mean(1, keepdims=True))
    assert precision(model, 0, REGIONS[0] | REGIONS[1]) > 0.9


def test_a_decreasing_score_has_a_negative_map() -> None:
    """For a score that falls with the load, the map is negative and the prediction is mirrored."""
    lesions = cohort(80)
    up, down = fitted(lesions, loads(lesions)), fitted(lesions, 1 - loads(lesions))
    torch.testing.assert_close(down.weight_map(), -up.weight_map(), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(predicted(down, lesions), 1 - predicted(up, lesions), atol=1e-2)


def test_the_curve_follows_a_bent_score() -> None:
    """A score that is a logarithm of the load is predicted better with a curve than with a line."""
    lesions, others = cohort(), cohort(seed=1)
    bent, truth = (np.log1p(9 * loads(x)) / np.log(10) for x in (lesions, others))
    line, curve = (r2_score(truth, predicted(fitted(lesions, bent, degree=d), others)) for d in (1, 4))
    assert curve > line + 0.02


def test_scores_are_fitted_independently() -> None:
    """The map of a score does not depend on the other scores."""
    lesions = cohort(80)
    scores = loads(lesions)
    both, alone = fitted(lesions, scores), fitted(lesions, scores[:, 1:])
    torch.testing.assert_close(both.weight_map()[1:], alone.weight_map(), rtol=1e-2, atol=1e-4)


def test_map_scales_with_the_score() -> None:
    """The prediction and the map scale with the score."""
    lesions = cohort(80)
    one, other = fitted(lesions, loads(lesions)), fitted(lesions, 3 + 20 * loads(lesions))
    np.testing.assert_allclose(predicted(other, lesions), 3 + 20 * predicted(one, lesions), atol=0.05)
    torch.testing.assert_close(other.weight_map(), 20 * one.weight_map(), rtol=1e-2, atol=1e-3)


def test_fit_is_deterministic() -> None:
    """The fit is deterministic and uses neither the generator nor torch's random state."""
    lesions = cohort(40)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        one = fitted(lesions, loads(lesions), steps=20)
        assert torch.equal(torch.random.get_rng_state(), before)
    other = fitted(lesions, loads(lesions), steps=20, seed=9)
    assert torch.equal(one.weight_map(), other.weight_map())


def test_region_weights_are_positive_and_sum_to_one() -> None:
    """A region has positive weights with sum 1 and is zero where no lesion occurs."""
    lesions = cohort(60)
    lesions[:, :, :, 7:] = 0
    model = fitted(lesions, loads(lesions), steps=20)
    assert bool((model.region >= 0).all())
    torch.testing.assert_close(model.region.flatten(1).sum(1), torch.ones(2))
    assert not model.region[..., 7:].any()


def test_line_is_least_squares_on_the_load() -> None:
    """Slope and bias are scikit-learn's linear regression on the region's load."""
    lesions = cohort(60)
    model = fitted(lesions, loads(lesions), steps=20, degree=1)
    load = lesions.reshape(60, -1) @ model.region[0].flatten().numpy()
    reference = LinearRegression().fit(load[:, None], loads(lesions)[:, 0])
    np.testing.assert_allclose(model.slope[0], reference.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(model.bias[0], reference.intercept_, rtol=1e-3, atol=1e-5)


def test_compactness_lowers_the_surface() -> None:
    """Compactness gives a region with less surface for its volume."""
    lesions = cohort(80)
    noisy = loads(lesions) + np.random.default_rng(2).normal(size=(80, 2)) * loads(lesions).std(0)
    free, compact = (_surface(fitted(lesions, noisy, compactness=c).region[:, 0]) for c in (0.0, 0.3))
    assert bool((compact < 0.7 * free).all())


def test_surface_of_a_box_is_what_is_counted_by_hand() -> None:
    """A single voxel has three steps to its own neighbours and one from each of the three before it."""
    image = torch.zeros(1, 5, 5, 5)
    image[0, 2, 2, 2] = 0.01
    # Three voxels with one step of 1 each, and the voxel itself with steps of 1 along all axes.
    torch.testing.assert_close(_surface(image), torch.tensor([3 + 3**0.5]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("height", [1e-4, 1.0])
def test_surface_does_not_depend_on_size_and_height(height: float) -> None:
    """The surface does not depend on size and height of a cube, except for corners, also at the border."""
    image = torch.zeros(3, 12, 12, 12)
    image[0, 2:6, 2:6, 2:6] = height
    image[1, 2:10, 2:10, 2:10] = height
    image[2, :4, :4, :4] = height
    small, large, border = _surface(image)
    torch.testing.assert_close(small, large, rtol=0.05, atol=0)
    torch.testing.assert_close(small, border)


def _variation(image: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _TotalVariation.apply(image)  # type: ignore[no-untyped-call]
    return total


def test_total_variation_agrees_with_its_definition() -> None:
    """Total variation agrees with a slow replica: the length of the forward differences of each voxel."""
    image = torch.rand(1, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for place in itertools.product(*map(range, image.shape[1:])):
        steps = []
        for axis in range(3):
            ahead = list(place)
            ahead[axis] += 1
            inside = ahead[axis] < image.shape[1 + axis]
            steps.append(float(image[0][tuple(ahead)] - image[0][place]) if inside else 0.0)
        total += float(np.linalg.norm(steps))
    # The length is smoothed near zero by 0.001, except for voxels without any step.
    assert float(_variation(image)) == pytest.approx(total, abs=1e-3 * image.numel())


def test_derivative_of_total_variation() -> None:
    """The derivative of total variation agrees with finite differences."""
    image = torch.rand(2, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(_variation, (image.requires_grad_(),))


def test_derivative_of_the_loads() -> None:
    """The derivative of the loads agrees with finite differences."""
    lesions = scipy.sparse.random_array((6, 9), density=0.4, rng=np.random.default_rng(0), format="csr")
    regions = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: _Loads.apply(r, lesions, lesions.T.tocsr()), (regions,))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_curve_is_the_bernstein_polynomial_of_scipy(degree: int) -> None:
    """The curve is scipy's Bernstein polynomial with coefficients 0 and the cumulative rises."""
    rises = torch.rand(2, degree, dtype=torch.float64, generator=torch.Generator().manual_seed(degree)).softmax(1)
    load = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None].repeat(1, 2)
    ours = _curve(load, rises).numpy()
    for k in range(2):
        heights = np.r_[0, np.cumsum(rises[k].numpy())]
        np.testing.assert_allclose(ours[:, k], BPoly(heights[:, None], [0, 1])(load[:, k].numpy()), atol=1e-12)


def test_correlation_agrees_with_numpy() -> None:
    """The squared correlation agrees with numpy, column by column, and is 0 for a constant column."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    one[:, 2] = 4
    other -= other.mean(0)
    ours = _squared_correlation(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    reference = [np.corrcoef(one[:, k], other[:, k])[0, 1] ** 2 for k in range(2)]
    np.testing.assert_allclose(ours, [*reference, 0], atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 8, 7), (5, 6, 17), (2, 2, 2), (3, 1, 4)])
def test_field_is_a_sum_of_enlarged_grids(shape: tuple[int, int, int]) -> None:
    """The field is the sum of all grids, interpolated as by scipy and scaled to sum 1."""
    field = _Field(np.ones(shape, dtype=bool), 1, 1)
    generator = torch.Generator().manual_seed(0)
    total = np.zeros(shape)
    spacing = 2 ** (len(field.grids) - 1)
    for grid in field.grids:
        with torch.no_grad():
            grid.normal_(generator=generator)
        nodes = [np.arange(size) * spacing for size in grid.shape[2:]]
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        total += RegularGridInterpolator(nodes, grid[0, 0].detach().numpy())(voxels)
        spacing //= 2
    reference = np.exp(total) / np.exp(total).sum()
    np.testing.assert_allclose(field.regions()[0].detach().numpy(), reference, rtol=1e-4, atol=1e-7)


def test_box_reaches_all_voxels_and_is_two_wide() -> None:
    """The box contains all lesioned voxels and is at least two voxels wide."""
    assert _bounding_box(np.array([11]), (3, 4, 1)) == (slice(1, 3), slice(2, 4), slice(0, 1))
    assert _bounding_box(np.array([0, 21]), (4, 3, 4)) == (slice(0, 2), slice(0, 3), slice(0, 2))


def test_image_shape_is_required() -> None:
    """Building the model without an image shape is refused."""
    with pytest.raises(OutOfRange, match="`image_shape` must be three positive numbers"):
        models.build("lesion_field")
