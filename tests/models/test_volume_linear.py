"""Linear baselines of volumes: what they fit, their weights as maps, and the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from harness.core.errors import CellError, OutOfRange
from harness.core.registry import MODELS
from harness.core.types import Array, Input
from harness.models.fitting import FittedToVolumes
from harness.models.volume_linear import box_means, covariates_only, tract_means, voxel_ridge
from harness.simulation.ms import tract_share

SHAPE = (12, 14, 12)
INPUTS = (Input("image", ("qT1", "NDI"), SHAPE), Input("age", ("age",), explained=False))
NAMES = ("box_means", "covariates_only", "tract_means", "voxel_ridge")


def data(n: int = 60, *, effect: float = 2.5, seed: int = 0) -> tuple[Array, Array, Array]:
    """Images whose NDI in the tract depends on a label, ages that depend on it a little, and labels and numbers."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2).astype(float)
    images = rng.normal(0.5, 0.1, (n, 2, *SHAPE)).astype(np.float32)
    images[:, 1] -= (effect * 0.1 * labels)[:, None, None, None] * tract_share(SHAPE)
    ages = rng.normal(0.45, 0.1, (n, 1)) + 0.05 * labels[:, None]
    return images, ages, np.stack([labels, 3 * labels + rng.normal(size=n)], axis=1)


def fitted(name: str, kind: str = "binary", *, effect: float = 2.5, weights: Array | None = None) -> nn.Module:
    """A model fitted to the data."""
    images, ages, targets = data(effect=effect)
    model: Any = MODELS.get(name).function(INPUTS, 1)
    target = targets[:, [0 if kind == "binary" else 1]]
    model.fit_volumes(
        images,
        target,
        covariates=ages,
        weights=np.ones_like(target) if weights is None else weights,
        subjects=[f"s{number // 2}" for number in range(len(images))],
        kinds=[kind],
    )
    module: nn.Module = model
    return module


def scores(model: nn.Module, seed: int = 1, effect: float = 2.5) -> tuple[Array, Array]:
    """Outputs for new samples, and their labels."""
    images, ages, targets = data(200, seed=seed, effect=effect)
    with torch.no_grad():
        out = model(torch.from_numpy(images), torch.from_numpy(ages.astype(np.float32)))
    return out[:, 0].numpy(), targets[:, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["binary", "number"])
def test_predicts_new_samples(name: str, kind: str) -> None:
    """Models with images are far above chance, the oracle leads, and the map is the gradient."""
    model = fitted(name, kind)
    assert isinstance(model, FittedToVolumes)
    found, labels = scores(model)
    auc = roc_auc_score(labels, found)
    assert auc > {"box_means": 0.75, "covariates_only": 0.55, "tract_means": 0.95, "voxel_ridge": 0.7}[name]
    images = torch.zeros(1, 2, *SHAPE, requires_grad=True)
    model(images, torch.zeros(1, 1)).sum().backward()
    torch.testing.assert_close(images.grad, model.weight_map())


def test_oracle_looks_at_the_tract_only() -> None:
    """Its weights are proportional to the share of each voxel in the tract, and it is marked as an oracle."""
    weight = fitted("tract_means").weight_map()[0, 1].numpy()
    share = tract_share(SHAPE)
    np.testing.assert_allclose(weight / weight.sum(), share / share.sum(), atol=1e-6)
    assert MODELS.get("tract_means").facts["oracle"] and not MODELS.get("voxel_ridge").facts.get("oracle")


def test_covariates_alone_use_no_image() -> None:
    """The map is zero, and the model is the baseline for the gain."""
    model = fitted("covariates_only")
    assert not model.weight_map().any() and MODELS.get("covariates_only").facts["baseline"]
    with pytest.raises(OutOfRange, match="at least one covariate"):
        covariates_only(INPUTS[:1])


def test_without_an_effect_nothing_is_found_in_images() -> None:
    """If images do not depend on the label, voxels do not predict it."""
    found, labels = scores(fitted("voxel_ridge", effect=0.0), effect=0.0)
    assert abs(roc_auc_score(labels, found) - roc_auc_score(labels, scores(fitted("covariates_only"))[0])) < 0.2


def test_ridge_on_components_is_ridge_on_voxels() -> None:
    """The rotation to principal components changes nothing: the same model from all voxels."""
    images, _, targets = data(30)
    inputs = INPUTS[:1]
    model: Any = voxel_ridge(inputs, 1)
    nothing = {"covariates": np.zeros((30, 0)), "weights": np.ones((30, 1)), "subjects": [str(i) for i in range(30)]}
    model.fit_volumes(images, targets[:, :1], kinds=["binary"], **nothing)
    flat = images.reshape(30, 2, -1).astype(np.float64)
    centred = flat - flat.mean(0)
    scaled = (centred / centred.std(axis=(0, 2))[None, :, None]).reshape(30, -1)
    scale = np.sqrt(np.mean(np.linalg.svd(scaled, compute_uv=False) ** 2))
    best = min(
        np.abs(
            LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-10)
            .fit(scaled / scale, targets[:, 0])
            .decision_function(scaled / scale)
            - model(torch.from_numpy(images)).detach().numpy()[:, 0]
        ).max()
        for penalty in 10.0 ** np.arange(-4, 5)
    )
    assert best < 0.02  # decisions differ by about ten


def test_boxes_divide_the_image() -> None:
    """Each voxel is in one box; weights are constant within a box."""
    images, ages, targets = data()
    model: Any = box_means(INPUTS, 1, boxes=2)
    model.fit_volumes(
        images, targets[:, :1], covariates=ages, weights=np.ones((60, 1)),
        subjects=[str(i) for i in range(60)], kinds=["binary"],
    )  # fmt: skip
    assert len(np.unique(model.weight_map()[0, 0].numpy())) == 8


def test_weights_of_samples_count() -> None:
    """Samples with the weight 0 change nothing."""
    images, ages, targets = data()
    half = np.repeat([[1.0], [0.0]], 30, axis=0)
    first: Any = fitted("tract_means", weights=half)
    second: Any = tract_means(INPUTS, 1)
    images[30:, 1] = 0.9
    second.fit_volumes(
        images, targets[:, :1], covariates=ages, weights=half,
        subjects=[f"s{number // 2}" for number in range(60)], kinds=["binary"],
    )  # fmt: skip
    # Features are standardised with all samples, so that only the sign and the ranking agree.
    assert float(first.weight_map().sum()) * float(second.weight_map().sum()) > 0


def test_refuses_what_it_cannot_fit() -> None:
    """Classes with names, one label, and shapes that differ are refused."""
    images, ages, targets = data(10)
    model: Any = voxel_ridge(INPUTS, 1)
    given = {"covariates": ages, "weights": np.ones((10, 1)), "subjects": [str(i) for i in range(10)]}
    with pytest.raises(CellError, match="kind classes"):
        model.fit_volumes(images, targets[:, :1], kinds=["classes"], **given)
    with pytest.raises(CellError, match="two classes"):
        model.fit_volumes(images, np.ones((10, 1)), kinds=["binary"], **given)
    with pytest.raises(OutOfRange, match="one shape"):
        voxel_ridge((Input("image", ("qT1",)),), 1)
