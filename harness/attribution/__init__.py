"""Attribution: which part of the input made the network say what it said.

A method is a plain function::

    @ATTRIBUTIONS.register("name", source="Authors year, doi:…", zero_if_ignored=True)
    def name(model, inputs, targets, *, seed, batch_size=8, …) -> Maps: ...

model : maps (N, C, *space), one tensor or several, to (N, K) scalars. It is a
    copy in evaluation mode without parameter gradients: the method may hook it
inputs : tuple of tensors (N, C, *space), always a tuple
targets : list of output indices
seed : asked for (without default) by a method that draws, and by no other
batch_size : most items in one forward pass

It gives a list with one entry per target, each a tuple with one map of each
input's shape. ``harness.testing.check_attribution`` says what else must hold.
The decorator states what the method promises:

zero_if_ignored : a channel that the model does not use gets zero everywhere
complete : ``"voxels"`` if a map sums to f(input) − f(baseline), ``"channels"``
    if one value of each channel does (each channel's map is constant)
control : True if the map says nothing about the model
of_linear : what the method, with baselines of zero, shows of a model Σ weight · input:
    ``"products"`` of weight and input, ``"weights"``, or ``"windows"``: products
    averaged over windows. Without it, what an exact model would show is not known
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

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
    **options: Any,
) -> list[Any]:
    """Maps of one method for all requested outputs.

    Parameters
    ----------
    name : of a registered method, e.g. ``"integrated_gradients"``
    model, inputs, targets, seed, options : see :func:`explain`

    Returns
    -------
    list
        One map per target, (N, C, *space) like the input. For a tuple of
        inputs, a list of lists: ``result[target][input]``.

    Raises
    ------
    UnknownName
        If no method has that name.
    """
    return explain(ATTRIBUTIONS.get(name).function, model, inputs, targets, seed=seed, **options)
