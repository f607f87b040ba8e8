"""Outputs of a network after changes of a few voxels of its input.

The network is traced by ``torch.fx`` and computed once for the original input. A change
inside a box is then propagated from layer to layer (:mod:`harness.attribution.boxes`),
and only affected activations are computed. Layers that need the whole tensor are
computed completely.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from harness.attribution.batches import Inputs
from harness.attribution.boxes import (
    AveragePool,
    Change,
    Concatenation,
    Convolution,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Mean,
    Operand,
    Pointwise,
    Same,
    Scale,
    Shape,
    SparseLinear,
    Sum,
    Total,
    WeightedSum,
)
from harness.core.errors import HarnessError
from harness.models.layers import Describes, Description, Flattens, SparseWeights, Totals

__all__ = ["Graph", "Incremental", "Unreadable", "read"]

_Values: TypeAlias = dict[fx.Node, Any]

_POINTWISE_MODULES = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
# Names of functions in torch, torch.nn.functional and operator, and of methods of tensors.
_POINTWISE = {
    *("abs", "celu", "clamp", "div", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("log1p", "logsigmoid", "maximum", "minimum", "mish", "mul", "multiply", "neg", "pow", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "softplus", "sqrt", "square", "tanh", "truediv"),
}
_SUMS = {"add": (1.0, 1.0), "sub": (1.0, -1.0)}
# In-place operator → operator that returns a new tensor.
_IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
# Errors of code that accesses values of a proxy (fx.proxy.TraceError is a ValueError).
_PROXY_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Methods and attributes that return shapes and types, not values.
_SIZES = {"dim", "ndimension", "size"}
_ATTRIBUTES = {"device", "dtype", "ndim", "shape"}


class Unreadable(Exception):
    """A network that cannot be computed layer by layer."""


class _Tracer(fx.Tracer):
    """Traces a network with a given number of inputs, which may be ``*inputs``."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._inputs = inputs

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Create one placeholder per input."""
        proxies = [self.create_proxy("placeholder", f"input_{number}", (), {}) for number in range(self._inputs)]
        return root_fn, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for modules of torch, and for modules that describe themselves."""
        return _describes(m) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Attributes
    ----------
    layers : node → layer, for nodes that can be computed locally; other nodes are computed
        completely
    """

    model: nn.Module
    graph: fx.Graph
    layers: Mapping[fx.Node, Layer]

    @property
    def placeholders(self) -> list[fx.Node]:
        """Input nodes."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]


def read(model: nn.Module, inputs: int) -> Graph:
    """Trace a network in evaluation mode.

    Parameters
    ----------
    model : maps its inputs to (N, K)
    inputs : number of inputs

    Raises
    ------
    Unreadable
        If control flow of the network depends on values or shapes, or if it has hooks.
    """
    if _hooked(model):
        raise Unreadable("hooks")
    try:
        graph = _Tracer(inputs).trace(model)
        layers = {node: layer for node in graph.nodes if (layer := _layer(node, model)) is not None}
    except _PROXY_ERRORS as error:
        # An error of the network itself is raised again in the full forward pass.
        raise Unreadable(str(error)) from error
    for node in layers:
        _put_out_of_place(node, layers)
    return Graph(model, graph, layers)


def _hooked(module: nn.Module) -> bool:
    # An instance attribute `forward` overrides the method of the class.
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _name(node: fx.Node) -> str:
    """Name of a known function or method without the suffix of in-place operations; empty if unknown."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    function: Any = _IN_PLACE.get(node.target, node.target)
    name = str(getattr(function, "__name__", ""))
    known = (getattr(home, name, None) for home in (torch, functional, operator))
    return name.removesuffix("_") if any(function is each for each in known) else ""


def _put_out_of_place(node: fx.Node, layers: Mapping[fx.Node, Layer]) -> None:
    """Replace an in-place operation by an out-of-place one, if no other node uses the changed tensor.

    Other in-place operations raise an error when the network is computed
    (:class:`Incremental`).
    """
    changed = node.args[0] if node.args else None
    fresh = isinstance(changed, fx.Node) and changed in layers and not isinstance(layers[changed], Same | Flatten)
    if not fresh or len(changed.users) != 1:  # type: ignore[union-attr]
        return
    if node.op == "call_method":
        node.target = _name(node)
    if node.op == "call_function":
        node.target = _IN_PLACE.get(node.target, node.target)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


def _layer(node: fx.Node, model: nn.Module) -> Layer | None:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return None if _hooked(module) or len(node.args) != 1 or node.kwargs else _of_module(module)
    if node.op not in ("call_function", "call_method"):
        return None
    return _of_function(_name(node), node, model)


def _of_module(module: Any) -> Layer | None:
    """Layer of a module that describes itself or is a module of torch; subclasses of the latter are excluded."""
    if _describes(module):
        return _of_description(module.describe_layer())
    kind = type(module)
    if kind in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout):
        return Same() if kind is nn.Identity or not module.training else None
    if kind in _POINTWISE_MODULES:
        return Pointwise(module)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return _normalisation(module)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return _convolution(module) if module.padding_mode == "zeros" else None
    if kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d):
        return None if module.return_indices else _max_pool(kind, module)
    if kind in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d):
        return _average_pool(kind, module)
    if kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d):
        return Mean() if _ones(module.output_size) else None
    if kind is nn.Flatten:
        return Flatten() if (module.start_dim, module.end_dim) == (1, -1) else None
    return Linear(module.weight) if kind is nn.Linear else None


def _describes(module: Any) -> TypeGuard[Describes]:
    """Whether a module describes itself, and no subclass overrides ``forward`` without a new description."""
    for kind in type(module).__mro__:
        if "describe_layer" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False


def _of_description(description: Description) -> Layer:
    match description:
        case Flattens():
            return Flatten()
        case Totals():
            return Total(description.function)
        case SparseWeights():
            return SparseLinear(description.at)
    raise HarnessError(f"describe_layer must give one of harness.models.layers, got {type(description).__name__}")


def _of_function(name: str, node: fx.Node, model: nn.Module) -> Layer | None:
    arguments, options = node.args, dict(node.kwargs)
    options.pop("inplace", None)
    if name in _SUMS and not options and len(arguments) == 2:
        return Sum(tuple(sign for sign, each in zip(_SUMS[name], arguments, strict=True) if isinstance(each, fx.Node)))
    if name in _POINTWISE and isinstance(arguments[0], fx.Node | int | float):
        return Pointwise(_called(node, options))
    if name in ("cat", "concat") and isinstance(arguments[0], list | tuple):
        dim = arguments[1] if len(arguments) > 1 else options.get("dim", 0)
        return Concatenation() if dim == 1 else None
    if name in ("flatten", "view", "reshape"):
        # Flatten checks the shapes.
        return Flatten()
    if name == "dropout" and (arguments[2:] == (False,) or options.get("training") is False):
        return Same()
    if name == "linear" and not options and isinstance(arguments[1], fx.Node):
        return WeightedSum()
    if name == "mean":
        axes = arguments[1] if len(arguments) > 1 else options.get("dim")
        if isinstance(axes, int | list | tuple) and all(isinstance(axis, int) for axis in _listed(axes)):
            return Mean(tuple(_listed(axes)))
    if name.startswith("adaptive_avg_pool") and len(arguments) == 2 and _ones(arguments[1]):
        return Mean()
    return None


def _called(node: fx.Node, options: dict[str, Any]) -> Callable[..., Tensor]:
    """Out-of-place function of a node, with tensors as its only arguments."""
    places = [place for place, argument in enumerate(node.args) if isinstance(argument, fx.Node)]
    if any(isinstance(option, fx.Node) for option in options.values()):
        raise Unreadable(f"{node} has a tensor as keyword argument")
    function: Any = _IN_PLACE.get(node.target, node.target)
    if node.op == "call_method":
        function = getattr(Tensor, _name(node))

    def call(*tensors: Tensor) -> Tensor:
        arguments: list[Any] = list(node.args)
        for place, tensor in zip(places, tensors, strict=True):
            arguments[place] = tensor
        out: Tensor = function(*arguments, **options)
        return out

    return call


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _ones(size: Any) -> bool:
    return all(each == 1 for each in _listed(size))


def _normalisation(module: Any) -> Layer | None:
    if module.training or module.running_var is None:
        # Batch statistics depend on all voxels of all items.
        return None
    factor = torch.rsqrt(module.running_var + module.eps)
    return Scale(factor if module.weight is None else factor * module.weight)


def _convolution(module: Any) -> Layer | None:
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        lacks = reach if padding == "same" else [0] * len(reach)
        if any(lack % 2 for lack in lacks):
            return None
        padding = tuple(lack // 2 for lack in lacks)
    return Convolution(module.weight, module.stride, padding, module.dilation, module.groups)


def _shape(value: Any, axes: int) -> Shape:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _max_pool(kind: type, module: Any) -> Layer:
    axes = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d).index(kind) + 1
    return MaxPool(
        *(_shape(each, axes) for each in (module.kernel_size, module.stride, module.padding, module.dilation))
    )


def _average_pool(kind: type, module: Any) -> Layer | None:
    axes = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d).index(kind) + 1
    kernel, stride, padding = (_shape(each, axes) for each in (module.kernel_size, module.stride, module.padding))
    if module.ceil_mode or (any(padding) and not module.count_include_pad):
        return None
    return AveragePool(kernel, stride, padding, float(getattr(module, "divisor_override", None) or prod(kernel)))


class Incremental:
    """Incremental evaluation of a network at one input.

    Parameters
    ----------
    graph : the traced network
    inputs : (1, C, *space) each

    Attributes
    ----------
    outputs : (1, K), outputs for the original input
    products : numbers of multiplications in convolutions and linear layers per changed
        input in the last call, and for the full network
    peak_bytes : approximate memory of the last call
    is_joint : whether a layer was computed completely for several changed inputs together,
        so that a layer that depends on the batch would give wrong changes

    Raises
    ------
    Unreadable
        If the network cannot be computed layer by layer for this input.
    """

    def __init__(self, graph: Graph, inputs: Inputs) -> None:
        self._graph, self._nodes = graph, list(graph.graph.nodes)
        self._last_use = {each: node for node in self._nodes for each in node.all_input_nodes}
        self._old: _Values = dict(zip(graph.placeholders, inputs, strict=True))
        self._depends: set[fx.Node] = set(graph.placeholders)
        for node in self._nodes[len(inputs) :]:
            self._old[node] = self._first(node)
            if any(each in self._depends for each in node.all_input_nodes):
                self._depends.add(node)
        self.outputs: Tensor = self._old[self._nodes[-1]]
        self.products = (0.0, 0.0)
        self.peak_bytes = 0
        self.is_joint = False

    def changes(self, which: int, origin: Tensor, values: Tensor) -> Tensor:
        """Changes of the outputs if a box of one input changes.

        Parameters
        ----------
        which : index of the input
        origin : (B, D) int64, lowest corners of the boxes, which are inside the input
        values : (B, C, *box), new value minus old value

        Returns
        -------
        Tensor
            (B, K), outputs for the changed inputs minus :attr:`outputs`.
        """
        found: dict[fx.Node, Change] = {self._graph.placeholders[which]: Change(values, origin)}
        few, whole, self.peak_bytes = 0.0, 0.0, 0
        for node in self._nodes:
            affected = [each for each in node.all_input_nodes if each in found]
            if not affected or not isinstance(self._old[node], Tensor):
                continue
            found[node] = self._step(node, found, len(values))
            if (layer := self._graph.layers.get(node)) is not None:
                counted = layer.products(found[affected[0]], self._old[affected[0]], self._old[node])
                few, whole = few + counted[0], whole + counted[1]
            self.peak_bytes = max(self.peak_bytes, _memory(found, node, affected))
            for each in affected:
                if self._last_use[each] is node:
                    del found[each]
        self.products = (few, whole)
        if self._nodes[-1] not in found:
            return torch.zeros_like(self.outputs).expand(len(values), -1)
        return found[self._nodes[-1]].whole(self.outputs)

    def _step(self, node: fx.Node, found: Mapping[fx.Node, Change], count: int) -> Change:
        old, layer = self._old[node], self._graph.layers.get(node)
        if node.op == "output":
            return found[node.all_input_nodes[0]]
        if layer is not None and old.ndim >= 2 and len(old) == 1:
            arguments: Any = node.args[0] if isinstance(layer, Concatenation) else node.args
            operands = [Operand(self._old[each], found.get(each)) for each in arguments if isinstance(each, fx.Node)]
            if (out := layer(operands, old)) is not None:
                return out
        self.is_joint |= count > 1
        new = self._computed(node, {each: self._shown(each, found, count) for each in node.all_input_nodes})
        if not isinstance(new, Tensor) or new.shape != (count, *old.shape[1:]):
            raise Unreadable(f"{node} does not process items independently")
        return Change(new - old)

    def _first(self, node: fx.Node) -> Any:
        """Value of a node for the original input."""
        tensors = [each for each in self._old.values() if isinstance(each, Tensor)]
        versions = [each._version for each in tensors]
        try:
            value = self._computed(node, self._old)
        except _PROXY_ERRORS as error:
            # An error of the network itself is raised again in the full forward pass.
            raise Unreadable(str(error)) from error
        if versions != [each._version for each in tensors]:
            raise Unreadable(f"{node} changes a tensor in place")
        inputs = [self._old[each] for each in node.all_input_nodes]
        if not isinstance(value, Tensor) and any(isinstance(each, Tensor) for each in inputs) and not _sizes_only(node):
            raise Unreadable(f"{node} returns {type(value).__name__}")
        return value

    def _shown(self, node: fx.Node, found: Mapping[fx.Node, Change], count: int) -> Any:
        """Value of a node for all changed inputs."""
        old = self._old[node]
        if node in found:
            return old + found[node].whole(old)
        if not isinstance(old, Tensor):
            # A size may depend on the number of items.
            return self._computed(node, {each: self._shown(each, {}, count) for each in node.all_input_nodes})
        if node in self._depends and old.ndim and len(old) == 1:
            return old.expand(count, *old.shape[1:])
        return old

    def _computed(self, node: fx.Node, values: _Values) -> Any:
        """Value of a node, computed as in the network."""
        model, target = self._graph.model, node.target
        arguments = fx.node.map_arg(node.args, values.__getitem__)
        options = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "output":
            return arguments[0]
        if node.op == "get_attr":
            return operator.attrgetter(str(target))(model)
        if node.op == "call_module":
            return model.get_submodule(str(target))(*arguments, **options)
        if node.op == "call_method":
            return getattr(arguments[0], str(target))(*arguments[1:], **options)
        return target(*arguments, **options)  # type: ignore[operator]


def _sizes_only(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZES
    return node.target is getattr and len(node.args) > 1 and node.args[1] in _ATTRIBUTES


def _memory(found: Mapping[fx.Node, Change], node: fx.Node, affected: list[fx.Node]) -> int:
    """Bytes during the computation of a node: stored changes, old values in the box, and two temporary copies."""
    sizes = {each: change.values.numel() * change.values.element_size() for each, change in found.items()}
    return sum(sizes.values()) + 3 * max(sizes[each] for each in (node, *affected))
