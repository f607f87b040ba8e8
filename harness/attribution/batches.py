"""Functions shared by attribution methods: batches, baselines, a connected model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from harness.core.errors import CellError, OutOfRange

__all__ = [
    "Baseline",
    "BatchSize",
    "Connected",
    "Inputs",
    "Maps",
    "Numbers",
    "Parts",
    "baselines",
    "batches",
    "by_batch",
    "independent_size",
    "items_are_independent",
]

Inputs: TypeAlias = tuple[Tensor, ...]
Maps: TypeAlias = list[tuple[Tensor, ...]]
BatchSize: TypeAlias = Annotated[int, Gt(0)]
Numbers: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""What a method reports beside its maps: name → (K, N), a number for each target and item."""
Parts: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""Maps that a method combines: name → (K, N, *space), one for each target and item."""


class _FromCode:
    """Marks tensors as valid values that are not converted; they cannot be given on a command line."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(Tensor)


# One number, one number per channel, or (in Python) a tensor that broadcasts to the input.
Baseline: TypeAlias = float | list[float] | Annotated[Tensor, _FromCode]

# Relative difference of an output that rounding can explain: between batches of different size, which may be
# computed by different algorithms, and between batches of equal size, in units of the machine precision.
_OTHER_SIZE, _SAME_SIZE = 1e-4, 16


class Connected(nn.Module):
    """A model whose output formally depends on every input.

    Autograd raises an error for the gradient with respect to an unused input. Adding zero
    times the input makes this gradient zero.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the model, (N, K)."""
        out: Tensor = self.model(*inputs)
        for x in inputs:
            out = out + 0 * x.flatten(1).sum(1, keepdim=True)
        return out


def batches(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Consecutive items, at most ``size`` at a time."""
    if size < 1:
        raise OutOfRange(f"`batch_size >= 1` must hold, got {size}")
    return zip(*(torch.split(x, size) for x in inputs), strict=True)


def by_batch(inputs: Inputs, targets: Sequence[int], batch_size: int, method: Callable[[Inputs, int], Inputs]) -> Maps:
    """Apply a method for a batch and one target to all batches and targets."""
    return [
        tuple(torch.cat(maps) for maps in zip(*(method(b, target) for b in batches(inputs, batch_size)), strict=True))
        for target in targets
    ]


def independent_size(model: nn.Module, inputs: Inputs, size: int, *, copies: int = 1) -> int:
    """Batch size with which the outputs for an item do not depend on other items.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : (N, C, *space) each
    size : wanted batch size
    copies : number of changed copies of each item that are computed

    Returns
    -------
    int
        ``size``, or 1 if the outputs of the model depend on the batch
        (:func:`items_are_independent`). There is no check if batches have one item anyway.
    """
    most = min(size, len(inputs[0]) * copies)
    if most <= 1:
        return size
    return size if items_are_independent(model, inputs, most) else 1


@torch.no_grad()
def items_are_independent(model: nn.Module, inputs: Inputs, size: int = 3) -> bool:
    """Whether the outputs for an item are the same alone and in a batch with other items.

    They differ, for example, in networks with batch normalisation without running
    statistics. The first item is computed alone, in a batch of copies of itself, between
    two items of random numbers, and in the middle of a batch of ``size`` such items. This
    takes four forward passes, of 7 + ``size`` items; three if ``size`` is at most 3.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : (N, C, *space) each, N ≥ 1
    size : number of items in the largest batch that will be computed

    Returns
    -------
    bool
        True if the outputs are equal up to rounding, or not finite.

    Raises
    ------
    CellError
        If the outputs for the same batch are not reproducible.
    """
    item = tuple(x[:1].clone() for x in inputs)
    # A network may write to its inputs, so each pass has its own.
    same = [tuple(x.repeat(3, *[1] * (x.ndim - 1)) for x in item) for _ in range(2)]
    among, alone, copies = _among(model, item, 3), model(*(x.clone() for x in item)), model(*same[0])
    if not bool(torch.isfinite(alone).all()):
        return True
    scale = torch.cat([alone, copies, among.nan_to_num(0.0, 0.0, 0.0)]).abs().amax(0)
    exact = _SAME_SIZE * torch.finfo(alone.dtype).eps * scale
    small = _within(among[1] - copies[1], exact) and _within(copies - alone, _OTHER_SIZE * scale)
    if not small:
        spread = (model(*same[1]) - copies).abs().amax(0)
        if not _within(spread, _OTHER_SIZE * scale):
            raise CellError(
                "an explanation needs a network with reproducible outputs, but they differ by "
                f"{float(spread.max()):.3g} between two computations of the same batch; remove random numbers, "
                "such as dropout in evaluation mode"
            )
        # Some operations on GPUs add numbers in a different order each time.
        small = _within(among[1] - copies[1], exact + 4 * spread) and _within(copies - alone, _OTHER_SIZE * scale)
    return small and (size <= 3 or _within(_among(model, item, size)[size // 2] - alone, _OTHER_SIZE * scale))


def _among(model: nn.Module, item: Inputs, size: int) -> Tensor:
    """Outputs for ``size`` items: the given one in the middle, and others of random numbers."""
    items = [item if one == size // 2 else _noise(item, one) for one in range(size)]
    found: Tensor = model(*(torch.cat(each) for each in zip(*items, strict=True)))
    return found


def _noise(item: Inputs, seed: int) -> Inputs:
    """Random numbers beyond the range of an item, so that all statistics of a batch change, also its maximum."""
    rng = torch.Generator().manual_seed(seed)
    return tuple((1 + x.abs().max()) * torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device) for x in item)


def _within(differences: Tensor, limits: Tensor) -> bool:
    return bool((differences.abs() <= limits).all())


def baselines(inputs: Inputs, baseline: Baseline) -> Inputs:
    """Expand a baseline to the shape of each input, (N, C, *space), without copying.

    Parameters
    ----------
    inputs : (N, C, *space) each
    baseline : one number, one number per channel, or a tensor that broadcasts to every
        input

    Raises
    ------
    OutOfRange
        If it does not broadcast to the inputs.
    """
    # In double precision, because single precision would change 0.1 by 1e-9 for a network in double precision.
    given = baseline if isinstance(baseline, Tensor) else torch.as_tensor(baseline, dtype=torch.float64)
    per_channel = isinstance(baseline, list | tuple)
    try:
        return tuple(
            (given.reshape(-1, *[1] * (x.ndim - 2)) if per_channel else given).to(x).expand_as(x) for x in inputs
        )
    except RuntimeError:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise OutOfRange(
            f"a baseline must broadcast to its input, got {tuple(given.shape)} for {shapes}; "
            "use one number, or one per channel"
        ) from None
