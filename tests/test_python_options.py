"""Options given in Python are checked like those of the command line: every option of every registered component."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.registry import KINDS, MODELS
from harness.core.targets import Target
from harness.core.types import Input
from harness.core.values import hints_of, option_value, options_of
from harness.metrics import compute
from harness.metrics.metric_inputs import METRIC_INPUTS
from harness.models import build

CANDIDATES: tuple[Any, ...] = (
    *(None, True, "no such value", "", -1, 0, 0.5, 2.5, 1e9, math.nan, math.inf, -math.inf, np.bool_(True)),
    *([], ["a"], [math.nan], [1, 2, 3, 4, 5], [0.5], [True], {}, object()),
)
YES_NO = ("yes", "no", "true", "false", "on", "off", "y", "n", "t", "f", "1", "0")
COMPONENTS = [(kind, name) for kind, registry in KINDS.items() for name in registry.names()]


def fits(hint: Any, value: Any) -> bool:
    """Whether a value has the type and the bounds of a hint, written from their definitions."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return fits(members[0], value) and all(within(bound, value) for bound in members[1:])
    if origin in (typing.Union, types.UnionType):
        return any(fits(member, value) for member in members)
    if origin is Literal:
        return any(type(value) is type(member) and value == member for member in members)
    if origin is tuple and members[-1:] != (...,):
        return isinstance(value, list) and len(value) == len(members) and all(map(fits, members, value))
    if origin in (tuple, list):
        return isinstance(value, list) and all(fits(members[0], one) for one in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (hint is float or value == int(value))
    if hint is bool:
        return isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)) or value in YES_NO
    if hint is Path:
        return isinstance(value, str) and value != ""
    return hint is Any or (isinstance(value, hint) if hint in (str, Tensor) else value is None)


def within(bound: Any, value: Any) -> bool:
    """Whether a number is within one bound."""
    return (
        not value <= getattr(bound, "gt", -math.inf)
        and not value < getattr(bound, "ge", -math.inf)
        and not value >= getattr(bound, "lt", math.inf)
        and not value > getattr(bound, "le", math.inf)
    )


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids="-".join)
def test_option_accepts_exactly_the_values_of_its_type(kind: str, name: str) -> None:
    """Values of another type, NaN, infinity and values outside the bounds are refused; all others are accepted."""
    function = KINDS[kind].get(name).function
    for option in options_of(function):
        hint = hints_of(function)[option]
        for value in CANDIDATES:
            if fits(hint, value):
                option_value(function, option, value, option)
            else:
                with pytest.raises(OutOfRange, match=f"{option} must be"):
                    option_value(function, option, value, option)
                    pytest.fail(f"{option}={value!r} was accepted")


MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
X = torch.rand(1, 1, 6, 6)
MODEL(X)


def supplied(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments without default that the harness supplies to a model builder."""
    shapes = {"in_channels": 1, "inputs": (Input("image", ("a",), (16, 16, 16)),), "targets": (Target("y", "number"),)}
    parameters = inspect.signature(function).parameters.values()
    return {one.name: shapes[one.name] for one in parameters if one.default is inspect.Parameter.empty}


def call(kind: str, name: str, option: str, value: Any) -> None:
    """Use a component through the function that is public for its kind."""
    if kind == "attribution":
        attribute(name, MODEL, X, [0], **{option: value})
    elif kind == "metric":
        compute(name, **{option: value})
    else:
        build(name, **{**supplied(KINDS[kind].get(name).function), option: value})


@pytest.mark.parametrize(
    ("kind", "name"), [one for one in COMPONENTS if one[0] in ("attribution", "metric", "model")], ids="-".join
)
def test_public_functions_refuse_what_the_command_line_refuses(kind: str, name: str) -> None:
    """Before anything is computed."""
    function = KINDS[kind].get(name).function
    for option in options_of(function):
        for value in CANDIDATES:
            if not fits(hints_of(function)[option], value):
                with pytest.raises(OutOfRange, match=rf"{option} of {kind} {name} must be .*, got"):
                    call(kind, name, option, value)
                    pytest.fail(f"{option}={value!r} was accepted")


@pytest.mark.parametrize("kind", ["attribution", "metric", "model"])
@pytest.mark.parametrize("name", [None, 5, b"saliency", ["saliency"], {}, ("dice",)], ids=str)
def test_names_must_be_text(kind: str, name: Any) -> None:
    """Anything else is no name of a component."""
    with pytest.raises(UnknownName, match=f"no {kind} is named {re.escape(repr(name))}"):
        {"attribution": lambda: attribute(name, MODEL, X, [0]), "metric": lambda: compute(name)}.get(
            kind, lambda: build(name)
        )()


JUNK: tuple[Any, ...] = (
    *(True, -1, 2.5, 1j, "1,1,1", b"x", [[1], [1, 2]], {"a": "x"}, {1: 2}, object(), int, np.zeros((2, 2))),
    *(np.array("a"), np.array([None]), np.ones((3, 3, 3)) * 1j, np.array(["2020-01-01"], "M8[D]"), 10**400, {1, 2, 3}),
)


@pytest.mark.parametrize("key", [key for key in METRIC_INPUTS if not key.endswith("_lesions")])
@pytest.mark.parametrize("name", ["dice", "average_hausdorff", "icc_count", "roi_accuracy", "absolute_error"])
def test_inputs_of_metrics_of_other_types_are_refused(name: str, key: str) -> None:
    """Every input of a metric is a valid value, or refused with its name."""
    for value in JUNK:
        try:
            compute(name, **{key: value})
        except RequestError as error:
            assert len(str(error)) > 20


@pytest.mark.parametrize("spacing", ["1,1,1", 1, [1, 1], ["1", "1", "1"], [True] * 3, [0, 1, 1]], ids=str)
def test_spacing_must_be_three_numbers(spacing: Any) -> None:
    """Text is not taken apart."""
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(OutOfRange, match="`spacing_mm` must be"):
        compute("average_hausdorff", prediction=mask, target=mask, spacing_mm=spacing)


@pytest.mark.parametrize("name", MODELS.names())
def test_sizes_of_models_have_upper_bounds(name: str) -> None:
    """A typing error such as depth=50 is refused at once, instead of filling the memory."""
    function = MODELS.get(name).function
    sizes = {"bins", "blocks", "boxes", "degree", "depth", "features", "hidden", "width", "widths"}
    for option in sizes.intersection(options_of(function)):
        with pytest.raises(OutOfRange, match=f"{option} .* must be"):
            build(name, **{**supplied(function), option: (10**6, 10**6) if option == "widths" else 10**6})


@pytest.mark.parametrize("sizes", [{"depth": 50}, {"depth": 10}, {"width": 1024, "depth": 5}])
def test_unet_is_bounded_by_its_bottleneck(sizes: dict[str, int]) -> None:
    """Each value alone can be valid."""
    with pytest.raises(
        OutOfRange, match=r"depth of model unet must be a whole number .*<= 10|`width \* 2\*\*depth <= 4"
    ):
        build("unet", in_channels=1, outputs=1, **sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "in_channels of model unet must be given"),
        ({"in_channels": 0}, "in_channels must be a whole number > 0 and <= 65536, got 0"),
        ({"in_channels": 1.5}, "in_channels of model unet must be a whole number, got 1.5"),
        ({"in_channels": 1, "outputs": -2}, "outputs must be a whole number > 0 and <= 65536, got -2"),
        ({"in_channels": 10**9}, "in_channels must be a whole number > 0 and <= 65536, got 1000000000"),
        ({"in_channels": 1, "seed": 0.5}, "seed must be a whole number >= 0, got 0.5"),
        ({"in_channels": 1, "seed": -1}, "seed must be a whole number >= 0, got -1"),
    ],
)
def test_models_need_valid_sizes(options: dict[str, Any], message: str) -> None:
    """Parameters that the harness supplies are checked as well."""
    with pytest.raises(RequestError, match=message):
        build("unet", **options)


@pytest.mark.parametrize(("value", "absolute"), [("no", False), ("yes", True), (np.bool_(False), False)])
def test_values_are_converted(value: Any, absolute: bool) -> None:
    """As on the command line: text that is not empty would otherwise be true."""
    expected = attribute("saliency", MODEL, X, [0], absolute=absolute)
    assert torch.equal(attribute("saliency", MODEL, X, [0], absolute=value)[0], expected[0])


def test_numbers_of_numpy_are_numbers() -> None:
    """As scalars and as one number per channel."""
    one, other = (
        attribute("integrated_gradients", MODEL, X, [0], steps=steps, baseline=baseline)
        for steps, baseline in ((4, [0.5]), (np.int64(4), np.array([0.5])))
    )
    assert torch.equal(one[0], other[0])


def test_options_of_a_wrapped_method_are_checked() -> None:
    """Also those that a noise tunnel passes on."""
    with pytest.raises(OutOfRange, match="steps of attribution integrated_gradients must be a whole number > 0, got 0"):
        attribute("noise_tunnel", MODEL, X, [0], method="integrated_gradients", options={"steps": 0})
    with pytest.raises(UnknownName, match="step"):
        attribute("noise_tunnel", MODEL, X, [0], method="integrated_gradients", options={"step": 3})
