"""Parts that the methods share: batches, baselines, a connected model."""

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
    """Tells the check of user values that a tensor is taken as it is (no text can give one)."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(Tensor)


# One number; one number per channel; or, from code, a tensor that broadcasts to the input.
Baseline: TypeAlias = float | list[float] | Annotated[Tensor, _FromCode]


class Connected(nn.Module):
    """The same model, whose output formally depends on every input.

    Autograd refuses the gradient of an output with respect to an input that
    the model does not use. Zero times the input makes it what it is: zero.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map the inputs to the model's (N, K)."""
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
    """Maps of a method that takes a batch and one target, put together again."""
    return [
        tuple(torch.cat(parts) for parts in zip(*(method(b, target) for b in batches(inputs, batch_size)), strict=True))
        for target in targets
    ]


def baselines(inputs: Inputs, baseline: Baseline) -> Inputs:
    """The baseline of each input, (N, C, *space) like the input (views, not copies).

    Parameters
    ----------
    inputs : (N, C, *space) each
    baseline : one number; one number per channel; or a tensor that broadcasts to
        every input

    Raises
    ------
    OutOfRange
        If it does not fit the inputs.
    """
    # A number is kept in full: in single precision 0.1 would be off by 1e-9 for a network in double.
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
            "give one number, or one per channel"
        ) from None
