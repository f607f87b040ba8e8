"""Methods that use the gradient of an output with respect to the input.

captum computes them where it can be repeated. Its GradientSHAP and its
NoiseTunnel draw from the global generators in an order that depends on the
size of the batches, so here the draws are ours and the gradients captum's.
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

from harness.attribution.batches import Baseline, BatchSize, Connected, Inputs, Maps, baselines, batches, by_batch
from harness.core.errors import CellError, HarnessError
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
    """Gradient of the output with respect to the input.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    absolute : its absolute value, as published; False keeps the sign
    """
    method = Saliency(Connected(model))
    return by_batch(inputs, targets, batch_size, lambda x, t: method.attribute(_graph(x), target=t, abs=absolute))


@ATTRIBUTIONS.register(
    "input_x_gradient", source="Shrikumar et al. 2016, arXiv:1605.01713", zero_if_ignored=True, of_linear="products"
)
def input_x_gradient(model: nn.Module, inputs: Inputs, targets: Sequence[int], *, batch_size: BatchSize = 8) -> Maps:
    """Input times gradient.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    """
    method = InputXGradient(Connected(model))
    return by_batch(inputs, targets, batch_size, lambda x, t: method.attribute(_graph(x), target=t))


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
    """Gradient averaged from the baseline to the input, times their difference.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    steps : nodes of the Gauss–Legendre quadrature; with more of them the map's
        sum comes nearer to f(input) − f(baseline)
    baseline : see :func:`harness.attribution.batches.baselines`
    """
    method = IntegratedGradients(Connected(model))

    def integrate(x: Inputs, target: int) -> Inputs:
        maps: Inputs = method.attribute(
            _graph(x[: len(inputs)]),
            baselines=x[len(inputs) :],
            target=target,
            n_steps=steps,
            internal_batch_size=batch_size,
        )
        return maps

    return by_batch(inputs + baselines(inputs, baseline), targets, batch_size, integrate)


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
    """Integrated gradients in expectation, over points drawn on the path.

    Parameters
    ----------
    model, inputs, targets, seed, batch_size : see :mod:`harness.attribution`
    samples : points per item
    noise : standard deviation that is added to the input of each draw
    baseline : see :func:`harness.attribution.batches.baselines`. A tensor of
        shape (B, C, *space) is a distribution, from which each draw takes one.

    Notes
    -----
    All outputs share the same points, so their maps can be compared. The map's
    sum is f(input) − f(baseline) in expectation only.
    """
    wide = isinstance(baseline, Tensor) and baseline.ndim == inputs[0].ndim and len(inputs) == 1
    pool = (baseline.to(inputs[0]),) if wide and isinstance(baseline, Tensor) else baselines(inputs, baseline)

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
    """Gradient averaged over noisy copies of the input.

    Parameters
    ----------
    model, inputs, targets, seed, batch_size : see :mod:`harness.attribution`
    samples : noisy copies per item
    noise : standard deviation as a part of the item's range of values
        (maximum − minimum over all its channels)
    squared : average the squared gradient (Hooker et al. 2019, arXiv:1806.10758)
    absolute : absolute value of the average; False keeps the sign
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
    """DeepLIFT with the rescale rule: differences from the baseline, passed back.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`; one
        forward pass holds an item and its baseline
    baseline : see :func:`harness.attribution.batches.baselines`
    tolerance : how far a map's sum may be from f(input) − f(baseline), as a part
        of that difference; ``inf`` accepts everything

    Raises
    ------
    HarnessError
        If the model calls one activation module more than once: the rule
        cannot tell the calls apart.
    CellError
        If the sum of a map is farther off than the tolerance. The model then
        has a non-linearity that is no module (``functional.relu``, a product
        of two branches), of which the rule knows nothing.
    """
    model = Connected(model)
    _refuse_reused(model, inputs)
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
    """Gradient that passes a ReLU only where it is positive.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`

    Raises
    ------
    HarnessError
        If the model has no ReLU module: the map would be the plain gradient.
    """
    if not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise HarnessError(
            f"guided_backprop needs ReLU modules, {type(model).__name__} has none; "
            "use nn.ReLU (functional.relu cannot be seen), or take saliency"
        )
    method = GuidedBackprop(Connected(model))

    def guide(x: Inputs, target: int) -> Inputs:
        with _quiet():
            maps: Inputs = method.attribute(_graph(x), target=target)
        return maps

    return by_batch(inputs, targets, batch_size, guide)


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

    ``draw`` gives the point and the factor of one item. Every item has a stream
    of its own and every point is drawn alone, so that neither the size of the
    batches nor the number of targets changes what is drawn.
    """
    method = Saliency(Connected(model))
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


def _normal(like: Tensor, rng: Generator) -> Tensor:
    # Drawn on the processor: the same numbers whatever the device.
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)


def _graph(inputs: Inputs) -> Inputs:
    return tuple(x.detach().requires_grad_() for x in inputs)


def _quiet() -> warnings.catch_warnings[Any]:
    # captum announces its hooks on each call.
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
            "give each call a module of its own, or take integrated_gradients, which promises the same sum"
        )


def _check_sum(maps: Inputs, delta: Tensor, tolerance: float) -> None:
    total = torch.stack([each.flatten(1).sum(1) for each in maps]).sum(0)
    size = torch.stack([each.flatten(1).abs().sum(1) for each in maps]).sum(0)
    # captum: delta = total − difference. The second term is the rounding of a sum that cancels.
    off = delta.abs() - tolerance * (total - delta).abs() - 1e-4 * size
    worst = int(off.argmax())
    if off[worst] > 0:
        raise CellError(
            "the map of deeplift must sum to f(input) - f(baseline) = "
            f"{float(total[worst] - delta[worst]):.4g}, got {float(total[worst]):.4g}; use modules for all "
            "activations (of the kinds that captum knows), raise `tolerance`, or take integrated_gradients"
        )
