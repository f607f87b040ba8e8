"""SVR-LSM against scikit-learn's own kernel on dense matrices, and its map against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.svm import SVR

from harness import models
from harness.models.fitting import lesion_sizes

SHAPE = (7, 6, 5)


def cohort(patients: int = 50, *, seed: int = 0) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Boxes with fractional occupancies, two scores with noise."""
    rng = np.random.default_rng(seed)
    lesions = np.zeros((patients, *SHAPE), dtype=np.float32)
    for lesion in lesions:
        low = [rng.integers(0, size - 2) for size in SHAPE]
        lesion[tuple(slice(a, a + rng.integers(2, 5)) for a in low)] = rng.integers(1, 5) / 4
    loads = [lesions[:, 3:5, 2:4, 2:4].mean((1, 2, 3)), lesions[:, 4:6, 3:5, 1:3].mean((1, 2, 3))]
    scores = np.stack(loads, axis=1) + 0.05 * rng.normal(size=(patients, 2))
    return scipy.sparse.csr_array(lesions.reshape(patients, -1)), scores


def fitted(lesions: Any, scores: np.ndarray, **options: Any) -> Any:
    """A regression that has learned."""
    model = models.build("svr_lsm", outputs=scores.shape[1], image_shape=SHAPE, **{"minimum": 3, **options})
    model.fit(lesions, scores, rng=np.random.default_rng(0))
    return model.eval()


def predicted(model: Any, lesions: Any) -> np.ndarray:
    """(n, K)."""
    with torch.no_grad():
        return model(torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))).numpy()


def reference(lesions: Any, score: np.ndarray, normalise: Any = "unit", **options: Any) -> tuple[Any, np.ndarray]:
    """scikit-learn's regression of the score, scaled to a largest size of 100, and its dense input."""
    dense = lesions.toarray().astype(float) / lesion_sizes(lesions, normalise)[:, None]
    return SVR(**{"gamma": 5, "C": 30, "epsilon": 0.1, "tol": 1e-3, **options}).fit(
        dense, 100 * score / np.abs(score).max()
    ), dense


@pytest.mark.parametrize("normalise", ["unit", "none", "dtlvc"])
def test_predictions_are_scikit_learn_s(normalise: Any) -> None:
    """With the published settings: γ = 5, C = 30, ε = 0.1 on scores up to 100, for new patients too."""
    (lesions, scores), (others, _) = cohort(), cohort(20, seed=1)
    model = fitted(lesions, scores, normalise=normalise)
    for k, score in enumerate(scores.T):
        regression, _ = reference(lesions, score, normalise)
        dense = others.toarray().astype(float) / lesion_sizes(others, normalise)[:, None]
        expected = regression.predict(dense) * np.abs(score).max() / 100
        np.testing.assert_allclose(predicted(model, others)[:, k], expected, atol=2e-4)


def test_map_is_the_published_one() -> None:
    """Σ aᵢ xᵢ over the support vectors, scaled to a largest size of 10, in the frequent voxels."""
    lesions, scores = cohort()
    frequent = (lesions.toarray() > 0).sum(0) >= 8
    found = fitted(lesions, scores, minimum=8).weight_map().flatten(1).numpy()
    for k, score in enumerate(scores.T):
        regression, _ = reference(lesions, score)
        beta = (regression.dual_coef_ @ regression.support_vectors_)[0]
        np.testing.assert_allclose(found[k, frequent], 10 * (beta / np.abs(beta[frequent]).max())[frequent], atol=0.02)
        assert not found[k, ~frequent].any()
        assert np.abs(found[k]).max() == pytest.approx(10)


def test_options_reach_the_regression() -> None:
    """γ, C, ε and the scale of the score are those that were asked for."""
    lesions, scores = cohort()
    model = fitted(lesions, scores[:, :1], gamma=0.5, cost=3.0, epsilon=1.0, score_maximum=10.0)
    dense = lesions.toarray().astype(float) / lesion_sizes(lesions, "unit")[:, None]
    unit = 10 / np.abs(scores[:, 0]).max()
    expected = SVR(gamma=0.5, C=3.0, epsilon=1.0).fit(dense, unit * scores[:, 0]).predict(dense) / unit
    np.testing.assert_allclose(predicted(model, lesions)[:, 0], expected, atol=2e-3)


def test_unscaled_score_is_as_if_cost_and_width_were_smaller() -> None:
    """Scaling the score by 100 with C = 30, ε = 0.1 is C = 0.3, ε = 0.001 on scores up to 1."""
    lesions, scores = cohort()
    scores = scores / np.abs(scores).max(0)
    hundred = fitted(lesions, scores)
    one = fitted(lesions, scores, score_maximum=1.0, cost=0.3, epsilon=0.001)
    np.testing.assert_allclose(predicted(hundred, lesions), predicted(one, lesions), atol=2e-3)


def test_raw_lesions_are_strangers_to_each_other() -> None:
    """With γ = 5 and whole voxels a new patient gets the same answer wherever the lesion lies."""
    (lesions, scores), (others, _) = cohort(), cohort(20, seed=1)
    new = [i for i in range(20) if ((lesions.toarray() - others.toarray()[i]) ** 2).sum(1).min() > 5]
    values = predicted(fitted(lesions, scores, normalise="none"), others)[new]
    assert len(new) >= 5
    assert np.ptp(values, axis=0) == pytest.approx([0, 0], abs=1e-6)


def test_tuning_predicts_new_patients_better() -> None:
    """Inner cross-validation beats the published settings where these do not fit."""
    train, (lesions, scores) = cohort(150), cohort(150, seed=1)
    errors = [np.mean((predicted(fitted(*train, tune=tune), lesions) - scores) ** 2) for tune in (False, True)]
    assert errors[1] < 0.8 * errors[0]


def test_tuning_is_repeatable() -> None:
    """The folds come from the generator."""
    first, second = (fitted(*cohort(), tune=True) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_support_vectors_are_kept_as_runs() -> None:
    """Hand-worked: two runs in the first lesion, one of two values in the second is two."""
    lesions = np.zeros((4, *SHAPE), dtype=np.float32)
    lesions[0, 0, 0, :3] = 1
    lesions[0, 1, 0, 1:4] = 1
    lesions[1, 2, 2, :2] = 0.5
    lesions[1, 2, 2, 2:4] = 1
    lesions[2, 3, :, :] = 1
    scores = np.array([[0.0], [1.0], [2.0], [3.0]])
    model = fitted(scipy.sparse.csr_array(lesions.reshape(4, -1)), scores, minimum=1, normalise="none")
    assert model.vectors.bounds.tolist() == [0, 2, 4, 5, 5]
    assert model.vectors.starts.tolist() == [0, 31, 70, 72, 90]
    assert model.vectors.ends.tolist() == [3, 34, 72, 74, 120]
    assert model.vectors.values.tolist() == [1, 1, 0.5, 1, 1]


def test_negative_scores_are_scaled_by_their_size() -> None:
    """Scores that are all negative give the mirror image."""
    lesions, scores = cohort()
    np.testing.assert_allclose(
        predicted(fitted(lesions, -scores), lesions), -predicted(fitted(lesions, scores), lesions), atol=2e-3
    )
