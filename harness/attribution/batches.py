"""Functions shared by attribution methods: batches, baselines, a connected model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from harness.core.errors import CellError, HarnessError, OutOfRange

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
    "check_baseline",
    "connected",
    "independent_size",
    "items_are_independent",
    "outputs_of",
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
# The same of the norm of a gradient. Rounding can switch some activations whose input is close to zero.
_OTHER_GRADIENT = 1e-3
# Items in a batch, so that sizes fit the integers of torch.
_MOST = 2**31
# Seed of random items that are tested; those of their neighbours in a batch start at 0.
_POINT = 2**31


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
    return zip(*(torch.split(x, min(size, _MOST)) for x in inputs), strict=True)


def by_batch(inputs: Inputs, targets: Sequence[int], batch_size: int, method: Callable[[Inputs, int], Inputs]) -> Maps:
    """Apply a method for a batch and one target to all batches and targets."""
    return [
        tuple(torch.cat(maps) for maps in zip(*(method(b, target) for b in batches(inputs, batch_size)), strict=True))
        for target in targets
    ]


def connected(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> Connected:
    """A model with gradients with respect to every input, also to unused ones.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : (N, C, *space) each, N ≥ 1
    targets : indices of the outputs whose gradient is needed

    Raises
    ------
    HarnessError
        If an output has no gradient although it changes with an input, so that maps of zeros
        would be wrong.
    CellError
        If an output is not finite for the first item, or an item with such inputs. The
        gradient through a ReLU would be zero.

    Notes
    -----
    The gradient is computed once, for an item of random numbers. A gradient of zero is right
    if the output is constant, or does not change in either direction of a small step, as
    behind a ReLU or a clamp.
    """
    _check_finite(model, inputs, targets)
    point = _in_range(inputs, _POINT)
    leaves = tuple(x.requires_grad_() for x in point)
    try:
        out = outputs_of(model, leaves)
    except RuntimeError as error:
        if "requires grad" not in str(error):  # of Tensor.numpy
            raise
        raise _no_gradient("") from error
    for target in targets:
        for place, gradient in enumerate(_each_gradient(out[:, target].sum(), leaves)):
            if (gradient is None or not gradient.any()) and _changes(model, point, target, place, gradient is None):
                raise _no_gradient(f" {target}")
    return Connected(model)


@torch.no_grad()
def _check_finite(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> None:
    finite = torch.stack([x.flatten(1).isfinite().all(1) for x in inputs]).all(0).tolist()
    for item in dict.fromkeys((0, *(place for place, one in enumerate(finite) if not one))):
        found = outputs_of(model, tuple(x[item : item + 1].clone() for x in inputs))[:, list(targets)]
        if not bool(torch.isfinite(found).all()):
            why = "" if finite[item] else ", whose input has such values"
            raise CellError(
                "the outputs of the model must be finite to be explained, but are NaN or infinite for item "
                f"{item}{why}; replace such voxels, or leave the item out"
            )


def _no_gradient(which: str) -> HarnessError:
    return HarnessError(
        f"the output{which} of the model has no gradient, although it changes with the input, so that the map would be "
        "zero everywhere; remove torch.no_grad, detach and numpy from the forward pass, or choose a method that needs "
        "no gradient, such as occlusion"
    )


def _each_gradient(value: Tensor, leaves: Inputs) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)


@torch.no_grad()
def _changes(model: nn.Module, point: Inputs, target: int, place: int, far: bool) -> bool:
    """Whether an output changes in both directions of a step of one input: a small one, or also ``far`` away."""
    point = tuple(x.detach() for x in point)
    x = point[place]
    step = 1e-3 * (x.max() - x.min() + x.abs().max()) * _uniform(x, _POINT + 1)
    others = [x + step, x - step]
    if far:
        others += [x * 0, (x.max() + 1) * _uniform(x, _POINT + 2)]
    before = outputs_of(model, point)[0, target]
    limit = 64 * torch.finfo(before.dtype).eps * before.abs()
    changed = []
    for other in others:
        after = outputs_of(model, (*point[:place], other, *point[place + 1 :]))[0, target]
        changed.append(bool((after - before).abs() > limit))
    return all(changed[:2]) or any(changed[2:])


def outputs_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs of a model, (N, K).

    Raises
    ------
    HarnessError
        If the model returns anything else, such as one row for all items.
    """
    found = model(*inputs)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs[0]):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise HarnessError(
            f"a model must return (N, K) floats, a row for each item, got {got} for N = {len(inputs[0])}; keep the "
            "first axis in all operations, as in x.flatten(1)"
        )
    return found


def independent_size(model: nn.Module, inputs: Inputs, size: int, *, copies: int = 1, gradients: bool = False) -> int:
    """Batch size with which the outputs for an item do not depend on other items.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : (N, C, *space) each
    size : wanted batch size
    copies : number of changed copies of each item that are computed
    gradients : whether gradients with respect to the inputs will be computed

    Returns
    -------
    int
        ``size``, or 1 if the outputs of the model depend on the batch
        (:func:`items_are_independent`). There is no check if batches have one item anyway.
    """
    size = min(size, _MOST)
    most = min(size, len(inputs[0]) * copies)
    if most <= 1:
        return size
    return size if items_are_independent(model, inputs, most, gradients=gradients) else 1


@torch.no_grad()
def items_are_independent(model: nn.Module, inputs: Inputs, size: int = 3, *, gradients: bool = False) -> bool:
    """Whether the outputs for an item are the same alone and in a batch with other items.

    They differ, for example, in networks with batch normalisation without running
    statistics. The items to test are the first, the one of the largest norm, and one of
    random numbers in the range of all, because a dependence can vanish for an item, such as
    one of zeros. Each is computed alone, in a batch of three with the others, in a batch of
    three with random numbers, and in a batch of ``size`` with random numbers and given
    items. This takes at most eight forward passes, of 15 + ``size`` items; 11 + ``size`` of
    one given item.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : (N, C, *space) each, N ≥ 1
    size : number of items in the largest batch that will be computed
    gradients : whether to compare the gradients of items alone and in the batch of three as
        well, of a weighted sum of all outputs

    Returns
    -------
    bool
        True if outputs and gradients are equal up to rounding. Items of which they are not
        finite are not compared. False if the model computes single items only.

    Raises
    ------
    CellError
        If the outputs for the same batch are not reproducible.
    HarnessError
        If the model does not return a row for each item.

    Notes
    -----
    A dependence cannot be detected if it occurs only for items other than those tested (with
    a condition on values that they do not meet), only at points that a method visits between
    an input and its baseline, only between given items of a special relation (such as equal
    ones), only in batch sizes other than 3 and ``size``, or, of gradients alone, only in
    batches of more than three.
    """
    alone = [(item, outputs_of(model, item)) for item in _tested(inputs)]
    alone = [(item, out) for item, out in alone if bool(torch.isfinite(out).all())]
    if not alone:
        return True
    items = [item for item, _ in alone]
    rows = (items * 3)[:3]
    try:
        joint = _joint(model, rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        outputs_of(model, items[0])  # if this fails as well, the error is not that of a batch
        return False
    same = _same_outputs(model, rows, joint, [out for _, out in alone])
    return (
        same
        and (size <= 3 or _same_in_large(model, inputs, alone, size, joint))
        and (not gradients or _same_gradients(model, items, rows))
    )


def _tested(inputs: Inputs) -> list[Inputs]:
    """The first item, that of the largest norm if it is another, and random numbers in the range of all."""
    norms = torch.stack([x.flatten(1).double().nan_to_num().square().sum(1) for x in inputs]).sum(0)
    places = dict.fromkeys((0, int(norms.argmax())))
    return [*(tuple(x[place : place + 1].clone() for x in inputs) for place in places), _in_range(inputs, _POINT)]


def _same_outputs(model: nn.Module, rows: Sequence[Inputs], joint: Tensor, alone: Sequence[Tensor]) -> bool:
    """Compare the outputs of a batch, (3, K), with those of its items alone, and among random numbers."""
    scale = _scale(joint, alone)
    exact = _SAME_SIZE * torch.finfo(joint.dtype).eps * scale
    noise = [_noise(rows[0], one) for one in range(len(rows))]
    among = torch.stack(
        [
            _joint(model, [row if one == place else noise[one] for one, row in enumerate(rows)])[place]
            for place in range(len(alone))
        ]
    )
    few = joint[: len(alone)]
    apart, other = among - few, few - torch.cat(list(alone))
    if _within(apart, exact) and _within(other, _OTHER_SIZE * scale):
        return True
    spread = (_joint(model, rows) - joint).abs().amax(0)
    if not _within(spread, _OTHER_SIZE * scale.amax(0)):
        raise CellError(
            "an explanation needs a network with reproducible outputs, but they differ by "
            f"{float(spread.max()):.3g} between two computations of the same batch; remove random numbers, "
            "such as dropout in evaluation mode"
        )
    # Some operations on GPUs add numbers in a different order each time.
    return _within(apart, exact + 4 * spread) and _within(other, _OTHER_SIZE * scale)


def _scale(joint: Tensor, alone: Sequence[Tensor]) -> Tensor:
    """Size of each output of each item, (items, K), for comparisons."""
    found = torch.maximum(torch.cat(list(alone)).abs(), joint[: len(alone)].nan_to_num(0.0, 0.0, 0.0).abs())
    # An output close to 0, because large terms cancel, has a larger rounding error than its size suggests.
    return torch.maximum(found, 1e-2 * found.amax(0))


def _same_in_large(
    model: nn.Module, inputs: Inputs, alone: Sequence[tuple[Inputs, Tensor]], size: int, joint: Tensor
) -> bool:
    """Compare the outputs of items in a batch of the size that will be computed, with noise and given items."""
    given = len(inputs[0])
    rows = [
        _noise(alone[0][0], one) if one % 2 else tuple(x[one // 2 % given][None] for x in inputs) for one in range(size)
    ]
    places = [(size // 2 + one) % size for one in range(len(alone))]
    for place, (item, _) in zip(places, alone, strict=True):
        rows[place] = item
    outs = [out for _, out in alone]
    return _within(_joint(model, rows)[places] - torch.cat(outs), _OTHER_SIZE * _scale(joint, outs))


def _same_gradients(model: nn.Module, items: Sequence[Inputs], rows: Sequence[Inputs]) -> bool:
    """Compare the gradients of items alone and in a batch."""
    joint = _gradients(model, _stacked(rows))
    for place, item in enumerate(items):
        one, other = _gradients(model, item)[0], joint[place]
        if not bool(torch.isfinite(one).all()):
            continue
        limit = _OTHER_GRADIENT * torch.maximum(one.norm(), other.nan_to_num(0.0, 0.0, 0.0).norm())
        if not bool((one - other).norm() <= limit):
            return False
    return True


def _gradients(model: nn.Module, inputs: Inputs) -> Tensor:
    """Gradients of a weighted sum of all outputs of all items, (N, numbers of all inputs)."""
    with torch.enable_grad():
        leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
        out = outputs_of(model, leaves)
        weights = torch.linspace(1, 2, out.shape[1], dtype=out.dtype, device=out.device)
        found = _each_gradient((out * weights).sum(), leaves)
    filled = (torch.zeros_like(x) if one is None else one for one, x in zip(found, leaves, strict=True))
    return torch.cat([one.detach().flatten(1) for one in filled], dim=1)


def _joint(model: nn.Module, rows: Sequence[Inputs]) -> Tensor:
    return outputs_of(model, _stacked(rows))


def _stacked(rows: Sequence[Inputs]) -> Inputs:
    return tuple(torch.cat(each) for each in zip(*rows, strict=True))


def _noise(item: Inputs, seed: int) -> Inputs:
    """Random numbers beyond the range of an item, so that all statistics of a batch change, also its maximum."""
    rng = torch.Generator().manual_seed(seed)
    return tuple((1 + x.abs().max()) * torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device) for x in item)


def _in_range(inputs: Inputs, seed: int) -> Inputs:
    """One item of random numbers between the extremes of the inputs, or 0 and 1 if these are equal."""
    found = []
    for number, x in enumerate(inputs):
        low, high = (each.nan_to_num(0.0, 0.0, 0.0) for each in (x.min(), x.max()))
        width = torch.where(high > low, high - low, torch.ones_like(low))
        found.append(low + width * _uniform(x[:1], seed + number))
    return tuple(found)


def _uniform(like: Tensor, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(like.shape, generator=rng, dtype=like.dtype).to(like.device)


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
        If it does not broadcast to the inputs, or has values that are not finite numbers.
    """
    # In double precision, because single precision would change 0.1 by 1e-9 for a network in double precision.
    given = baseline if isinstance(baseline, Tensor) else torch.as_tensor(baseline, dtype=torch.float64)
    check_baseline(given)
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


def check_baseline(baseline: Tensor) -> None:
    """Refuse baselines without values (sparse, on the device meta, empty), of complex numbers, or not finite."""
    dense = baseline.layout == torch.strided and not baseline.is_nested and not baseline.is_meta
    if not dense or baseline.is_complex() or not baseline.numel() or not bool(torch.isfinite(baseline).all()):
        shape = "nested" if baseline.is_nested else tuple(baseline.shape)
        raise OutOfRange(
            f"a baseline must be a dense tensor of finite real numbers, got {shape} {baseline.dtype} {baseline.layout} "
            f"on {baseline.device}; use one number, or one per channel"
        )
