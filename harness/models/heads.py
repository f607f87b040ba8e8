"""Heads: what the output of a network means for each kind of target.

The other half of a kind, which works on stored predictions, is in
:mod:`harness.core.targets`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch.nn import functional

from harness.core.targets import Kind

__all__ = ["HEADS", "Head"]


class Head(ABC):
    """The output channels of a network for one target of a kind."""

    @abstractmethod
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Default loss of each item, (N,).

        Parameters
        ----------
        output : (N, width, *space)
        target : training targets, (N,), or (N, *space) for images
        """

    def scalar(self, output: torch.Tensor, index: int) -> torch.Tensor:
        """Explained scalar of each item, (N,).

        For one value per sample, this is a channel of the output, which attribution
        methods may read directly; only kinds of images override it.

        Parameters
        ----------
        output : (N, width, *space)
        index : index of the class; 0 for kinds without named classes
        """
        return output[:, index]


class _Mask(Head):
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Voxelwise cross-entropy, averaged within each item."""
        return functional.cross_entropy(output, target, reduction="none").flatten(1).mean(1)

    def scalar(self, output: torch.Tensor, index: int) -> torch.Tensor:
        """Lesion evidence: Σ log(1 + exp(margin)) over the voxels of an item.

        A term is near zero for background voxels and close to the margin for lesion voxels,
        so that voxels are weighted by the confidence of their detection. It does not use
        the truth, and it is smooth, as gradient methods require.
        """
        margin = output[:, 1] - output[:, 0]
        return functional.softplus(margin).flatten(1).sum(1)


class _Number(Head):
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output[:, 0] - target) ** 2


class _Binary(Head):
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")


class _Classes(Head):
    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output, target, reduction="none")


HEADS: Mapping[Kind, Head] = {"mask": _Mask(), "number": _Number(), "binary": _Binary(), "classes": _Classes()}
"""The head of each kind."""
