"""Networks: parameter counts, any image size, weights and their seed."""

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
    """31,109,954 with one channel and 288 = 32 filters of 3×3 more for each further one."""
    assert _count(unet(channels)) == 31_109_954 + 288 * (channels - 1)


def test_narrow_unet_has_eight_million_parameters() -> None:
    """Half the width has about a quarter of the parameters."""
    assert round(_count(unet(1, width=16)) / 1e6, 1) == 7.8


def test_unet_has_the_published_centre() -> None:
    """A 256×256 image is an 8×8 image of 1024 channels in the centre."""
    network, shapes = unet(1).eval(), []
    network.network.centre.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        network(torch.zeros(1, 1, 256, 256))
    assert shapes == [(1, 1024, 8, 8)]


@pytest.mark.parametrize("shape", [(16, 24), (21, 18), (5, 33)])
@pytest.mark.parametrize("name", SMALL)
def test_model_conforms(name: str, shape: tuple[int, int]) -> None:
    """Every network keeps what the harness relies on, also for sizes that do not divide."""
    check_model(SMALL[name], in_channels=2, outputs=2, shape=shape)


@pytest.mark.parametrize("name", SMALL)
def test_model_has_as_many_outputs_as_asked(name: str) -> None:
    """Three classes give three logits a pixel."""
    assert SMALL[name](1, 3)(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", SMALL)
def test_output_bias_is_the_prior_of_the_lesion_class(name: str) -> None:
    """With features of zero the logit margin is the bias."""
    network = SMALL[name](1, output_bias=-2.5)
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    assert last.bias.tolist() == [0.0, -2.5]


def test_dropout_acts_in_training_only() -> None:
    """With dropout two training passes differ; evaluation is covered by the conformance check."""
    network = unet(1, width=4, depth=2, dropout=0.5)
    x = torch.randn(4, 1, 16, 16)
    assert not torch.equal(network(x), network(x))


def test_padding_sees_zeros_and_crops_back() -> None:
    """A box filter at the edge sees the padding: hand-worked sums on a 3-wide image of ones."""
    box = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    nn.init.ones_(box.weight)
    out = Padded(box, 4)(torch.ones(1, 1, 4, 3))
    assert out[0, 0].tolist() == [[2.0, 3.0, 2.0]] * 4


def test_padding_leaves_divisible_images_alone() -> None:
    """The network gets the very tensor."""
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x

    x = torch.ones(1, 1, 8, 16)
    Padded(Spy(), 8)(x)
    assert seen[0] is x


def test_padding_works_in_three_dimensions() -> None:
    """Each axis is padded to the multiple and cropped back to its own values."""
    x = torch.arange(60.0).reshape(1, 1, 3, 4, 5)
    assert torch.equal(Padded(nn.Identity(), 4)(x), x)


def test_build_looks_a_model_up_by_its_name() -> None:
    """The stable public name gives the registered network."""
    assert _count(models.build("unet", in_channels=3, width=4, depth=2)) == _count(unet(3, width=4, depth=2))


def test_build_shows_the_near_name() -> None:
    """A typing error in the name is answered with the name."""
    with pytest.raises(UnknownName, match=r"no model is named 'unett'\. Near: .*unet"):
        models.build("unett", in_channels=1)


def test_build_shows_the_near_option() -> None:
    """A typing error in an option is answered with the option."""
    with pytest.raises(UnknownName, match=r"no option of model unet is named 'widht'\. Near: width"):
        models.build("unet", in_channels=1, widht=4)


def test_seed_determines_the_weights() -> None:
    """Equal seeds give equal weights, other seeds other ones."""
    first, same, other = (models.build("unet", seed=s, in_channels=1, width=2, depth=1).state_dict() for s in (1, 1, 2))
    key = "network.last.weight"
    assert torch.equal(first[key], same[key])
    assert not torch.equal(first[key], other[key])


def test_seeded_build_leaves_the_global_generator() -> None:
    """The stream of the weights is not the stream of anything else."""
    before = torch.get_rng_state()
    models.build("unet", seed=1, in_channels=1, width=2, depth=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_unseeded_build_follows_the_global_generator() -> None:
    """Without a seed two networks in a row have different weights."""
    first, second = (models.build("unet", in_channels=1, width=2, depth=1).state_dict() for _ in range(2))
    assert not torch.equal(first["network.last.weight"], second["network.last.weight"])
