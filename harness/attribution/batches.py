"""Functions shared by attribution methods: batches, baselines, a connected model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from annotated_types import Gt
from torch import Tensor, nn

from harness.core.errors import OutOfRange

__all__ = ["Baseline", "BatchSize", "Connected", "Inputs", "Maps", "baselines", "batches", "by_batch"]

Inputs: TypeAlias = tuple[Tensor, ...]
Maps: TypeAlias = list[tuple[Tensor, ...]]
BatchSize: TypeAlias = Annotated[int, Gt(0)]


class _FromCode:
    """Marks tensors as valid values that are not converted; they cannot be given on a command line."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(Tensor)


# One number, one number per channel, or (in Python) a tensor that broadcasts to the input.
Baseline: TypeAlias = float | list[float] | Annotated[Tensor, _FromCode]


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
