"""Small networks for the tests of attributions: 2D, 3D, several outputs, two inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(dims: int, *, channels: int = 2, outputs: int = 1) -> nn.Module:
    """Two convolutions and a linear layer, every activation a module of its own."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dims)
        return nn.Sequential(
            conv(channels, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            conv(4, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(2),
            nn.AdaptiveAvgPool1d(3),
            nn.Flatten(),
            nn.Linear(18, outputs),
        ).double()


def image(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Formula(nn.Module):
    """A network of one formula: (N, C, *space) → (N, K)."""

    def __init__(self, formula: object) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.formula(*inputs)  # type: ignore[operator, no-any-return]


class Reused(nn.Module):
    """One ReLU module for two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x)))).flatten(2).mean(2)


class Functional(nn.Module):
    """A ReLU that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)).flatten(2).mean(2)
