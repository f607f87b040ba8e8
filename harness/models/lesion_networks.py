"""3D networks that predict scores from whole-brain lesion masks.

The CNN and the residual CNN start with a large strided convolution. The 3D ResNet10 is
that of MedicalNet. All networks are sequences of modules without control flow, so that
``torch.fx`` can trace them, and each ReLU is a separate module, as required by DeepLIFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS

__all__ = ["ResidualBlock", "cnn", "residual_cnn", "resnet10"]

Activation = Literal["none", "sigmoid"]
Width = Annotated[int, Gt(0), Le(1024)]


@MODELS.register("cnn", source="the publication's CNN: two convolutions and a linear layer")
def cnn(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (152, 179, 142),
    kernel: Annotated[int, Gt(0)] = 10,
    stride: Annotated[int, Gt(0)] = 5,
    widths: tuple[Width, Width] = (50, 100),
    activation: Activation = "none",
) -> nn.Module:
    """CNN with two strided 3D convolutions and a linear layer.

    Both convolutions are without padding and followed by batch normalisation and ReLU. At
    the published image size, the shapes are 50×29×34×27, 100×4×5×4 and 8,000, and there
    are 5,074,453 parameters for three outputs or 5,058,451 for one.

    Parameters
    ----------
    in_channels : number of channels, 1 for a lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z)
    kernel : kernel size of both convolutions, in voxels of their input
    stride : stride of both convolutions, at most ``kernel``
    widths : number of channels of the first and of the second convolution
    activation : output activation. The publication states none; ``sigmoid`` restricts
        scores to [0, 1]

    Returns
    -------
    nn.Module
        Maps (N, in_channels, X, Y, Z) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If the image is too small for the convolutions; the message suggests a kernel and
        a stride.
    """
    shape = _three(image_shape)
    _check_stride(kernel, stride)
    inner = shape
    for _ in range(2):
        inner = tuple((size - kernel) // stride + 1 for size in inner)
    needed = kernel + stride * (kernel - 1)
    if min(shape) < needed:
        raise OutOfRange(
            "`image_shape >= kernel + stride · (kernel − 1)` must hold on every axis for the two unpadded convolutions "
            f"of cnn, got image_shape={shape}, kernel={kernel}, stride={stride}, which need {needed}; "
            f"{_fitting(min(shape))} would fit"
        )
    first, second = widths
    return nn.Sequential(
        *_entry(in_channels, first, kernel, stride),
        *_entry(first, second, kernel, stride),
        nn.Flatten(),
        nn.Linear(second * inner[0] * inner[1] * inner[2], outputs),
        *_activation(activation),
    )


@MODELS.register("residual_cnn", source="the publication's residual CNN; blocks after He et al. 2016")
def residual_cnn(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (152, 179, 142),
    kernel: Annotated[int, Gt(0)] = 10,
    stride: Annotated[int, Gt(0)] = 5,
    block_kernel: Annotated[int, Gt(0)] = 5,
    block_stride: Annotated[int, Gt(0)] = 3,
    widths: tuple[Width, Width] = (50, 100),
    widths_by: Literal["convolution", "block"] = "convolution",
    activation: Activation = "none",
) -> nn.Module:
    """Residual CNN: a strided 3D convolution, two residual blocks, global average pooling, a linear layer.

    At the published image size, the shapes are 50×29×34×27, 100×10×12×9, 100×4×4×3 and
    100, and there are 2,254,053 parameters for three outputs.

    Parameters
    ----------
    in_channels : number of channels, 1 for a lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z); only used for checks
    kernel : kernel size of the first convolution, which has no padding
    stride : stride of the first convolution, at most ``kernel``
    block_kernel : kernel size of the convolutions in the blocks, an odd number
    block_stride : stride of the first convolution and of the skip connection of each block
    widths : two numbers of channels, see ``widths_by``
    widths_by : ``convolution``, as worded in the publication: the first and the second
        convolution of both blocks have the first and the second number of channels;
        ``block``: all convolutions of the first block have the first number of channels,
        those of the second block the second (2,559,003 parameters)
    activation : output activation. The publication states none; ``sigmoid`` restricts
        scores to [0, 1]

    Returns
    -------
    nn.Module
        Maps (N, in_channels, X, Y, Z) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If the first convolution is larger than the image, or ``block_kernel`` is even.

    Notes
    -----
    The publication does not state two details. Here, each sum is followed by a ReLU, as in
    He et al. 2016, and the 1³ convolution of the skip connection has no batch
    normalisation, which agrees with the published number of parameters.
    """
    shape = _three(image_shape)
    _check_stride(kernel, stride)
    if kernel > min(shape):
        raise OutOfRange(
            "`kernel <= image_shape` must hold on every axis for the first convolution of residual_cnn, "
            f"got kernel={kernel}, image_shape={shape}; kernel={min(shape)} would fit"
        )
    if block_kernel % 2 == 0:
        raise OutOfRange(
            "`block_kernel` must be odd for residual_cnn, so that a block and its skip have the same size, "
            f"got {block_kernel}; {block_kernel - 1} or {block_kernel + 1} would fit"
        )
    first, second = widths
    inner = {"convolution": ((first, second), (first, second)), "block": ((first, first), (second, second))}[widths_by]
    blocks, ins = [], first
    for between, outs in inner:
        blocks.append(_wide_block(ins, between, outs, block_kernel, block_stride))
        ins = outs
    return nn.Sequential(
        *_entry(in_channels, first, kernel, stride),
        *blocks,
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(ins, outputs),
        *_activation(activation),
    )


@MODELS.register("resnet10", source="Chen, Ma & Zheng 2019 (MedicalNet), arXiv:1904.00625")
def resnet10(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (91, 107, 86),
    width: Annotated[int, Gt(0), Le(256)] = 64,
    dilated: bool = True,
    hidden: Annotated[int, Ge(0), Le(65536)] = 512,
    activation: Activation = "sigmoid",
) -> nn.Module:
    """3D ResNet10 of MedicalNet with a hidden layer and a sigmoid per score.

    The network consists of a 7³ convolution with stride 2, 3³ max pooling with stride 2,
    four basic blocks with 64, 128, 256 and 512 channels, global average pooling, a linear
    layer of 512 units with ReLU, and a linear layer with one sigmoid per score. The
    backbone has 14,355,520 parameters, the network 14,618,689 with one output and
    14,619,715 with three. At the published image size of 91×107×86, the shapes are
    46×54×43, 23×27×22 (twice) and 12×14×11 (three times).

    Parameters
    ----------
    in_channels : number of channels, 1 for a lesion mask
    outputs : number of scores, K
    image_shape : shape of the image, (X, Y, Z); only used for checks
    width : channels of the first block; doubled in each further block
    dilated : use dilations of 2 and 4 instead of strides in the last two blocks, as in
        MedicalNet; otherwise they have stride 2 (shapes 6×7×6 and 3×4×3)
    hidden : number of units of the hidden layer; 0 for no hidden layer
    activation : output activation; ``none`` returns the values before the sigmoid

    Returns
    -------
    nn.Module
        Maps (N, in_channels, X, Y, Z) float to (N, outputs).

    Raises
    ------
    OutOfRange
        If the image does not have three axes.

    Notes
    -----
    Weights are initialised as in MedicalNet (He et al. 2015, by fan-out). Pretrained
    weights are not loaded.
    """
    _three(image_shape)
    features = 8 * width
    network = nn.Sequential(
        nn.Conv3d(in_channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.MaxPool3d(3, stride=2, padding=1),
        _basic_block(width, width),
        _basic_block(width, 2 * width, stride=2),
        _basic_block(2 * width, 4 * width, **({"dilation": 2} if dilated else {"stride": 2})),
        _basic_block(4 * width, features, **({"dilation": 4} if dilated else {"stride": 2})),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        *([nn.Linear(features, hidden), nn.ReLU()] if hidden else []),
        nn.Linear(hidden or features, outputs),
        *_activation(activation),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class ResidualBlock(nn.Module):
    """Residual block: ReLU of the sum of a branch and a skip connection.

    Parameters
    ----------
    branch, skip : map (N, C, *space) to (N, D, *smaller), with the same shape
    """

    def __init__(self, branch: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.branch, self.skip, self.relu = branch, skip, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, *space) to (N, D, *smaller)."""
        out: Tensor = self.relu(self.branch(x) + self.skip(x))
        return out


def _entry(ins: int, outs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv3d(ins, outs, kernel, stride=stride), nn.BatchNorm3d(outs), nn.ReLU()


def _wide_block(ins: int, between: int, outs: int, kernel: int, stride: int) -> ResidualBlock:
    """Block of the residual CNN."""
    branch = nn.Sequential(
        nn.Conv3d(ins, between, kernel, stride=stride, padding=kernel // 2),
        nn.BatchNorm3d(between),
        nn.ReLU(),
        nn.Conv3d(between, outs, kernel, padding=kernel // 2),
        nn.BatchNorm3d(outs),
    )
    return ResidualBlock(branch, nn.Conv3d(ins, outs, 1, stride=stride))


def _basic_block(ins: int, outs: int, *, stride: int = 1, dilation: int = 1) -> ResidualBlock:
    """Basic block of a ResNet; both convolutions are dilated, as in MedicalNet."""
    branch = nn.Sequential(
        nn.Conv3d(ins, outs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm3d(outs),
        nn.ReLU(),
        nn.Conv3d(outs, outs, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm3d(outs),
    )
    if ins == outs and stride == 1:
        return ResidualBlock(branch, nn.Identity())
    skip = nn.Sequential(nn.Conv3d(ins, outs, 1, stride=stride, bias=False), nn.BatchNorm3d(outs))
    return ResidualBlock(branch, skip)


def _activation(name: Activation) -> list[nn.Module]:
    return [nn.Sigmoid()] if name == "sigmoid" else []


def _three(image_shape: Sequence[int]) -> tuple[int, ...]:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise OutOfRange(
            "image_shape must be three sizes of at least one voxel each, "
            f"got {tuple(image_shape)}; for example (91, 107, 86)"
        )
    return tuple(image_shape)


def _check_stride(kernel: int, stride: int) -> None:
    if stride > kernel:
        raise OutOfRange(
            f"`stride <= kernel` must hold, otherwise some voxels are ignored, "
            f"got stride={stride}, kernel={kernel}; stride={kernel} would fit"
        )


def _fitting(size: int) -> str:
    """Largest kernel that fits twice, with a stride of half the kernel as published."""
    kernel = max(k for k in range(1, size + 1) if k + max(k // 2, 1) * (k - 1) <= size)
    return f"kernel={kernel}, stride={max(kernel // 2, 1)}"
