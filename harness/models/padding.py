"""Padding of images for networks with several downsampling steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Padded"]


class Padded(nn.Module):
    """Pad images to a multiple of a size, apply the network, and crop the output.

    Zeros are added on both sides, with an odd pixel at the end, as in the convolutions
    themselves. Images whose size is a multiple are not padded.

    Parameters
    ----------
    network : maps (N, C, *space) to (N, K, *space)
    multiple : divisor of each spatial size
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *space) to (N, K, *space), for any space."""
        space = x.shape[2:]
        missing = [-size % self.multiple for size in space]
        if not any(missing):
            result: Tensor = self.network(x)
            return result
        before = [lack // 2 for lack in missing]
        # functional.pad starts with the last axis.
        pads = [side for b, lack in zip(before[::-1], missing[::-1], strict=True) for side in (b, lack - b)]
        out: Tensor = self.network(functional.pad(x, pads))
        for axis, (start, size) in enumerate(zip(before, space, strict=True), start=2):
            out = torch.narrow(out, axis, start, size)
        return out
