"""Regression on volume and covariates against scikit-learn and leave-one-out by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from harness import models
from harness.core.errors import OutOfRange
from harness.models.total_volume import leave_one_out_error

SHAPE = (6, 5, 4)
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda volume: volume,
    "square root": np.sqrt,
    "logarithm": lambda volume: np.log1p(volume / (0.01 * np.median(volume))),
}


def lesions_of(patients: int = 50, *, seed: int = 0) -> Any:
    """Lesions with a skewed distribution of volumes."""
    rng = np.random.default_rng(seed)
    share = np.exp(rng.uniform(-4, -0.1, patients))
    return scipy.sparse.csr_array((rng.random((patients, int(np.prod(SHAPE)))) < share[:, None]).astype(np.float32))


def fitted(lesions: Any, scores: np.ndarray, covariates: np.ndarray | None = None) -> Any:
    """A fitted model."""
    count = 0 if covariates is None else covariates.shape[1]
    model: Any = models.build("total_volume", outputs=scores.shape[1], image_shape=SHAPE, covariates=count)
    given = {} if covariates is None else {"covariates": covariates}
    model.fit(lesions, scores, rng=np.random.default_rng(0), **given)
    return model.eval()


def predicted(model: Any, lesions: Any, covariates: np.ndarray | None = None) -> np.ndarray:
    """(n, K) predicted scores."""
    inputs = [torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))]
    if covariates is not None:
        inputs.append(torch.from_numpy(covariates.astype(np.float32)))
    with torch.no_grad():
        return np.asarray(model(*inputs).numpy())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_of_the_volume_is_chosen(name: str) -> None:
    """For scores that depend on a function of the volume, the model is the regression on this function."""
    lesions, rng = lesions_of(), np.random.default_rng(1)
    values = FUNCTIONS[name](np.asarray(lesions.sum(axis=1)).ravel())[:, None]
    scores = 2 * values / values.std() + 0.1 * rng.normal(size=(len(values), 1)) + 3
    expected = LinearRegression().fit(values, scores).predict(values)
    np.testing.assert_allclose(predicted(fitted(lesions, scores), lesions), expected, rtol=1e-5)


def test_each_score_has_its_own_choice() -> None:
    """Two scores can use different functions and covariates."""
    lesions, rng = lesions_of(), np.random.default_rng(2)
    volume, age = np.asarray(lesions.sum(axis=1)).ravel(), rng.normal(70, 10, 50)
    scores = np.stack([np.sqrt(volume), volume / 10 + 0.5 * age], axis=1) + 0.05 * rng.normal(size=(50, 2))
    slopes = fitted(lesions, scores, age[:, None]).slopes.numpy()
    assert (slopes != 0).tolist() == [[False, True, False, slopes[0, 3] != 0], [True, False, False, True]]
    assert slopes[1, 3] == pytest.approx(0.5, abs=0.01) and abs(slopes[0, 3]) < 0.01


def test_covariates_without_information_are_left_out() -> None:
    """Of 20 random covariates, most sets increase the leave-one-out error, and are then not used."""
    lesions, rng = lesions_of(), np.random.default_rng(3)
    scores = np.sqrt(np.asarray(lesions.sum(axis=1))).reshape(-1, 1) + rng.normal(size=(50, 1))
    assert not fitted(lesions, scores, rng.normal(size=(50, 20))).slopes[0, 3:].any()


def test_unknown_covariates() -> None:
    """A covariate that is unknown for a training patient is not used; unknown later, it has the training mean."""
    lesions, rng = lesions_of(), np.random.default_rng(4)
    covariates = np.stack([rng.normal(70, 10, 50), rng.normal(size=50)], axis=1)
    scores = covariates @ [[1.0], [5.0]] + 0.01 * rng.normal(size=(50, 1))
    covariates[7, 1] = np.nan
    model = fitted(lesions, scores, covariates)
    assert model.slopes[0, 3] != 0 and model.slopes[0, 4] == 0
    unknown = np.full((1, 2), np.nan)
    mean = np.array([[covariates[:, 0].mean(), 0.0]])
    np.testing.assert_allclose(predicted(model, lesions[[3]], unknown), predicted(model, lesions[[3]], mean), rtol=1e-6)


def test_leave_one_out_error_is_that_of_refits() -> None:
    """The error agrees with one refit per patient, also with columns of different magnitude."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(30, 3)) * [1, 1e3, 1e-2] + [0, 1e5, 10]
    target = values @ [1, 1e-3, 50] + rng.normal(size=30)
    refits = cross_val_predict(LinearRegression(), values, target, cv=LeaveOneOut())
    assert leave_one_out_error(values, target) == pytest.approx(np.mean((refits - target) ** 2), rel=1e-6)


def test_a_column_with_one_patient_has_no_leave_one_out_error() -> None:
    """A coefficient that one patient determines cannot be tested without this patient."""
    assert leave_one_out_error(np.eye(8)[:, :1], np.arange(8.0)) == float("inf")


def test_the_map_is_the_slope_at_the_mean_volume() -> None:
    """The map is constant, with the derivative of the score by one voxel at the mean volume."""
    lesions, rng = lesions_of(), np.random.default_rng(6)
    volume = np.asarray(lesions.sum(axis=1)).ravel()
    scores = np.log(volume + 0.1)[:, None] + 0.1 * rng.normal(size=(50, 1))
    model = fitted(lesions, scores)
    whole = torch.full((1, 1, *SHAPE), float(volume.mean()) / np.prod(SHAPE), dtype=torch.float64, requires_grad=True)
    model(whole).sum().backward()
    assert whole.grad is not None and len(model.weight_map().unique()) == 1
    torch.testing.assert_close(model.weight_map().double(), whole.grad, rtol=1e-4, atol=0)


def test_gradients_without_a_lesion_are_finite() -> None:
    """The square root has no infinite slope at volume zero."""
    lesions = lesions_of()
    model = fitted(lesions, np.sqrt(np.asarray(lesions.sum(axis=1))).reshape(-1, 1))
    empty = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    model(empty).sum().backward()
    assert empty.grad is not None and bool(torch.isfinite(empty.grad).all())


def test_covariates_of_another_number_are_refused() -> None:
    """There must be one row per patient and one column per covariate."""
    model: Any = models.build("total_volume", outputs=1, image_shape=SHAPE, covariates=2)
    with pytest.raises(OutOfRange, match=r"covariates must be \(50, 2\), one row per patient, got \(50, 1\)"):
        model.fit(lesions_of(), np.zeros((50, 1)), rng=np.random.default_rng(0), covariates=np.zeros((50, 1)))
