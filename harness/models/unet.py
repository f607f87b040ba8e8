"""2D U-Nets for segmentation of slices, with sequences as channels."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.models.padding import Padded

__all__ = ["basic_unet", "unet"]

_WIDEST = 4096  # channels; with more, the weights need several gigabytes


@MODELS.register("unet", source="Ronneberger, Fischer & Brox 2015, doi:10.1007/978-3-319-24574-4_28")
def unet(
    in_channels: int,
    outputs: int = 2,
    *,
    width: Annotated[int, Gt(0), Le(1024)] = 32,
    depth: Annotated[int, Gt(0), Le(10)] = 5,
    output_bias: float = -3.0,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> nn.Module:
    """2D multi-channel U-Net with batch normalisation.

    Each level of the encoder has two 3×3 convolutions with batch normalisation and ReLU,
    followed by 2×2 max pooling. Each level of the decoder has a 2×2 transposed
    convolution, concatenation, batch normalisation, ReLU, and two convolutions as above.
    The last layer is a 1×1 convolution. With the defaults there are 31,109,954 parameters
    for one channel, plus 288 for each additional channel; with ``width=16`` there are 7.8
    million.

    Parameters
    ----------
    in_channels : number of sequences
    outputs : number of classes, background first
    width : channels of the first level; doubled at each level
    depth : number of levels above the bottleneck
    output_bias : initial logit of all classes except the background, whose logit is 0. -3
        corresponds to the prior of a rare class such as small lesions; with the published
        value 0, narrow networks may never predict lesions
    dropout : dropout probability of the channels of the bottleneck

    Returns
    -------
    nn.Module
        Maps (N, in_channels, H, W) float to (N, outputs, H, W) logits. Images are padded
        with zeros if H or W is not divisible by 2**depth, and the output is cropped.

    Raises
    ------
    OutOfRange
        If the bottleneck has more than 4096 channels.

    Notes
    -----
    The paper on sequence ablation does not state depth and width; those of the authors'
    earlier network are used. The ReLU before the softmax in that network is omitted,
    because it blocks the gradient of negative logits.
    """
    if width * 2**depth > _WIDEST:
        raise OutOfRange(
            f"`width * 2**depth <= {_WIDEST}` must hold for unet (channels of the bottleneck), got "
            f"{width} * 2**{depth} = {width * 2**depth}; reduce model.depth or model.width"
        )
    network = _UNet(in_channels, outputs, width, depth, dropout)
    _set_bias(network.last, output_bias)
    return Padded(network, 2**depth)


@MODELS.register("basic_unet", source="Falk et al. 2019, doi:10.1038/s41592-018-0261-2")
def basic_unet(
    in_channels: int,
    outputs: int = 2,
    *,
    width: Annotated[int, Gt(0), Le(256)] = 16,
    output_bias: float = -3.0,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> nn.Module:
    """2D ``BasicUNet`` of MONAI: four downsampling steps, no normalisation after concatenation.

    Parameters
    ----------
    in_channels : number of sequences
    outputs : number of classes, background first
    width : channels of the first two levels; the following levels have 2, 4 and 8 times as
        many
    output_bias : initial logit of all classes except the background, whose logit is 0; -3
        corresponds to the prior of a rare class such as small lesions
    dropout : dropout probability of all convolutions

    Returns
    -------
    nn.Module
        Maps (N, in_channels, H, W) float to (N, outputs, H, W) logits, for any H and W.
    """
    # Imported here because MONAI takes five seconds to import.
    from monai.networks.nets.basic_unet import BasicUNet

    network = BasicUNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=outputs,
        features=(width, width, 2 * width, 4 * width, 8 * width, width),
        act=("relu", {"inplace": False}),
        norm="batch",
        dropout=dropout,
    )
    _set_bias(network.final_conv, output_bias)
    return Padded(network, 16)


class _UNet(nn.Module):
    def __init__(self, in_channels: int, outputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        ins = [in_channels, *widths[:-2]]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(ins, widths[:-1], strict=True))
        self.pool = nn.ModuleList(nn.MaxPool2d(2) for _ in range(depth))
        self.centre = nn.Sequential(_block(widths[-2], widths[-1]), nn.Dropout2d(dropout))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(2 * w), nn.ReLU(), _block(2 * w, w)) for w in widths[-2::-1]
        )
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block, pool in zip(self.down, self.pool, strict=True):
            x = block(x)
            skipped.append(x)
            x = pool(x)
        x = self.centre(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, reversed(skipped), strict=True):
            x = block(torch.cat([skip, enlarge(x)], dim=1))
        logits: Tensor = self.last(x)
        return logits


def _block(ins: int, outs: int) -> nn.Sequential:
    # Each ReLU is a separate module, as required by DeepLIFT.
    return nn.Sequential(
        nn.Conv2d(ins, outs, 3, padding=1),
        nn.BatchNorm2d(outs),
        nn.ReLU(),
        nn.Conv2d(outs, outs, 3, padding=1),
        nn.BatchNorm2d(outs),
        nn.ReLU(),
    )


def _set_bias(last: nn.Module, output_bias: float) -> None:
    assert isinstance(last.bias, nn.Parameter)
    with torch.no_grad():
        last.bias.zero_()
        last.bias[1 if len(last.bias) > 1 else 0 :] = output_bias
