"""Propagation of changes that are zero outside a box through the layers of a network.

A layer with a local neighbourhood maps a change inside a box to a change inside a larger
box. Linear layers do not even need the values of the tensor. Changes outside the box are
exactly zero and never computed.

Channels are the last axis in memory, so that a slice of a box is a row of a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from harness.attribution.products import by_blocks, by_matrix, by_taps
from harness.core.types import Array

__all__ = [
    "AveragePool",
    "Change",
    "Concatenation",
    "Convolution",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool",
    "Mean",
    "Pointwise",
    "Same",
    "Scale",
    "SparseLinear",
    "Sum",
    "Total",
    "WeightedSum",
]

Shape: TypeAlias = tuple[int, ...]

# A box with this share of the tensor is extended to the whole tensor, which avoids indexing.
_NEARLY_ALL = 0.6
# A convolution of a box is replaced by matrix products if this reduces the number of multiplications by these
# factors (a convolution is faster per multiplication) and there are at most this many outputs.
_BLOCKS_GAIN, _TAPS_GAIN, _MOST_OUTPUTS = 2.0, 3.0, 600
# Maximum number of values of padded boxes in one convolution, so that they fit into the cache.
_MOST_PADDED = 2**22
# Up to this number of values in a box, one matrix with zeros is faster than many small products.
_FEW_INPUTS = 256
# Minimum number of boxes with the same position for which copying the kernel pays off.
_MANY_ALIKE = 64


@dataclass(frozen=True)
class Change:
    """Changes of one tensor for B changed inputs, each zero outside a box.

    Attributes
    ----------
    values : (B, C, *box), new value minus old value; (B, …) with the shape of the tensor if
        ``origin`` is None
    origin : (B, D) int64, lowest corner of each box, which is inside the tensor; None if the
        box is the whole tensor
    flat : spatial shape before flattening, if the tensor is flattened, (1, C * prod(flat));
        boxes refer to this shape
    """

    values: Tensor
    origin: Tensor | None = None
    flat: Shape = ()

    def whole(self, old: Tensor) -> Tensor:
        """Changes of the whole tensor, (B, …), for an old tensor of shape (1, …)."""
        if self.origin is None:
            return self.values
        space = self.flat or tuple(old.shape[2:])
        return _placed(self.values, self.origin, space).reshape(len(self.values), *old.shape[1:])


class Operand(NamedTuple):
    """An input of a layer: the old tensor or number, and its change."""

    old: Tensor | float
    change: Change | None


class Layer(ABC):
    """A layer that propagates changes."""

    @abstractmethod
    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Change of the output of the layer.

        Parameters
        ----------
        operands : inputs of the layer; old tensors are (1, C, *space)
        new : output of the layer for the old inputs, (1, …)

        Returns
        -------
        Change or None
            None if the layer needs the whole tensor.
        """

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Number of multiplications for one changed input: for the change, and for the whole tensor."""
        return 0.0, 0.0


# ------------------------------------------------------------------- boxes


def _last(values: Tensor) -> Tensor:
    """(B, C, *box) → (B, *box, C), contiguous."""
    return values.movedim(1, -1).contiguous()


def _first(values: Tensor) -> Tensor:
    """(B, *box, C) → (B, C, *box), a view."""
    return values.movedim(-1, 1)


def _corner(change: Change, axes: int) -> Tensor:
    if change.origin is not None:
        return change.origin
    return change.values.new_zeros((len(change.values), axes), dtype=torch.int64)


def _rows(origin: Tensor, box: Shape, space: Shape) -> Tensor:
    """Flat indices of the voxels of all boxes, (B * prod(box),)."""
    index = origin.new_zeros((len(origin), *[1] * len(box)))
    for axis, (length, size) in enumerate(zip(box, space, strict=True)):
        along = origin[:, axis : axis + 1] + torch.arange(length, device=origin.device)
        index = index * size + along.reshape(len(origin), *[1] * axis, length, *[1] * (len(box) - axis - 1))
    return index.flatten()


def _taken(old: Tensor, origin: Tensor, box: Shape) -> Tensor:
    """Values of the old tensor, (1, C, *space), inside each box, (B, C, *box)."""
    rows = _last(old).reshape(-1, old.shape[1]).index_select(0, _rows(origin, box, tuple(old.shape[2:])))
    return _first(rows.reshape(len(origin), *box, old.shape[1]))


def _placed(values: Tensor, place: Tensor, space: Shape) -> Tensor:
    """Place boxes, (B, C, *box), at positions, (B, D), in tensors of zeros, (B, C, *space), cropped at the border."""
    count, channels, *box = values.shape
    low = [max(0, -int(place[:, axis].min())) for axis in range(len(space))]
    high = [
        max(0, int(place[:, axis].max()) + length - size)
        for axis, (length, size) in enumerate(zip(box, space, strict=True))
    ]
    padded = tuple(a + size + b for a, size, b in zip(low, space, high, strict=True))
    out = values.new_zeros((count, *padded, channels))
    shift = place + torch.tensor(low, device=place.device)
    if bool((shift == shift[0]).all()):
        corner = shift[0].tolist()
        inside = tuple(slice(start, start + length) for start, length in zip(corner, box, strict=True))
        out[(slice(None), *inside)] = values.movedim(1, -1)
    else:
        each = torch.arange(count, device=place.device)[:, None] * prod(padded)
        rows = (_rows(shift, tuple(box), padded).reshape(count, -1) + each).flatten()
        out.reshape(-1, channels)[rows] = _last(values).reshape(-1, channels)
    cut = tuple(slice(a, a + size) for a, size in zip(low, space, strict=True))
    return _first(out[(slice(None), *cut)])


def _widened(first: Tensor, last: Tensor, space: Shape) -> tuple[Tensor | None, Shape]:
    """Common box size for all changed inputs: lowest corners (None for the whole tensor) and size."""
    sizes = torch.tensor(space, device=first.device)
    first = torch.minimum(first.clamp(min=0), sizes - 1)
    box = tuple((torch.minimum(last, sizes - 1) - first + 1).clamp(min=1).amax(0).tolist())
    if prod(box) >= _NEARLY_ALL * prod(space):
        return None, space
    return torch.minimum(first, sizes - torch.tensor(box, device=first.device)), box


class _Reach(NamedTuple):
    """Outputs of a sliding kernel that depend on a box, and the inputs of these outputs."""

    origin: Tensor | None  # lowest corner of the box of outputs
    box: Shape
    place: Tensor  # position of the changed box relative to the inputs
    seen: Shape  # size of the box of inputs
    seen_from: Tensor  # lowest corner of the inputs, may be in the padding


def _reach(change: Change, space: Shape, extent: Shape, stride: Shape, padding: Shape) -> _Reach:
    """Outputs, in a space of the given shape, that change through a sliding kernel."""
    corner = _corner(change, len(space))
    t, e, p, length = (
        torch.tensor(each, device=corner.device) for each in (stride, extent, padding, change.values.shape[2:])
    )
    first = -torch.div(-(corner + p - e + 1), t, rounding_mode="floor")
    last = torch.div(corner + p + length - 1, t, rounding_mode="floor")
    origin, box = _widened(first, last, space)
    seen_from = (torch.zeros_like(corner) if origin is None else origin) * t - p
    seen = tuple((count - 1) * step + width for count, step, width in zip(box, stride, extent, strict=True))
    return _Reach(origin, box, corner - seen_from, seen, seen_from)


# ------------------------------------------------------------------ layers


class Same(Layer):
    """Identity."""

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Return the change itself."""
        return operands[0].change


class Flatten(Layer):
    """Flattens (N, C, *space) to (N, C * prod(space)); boxes do not change."""

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Return the change itself, marked as flattened, in the precision of the output."""
        old, change = operands[0]
        if change is None or not isinstance(old, Tensor) or new.shape != (1, old.numel()) or change.flat:
            return None
        values = change.values.to(new.dtype)
        return (
            Change(values.flatten(1)) if change.origin is None else Change(values, change.origin, tuple(old.shape[2:]))
        )


@dataclass(frozen=True)
class Scale(Layer):
    """Multiplication by one factor per channel: batch normalisation in evaluation mode."""

    factor: Tensor

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Change times factor; the shift cancels."""
        _, change = operands[0]
        if change is None or change.flat:
            return None
        return Change(change.values * self.factor.reshape(-1, *[1] * (change.values.ndim - 2)), change.origin)


@dataclass(frozen=True)
class Pointwise(Layer):
    """An elementwise function."""

    function: Callable[..., Tensor]

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Function of the new values minus function of the old values, in the union of the boxes."""
        if (union := _union(operands, new)) is None:
            return None
        origin, box = union
        before: list[Tensor | float] = []
        after: list[Tensor | float] = []
        for old, change in operands:
            shown = old
            if (
                isinstance(old, Tensor)
                and old.ndim == new.ndim
                and old.shape[2:] == new.shape[2:]
                and origin is not None
            ):
                shown = _taken(old, origin, box)
            before.append(shown)
            after.append(shown if change is None else shown + _moved(change, origin, box))
        return Change(self.function(*after) - self.function(*before), origin)


@dataclass(frozen=True)
class Sum(Layer):
    """A sum or difference of tensors."""

    signs: tuple[float, ...]

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Sum of the changes."""
        if (union := _union(operands, new)) is None:
            return None
        origin, box = union
        terms = [
            _moved(change, origin, box) * sign if sign != 1 else _moved(change, origin, box)
            for (_, change), sign in zip(operands, self.signs, strict=True)
            if change is not None
        ]
        total = sum(terms[1:], start=terms[0])
        return Change(total.expand(-1, new.shape[1], *total.shape[2:]), origin)


class Concatenation(Layer):
    """Concatenation along the channels."""

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Concatenated changes, with zeros for tensors that do not change."""
        if (union := _union(operands, new)) is None:
            return None
        origin, box = union
        count = next(len(change.values) for _, change in operands if change is not None)
        changes = [
            new.new_zeros((count, old.shape[1], *box)) if change is None else _moved(change, origin, box)
            for old, change in operands
            if isinstance(old, Tensor)
        ]
        return Change(torch.cat(changes, dim=1), origin)


def _union(operands: Sequence[Operand], new: Tensor) -> tuple[Tensor | None, Shape] | None:
    """Boxes that contain the changes of all operands; None if an operand is broadcast over space."""
    space, axes = tuple(new.shape[2:]), new.ndim - 2
    changes = []
    for old, change in operands:
        if change is not None:
            if change.flat or not isinstance(old, Tensor) or old.ndim != new.ndim or tuple(old.shape[2:]) != space:
                return None
            changes.append(change)
        elif isinstance(old, Tensor):
            seen = tuple(old.shape[max(0, old.ndim - axes) :]) if axes else ()
            if any(size != 1 for size in seen) and (old.ndim != new.ndim or seen != space):
                return None
            # Broadcasting aligns the last axes, which must be the spatial ones.
            if old.ndim > new.ndim:
                return None
    if any(change.origin is None for change in changes):
        return None, space
    if len(changes) == 1:
        return changes[0].origin, tuple(changes[0].values.shape[2:])
    corners = [_corner(change, axes) for change in changes]
    ends = [
        corner + torch.tensor(change.values.shape[2:], device=corner.device) - 1
        for corner, change in zip(corners, changes, strict=True)
    ]
    return _widened(torch.stack(corners).amin(0), torch.stack(ends).amax(0), space)


def _moved(change: Change, origin: Tensor | None, box: Shape) -> Tensor:
    """Change in a larger box."""
    if change.origin is None:
        return change.values
    if origin is None:
        return _placed(change.values, change.origin, box)
    if tuple(change.values.shape[2:]) == box and bool((change.origin == origin).all()):
        return change.values
    return _placed(change.values, change.origin - origin, box)


@dataclass(frozen=True)
class Convolution(Layer):
    """A convolution with zero padding; the bias cancels in changes.

    Attributes
    ----------
    weight : (C_out, C_in / groups, *kernel)
    """

    weight: Tensor
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    @property
    def kernel(self) -> Shape:
        """Kernel size without dilation."""
        return tuple(self.weight.shape[2:])

    @property
    def extent(self) -> Shape:
        """Kernel size with dilation."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Convolved change, computed by the method that suits number, size and positions of the boxes."""
        _, change = operands[0]
        if change is None or change.flat:
            return None
        reach = _reach(change, tuple(new.shape[2:]), self.extent, self.stride, self.padding)
        way = self._way(change, reach)
        if way != "convolution":
            given = (_last(change.values), reach.place, self._arranged, reach.box, self.stride, self.dilation)
            if way == "matrix":
                return Change(_first(by_matrix(*given)), reach.origin)
            if way == "blocks":
                return Change(_first(by_blocks(*given)), reach.origin)
            return Change(_first(by_taps(*given, arranged=self._arranged_by_remainder)), reach.origin)
        if change.origin is None and reach.origin is None:
            return Change(self._convolved(change.values, self.padding))
        size = max(1, _MOST_PADDED // (prod(reach.seen) * change.values.shape[1]))
        chunks = [
            self._convolved(_placed(values, place, reach.seen), (0,) * len(reach.box))
            for values, place in zip(change.values.split(size), reach.place.split(size), strict=True)
        ]
        return Change(torch.cat(chunks), reach.origin)

    def _convolved(self, x: Tensor, padding: Shape) -> Tensor:
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(padding) - 1]
        out: Tensor = function(x, self.weight, None, self.stride, padding, self.dilation, self.groups)
        return out

    def _way(self, change: Change, reach: _Reach) -> Literal["matrix", "blocks", "taps", "convolution"]:
        gain = prod(reach.box) * prod(self.kernel) / self._pairs(change, reach)
        if self.groups != 1 or prod(reach.box) > _MOST_OUTPUTS or gain < _BLOCKS_GAIN:
            return "convolution"
        if change.values[0].numel() <= _FEW_INPUTS:
            return "matrix"
        if len(change.values) >= _MANY_ALIKE * len(torch.unique(reach.place, dim=0)):
            return "blocks"
        return "taps" if gain >= _TAPS_GAIN else "convolution"

    def _pairs(self, change: Change, reach: _Reach) -> float:
        """Mean number of pairs of a changed voxel and a tap of the kernel of an output."""
        axes = zip(change.values.shape[2:], reach.box, self.kernel, self.stride, strict=True)
        return prod(min(n * taps / step, n * m, m * taps) for n, m, taps, step in axes)

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Number of multiplications for one changed input: for the change, and for the whole tensor."""
        reach = _reach(change, tuple(new.shape[2:]), self.extent, self.stride, self.padding)
        channels, taps = self.weight.shape[0] * self.weight.shape[1], prod(self.kernel)
        few = prod(reach.box) * taps if self._way(change, reach) == "convolution" else self._pairs(change, reach)
        return float(channels * few), float(channels * prod(new.shape[2:]) * taps)

    @cached_property
    def _arranged(self) -> Tensor:
        """Kernel as (*taps, C_in, C_out)."""
        return self.weight.permute(*range(2, self.weight.ndim), 1, 0).contiguous()

    @cached_property
    def _arranged_by_remainder(self) -> dict[Shape, Tensor]:
        return {}


@dataclass(frozen=True)
class MaxPool(Layer):
    """Max pooling."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Pooled new values minus pooled old values."""
        old, change = operands[0]
        if change is None or change.flat or not isinstance(old, Tensor):
            return None
        extent = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        reach = _reach(change, tuple(new.shape[2:]), extent, self.stride, self.padding)
        end = reach.seen_from + torch.tensor(reach.seen, device=reach.seen_from.device)
        sides = [
            side
            for axis in reversed(range(len(reach.box)))
            for side in (
                max(0, -int(reach.seen_from[:, axis].min())),
                max(0, int(end[:, axis].max()) - old.shape[2 + axis]),
            )
        ]
        # Padding is never the maximum.
        padded = functional.pad(old, sides, value=-torch.inf)
        before = _taken(padded, reach.seen_from + torch.tensor(sides[-2::-2], device=end.device), reach.seen)
        after = before + _placed(change.values, reach.place, reach.seen)
        return Change(self._pool(after, reach.box) - self._pool(before, reach.box), reach.origin)

    def _pool(self, x: Tensor, box: Shape) -> Tensor:
        function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(box) - 1]
        out: Tensor = function(x, self.kernel, self.stride, 0, self.dilation)
        return out


@dataclass(frozen=True)
class AveragePool(Layer):
    """Average pooling, including the padding."""

    kernel: Shape
    stride: Shape
    padding: Shape
    divisor: float

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Pooled change."""
        _, change = operands[0]
        if change is None or change.flat:
            return None
        reach = _reach(change, tuple(new.shape[2:]), self.kernel, self.stride, self.padding)
        seen = _placed(change.values, reach.place, reach.seen)
        function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(reach.box) - 1]
        values: Tensor = function(seen, self.kernel, self.stride)
        return Change(values * (prod(self.kernel) / self.divisor), reach.origin)


@dataclass(frozen=True)
class Mean(Layer):
    """Mean over the spatial axes.

    Attributes
    ----------
    axes : axes of the mean; None for all spatial axes
    """

    axes: Shape | None = None

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Sum of the changes divided by the number of voxels; None if the axes are not all spatial axes."""
        old, change = operands[0]
        if change is None or change.flat or not isinstance(old, Tensor):
            return None
        if self.axes is not None and sorted(axis % old.ndim for axis in self.axes) != list(range(2, old.ndim)):
            return None
        total = change.values.flatten(2).sum(2) / prod(old.shape[2:])
        return Change(total.reshape(len(total), *new.shape[1:]))


@dataclass(frozen=True)
class Linear(Layer):
    """A linear layer, possibly after flattening.

    Attributes
    ----------
    weight : (K, F)
    """

    weight: Tensor

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Weights of the voxels in the box times the change."""
        old, change = operands[0]
        if change is None or not isinstance(old, Tensor) or old.ndim != 2:
            return None
        if change.origin is None or not change.flat:
            return Change(change.values @ self.weight.T)
        weight = self.weight.reshape(len(self.weight), -1, *change.flat).movedim(1, -1)
        box = change.values.shape[2:]
        values = _last(change.values)
        out = new.new_zeros((len(values), len(weight)))
        corners, member = torch.unique(change.origin, dim=0, return_inverse=True)
        order = torch.argsort(member)
        counts = torch.bincount(member, minlength=len(corners)).tolist()
        for corner, rows in zip(corners.tolist(), torch.split(order, counts), strict=True):
            inside = tuple(slice(start, start + length) for start, length in zip(corner, box, strict=True))
            out[rows] = values[rows].flatten(1) @ weight[(slice(None), *inside)].flatten(1).T
        return Change(out)

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Number of multiplications for one changed input: for the change, and for the whole tensor."""
        return float(change.values[0].numel() * len(self.weight)), float(self.weight.numel())


class WeightedSum(Layer):
    """A linear layer with weights as an operand, as in ``functional.linear(x, weight)``."""

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """See :class:`Linear`; None if the weights change."""
        weight = operands[1].old
        if any(change is not None for _, change in operands[1:]) or not isinstance(weight, Tensor):
            return None
        return Linear(weight)(operands[:1], new)

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Number of multiplications for one changed input: for the change, and for the whole tensor."""
        return float(change.values[0].numel() * new.shape[-1]), float(old.numel() * new.shape[-1])


@dataclass(frozen=True)
class SparseLinear(Layer):
    """A linear layer with sparse weights, after flattening an image of one channel.

    Attributes
    ----------
    at : returns the weights, (P, K) float64, of sorted voxel indices, (P,)
    """

    at: Callable[[Array], scipy.sparse.csr_array]

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Product of the changes, as a sparse matrix, and the weights of the changed voxels."""
        _, change = operands[0]
        if change is None or change.origin is None or not change.flat or change.values.shape[1] != 1:
            return None
        count, inside = len(change.values), change.values[0].numel()
        voxels = _rows(change.origin, tuple(change.values.shape[2:]), change.flat).cpu().numpy()
        values = change.values.reshape(-1).double().cpu().numpy()
        changed = np.flatnonzero(values)
        seen, column = np.unique(voxels[changed], return_inverse=True)
        ends = np.searchsorted(changed, np.arange(count + 1) * inside)
        rows = scipy.sparse.csr_array((values[changed], column, ends), shape=(count, len(seen)))
        return Change(torch.from_numpy((rows @ self.at(seen)).toarray()).to(new))

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Numbers of changed and of all voxels, which are proportional to the numbers of multiplications."""
        return float(change.values[0].numel()), float(old.numel())


@dataclass(frozen=True)
class Total(Layer):
    """Sum of an elementwise function over a flattened image, (N, F) → (N, 1)."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, operands: Sequence[Operand], new: Tensor) -> Change | None:
        """Sum inside the box after the change minus the sum before."""
        old, change = operands[0]
        if change is None or change.origin is None or not change.flat or not isinstance(old, Tensor):
            return None
        before = _taken(old.reshape(1, -1, *change.flat), change.origin, tuple(change.values.shape[2:])).to(new.dtype)
        after = before + change.values
        return Change((self.function(after) - self.function(before)).flatten(1).sum(1, keepdim=True))

    def products(self, change: Change, old: Tensor, new: Tensor) -> tuple[float, float]:
        """Numbers of changed and of all voxels, to which the function is applied."""
        return float(change.values[0].numel()), float(old.numel())
