"""KernelSHAP of segments, against models whose Shapley values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.attribution import attribute
from harness.attribution.lime_segments import squares
from harness.core.errors import OutOfRange

IMAGE = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Additive(torch.nn.Module):
    """A sum of functions of the parts of a 2 × 2 grid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)
        return torch.stack([(parts**2).sum(1), (parts @ parts.new_tensor([1.0, -2.0, 3.0, 0.0]))], dim=1)


def test_values_of_an_additive_model() -> None:
    """The Shapley value of a part of an additive model is what it adds to the empty image."""
    found = attribute("kernel_shap", Additive(), IMAGE, [0, 1], segmentation="squares", segments=4, per_segment=60)
    labels = squares((12, 12), 2)
    parts = torch.nn.functional.adaptive_avg_pool2d(IMAGE.mean(1, keepdim=True), 2).flatten()
    for number, expected in enumerate((parts**2, parts * torch.tensor([1.0, -2.0, 3.0, 0.0]))):
        sums = [float(found[number][0, :, torch.from_numpy(labels == part)].sum()) for part in range(4)]
        np.testing.assert_allclose(sums, expected.numpy(), atol=2e-3)


def test_sum_is_the_difference_to_the_fill() -> None:
    """A map sums to f(image) − f(fill)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 1), torch.nn.Tanh())
    torch.manual_seed(0)
    found = attribute(
        "kernel_shap", model, IMAGE, [0], segmentation="squares", segments=9, fill="white", per_segment=30
    )
    expected = float((model(IMAGE) - model(torch.ones_like(IMAGE))).item())
    assert float(found[0].sum()) == pytest.approx(expected, abs=1e-2)


def test_inputs_must_share_their_space() -> None:
    """Segments are shared by all inputs."""

    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).sum(1, keepdim=True) + y.flatten(1).sum(1, keepdim=True)

    with pytest.raises(OutOfRange, match="KernelSHAP needs inputs of one shape"):
        attribute("kernel_shap", Sum(), (IMAGE, IMAGE[..., 1:]), [0])
