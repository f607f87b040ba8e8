"""Attribution methods: maps of how much each voxel of the input contributes to an output.

A method is a plain function::

    @ATTRIBUTIONS.register("name", source="Authors year, doi:…", zero_if_ignored=True)
    def name(model, inputs, targets, *, seed, batch_size=8, …) -> Maps: ...

model : maps one or several tensors (N, C, *space) to (N, K) scalars. It is a copy in
    evaluation mode without parameter gradients, so that hooks are allowed
inputs : tuple of tensors (N, C, *space)
targets : list of output indices
seed : a parameter without default, only for methods that use random numbers
numbers : a parameter without default, only for methods that report numbers beside their
    maps: a dictionary that receives name → (K, N), one for each target and item
parts : a parameter without default, only for methods whose maps combine others, such as
    those of several scales: a dictionary that receives name → (K, N, *space)
batch_size : maximum number of items in a forward pass

The method returns a list with one entry per target. Each entry is a tuple with one map
per input, of the shape of the input. See ``harness.testing.check_attribution`` for all
requirements. The decorator declares properties of the method:

zero_if_ignored : channels that the model does not use have zero attribution
complete : ``"voxels"`` if a map sums to f(input) − f(baseline); ``"channels"`` if one
    value per channel does, where the map of each channel is constant
control : True if the map does not depend on the model
of_linear : map for a model Σ weight · input with baselines of zero: ``"products"`` of
    weight and input, ``"weights"``, or ``"windows"`` for products averaged over windows.
    Without it, the map of an exact model is unknown
of_channel : option with the index of a channel. A run leaves the map out where the adapter
    gives fewer channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from harness.attribution.batches import Numbers, Parts
from harness.attribution.isolation import explain
from harness.core.registry import ATTRIBUTIONS

__all__ = ["attribute", "explain"]


def attribute(
    name: str,
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Sequence[int],
    *,
    seed: int = 0,
    numbers: Numbers | None = None,
    parts: Parts | None = None,
    **options: Any,
) -> list[Any]:
    """Compute the maps of a registered method.

    Parameters
    ----------
    name : a registered method, e.g. ``"integrated_gradients"``
    model, inputs, targets, seed, numbers, parts, options : see :func:`explain`

    Returns
    -------
    list
        One map per target, (N, C, *space) like the input. For a tuple of inputs, a list of
        lists: ``result[target][input]``.

    Raises
    ------
    UnknownName
        If there is no such method.
    """
    function = ATTRIBUTIONS.get(name).function
    return explain(function, model, inputs, targets, seed=seed, numbers=numbers, parts=parts, **options)
