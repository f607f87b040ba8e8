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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.attribution.batches import Inputs, Maps, Numbers, Parts
from harness.core.errors import CellError, HarnessError, OutOfRange, UnknownName, first_line
from harness.core.seeding import seed_of
from harness.core.values import checked, checked_options

__all__ = ["explain"]

_METHOD = "an attribution method must be a function (model, inputs, targets, *, …)"


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
        inputs, a list of lists ``result[target][input]``. An empty list without targets, and
        maps of shape (0, C, *space) if N = 0; the model is not called then.

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
        If the method has other parameters, the model cannot be explained, does not fit the
        inputs or does not return (N, K) floats, or the method does not return one map per
        input.
    """
    bound: Any = function
    if isinstance(bound, partial) and not bound.args:
        function, options = bound.func, {**bound.keywords, **options}
    known = _parameters(function)
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
    own = {"seed": seed, "numbers": _receiver("numbers", numbers), "parts": _receiver("parts", parts)}
    options |= {name: value for name, value in own.items() if name in known}
    _check_call(title, known, options)
    with _untouched(model, given, seed) as (twin, twins):
        if len(given[0]) and targets:
            _check_outputs(twin, twins, targets)
            maps = function(twin, twins, list(targets), **options)
        else:
            maps = [tuple(torch.empty_like(x) for x in twins) for _ in targets]
    _check_maps(title, maps, given, targets)
    # captum's occlusion always averages in float32.
    maps = [tuple(each.detach().to(x.dtype) for each, x in zip(m, given, strict=True)) for m in maps]
    return [list(of_target) if isinstance(inputs, tuple) else of_target[0] for of_target in maps]


def _parameters(function: Callable[..., Maps]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of what is not callable, and of some functions written in C
        raise HarnessError(
            f"{_METHOD}, got {type(function).__name__} {function!r}; for a registered method, call attribute(NAME, …)"
        ) from None


def _check_call(title: str, known: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    signature = inspect.Signature(list(known.values()))
    try:
        signature.bind(None, (), [], **options)
    except TypeError as error:
        raise HarnessError(f"{_METHOD}, but {title}{signature} cannot be called so: {error}") from None


def _receiver(name: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise OutOfRange(f"{name} must be a dictionary, which receives {name} by name, got {type(given).__name__}")
    return given


def _checked_targets(targets: Sequence[int]) -> list[int]:
    ordered = not isinstance(targets, bytes | bytearray | Set | Mapping)  # whose elements can be numbers as well
    try:
        found = list(targets) if ordered else [None]
        if any(isinstance(one, bool | np.bool_) or getattr(one, "dtype", None) == torch.bool for one in found):
            raise TypeError
        if any(getattr(one, "ndim", 0) for one in found):  # rows of a table
            raise TypeError
        return [operator.index(one) for one in found]  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # RuntimeError: of a tensor without values
        raise OutOfRange(
            f"targets must be a list of indices of outputs, got {targets!r}; for one output, pass [0]"
        ) from None


def _check_inputs(inputs: Inputs) -> None:
    valid = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 and _is_dense(x) for x in inputs)
    if not valid or len({len(x) for x in inputs}) != 1:
        got = ", ".join(_text_of(x) for x in inputs)
        raise HarnessError(
            f"inputs must be float tensors (N, C, *space) of equal N, or a tuple of them, got {got or 'none'}; "
            "convert them (torch.as_tensor(x, dtype=torch.float32))"
        )
    if any(0 in x.shape[1:] for x in inputs):
        got = ", ".join(_text_of(x) for x in inputs)
        raise HarnessError(f"inputs must have at least one channel and voxel, got {got}")


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor has values at all its elements: it is not sparse, nested or on the device meta."""
    return x.layout == torch.strided and not x.is_nested and not x.is_meta


def _text_of(x: object) -> str:
    if not isinstance(x, Tensor):
        return f"{type(x).__name__} {tuple(getattr(x, 'shape', ()))} {getattr(x, 'dtype', '')}".strip()
    if x.is_nested:
        return f"a nested tensor of {x.dtype}"
    kind = "" if x.layout == torch.strided else f" {x.layout}".replace("torch.", "")
    where = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{tuple(x.shape)} {x.dtype}{kind}{where}"


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
    if any(one.is_meta for one in (*model.parameters(), *model.buffers())):
        raise HarnessError(f"{what}, whose weights have no values (device meta); load them (load_state_dict)")


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
    first = tuple(x[:1].clone() for x in inputs)
    with torch.no_grad():
        output = _first_output(model, first)
    if any(not torch.equal(one.nan_to_num(), x[:1].nan_to_num()) for one, x in zip(first, inputs, strict=True)):
        raise HarnessError(
            "a model must not change its input to be explained, because others read it as well; replace operations "
            "in place (x = x * 2 instead of x *= 2, relu(x) instead of relu_(x))"
        )
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
    if not output.is_floating_point() or not _is_dense(output):
        raise HarnessError(
            f"a model must return (N, K) floats to be explained, got {_text_of(output)}; return the values from which "
            "it computes them (logits instead of a class), as a dense tensor"
        )
    for target in targets:
        if not 0 <= target < shape[1]:
            raise OutOfRange(f"`0 <= target < {shape[1]}` must hold for the outputs of the model, got {target}")


def _first_output(model: nn.Module, first: Inputs) -> Any:
    """Output for one item; an error of the model says what it was given and what its weights are."""
    try:
        return model(*first)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if "more than 1 value per channel" in str(error):
            raise HarnessError(
                "a model must compute a single item to be explained, but its batch normalisation needs several "
                f"({error}); use batch normalisation with running statistics (track_running_stats=True)"
            ) from error
        given = ", ".join(_text_of(x) for x in first)
        name, weight = next(iter(model.named_parameters()), ("", None))
        weights = "" if weight is None else f"; its first weights, {name}, are {_text_of(weight)}"
        raise HarnessError(
            f"a model must compute one item to be explained, but {type(model).__name__} fails for {given} "
            f"({first_line(error)}){weights}. Number of inputs, channels, axes, dtype and device must fit"
        ) from error


def _wrong_type(maps: Any) -> str | None:
    """What a method returned instead of a list of tuples of tensors; ``None`` if it did."""
    if not isinstance(maps, list | tuple):
        return type(maps).__name__
    for of_target in maps:
        if not isinstance(of_target, list | tuple):
            return f"{type(maps).__name__} of {type(of_target).__name__}"
        for each in of_target:
            if not isinstance(each, Tensor) or each.is_complex() or not _is_dense(each):
                dtype = ""
                if isinstance(each, Tensor):
                    dtype = " of complex numbers" if each.is_complex() else f" that is not dense, {_text_of(each)}"
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
