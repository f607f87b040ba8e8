"""Controls that show the intensity of channels alone."""

from __future__ import annotations

import pytest
import torch

from harness.attribution.controls import mean_of_channels, one_channel
from harness.core.errors import RequestError

INPUTS = (torch.rand(2, 1, 3, 4, 2), torch.rand(2, 2, 3, 4, 2))


def test_mean_of_channels_counts_each_channel_once() -> None:
    """The mean is over the channels of all inputs, and every channel has it as its map."""
    mean = torch.cat(INPUTS, dim=1).mean(dim=1)
    for maps in mean_of_channels(torch.nn.Identity(), INPUTS, [0, 1]):
        assert [one.shape for one in maps] == [x.shape for x in INPUTS]
        assert all(torch.equal(one[:, channel], mean) for one in maps for channel in range(one.shape[1]))


def test_one_channel_is_counted_over_inputs() -> None:
    """Channel 2 is the second channel of the second input."""
    (maps,) = one_channel(torch.nn.Identity(), INPUTS, [0], channel=2)
    assert torch.equal(maps[0][:, 0], INPUTS[1][:, 1]) and torch.equal(maps[1][:, 1], INPUTS[1][:, 1])


def test_faults_are_refused() -> None:
    """A channel that does not exist and inputs of different shapes are refused."""
    with pytest.raises(RequestError, match=r"`channel < 3` must hold for these inputs, got 3"):
        one_channel(torch.nn.Identity(), INPUTS, [0], channel=3)
    with pytest.raises(RequestError, match=r"inputs of one shape, got \(2, 2\), \(3, 3\)"):
        mean_of_channels(torch.nn.Identity(), (torch.rand(1, 1, 2, 2), torch.rand(1, 1, 3, 3)), [0])
