"""SVR-LSM against scikit-learn's support vector regression, and its map against the definition."""

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
    """Boxes with partial occupancies and two scores with noise."""
    rng = np.random.default_rng(seed)
    lesions = np.zeros((patients, *SHAPE), dtype=np.float32)
    for lesion in lesions:
        low = [rng.integers(0, size - 2) for size in SHAPE]
        lesion[tuple(slice(a, a + rng.integers(2, 5)) for a in low)] = rng.integers(1, 5) / 4
    loads = [lesions[:, 3:5, 2:4, 2:4].mean((1, 2, 3)), lesions[:, 4:6, 3:5, 1:3].mean((1, 2, 3))]
    scores = np.stack(loads, axis=1) + 0.05 * rng.normal(size=(patients, 2))
    return scipy.sparse.csr_array(lesions.reshape(patients, -1)), scores


def fitted(lesions: Any, scores: np.ndarray, **options: Any) -> Any:
    """A fitted regression."""
    model = models.build("svr_lsm", outputs=scores.shape[1], image_shape=SHAPE, **{"minimum": 3, **options})
    model.fit(lesions, scores, rng=np.random.default_rng(0))
    return model.eval()


def predicted(model: Any, lesions: Any) -> np.ndarray:
    """(n, K) predicted scores."""
    with torch.no_grad():
        return model(torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))).numpy()


def reference(lesions: Any, score: np.ndarray, normalise: Any = "unit", **options: Any) -> tuple[Any, np.ndarray]:
    """scikit-learn's regression of the score, scaled to a maximum of 100, and its dense input."""
    dense = lesions.toarray().astype(float) / lesion_sizes(lesions, normalise)[:, None]
    return SVR(**{"gamma": 5, "C": 30, "epsilon": 0.1, "tol": 1e-3, **options}).fit(
        dense, 100 * score / np.abs(score).max()
    ), dense


@pytest.mark.parametrize("normalise", ["unit", "none", "dtlvc"])
def test_predictions_agree_with_scikit_learn(normalise: Any) -> None:
    """Predictions of new patients agree with scikit-learn for the published γ = 5, C = 30 and ε = 0.1."""
    (lesions, scores), (others, _) = cohort(), cohort(20, seed=1)
    model = fitted(lesions, scores, normalise=normalise)
    for k, score in enumerate(scores.T):
        regression, _ = reference(lesions, score, normalise)
        dense = others.toarray().astype(float) / lesion_sizes(others, normalise)[:, None]
        expected = regression.predict(dense) * np.abs(score).max() / 100
        np.testing.assert_allclose(predicted(model, others)[:, k], expected, atol=2e-4)


def test_map_agrees_with_the_definition() -> None:
    """The map is Σ aᵢ xᵢ over the support vectors in frequent voxels, scaled to a maximum of 10."""
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
    """The options γ, C, ε and score maximum are used."""
    lesions, scores = cohort()
    model = fitted(lesions, scores[:, :1], gamma=0.5, cost=3.0, epsilon=1.0, score_maximum=10.0)
    dense = lesions.toarray().astype(float) / lesion_sizes(lesions, "unit")[:, None]
    unit = 10 / np.abs(scores[:, 0]).max()
    expected = SVR(gamma=0.5, C=3.0, epsilon=1.0).fit(dense, unit * scores[:, 0]).predict(dense) / unit
    np.testing.assert_allclose(predicted(model, lesions)[:, 0], expected, atol=2e-3)


def test_scaling_the_score_equals_scaling_cost_and_epsilon() -> None:
    """A score scaled to 100 with C = 30 and ε = 0.1 equals one scaled to 1 with C = 0.3 and ε = 0.001."""
    lesions, scores = cohort()
    scores = scores / np.abs(scores).max(0)
    hundred = fitted(lesions, scores)
    one = fitted(lesions, scores, score_maximum=1.0, cost=0.3, epsilon=0.001)
    np.testing.assert_allclose(predicted(hundred, lesions), predicted(one, lesions), atol=2e-3)


def test_kernel_of_raw_lesions_vanishes() -> None:
    """Without normalisation and with γ = 5, new patients get the same prediction wherever the lesion lies."""
    (lesions, scores), (others, _) = cohort(), cohort(20, seed=1)
    new = [i for i in range(20) if ((lesions.toarray() - others.toarray()[i]) ** 2).sum(1).min() > 5]
    values = predicted(fitted(lesions, scores, normalise="none"), others)[new]
    assert len(new) >= 5
    assert np.ptp(values, axis=0) == pytest.approx([0, 0], abs=1e-6)


def test_tuning_predicts_new_patients_better() -> None:
    """Tuning by inner cross-validation predicts new patients better than ill-fitting published settings."""
    train, (lesions, scores) = cohort(150), cohort(150, seed=1)
    errors = [np.mean((predicted(fitted(*train, tune=tune), lesions) - scores) ** 2) for tune in (False, True)]
    assert errors[1] < 0.8 * errors[0]


def test_tuning_is_reproducible() -> None:
    """Tuning with the same generator gives the same weights."""
    first, second = (fitted(*cohort(), tune=True) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_support_vectors_are_stored_as_runs() -> None:
    """Support vectors are stored as runs of equal values: two runs, two runs, one run and none."""
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


def test_negative_scores_give_negative_predictions() -> None:
    """Negated scores give negated predictions."""
    lesions, scores = cohort()
    np.testing.assert_allclose(
        predicted(fitted(lesions, -scores), lesions), -predicted(fitted(lesions, scores), lesions), atol=2e-3
    )
