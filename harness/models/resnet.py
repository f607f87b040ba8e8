"""2D ResNet18 for pictures, with the names of torchvision's state dict.

The network consists of modules without control flow that depends on values, so that
``torch.fx`` can trace it, and each ReLU is a separate module, as required by DeepLIFT and
layer-wise relevance propagation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.targets import Target
from harness.core.types import FilePath
from harness.core.values import Supplied
from harness.models.pretrained import load_backbone

__all__ = ["BasicBlock", "ResNet18", "resnet18"]

Activation = Literal["none", "leaky_relu"]

_BLOCKS = 2  # basic blocks in each of the four layers
_SLOPE = 0.01  # of the leaky ReLU for negative values, the default of torch


@MODELS.register("resnet18", source="He et al. 2016, doi:10.1109/CVPR.2016.90", pretrained=True)
def resnet18(
    in_channels: int = 3,
    outputs: int = 1,
    *,
    targets: Annotated[Sequence[Target], Supplied()] = (),
    width: Annotated[int, Gt(0), Le(512)] = 64,
    hidden: Annotated[int, Ge(0), Le(65536)] = 512,
    number_activation: Activation = "none",
    weights: FilePath | None = None,
) -> nn.Module:
    """2D ResNet18 with a hidden layer and a head for each target.

    A 7×7 convolution with stride 2, 3×3 max pooling with stride 2, four layers of two
    basic blocks with 64, 128, 256 and 512 channels, of which the last three have stride 2,
    global average pooling, a linear layer of 512 units with ReLU, and a linear layer with
    the outputs of all targets. The backbone has 11,176,512 parameters. For pictures of
    224×224 pixels, the last feature map has 7×7.

    Parameters
    ----------
    in_channels : number of channels, 3 for RGB pictures
    outputs : number of outputs of all targets, K
    targets : targets, in the order of the outputs
    width : channels of the first layer; doubled in each further layer
    hidden : number of units of the hidden layer; 0 for no hidden layer
    number_activation : activation of the outputs of targets that are numbers; all other
        outputs are logits
    weights : file with initial weights of the backbone (safetensors, or a state dict that
        ``torch.save`` wrote, of which only tensors are read) with torchvision's names; the
        classifier ``fc`` is ignored. ``null`` draws them at random

    Returns
    -------
    nn.Module
        Maps (N, in_channels, H, W) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If there is an activation of numbers but the targets are unknown, or do not have
        this number of outputs.

    Notes
    -----
    Random weights are drawn as in torchvision: convolutions after He et al. 2015, by
    fan-out. The networks of torchvision expect pictures with the mean and standard
    deviation of ImageNet; this project's adapter gives values in [0, 1], as the study did.
    """
    known = sum(target.width for target in targets)
    if (targets or number_activation != "none") and known != outputs:
        raise OutOfRange(
            f"`outputs == sum of the widths of targets` must hold for resnet18, got outputs={outputs} and {known} of "
            f"{', '.join(target.name for target in targets) or 'no targets'}; give all targets"
        )
    numbers = [target.kind == "number" for target in targets for _ in range(target.width)]
    return ResNet18(in_channels, outputs, width, hidden, numbers if number_activation == "leaky_relu" else ())


class BasicBlock(nn.Module):
    """Basic block: ReLU of the sum of two 3×3 convolutions and a skip connection."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.downsample = nn.Sequential()
        if ins != outs or stride != 1:
            self.downsample.append(nn.Conv2d(ins, outs, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, ⌈H / stride⌉, ⌈W / stride⌉)."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(branch + self.downsample(x))
        return out


class ResNet18(nn.Module):
    """ResNet18 with a hidden layer and one linear layer for all targets.

    Parameters
    ----------
    in_channels, outputs, width, hidden : see :func:`resnet18`
    numbers : (K,) whether an output has a leaky ReLU; empty for none
    """

    def __init__(self, in_channels: int, outputs: int, width: int, hidden: int, numbers: Sequence[bool]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(8 * width, hidden), nn.ReLU()) if hidden else nn.Sequential()
        self.heads = nn.Linear(hidden or 8 * width, outputs)
        self.activation = _LeakyNumbers(numbers) if any(numbers) else nn.Sequential()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, outputs)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        outputs: Tensor = self.activation(self.heads(self.hidden(self.flatten(self.avgpool(x)))))
        return outputs

    def load_pretrained(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the weights of the backbone; see :class:`harness.models.pretrained.Pretrained`."""
        return load_backbone(self, state, own=("hidden.", "heads.", "activation."), ignored=("fc.",))


class _LeakyNumbers(nn.Module):
    """Leaky ReLU of the outputs that are numbers."""

    numbers: Tensor

    def __init__(self, numbers: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(list(numbers)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K) → (N, K)."""
        return torch.where(self.numbers, nn.functional.leaky_relu(x, _SLOPE), x)


def _layer(ins: int, outs: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outs, outs, 1) for _ in range(_BLOCKS - 1)]
    return nn.Sequential(BasicBlock(ins, outs, stride), *rest)
