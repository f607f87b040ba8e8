"""Application of attribution methods without side effects.

Methods operate on a copy of the model, so that hooks, gradients, modes, flags and weights
of the original cannot change, even after an exception. The state of the global random
generators is restored.
"""

from __future__ import annotations

import copy
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.attribution.batches import Inputs, Maps
from harness.core.errors import CellError, HarnessError, OutOfRange, UnknownName
from harness.core.seeding import seed_of

__all__ = ["explain"]


def explain(
    function: Callable[..., Maps],
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Sequence[int],
    *,
    seed: int = 0,
    **options: Any,
) -> list[Any]:
    """Compute the maps of a method, which need not be registered.

    Parameters
    ----------
    function : the method, see :mod:`harness.attribution`
    model : maps the inputs to (N, K) scalars; explained in evaluation mode
    inputs : (N, C, *space) float, or a tuple of such tensors with equal N
    targets : indices of the outputs to explain, 0 ≤ target < K
    seed : seed of the random numbers of the method
    options : options of the method

    Returns
    -------
    list
        One map per target, (N, C, *space) with the dtype of the input. For a tuple of
        inputs, a list of lists ``result[target][input]``. Empty maps if N = 0.

    Raises
    ------
    UnknownName
        If the method has no such option.
    OutOfRange
        If a target is not an output of the model.
    CellError
        If a map is not finite.
    HarnessError
        If the model does not return (N, K) scalars, or the method does not return one map
        per input.
    """
    known = inspect.signature(function).parameters
    title = getattr(function, "__name__", repr(function))
    for option in options:
        if option not in known:
            raise UnknownName(f"option of attribution {title}", option, list(known)[3:])
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(x.is_floating_point() for x in given) or len({len(x) for x in given}) != 1:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in given)
        raise HarnessError(f"inputs must be float tensors (N, C, *space) of equal N, got {shapes}; convert them")
    if "seed" in known:
        options["seed"] = seed
    with _untouched(model, given, seed) as (twin, twins):
        if len(given[0]):
            _check_outputs(twin, twins, targets)
            maps = function(twin, twins, list(targets), **options)
        else:
            maps = [tuple(torch.empty_like(x) for x in twins) for _ in targets]
    _check_maps(title, maps, given, targets)
    # captum's occlusion always averages in float32.
    maps = [tuple(each.detach().to(x.dtype) for each, x in zip(m, given, strict=True)) for m in maps]
    return [list(of_target) if isinstance(inputs, tuple) else of_target[0] for of_target in maps]


@contextmanager
def _untouched(model: nn.Module, inputs: Inputs, seed: int) -> Iterator[tuple[nn.Module, Inputs]]:
    """Provide copies of model and inputs, and restore the global state afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = sorted({x.device.index or 0 for x in inputs if x.device.type == "cuda"})
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            # Makes third-party methods reproducible that use the global generators.
            stream = seed_of(seed, "attribution")
            torch.default_generator.manual_seed(stream)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(stream)
            np.random.seed(stream % 2**32)
            random.seed(stream)
            yield _twin(model), tuple(x.detach().clone() for x in inputs)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _twin(model: nn.Module) -> nn.Module:
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise HarnessError(
            f"a model must be copyable to be explained, got {type(model).__name__}: {error}; "
            "detach tensors that it stores, and do not store open resources"
        ) from error
    # captum's hooks do not work with in-place operations.
    for module in twin.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            setattr(module, "inplace", False)  # noqa: B010
    return twin.eval().requires_grad_(False)


def _check_outputs(model: nn.Module, inputs: Inputs, targets: Sequence[int]) -> None:
    with torch.no_grad():
        try:
            shape = tuple(model(*(x[:1] for x in inputs)).shape)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise HarnessError(
                "a model must compute a single item to be explained, but its batch normalisation needs several "
                f"({error}); use batch normalisation with running statistics (track_running_stats=True)"
            ) from error
    if len(shape) != 2 or shape[0] != 1:
        raise HarnessError(
            f"a model must map one item to (1, K) scalars to be explained, got {shape}; "
            "wrap it in a module that reduces its output (mean over the image, one column per class)"
        )
    for target in targets:
        if not 0 <= target < shape[1]:
            raise OutOfRange(f"`0 <= target < {shape[1]}` must hold for the outputs of the model, got {target}")


def _check_maps(title: str, maps: Maps, inputs: Inputs, targets: Sequence[int]) -> None:
    expected = [[tuple(x.shape) for x in inputs]] * len(targets)
    if (got := [[tuple(each.shape) for each in of_target] for of_target in maps]) != expected:
        raise HarnessError(f"{title} must return one map per target and input: {expected}, got {got}")
    for target, of_target in zip(targets, maps, strict=True):
        if not all(bool(torch.isfinite(each).all()) for each in of_target):
            raise CellError(
                f"every value of a map must be finite, but {title} returned NaN or infinity for output {target}; "
                "check whether the output of the model is finite for this input, or choose another method"
            )
