"""Convolutions of small boxes by matrix products without multiplications by zero.

For a box of s changed voxels, a kernel of k taps and a stride t, there are about s · k / t
pairs of a voxel and a tap along each axis. A convolution of the padded box would multiply
all k taps of all outputs, mostly with zeros. The functions of this module compute the same
sums in a different order, and differ in the amount of copied data.

Channels are the last axis. The parameters are

values : (B, *box, C_in)
place : (B, D) int64, so that tap q of output j is at voxel
    q · dilation + j · stride − place of the box, along each axis
kernel : (*taps, C_in, C_out)
outputs : size of the box of outputs to compute

and the result is (B, *outputs, C_out).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import gcd, prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["by_blocks", "by_matrix", "by_taps"]

Shape: TypeAlias = tuple[int, ...]

# Maximum number of values in memory in `by_taps`.
_MOST_TERMS = 2**22


class _Alike(NamedTuple):
    """Boxes with the same position relative to the strides."""

    place: Shape
    members: Tensor  # int64 rows


def _alike(place: Tensor) -> list[_Alike]:
    places, member = torch.unique(place, dim=0, return_inverse=True)
    counts = torch.bincount(member, minlength=len(places)).tolist()
    members = torch.split(torch.argsort(member), counts)
    return [_Alike(tuple(each), rows) for each, rows in zip(places.tolist(), members, strict=True)]


def by_matrix(values: Tensor, place: Tensor, kernel: Tensor, outputs: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """Multiply by one matrix from all voxels of a box to all outputs, for boxes with the same position.

    Suitable for few input channels, because the matrix contains zeros for pairs of voxel and
    output without a tap.
    """
    taps, box = tuple(kernel.shape[: len(stride)]), tuple(values.shape[1:-1])
    ins, outs = kernel.shape[-2:]
    # With an additional row of zeros for pairs without a tap.
    rows = torch.cat([kernel.reshape(-1, ins * outs), kernel.new_zeros(1, ins * outs)])
    result = values.new_empty((len(values), *outputs, outs))
    alike = _alike(place)
    for members, tap in zip(
        (each.members for each in alike), _taps_of_pairs(alike, box, outputs, taps, stride, dilation), strict=True
    ):
        matrix = rows.index_select(0, tap.flatten()).reshape(*tap.shape, ins, outs).transpose(1, 2)
        # A product with few columns is faster than one with few rows.
        found = matrix.reshape(prod(box) * ins, -1).T @ values[members].reshape(len(members), -1).T
        result[members] = found.T.reshape(len(members), *outputs, outs)
    return result


def _taps_of_pairs(
    alike: list[_Alike], box: Shape, outputs: Shape, taps: Shape, stride: Shape, dilation: Shape
) -> Iterator[Tensor]:
    """For each position, the tap of each pair of voxel and output, (prod(box), prod(outputs)); prod(taps) if none."""
    device = alike[0].members.device
    places = torch.tensor([each.place for each in alike], device=device)
    tables = []
    for axis, (length, size) in enumerate(zip(box, outputs, strict=True)):
        voxel, output = torch.arange(length, device=device)[:, None], torch.arange(size, device=device)
        apart = places[:, axis, None, None] + voxel - output * stride[axis]
        tap = torch.div(apart, dilation[axis], rounding_mode="floor")
        meets = (apart % dilation[axis] == 0) & (tap >= 0) & (tap < taps[axis])
        # Negative enough that the sum over axes stays below zero.
        tables.append(torch.where(meets, tap * prod(taps[axis + 1 :]), -prod(taps) - 1))
    for row in range(len(alike)):
        total = tables[0][row]
        for table in tables[1:]:
            total = (total[:, None, :, None] + table[row][None, :, None, :]).flatten(2).flatten(0, 1)
        yield torch.where(total < 0, prod(taps), total)


def by_blocks(values: Tensor, place: Tensor, kernel: Tensor, outputs: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """Compute each output by one product with its input voxels, for boxes with the same position.

    Suitable for many boxes with the same position, because the kernel is copied once per
    position.
    """
    result = values.new_zeros((len(values), *outputs, kernel.shape[-1]))
    for where, members in _alike(place):
        inputs = values[members]
        found = values.new_zeros((len(members), *outputs, kernel.shape[-1]))
        seen = [
            _seen(where[axis], inputs.shape[1 + axis], count, kernel.shape[axis], stride[axis], dilation[axis])
            for axis, count in enumerate(outputs)
        ]
        for block in product(*seen):
            output, voxels, taps = zip(*block, strict=True)
            rows = inputs[(slice(None), *voxels)].reshape(len(members), -1)
            columns = [kernel[each].reshape(-1, kernel.shape[-1]) for each in product(*taps)]
            target = found[(slice(None), *output)]
            target.copy_((rows @ torch.cat(columns, dim=1)).reshape(target.shape))
        result[members] = found
    return result


def _seen(
    place: int, length: int, outputs: int, taps: int, step: int, spread: int
) -> list[tuple[slice, slice, list[slice]]]:
    """Groups of outputs with the same input voxels in the box: outputs, voxels, and taps of each, along one axis."""
    found: list[tuple[slice, slice, list[slice]]] = []
    for output in range(outputs):
        offset = output * step - place  # voxel of tap 0
        low = max(0, -(offset // spread))
        high = min(taps, (length - 1 - offset) // spread + 1)
        if low >= high:
            continue
        voxels = slice(low * spread + offset, (high - 1) * spread + offset + 1, spread)
        if found and found[-1][0].stop == output and found[-1][1] == voxels:
            first, _, before = found.pop()
            found.append((slice(first.start, output + 1), voxels, [*before, slice(low, high)]))
        else:
            found.append((slice(output, output + 1), voxels, [slice(low, high)]))
    return found


def by_taps(
    values: Tensor,
    place: Tensor,
    kernel: Tensor,
    outputs: Shape,
    stride: Shape,
    dilation: Shape,
    *,
    arranged: dict[Shape, Tensor] | None = None,
) -> Tensor:
    """Multiply each voxel by all its taps, then sum the products of each output.

    Suitable for boxes with different positions, because voxels with the same remainder
    modulo the stride have the same taps for any position of the box.

    Parameters
    ----------
    arranged : cache of rearranged kernels, for calls with the same kernel, stride and
        dilation
    """
    most = prod(-(-taps // step) for taps, step in zip(kernel.shape, stride, strict=False))
    size = max(1, _MOST_TERMS // (prod(values.shape[1:-1]) * most * kernel.shape[-1]))
    kept = {} if arranged is None else arranged
    taps = [_taps_of_remainders(*each) for each in zip(kernel.shape, stride, dilation, strict=False)]
    for remainder in product(*(range(step) for step in stride)):
        chosen = tuple(each[left] for each, left in zip(taps, remainder, strict=True))
        if remainder not in kept:
            selected = kernel[chosen]
            kept[remainder] = selected.reshape(-1, *kernel.shape[-2:]).transpose(0, 1).reshape(kernel.shape[-2], -1)
    chunks = [
        _by_taps(some, where, kept, taps, kernel.shape[-1], outputs, stride, dilation)
        for some, where in zip(values.split(size), place.split(size), strict=True)
    ]
    return torch.cat(chunks)


def _taps_of_remainders(taps: int, stride: int, dilation: int) -> list[slice]:
    """Taps for each remainder of a voxel modulo the stride, along one axis."""
    meeting = [[tap for tap in range(taps) if (left - tap * dilation) % stride == 0] for left in range(stride)]
    step = stride // gcd(stride, dilation)
    return [slice(each[0], each[-1] + 1, step) if each else slice(0) for each in meeting]


def _by_taps(
    values: Tensor,
    place: Tensor,
    kept: dict[Shape, Tensor],
    taps: list[list[slice]],
    outs: int,
    outputs: Shape,
    stride: Shape,
    dilation: Shape,
) -> Tensor:
    count, *box, ins = values.shape
    axes, device = len(box), values.device
    # Position of each voxel along each axis relative to tap 0 of output 0; its remainder determines the taps.
    at = [
        (place[:, axis, None] + torch.arange(length, device=device)).reshape(
            count, *[length if each == axis else 1 for each in range(axes)]
        )
        for axis, length in enumerate(box)
    ]
    key = torch.zeros((), dtype=torch.int64, device=device)
    for axis in range(axes):
        key = key * stride[axis] + at[axis] % stride[axis]
    key = key.expand(count, *box).flatten()
    order = torch.argsort(key.int(), stable=True)
    rows = values.reshape(-1, ins)[order]
    at = [each.expand(count, *box).flatten()[order] for each in at]
    targets = _targets(order // prod(box), at, taps, outputs, stride, dilation)
    members = torch.bincount(key, minlength=prod(stride)).tolist()
    terms = values.new_empty((sum(n * each.shape[1] for n, each in zip(members, kept.values(), strict=True)),))
    wanted, row, term = [], 0, 0
    for remainder, length in zip(product(*(range(step) for step in stride)), members, strict=True):
        matrix = kept[remainder]
        if length and matrix.shape[1]:
            place_in = terms[term : term + length * matrix.shape[1]].reshape(length, -1)
            torch.mm(rows[row : row + length], matrix, out=place_in)
            some = targets[row : row + length]
            for axis, each in enumerate(taps):
                # Some remainders have fewer taps than others.
                some = some.narrow(1 + axis, 0, len(range(10**9)[each[remainder[axis]]]))
            wanted.append(some.reshape(-1))
            term += place_in.numel()
        row += length
    if not wanted:
        return values.new_zeros((count, *outputs, outs))
    return _summed(terms.reshape(-1, outs), torch.cat(wanted), count * prod(outputs)).reshape(count, *outputs, outs)


def _targets(
    item: Tensor, at: list[Tensor], taps: list[list[slice]], outputs: Shape, stride: Shape, dilation: Shape
) -> Tensor:
    """Index of the output of each voxel and tap over all items, (R, *taps); negative if there is none."""
    target = item.int().reshape(-1, *[1] * len(outputs)) * prod(outputs)
    for axis, size in enumerate(outputs):
        lowest = torch.tensor([each.start or 0 for each in taps[axis]], device=item.device)
        most = max(len(range(10**9)[each]) for each in taps[axis])
        tap = lowest[at[axis] % stride[axis], None] + torch.arange(most, device=item.device) * (taps[axis][0].step or 1)
        output = torch.div(at[axis][:, None] - tap * dilation[axis], stride[axis], rounding_mode="floor")
        along = torch.where((output >= 0) & (output < size), output * prod(outputs[axis + 1 :]), -(2**29)).int()
        target = target + along.reshape(len(item), *[-1 if each == axis else 1 for each in range(len(outputs))])
    return target


def _summed(terms: Tensor, targets: Tensor, count: int) -> Tensor:
    """Sums of terms, (R, C), by target, (R,); returns (count, C). Negative targets are ignored."""
    targets = targets.clamp(min=-1)
    order = torch.argsort(targets, stable=True)
    ends = torch.bincount(targets + 1, minlength=count + 1).cumsum(0)
    summed: Tensor = functional.embedding_bag(order[int(ends[0]) :], terms, ends[:-1] - ends[0], mode="sum")
    return summed
