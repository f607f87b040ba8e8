"""Application of attribution methods without side effects.

Methods operate on a copy of the model, so that hooks, gradients, modes, flags and weights
of the original cannot change, even after an exception. The state of the global random
generators is restored.
"""

from __future__ import annotations

import copy
import inspect
import operator
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.attribution.batches import Inputs, Maps, Numbers, Parts
from harness.core.errors import CellError, HarnessError, OutOfRange, UnknownName
from harness.core.seeding import seed_of
from harness.core.values import checked, checked_options

__all__ = ["explain"]


def explain(
    function: Callable[..., Maps],
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Sequence[int],
    *,
    seed: int = 0,
    numbers: Numbers | None = None,
    parts: Parts | None = None,
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
    numbers : receives what the method reports beside its maps, such as the quality of a fit
    parts : receives the maps that the method combines, such as those of several scales
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
        If an option has the wrong type or violates a bound, or a target is not an output
        of the model.
    CellError
        If a map is not finite.
    HarnessError
        If the model cannot be explained or does not return (N, K) scalars, or the method
        does not return one map per input.
    """
    bound: Any = function
    if isinstance(bound, partial):
        function, options = bound.func, {**bound.keywords, **options}
    known = inspect.signature(function).parameters
    title = getattr(function, "__name__", repr(function))
    for option in options:
        if option not in known:
            raise UnknownName(f"option of attribution {title}", option, list(known)[3:])
    options = checked_options(function, options, f"attribution {title}")
    seed = checked(Annotated[int, Ge(0)], seed, "seed")
    targets = _checked_targets(targets)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    _check_inputs(given)
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose hooks are not called
    _check_model(model)
    if "seed" in known:
        options["seed"] = seed
    if "numbers" in known:
        options["numbers"] = {} if numbers is None else numbers
    if "parts" in known:
        options["parts"] = {} if parts is None else parts
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


def _checked_targets(targets: Sequence[int]) -> list[int]:
    try:
        return [operator.index(target) for target in targets]
    except TypeError:
        raise OutOfRange(
            f"targets must be a list of indices of outputs, got {targets!r}; for one output, pass [0]"
        ) from None


def _check_inputs(inputs: Inputs) -> None:
    valid = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 for x in inputs)
    if not valid or len({len(x) for x in inputs}) != 1:
        got = ", ".join(_text_of(x) for x in inputs)
        raise HarnessError(
            f"inputs must be float tensors (N, C, *space) of equal N, or a tuple of them, got {got or 'none'}; "
            "convert them (torch.as_tensor(x, dtype=torch.float32))"
        )


def _text_of(x: object) -> str:
    kind = "" if isinstance(x, Tensor) else f"{type(x).__name__} "
    return f"{kind}{tuple(getattr(x, 'shape', ()))} {getattr(x, 'dtype', '')}".strip()


def _check_model(model: nn.Module) -> None:
    """Refuse models whose layers hooks cannot reach: maps would be wrong without an error."""
    what = f"a model must be a torch.nn.Module of Python layers to be explained, got {type(model).__name__}"
    if isinstance(model, type) or not isinstance(model, nn.Module):
        raise HarnessError(f"{what}; wrap it: a module whose forward calls it, with its layers as attributes")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise HarnessError(f"{what}, which has scripted layers; pass the module from which it was scripted or traced")
    if any("range_constraints" in vars(module) for module in model.modules()):  # torch.export sets it
        raise HarnessError(f"{what}, which is an exported program; pass the module from which it was exported")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise HarnessError(f"{what}, whose lazy layers have no weights; call it once on an input, and train it")


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
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
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
            output = model(*(x[:1].clone() for x in inputs))  # it may write to its inputs
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise HarnessError(
                "a model must compute a single item to be explained, but its batch normalisation needs several "
                f"({error}); use batch normalisation with running statistics (track_running_stats=True)"
            ) from error
    if not isinstance(output, Tensor):
        raise HarnessError(
            f"a model must return one tensor to be explained, got {type(output).__name__}; wrap it in a module that "
            "returns the tensor"
        )
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[0] != 1:
        raise HarnessError(
            f"a model must map one item to (1, K) scalars to be explained, got {shape}; "
            "wrap it in a module that reduces its output (mean over the image, one column per class)"
        )
    for target in targets:
        if not 0 <= target < shape[1]:
            raise OutOfRange(f"`0 <= target < {shape[1]}` must hold for the outputs of the model, got {target}")


def _wrong_type(maps: Any) -> str | None:
    """What a method returned instead of a list of tuples of tensors; ``None`` if it did."""
    if not isinstance(maps, list | tuple):
        return type(maps).__name__
    for of_target in maps:
        if not isinstance(of_target, list | tuple):
            return f"{type(maps).__name__} of {type(of_target).__name__}"
        for each in of_target:
            if not isinstance(each, Tensor) or each.is_complex():
                dtype = " of complex numbers" if isinstance(each, Tensor) else ""
                return f"{type(maps).__name__} of {type(of_target).__name__} of {type(each).__name__}{dtype}"
    return None


def _check_maps(title: str, maps: Maps, inputs: Inputs, targets: Sequence[int]) -> None:
    expected = [[tuple(x.shape) for x in inputs]] * len(targets)
    if (type_ := _wrong_type(maps)) is not None:
        raise HarnessError(f"{title} must return a list with a tuple of tensors for each target, got {type_}")
    if (got := [[tuple(each.shape) for each in of_target] for of_target in maps]) != expected:
        raise HarnessError(f"{title} must return one map per target and input: {expected}, got {got}")
    for target, of_target in zip(targets, maps, strict=True):
        if not all(bool(torch.isfinite(each).all()) for each in of_target):
            raise CellError(
                f"every value of a map must be finite, but {title} returned NaN or infinity for output {target}; "
                "check whether the output of the model is finite for this input, or choose another method"
            )
