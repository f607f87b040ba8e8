"""The small CNN and VGG19."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.core.errors import OutOfRange, RequestError
from harness.models.picture_networks import VGG19, small_cnn, vgg19

# Positions of the convolutions among torchvision's `features` of VGG19, with their channels.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    16: (256, 256), 19: (256, 512), 21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512), 30: (512, 512),
    32: (512, 512), 34: (512, 512),
}  # fmt: skip


def state(width: int = 64) -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names, and its classifier."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for place, (ins, outs) in CONVOLUTIONS.items():
        ins = ins if ins == 3 else ins * width // 64
        found[f"features.{place}.weight"] = torch.randn(outs * width // 64, ins, 3, 3, generator=rng)
        found[f"features.{place}.bias"] = torch.randn(outs * width // 64, generator=rng)
    return {**found, "classifier.6.weight": torch.zeros(1000, 4096)}


def test_vgg19_has_the_published_size_and_names() -> None:
    """20,024,384 parameters of convolutions, 512×3×3 features for 96×96, and torchvision's names."""
    network = vgg19()
    assert isinstance(network, VGG19)
    assert sum(one.numel() for one in network.features.parameters()) == 20_024_384
    assert network.features(torch.zeros(1, 3, 96, 96)).shape == (1, 512, 3, 3) and network.head.in_features == 4608
    own = {name: tuple(one.shape) for name, one in network.features.state_dict(prefix="features.").items()}
    assert own == {name: tuple(one.shape) for name, one in state().items() if name.startswith("features")}


def test_vgg19_loads_a_state_dict() -> None:
    """Convolutions are loaded, the classifier is ignored and named, the own head stays."""
    network, given = vgg19(width=8), state(8)
    assert isinstance(network, VGG19)
    head = network.head.weight.clone()
    assert network.load_pretrained(given) == ("classifier.6.weight",)
    assert torch.equal(network.features[5].weight, given["features.5.weight"]) and torch.equal(
        network.head.weight, head
    )
    del given["features.0.bias"]
    with pytest.raises(RequestError, match=r"missing: features\.0\.bias"):
        network.load_pretrained(given)


def test_small_cnn() -> None:
    """Channels double twice, and each block halves the resolution."""
    network = small_cnn(3, 2, (96, 96), width=8)
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 2)
    assert [one.out_channels for one in network if isinstance(one, torch.nn.Conv2d)] == [8, 16, 32, 32]
    assert network[-1].in_features == 32 * 6 * 6


@pytest.mark.parametrize(("build", "least"), [(small_cnn, 16), (vgg19, 32)])
def test_small_pictures_are_refused(build: object, least: int, tmp_path: Path) -> None:
    """Pictures must be large enough for all poolings."""
    assert callable(build)
    with pytest.raises(OutOfRange, match=f"needs pictures of at least {least} pixels along both axes"):
        build(3, 1, (least - 1, 96))
