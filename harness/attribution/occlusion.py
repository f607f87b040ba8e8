"""Exact occlusion that recomputes only the activations affected by a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.attribution.batches import Baseline, BatchSize, Inputs, Maps, baselines, items_are_independent
from harness.attribution.incremental import Graph, Incremental, Unreadable, read
from harness.core.errors import CellError, OutOfRange
from harness.core.registry import ATTRIBUTIONS

__all__ = ["Windows", "occlusion"]

Edge: TypeAlias = Annotated[int, Gt(0)]
Edges: TypeAlias = Edge | tuple[Edge, ...]

# Incremental computation is used if it needs at most this share of the multiplications.
_WORTH = 0.9
# Number of windows that are computed first, to measure time and memory.
_PILOT = 4
_MOST_AT_ONCE = 4096
# For `verify`: largest relative difference between the outputs for an image alone and in a batch.
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
    """Occlusion: decrease of the output if a window is replaced by the baseline.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    window : size of the window in voxels, one number for all spatial axes or one per axis;
        shorter axes are covered completely
    stride : step of the window in voxels, one number or one per axis, at most ``window``
    per_channel : occlude one channel at a time, instead of all channels together
    baseline : baseline of the input: one number, or one number per channel
    batch_size : maximum number of windows computed together; null chooses it by
        ``memory_mb``
    memory_mb : memory for the activations of windows that are computed together, in MB
    verify : number of windows, of those that change the input, that are also computed by
        full forward passes, for comparison

    Returns
    -------
    list
        For each voxel, the mean of f(input) − f(occluded) over the windows that cover it,
        in units of the output. The first window starts at the first voxel; the last window
        along each axis is cropped at the border.

    Raises
    ------
    OutOfRange
        If a stride leaves gaps, or the number of window sizes is not that of the spatial
        axes.
    CellError
        If ``verify`` finds a difference, or the output of the network for an image is not
        reproducible.

    Notes
    -----
    *Exactness.* The map is that of dense occlusion, not an approximation. Windows in which
    all voxels equal the baseline do not change the input and are not computed. Activations
    that a window cannot affect through convolutions, pooling and elementwise layers are
    not recomputed. Linear layers operate on the change itself, Δ → WΔ. In float64, the map
    differs from dense occlusion only by rounding. In float32, dense occlusion subtracts two
    rounded outputs, so that its result depends on the batch size. Here the difference is
    propagated through the network and rounding affects only the change, so that both
    results differ about as much as dense occlusion with different batch sizes.

    *Complexity.* One forward pass, and M windows for all targets together, where M is the
    number of windows with a voxel different from the baseline. In a network that starts
    with local layers, a window of w voxels along an axis affects at most
    ⌊(w + k − 2) / t⌋ + 1 outputs of a convolution with kernel size k and stride t, and only
    their products with the changed inputs are computed. Layers whose output changes
    everywhere are computed completely, and so is the whole network if this saves nothing or
    if ``torch.fx`` cannot trace it. If the outputs for an image depend on other images in the
    batch (batch normalisation without running statistics), each window is a full forward
    pass of its own.
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
    """Sliding windows over an image.

    Attributes
    ----------
    space, window, stride : voxels along each axis
    """

    space: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of windows along each axis, the smallest that covers all voxels."""
        sizes = zip(self.space, self.window, self.stride, strict=True)
        return tuple(-((window - size) // stride) + 1 for size, window, stride in sizes)

    def touch(self, marked: Tensor) -> Tensor:
        """Whether each window contains a marked voxel.

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
        """For each voxel, the mean over the windows that cover it.

        Parameters
        ----------
        effects : (R, *counts)

        Returns
        -------
        Tensor
            (R, *space)
        """
        # The sums over boxes are separable. The first axis, with the longest rows in memory, comes last.
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
            f"occlusion needs one number for all {len(space)} spatial axes or one per axis, "
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
    """Windows to compute, one per row.

    Attributes
    ----------
    channels : (M,) int64, occluded channel; -1 for all channels
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
    """Effects of all windows of one input on each target, (targets, C, *counts)."""
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
    """Computes the windows of one item, incrementally if this is faster, otherwise by full forward passes.

    Parameters
    ----------
    graph : graph of the model, or None if it cannot be traced
    inputs, base : (1, C, *space) each
    batch_size : maximum number of windows computed together, or None
    memory_bytes : memory for the activations of windows that are computed together
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
        self._known: dict[int, bool] = {}
        self._network: Incremental | None = None
        if graph is not None:
            try:
                self._network = Incremental(graph, inputs)
            except Unreadable:
                self._network = None

    def effects(self, which: int, grid: Windows, some: _Some, targets: Sequence[int]) -> Tensor:
        """Effects f(input) − f(occluded) for each window and target, (M, targets)."""
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
        if few > _WORTH * whole or (network.is_joint and not self._independent()):
            raise _NotWorth
        size = max(1, min(self._most, int(self._memory_bytes * len(pilot) / max(1, network.peak_bytes))))
        chunks = [slice(start, start + size) for start in range(0, len(some), size)]
        found = torch.cat([network.changes(which, *self._boxes(which, grid, some[chunk])) for chunk in chunks])
        # A layer may be computed completely for some windows only, and items may be coupled in large batches only.
        if network.is_joint and not self._independent(max(3, min(size, len(some)))):
            raise _NotWorth
        return -found[:, list(targets)]

    def _boxes(self, which: int, grid: Windows, some: _Some) -> tuple[Tensor, Tensor]:
        """Corners, (M, D), and changes, (M, C, *window), of the boxes of windows inside the image.

        The box of a window that is cropped at the border is moved inside; its additional
        voxels do not change.
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
        """Effects by full forward passes."""
        before: Tensor = self._model(*self.inputs)
        size = min(self._most, max(1, int(self._memory_bytes / _activation_bytes(self._model, self.inputs))))
        return (before - self._outputs(which, grid, some, size))[:, list(targets)]

    def _independent(self, size: int = 3) -> bool:
        """Whether the outputs for an image do not depend on other images in batches of this size."""
        if size not in self._known:
            self._known[size] = items_are_independent(self._model, self.inputs, size)
        return self._known[size]

    def _outputs(self, which: int, grid: Windows, some: _Some, size: int) -> Tensor:
        """Outputs, (M, K), for the occluded images, by forward passes of at most ``size`` images."""
        several = size > 1 and len(some) > 1
        joint = several and self._independent(min(size, len(some)))
        rows = torch.arange(len(some), device=some.starts.device).split(size if joint else 1)
        return torch.cat([self._pass(which, grid, some[each]) for each in rows])

    def _pass(self, which: int, grid: Windows, some: _Some) -> Tensor:
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
        """Compare effects, (M, targets), with full forward passes, relative to the largest effects, (targets,)."""
        chosen = list(targets)
        alone, again = (
            torch.cat([self._model(*self.inputs), self._outputs(which, grid, some, size)]) for size in (1, len(some))
        )
        alone, again = alone[:, chosen], again[:, chosen]
        spread = (alone - again).abs().amax(0)
        allowed = _ROUNDING * alone.abs().amax(0)
        for target, varies, most in zip(chosen, spread.tolist(), allowed.tolist(), strict=True):
            if not varies <= most:
                raise CellError(
                    f"occlusion needs a network whose output for an image is reproducible; output {target} differs by "
                    f"{varies:.3g} (rounding explains at most {most:.3g}); check the network for random numbers"
                )
        dense = alone[:1] - alone[1:]
        lowest = 1e-5 * largest + 4 * spread + 16 * torch.finfo(alone.dtype).eps * alone.abs().amax(0)
        apart = (found - dense).abs()
        row, column = divmod(int((apart - lowest).argmax()), apart.shape[1])
        if not bool((apart <= lowest).all()):
            raise CellError(
                f"the exact occlusion must agree with full forward passes, got {float(found[row, column]):.6g} for "
                f"{float(dense[row, column]):.6g} (allowed {float(lowest[column]):.3g}) at output {chosen[column]}, "
                f"window at {tuple(some.starts[row].tolist())}; some layer does not compute what its type suggests: "
                "wrap the network in a module with a forward hook, so that full forward passes are used"
            )


class _NotWorth(Exception):
    """Full forward passes are not slower."""


def _activation_bytes(model: nn.Module, inputs: Inputs) -> float:
    """Upper limit of the bytes for one item in a forward pass: its images and the outputs of all layers."""
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
