"""The explain stage: maps of one trained network for its test samples."""

from __future__ import annotations

import numpy as np
import torch

from harness.attribution import attribute
from harness.registry import ATTRIBUTIONS
from harness.seeding import seed_of
from harness.spec import Part
from harness.training import device
from harness.types import Array, Sample, View

__all__ = ["Scalars", "explain"]


class Scalars(torch.nn.Module):
    """A network followed by the scalar outputs that its view lets us explain."""

    def __init__(self, network: torch.nn.Module, view: View) -> None:
        super().__init__()
        self.network = network
        self._view = view

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, C, *space) → (N, K)."""
        return self._view.scalars(self.network(inputs))


def explain(model: torch.nn.Module, view: View, sample: Sample, part: Part, *, seed: int) -> Array:
    """Maps of one sample.

    Parameters
    ----------
    part : the attribution with its options
    seed : of the stream of random numbers, which the method and the sample
        name; under which label a task knows the method changes nothing

    Returns
    -------
    Array
        (T, C, X, Y, Z) float32, T explained outputs and C channels; more means
        more evidence
    """
    name = ATTRIBUTIONS.name_of(part.func)
    inputs = torch.from_numpy(view.inputs(sample)).to(device())
    stream = seed_of(seed, "attribution", name, sample.id)
    targets = list(range(len(view.explained)))
    maps = attribute(name, Scalars(model, view), inputs, targets, seed=stream, **part.keywords)
    return np.stack([view.volume(one.detach().cpu().numpy()) for one in maps]).astype(np.float32)
