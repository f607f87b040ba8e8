"""Rules of layer-wise relevance propagation (LRP) for linear layers.

A rule distributes the relevance of the outputs of a layer over its inputs::

    @lrp_rule("name", source="Authors year")
    def name(layer: Layer, relevance: Tensor, *, option: float = 1.0) -> tuple[Tensor, ...]: ...

It receives the layer with the values of its inputs, and returns one tensor per input, of
the shape of the input. Convolutions, linear layers, mean pooling, sums and residual
connections are all layers in this sense: linear functions of their inputs with given
weights. Bias is part of the layer only if the user asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from harness.core.errors import OutOfRange, UnknownName

__all__ = ["RULES", "Layer", "Rule", "lrp_rule", "rule_of"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A linear layer with the values of its inputs.

    Parameters
    ----------
    inputs : values of the inputs
    weights : weights, one or more tensors; those of a sum are ones
    bias : broadcasts to the output; ``None`` if there is none, or if bias is left out
    function : computes the output without bias from inputs and weights, linearly in the inputs
    adjoint : computes the product of the transposed layer with a tensor of the shape of the
        output, given weights; without it, the function is differentiated, which takes a
        forward pass as well
    uniform : inputs of the layer if all voxels of the image were equal to a value, for
        layers that read the image, also after padding, concatenation or normalisation by
        constants. For other layers, the values that were moved or padded take the place of
        the image. ``None`` if the inputs are these values themselves
    """

    inputs: Tensors
    weights: Tensors
    bias: Tensor | None
    function: Callable[[Tensors, Tensors], Tensor]
    adjoint: Callable[[Tensors, Tensor], Tensors] | None = None
    uniform: Callable[[float], Tensors] | None = None

    def forward(self, inputs: Tensors, weights: Tensors) -> Tensor:
        """Output without bias for other inputs and weights."""
        with torch.no_grad():
            return self.function(inputs, weights)

    def backward(self, weights: Tensors, share: Tensor) -> Tensors:
        """Product of the transposed layer with ``share``, which has the shape of the output."""
        if self.adjoint is not None:
            return self.adjoint(weights, share)
        with torch.enable_grad():
            inputs = tuple(torch.zeros_like(x, requires_grad=True) for x in self.inputs)
            return torch.autograd.grad(self.function(inputs, weights), inputs, share)

    def at(self, value: float) -> Tensors:
        """Inputs if all voxels of the image were ``value``."""
        if self.uniform is None:
            return tuple(torch.full_like(x, value) for x in self.inputs)
        return self.uniform(value)

    def variable(self) -> Tensors:
        """One for the elements of the inputs that are not constant, such as those of padding, and zero for others."""
        return tuple((one != zero).to(one.dtype) for zero, one in zip(self.at(0.0), self.at(1.0), strict=True))


Rule = Callable[..., Tensors]
_RULES: dict[str, Rule] = {}
RULES: Mapping[str, Rule] = MappingProxyType(_RULES)
"""All rules by name."""


def lrp_rule(name: str, *, source: str = "") -> Callable[[Rule], Rule]:
    """Register a rule.

    Parameters
    ----------
    name : name with which composites refer to the rule
    source : citation

    Raises
    ------
    OutOfRange
        If there is already a rule of this name.
    """

    def decorate(function: Rule) -> Rule:
        known = _RULES.get(name)
        if known is not None and known.__qualname__ != function.__qualname__:
            raise OutOfRange(f"a rule of LRP must have a name of its own, got {name!r} twice; choose another")
        function.source = source  # type: ignore[attr-defined]
        _RULES[name] = function
        return function

    return decorate


def rule_of(name: str) -> Rule:
    """Look up a rule.

    Raises
    ------
    UnknownName
        If there is no such rule.
    """
    if name not in _RULES:
        raise UnknownName("rule of LRP", name, _RULES)
    return _RULES[name]


def _stable(z: Tensor, epsilon: float) -> Tensor:
    """Denominators that are at least ``epsilon`` away from zero, with the sign of z."""
    return z + torch.where(z >= 0, epsilon, -epsilon)


def _ratio(relevance: Tensor, z: Tensor) -> Tensor:
    """Relevance divided by z, and 0 where z is 0."""
    return (relevance / z).masked_fill_(z == 0, 0)


def _times(inputs: Tensors, shares: Tensors) -> Tensors:
    return tuple(x * share for x, share in zip(inputs, shares, strict=True))


def _plus(tensors: Tensors) -> Tensors:
    return tuple(one.clamp(min=0) for one in tensors)


def _minus(tensors: Tensors) -> Tensors:
    return tuple(one.clamp(max=0) for one in tensors)


def _added(first: Tensors, second: Tensors) -> Tensors:
    return tuple(one + other for one, other in zip(first, second, strict=True))


def _has_negative(tensors: Tensors) -> bool:
    return any(one.numel() > 0 and bool(one.amin() < 0) for one in tensors)


@lrp_rule("epsilon", source="Bach et al. 2015, doi:10.1371/journal.pone.0130140, Eq. 58")
def epsilon(layer: Layer, relevance: Tensor, *, epsilon: float = 1e-6) -> Tensors:
    """R_i = Σ_j x_i w_ij / (z_j + ε sign z_j) · R_j, with z_j = Σ_i x_i w_ij + b_j.

    Parameters
    ----------
    epsilon : absorbs relevance where z is small; with 0, nothing is absorbed but by the bias
    """
    z = layer.forward(layer.inputs, layer.weights)
    z = z if layer.bias is None else z + layer.bias
    share = _ratio(relevance, _stable(z, epsilon))
    return _times(layer.inputs, layer.backward(layer.weights, share))


@lrp_rule("alpha_beta", source="Bach et al. 2015, Eq. 60")
def alpha_beta(layer: Layer, relevance: Tensor, *, alpha: float = 1.0) -> Tensors:
    """R_i = Σ_j (α z_ij⁺ / Σ_i z_ij⁺ − β z_ij⁻ / Σ_i z_ij⁻) · R_j, with z_ij = x_i w_ij and β = α − 1.

    Outputs without a positive contribution lose α of their relevance, those without a
    negative one β.

    Parameters
    ----------
    alpha : at least 1; with 1, negative contributions get nothing

    Raises
    ------
    OutOfRange
        If alpha is below 1.
    """
    if alpha < 1:
        raise OutOfRange(f"alpha must be at least 1 for the rule alpha_beta of LRP, got {alpha}")
    found = _part(layer, relevance, sign=1)
    if alpha == 1:
        return found
    against = _part(layer, relevance, sign=-1)
    return tuple(alpha * one - (alpha - 1) * other for one, other in zip(found, against, strict=True))


def _part(layer: Layer, relevance: Tensor, *, sign: int) -> Tensors:
    """Relevance by the positive (sign 1) or negative (sign −1) contributions alone."""
    positive, negative = _plus(layer.inputs), _minus(layer.inputs)
    first = _plus(layer.weights) if sign > 0 else _minus(layer.weights)
    z = layer.forward(positive, first)
    mixed = _has_negative(layer.inputs)
    second = _minus(layer.weights) if sign > 0 else _plus(layer.weights)
    if mixed:
        z = z + layer.forward(negative, second)
    if layer.bias is not None:
        z = z + (layer.bias.clamp(min=0) if sign > 0 else layer.bias.clamp(max=0))
    share = _ratio(relevance, z)
    found = _times(positive, layer.backward(first, share))
    return _added(found, _times(negative, layer.backward(second, share))) if mixed else found


@lrp_rule("zplus", source="Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008")
def zplus(layer: Layer, relevance: Tensor) -> Tensors:
    """R_i = Σ_j x_i⁺ w_ij⁺ / Σ_i x_i⁺ w_ij⁺ · R_j, for inputs that are not negative.

    Negative inputs get nothing, unlike with ``alpha_beta``.
    """
    positive, weights = _plus(layer.inputs), _plus(layer.weights)
    z = layer.forward(positive, weights)
    z = z if layer.bias is None else z + layer.bias.clamp(min=0)
    return _times(positive, layer.backward(weights, _ratio(relevance, z)))


@lrp_rule(
    "gamma", source="Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10; signed inputs as in Andéol et al. 2021"
)
def gamma(layer: Layer, relevance: Tensor, *, gamma: float = 0.25) -> Tensors:
    """ε-rule without ε in which contributions of the sign of the output count 1 + γ times.

    Parameters
    ----------
    gamma : 0 gives the ε-rule with ε = 0; large values approach α1β0 for positive outputs
    """
    z = layer.forward(layer.inputs, layer.weights)
    z = z if layer.bias is None else z + layer.bias
    found = tuple(torch.zeros_like(x) for x in layer.inputs)
    for sign in (1, -1):
        own = relevance * (z >= 0 if sign > 0 else z < 0)
        if not bool(own.any()):
            continue
        with_positive = tuple(w + gamma * (w.clamp(min=0) if sign > 0 else w.clamp(max=0)) for w in layer.weights)
        with_negative = tuple(w + gamma * (w.clamp(max=0) if sign > 0 else w.clamp(min=0)) for w in layer.weights)
        positive, negative = _plus(layer.inputs), _minus(layer.inputs)
        total = layer.forward(positive, with_positive) + layer.forward(negative, with_negative)
        if layer.bias is not None:
            bias = layer.bias
            total = total + bias + gamma * (bias.clamp(min=0) if sign > 0 else bias.clamp(max=0))
        share = _ratio(own, total)
        found = _added(found, _times(positive, layer.backward(with_positive, share)))
        found = _added(found, _times(negative, layer.backward(with_negative, share)))
    return found


@lrp_rule("absolute", source="shares by absolute contributions, as proposed for products in the MS disability study")
def absolute(layer: Layer, relevance: Tensor) -> Tensors:
    """R_i = Σ_j |z_ij| / (Σ_i |z_ij| + |b_j|) · R_j, with z_ij = x_i w_ij.

    Without bias, all relevance is passed on, and keeps its sign. Outputs without any
    contribution share theirs by |w_ij|, equally in mean pooling.
    """
    sizes, weights = tuple(x.abs() for x in layer.inputs), tuple(w.abs() for w in layer.weights)
    z = layer.forward(sizes, weights)
    z = z if layer.bias is None else z + layer.bias.abs()
    found = _times(sizes, layer.backward(weights, _ratio(relevance, z)))
    empty = z == 0
    if not bool(empty.any()):
        return found
    ones = tuple(torch.ones_like(x) for x in layer.inputs)
    share = _ratio(relevance * empty, layer.forward(ones, weights))
    return _added(found, layer.backward(weights, share))


@lrp_rule("zbox", source="Montavon et al. 2017 (z^B rule)")
def zbox(layer: Layer, relevance: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensors:
    """R_i = Σ_j (x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻) / Σ_i (…) · R_j, for inputs in [l_i, h_i].

    Voxels that are l get relevance as well. Padding by constants is not part of the input.

    Parameters
    ----------
    low, high : smallest and largest possible value of the voxels of the image. The bounds l_i
        and h_i of the layer follow from them if the network normalises the image by constants
    """
    ends = list(zip(layer.at(low), layer.at(high), strict=True))
    lows, highs = tuple(one.minimum(other) for one, other in ends), tuple(one.maximum(other) for one, other in ends)
    # A bound of 0 contributes nothing.
    bounds = [
        (values, weights)
        for values, weights in ((lows, _plus(layer.weights)), (highs, _minus(layer.weights)))
        if any(bool(one.any()) for one in values)
    ]
    z = layer.forward(layer.inputs, layer.weights)
    for values, weights in bounds:
        z = z - layer.forward(values, weights)
    share = _ratio(relevance, z)
    found = _times(layer.inputs, layer.backward(layer.weights, share))
    for values, weights in bounds:
        found = tuple(one - x * w for one, x, w in zip(found, values, layer.backward(weights, share), strict=True))
    return found


@lrp_rule("wsquare", source="Montavon et al. 2017 (w² rule)")
def wsquare(layer: Layer, relevance: Tensor) -> Tensors:
    """R_i = Σ_j w_ij² / (Σ_i w_ij² + b_j²) · R_j, whatever the values of the inputs.

    Padding by constants is not part of the inputs.
    """
    variable, squares = layer.variable(), tuple(w * w for w in layer.weights)
    z = layer.forward(variable, squares)
    z = z if layer.bias is None else z + layer.bias * layer.bias
    share = _ratio(relevance, z)
    return _times(variable, layer.backward(squares, share))


@lrp_rule("flat", source="Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4")
def flat(layer: Layer, relevance: Tensor) -> Tensors:
    """R_i = Σ_j 1 / Σ_i 1 · R_j: relevance is spread equally over the receptive field, without padding by constants."""
    variable, weights = layer.variable(), tuple(torch.ones_like(w) for w in layer.weights)
    share = _ratio(relevance, layer.forward(variable, weights))
    return _times(variable, layer.backward(weights, share))
