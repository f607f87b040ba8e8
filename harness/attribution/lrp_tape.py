"""Propagate relevance backwards through the recorded operations of a network.

Only operations with a known meaning are propagated; all others are refused by name. The
record is made by :mod:`harness.attribution.lrp_recorder`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from harness.attribution.lrp_recorder import Step, Tape, flat, is_changed, record, replaced
from harness.attribution.lrp_rules import Layer, Tensors, rule_of
from harness.core.errors import CellError

__all__ = ["Composite", "LayerRelevance", "ProductRule", "Tape", "propagate", "record"]

ProductRule = Literal["proposal", "all", "absolute", "half"]

aten = torch.ops.aten

# Elementwise functions through which relevance passes unchanged: their output stands for their input.
_PASSED = {
    "relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu", "softplus", "hardtanh", "hardswish", "hardsigmoid",
    "log_sigmoid_forward", "mish", "_softmax", "native_dropout", "celu", "selu", "clamp", "clamp_min",
    "rrelu_with_noise", "_prelu_kernel", "neg",
}  # fmt: skip
# Operations that move values without changing them; relevance moves back the same way.
_MOVED = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand",
    "select", "slice", "split", "split_with_sizes", "unbind", "clone", "alias", "detach", "_to_copy", "contiguous",
    "flip", "roll", "replication_pad1d", "replication_pad2d", "replication_pad3d", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "constant_pad_nd", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "repeat", "narrow", "diagonal", "cat", "stack", "index_select", "upsample_nearest2d", "upsample_nearest3d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "copy", "write",
}  # fmt: skip
_GATES = {"sigmoid", "hardsigmoid", "_softmax"}
_SQUASHING = {*_GATES, "tanh"}
_CONVOLUTIONS = {"convolution", "_convolution"}
# Operations whose results are masks if all that they depend on are masks.
_OF_MASKS = _MOVED | {"add", "sub", "rsub", "neg", "mul", "div", "sum", "mean"}
# Linear functions of one factor or term, if the others are constant.
_AFFINE = {"add", "sub", "rsub", "neg", "mul", "div"}
_PRODUCTS = {"addmm", "mm", "linear", "bmm", "matmul", "baddbmm"}
_THIRDS = ("low", "middle", "high")
_POOLS = {"avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "mean"}
_LINEAR_RESIZE = {"upsample_bilinear2d", "upsample_trilinear3d", "upsample_linear1d"}
_WHY_NONE = " (layers with weights that read the image, also padded, concatenated or scaled by constants)"
# Batch normalisations, and the place of the argument by which they use statistics of the batch.
_NORMS = {
    "native_batch_norm": 5, "cudnn_batch_norm": 5, "miopen_batch_norm": 5, "_native_batch_norm_legit_no_training": None,
}  # fmt: skip


@dataclass(frozen=True)
class Composite:
    """Rules by kind of layer.

    Parameters
    ----------
    convolution, linear : rules of convolutions and of linear layers, by name
    first : rule of the layers that read the image; empty for that of their kind
    low, middle, high : rules of the third of the convolutions and linear layers that is
        nearest to the image, of those between, and of the third nearest to the output, by
        the number of layers on the longest path from the image; empty for that of their kind
    pool : rule of mean pooling, and of means over positions
    sum : rule of sums and residual connections
    options : options of the rules by name, e.g. ``{"epsilon": {"epsilon": 1e-8}}``
    position_options : options of the rules at a position, e.g. ``{"high": {"epsilon": 0.0}}``,
        which come before those by name
    required : positions that must have a layer; ``first`` is one of them if it has a rule,
        for networks with convolutions or linear layers
    """

    convolution: str
    linear: str
    first: str = ""
    pool: str = "alpha_beta"
    sum: str = "epsilon"
    low: str = ""
    middle: str = ""
    high: str = ""
    options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    position_options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerRelevance:
    """What one operation does with relevance.

    Parameters
    ----------
    module : path of the module that ran the operation; empty for the network itself
    operation : name of the operation
    rule : rule or treatment
    received, passed : sums of relevance of its outputs and of its inputs. They differ where
        relevance is absorbed (ε, bias, constants) or lost (no contribution of the right sign)
    """

    module: str
    operation: str
    rule: str
    received: float
    passed: float


@torch.no_grad()
def propagate(
    tape: Tape,
    start: Tensor,
    composite: Composite,
    *,
    product: ProductRule = "proposal",
    bias: bool = False,
    ledger: list[LayerRelevance] | None = None,
) -> tuple[Tensor | None, ...]:
    """Propagate relevance from the output to the inputs.

    Parameters
    ----------
    tape : recorded operations
    start : (N, K) relevance of the output
    composite : rules by kind of layer
    product : rule of products of two tensors that both depend on the inputs
    bias : whether biases take part, and absorb their share
    ledger : receives a line for each operation, in backward order

    Returns
    -------
    tuple of Tensor
        Relevance of each input; ``None`` if no relevance reaches it.

    Raises
    ------
    CellError
        If an operation has no rule, or a rule of the composite has no layer; names the
        operation and its module, or the position.
    """
    return _Propagation(tape, composite, product, bias, ledger).run(start)


class _Propagation:
    """State of one backward pass."""

    def __init__(
        self,
        tape: Tape,
        composite: Composite,
        product: ProductRule,
        bias: bool,
        ledger: list[LayerRelevance] | None,
    ) -> None:
        self.tape, self.composite, self.product, self.bias, self.ledger = tape, composite, product, bias, ledger
        self.made_by = {node: step for step in tape.steps for node in step.results}
        self.used_by: dict[int, list[Step]] = defaultdict(list)
        for step in tape.steps:
            for node in step.sources.values():
                self.used_by[node].append(step)
        self.depths = _depths(tape)
        self.masks = _masks(tape)
        self.folded = {id(step): norm for step in tape.steps if (norm := self._norm_after(step)) is not None}
        self.norms = {id(norm) for norm in self.folded.values()}
        self.reading: dict[int, bool] = {}

    def run(self, start: Tensor) -> tuple[Tensor | None, ...]:
        relevance: dict[int, Tensor] = {self.tape.output: start} if self.tape.output >= 0 else {}
        shapes = {node: step.values[place] for step in self.tape.steps for place, node in enumerate(step.results)}
        for step in reversed(self.tape.steps):
            own = [relevance.pop(node, None) if node not in self.tape.inputs else None for node in step.results]
            if not any(one is not None and _is_any(one) for one in own):
                continue
            filled = [torch.zeros_like(shapes[n]) if r is None else r for n, r in zip(step.results, own, strict=True)]
            rule, shares = self._step(step, filled)
            self._note(step, rule, filled, shares)
            for node, share in shares:
                relevance[node] = relevance[node] + share if node in relevance else share
        self._check_positions()
        return tuple(relevance.get(node) for node in self.tape.inputs)

    def _note(self, step: Step, rule: str, received: Sequence[Tensor], shares: Sequence[tuple[int, Tensor]]) -> None:
        if self.ledger is not None:
            before = sum(float(one.double().sum()) for one in received)
            after = sum(float(one.double().sum()) for _, one in shares)
            self.ledger.append(LayerRelevance(step.module, step.name, rule, before, after))

    def _step(self, step: Step, relevance: Sequence[Tensor]) -> tuple[str, list[tuple[int, Tensor]]]:
        """Treatment of an operation, and the relevance of its sources."""
        name, own = step.name, relevance[0]
        if is_changed(step):
            self._refuse(step, " whose arguments were changed after it ran")
        if name in _NORMS and not _is_fixed(step):
            self._refuse(step, " with statistics of the image or batch")
        if name in _PASSED or name in _NORMS:
            return "passed", [(step.sources[0], own)] if list(step.sources) == [0] else self._refuse(step)
        if name in _MOVED:
            return "moved", self._moved(step, relevance)
        if name in _CONVOLUTIONS:
            return self._by_rule(step, own, self._convolution(step), self._position(step, "convolution"))
        if name in _PRODUCTS:
            return self._by_rule(step, own, self._product_with_weights(step), self._position(step, "linear"))
        if name in _POOLS:
            return self._by_rule(step, own, self._pooling(step), "pool")
        if name == "sum" or name in _LINEAR_RESIZE:
            return self._by_rule(step, own, self._pooling(step), "sum")
        if name in ("add", "sub", "rsub"):
            return self._sum(step, own)
        if name in ("mul", "div"):
            return self._multiplied(step, own)
        return name, self._refuse(step)

    def _refuse(self, step: Step, why: str = "") -> Any:
        where = f" in the module {step.module}" if step.module else ""
        raise CellError(
            f"LRP has no rule for the operation {step.name}{where}{why}; choose another attribution, or replace the "
            "operation by convolutions, linear layers, normalisation, pooling, sums, products and activations"
        )

    def _by_rule(self, step: Step, own: Tensor, layer: Layer, position: str) -> tuple[str, list[tuple[int, Tensor]]]:
        composite = self.composite
        rule = getattr(composite, position)
        options = {**composite.options.get(rule, {}), **composite.position_options.get(position, {})}
        shares = rule_of(rule)(layer, own, **options)
        return rule, list(zip(step.sources.values(), shares, strict=True))

    def _position(self, step: Step, kind: str) -> str:
        """Where the composite names the rule of a layer with weights: its depth, or else its kind."""
        if self.composite.first and self._reads_input(step.sources[min(step.sources)]):
            return "first"
        depth, last = self.depths[step.results[0]] - 1, max(self.depths.values()) - 1
        third = _THIRDS[min(2, 3 * depth // max(1, last))]  # the last layer is high, also of two
        return third if getattr(self.composite, third) else kind

    def _check_positions(self) -> None:
        """Refuse rules of the composite for layers that the network does not have."""
        with_weights = {
            self._position(step, "convolution" if step.name in _CONVOLUTIONS else "linear")
            for step in self.tape.steps
            if step.name in _CONVOLUTIONS | _PRODUCTS
        }
        found = with_weights | {position for step in self.tape.steps if (position := _position_of_sum(step))}
        first = ["first"] if self.composite.first and with_weights else []
        for position in (*self.composite.required, *first) if self.tape.output >= 0 else ():
            if position not in found:
                rule, why = getattr(self.composite, position), _WHY_NONE if position == "first" else ""
                raise CellError(
                    f"each rule of a composite of LRP must have a layer, but the network has none for {position}:{rule}"
                    f"{why}; choose a composite without the position {position}, a name or rules of other positions "
                    "(composite=convolution:alpha_beta+linear:epsilon)"
                )

    def _reads_input(self, node: int) -> bool:
        """Whether a value is an input, or made of inputs that were only moved, padded or normalised by constants."""
        if node in self.tape.inputs:
            return True
        if node not in self.reading:
            step = self.made_by[node]
            seen = step.name in _MOVED or (len(step.sources) == 1 and (step.name in _AFFINE or _is_fixed(step)))
            self.reading[node] = seen and all(map(self._reads_input, step.sources.values()))
        return self.reading[node]

    def _uniform(self, node: int, like: Tensor, value: float) -> Tensor:
        """What a value would be if all voxels of the image that it is made of were equal.

        For values that are not made of the image (:meth:`_reads_input`), those that it is
        moved from take the place of the image.
        """
        step = self.made_by.get(node)
        if step is None or node in self.tape.inputs or not (step.name in _MOVED or self._reads_input(node)):
            return torch.full_like(like, value)
        given = flat(step.args)
        changed = {place: self._uniform(source, given[place], value) for place, source in step.sources.items()}
        kept = {place: one.clone() for place, one in enumerate(given) if isinstance(one, Tensor)}  # if in place
        out = step.function(*replaced(step.args, {**kept, **changed}), **step.kwargs)
        results = [one for one in flat((out,) if isinstance(out, Tensor) else tuple(out)) if isinstance(one, Tensor)]
        return results[step.results.index(node)]

    # Layers

    def _convolution(self, step: Step) -> Layer:
        if list(step.sources) != [0]:
            self._refuse(step)
        x, weight, bias, *geometry = step.args[:9]
        norm = self.folded.get(id(step))
        if norm is not None:
            weight, bias = _fold(norm, weight, bias, groups=geometry[5] if geometry[3] else None)
        shape = (1, -1, *([1] * (x.ndim - 2)))

        def function(inputs: Tensors, weights: Tensors) -> Tensor:
            found: Tensor = aten.convolution(inputs[0], weights[0], None, *geometry)
            return found

        def adjoint(weights: Tensors, share: Tensor) -> Tensors:
            found = aten.convolution_backward(share, x, weights[0], None, *geometry, [True, False, False])
            return (found[0],)

        kept = bias.reshape(shape) if self.bias and bias is not None else None
        return Layer((x,), (weight,), kept, function, adjoint, self._uniform_of(step, 0, x))

    def _uniform_of(self, step: Step, place: int, x: Tensor) -> Callable[[float], Tensors]:
        return lambda value: (self._uniform(step.sources[place], x, value),)

    def _norm_after(self, step: Step) -> Step | None:
        """A batch normalisation that directly follows a convolution, and is the only one to read it."""
        if step.name not in _CONVOLUTIONS:
            return None
        readers = self.used_by[step.results[0]]
        return readers[0] if len(readers) == 1 and _is_fixed(readers[0]) else None

    def _product_with_weights(self, step: Step) -> Layer:
        args, bias = step.args, None
        if step.name in ("addmm", "baddbmm"):
            bias, args = args[0], args[1:]
        first = len(step.args) - len(args)
        if list(step.sources) != [first] or not isinstance(args[1], Tensor):
            self._refuse(step)
        weight = args[1]
        if step.name == "linear":
            weight, bias = weight.T, args[2] if len(args) > 2 else None
        uniform = self._uniform_of(step, first, args[0])
        return Layer((args[0],), (weight,), bias if self.bias else None, _matmul, _matmul_adjoint, uniform)

    def _pooling(self, step: Step) -> Layer:
        """Pooling, a mean, a sum or an interpolation as a layer with the weight 1."""
        if list(step.sources) != [0]:
            self._refuse(step)
        x, *rest = step.args

        def function(inputs: Tensors, weights: Tensors) -> Tensor:
            found: Tensor = step.function(inputs[0] * weights[0], *rest, **step.kwargs)
            return found

        return Layer((x,), (torch.ones((), dtype=x.dtype, device=x.device),), None, function)

    # Operations that are no layers

    def _moved(self, step: Step, relevance: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Move relevance back to where the values came from."""
        if step.name in _ADJOINTS:
            return _ADJOINTS[step.name](step, relevance[0])
        given = flat(step.args)
        if not all(given[place].is_floating_point() for place in step.sources):
            self._refuse(step, " of truth values or integers, which pass no relevance unless they multiply a signal")
        with torch.enable_grad():
            leaves = {place: given[place].detach().requires_grad_() for place in step.sources}
            out = step.function(*replaced(step.args, leaves), **step.kwargs)
            outs = [one for one in (out if isinstance(out, tuple | list) else (out,)) if isinstance(one, Tensor)]
            used = [(o, r) for o, r in zip(outs, relevance, strict=True) if o.requires_grad]
            if not used:  # integers or truth values
                self._refuse(step)
            found = torch.autograd.grad([o for o, _ in used], list(leaves.values()), [r for _, r in used])
        return list(zip(step.sources.values(), found, strict=True))

    def _sum(self, step: Step, own: Tensor) -> tuple[str, list[tuple[int, Tensor]]]:
        terms, factors = step.args[:2], _factors(step)
        if len(step.sources) == 2:
            weights = tuple(torch.full((), one, device=own.device, dtype=own.dtype) for one in factors)
            layer = Layer(terms, weights, None, lambda x, w: x[0] * w[0] + x[1] * w[1])
            return self._by_rule(step, own, layer, "sum")
        ((place, node),) = step.sources.items()
        inside = terms[place]
        if not self.bias:
            return "passed", [(node, _reduced(own, inside))]
        weight = torch.full((), factors[place], device=own.device, dtype=own.dtype)
        bias = torch.as_tensor(factors[1 - place] * terms[1 - place], device=own.device, dtype=own.dtype)
        layer = Layer((inside,), (weight,), bias, lambda x, w: x[0] * w[0] + torch.zeros_like(own))
        return self._by_rule(step, own, layer, "sum")

    def _multiplied(self, step: Step, own: Tensor) -> tuple[str, list[tuple[int, Tensor]]]:
        if len(step.sources) == 1:
            ((place, node),) = step.sources.items()
            if step.name == "div" and place == 1:
                self._refuse(step)
            return "passed", [(node, _reduced(own, step.args[place]))]
        masked = [node in self.masks for node in (step.sources[0], step.sources[1])]
        if masked[0] != masked[1] and not (step.name == "div" and masked[0]):
            place = masked.index(False)
            return "masked", [(step.sources[place], _reduced(own, step.args[place]))]
        if step.name == "div" or all(masked):
            self._refuse(step)
        shares = self._gated(step)
        return f"product {self.product}", [
            (node, _reduced(own * share, step.args[place]))
            for (place, node), share in zip(step.sources.items(), shares, strict=True)
        ]

    def _gated(self, step: Step) -> tuple[Tensor, Tensor]:
        """Shares of the two factors of a product."""
        nodes = [step.sources[place] for place in (0, 1)]
        values = [step.args[place] for place in (0, 1)]
        shape = step.values[0]
        if self.product == "half":
            return torch.full_like(shape, 0.5), torch.full_like(shape, 0.5)
        if self.product == "all":
            gates = [self._is_gate(node) for node in nodes]
            if gates[0] == gates[1]:
                self._refuse(step) if not any(gates) else None
                gates = [False, True]
            return tuple(torch.full_like(shape, 0.0 if gate else 1.0) for gate in gates)  # type: ignore[return-value]
        if self.product == "absolute":
            values = [self._before(node, value) for node, value in zip(nodes, values, strict=True)]
        sizes = [one.abs() + torch.zeros_like(shape) for one in values]
        total = sizes[0] + sizes[1]
        first = torch.where(total > 0, sizes[0] / torch.where(total > 0, total, 1.0), 0.5)
        return first, 1 - first

    def _is_gate(self, node: int) -> bool:
        """Whether a value is a gate g, or one like 1 − g."""
        step = self._activation(node, through=_MOVED | _AFFINE)
        return step is not None and step.name in _GATES

    def _activation(self, node: int, through: Set[str] = _MOVED) -> Step | None:
        """The activation that made a value, looking through operations with one source; ``None`` without one."""
        while node in self.made_by:
            step = self.made_by[node]
            if step.name in _SQUASHING:
                return step
            if step.name not in through or len(step.sources) != 1:
                return None
            (node,) = step.sources.values()
        return None

    def _before(self, node: int, value: Tensor) -> Tensor:
        """The value before the activation that made it, of the same shape; the value itself without one."""
        step = self._activation(node)
        if step is None:
            return value
        path: list[Step] = []
        while self.made_by[node] is not step:
            path.append(self.made_by[node])
            (node,) = self.made_by[node].sources.values()
        moved: Tensor = step.args[0]
        for one in reversed(path):
            place = next(iter(one.sources))
            moved = one.function(*replaced(one.args, {place: moved}), **one.kwargs)
        return moved


def _position_of_sum(step: Step) -> str:
    """Position of means and sums in a composite; empty for other operations."""
    if step.name in _POOLS:
        return "pool"
    two = step.name in ("add", "sub", "rsub") and len(step.sources) == 2
    return "sum" if two or step.name == "sum" or step.name in _LINEAR_RESIZE else ""


def _factors(step: Step) -> tuple[float, float]:
    """Factors of the two terms of a sum or difference."""
    scale = float(step.args[2] if len(step.args) > 2 else step.kwargs.get("alpha", 1))
    return {"add": (1.0, scale), "sub": (1.0, -scale), "rsub": (-scale, 1.0)}[step.name]


def _is_fixed(step: Step) -> bool:
    """Whether an operation is a batch normalisation by stored statistics."""
    if step.name not in _NORMS or list(step.sources) != [0]:
        return False
    place = _NORMS[step.name]
    return place is None or not step.args[place]


def _concatenated(step: Step, relevance: Tensor) -> list[tuple[int, Tensor]]:
    """Parts of the relevance of a concatenation."""
    axis = int(step.args[1]) if len(step.args) > 1 else 0
    parts = relevance.split([one.shape[axis] for one in step.args[0]], axis)
    return [(node, parts[place]) for place, node in step.sources.items()]


def _pooled(step: Step, relevance: Tensor, backward: Any) -> list[tuple[int, Tensor]]:
    """Relevance of the maxima of a max pooling, whose places were recorded."""
    x, kernel, stride, padding, dilation, ceil = (*step.args, *_POOLING_DEFAULTS[len(step.args) - 1 :])
    found = backward(relevance, x, kernel, stride, padding, dilation, ceil, step.values[1])
    return [(step.sources[0], found)]


def _padded(step: Step, relevance: Tensor, backward: Any) -> list[tuple[int, Tensor]]:
    """Relevance of the voxels that padding repeated."""
    return [(step.sources[0], backward(relevance, *step.args[:2]))]


_POOLING_DEFAULTS: tuple[Any, ...] = ([], [], 0, 1, False)  # kernel, stride, padding, dilation, ceil mode

# Adjoints of moves that need no second forward pass.
_ADJOINTS: dict[str, Callable[[Step, Tensor], list[tuple[int, Tensor]]]] = {
    "cat": _concatenated,
    "detach": lambda step, relevance: [(step.sources[0], relevance)],  # the output depends on it all the same
    **{
        f"max_pool{n}d_with_indices": partial(_pooled, backward=getattr(aten, f"max_pool{n}d_with_indices_backward"))
        for n in (2, 3)
    },
    **{
        f"replication_pad{n}d": partial(_padded, backward=getattr(aten, f"replication_pad{n}d_backward"))
        for n in (1, 2, 3)
    },
}


def _depths(tape: Tape) -> dict[int, int]:
    """Number of convolutions and linear layers on the longest path from an input to each node."""
    found = dict.fromkeys(tape.inputs, 0)
    for step in tape.steps:
        own = int(step.name in _CONVOLUTIONS | _PRODUCTS)
        depth = own + max((found[node] for node in step.sources.values()), default=0)
        found.update(dict.fromkeys(step.results, depth))
    return found


def _masks(tape: Tape) -> set[int]:
    """Nodes that depend on the inputs only through truth values or integers, such as ``x > 0``."""
    found: set[int] = set()
    for step in tape.steps:
        of_masks = step.name in _OF_MASKS and all(node in found for node in step.sources.values())
        for node, value in zip(step.results, step.values, strict=True):
            if of_masks or not value.is_floating_point():
                found.add(node)
    return found


def _is_any(relevance: Tensor) -> bool:
    """Whether a value is not zero; faster than ``any``, which converts all values to bool."""
    return relevance.numel() > 0 and any(float(one) != 0 for one in relevance.aminmax())


def _matmul(inputs: Tensors, weights: Tensors) -> Tensor:
    return inputs[0] @ weights[0]


def _matmul_adjoint(weights: Tensors, share: Tensor) -> Tensors:
    return (share @ weights[0].transpose(-1, -2),)


def _reduced(relevance: Tensor, like: Any) -> Tensor:
    """Sum over the axes along which a factor or a term was broadcast."""
    return relevance.sum_to_size(like.shape) if isinstance(like, Tensor) else relevance


def _fold(norm: Step, weight: Tensor, bias: Tensor | None, *, groups: int | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch normalisation that follows it.

    Parameters
    ----------
    groups : groups of a transposed convolution, whose outputs are the second axis of the
        weight within each group; ``None`` for other convolutions
    """
    _, scale, shift, mean, variance = norm.args[:5]
    epsilon = float(norm.args[-1])
    factor = variance.add(epsilon).rsqrt() * (1 if scale is None else scale)
    moved = ((0 if bias is None else bias) - mean) * factor + (0 if shift is None else shift)
    taps = [1] * (weight.ndim - 2)
    if groups is None:
        return weight * factor.reshape(-1, 1, *taps), moved
    by_group = weight.unflatten(0, (groups, -1)) * factor.reshape(groups, 1, -1, *taps)
    return by_group.flatten(0, 1), moved
