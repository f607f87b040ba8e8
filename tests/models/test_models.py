"""Networks for segmentation: parameter counts, image sizes, weights and seeds."""

from functools import partial

import pytest
import torch
from torch import nn

from harness import models
from harness.core.errors import UnknownName
from harness.models.padding import Padded
from harness.models.unet import basic_unet, unet
from harness.testing import check_model

SMALL = {"unet": partial(unet, width=4, depth=3), "basic_unet": partial(basic_unet, width=4)}


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_unet_has_the_published_number_of_parameters(channels: int) -> None:
    """The count is 31,109,954 with one channel, plus 288 = 32 filters of 3×3 for each further channel."""
    assert _count(unet(channels)) == 31_109_954 + 288 * (channels - 1)


def test_half_the_width_has_a_quarter_of_the_parameters() -> None:
    """Half the width gives about a quarter of the parameters."""
    assert round(_count(unet(1, width=16)) / 1e6, 1) == 7.8


def test_unet_has_the_published_centre() -> None:
    """A 256×256 image becomes an 8×8 image of 1024 channels in the centre."""
    network, shapes = unet(1).eval(), []
    network.network.centre.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        network(torch.zeros(1, 1, 256, 256))
    assert shapes == [(1, 1024, 8, 8)]


@pytest.mark.parametrize("shape", [(16, 24), (21, 18), (5, 33)])
@pytest.mark.parametrize("name", SMALL)
def test_model_conforms(name: str, shape: tuple[int, int]) -> None:
    """Every network passes the conformance checks, also for sizes that are not divisible."""
    check_model(SMALL[name], in_channels=2, outputs=2, shape=shape)


@pytest.mark.parametrize("name", SMALL)
def test_model_has_the_given_number_of_outputs(name: str) -> None:
    """Three classes give three logits per pixel."""
    assert SMALL[name](1, 3)(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", SMALL)
def test_output_bias_is_the_prior_of_the_lesion_class(name: str) -> None:
    """With features of zero, the logit margin of the lesion class is the bias."""
    network = SMALL[name](1, output_bias=-2.5)
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    assert last.bias.tolist() == [0.0, -2.5]


def test_dropout_is_active_in_training() -> None:
    """Two training passes with dropout differ."""
    network = unet(1, width=4, depth=2, dropout=0.5)
    x = torch.randn(4, 1, 16, 16)
    assert not torch.equal(network(x), network(x))


def test_padding_adds_zeros_and_crops_back() -> None:
    """A box filter on an image of ones, 3 voxels wide, sums zeros beyond the edge."""
    box = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    nn.init.ones_(box.weight)
    out = Padded(box, 4)(torch.ones(1, 1, 4, 3))
    assert out[0, 0].tolist() == [[2.0, 3.0, 2.0]] * 4


def test_padding_passes_divisible_images_on() -> None:
    """An image of divisible size is passed to the network without a copy."""
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x

    x = torch.ones(1, 1, 8, 16)
    Padded(Spy(), 8)(x)
    assert seen[0] is x


def test_padding_works_in_three_dimensions() -> None:
    """Each axis is padded to the next multiple and cropped back to its own values."""
    x = torch.arange(60.0).reshape(1, 1, 3, 4, 5)
    assert torch.equal(Padded(nn.Identity(), 4)(x), x)


def test_build_finds_a_model_by_name() -> None:
    """``build`` finds a registered network by its name."""
    assert _count(models.build("unet", in_channels=3, width=4, depth=2)) == _count(unet(3, width=4, depth=2))


def test_build_refuses_an_unknown_name() -> None:
    """An unknown name is refused with suggestions."""
    with pytest.raises(UnknownName, match=r"no model is named 'unett'\. Near: .*unet"):
        models.build("unett", in_channels=1)


def test_build_refuses_an_unknown_option() -> None:
    """An unknown option is refused with suggestions."""
    with pytest.raises(UnknownName, match=r"no option of model unet is named 'widht'\. Near: width"):
        models.build("unet", in_channels=1, widht=4)


def test_seed_determines_the_weights() -> None:
    """Equal seeds give equal weights, and different seeds different weights."""
    first, same, other = (models.build("unet", seed=s, in_channels=1, width=2, depth=1).state_dict() for s in (1, 1, 2))
    key = "network.last.weight"
    assert torch.equal(first[key], same[key])
    assert not torch.equal(first[key], other[key])


def test_seeded_build_keeps_the_global_random_state() -> None:
    """Building with a seed does not change the global random state."""
    before = torch.get_rng_state()
    models.build("unet", seed=1, in_channels=1, width=2, depth=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unseeded_build_uses_the_global_random_state() -> None:
    """Without a seed, two networks have different weights."""
    first, second = (models.build("unet", in_channels=1, width=2, depth=1).state_dict() for _ in range(2))
    assert not torch.equal(first["network.last.weight"], second["network.last.weight"])
