"""Attribution methods based on the gradient of an output with respect to the input.

Gradients are computed by captum. Random numbers are not: captum's GradientSHAP and
NoiseTunnel use the global generators in an order that depends on the batch size, so that
their results are not reproducible.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from captum.attr import DeepLift, GuidedBackprop, InputXGradient, IntegratedGradients, Saliency
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Generator, Tensor, nn

from harness.attribution.batches import (
    Baseline,
    BatchSize,
    Inputs,
    Maps,
    baselines,
    batches,
    by_batch,
    check_baseline,
    connected,
    independent_size,
    items_are_independent,
)
from harness.core.errors import CellError, HarnessError, OutOfRange
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of

__all__ = [
    "deeplift",
    "gradient_shap",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "saliency",
    "smoothgrad",
]


@ATTRIBUTIONS.register("saliency", source="Simonyan, Vedaldi & Zisserman 2014, arXiv:1312.6034", zero_if_ignored=True)
def saliency(
    model: nn.Module, inputs: Inputs, targets: Sequence[int], *, absolute: bool = True, batch_size: BatchSize = 8
) -> Maps:
    """Saliency: gradient of the output with respect to the input.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    absolute : take absolute values, as published
    batch_size : maximum number of items in a forward pass
    """
    method = Saliency(connected(model, inputs, targets))
    size = independent_size(model, inputs, batch_size, gradients=True)
    return by_batch(inputs, targets, size, lambda x, t: method.attribute(_graph(x), target=t, abs=absolute))


@ATTRIBUTIONS.register(
    "input_x_gradient", source="Shrikumar et al. 2016, arXiv:1605.01713", zero_if_ignored=True, of_linear="products"
)
def input_x_gradient(model: nn.Module, inputs: Inputs, targets: Sequence[int], *, batch_size: BatchSize = 8) -> Maps:
    """Input times gradient.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    batch_size : maximum number of items in a forward pass
    """
    method = InputXGradient(connected(model, inputs, targets))
    size = independent_size(model, inputs, batch_size, gradients=True)
    return by_batch(inputs, targets, size, lambda x, t: method.attribute(_graph(x), target=t))


@ATTRIBUTIONS.register(
    "integrated_gradients",
    source="Sundararajan, Taly & Yan 2017, arXiv:1703.01365",
    zero_if_ignored=True,
    complete="voxels",
    of_linear="products",
)
def integrated_gradients(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    steps: Annotated[int, Gt(0)] = 50,
    baseline: Baseline = 0.0,
    batch_size: BatchSize = 8,
) -> Maps:
    """Integrated gradients: mean gradient on the path from the baseline to the input, times their difference.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    steps : number of nodes of the Gauss–Legendre quadrature; with more nodes, the sum of
        the map is closer to f(input) − f(baseline)
    baseline : baseline of the input: one number, or one number per channel
    batch_size : maximum number of items in a forward pass
    """
    method = IntegratedGradients(connected(model, inputs, targets))
    size = independent_size(model, inputs, batch_size, copies=steps, gradients=True)

    def integrate(x: Inputs, target: int) -> Inputs:
        maps: Inputs = method.attribute(
            _graph(x[: len(inputs)]),
            baselines=x[len(inputs) :],
            target=target,
            n_steps=steps,
            internal_batch_size=size,
        )
        return maps

    return by_batch(inputs + baselines(inputs, baseline), targets, size, integrate)


@ATTRIBUTIONS.register(
    "gradient_shap", source="Lundberg & Lee 2017, arXiv:1705.07874", zero_if_ignored=True, of_linear="products"
)
def gradient_shap(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    samples: Annotated[int, Gt(0)] = 30,
    noise: Annotated[float, Ge(0)] = 0.0,
    baseline: Baseline = 0.0,
    seed: int,
    batch_size: BatchSize = 8,
) -> Maps:
    """GradientSHAP: expectation of integrated gradients, estimated from random points on the path.

    Parameters
    ----------
    model, inputs, targets, seed : see :mod:`harness.attribution`
    samples : number of random points per item
    noise : standard deviation of the noise added to the input of each sample
    baseline : baseline of the input: one number, or one number per channel. In Python, a
        tensor of shape (B, C, *space) is a set from which each sample draws one baseline
    batch_size : maximum number of items in a forward pass

    Raises
    ------
    OutOfRange
        If a set of baselines has another shape than the items.

    Notes
    -----
    All outputs use the same points, so that their maps are comparable. The sum of a map is
    f(input) − f(baseline) only in expectation.
    """
    wide = isinstance(baseline, Tensor) and baseline.ndim == inputs[0].ndim and len(inputs) == 1
    pool = (_pool(baseline, inputs[0]),) if wide and isinstance(baseline, Tensor) else baselines(inputs, baseline)

    def draw(item: int, rng: Generator) -> tuple[Inputs, Inputs]:
        row = int(torch.randint(len(pool[0]), (), generator=rng)) if wide else item
        along = float(torch.rand((), generator=rng))
        x = tuple(each[item] + noise * _normal(each[item], rng) for each in inputs)
        steps = tuple(each - base[row] for each, base in zip(x, pool, strict=True))
        return tuple(base[row] + along * step for base, step in zip(pool, steps, strict=True)), steps

    return _expected(
        model, inputs, targets, draw, torch.mul, samples=samples, seed=seed_of(seed, "gradient_shap"), size=batch_size
    )


@ATTRIBUTIONS.register("smoothgrad", source="Smilkov et al. 2017, arXiv:1706.03825", zero_if_ignored=True)
def smoothgrad(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    samples: Annotated[int, Gt(0)] = 25,
    noise: Annotated[float, Ge(0)] = 0.15,
    squared: bool = False,
    absolute: bool = True,
    seed: int,
    batch_size: BatchSize = 8,
) -> Maps:
    """SmoothGrad: gradient averaged over noisy copies of the input.

    Parameters
    ----------
    model, inputs, targets, seed : see :mod:`harness.attribution`
    samples : number of noisy copies per item
    noise : standard deviation of the noise relative to the range of the item (maximum −
        minimum over all channels)
    squared : average the squared gradient (Hooker et al. 2019, arXiv:1806.10758)
    absolute : take the absolute value of the average
    batch_size : maximum number of items in a forward pass
    """

    def draw(item: int, rng: Generator) -> tuple[Inputs, Inputs]:
        points = []
        for x in inputs:
            scale = noise * (x[item].max() - x[item].min())
            points.append(x[item] + scale * _normal(x[item], rng))
        return tuple(points), tuple(points)

    maps = _expected(
        model,
        inputs,
        targets,
        draw,
        lambda gradient, _: gradient**2 if squared else gradient,
        samples=samples,
        seed=seed_of(seed, "smoothgrad"),
        size=batch_size,
    )
    return [tuple(each.abs() if absolute else each for each in of_target) for of_target in maps]


@ATTRIBUTIONS.register(
    "deeplift",
    source="Shrikumar, Greenside & Kundaje 2017, arXiv:1704.02685",
    zero_if_ignored=True,
    complete="voxels",
    of_linear="products",
)
def deeplift(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    baseline: Baseline = 0.0,
    tolerance: Annotated[float, Ge(0)] = 0.01,
    batch_size: BatchSize = 8,
) -> Maps:
    """DeepLIFT with the rescale rule: backpropagated differences from the baseline.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    baseline : baseline of the input: one number, or one number per channel
    tolerance : largest error of the sum of a map, relative to f(input) − f(baseline)
    batch_size : maximum number of items in a forward pass, which also processes the
        baseline of each item

    Raises
    ------
    HarnessError
        If an activation module is called several times in a forward pass, which the rule
        does not support, or the outputs depend on other items in the batch, which contains
        the baseline.
    CellError
        If the sum of a map exceeds the tolerance. This shows that the model has a
        non-linearity that is not a module (``functional.relu``, a product of two branches)
        and is therefore not processed by the rule.
    """
    model = connected(model, inputs, targets)
    _refuse_reused(model, inputs)
    if not items_are_independent(model, inputs, 2 * min(batch_size, len(inputs[0])), gradients=True):
        raise HarnessError(
            "deeplift computes the input and its baseline in one batch, but the outputs of the model depend on other "
            "items in the batch; choose integrated_gradients, or use batch normalisation with running statistics"
        )
    method = DeepLift(model)

    def lift(x: Inputs, target: int) -> Inputs:
        with _quiet():
            maps, delta = method.attribute(
                _graph(x[: len(inputs)]), baselines=x[len(inputs) :], target=target, return_convergence_delta=True
            )
        found = tuple(each.detach() for each in maps)
        _check_sum(found, delta.detach(), tolerance)
        return found

    return by_batch(inputs + baselines(inputs, baseline), targets, batch_size, lift)


@ATTRIBUTIONS.register("guided_backprop", source="Springenberg et al. 2015, arXiv:1412.6806", zero_if_ignored=True)
def guided_backprop(model: nn.Module, inputs: Inputs, targets: Sequence[int], *, batch_size: BatchSize = 8) -> Maps:
    """Guided backpropagation: gradient in which each ReLU also blocks negative gradients.

    Parameters
    ----------
    model, inputs, targets : see :mod:`harness.attribution`
    batch_size : maximum number of items in a forward pass

    Raises
    ------
    HarnessError
        If the model has no ReLU module, so that the map would be the gradient.
    """
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise HarnessError(
            f"guided_backprop needs ReLU modules, but {type(model).__name__} has none; "
            "use nn.ReLU instead of functional.relu, or choose saliency"
        )
    method = GuidedBackprop(connected(model, inputs, targets))
    size = independent_size(model, inputs, batch_size, gradients=True)

    def guide(x: Inputs, target: int) -> Inputs:
        with _quiet():
            maps: Inputs = method.attribute(_graph(x), target=target)
        return maps

    return by_batch(inputs, targets, size, guide)


def _expected(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    draw: Callable[[int, Generator], tuple[Inputs, Inputs]],
    combine: Callable[[Tensor, Tensor], Tensor],
    *,
    samples: int,
    seed: int,
    size: int,
) -> Maps:
    """Average over random points of ``combine(gradient at the point, factor)``.

    ``draw`` returns a point and a factor for an item. Each item has its own random stream
    and each point is drawn separately, so that the points depend neither on the batch size
    nor on the number of targets.
    """
    method = Saliency(connected(model, inputs, targets))
    size = independent_size(model, inputs, size, copies=samples, gradients=True)
    maps: Maps = [tuple(torch.zeros_like(x) for x in inputs) for _ in targets]
    for item in range(len(inputs[0])):
        rng = torch.Generator().manual_seed(seed_of(seed, item))
        for few in batches((torch.arange(samples),), size):
            drawn = [draw(item, rng) for _ in few[0]]
            points, factors = (tuple(map(torch.stack, zip(*each, strict=True))) for each in zip(*drawn, strict=True))
            for of_target, target in zip(maps, targets, strict=True):
                gradients = method.attribute(_graph(points), target=target, abs=False)
                for total, gradient, factor in zip(of_target, gradients, factors, strict=True):
                    total[item] += combine(gradient, factor).sum(0) / samples
    return maps


def _pool(baseline: Tensor, x: Tensor) -> Tensor:
    """A set of baselines, (B, C, *space), with the shape of an item."""
    check_baseline(baseline)
    try:
        return baseline.to(x).expand(len(baseline), *x.shape[1:])
    except RuntimeError:
        raise OutOfRange(
            f"a set of baselines must be (B, C, *space) with the shape of an item, got {tuple(baseline.shape)} for "
            f"{tuple(x.shape)}"
        ) from None


def _normal(like: Tensor, rng: Generator) -> Tensor:
    # Drawn on the CPU, so that the numbers do not depend on the device.
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)


def _graph(inputs: Inputs) -> Inputs:
    return tuple(x.detach().requires_grad_() for x in inputs)


def _quiet() -> warnings.catch_warnings[Any]:
    # captum warns about its hooks at each call.
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _refuse_reused(model: nn.Module, inputs: Inputs) -> None:
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
        if type(module) in SUPPORTED_NON_LINEAR
    ]
    with torch.no_grad():
        model(*(x[:1] for x in inputs))
    for hook in hooks:
        hook.remove()
    reused = [f"{name.removeprefix('model.')} ({count} times)" for name, count in calls.items() if count > 1]
    if reused:
        raise HarnessError(
            f"deeplift needs every activation module to be called once in a forward pass, got {', '.join(reused)}; "
            "use a separate module for each call, or choose integrated_gradients, which has the same sum"
        )


def _check_sum(maps: Inputs, delta: Tensor, tolerance: float) -> None:
    total = torch.stack([each.flatten(1).sum(1) for each in maps]).sum(0)
    size = torch.stack([each.flatten(1).abs().sum(1) for each in maps]).sum(0)
    # In captum, delta = total − difference. The last term allows for rounding in the sum.
    off = delta.abs() - tolerance * (total - delta).abs() - 1e-4 * size
    worst = int(off.argmax())
    if off[worst] > 0:
        raise CellError(
            "the map of deeplift must sum to f(input) - f(baseline) = "
            f"{float(total[worst] - delta[worst]):.4g}, got {float(total[worst]):.4g}; use modules for all "
            "activations (of the kinds that captum supports), increase `tolerance`, or choose integrated_gradients"
        )
