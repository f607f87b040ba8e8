"""Which layer Grad-CAM looks at."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.errors import HarnessError, UnknownName
from harness.testing import Formula, example_image, example_network

X = example_image(1, 2, 10, 9)


class Swapped(nn.Module):
    """Two convolutions that run in the other order than they are written."""

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
    """Neither the one written last nor the 1×1 output convolution."""
    model = _swapped()
    default, named = (attribute("gradcam", model, X, [0], positive=False, **o)[0] for o in ({}, {"layer": "later"}))
    torch.testing.assert_close(default, named)


def test_another_layer_gives_another_map() -> None:
    """The option is used."""
    model = _swapped()
    first, second = (attribute("gradcam", model, X, [0], positive=False, layer=n)[0] for n in ("earlier", "later"))
    assert not torch.allclose(first, second)


def test_a_wrapped_layer_is_found_by_the_end_of_its_name() -> None:
    """The module that reduces the output to scalars need not be known."""
    model = nn.Sequential(_swapped())
    torch.testing.assert_close(
        attribute("gradcam", model, X, [0], layer="later")[0], attribute("gradcam", model, X, [0], layer="0.later")[0]
    )


def test_all_channels_share_the_map() -> None:
    """Grad-CAM knows the place but not the channel."""
    found = attribute("gradcam", example_network(2), X, [0], positive=False)[0]
    torch.testing.assert_close(found[:, 0], found[:, 1])


def test_only_evidence_for_the_output_is_kept() -> None:
    """By default no value is negative."""
    signed = attribute("gradcam", example_network(2), X, [0], positive=False)[0]
    assert float(signed.min()) < 0 <= float(attribute("gradcam", example_network(2), X, [0])[0].min())


def test_an_unknown_layer_shows_the_near_one() -> None:
    """The modules of the model are listed."""
    with pytest.raises(UnknownName, match=r"no layer is named 'latter'\. Near: later"):
        attribute("gradcam", _swapped(), X, [0], layer="latter")


def test_an_ambiguous_layer_is_refused() -> None:
    """Two modules whose names end alike are both shown."""
    model = nn.Sequential(
        nn.Sequential(OrderedDict(wide=nn.Conv2d(2, 2, 3))),
        nn.Sequential(OrderedDict(wide=nn.Conv2d(2, 1, 3))),
        nn.Flatten(),
    )
    with pytest.raises(HarnessError, match=r"only one layer may match 'wide', got 0\.wide, 1\.wide; use a longer name"):
        attribute("gradcam", model, X.float(), [0], layer="wide")


def test_a_model_without_convolution_is_refused() -> None:
    """The error says how to name another layer."""
    with pytest.raises(HarnessError, match=r"needs a convolution wider than one voxel.*`layer`"):
        attribute("gradcam", Formula(lambda x: x.flatten(1)), X, [0])
