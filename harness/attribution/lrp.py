"""Layer-wise relevance propagation (LRP) as an attribution, without changes of the network.

The network is run once, and relevance is propagated from the explained scalar to the image,
operation by operation (:mod:`harness.attribution.lrp_tape`), by the rules of
:mod:`harness.attribution.lrp_rules`. Relevance has the sign of what is explained: for a
logit below zero, all relevance of the α1β0-rule is negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from harness.attribution.batches import BatchSize, Inputs, Maps, Numbers, batches, independent_size
from harness.attribution.lrp_composites import COMPOSITES, composite_of
from harness.attribution.lrp_tape import LayerRelevance, ProductRule, Tape, propagate, record
from harness.core.errors import CellError
from harness.core.registry import ATTRIBUTIONS

__all__ = ["COMPOSITES", "ledger", "lrp"]

Start = Literal["value", "absolute", "one"]


@ATTRIBUTIONS.register("lrp", source="Bach et al. 2015, doi:10.1371/journal.pone.0130140")
def lrp(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    numbers: Numbers,
    composite: str = "alpha1beta0_box",
    product: ProductRule = "proposal",
    start: Start = "value",
    epsilon: Annotated[float, Ge(0)] = 1e-6,
    gamma: Annotated[float, Ge(0)] = 0.25,
    low: float = 0.0,
    high: float = 1.0,
    bias: bool = False,
    batch_size: BatchSize = 8,
) -> Maps:
    """Layer-wise relevance propagation.

    Parameters
    ----------
    model, inputs, targets, numbers : see :mod:`harness.attribution`
    composite : rules by kind of layer, a name of :data:`COMPOSITES`: ``epsilon`` (ε
        everywhere), ``alpha1beta0_box`` (α1β0 for convolutions, ε for linear layers, z^B
        for the first layer, as in the MS disability study), ``alpha1beta0_flat``,
        ``alpha2beta1_box``, ``epsilon_plus`` (z⁺ for convolutions), ``gamma_box``,
        ``wsquare``, ``by_depth`` (z^B, γ, ε and 0 from the image to the output); a rule, also
        one of your own; or rules by position, ``first:flat+low:gamma:gamma=0.5+linear:epsilon``
        (:func:`harness.attribution.lrp_composites.composite_of`)
    product : shares of the factors of a product. ``proposal``: by their absolute values
        (the MS disability study); ``absolute``: by those before tanh, sigmoid or softmax;
        ``all``: all to the signal and none to the gate (g or 1 − g); ``half``
    start : relevance of the output: its ``value``, as published, its ``absolute`` value, or
        ``one``. With the value, relevance has the sign of the output
    epsilon : ε of the ε-rule
    gamma : γ of the γ-rule
    low : smallest possible value of the input, for the z^B-rule; before any normalisation
        by the network itself
    high : largest possible value of the input, for the z^B-rule
    bias : whether biases take part and absorb relevance
    batch_size : maximum number of items in a forward pass

    Returns
    -------
    list
        Relevance of each voxel. ``numbers`` has ``relevance_ratio``, Σ|R| of all inputs
        divided by the relevance of the output, also without sign; NaN if that is 0. It is
        at most about 1 where relevance of one sign is conserved, and large where the rules
        divide by sums that nearly cancel: such a map shows rounding and ε, not the network.

    Raises
    ------
    UnknownName
        If there is no such composite, rule or position.
    CellError
        If an operation of the network has no rule, or values cannot be traced; it is named
        with its module. If a position of the composite that the text names, or ``first``,
        has no layer in the network. If relevance is not finite though the output is.

    Notes
    -----
    A batch normalisation directly after a convolution is folded into it; any other passes
    relevance unchanged, which is the same as folding it into the following convolution and
    shifting the activation. Activations, also tanh, sigmoid and softmax, pass relevance
    unchanged; maximum pooling passes it to the maximum; mean pooling, sums and residual
    connections are layers with the weight 1. Sums use the ε-rule, mean pooling α1β0,
    because the ε-rule divides by sums that can be close to 0. α1β0 loses the relevance of
    windows without a positive value, as behind an activation with negative values; the rule
    ``absolute`` (``alpha1beta0_box+pool:absolute``) shares by |x| and loses none. A factor of truth values or
    integers, such as ``y > 0``, gets no relevance: all goes to the other factor. Constants
    that are added, as in ``1 - g``, are biases.

    The ε-rule without biases (``bias=False``) divides by Σ x w alone. Where a bias, or the
    mean of a batch normalisation folded into a convolution, keeps an activation alive though
    Σ x w is close to 0, the relevance of a layer can be many times that of the layer behind
    it, and this multiplies over depth: in networks with trained batch normalisation the
    composites ``epsilon`` and ``by_depth`` can exceed the output by orders of magnitude.
    Check ``relevance_ratio``; then raise ε, let biases take part (``bias=True``, which does
    not help where the normalisation comes before the convolution, as in DenseNet), or use
    α1β0 or z⁺ for convolutions, as most composites do.

    Layers that read the image have the rule of ``first``, also if the image is moved,
    padded, concatenated, or added to, multiplied or normalised by constants before. The
    bounds of the z^B-rule are those of the image, and are changed in the same way. Padding
    by constants gets no relevance under the z^B-, flat and w²-rules, whether by the
    convolution or before it.
    """
    chosen = composite_of(composite, epsilon=epsilon, gamma=gamma, low=low, high=high)
    size = independent_size(model, inputs, batch_size)
    found: list[list[Inputs]] = [[] for _ in targets]
    ratios: list[list[Tensor]] = [[] for _ in targets]
    for batch in batches(inputs, size):
        tape = record(model, batch)
        for number, target in enumerate(targets):
            begin = _start(tape, target, start)
            maps = _complete(propagate(tape, begin, chosen, product=product, bias=bias), batch)
            if bool(begin.isfinite().all()) and not all(bool(one.isfinite().all()) for one in maps):
                lines: list[LayerRelevance] = []
                propagate(tape, begin, chosen, product=product, bias=bias, ledger=lines)
                raise _not_finite(target, lines)
            found[number].append(maps)
            ratios[number].append(_total(maps) / _total((begin,)))
    numbers["relevance_ratio"] = torch.stack([torch.cat(each) for each in ratios]).cpu().numpy()
    return [tuple(torch.cat(parts) for parts in zip(*of_target, strict=True)) for of_target in found]


def ledger(
    model: nn.Module,
    inputs: Inputs,
    target: int,
    *,
    composite: str = "alpha1beta0_box",
    product: ProductRule = "proposal",
    start: Start = "value",
    epsilon: Annotated[float, Ge(0)] = 1e-6,
    gamma: Annotated[float, Ge(0)] = 0.25,
    low: float = 0.0,
    high: float = 1.0,
    bias: bool = False,
) -> list[LayerRelevance]:
    """Relevance that each operation receives and passes on, from the output to the inputs.

    It shows where relevance is conserved, and where it is absorbed by ε, biases and inputs
    that are not explained, or lost.

    Parameters
    ----------
    model, inputs : see :mod:`harness.attribution`; the model in evaluation mode
    target : index of the output
    composite, product, start, epsilon, gamma, low, high, bias : see :func:`lrp`
    """
    tape = record(model, inputs)
    lines: list[LayerRelevance] = []
    chosen = composite_of(composite, epsilon=epsilon, gamma=gamma, low=low, high=high)
    propagate(tape, _start(tape, target, start), chosen, product=product, bias=bias, ledger=lines)
    return lines


def _start(tape: Tape, target: int, start: Start) -> Tensor:
    """Relevance of the outputs, (N, K); zero but for the explained one."""
    found = torch.zeros_like(tape.value)
    value = tape.value[:, target]
    found[:, target] = {"value": value, "absolute": value.abs(), "one": torch.ones_like(value)}[start]
    return found


def _total(values: Sequence[Tensor]) -> Tensor:
    """Sum of absolute values of each item over several tensors, (N,) float64."""
    return torch.stack([one.double().abs().flatten(1).sum(1) for one in values]).sum(0)


def _not_finite(target: int, lines: Sequence[LayerRelevance]) -> CellError:
    """The error for relevance that became infinite or NaN at one of the operations."""
    line = next((one for one in lines if not math.isfinite(one.passed)), None)
    where = "" if line is None else f", first at {line.operation} (rule {line.rule})"
    where += f" in the module {line.module}" if line is not None and line.module else ""
    return CellError(
        f"relevance of LRP must be finite, but is infinite or NaN for output {target}{where}, although the output is "
        "finite: a rule divides by sums that nearly cancel. Raise epsilon, let biases take part (bias=True), or choose "
        "a composite without the ε-rule for convolutions (composite=alpha1beta0_box)"
    )


def _complete(maps: Sequence[Tensor | None], inputs: Inputs) -> Inputs:
    """Maps with zeros for inputs that the output does not depend on."""
    return tuple(torch.zeros_like(x) if one is None else one for one, x in zip(maps, inputs, strict=True))
