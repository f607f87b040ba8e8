"""Descriptions of layers for methods that propagate a change of the input through a network.

A module can describe itself by these classes. They contain no arithmetic, so that
trainings do not depend on the code that propagates changes
(:mod:`harness.attribution.incremental`).
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
    """Flattens (N, C, *space) to (N, C * prod(space)), possibly in another precision."""


@dataclass(frozen=True)
class Totals:
    """Sums a function of each voxel, (N, F) to (N, 1).

    Parameters
    ----------
    function : elementwise function
    """

    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SparseWeights:
    """Linear layer with sparse weights for an image of one channel, (N, F) to (N, K).

    Parameters
    ----------
    at : returns the weights, (P, K) float64, of sorted voxel indices, (P,)
    """

    at: Callable[[Array], scipy.sparse.csr_array]


Description = Flattens | Totals | SparseWeights


class Describes(Protocol):
    """A module that describes itself, so that its code is not analysed.

    The module has one input and one output (N, ≥ 1 axis), and no hooks. A subclass with
    its own ``forward`` must define ``describe_layer`` again; otherwise it is analysed like
    any other module.
    """

    def describe_layer(self) -> Description:
        """Description of the layer."""
        ...
