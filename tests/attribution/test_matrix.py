"""Every registered method on every kind of network."""

import inspect

import pytest
import torch

from harness.attribution import attribute
from harness.core.registry import ATTRIBUTIONS
from harness.testing import check_attribution, example_image, example_network

from .small import SMALL

CASES = {
    "2D": (example_network(2), example_image(3, 2, 12, 11), [0]),
    "3D": (example_network(3), example_image(2, 2, 8, 7, 9), [0]),
    "several outputs": (example_network(2, outputs=4), example_image(2, 2, 10, 13), [3, 1]),
}


# Methods that need a special kind of model, such as one with weights per voxel, are tested with those models.
NAMES = [name for name in ATTRIBUTIONS.names() if not ATTRIBUTIONS.get(name).facts.get("needs")]


def _draws(name: str) -> bool:
    return "seed" in inspect.signature(ATTRIBUTIONS.get(name).function).parameters


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_map_has_its_inputs_shape(name: str, case: str) -> None:
    """Each target gets one finite map with the shape and dtype of the input."""
    model, inputs, targets = CASES[case]
    maps = attribute(name, model, inputs, targets, **({} if case == "2D" else SMALL.get(name, {})))
    assert [(each.shape, each.dtype) for each in maps] == [(inputs.shape, inputs.dtype)] * len(targets)


@pytest.mark.parametrize("name", NAMES)
def test_method_conforms(name: str) -> None:
    """Every method passes the conformance checks and has the properties that its decorator declares."""
    check_attribution(ATTRIBUTIONS.get(name).function, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", [name for name in NAMES if not _draws(name)])
def test_single_precision_agrees_with_double(name: str) -> None:
    """Float32 and float64 give the same map up to rounding; random draws depend on the precision."""
    model, inputs, targets = CASES["2D"]
    exact = attribute(name, model, inputs, targets)[0]
    single = attribute(name, example_network(2).float(), inputs.float(), targets)[0]
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_no_items_give_no_maps(name: str) -> None:
    """Empty input gives an empty map."""
    assert attribute(name, example_network(2), example_image(0, 2, 9, 9), [0])[0].shape == (0, 2, 9, 9)


@pytest.mark.parametrize("name", NAMES)
def test_summary_ends_with_a_period(name: str) -> None:
    """The first docstring line, shown by ``harness list``, describes the method."""
    assert ATTRIBUTIONS.get(name).summary.endswith(".")
