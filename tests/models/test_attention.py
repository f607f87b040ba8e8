"""The gated attention network: published sizes, attention weights, tracing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.core.errors import OutOfRange
from harness.core.targets import Target
from harness.core.types import Input
from harness.models.attention import attention_densenet

CONTRASTS = ("qT1", "MWF", "NDI")
PAPER = (96, 96, 112)
SMALL = (24, 28, 24)


def build(shape: tuple[int, ...] = SMALL, contrasts: tuple[str, ...] = CONTRASTS, **options: Any) -> nn.Module:
    """A network with an age, with seeded weights."""
    torch.manual_seed(0)
    inputs = (Input("image", contrasts, shape), Input("age", ("age",), explained=False))
    return attention_densenet(inputs, (Target("severe", "binary"),), **options)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in module.parameters())


def test_published_numbers_of_parameters() -> None:
    """One encoder and the network have the published numbers of parameters."""
    network = build(PAPER)
    assert count(network.encoders[0]) == 154_452
    assert count(network) == 464_463


@pytest.mark.parametrize(("options", "parameters"), [({"stem_stride": 2}, 32_052), ({"pooling": "mean"}, 17_908)])
def test_variants_of_the_encoder(options: dict[str, Any], parameters: int) -> None:
    """A stem with stride 2 and a pooled head have the sizes that the protocol states."""
    assert count(build(PAPER, **options).encoders[0]) == parameters


def test_shapes_of_the_feature_maps() -> None:
    """The feature maps have the published shapes (C, X, Y, Z)."""
    shapes: list[tuple[int, ...]] = []
    encoder = build(PAPER).encoders[0].eval()
    for layer in encoder:
        if isinstance(layer, nn.MaxPool3d | nn.AvgPool3d | nn.Flatten):
            layer.register_forward_hook(lambda layer, given, made: shapes.append(tuple(made.shape[1:])))
    with torch.inference_mode():
        assert encoder(torch.rand(1, 1, *PAPER)).shape == (1, 32)
    assert shapes == [(16, 48, 48, 56), (12, 24, 24, 28), (10, 12, 12, 14), (9, 6, 6, 7), (4284,)]


@pytest.mark.parametrize("fusion", ["gated", "attention"])
def test_attention_weights_sum_to_one(fusion: str) -> None:
    """Weights are the softmax of their logits, in [0, 1], with a sum of one."""
    network = build(fusion=fusion, blocks=2).eval()
    given = (torch.rand(5, 3, *SMALL), torch.rand(5, 1))
    found = network.exposed(*given)
    assert tuple(found) == network.exposes
    weights = torch.stack([found[f"attention:{name}"] for name in CONTRASTS], 1)
    logits = torch.stack([found[f"attention_logit:{name}"] for name in CONTRASTS], 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(weights, logits.softmax(1))
    assert network(*given).shape == (5, 1)


def test_gated_attention_from_its_definition() -> None:
    """The output is that of the formulas, written out for one patient."""
    network = build(blocks=2).eval()
    image, age = torch.rand(1, 3, *SMALL), torch.tensor([[0.47]])
    with torch.no_grad():
        m = [network.encoders[index](image[:, index : index + 1])[0] for index in range(3)]
        logits = []
        for one in m:
            s = torch.tanh(network.signal.weight @ one + network.signal.bias)
            g = torch.sigmoid(network.gate.weight @ one + network.gate.bias)
            logits.append(network.weight.weight[0] @ (s * g) + network.weight.bias[0])
        a = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
        n = sum(a[index] * m[index] for index in range(3))
        expected = network.head.weight[0] @ torch.cat([n, age[0]]) + network.head.bias[0]
        torch.testing.assert_close(network(image, age)[0, 0], expected)


def test_attention_without_gate_and_concatenation_have_fewer_parts() -> None:
    """Without a gate, V is missing; concatenation has no attention and exposes nothing."""
    gated, plain, joined = (build(fusion=one, blocks=2) for one in ("gated", "attention", "concatenation"))
    assert count(gated) - count(plain) == 32 * 16 + 16
    assert joined.exposes == () and joined.head.in_features == 3 * 32 + 1


@pytest.mark.parametrize("contrasts", [("qT1",), ("T1w", "FLAIR")])
def test_any_number_of_contrasts(contrasts: tuple[str, ...]) -> None:
    """One contrast and two contrasts work, and a single one has the weight 1."""
    network = build(contrasts=contrasts, blocks=2).eval()
    found = network.exposed(torch.rand(2, len(contrasts), *SMALL), torch.rand(2, 1))
    if len(contrasts) == 1:
        assert found["attention:qT1"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fusion", ["gated", "attention", "concatenation"])
def test_networks_can_be_traced(fusion: str) -> None:
    """``torch.fx`` traces all variants, and the graph computes the same."""
    network = build(fusion=fusion, blocks=2).eval()

    class Fixed(nn.Module):
        """The network with two named inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.network(image, age)
            return result

    given = (torch.rand(2, 3, *SMALL), torch.rand(2, 1))
    torch.testing.assert_close(torch.fx.symbolic_trace(Fixed())(*given), network(*given))


def test_small_images_are_refused() -> None:
    """The message names the options to change."""
    with pytest.raises(OutOfRange, match=r"at least 16 voxels .* model\.blocks=4 .* got \(12, 28, 24\); reduce one"):
        build((12, 28, 24))
    assert build((13, 16, 16), blocks=3) is not None
