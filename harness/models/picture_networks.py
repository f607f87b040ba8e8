"""Networks for pictures: a small convolutional network, and VGG19 with the names of torchvision's state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.types import FilePath
from harness.models.pretrained import load_backbone

__all__ = ["VGG19", "small_cnn", "vgg19"]

# Channels of the convolutions of VGG19, relative to the first one; 0 for maximum pooling.
_VGG19 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 4, 0, 8, 8, 8, 8, 0, 8, 8, 8, 8, 0)
_POOLINGS = 5


@MODELS.register("small_cnn", source="")
def small_cnn(
    in_channels: int = 3,
    outputs: int = 1,
    image_shape: tuple[int, ...] = (96, 96),
    *,
    width: Annotated[int, Gt(0), Le(1024)] = 16,
    blocks: Annotated[int, Ge(1), Le(12)] = 4,
) -> nn.Module:
    """A few 3×3 convolutions with batch normalisation, ReLU and pooling, and a linear layer on the last feature map.

    The linear layer sees positions, so that the network can learn that the centre decides.

    Parameters
    ----------
    in_channels : number of channels, 3 for RGB pictures
    outputs : number of outputs of all targets, K
    image_shape : height and width in pixels
    width : channels of the first block; doubled in the second and third
    blocks : number of blocks, each of which halves the resolution

    Returns
    -------
    nn.Module
        Maps (N, in_channels, H, W) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If pictures are too small for the blocks.
    """
    height, width_px = _reduced(image_shape, blocks, "small_cnn")
    layers: list[nn.Module] = []
    ins = in_channels
    for block in range(blocks):
        outs = width * 2 ** min(block, 2)
        layers += [nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(), nn.MaxPool2d(2)]
        ins = outs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(ins * height * width_px, outputs))


@MODELS.register("vgg19", source="Simonyan & Zisserman 2015, arXiv:1409.1556", pretrained=True)
def vgg19(
    in_channels: int = 3,
    outputs: int = 1,
    image_shape: tuple[int, ...] = (96, 96),
    *,
    width: Annotated[int, Gt(0), Le(512)] = 64,
    weights: FilePath | None = None,
) -> nn.Module:
    """VGG19 without batch normalisation, with one linear layer on its last feature map.

    For pictures of 96×96 pixels, the last feature map is 512×3×3. The convolutions have
    20,024,384 parameters.

    Parameters
    ----------
    in_channels : number of channels, 3 for RGB pictures
    outputs : number of outputs of all targets, K
    image_shape : height and width in pixels
    width : channels of the first convolution
    weights : file with initial weights of the convolutions (safetensors, or a state dict that
        ``torch.save`` wrote, of which only tensors are read) with torchvision's names; its
        ``classifier`` is ignored. ``null`` draws them at random

    Returns
    -------
    nn.Module
        Maps (N, in_channels, H, W) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If a side of the pictures has fewer than 32 pixels.

    Notes
    -----
    The published classifier of three layers has 120 million parameters; the study of
    multi-scale LIME does not state its own. Random weights are drawn as in torchvision.
    """
    return VGG19(in_channels, outputs, _reduced(image_shape, _POOLINGS, "vgg19"), width)


class VGG19(nn.Module):
    """VGG19 with one linear layer.

    Parameters
    ----------
    in_channels, outputs, width : see :func:`vgg19`
    space : height and width of the last feature map
    """

    def __init__(self, in_channels: int, outputs: int, space: tuple[int, int], width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ins = in_channels
        for factor in _VGG19:
            if factor == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(ins, factor * width, 3, padding=1), nn.ReLU()]
            ins = factor * width
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(ins * space[0] * space[1], outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(torch.as_tensor(module.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, outputs)."""
        outputs: Tensor = self.head(self.flatten(self.features(x)))
        return outputs

    def load_pretrained(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the weights of the convolutions; see :class:`harness.models.pretrained.Pretrained`."""
        return load_backbone(self, state, own=("head.",), ignored=("classifier.",))


def _reduced(shape: tuple[int, ...], halvings: int, name: str) -> tuple[int, int]:
    """Height and width of a feature map after some halvings.

    Raises
    ------
    OutOfRange
        If nothing is left.
    """
    if len(shape) != 2 or min(shape) < 2**halvings:
        raise OutOfRange(f"{name} needs pictures of at least {2**halvings} pixels along both axes, got {shape}")
    return shape[0] >> halvings, shape[1] >> halvings
