"""3D networks with one encoder per contrast, whose features are weighted by gated attention.

All networks are built of operations to which relevance can be propagated
(:mod:`harness.attribution.lrp_tape`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.core.targets import Target
from harness.core.types import Input

__all__ = ["Encoder", "GatedAttention", "attention_densenet"]

Fusion = Literal["gated", "attention", "concatenation"]
Pooling = Literal["flatten", "mean"]

_WIDTH, _GROWTH, _BOTTLENECK, _LAYERS = 16, 4, 4, 2  # channels of the stem, growth, bottleneck · growth, layers a block


def _exposes(options: Mapping[str, Any]) -> tuple[str, ...]:
    return () if options.get("fusion") == "concatenation" else ("attention", "attention_logit")


@MODELS.register(
    "attention_densenet",
    source="the MS disability study, Section II; Huang et al. 2017",
    exposes=_exposes,
)
def attention_densenet(
    inputs: Sequence[Input],
    targets: Sequence[Target],
    *,
    fusion: Fusion = "gated",
    blocks: Annotated[int, Ge(1), Le(10)] = 4,
    stem_stride: Annotated[int, Ge(1)] = 1,
    pooling: Pooling = "flatten",
    compression: Annotated[float, Gt(0), Le(1)] = 0.5,
    features: Annotated[int, Ge(1), Le(4096)] = 32,
    hidden: Annotated[int, Ge(1), Le(4096)] = 16,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> nn.Module:
    """DenseNet encoder per contrast, gated attention over contrasts, and a linear layer with the covariates.

    Each encoder is a 3³ convolution with 16 channels, batch normalisation, ReLU and max
    pooling, followed by dense blocks of two layers with transitions between them, and a
    linear layer. With 96×96×112 voxels and the defaults, an encoder has 154,452
    parameters and a network with three contrasts and an age 464,463, as published.

    Parameters
    ----------
    fusion : how the features m of the contrasts are combined. ``gated`` weights them by
        softmax(w · (tanh(U m) ⊙ σ(V m))) and adds them; ``attention`` omits the gate σ(V m);
        ``concatenation`` joins them without weights
    blocks : number of dense blocks
    stem_stride : stride of the first convolution
    pooling : ``flatten`` gives each voxel of the last feature map weights of its own,
        ``mean`` averages over them
    compression : factor of the number of channels in a transition
    features : number of features of a contrast, M
    hidden : number of hidden units of the attention
    dropout : probability with which a feature is set to zero in training

    Returns
    -------
    nn.Module
        Maps images (N, L, X, Y, Z) and one (N, 1) array per covariate to (N, K). Exposes
        the attention weight of each contrast, ``attention:<contrast>``, in [0, 1] with a
        sum of 1 over contrasts, and its logit, ``attention_logit:<contrast>``; not with
        ``concatenation``.

    Raises
    ------
    OutOfRange
        If the image is too small for this number of blocks, or its shape is unknown.

    Notes
    -----
    The publication does not state the padding of convolutions (here, replication), the
    width of the bottleneck (here, four times the growth of 4) or the compression (here,
    one half); these agree with the published shapes.
    """
    image, covariates = inputs[0], inputs[1:]
    encoders = [
        Encoder(image.shape, blocks, stem_stride, pooling, compression, features, dropout) for _ in image.channels
    ]
    outputs = sum(target.width for target in targets)
    return GatedAttention(image.channels, encoders, fusion, features, hidden, len(covariates), outputs)


class Encoder(nn.Sequential):
    """DenseNet of one contrast, (N, 1, X, Y, Z) → (N, features)."""

    def __init__(
        self,
        shape: Sequence[int],
        blocks: int,
        stem_stride: int,
        pooling: Pooling,
        compression: float,
        features: int,
        dropout: float,
    ) -> None:
        size = [_halved(math.ceil(one / stem_stride)) for one in shape]
        if len(size) != 3 or min(size) < 2 ** (blocks - 1):
            raise OutOfRange(
                f"the image must have at least {2**blocks * stem_stride} voxels along each of three axes for "
                f"model.blocks={blocks} and model.stem_stride={stem_stride}, got {tuple(shape)}; reduce one of them"
            )
        layers: list[nn.Module] = [
            _convolution(1, _WIDTH, 3, stride=stem_stride),
            nn.BatchNorm3d(_WIDTH),
            nn.ReLU(),
            nn.MaxPool3d(3, stride=2, padding=1),
        ]
        width = _WIDTH
        for block in range(blocks):
            layers += [_DenseLayer(width + index * _GROWTH) for index in range(_LAYERS)]
            width += _LAYERS * _GROWTH
            if block + 1 < blocks:
                narrow = max(1, int(width * compression))
                layers += [
                    nn.BatchNorm3d(width),
                    nn.ReLU(),
                    nn.Conv3d(width, narrow, 1, bias=False),
                    nn.AvgPool3d(2),
                ]
                width, size = narrow, [one // 2 for one in size]
        layers += [nn.BatchNorm3d(width), nn.ReLU()]
        voxels = size[0] * size[1] * size[2]
        layers += [nn.AdaptiveAvgPool3d(1)] if pooling == "mean" else []
        layers += [nn.Flatten(), nn.Linear(width * (1 if pooling == "mean" else voxels), features)]
        layers += [nn.Dropout(dropout)] if dropout else []
        super().__init__(*layers)
        # Channels last in memory: on a CPU, a training step takes .7 to .8 and a prediction .5 to .6 of the time.
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _halved(size: int) -> int:
    """Size after max pooling."""
    return (size + 1) // 2


def _convolution(channels: int, width: int, kernel: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels, width, kernel, stride=stride, padding=kernel // 2, padding_mode="replicate", bias=False)


class _DenseLayer(nn.Module):
    """BN, ReLU and 1³ convolution, BN, ReLU and 3³ convolution; the result is appended to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            nn.Conv3d(channels, _BOTTLENECK * _GROWTH, 1, bias=False),
            nn.BatchNorm3d(_BOTTLENECK * _GROWTH),
            nn.ReLU(),
            _convolution(_BOTTLENECK * _GROWTH, _GROWTH, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) → (N, C + growth, X, Y, Z)."""
        return torch.cat([x, self.layers(x)], dim=1)


class GatedAttention(nn.Module):
    """Encoders of all contrasts, attention over them, and the output layer.

    Parameters
    ----------
    channels : names of the contrasts, L
    encoders : encoder of each contrast, (N, 1, X, Y, Z) → (N, features)
    fusion : see :func:`attention_densenet`
    features, hidden : features of a contrast, and hidden units of the attention
    covariates : number of scalar inputs
    outputs : number of outputs, K
    """

    def __init__(
        self,
        channels: Sequence[str],
        encoders: Sequence[nn.Module],
        fusion: Fusion,
        features: int,
        hidden: int,
        covariates: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.channels, self.fusion = tuple(channels), fusion
        self.encoders = nn.ModuleList(encoders)
        joined = features
        if fusion == "concatenation":
            joined = features * len(self.channels)
        else:
            self.signal, self.weight = nn.Linear(features, hidden), nn.Linear(hidden, 1)
        if fusion == "gated":
            self.gate = nn.Linear(features, hidden)
        self.head = nn.Linear(joined + covariates, outputs)

    @property
    def exposes(self) -> tuple[str, ...]:
        """Names of the exposed scalars."""
        if self.fusion == "concatenation":
            return ()
        return tuple(f"{what}:{name}" for what in ("attention", "attention_logit") for name in self.channels)

    def forward(self, images: Tensor, *covariates: Tensor) -> Tensor:
        """(N, L, X, Y, Z) and (N, 1) for each covariate → (N, K)."""
        features = self._features(images)
        if self.fusion == "concatenation":
            joined = features.flatten(1)
        else:
            weights = torch.softmax(self._logits(features), dim=1)
            joined = (weights.unsqueeze(2) * features).sum(1)
        outputs: Tensor = self.head(torch.cat([joined, *covariates], dim=1))
        return outputs

    def exposed(self, images: Tensor, *covariates: Tensor) -> Mapping[str, Tensor]:
        """Attention weight and logit of each contrast, (N,) each."""
        logits = self._logits(self._features(images))
        weights = torch.softmax(logits, dim=1)
        found = {f"attention:{name}": weights[:, index] for index, name in enumerate(self.channels)}
        return found | {f"attention_logit:{name}": logits[:, index] for index, name in enumerate(self.channels)}

    def _features(self, images: Tensor) -> Tensor:
        """(N, L, X, Y, Z) → (N, L, features)."""
        return torch.stack([encoder(images[:, index : index + 1]) for index, encoder in enumerate(self.encoders)], 1)

    def _logits(self, features: Tensor) -> Tensor:
        """(N, L, features) → (N, L)."""
        hidden = torch.tanh(self.signal(features))
        if self.fusion == "gated":
            hidden = hidden * torch.sigmoid(self.gate(features))
        logits: Tensor = self.weight(hidden).squeeze(2)
        return logits
