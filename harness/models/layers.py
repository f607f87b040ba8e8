"""What a module may say of itself to methods that follow a change of the image through a network.

Plain descriptions without arithmetic, so that how a change is followed
(:mod:`harness.attribution.incremental`) is no part of what a training depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import scipy.sparse
from torch import Tensor

from harness.core.types import Array

__all__ = ["Describes", "Description", "Flattens", "SparseWeights", "Totals"]


@dataclass(frozen=True)
class Flattens:
    """(N, C, *space) → (N, C * prod(space)), perhaps in another precision."""


@dataclass(frozen=True)
class Totals:
    """(N, F) → (N, 1), the sum of a function of each voxel.

    Parameters
    ----------
    function : of each voxel by itself
    """

    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SparseWeights:
    """(N, F) of an image of one channel → (N, K), a linear layer most of whose weights are zero.

    Parameters
    ----------
    at : sorted voxels (P,) → their weights (P, K) float64
    """

    at: Callable[[Array], scipy.sparse.csr_array]


Description = Flattens | Totals | SparseWeights


class Describes(Protocol):
    """A module inside a network that says itself what it is; its code is not looked into.

    It has one input and one output (N, ≥ 1 axis), without hooks. A class that
    derives from it and has a ``forward`` of its own must describe itself again, or
    is read like any other.
    """

    def describe_layer(self) -> Description:
        """The description."""
        ...
