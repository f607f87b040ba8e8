"""Control attributions, which do not depend on the model."""

import numpy as np
import pytest
import scipy.sparse
import torch

from harness.attribution import attribute
from harness.core.errors import HarnessError
from harness.core.registry import ATTRIBUTIONS
from harness.models import build
from harness.testing import example_image, example_network

X = example_image(2, 2, 7, 6, 5)
CONTROLS = [name for name in ATTRIBUTIONS.names() if ATTRIBUTIONS.get(name).facts.get("control")]


def test_registered_controls() -> None:
    """The registered controls are random maps, edges, the input and its channels, the whole image and its centre."""
    assert CONTROLS == ["centre_square", "constant", "edge", "input", "mean_of_channels", "one_channel", "random"]


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_do_not_depend_on_the_model(name: str) -> None:
    """A control attribution gives the same map for another model."""
    other = example_network(3)
    torch.nn.init.zeros_(other.head[-1].weight)
    torch.testing.assert_close(attribute(name, example_network(3), X, [0]), attribute(name, other, X, [0]))


def test_edge_agrees_with_numpy() -> None:
    """The edge control is the magnitude of numpy's central differences, channel by channel."""
    expected = np.sqrt(sum(g**2 for g in np.gradient(X.numpy(), axis=(2, 3, 4))))
    np.testing.assert_allclose(attribute("edge", example_network(3), X, [0])[0].numpy(), expected, rtol=1e-12)


def test_edge_skips_an_axis_of_one_voxel() -> None:
    """The edge control ignores an axis of one voxel."""
    flat = X[..., :1]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(84, 1)).double()
    expected = np.sqrt(sum(g**2 for g in np.gradient(flat.numpy(), axis=(2, 3))))
    np.testing.assert_allclose(attribute("edge", model, flat, [0])[0].numpy(), expected, rtol=1e-12)


def test_input_is_the_input() -> None:
    """The input control returns a copy of the input."""
    found = attribute("input", example_network(3), X, [0])[0]
    assert torch.equal(found, X)
    assert found.data_ptr() != X.data_ptr()


def test_random_maps_of_two_targets_differ() -> None:
    """Random maps of different targets differ, since each target has its own random stream."""
    first, second = attribute("random", example_network(3, outputs=2), X, [0, 1])
    assert not torch.allclose(first, second)


def test_weights_are_the_models_own_map() -> None:
    """A linear lesion model is explained by its weights, the same for every item."""
    model = build("total_volume", outputs=2, image_shape=(3, 4, 5))
    lesions = scipy.sparse.csr_array(np.random.default_rng(0).integers(0, 2, (8, 60)).astype(np.float32))
    volume = lesions.sum(axis=1)
    model.fit(lesions, np.stack([volume, -volume], axis=1), rng=np.random.default_rng(0))
    first, second = attribute("weights", model, torch.rand(3, 1, 3, 4, 5), [0, 1])
    torch.testing.assert_close(first, torch.ones_like(first), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, -first)


def test_weights_of_a_network_are_refused() -> None:
    """A network without weights per voxel is refused, and the message suggests another attribution."""
    with pytest.raises(HarnessError, match="choose occlusion"):
        attribute("weights", example_network(2), example_image(1, 2, 8, 8), [0])
