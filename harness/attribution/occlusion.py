"""Exact occlusion that computes only what a window changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.attribution.batches import Baseline, BatchSize, Inputs, Maps, baselines
from harness.attribution.incremental import Graph, Incremental, Unreadable, read
from harness.core.errors import CellError, OutOfRange
from harness.core.registry import ATTRIBUTIONS

__all__ = ["Windows", "occlusion"]

Edge: TypeAlias = Annotated[int, Gt(0)]
Edges: TypeAlias = Edge | tuple[Edge, ...]

# Incremental computation must save this share of the multiplications; below, whole batches are as good.
_WORTH = 0.9
# Alternatives that are computed first, to learn what one takes.
_PILOT = 4
_MOST_AT_ONCE = 4096
# `verify`: what float32 may make of one image alone and among others, as a share of the output, before the
# network is no function of the image.
_ROUNDING = 1e-4


@ATTRIBUTIONS.register(
    "occlusion",
    source="Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53",
    zero_if_ignored=True,
    of_linear="windows",
)
def occlusion(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    window: Edges = 8,
    stride: Edges = 4,
    per_channel: bool = True,
    baseline: Baseline = 0.0,
    batch_size: BatchSize | None = None,
    memory_mb: Annotated[float, Gt(0)] = 256.0,
    verify: Annotated[int, Ge(0)] = 0,
) -> Maps:
    """Loss of output where a window is replaced by the baseline.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    window : edge of the window in voxels, one for every spatial axis or one
        each; an axis that is shorter is covered as a whole
    stride : step of the window in voxels, likewise, at most ``window``
    per_channel : one channel at a time; False covers all channels at once
    baseline : see :func:`harness.attribution.batches.baselines`
    batch_size : most windows computed at once; None takes as many as
        ``memory_mb`` holds
    memory_mb : for the activations of the windows that are computed at once
    verify : so many windows (spread over those that change the input) are also
        computed by whole forward passes, and must agree

    Returns
    -------
    list
        At each voxel the mean of f(input) − f(occluded) over the windows that
        cover it, in units of the output. The first window lies in the corner of
        the first voxels; the last of each axis is cut off at the border.

    Raises
    ------
    OutOfRange
        If a stride leaves gaps, or there is not one edge per spatial axis.
    CellError
        If ``verify`` finds a window whose effect is another one, or a network
        that gives an image another output when it is computed again or among
        others.

    Notes
    -----
    *Exactness.* The map is that of dense occlusion, not an approximation. A
    window in which every covered voxel equals the baseline leaves the input as
    it is; its effect f(x) − f(x) is zero and is not computed. What lies outside
    the reach of a window through convolutions, pooling and elementwise layers
    keeps its value, and is not computed either. Linear layers act on the change
    itself, Δ → WΔ. In float64 the map differs from dense occlusion by rounding
    only. In float32 dense occlusion subtracts two outputs that are rounded
    each, and its result changes with the batch size; here the difference is
    carried through the network, which rounds the change rather than the output,
    so the two differ about as dense occlusion differs from itself.

    *Complexity.* One forward pass, then M windows for all targets together, M
    being those that hold a voxel unlike the baseline. For a network that begins
    with local layers, a window of w voxels along an axis changes at most
    ⌊(w + k − 2) / t⌋ + 1 outputs of a convolution with kernel k and step t, and
    costs their products with the changed inputs only. Where that reaches
    everything, the rest of the network is computed as a whole, and where it
    saves nothing, or the network's code cannot be read by ``torch.fx``, so is
    the network.
    """
    grids = [_windows(x, window, stride) for x in inputs]
    base = baselines(inputs, baseline)
    maps: list[list[Tensor]] = [[torch.zeros_like(x) for x in inputs] for _ in targets]
    with torch.no_grad():
        graph = _read(model, len(inputs))
        for item in range(len(inputs[0])):
            x, b = (tuple(each[item : item + 1] for each in group) for group in (inputs, base))
            network = _Occluded(model, graph, x, b, batch_size, memory_mb * 1e6)
            for which, grid in enumerate(grids):
                effects = _effects(network, which, grid, targets, per_channel=per_channel, verify=verify)
                for of_target, effect in zip(maps, effects, strict=True):
                    of_target[which][item] = grid.spread(effect)
    return [tuple(of_target) for of_target in maps]


@dataclass(frozen=True)
class Windows:
    """Windows over an image: their edges, steps and places.

    Attributes
    ----------
    space, window, stride : voxels along each axis
    """

    space: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Windows along each axis: as few as reach the last voxel, none starting beyond what that needs."""
        sizes = zip(self.space, self.window, self.stride, strict=True)
        return tuple(-((window - size) // stride) + 1 for size, window, stride in sizes)

    def touch(self, marked: Tensor) -> Tensor:
        """Which windows hold a marked voxel.

        Parameters
        ----------
        marked : (R, *space) bool

        Returns
        -------
        Tensor
            (R, *counts) bool
        """
        for axis, (count, window, stride) in enumerate(zip(self.counts, self.window, self.stride, strict=True), 1):
            found = marked.new_zeros((*marked.shape[:axis], count, *marked.shape[axis + 1 :]))
            for offset in range(window):
                seen = marked.narrow(axis, offset, marked.shape[axis] - offset).movedim(axis, 0)[::stride][:count]
                found.movedim(axis, 0)[: len(seen)] |= seen
            marked = found
        return marked

    def spread(self, effects: Tensor) -> Tensor:
        """Mean at each voxel over the windows that cover it.

        Parameters
        ----------
        effects : (R, *counts)

        Returns
        -------
        Tensor
            (R, *space)
        """
        # The windows are boxes, so the sums separate; the first axis last, whose rows are the longest in memory.
        for axis in reversed(range(1, effects.ndim)):
            total = effects.new_zeros((*effects.shape[:axis], self.space[axis - 1], *effects.shape[axis + 1 :]))
            covering = effects.new_zeros(self.space[axis - 1])
            along, source = total.movedim(axis, 0), effects.movedim(axis, 0)
            for offset in range(self.window[axis - 1]):
                places = along[offset :: self.stride[axis - 1]][: len(source)]
                places += source[: len(places)]
                covering[offset :: self.stride[axis - 1]][: len(source)] += 1
            effects = total.div_(covering.reshape(-1, *[1] * (effects.ndim - axis - 1)))
        return effects


def _windows(x: Tensor, window: Edges, stride: Edges) -> Windows:
    space = tuple(x.shape[2:])
    edges, steps = ((each,) * len(space) if isinstance(each, int) else tuple(each) for each in (window, stride))
    if not len(edges) == len(steps) == len(space):
        raise OutOfRange(
            f"occlusion needs one number for all {len(space)} spatial axes or one for each, "
            f"got window={window}, stride={stride}"
        )
    if not all(1 <= step <= edge for edge, step in zip(edges, steps, strict=True)):
        raise OutOfRange(f"`1 <= stride <= window` must hold for occlusion, got stride={stride}, window={window}")
    edges = tuple(min(edge, size) for edge, size in zip(edges, space, strict=True))
    return Windows(space, edges, tuple(min(step, edge) for step, edge in zip(steps, edges, strict=True)))


def _read(model: nn.Module, inputs: int) -> Graph | None:
    try:
        return read(model, inputs)
    except Unreadable:
        return None


@dataclass(frozen=True)
class _Some:
    """Windows to compute: one row each.

    Attributes
    ----------
    channels : (M,) int64, the covered channel; -1 covers all
    starts : (M, D) int64, first voxel along each axis
    """

    channels: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice | Tensor) -> _Some:
        return _Some(self.channels[rows], self.starts[rows])


def _effects(
    network: _Occluded, which: int, grid: Windows, targets: Sequence[int], *, per_channel: bool, verify: int
) -> Tensor:
    """Effects of all windows of one input, (targets, C or 1, *counts) → per target (C, *counts)."""
    x, b = network.inputs[which][0], network.base[which][0]
    differs = x != b
    touched = grid.touch(differs if per_channel else differs.any(0, keepdim=True))
    places = touched.nonzero()
    starts = places[:, 1:] * torch.tensor(grid.stride, device=x.device)
    some = _Some(places[:, 0] if per_channel else torch.full_like(places[:, 0], -1), starts)
    found = network.effects(which, grid, some, targets)
    if verify and len(some):
        rows = torch.linspace(0, len(some) - 1, min(verify, len(some)), device=x.device).round().long()
        network.check(which, grid, some[rows], targets, found[rows], found.abs().amax(0))
    effects = x.new_zeros((len(targets), *touched.shape))
    effects[(slice(None), *places.T)] = found.T.to(x.dtype)
    return effects.expand(-1, len(x), *touched.shape[1:])


class _Occluded:
    """One item whose windows are computed: incrementally where that pays, else by whole forward passes.

    Parameters
    ----------
    graph : of the model, or None if it cannot be read
    inputs, base : (1, C, *space) each
    batch_size : most windows at once, or None
    memory_bytes : for the activations of the windows at once
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph | None,
        inputs: Inputs,
        base: Inputs,
        batch_size: int | None,
        memory_bytes: float,
    ) -> None:
        self.inputs, self.base = inputs, base
        self._model, self._most, self._memory_bytes = model, batch_size or _MOST_AT_ONCE, memory_bytes
        self._network: Incremental | None = None
        if graph is not None:
            try:
                self._network = Incremental(graph, inputs)
            except Unreadable:
                self._network = None

    def effects(self, which: int, grid: Windows, some: _Some, targets: Sequence[int]) -> Tensor:
        """f(input) − f(occluded) for each window and target, (M, targets)."""
        if not len(some):
            return self.inputs[which].new_zeros((0, len(targets)))
        if self._network is not None:
            try:
                return self._incremental(self._network, which, grid, some, targets)
            except (Unreadable, _NotWorth):
                pass
        return self._dense(which, grid, some, targets)

    def _incremental(
        self, network: Incremental, which: int, grid: Windows, some: _Some, targets: Sequence[int]
    ) -> Tensor:
        pilot = some[torch.linspace(0, len(some) - 1, min(_PILOT, len(some), self._most)).round().long()]
        network.changes(which, *self._boxes(which, grid, pilot))
        few, whole = network.products
        if few > _WORTH * whole:
            raise _NotWorth
        size = max(1, min(self._most, int(self._memory_bytes * len(pilot) / max(1, network.peak_bytes))))
        parts = [slice(start, start + size) for start in range(0, len(some), size)]
        found = torch.cat([network.changes(which, *self._boxes(which, grid, some[each])) for each in parts])
        return -found[:, list(targets)]

    def _boxes(self, which: int, grid: Windows, some: _Some) -> tuple[Tensor, Tensor]:
        """Corners (M, D) and changes (M, C, *window) of the windows' boxes, all inside the image.

        A window that is cut off at the border is a box further inside, whose
        other voxels do not change.
        """
        x, b = self.inputs[which], self.base[which]
        room = torch.tensor(grid.space, device=x.device) - torch.tensor(grid.window, device=x.device)
        corners = torch.minimum(some.starts, room)
        index: list[Tensor] = []
        inside = torch.ones((len(some), *[1] * len(grid.space)), dtype=torch.bool, device=x.device)
        for axis, length in enumerate(grid.window):
            along = corners[:, axis, None] + torch.arange(length, device=x.device)
            shape = (len(some), *[1] * axis, length, *[1] * (len(grid.window) - axis - 1))
            inside = inside & (along >= some.starts[:, axis, None]).reshape(shape)
            index.append(along.reshape(shape))
        change = torch.stack([(b[0, each] - x[0, each])[tuple(index)] for each in range(x.shape[1])], dim=1)
        channel = torch.arange(x.shape[1], device=x.device)[None] == some.channels[:, None]
        covered = channel | (some.channels < 0)[:, None]
        return corners, change * (inside[:, None] & covered.reshape(*covered.shape, *[1] * len(grid.window)))

    def _dense(self, which: int, grid: Windows, some: _Some, targets: Sequence[int]) -> Tensor:
        """By whole forward passes."""
        before = self._model(*self.inputs)
        size = min(self._most, max(1, int(self._memory_bytes / _activation_bytes(self._model, self.inputs))))
        rows = torch.arange(len(some), device=some.starts.device).split(size)
        found = [before - self._outputs(which, grid, some[each]) for each in rows]
        return torch.cat(found)[:, list(targets)]

    def _outputs(self, which: int, grid: Windows, some: _Some) -> Tensor:
        """Outputs (M, K) for the occluded images, in one forward pass."""
        images = [x.expand(len(some), *x.shape[1:]) for x in self.inputs]
        images[which] = images[which].clone()
        for image, channel, start in zip(images[which], some.channels.tolist(), some.starts.tolist(), strict=True):
            box = tuple(slice(low, low + edge) for low, edge in zip(start, grid.window, strict=True))
            covered = slice(None) if channel < 0 else slice(channel, channel + 1)
            image[(covered, *box)] = self.base[which][0][(covered, *box)]
        outputs: Tensor = self._model(*images)
        return outputs

    def check(
        self, which: int, grid: Windows, some: _Some, targets: Sequence[int], found: Tensor, largest: Tensor
    ) -> None:
        """Compare effects (M, targets) with whole forward passes; the largest effect (targets,) is the scale."""
        chosen = list(targets)
        alone = torch.cat(
            [self._model(*self.inputs), *(self._outputs(which, grid, some[i : i + 1]) for i in range(len(some)))]
        )
        again = torch.cat([self._model(*self.inputs), self._outputs(which, grid, some)])
        alone, again = alone[:, chosen], again[:, chosen]
        spread = (alone - again).abs().amax(0)
        allowed = _ROUNDING * alone.abs().amax(0)
        for target, varies, most in zip(chosen, spread.tolist(), allowed.tolist(), strict=True):
            if not varies <= most:
                raise CellError(
                    "occlusion needs a network that gives an image one output, alone and among others; "
                    f"output {target} differs by {varies:.3g} (at most {most:.3g} is rounding); "
                    "see what in the network draws numbers or looks at the whole batch"
                )
        dense = alone[:1] - alone[1:]
        lowest = 1e-5 * largest + 4 * spread + 16 * torch.finfo(alone.dtype).eps * alone.abs().amax(0)
        apart = (found - dense).abs()
        row, column = divmod(int((apart - lowest).argmax()), apart.shape[1])
        if not bool((apart <= lowest).all()):
            raise CellError(
                f"the exact occlusion must agree with whole forward passes, got {float(found[row, column]):.6g} for "
                f"{float(dense[row, column]):.6g} (allowed {float(lowest[column]):.3g}) at output {chosen[column]}, "
                f"window at {tuple(some.starts[row].tolist())}; the network does something that its layers do not "
                "tell: wrap it in a module with hooks of its own to have it computed as a whole"
            )


class _NotWorth(Exception):
    """Whole forward passes are as good."""


def _activation_bytes(model: nn.Module, inputs: Inputs) -> float:
    """Bytes that one item takes in a forward pass, at most: its images and the outputs of all layers."""
    total = 0.0

    def add(module: nn.Module, given: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    hooks = [each.register_forward_hook(add) for each in model.modules() if not list(each.children())]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(total, 1.0) + sum(2 * x.numel() * x.element_size() for x in inputs)
