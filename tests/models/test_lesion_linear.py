"""Linear lesion models against scikit-learn on dense matrices, and the matched filter against a slow search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import ElasticNet, Lasso, Ridge, RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from harness import models
from harness.core.errors import OutOfRange
from harness.models.fitting import lesion_sizes

SHAPE = (8, 7, 6)


def cohort(patients: int = 60, *, seed: int = 0) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Boxes with partial occupancies and two scores with noise."""
    rng = np.random.default_rng(seed)
    lesions = np.zeros((patients, *SHAPE), dtype=np.float32)
    for lesion in lesions:
        low = [rng.integers(0, size - 2) for size in SHAPE]
        lesion[tuple(slice(a, a + rng.integers(2, 5)) for a in low)] = rng.integers(1, 5) / 4
    loads = [lesions[:, 3:5, 2:4, 2:4].mean((1, 2, 3)), lesions[:, 5:7, 4:6, 1:3].mean((1, 2, 3))]
    scores = np.stack(loads, axis=1) + 0.05 * rng.normal(size=(patients, 2))
    return scipy.sparse.csr_array(lesions.reshape(patients, -1)), scores


def fitted(name: str, lesions: Any, scores: np.ndarray, **options: Any) -> Any:
    """A fitted model."""
    model = models.build(name, outputs=scores.shape[1], image_shape=SHAPE, **options)
    model.fit(lesions, scores, rng=np.random.default_rng(0))
    return model.eval()


def predicted(model: Any, lesions: Any) -> np.ndarray:
    """(n, K) predicted scores."""
    with torch.no_grad():
        return model(torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))).numpy()


def weights(model: Any) -> np.ndarray:
    """(K, V) weights."""
    return model.weight_map().flatten(1).numpy()


def used(lesions: Any, minimum: int) -> np.ndarray:
    """Voxels that are lesioned in at least this many patients."""
    return (lesions.toarray() > 0).sum(0) >= minimum


@pytest.mark.parametrize("normalise", ["none", "unit", "dtlvc"])
def test_ridge_agrees_with_scikit_learn(normalise: Any) -> None:
    """Ridge agrees with scikit-learn on frequent voxels, with the penalty in units of the mean squared length."""
    lesions, scores = cohort()
    where = used(lesions, 5)
    dense = lesions.toarray().astype(float) / lesion_sizes(lesions, normalise)[:, None]
    x = dense[:, where]
    unit = ((x - x.mean(0)) ** 2).sum(1).mean()
    reference = Ridge(alpha=0.3 * unit).fit(x, scores)
    model = fitted("ridge", lesions, scores, alpha=0.3, normalise=normalise, minimum=5)
    np.testing.assert_allclose(weights(model)[:, where], reference.coef_, rtol=1e-4, atol=1e-7)
    assert not weights(model)[:, ~where].any()
    np.testing.assert_allclose(predicted(model, lesions), reference.predict(x), rtol=1e-4, atol=1e-6)


def test_ridge_takes_the_penalty_with_the_least_leave_one_out_error() -> None:
    """The penalty of each score minimises the leave-one-out error, found by leaving out every patient."""
    lesions, scores = cohort(25)
    x = lesions.toarray().astype(float)[:, used(lesions, 1)]
    unit = ((x - x.mean(0)) ** 2).sum(1).mean()
    chosen = []
    for score in scores.T:
        errors = {
            alpha: np.sum((cross_val_predict(Ridge(alpha=alpha * unit), x, score, cv=LeaveOneOut()) - score) ** 2)
            for alpha in 10.0 ** np.arange(-3, 3.5, 0.5)
        }
        chosen.append(min(errors, key=errors.__getitem__))
    model = fitted("ridge", lesions, scores, minimum=1)
    for k, alpha in enumerate(chosen):
        same = fitted("ridge", lesions, scores, minimum=1, alpha=alpha)
        np.testing.assert_allclose(weights(model)[k], weights(same)[k], rtol=1e-4, atol=1e-7)


def test_ridge_penalises_noise_more_than_signal() -> None:
    """A score of pure noise gets a larger penalty than one that the lesions determine."""
    lesions, scores = cohort()
    noise = np.random.default_rng(5).normal(size=len(scores))
    size = np.abs(weights(fitted("ridge", lesions, np.c_[scores[:, 0] / scores[:, 0].std(), noise], minimum=5))).max(1)
    assert size[0] > 3 * size[1]


def test_lasso_agrees_with_scikit_learn() -> None:
    """Predictions agree with scikit-learn's lasso on all voxels, and identical voxels share one weight."""
    lesions, scores = cohort()
    where = used(lesions, 5)
    x = lesions.toarray().astype(float)[:, where]
    model = fitted("sparse_linear", lesions, scores, alpha=0.1, minimum=5)
    for k, score in enumerate(scores.T):
        largest = np.abs(x.T @ (score - score.mean())).max() / len(score)
        reference = Lasso(alpha=0.1 * largest, max_iter=100_000, tol=1e-8).fit(x, score)
        np.testing.assert_allclose(predicted(model, lesions)[:, k], reference.predict(x), atol=2e-3)
        assert np.abs(weights(model)[k]).sum() == pytest.approx(np.abs(reference.coef_).sum(), rel=0.02)


def test_elastic_net_agrees_with_scikit_learn() -> None:
    """Weights agree with scikit-learn's elastic net, whose solution is unique."""
    lesions, scores = cohort()
    where = used(lesions, 5)
    x, score = lesions.toarray().astype(float)[:, where], scores[:, 0]
    alpha = 0.1 * np.abs(x.T @ (score - score.mean())).max() / (len(score) * 0.5)
    reference = ElasticNet(alpha=alpha, l1_ratio=0.5, max_iter=100_000, tol=1e-8).fit(x, score)
    model = fitted("sparse_linear", lesions, scores[:, :1], alpha=0.1, l1_ratio=0.5, minimum=5)
    np.testing.assert_allclose(weights(model)[0, where], reference.coef_, atol=2e-3)


def test_identical_voxels_share_their_weight_evenly() -> None:
    """Two voxels with identical lesions have the same weight."""
    lesions, scores = cohort()
    dense = lesions.toarray()
    seen, same = np.unique(dense.T, axis=0, return_inverse=True)
    model = fitted("sparse_linear", lesions, scores, alpha=0.05, minimum=1)
    for pattern in range(len(seen)):
        assert np.ptp(weights(model)[0, same.ravel() == pattern]) == 0


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_the_largest_penalty_gives_zero_weights(l1_ratio: float) -> None:
    """``alpha`` is relative to the smallest penalty for which all weights are zero."""
    lesions, scores = cohort()
    options = {"l1_ratio": l1_ratio, "minimum": 5}
    assert not weights(fitted("sparse_linear", lesions, scores, alpha=1.0, **options)).any()
    assert weights(fitted("sparse_linear", lesions, scores, alpha=0.95, **options)).any(1).all()


def test_sparse_model_finds_a_penalty_that_predicts_other_patients() -> None:
    """Inner cross-validation predicts new patients as well as the best of a fixed grid, within 10 %."""
    train, test = cohort(100), cohort(100, seed=1)

    def error(**options: Any) -> float:
        model = fitted("sparse_linear", *train, minimum=3, **options)
        return float(np.mean((predicted(model, test[0]) - test[1]) ** 2))

    assert error() < 1.1 * min(error(alpha=a) for a in (0.01, 0.03, 0.1, 0.3, 0.9))


def _loads(lesions: Any, region: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """For the corner of each position, the mean occupancy of each patient, summed voxel by voxel."""
    dense = lesions.toarray().astype(float).reshape(-1, *SHAPE)
    size = len(region)
    places = itertools.product(*(range(length - size + 1) for length in SHAPE))
    return {place: dense[(slice(None), *(slice(a, a + size) for a in place))][:, region].mean(1) for place in places}


def _box(place: tuple[int, ...], region: np.ndarray) -> np.ndarray:
    whole = np.zeros(SHAPE, dtype=bool)
    whole[tuple(slice(a, a + len(region)) for a in place)] = region
    return whole.ravel()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_matched_filter_finds_the_best_box(size: int) -> None:
    """The box with the largest correlation over all positions is found, with least-squares weights."""
    lesions, scores = cohort()
    region = np.ones((size,) * 3, dtype=bool)
    loads = {p: load for p, load in _loads(lesions, region).items() if (load > 0).sum() >= 3 and np.ptp(load)}
    model = fitted("matched_filter", lesions, scores, roi_size=size, minimum=3)
    for k, score in enumerate(scores.T):
        best = max(loads, key=lambda place: np.corrcoef(loads[place], score)[0, 1])
        slope, bias = np.polyfit(loads[best], score, 1)
        np.testing.assert_allclose(weights(model)[k], slope * _box(best, region) / region.sum(), rtol=1e-5)
        assert float(model.bias[k]) == pytest.approx(bias, rel=1e-4, abs=1e-6)


def test_matched_filter_keeps_its_region_within_the_image() -> None:
    """The best box within the image is used if a better one would extend beyond it."""
    lesions, _ = cohort()
    score = lesions.toarray()[:, :1].astype(float)
    region = np.ones((3, 3, 3), dtype=bool)
    loads = {place: load for place, load in _loads(lesions, region).items() if np.ptp(load)}
    best = max(loads, key=lambda place: np.corrcoef(loads[place], score[:, 0])[0, 1])
    model = fitted("matched_filter", lesions, score, roi_size=3)
    np.testing.assert_array_equal(weights(model)[0] != 0, _box(best, region))


def test_matched_filter_finds_the_best_ball() -> None:
    """A ball of four voxels contains 32 of 64 voxels and must lie within the image."""
    from harness.simulation.lesion_scores import element

    lesions, scores = cohort()
    region = element("ball", 4)
    assert region.sum() == 32
    loads = {p: load for p, load in _loads(lesions, region).items() if np.ptp(load)}
    best = max(loads, key=lambda place: np.corrcoef(loads[place], scores[:, 0])[0, 1])
    model = fitted("matched_filter", lesions, scores[:, :1], roi_shape="ball", roi_size=4)
    np.testing.assert_array_equal(weights(model)[0] != 0, _box(best, region))


def test_matched_filter_predicts_a_load_exactly() -> None:
    """Without noise, the matched filter predicts the load of a box exactly."""
    lesions, _ = cohort()
    load = _loads(lesions, np.ones((2, 2, 2), dtype=bool))[(3, 2, 2)][:, None]
    model = fitted("matched_filter", lesions, load, roi_size=2)
    np.testing.assert_allclose(predicted(model, lesions), load, atol=1e-6)


def test_several_boxes_explain_a_sum() -> None:
    """For a score of two regions, the second box explains the residual of the first."""
    lesions, _ = cohort(200)
    loads = _loads(lesions, np.ones((2, 2, 2), dtype=bool))
    score = (loads[(1, 1, 1)] + loads[(5, 4, 3)])[:, None]
    one, two = (fitted("matched_filter", lesions, score, roi_size=2, boxes=boxes, minimum=5) for boxes in (1, 2))
    left = [float(np.mean((predicted(model, lesions) - score) ** 2)) for model in (one, two)]
    assert left[1] < 1e-10 < 1e-4 < left[0]


def test_matched_filter_refuses_a_region_larger_than_the_image() -> None:
    """A region larger than the image is refused."""
    with pytest.raises(OutOfRange, match=r"the region must fit into the image, got 7 voxels"):
        models.build("matched_filter", image_shape=SHAPE, roi_size=7)


def test_matched_filter_needs_a_frequently_lesioned_position() -> None:
    """If no position is lesioned often enough, the error suggests a remedy."""
    with pytest.raises(OutOfRange, match=r"at least 61 of 60 training patients, but none is; reduce model\.minimum"):
        fitted("matched_filter", *cohort(), roi_size=2, minimum=61)


def test_ridge_agrees_with_generalised_cross_validation() -> None:
    """Ridge in the space of patients agrees with scikit-learn's generalised cross-validation."""
    lesions, scores = cohort()
    x = lesions.toarray().astype(float)[:, used(lesions, 5)]
    unit = ((x - x.mean(0)) ** 2).sum(1).mean()
    reference = RidgeCV(10.0 ** np.arange(-3, 3.5, 0.5) * unit, alpha_per_target=True).fit(x, scores)
    model = fitted("ridge", lesions, scores, minimum=5)
    np.testing.assert_allclose(predicted(model, lesions), reference.predict(x), rtol=1e-4, atol=1e-5)
