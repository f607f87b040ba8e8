"""Ablation and Shapley values of channels against slow replicas."""

from itertools import permutations

import captum.attr
import pytest
import torch
from torch import Tensor

from harness.attribution import attribute
from harness.core.errors import OutOfRange
from harness.testing import Formula, example_image, example_network

MODEL = example_network(2, channels=4, outputs=2)
X = example_image(2, 4, 9, 8, seed=2)


def _output(kept: set[int], baseline: float, target: int) -> Tensor:
    x = torch.full_like(X, baseline)
    for channel in kept:
        x[:, channel] = X[:, channel]
    with torch.no_grad():
        return MODEL.eval()(x)[:, target]


def test_channel_shapley_is_the_mean_over_all_orders() -> None:
    """The map agrees with the definition: the mean marginal contribution over all 24 orders of channels."""
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for order in permutations(range(4)):
        for place, channel in enumerate(order):
            before = set(order[:place])
            expected[:, channel] += (_output(before | {channel}, 0.4, 1) - _output(before, 0.4, 1)) / 24
    found = attribute("channel_shapley", MODEL, X, [1], baseline=0.4)[0]
    torch.testing.assert_close(found, expected[:, :, None, None].expand_as(X))


def test_channel_shapley_sums_to_the_difference() -> None:
    """Completeness: values sum to the output of the image minus the output of the baseline."""
    values = attribute("channel_shapley", MODEL, X, [0])[0][:, :, 0, 0]
    torch.testing.assert_close(values.sum(1), _output({0, 1, 2, 3}, 0.0, 0) - _output(set(), 0.0, 0))


def test_channel_shapley_shares_an_interaction_equally() -> None:
    """For f = a·b, each of the two channels gets half of the product and the unused channel gets zero."""
    model = Formula(lambda x: (x[:, 0] * x[:, 1]).flatten(1).sum(1, keepdim=True))
    x = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    found = attribute("channel_shapley", model, x, [0])[0].flatten().tolist()
    assert found == pytest.approx([6.0, 6.0, 0.0], rel=1e-14, abs=1e-14)


def test_channel_shapley_refuses_nine_channels() -> None:
    """Nine channels need 512 forward passes and are refused; the message suggests channel ablation."""
    model = Formula(lambda x: x.flatten(1))
    with pytest.raises(OutOfRange, match=r"`channels <= 8` must hold .* got 9; choose channel_ablation"):
        attribute("channel_shapley", model, torch.ones(1, 9, 2, 2), [0])


def test_channel_shapley_covers_channels_of_several_inputs() -> None:
    """Channels of several inputs share one Shapley game: f = a·b with a and b in inputs of different size."""
    model = Formula(lambda x, y: (x.flatten(1).sum(1) * y.flatten(1).sum(1))[:, None])
    maps = attribute("channel_shapley", model, (torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 3), 2.0)), [0])[0]
    assert [float(each.flatten()[0]) for each in maps] == pytest.approx([12.0, 12.0])


def test_channel_ablation_agrees_with_captum() -> None:
    """The map agrees with captum's feature ablation with one feature per channel."""
    mask = torch.arange(4).reshape(1, 4, 1, 1).expand(1, 4, 9, 8)
    reference = captum.attr.FeatureAblation(MODEL.eval()).attribute(X, target=1, feature_mask=mask, baselines=0.4)
    torch.testing.assert_close(attribute("channel_ablation", MODEL, X, [1], baseline=0.4)[0], reference)


def test_channel_ablation_gives_redundant_channels_zero() -> None:
    """For f = max(a, b), ablation gives zero to both channels, though together they determine the output."""
    model = Formula(lambda x: x.amax(1).flatten(1).sum(1, keepdim=True))
    x = torch.ones(1, 2, 1, 1)
    assert attribute("channel_ablation", model, x, [0])[0].flatten().tolist() == [0.0, 0.0]
