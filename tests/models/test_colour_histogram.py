"""Colour histograms."""

from __future__ import annotations

import numpy as np
import torch

from harness.core.types import Input
from harness.models.colour_histogram import colour_histogram

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


def test_colours_are_told_and_places_are_not() -> None:
    """It separates classes that differ in colour, and gives a permuted picture the same answer."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = np.clip(rng.normal(0.4, 0.1, (60, 3, 8, 8)) + 0.15 * labels[:, None, None, None], 0, 1).astype(np.float32)
    network = colour_histogram(RGB)
    network.fit_volumes(
        images, labels[:, None].astype(float), covariates=np.zeros((60, 0)), weights=np.ones((60, 1)),
        subjects=[f"s{n}" for n in range(60)], kinds=["binary"],
    )  # fmt: skip
    logits = network(torch.from_numpy(images))[:, 0].detach().numpy()
    assert ((logits > 0) == labels).mean() > 0.95
    moved = torch.from_numpy(images.reshape(60, 3, -1)[:, :, rng.permutation(64)].reshape(60, 3, 8, 8))
    np.testing.assert_allclose(network(moved)[:, 0].detach().numpy(), logits, rtol=1e-4, atol=1e-4)
