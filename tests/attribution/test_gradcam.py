"""The layer that Grad-CAM uses."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.errors import HarnessError, UnknownName
from harness.testing import Formula, example_image, example_network

X = example_image(1, 2, 10, 9)


class Swapped(nn.Module):
    """Two convolutions that run in the opposite order of their definition."""

    def __init__(self) -> None:
        super().__init__()
        self.later = nn.Conv2d(3, 1, 3)
        self.earlier = nn.Conv2d(2, 3, 3)
        self.output = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.later(self.earlier(x))).flatten(2).mean(2)  # type: ignore[no-any-return]


def _swapped() -> nn.Module:
    torch.manual_seed(0)
    return Swapped().double()


def test_the_default_is_the_last_wide_convolution_that_runs() -> None:
    """The default layer is the last wide convolution that is executed, not the last one defined or the 1×1 output."""
    model = _swapped()
    default, named = (attribute("gradcam", model, X, [0], positive=False, **o)[0] for o in ({}, {"layer": "later"}))
    torch.testing.assert_close(default, named)


def test_another_layer_gives_another_map() -> None:
    """Selecting another layer gives another map."""
    model = _swapped()
    first, second = (attribute("gradcam", model, X, [0], positive=False, layer=n)[0] for n in ("earlier", "later"))
    assert not torch.allclose(first, second)


def test_a_wrapped_layer_is_found_by_the_end_of_its_name() -> None:
    """A layer inside a wrapping module is found by the end of its name."""
    model = nn.Sequential(_swapped())
    torch.testing.assert_close(
        attribute("gradcam", model, X, [0], layer="later")[0], attribute("gradcam", model, X, [0], layer="0.later")[0]
    )


def test_all_channels_share_the_map() -> None:
    """All input channels receive the same Grad-CAM map."""
    found = attribute("gradcam", example_network(2), X, [0], positive=False)[0]
    torch.testing.assert_close(found[:, 0], found[:, 1])


def test_default_map_has_no_negative_values() -> None:
    """By default, negative values are set to zero."""
    signed = attribute("gradcam", example_network(2), X, [0], positive=False)[0]
    assert float(signed.min()) < 0 <= float(attribute("gradcam", example_network(2), X, [0])[0].min())


def test_unknown_layer_is_refused_with_suggestions() -> None:
    """An unknown layer raises an error that suggests the nearest module name."""
    with pytest.raises(UnknownName, match=r"no layer is named 'latter'\. Near: later"):
        attribute("gradcam", _swapped(), X, [0], layer="latter")


def test_an_ambiguous_layer_is_refused() -> None:
    """An ambiguous layer name is refused, and the message lists both modules."""
    model = nn.Sequential(
        nn.Sequential(OrderedDict(wide=nn.Conv2d(2, 2, 3))),
        nn.Sequential(OrderedDict(wide=nn.Conv2d(2, 1, 3))),
        nn.Flatten(),
    )
    with pytest.raises(HarnessError, match=r"only one layer may match 'wide', got 0\.wide, 1\.wide; use a longer name"):
        attribute("gradcam", model, X.float(), [0], layer="wide")


def test_a_model_without_convolution_is_refused() -> None:
    """A model without convolutions is refused, and the message explains how to name another layer."""
    with pytest.raises(HarnessError, match=r"needs a convolution wider than one voxel.*`layer`"):
        attribute("gradcam", Formula(lambda x: x.flatten(1)), X, [0])
