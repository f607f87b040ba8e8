"""The small network and VGG19: sizes, names of torchvision's state dict, initial weights."""

from __future__ import annotations

import pytest
import torch

from harness.core.errors import OutOfRange, RequestError
from harness.models.picture_networks import small_cnn, vgg19
from harness.testing import check_model

# Index of each convolution in torchvision's vgg19().features, and its numbers of input and output channels.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    16: (256, 256), 19: (256, 512), 21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512), 30: (512, 512),
    32: (512, 512), 34: (512, 512),
}  # fmt: skip


def test_vgg19_has_the_names_and_shapes_of_torchvision() -> None:
    """A published state dict fits without renaming."""
    network = vgg19()
    found = {name: tuple(one.shape) for name, one in network.state_dict().items() if not name.startswith("head.")}
    expected = {f"features.{n}.weight": (outs, ins, 3, 3) for n, (ins, outs) in CONVOLUTIONS.items()}
    assert found == expected | {f"features.{n}.bias": (outs,) for n, (_, outs) in CONVOLUTIONS.items()}


def test_vgg19_has_the_published_number_of_parameters() -> None:
    """20,024,384 in the convolutions, and 512 · 3 · 3 features for patches of 96 × 96 pixels."""
    network = vgg19(3, 1)
    own = {name: one.numel() for name, one in network.named_parameters()}
    assert sum(count for name, count in own.items() if name.startswith("features.")) == 20_024_384
    assert tuple(dict(network.named_parameters())["head.weight"].shape) == (1, 4608)


def test_vgg19_starts_from_given_weights() -> None:
    """The published classifier is ignored, and the network computes what its layers compute."""
    torch.manual_seed(0)
    source, network = vgg19(width=4), vgg19(width=4)
    state = {name: one for name, one in source.state_dict().items() if name.startswith("features.")}
    ignored = network.load_pretrained(state | {"classifier.0.weight": torch.zeros(2, 2)})  # type: ignore[operator]
    assert ignored == ("classifier.0.weight",)
    x = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(network.features(x), source.features(x))  # type: ignore[operator]


def test_vgg19_lists_weights_that_do_not_fit() -> None:
    """Another width, and a name that is missing."""
    state = {name: one for name, one in vgg19(width=8).state_dict().items() if name != "features.0.bias"}
    with pytest.raises(RequestError, match=r"features\.0\.bias[\s\S]*features\.34\.weight"):
        vgg19(width=4).load_pretrained(state)  # type: ignore[operator]


@pytest.mark.parametrize(("build", "shape"), [(small_cnn, (20, 33)), (vgg19, (33, 40))])
def test_networks_fulfil_the_contract(build, shape) -> None:
    """Shapes, determinism, and independence of items."""
    check_model(build, in_channels=3, outputs=2, shape=shape, image_shape=shape, width=4)


@pytest.mark.parametrize(("build", "smallest"), [(small_cnn, 16), (vgg19, 32)])
def test_small_pictures_are_refused(build, smallest: int) -> None:
    """Each pooling halves the resolution."""
    build(3, 1, (smallest, smallest), width=2)
    with pytest.raises(OutOfRange, match=f"at least {smallest} pixels along both axes"):
        build(3, 1, (smallest - 1, 96), width=2)


def test_small_cnn_sees_positions() -> None:
    """A spot in the centre and one in a corner give different outputs."""
    torch.manual_seed(0)
    network = small_cnn(3, 1, (32, 32), width=4).eval()
    centre, corner = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    centre[..., 14:18, 14:18], corner[..., :4, :4] = 1, 1
    assert not torch.allclose(network(centre), network(corner), atol=1e-4)
