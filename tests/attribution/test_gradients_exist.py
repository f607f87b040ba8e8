"""Gradient methods refuse networks without a gradient, of which the map would be zero in silence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.errors import CellError, HarnessError, OutOfRange
from harness.core.registry import ATTRIBUTIONS
from harness.testing import Formula, example_image, example_network

X = example_image(2, 2, 8, 9)
GRADIENTS = (
    *("saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "smoothgrad", "deeplift"),
    *("guided_backprop", "gradcam", "noise_tunnel"),
)


class _Changed(nn.Module):
    """A network with layers whose output, or input, is changed."""

    def __init__(self, output: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.network, self.output, self.before = example_network(2), output, before

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 3)."""
        return self.output(self.network(self.before(x)))


class _Decorated(_Changed):
    """A network without a graph."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 3)."""
        return super().forward(x)


def same(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


WITHOUT: dict[str, Callable[[], nn.Module]] = {
    "no_grad": lambda: _Decorated(same),
    "detached output": lambda: _Changed(lambda y: y.detach()),
    "detached input": lambda: _Changed(same, lambda x: x.detach()),
    "numpy": lambda: _Changed(lambda y: torch.from_numpy(2 * y.detach().numpy())),
    "numpy without detach": lambda: _Changed(lambda y: torch.from_numpy(2 * y.numpy())),
    "inference mode": lambda: _Changed(torch.inference_mode()(torch.clone)),
    "detached column": lambda: _Changed(lambda y: torch.cat([y[:, :1].detach(), y[:, 1:]], dim=1)),
    "class": lambda: _Changed(lambda y: y.sort(dim=1, descending=True).indices.to(y)),
}


@pytest.mark.parametrize("kind", [kind for kind in WITHOUT if kind not in ("inference mode", "class")])
@pytest.mark.parametrize("method", GRADIENTS)
def test_output_without_gradient_is_refused(method: str, kind: str) -> None:
    """Every gradient method says so, instead of a map of zeros."""
    with pytest.raises(HarnessError, match="of the model has no gradient, although it .* remove torch.no_grad, detach"):
        attribute(method, WITHOUT[kind](), X, [0])


@pytest.mark.parametrize("kind", WITHOUT)
def test_methods_without_gradients_explain_such_networks(kind: str) -> None:
    """What the message recommends works."""
    if kind != "numpy without detach":
        assert attribute("occlusion", WITHOUT[kind](), X, [0])[0].shape == X.shape


CONSTANT: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda x: torch.ones(len(x), 2, dtype=x.dtype),
    "zero times the input": lambda x: 0 * x.flatten(1)[:, :2],
    "dead ReLU": lambda x: torch.relu(x.flatten(1)[:, :2] - 1e3),
    "saturated": lambda x: (1e3 + x.flatten(1)[:, :2]).clamp(0, 1),
}


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "gradient_shap", "smoothgrad"])
@pytest.mark.parametrize("kind", CONSTANT)
def test_constant_outputs_have_maps_of_zeros(kind: str, method: str) -> None:
    """With or without a graph, as nothing changes the output."""
    assert not attribute(method, Formula(CONSTANT[kind]), X, [1])[0].any()


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("item", [0, 1])
def test_outputs_that_are_not_finite_are_refused(method: str, item: int) -> None:
    """The gradient of a ReLU is zero for NaN, so that the map would be zero."""
    x = X.clone()
    x[item, 0, 4, 4] = torch.nan
    with pytest.raises(CellError, match=f"NaN or infinite for item {item}, whose input has such values; replace"):
        attribute(method, example_network(2), x, [0])


@pytest.mark.parametrize(
    "baseline",
    [
        *(torch.zeros(0, 2, 8, 9), torch.zeros(3, 2, 4, 9), torch.zeros(1) * 1j, torch.full((1,), torch.inf)),
        *(torch.zeros(2, 2, 8, 9).to_sparse(), torch.zeros(1, device="meta")),
    ],
    ids=["empty", "shape", "complex", "infinite", "sparse", "meta"],
)
@pytest.mark.parametrize(
    "method", ["integrated_gradients", "gradient_shap", "deeplift", "occlusion", "channel_ablation"]
)
def test_baselines_must_have_values_and_fit(method: str, baseline: Tensor) -> None:
    """Tensors that are no baseline are refused by all methods that have one."""
    with pytest.raises(OutOfRange, match="baseline"):
        attribute(method, example_network(2), X, [0], baseline=baseline)


def test_batches_may_be_of_any_size() -> None:
    """Sizes beyond the integers of torch mean all items."""
    assert attribute("saliency", example_network(2), X, [0], batch_size=10**30)[0].shape == X.shape


def test_output_that_is_flat_around_an_item_is_explained() -> None:
    """The gradient is zero at one item, and not at another."""
    x = torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)])
    maps = attribute("saliency", Formula(lambda x: torch.relu(x.flatten(1).sum(1, keepdim=True) - 4)), x, [0])[0]
    assert (float(maps[0].max()), float(maps[1].min())) == (0, 1)


def test_one_of_two_inputs_without_gradient_is_refused() -> None:
    """The map of this input would be zero."""
    model = Formula(lambda x, y: (x.detach() * y).flatten(1).sum(1, keepdim=True))
    with pytest.raises(HarnessError, match="output 0 of the model has no gradient"):
        attribute("saliency", model, (X, X), [0])


def test_ignored_inputs_have_maps_of_zeros() -> None:
    """A network need not use all inputs."""
    model = Formula(lambda x, y: x.flatten(1).sum(1, keepdim=True))
    assert not attribute("saliency", model, (X, X), [0])[0][1].any()


def test_gradcam_names_a_layer_without_gradient() -> None:
    """The output does not depend on the layer that was chosen."""

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (nn.Conv2d(2, 2, 3).double() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x).mean((2, 3))  # type: ignore[no-any-return]

    with pytest.raises(HarnessError, match="gradcam needs a layer with a gradient .* set `layer`"):
        attribute("gradcam", Aside(), X, [0], layer="unused")


def test_all_gradient_methods_are_tested() -> None:
    """Methods that use only outputs explain a network without a gradient."""
    others = set(ATTRIBUTIONS.names()) - {*GRADIENTS, "lrp", "weights"}
    refused = []
    for name in sorted(others):
        try:
            attribute(name, _Decorated(same), X.clamp(0, 1), [0], **_quick(name))
        except CellError:
            refused.append(name)
    assert refused == []


def _quick(name: str) -> dict[str, Any]:
    return {"per_segment": 2} if name == "kernel_shap" else {}
