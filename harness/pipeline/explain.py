"""The explain stage: maps of one trained network for its test samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.attribution import attribute
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of
from harness.core.task import Component
from harness.core.types import Array, Sample, View
from harness.pipeline.train import device

__all__ = ["BLOCKS", "Scalars", "explain", "explain_group"]

BLOCKS = 4
"""Sums that are kept of each fold, of about as many subjects each: by leaving one out, intervals are made."""


class Scalars(torch.nn.Module):
    """A network followed by the scalar outputs that its view lets us explain.

    Parameters
    ----------
    added : what comes on top of an input before the network sees it (:meth:`~harness.core.types.View.summands`)
    """

    def __init__(self, network: torch.nn.Module, view: View, added: torch.Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self._view = view
        self._added = added

    def __deepcopy__(self, memo: dict[int, Any]) -> Scalars:
        """A copy of the network; the view, which may hold maps of a whole cohort, is shared."""
        return Scalars(copy.deepcopy(self.network, memo), self._view, self._added)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, C, *space) → (N, K)."""
        seen = inputs if self._added is None else inputs + self._added.to(inputs.dtype)
        scalars: torch.Tensor = self._view.scalars(self.network(seen))
        return scalars


def explain(
    model: torch.nn.Module,
    view: View,
    sample: Sample,
    part: Component,
    *,
    seed: int,
    postprocessing: Component | None = None,
) -> Array:
    """Maps of one sample.

    Parameters
    ----------
    part : the attribution with its options
    seed : of the stream of random numbers, which the method and the sample
        name; under which label a task knows the method changes nothing
    postprocessing : of the map of each output

    Returns
    -------
    Array
        (T, C, X, Y, Z) float32, T explained outputs and C channels; more means
        more evidence
    """
    name = ATTRIBUTIONS.name_of(part.func)
    image, on_top = view.summands(sample)
    inputs = torch.from_numpy(image).to(device())
    added = None if on_top is None else torch.from_numpy(on_top).to(device())
    stream = seed_of(seed, "attribution", name, sample.id)
    targets = list(range(len(view.explained)))
    maps = attribute(name, Scalars(model, view, added), inputs, targets, seed=stream, **part.keywords)
    volumes = [view.volume(one.detach().cpu().numpy()) for one in maps]
    if postprocessing is not None:
        volumes = [postprocessing(one, sample.spacing_mm) for one in volumes]
    return np.stack(volumes).astype(np.float32)


def explain_group(
    model: torch.nn.Module,
    view: View,
    samples: Sequence[Sample],
    part: Component,
    *,
    seed: int,
    postprocessing: Component | None = None,
) -> Array:
    """Sums of the maps of several samples on one grid, in blocks of consecutive samples.

    Parameters
    ----------
    samples : those of a fold; fewer than :data:`BLOCKS` make fewer blocks
    part, seed, postprocessing : see :func:`explain`

    Returns
    -------
    Array
        (B, T, C, X, Y, Z) float32
    """
    sums = []
    for block in np.array_split(np.arange(len(samples)), min(BLOCKS, len(samples))):
        total: Array | None = None
        for index in block:
            one = explain(model, view, samples[index], part, seed=seed, postprocessing=postprocessing)
            total = one.astype(np.float64) if total is None else total + one
        sums.append(total)
    return np.stack([np.asarray(one) for one in sums]).astype(np.float32)
