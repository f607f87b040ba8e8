"""Record the operations of a network while it runs, for layer-wise relevance propagation.

The record is made by a dispatch mode of torch, below modules and functions. Therefore the
network needs no changes, may use functions, loops, shared and reused modules and several
inputs, and every operation has its values.

Tensors can share memory, and operations can write into it. Each value has a node of its
own: an operation in place gives its tensor a new node, and other tensors of the same memory
get one that combines their former value with what was written, when they are read next.
Values that leave torch, such as arrays of numpy, cannot be traced and are refused.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.errors import CellError

__all__ = ["Step", "Tape", "flat", "is_changed", "record", "replaced"]

Geometry: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]

# Operations in place that change each element by itself, like the operation of the same name without "_".
_ELEMENTWISE = {
    "relu_", "tanh_", "sigmoid_", "leaky_relu_", "elu_", "silu_", "hardtanh_", "hardswish_", "hardsigmoid_", "mish_",
    "clamp_", "clamp_min_", "add_", "sub_", "mul_", "div_",
}  # fmt: skip
# Operations whose results have the shape and type of a tensor, but not its values.
_VALUELESS = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_empty_strided", "new_full",
}  # fmt: skip
# Functions that hand values to code outside torch.
_LEAVING = {"numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "untyped_storage", "storage", "_typed_storage"}
_DATA: Any = Tensor.data


@dataclass
class Step:
    """One recorded operation.

    Parameters
    ----------
    name : name of the operation, without overload; that of the operation without "_" if
        it is elementwise and in place
    function : the operation
    args, kwargs : arguments, with the values at that time
    sources : node number of each tensor argument that depends on the input, by position
    results : node number of each output tensor, in order
    values : output tensors; those of operations in place can have changed since
    module : path of the module
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: dict[int, int]
    results: list[int]
    values: list[Tensor]
    module: str
    versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [one._version for one in flat(self.args) if isinstance(one, Tensor) and not one.is_inference()]

    def keep(self, changed: Mapping[int, Tensor]) -> None:
        """Replace arguments by copies, by the id of the argument."""
        self.args = _mapped(self.args, lambda one: changed.get(id(one), one))
        self.versions = self._versions()


def is_changed(step: Step) -> bool:
    """Whether an argument was written to after the operation ran, unseen by the record."""
    return step.versions != step._versions()


@dataclass
class Tape:
    """Recorded operations.

    Parameters
    ----------
    steps : operations in the order in which they ran
    inputs : node numbers of the inputs
    output : node number of the output; −1 if the output does not depend on the inputs
    value : the output, (N, K)
    """

    steps: list[Step]
    inputs: list[int]
    output: int
    value: Tensor


@dataclass
class _Memory:
    """Memory that several tensors can share.

    Parameters
    ----------
    traced : whether its first values depended on the inputs
    writes : tensors that were written in place, where they are in the memory, and their
        nodes; −1 for values that do not depend on the inputs
    """

    traced: bool
    writes: list[tuple[Tensor, Geometry, int]] = field(default_factory=list)


@dataclass
class _Known:
    """Node of a tensor.

    Parameters
    ----------
    tensor : the tensor, kept because an id is unique only while its object lives
    node : its number; −1 if its value does not depend on the inputs
    memory : its memory; ``None`` for tensors without
    seen : number of writes to the memory that the node includes
    """

    tensor: Tensor
    node: int
    memory: _Memory | None
    seen: int


class _Recorder(TorchDispatchMode):
    """Records operations on tensors that depend on the inputs."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.path: list[str] = []
        self._known: dict[int, _Known] = {}
        self._memories: dict[int, _Memory] = {}
        self._readers: dict[int, list[Step]] = defaultdict(list)  # by address
        self._count = 0
        self.inputs = [self._new(x) for x in inputs]

    @property
    def module(self) -> str:
        """Path of the running module."""
        return self.path[-1] if self.path else ""

    def _new(self, tensor: Tensor) -> int:
        """Give a new tensor that depends on the inputs a node."""
        address, memory = _address(tensor), None
        if address:
            memory = self._memories.setdefault(address, _Memory(traced=True))
        self._known[id(tensor)] = _Known(tensor, self._number(), memory, len(memory.writes) if memory else 0)
        return self._count - 1

    def _number(self) -> int:
        self._count += 1
        return self._count - 1

    def node_of(self, tensor: Any) -> int:
        """Number of the node of a value; −1 if it does not depend on the inputs.

        Raises
        ------
        CellError
            If a tensor shares memory with a traced one in a way that was not recorded.
        """
        if not isinstance(tensor, Tensor):
            return -1
        known = self._known.get(id(tensor))
        if known is None:
            memory = self._memories.get(_address(tensor))
            if memory is None:
                return -1
            if memory.traced:
                raise self.refusal("a tensor with the memory of another one that depends on the input")
            known = self._known[id(tensor)] = _Known(tensor, -1, memory, 0)
        if known.memory is not None and known.seen < len(known.memory.writes):
            self._combine(known, known.memory)
        return known.node

    def refusal(self, what: str) -> CellError:
        """The error for values that cannot be traced."""
        where = f" in the module {self.module}" if self.module else ""
        return CellError(
            f"LRP cannot trace {what}{where}; choose another attribution, or compute with operations of torch on "
            "tensors that are not detached"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            name = func.overloadpacket.__name__
            given = [*flat(args), *flat(tuple(kwargs.values()))]
            found = {place: node for place, one in enumerate(given) if (node := self.node_of(one)) >= 0}
            sources = {} if name in _VALUELESS else found
            if func._schema.is_mutable:
                return self._in_place(func, name, args, kwargs, sources)
            out = func(*args, **kwargs)
            if sources:
                name = name if max(sources) < len(flat(args)) else f"{name} with named tensors"
                self._record(name, func, args, kwargs, sources, self._results(name, out))
            return out

    def _results(self, name: str, out: Any) -> list[Tensor]:
        """Output tensors of an operation."""
        results = flat((out,) if isinstance(out, Tensor) or not isinstance(out, tuple | list) else tuple(out))
        # A truth value decides what runs; any other number could enter the network again.
        if any(isinstance(one, int | float | complex) and not isinstance(one, bool) for one in results):
            raise self.refusal(f"a value that leaves the network as a number ({name})")
        return [one for one in results if isinstance(one, Tensor)]

    def _record(
        self, name: str, func: Any, args: Any, kwargs: Any, sources: dict[int, int], results: list[Tensor]
    ) -> None:
        numbers = [self._new(one) for one in results]
        self._add(Step(name, func, tuple(args), dict(kwargs), sources, numbers, results, self.module))

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        for address in {_address(one) for one in flat(step.args) if isinstance(one, Tensor)}:
            self._readers[address].append(step)

    # Operations in place

    def _in_place(self, func: Any, name: str, args: Any, kwargs: Any, sources: dict[int, int]) -> Any:
        written = _written(func, args, kwargs)
        addresses = {_address(one) for one in written}
        self._keep(addresses)
        traced = bool(sources) or any(address in self._memories for address in addresses)
        if not traced:
            return func(*args, **kwargs)
        before = _mapped(args, lambda one: one.clone() if _address(one) in addresses else one)
        out = func(*args, **kwargs)
        results = written + [one for one in self._results(name, out) if all(one is not other for other in written)]
        own = len(written) == 1 and bool(args) and written[0] is args[0]
        name, func, before, sources = _meaning(name if own else f"{name}.out", func, before, sources)
        if not sources:  # constants, from now on
            for one in written:
                self._write(one, -1)
            return out
        numbers = [self._number() if any(one is other for other in written) else self._new(one) for one in results]
        for one, node in zip(results[: len(written)], numbers, strict=False):
            self._write(one, node)
        self._add(Step(name, func, before, dict(kwargs), sources, numbers, results, self.module))
        return out

    def _keep(self, addresses: set[int]) -> None:
        """Copy the arguments of recorded operations in a memory that is about to be written to."""
        for step in [step for address in addresses for step in self._readers.pop(address, [])]:
            step.keep(
                {
                    id(one): one.clone()
                    for one in flat(step.args)
                    if isinstance(one, Tensor) and _address(one) in addresses
                }
            )

    def _write(self, tensor: Tensor, node: int) -> None:
        memory = None
        if address := _address(tensor):
            memory = self._memories.setdefault(address, _Memory(traced=False))
            memory.writes.append((tensor, _geometry(tensor), node))
        self._known[id(tensor)] = _Known(tensor, node, memory, len(memory.writes) if memory else 0)

    def _combine(self, known: _Known, memory: _Memory) -> None:
        """Give a tensor a node that includes what was written to its memory since it got the last one."""
        tensor, recent = known.tensor, memory.writes[known.seen :]
        known.seen = len(memory.writes)
        if any(one.dtype != tensor.dtype or one.layout != torch.strided for one, _, _ in recent):
            self._add_combined(known, "a view of another type", lambda *_: None, (tensor,), {0: known.node})
            return
        places = [_geometry(tensor), *(place for _, place, _ in recent)]
        if _overlaps(places[0]):
            self._add_combined(known, "view of overlapping elements", lambda *_: None, (tensor,), {0: known.node})
            return
        values = (tensor, *(one for one, _, _ in recent))
        index = _origins(places, tensor.untyped_storage().nbytes() // tensor.element_size())
        ends = torch.tensor([one.numel() for one in values]).cumsum(0)
        visible = set(torch.bucketize(index, ends, right=True).unique().tolist())
        nodes = [known.node, *(node for _, _, node in recent)]
        sources = {number: nodes[number] for number in sorted(visible) if nodes[number] >= 0}
        if visible == {0} or not sources:
            known.node = known.node if visible == {0} else -1
            return
        (last,) = visible if len(visible) == 1 else (0,)
        if last and places[last] == places[0]:  # the same elements in the same order
            known.node = nodes[last]
            return
        self._add_combined(known, "write", partial(_gathered, index.to(tensor.device)), values, sources)

    def _add_combined(
        self,
        known: _Known,
        name: str,
        function: Callable[..., Any],
        args: tuple[Tensor, ...],
        sources: dict[int, int],
    ) -> None:
        known.node = self._number()
        self._add(Step(name, function, args, {}, sources, [known.node], [known.tensor], self.module))


def _meaning(
    name: str, func: Any, args: tuple[Any, ...], sources: dict[int, int]
) -> tuple[str, Any, tuple[Any, ...], dict[int, int]]:
    """Name, function, arguments and sources of an operation in place, as one that returns its result."""
    others = {place: node for place, node in sources.items() if place}
    if name == "zero_" or (name == "fill_" and not others):
        return name, func, args, {}
    if name == "copy_":
        target = args[0]
        return "copy", partial(_copied, target.dtype, tuple(target.shape)), (None, *args[1:2]), others
    return name.removesuffix("_") if name in _ELEMENTWISE else name, func, args, sources


def _copied(dtype: torch.dtype, shape: Sequence[int], _: None, source: Tensor) -> Tensor:
    return source.to(dtype).expand(shape)


def _gathered(index: Tensor, *values: Tensor) -> Tensor:
    return torch.cat([one.reshape(-1) for one in values])[index]


def _origins(places: Sequence[Geometry], count: int) -> Tensor:
    """For each element of the first of several tensors of a memory, the one that was written last.

    Parameters
    ----------
    places : tensors in the order in which they were written
    count : number of elements of the memory

    Returns
    -------
    Tensor
        Indices of the elements of all tensors in line, of the shape of the first.
    """
    memory, first = torch.zeros(count, dtype=torch.int64), 0
    for shape, stride, offset in places:
        length = math.prod(shape)
        memory.as_strided(shape, stride, offset).copy_(torch.arange(first, first + length).reshape(shape))
        first += length
    return memory.as_strided(*places[0]).clone()


def _geometry(tensor: Tensor) -> Geometry:
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())


def _overlaps(place: Geometry) -> bool:
    """Whether two elements of a tensor may be the same."""
    reach = 0
    for size, stride in sorted(zip(*place[:2], strict=True), key=lambda one: one[1]):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _address(tensor: Any) -> int:
    """Address of the memory of a tensor; 0 if it has none."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return 0
    return int(tensor.untyped_storage().data_ptr())


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensor arguments that an operation writes to."""
    found: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return [one for one in flat(tuple(found)) if isinstance(one, Tensor)]


def flat(args: Sequence[Any]) -> list[Any]:
    """Arguments with lists of tensors in line."""
    found: list[Any] = []
    for one in args:
        found += list(one) if _is_list(one) else [one]
    return found


def _is_list(one: Any) -> bool:
    return isinstance(one, list | tuple) and any(isinstance(x, Tensor) for x in one)


def replaced(args: Sequence[Any], changed: Mapping[int, Any]) -> list[Any]:
    """Arguments with some values replaced, by their place in :func:`flat`."""
    found: list[Any] = []
    place = 0
    for one in args:
        if _is_list(one):
            found.append([changed.get(place + index, x) for index, x in enumerate(one)])
            place += len(one)
        else:
            found.append(changed.get(place, one))
            place += 1
    return found


def _mapped(args: Sequence[Any], function: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """Arguments with a function applied to each tensor."""
    changed = {place: function(one) for place, one in enumerate(flat(args)) if isinstance(one, Tensor)}
    return tuple(replaced(args, changed))


class _Guard(TorchFunctionMode):
    """Refuses functions through which values leave torch, below which a dispatch mode does not see them."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LEAVING or func == _DATA.__set__:
            what = "data" if func == _DATA.__set__ else name
            if any(self.recorder.node_of(one) >= 0 for one in args):
                raise self.recorder.refusal(f"a value that leaves the network ({what})")
        if func == _DATA.__get__:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def _paths(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the path of the running module in the recorder."""

    def enter(name: str, module: nn.Module, given: Any) -> None:
        recorder.path.append(name)

    def leave(module: nn.Module, given: Any, out: Any) -> None:
        recorder.path.pop()

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks += [
                module.register_forward_pre_hook(partial(enter, name)),
                module.register_forward_hook(leave),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def record(model: nn.Module, inputs: Sequence[Tensor]) -> Tape:
    """Run a network and record what depends on its inputs.

    Parameters
    ----------
    model : maps the inputs to (N, K), in evaluation mode
    inputs : (N, C, *space) each

    Raises
    ------
    CellError
        If the output depends on an input in a way that cannot be traced.
    """
    given = tuple(x.detach().clone() for x in inputs)
    recorder = _Recorder(given)
    with _paths(model, recorder), recorder, _Guard(recorder):
        out = model(*given)
    with _paths(model, recorder):
        tape = Tape(recorder.steps, recorder.inputs, recorder.node_of(out), out)
    _check_reach(model, inputs, tape)
    return tape


def _check_reach(model: nn.Module, inputs: Sequence[Tensor], tape: Tape) -> None:
    """Refuse a network whose output changes with an input from which no record leads to it."""
    made_by = {node: step for step in tape.steps for node in step.results}
    reached, waiting = set(), [tape.output]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += made_by[node].sources.values() if node in made_by else []
    for place, node in enumerate(tape.inputs):
        if node in reached:
            continue
        other = [x.detach().clone() for x in inputs]
        other[place] = other[place].roll(1) * 0.5 + 1 + other[place].abs().max()
        if not torch.allclose(model(*other), tape.value, rtol=1e-5, atol=0, equal_nan=True):
            raise CellError(
                f"LRP cannot trace how the output depends on input {place}: it changes with the input, but no recorded "
                "operation leads there; choose another attribution, or compute with operations of torch"
            )
