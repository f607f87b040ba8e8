"""Logistic regression on colour histograms: what pictures show without any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from harness.core.registry import MODELS
from harness.core.types import Array, Input
from harness.models.volume_linear import cross_validated_regression

__all__ = ["colour_histogram"]


@MODELS.register("colour_histogram", source="", fitted=True, baseline="colours without shapes")
def colour_histogram(
    inputs: Sequence[Input], outputs: int = 1, *, bins: Annotated[int, Ge(2), Le(256)] = 8
) -> nn.Module:
    """Penalised regression on the histogram of each channel, which has no shapes and no positions.

    A value between two bins counts for both, by its distance, so that the model is
    differentiable. The penalty has the lowest cross-validated loss in the training samples.

    Parameters
    ----------
    inputs : one image, with values in [0, 1]
    outputs : number of outputs, K
    bins : bins of each channel

    Returns
    -------
    nn.Module
        Maps (N, C, H, W) float to (N, K); trained by its method ``fit_volumes``.
    """
    return _ColourHistogram(len(inputs[0].channels), outputs, bins)


class _ColourHistogram(nn.Module):
    """A linear function of soft histograms."""

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("weight", torch.zeros(outputs, in_channels * bins))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, *space) → (N, K)."""
        return nn.functional.linear(self.histograms(images), self.weight, self.bias)

    def histograms(self, images: Tensor) -> Tensor:
        """Share of the pixels in each bin, (N, C · bins), channel by channel."""
        place = images.flatten(2).clamp(0, 1) * (self.bins - 1)
        shares = [(1 - (place - one).abs()).clamp(min=0).mean(dim=2) for one in range(self.bins)]
        return torch.stack(shares, dim=2).flatten(1)

    def summary(self, images: Array) -> Array:
        """Histograms, (n, C · bins) float32; see :class:`harness.models.fitting.Summarises`."""
        with torch.no_grad():
            found: Array = self.histograms(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return found

    def fit_volumes(
        self,
        images: Array,
        targets: Array,
        *,
        covariates: Array,
        weights: Array,
        subjects: Sequence[str],
        kinds: Sequence[str],
    ) -> None:
        """Fit to histograms (``images``); see :class:`harness.models.fitting.FittedToVolumes`."""
        features = images.astype(np.float64)
        mean, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        for row, kind in enumerate(kinds):
            slopes, bias = cross_validated_regression(
                (features - mean) / spread, targets[:, row], weights[:, row], subjects, kind
            )
            self.weight[row] = torch.from_numpy((slopes / spread).astype(np.float32))
            self.bias[row] = bias - float((slopes / spread) @ mean)
