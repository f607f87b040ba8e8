"""Any image size for networks that halve it several times."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Padded"]


class Padded(nn.Module):
    """Pad with zeros to a multiple, run the network, crop its output back.

    Half of the padding is put on each side (the odd pixel at the end). Zero is
    what the convolutions themselves see beyond the edge. An image whose size
    is a multiple already is passed on as it is.

    Parameters
    ----------
    network : maps (N, C, *space) to (N, K, *space)
    multiple : by which each spatial size must be divisible
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
        # functional.pad counts the axes from the last one.
        pads = [side for b, lack in zip(before[::-1], missing[::-1], strict=True) for side in (b, lack - b)]
        out: Tensor = self.network(functional.pad(x, pads))
        for axis, (start, size) in enumerate(zip(before, space, strict=True), start=2):
            out = torch.narrow(out, axis, start, size)
        return out
