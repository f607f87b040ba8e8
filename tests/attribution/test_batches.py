"""Networks whose outputs for an item depend on other items in the batch."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution import attribute
from harness.attribution.batches import independent_size, items_are_independent
from harness.core.errors import CellError, HarnessError
from harness.core.registry import ATTRIBUTIONS
from harness.testing import Formula, example_image, example_network

from .small import SMALL

X = example_image(3, 2, 8, 9, seed=4)
METHODS = [
    name
    for name in ATTRIBUTIONS.names()
    if {"batch_size", "method"} & set(inspect.signature(ATTRIBUTIONS.get(name).function).parameters)
]


class _Joint(nn.Module):
    """A network whose items affect each other before the first layer."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = example_network(2), change

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 3)."""
        scores: Tensor = self.network(self.change(x))
        return scores


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch normalisation": nn.BatchNorm2d(2, track_running_stats=False).double(),
    "functional": lambda x: functional.batch_norm(x, None, None, training=True),
    "mean": lambda x: x - 0.5 * x.mean(dim=0, keepdim=True),
    "maximum": lambda x: x / (1 + x.abs().max()),
    "softmax": lambda x: x * torch.softmax(x.flatten(1).mean(1), dim=0).reshape(-1, 1, 1, 1),
    "earlier items": lambda x: x.cumsum(dim=0),
    "later items": lambda x: x.flip(0).cumsum(dim=0).flip(0),
    "neighbour": lambda x: x + 0.3 * x.roll(1, dims=0),
    "number of items": lambda x: x / len(x),
    "position": lambda x: x * torch.arange(1, len(x) + 1).reshape(-1, 1, 1, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_dependence_on_the_batch_is_detected(name: str) -> None:
    """Every such network is detected from one of its items."""
    assert not items_are_independent(_Joint(CHANGES[name]), (X[:1],))
    assert independent_size(_Joint(CHANGES[name]), (X[:1],), 8, copies=4) == 1


VANISHING: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: x / (1e-6 + x.norm(dim=0, keepdim=True)),
    "product": lambda x: x * (1 + x.abs().mean()),
    "share": lambda x: x.abs() / (1e-3 + x.abs().sum(dim=0, keepdim=True)),
    "of the items above a threshold": lambda x: torch.where(x > 0, x - x.clamp(min=0).mean(0, keepdim=True), x),
}


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("name", VANISHING)
def test_dependence_that_vanishes_for_an_item_of_zeros_is_detected(name: str, zero: int) -> None:
    """Other items are tested as well, and random numbers where all are zero."""
    x = X.clone()
    x[zero] = 0
    assert not items_are_independent(_Joint(VANISHING[name]), (x,))
    assert not items_are_independent(_Joint(VANISHING[name]), (x * 0,))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("deeplift", "lrp")])
def test_maps_with_an_item_of_zeros_are_those_of_items_computed_one_by_one(method: str) -> None:
    """A dependence that the first item does not show would change the maps of the others."""
    x = X.clone()
    x[0] = 0
    x += 1e-9 * X  # the gradient of a norm is not finite at zero
    expected = attribute(method, _Joint(VANISHING["norm"]), x, [1], **_options(method, 1))[0]
    found = attribute(method, _Joint(VANISHING["norm"]), x, [1], **_options(method, 5))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def _pulled(x: Tensor) -> Tensor:
    """Has the values of x, and a gradient that depends on the sum of the items."""
    scaled = x * (1 + x.sum(dim=0, keepdim=True) ** 2)
    return x.detach() + (scaled - scaled.detach())


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "gradcam"])
def test_dependence_of_gradients_only_is_detected(method: str) -> None:
    """Values that are equal can have other gradients, as with a straight-through estimator."""
    model = _Joint(_pulled)
    assert items_are_independent(model, (X,))
    assert not items_are_independent(model, (X,), gradients=True)
    expected = attribute(method, model, X, [1], batch_size=1)[0]
    found = attribute(method, model, X, [1], batch_size=5)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_large_neighbours_do_not_hide_a_dependence() -> None:
    """The comparison is relative to the outputs of the item, not to those of its neighbours."""
    model = Formula(lambda x: torch.exp(3 * (x + 0.1 * x.mean(0, keepdim=True)).flatten(1)[:, :2]))
    assert not items_are_independent(model, (X,))


def test_a_network_of_single_items_has_batches_of_one() -> None:
    """A fixed batch size in the network is no reason to fail."""
    model = Formula(lambda x: x.reshape(1, 2 * 8 * 9).sum(1, keepdim=True))
    assert attribute("saliency", model, X, [0])[0].eq(1).all()


@pytest.mark.parametrize("output", [lambda x: x.mean((0, 2, 3))[None], lambda x: x.flatten()[None]])
def test_a_network_must_return_a_row_for_each_item(output: Callable[[Tensor], Tensor]) -> None:
    """One row for all items is refused with the shape."""
    with pytest.raises(
        HarnessError, match=r"must return \(N, K\) floats, a row for each item, got \(1, \d+\) for N = 3"
    ):
        attribute("saliency", Formula(output), X, [0])


def test_dependence_in_large_batches_only_is_detected() -> None:
    """Batches of the size that will be computed are checked, also if smaller ones are independent."""
    model = _Joint(lambda x: x - 0.5 * x.mean(dim=0, keepdim=True) if len(x) > 4 else x)
    assert items_are_independent(model, (X[:1],))
    assert independent_size(model, (X[:1],), 4, copies=9) == 4
    assert independent_size(model, (X[:1],), 8, copies=4) == 8  # no batch is larger than four
    assert independent_size(model, (X[:1],), 8, copies=9) == 1


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "deeplift"])
def test_maps_are_those_of_items_computed_one_by_one(method: str, name: str) -> None:
    """Every method gives the map of a batch size of one, at which no network is checked."""
    if method == "lrp" and name in ("batch normalisation", "functional", "maximum", "earlier items", "later items"):
        with pytest.raises(CellError, match="no rule for the operation"):
            attribute(method, _Joint(CHANGES[name]), X, [1])
        return
    expected = attribute(method, _Joint(CHANGES[name]), X, [1], **_options(method, 1))[0]
    found = attribute(method, _Joint(CHANGES[name]), X, [1], **_options(method, 5))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CHANGES)
def test_deeplift_refuses_networks_that_depend_on_the_batch(name: str) -> None:
    """DeepLIFT needs the baseline in the same batch."""
    with pytest.raises(HarnessError, match="depend on other items in the batch; choose integrated_gradients"):
        attribute("deeplift", _Joint(CHANGES[name]), X[:1], [0])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_independent_networks_keep_their_batch_size(dims: int, precision: torch.dtype) -> None:
    """Convolutions, activations and linear layers process items independently, in both precisions."""
    model, x = example_network(dims).to(precision), example_image(2, 2, *(9, 8, 7)[:dims]).to(precision)
    assert independent_size(model, (x,), 6) == 6


def test_one_item_is_not_checked() -> None:
    """Without several items in a batch there is no forward pass."""
    model = Formula(lambda _: pytest.fail("must not be called"))
    assert independent_size(model, (X[:1],), 8) == 8
    assert independent_size(model, (X,), 1) == 1


def test_outputs_that_are_not_finite_are_no_dependence() -> None:
    """Infinite outputs are refused by the check of the map, not here."""
    assert items_are_independent(Formula(lambda x: x.flatten(1).sum(1, keepdim=True) / 0), (X,))


def test_random_outputs_are_refused() -> None:
    """Outputs that differ for the same batch cannot be explained by differences."""
    model = Formula(lambda x: functional.dropout(x, 0.5, training=True).flatten(1).sum(1, keepdim=True))
    with pytest.raises(CellError, match="reproducible outputs, but they differ by"):
        attribute("channel_ablation", model, X, [0])


def test_a_network_that_needs_several_items_is_refused() -> None:
    """Batch statistics of one value cannot be computed."""
    model = nn.Sequential(example_network(2), nn.BatchNorm1d(3, track_running_stats=False).double())
    with pytest.raises(HarnessError, match="must compute a single item .* use batch normalisation with running"):
        attribute("saliency", model, X, [0])


def _options(method: str, size: int) -> dict[str, Any]:
    if method == "noise_tunnel":
        return {"options": {"batch_size": size}}
    # The default of LRP has a rule for the layers that read the image, which is mixed before here.
    composite = {"composite": "epsilon_plus"} if method == "lrp" else {}
    return {"batch_size": size, **composite, **SMALL.get(method, {})}
