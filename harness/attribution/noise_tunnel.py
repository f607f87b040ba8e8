"""Noise tunnel: another attribution method, averaged over noisy copies of the input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.attribution.batches import Inputs, Maps
from harness.core.errors import OutOfRange, UnknownName
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import generator, seed_of
from harness.core.values import checked_options

__all__ = ["noise_tunnel"]

Kind = Literal["mean", "mean_square", "variance"]


@ATTRIBUTIONS.register(
    "noise_tunnel", source="Smilkov et al. 2017, arXiv:1706.03825; Adebayo et al. 2018", wraps="method"
)
def noise_tunnel(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    method: str = "saliency",
    options: dict[str, Any] | None = None,
    kind: Kind = "mean",
    samples: Annotated[int, Gt(0)] = 10,
    noise: Annotated[float, Ge(0)] = 0.1,
    seed: int,
) -> Maps:
    """Noise tunnel: mean, mean square or variance of the maps of a method over noisy copies of the input.

    Parameters
    ----------
    model, inputs, targets, seed : see :mod:`harness.attribution`
    method : name of the attribution method
    options : options of the method, e.g. ``{steps:20}``
    kind : ``mean`` (SmoothGrad), ``mean_square`` (squared SmoothGrad, Hooker et al. 2019),
        or ``variance`` (VarGrad, Adebayo et al. 2018)
    samples : number of noisy copies per item
    noise : standard deviation of the noise, in units of the input

    Raises
    ------
    OutOfRange
        If the method is a noise tunnel, or an option has the wrong type or violates a bound.
    UnknownName
        If there is no such method or option.

    Notes
    -----
    All noisy copies are items of one call of the method. If it uses random numbers, each of
    them therefore has numbers of its own.
    """
    if method == "noise_tunnel":
        raise OutOfRange("method must be an attribution other than noise_tunnel, got noise_tunnel")
    function = ATTRIBUTIONS.get(method).function
    known = inspect.signature(function).parameters
    for name in options or {}:
        if name not in known:
            raise UnknownName(f"option of attribution {method}", name, list(known)[3:])
    options = checked_options(function, options or {}, f"attribution {method}")
    rng = generator(seed, "noise_tunnel", "noise")
    copies = [tuple(x + noise * _normal(x, rng.standard_normal) for x in inputs) for _ in range(samples)]
    # As items of one batch, which the method divides into batches that it can compute together.
    noisy = tuple(torch.cat(each) for each in zip(*copies, strict=True))
    own: dict[str, Any] = {"seed": seed_of(seed, "noise_tunnel")} if "seed" in known else {}
    # Those of noisy images are not reported.
    own |= {name: {} for name in ("numbers", "parts") if name in known}
    found = function(model, noisy, targets, **options, **own)
    return [tuple(_over_copies(one.unflatten(0, (samples, -1)), kind) for one in of_target) for of_target in found]


def _normal(like: Tensor, draw: Callable[..., Any]) -> Tensor:
    return torch.from_numpy(draw(tuple(like.shape))).to(like)


def _over_copies(maps: Tensor, kind: Kind) -> Tensor:
    """Statistic over the first axis, (samples, N, C, *space) → (N, C, *space)."""
    if kind == "mean":
        return maps.mean(0)
    mean_square = (maps**2).mean(0)
    return mean_square if kind == "mean_square" else (mean_square - maps.mean(0) ** 2).clamp(min=0)
