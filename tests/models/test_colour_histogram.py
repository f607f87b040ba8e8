"""Colour histograms."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from harness.core.types import Input
from harness.models.colour_histogram import colour_histogram
from harness.models.fitting import FittedToVolumes, Summarises

RGB = (Input("image", ("red", "green", "blue"), (8, 8)),)


def test_histogram_by_hand() -> None:
    """Values at bins count once, values between two bins for both."""
    network = colour_histogram((Input("image", ("grey",), (2, 2)),), 1, bins=3)
    images = torch.tensor([[[[0.0, 0.5], [1.0, 0.25]]]])
    assert network.histograms(images)[0].tolist() == [1.5 / 4, 1.5 / 4, 1 / 4]


def test_shares_sum_to_one() -> None:
    """Each channel has the shares of all its pixels, also of values outside [0, 1]."""
    images = torch.randn(4, 3, 5, 6)
    shares = colour_histogram(RGB).histograms(images).unflatten(1, (3, 8))
    torch.testing.assert_close(shares.sum(2), torch.ones(4, 3))


def test_colours_are_learnt_and_places_are_not() -> None:
    """Bright and dark pictures are separated, as by logistic regression on the same histograms."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    bright = np.clip(0.4 + 0.1 * labels[:, None, None, None] + 0.15 * rng.normal(size=(60, 3, 6, 6)), 0, 1)
    images = bright.astype(np.float32)
    model = colour_histogram(RGB)
    assert isinstance(model, FittedToVolumes) and isinstance(model, Summarises)
    features = model.summary(images)
    model.fit_volumes(
        features, labels[:, None].astype(float), covariates=np.zeros((60, 0)), weights=np.ones((60, 1)),
        subjects=[str(n // 3) for n in range(60)], kinds=["binary"],
    )  # fmt: skip
    found = model(torch.from_numpy(images)).numpy()[:, 0] > 0
    reference = LogisticRegression(max_iter=1000).fit(features, labels).predict(features)
    assert np.mean(found == labels) > 0.9 and np.mean(found == reference) > 0.9
    shuffled = images.reshape(60, 3, -1)[:, :, rng.permutation(36)].reshape(images.shape)
    np.testing.assert_allclose(model(torch.from_numpy(shuffled)), model(torch.from_numpy(images)), rtol=1e-4, atol=1e-4)
