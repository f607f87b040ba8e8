"""Layer-wise relevance propagation: rules from their definitions, identities, whole networks, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from harness.tasks.ms import TASK
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution import attribute
from harness.attribution.lrp import COMPOSITES, ledger, lrp
from harness.attribution.lrp_rules import _RULES as REGISTERED
from harness.attribution.lrp_rules import RULES, Layer, Tensors, lrp_rule
from harness.core.errors import CellError, OutOfRange, UnknownName
from harness.core.overrides import override
from harness.core.targets import Target
from harness.core.types import Input
from harness.models.attention import attention_densenet
from harness.models.lesion_networks import cnn, residual_cnn, resnet10
from harness.models.picture_networks import vgg19
from harness.models.unet import unet


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same weights and inputs in every test."""
    torch.manual_seed(0)


# Rules against replicas with loops over single products


def contributions(x: Tensor, w: Tensor) -> Tensor:
    """z_ij = x_i w_ij, (I, J)."""
    return torch.stack([torch.stack([x[i] * w[i, j] for j in range(w.shape[1])]) for i in range(len(x))])


def by_epsilon(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The ε-rule with ε = 0.001."""
    z = contributions(x, w)
    total = z.sum(0) + b
    return (z / (total + 1e-3 * torch.where(total >= 0, 1.0, -1.0)) * r).sum(1)


def by_alpha_beta(x: Tensor, w: Tensor, b: Tensor, r: Tensor, alpha: float) -> Tensor:
    """The αβ-rule."""
    z = contributions(x, w)
    up, down = z.clamp(min=0), z.clamp(max=0)
    positive = (up / (up.sum(0) + b.clamp(min=0))).nan_to_num()  # 0 / 0 if nothing has this sign
    negative = (down / (down.sum(0) + b.clamp(max=0))).nan_to_num()
    return ((alpha * positive - (alpha - 1) * negative) * r).sum(1)


def by_zplus(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The z⁺-rule."""
    z = contributions(x.clamp(min=0), w.clamp(min=0))
    return ((z / (z.sum(0) + b.clamp(min=0))).nan_to_num() * r).sum(1)


def by_gamma(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The γ-rule with γ = 0.25."""
    z = contributions(x, w)
    total = z.sum(0) + b
    shares = torch.zeros_like(z)
    for j in range(w.shape[1]):
        sign = 1.0 if total[j] >= 0 else -1.0
        favoured = z[:, j] + 0.25 * (sign * z[:, j]).clamp(min=0) * sign
        bias = b[j] + 0.25 * (sign * b[j]).clamp(min=0) * sign
        shares[:, j] = favoured / (favoured.sum() + bias)
    return (shares * r).sum(1)


def by_zbox(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The z^B-rule for inputs in [−0.5, 1.5]."""
    z = contributions(x, w) - (-0.5) * w.clamp(min=0) - 1.5 * w.clamp(max=0)
    return (z / z.sum(0) * r).sum(1)


def by_wsquare(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The w²-rule."""
    return (w**2 / ((w**2).sum(0) + b**2) * r).sum(1)


def by_flat(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """Equal shares."""
    return torch.full_like(x, float(r.sum()) / len(x))


def by_absolute(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """Shares by absolute contributions."""
    z = contributions(x, w).abs()
    return (z / (z.sum(0) + b.abs()) * r).sum(1)


CASES: dict[str, tuple[str, dict[str, float], Callable[..., Tensor]]] = {
    "epsilon": ("epsilon", {"epsilon": 1e-3}, by_epsilon),
    "alpha1beta0": ("alpha_beta", {}, lambda *one: by_alpha_beta(*one, alpha=1.0)),
    "alpha2beta1": ("alpha_beta", {"alpha": 2.0}, lambda *one: by_alpha_beta(*one, alpha=2.0)),
    "zplus": ("zplus", {}, by_zplus),
    "gamma": ("gamma", {"gamma": 0.25}, by_gamma),
    "zbox": ("zbox", {"low": -0.5, "high": 1.5}, by_zbox),
    "wsquare": ("wsquare", {}, by_wsquare),
    "flat": ("flat", {}, by_flat),
    "absolute": ("absolute", {}, by_absolute),
}


def linear_layer(x: Tensor, w: Tensor, b: Tensor | None) -> Layer:
    """A linear layer, (1, I) → (1, J)."""
    return Layer((x,), (w,), b, lambda inputs, weights: inputs[0] @ weights[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_rules_of_a_linear_layer_by_their_definition(case: str, with_bias: bool) -> None:
    """Each rule agrees with a replica that adds single products, for inputs of both signs."""
    name, options, replica = CASES[case]
    x, w, r = torch.randn(5).double(), torch.randn(5, 3).double(), torch.randn(3).double()
    b = torch.randn(3).double() * with_bias
    (found,) = RULES[name](linear_layer(x[None], w, b if with_bias else None), r[None], **options)
    torch.testing.assert_close(found[0], replica(x, w, b, r), rtol=1e-10, atol=1e-12)


def test_every_rule_has_a_replica() -> None:
    """No rule is left out of the comparison."""
    assert {name for name, _, _ in CASES.values()} == set(RULES)


@pytest.mark.parametrize("case", [name for name in CASES if name != "flat"])  # ones have no receptive field
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rules_of_a_convolution_are_those_of_its_matrix(case: str, dims: int) -> None:
    """A convolution with stride and padding is a linear layer with a sparse matrix."""
    name, options, _ = CASES[case]
    size, stride = {1: 7, 2: 5, 3: 3}[dims], 2
    weight = torch.randn(2, 2, *([3] * dims)).double()
    x = torch.randn(1, 2, *([size] * dims)).double()
    operation = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[dims]

    def convolve(inputs: Tensors, weights: Tensors) -> Tensor:
        return operation(inputs[0], weights[0], stride=stride, padding=1)

    units = torch.eye(x.numel()).double().reshape(-1, *x.shape[1:])
    matrix = operation(units, weight, stride=stride, padding=1).flatten(1)
    r = torch.randn(operation(x, weight, stride=stride, padding=1).shape).double()
    (found,) = RULES[name](Layer((x,), (weight,), None, convolve), r, **options)
    (expected,) = RULES[name](linear_layer(x.flatten(1), matrix, None), r.flatten(1), **options)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-9, atol=1e-11)


def test_alpha_below_one_is_refused() -> None:
    """α − β = 1 with β ≥ 0."""
    with pytest.raises(OutOfRange, match="at least 1"):
        RULES["alpha_beta"](linear_layer(torch.ones(1, 2), torch.ones(2, 1), None), torch.ones(1, 1), alpha=0.5)


def test_a_rule_is_added_by_one_function() -> None:
    """A registered function can be named by a composite; a name cannot be taken twice."""

    @lrp_rule("equal")
    def equal(layer: Layer, relevance: Tensor) -> Tensors:
        return tuple(relevance.sum() / x.numel() * torch.ones_like(x) for x in layer.inputs)

    try:
        assert RULES["equal"] is equal
        with pytest.raises(OutOfRange, match="twice"):
            lrp_rule("equal")(lambda layer, relevance: layer.inputs)
    finally:
        del REGISTERED["equal"]


# Identities of whole networks


def relu_network(dims: int = 2, *, bias: bool = False) -> nn.Module:
    """Convolutions, ReLU, maximum pooling and a linear layer."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]
    return nn.Sequential(
        conv(2, 4, 3, padding=1, bias=bias), nn.ReLU(), pool(2), conv(4, 5, 3, bias=bias), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(5 * 2**dims, 3, bias=bias),
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_epsilon_rule_is_input_times_gradient(dims: int) -> None:
    """In a ReLU network without biases, the ε-rule with ε = 0 is input × gradient."""
    network, x = relu_network(dims), torch.randn(3, 2, *([8] * dims)).double()
    found = attribute("lrp", network, x, [0, 2], composite="epsilon", epsilon=0.0)
    expected = attribute("input_x_gradient", network, x, [0, 2])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_linear_network_has_its_contributions() -> None:
    """For a linear network, relevance is weight × input."""
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).eval(), torch.randn(2, 1, 3, 4)
    (found,) = attribute("lrp", network, x, [1], composite="epsilon", epsilon=0.0)
    torch.testing.assert_close(found, x * network[1].weight[1].reshape(1, 3, 4))


@pytest.mark.parametrize("composite", [name for name in COMPOSITES if name not in ("gamma_box", "by_depth")])
def test_relevance_is_conserved(composite: str) -> None:
    """Without biases, the map adds up to the output, and the ledger says so at every operation."""
    network, x = relu_network(), torch.rand(2, 2, 8, 8).double()
    (found,) = attribute("lrp", network, x, [1], composite=composite, epsilon=1e-12)
    lines = ledger(network, (x,), 1, composite=composite, epsilon=1e-12)
    lost = [line for line in lines if not math.isclose(line.received, line.passed, rel_tol=1e-5, abs_tol=1e-9)]
    if not lost:  # an output may have no contribution of the right sign
        torch.testing.assert_close(found.sum(), network(x)[:, 1].sum(), rtol=1e-5, atol=1e-8)
    else:
        assert {line.rule for line in lost} <= {"alpha_beta", "zplus"}
    assert [line.operation for line in lines][:2] == ["mm", "view"] and lines[0].module == "6"


def test_relevance_has_the_sign_of_what_is_explained() -> None:
    """Started from a negative output, the α1β0-rule has negative relevance only; from |output| or 1, positive only."""
    network, x = relu_network(), torch.rand(4, 2, 8, 8).double()
    network[6].weight.data.abs_().neg_()
    (value,) = attribute("lrp", network, x, [0])
    (absolute,) = attribute("lrp", network, x, [0], start="absolute")
    (one,) = attribute("lrp", network, x, [0], start="one")
    assert (network(x)[:, 0] < 0).all() and (value <= 1e-12).all() and value.min() < 0
    torch.testing.assert_close(absolute, -value)
    torch.testing.assert_close(one * network(x)[:, :1].abs()[..., None, None], absolute, rtol=1e-6, atol=1e-9)


def test_biases_take_part_only_if_asked() -> None:
    """With bias, a share of the relevance is absorbed; without, the map adds up to the output."""
    network, x = relu_network(bias=True), torch.rand(2, 2, 8, 8).double()
    (without,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=1e-12)
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=1e-12, bias=True)
    torch.testing.assert_close(without.sum(), network(x)[:, 0].sum(), rtol=1e-5, atol=1e-8)
    gradient = torch.autograd.functional.jacobian(lambda one: network(one)[:, 0].sum(), x)
    torch.testing.assert_close(found, x * gradient, rtol=1e-6, atol=1e-9)


def test_batch_normalisation_passed_equals_folded() -> None:
    """BN, ReLU, convolution: passing relevance through BN is the same as moving its scale into the convolution."""
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False)
    norm.weight.data, norm.bias.data = torch.rand(3) + 0.5, torch.randn(3)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 1, bias=False))
    network = nn.Sequential(norm, nn.ReLU(), conv, head).double().eval()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()

    class Shifted(nn.Module):
        """max(x − θ, 0), the activation of the canonised network."""

        def forward(self, x: Tensor) -> Tensor:
            shift = (norm.running_mean - norm.bias / scale).double()
            return torch.relu(x - shift[None, :, None, None])

    canonised = nn.Sequential(Shifted(), nn.Conv2d(3, 4, 3, bias=False), head).double().eval()
    canonised[1].weight.data = conv.weight * scale[None, :, None, None]
    x = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(network(x), canonised(x))
    # The first layer of both is the convolution behind the activation, so that no input rule applies.
    for composite in ("epsilon", "convolution:alpha_beta"):
        options: dict[str, Any] = {"composite": composite, "epsilon": 1e-9}
        (one,), (other,) = (attribute("lrp", net, x, [0], **options) for net in (network, canonised))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_batch_normalisation_after_a_convolution_is_folded() -> None:
    """Convolution, BN: the same as one convolution with the folded weights, also for negative scales."""
    conv, norm = nn.Conv3d(1, 4, 3, bias=False), nn.BatchNorm3d(4)
    norm.weight.data = torch.tensor([1.0, -0.7, 0.3, -1.2])
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    network = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 1)).double().eval()
    folded = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), network[4]).double().eval()
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    folded[0].weight.data = conv.weight * factor[:, None, None, None, None]
    folded[0].bias.data = norm.bias - norm.running_mean * factor
    x = torch.rand(2, 1, 5, 5, 5).double()
    (one,), (other,) = (attribute("lrp", net, x, [0]) for net in (network, folded))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalisation_after_a_transposed_convolution_is_folded_by_group(groups: int) -> None:
    """The same as one transposed convolution whose weights of each output channel are scaled."""
    conv, norm = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6)
    norm.weight.data, norm.bias.data = torch.randn(6), torch.randn(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 1))
    network = nn.Sequential(conv, norm, head).double().eval()
    folded = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), head).double().eval()
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    with torch.no_grad():
        for channel in range(6):
            group, output = divmod(channel, 6 // groups)
            rows = slice(group * (4 // groups), (group + 1) * (4 // groups))
            folded[0].weight[rows, output] = conv.weight[rows, output] * factor[channel]
        folded[0].bias.copy_((conv.bias - norm.running_mean) * factor + norm.bias)
    x = torch.rand(2, 4, 3, 3).double()
    torch.testing.assert_close(network(x), folded(x))
    for bias in (False, True):
        (one,), (other,) = (attribute("lrp", net, x, [0], bias=bias) for net in (network, folded))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# Structures


class Residual(nn.Module):
    """x + f(x), with the sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Linear(16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv(x))
        y += x
        found: Tensor = self.head(y.flatten(1))
        return found


def test_residual_sums_are_split() -> None:
    """Relevance is divided between the branches, and not doubled."""
    network, x = Residual().double().eval(), torch.rand(2, 1, 4, 4).double()
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=1e-12)
    torch.testing.assert_close(found.sum(), network(x).sum(), rtol=1e-6, atol=1e-9)


class Shared(nn.Module):
    """One layer used twice, a list of branches, functional calls, two inputs and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        parts = [functional.relu(self.conv(functional.relu(self.conv(one)))) for one in (x, y)]
        found: Tensor = self.head(torch.cat([part.mean((2, 3)) for part in parts], 1))
        return found


def test_shared_modules_and_several_inputs() -> None:
    """Each input has its own relevance, and together they add up to the output."""
    network, given = Shared().eval(), (torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5))
    network.conv.weight.data.abs_()
    (found,) = attribute("lrp", network, given, [0], composite="epsilon", epsilon=1e-12)
    assert [one.shape for one in found] == [one.shape for one in given]
    torch.testing.assert_close(sum(one.sum() for one in found), network(*given).sum(), rtol=1e-4, atol=1e-6)


class Gate(nn.Module):
    """Product of a signal, tanh(a), and a gate, σ(b), of two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (torch.tanh(a) * torch.sigmoid(b)).sum(1, keepdim=True)


@pytest.mark.parametrize("product", ["proposal", "absolute", "all", "half"])
def test_shares_of_a_product_by_hand(product: str) -> None:
    """The shares of signal and gate are those of the definition and sum to one."""
    a, b = torch.tensor([[0.3, -1.2]]).double(), torch.tensor([[0.4, -0.6]]).double()
    ((signal, gate),) = attribute("lrp", Gate(), (a, b), [0], composite="epsilon", epsilon=0.0, product=product)
    s, g = torch.tanh(a), torch.sigmoid(b)
    shares = {
        "proposal": s.abs() / (s.abs() + g),
        "absolute": a.abs() / (a.abs() + b.abs()),
        "all": torch.ones_like(a),
        "half": torch.full_like(a, 0.5),
    }[product]
    torch.testing.assert_close(signal, s * g * shares)
    torch.testing.assert_close(signal + gate, s * g)


DIFFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": lambda y: -y,
    "rsub": lambda y: 0.5 - y,
    "rsub tensor": lambda y: torch.rsub(y, torch.full_like(y, 0.5)),
    "rsub factor": lambda y: torch.rsub(y, 0.5, alpha=2),
    "two": lambda y: torch.rsub(y, y.flip(1), alpha=3),
}


@pytest.mark.parametrize("case", DIFFERENCES)
@pytest.mark.parametrize("bias", [False, True])
def test_negation_and_differences_are_linear(case: str, bias: bool) -> None:
    """With bias, relevance is input × gradient; without, the constant gets nothing and the map adds up."""
    head = nn.Linear(4, 1, bias=False)
    head.weight.data = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    network, x = nn.Sequential(Inner(DIFFERENCES[case]), head).double().eval(), torch.rand(2, 4).double() + 1
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=0.0, bias=bias)
    gradient = torch.autograd.functional.jacobian(lambda one: network(one).sum(), x)
    if bias or case in ("neg", "two"):
        torch.testing.assert_close(found, x * gradient)
    else:
        torch.testing.assert_close(found, DIFFERENCES[case](x) * head.weight)


@pytest.mark.parametrize("product", ["proposal", "absolute", "all", "half"])
def test_a_highway_conserves_relevance(product: str) -> None:
    """g · f + (1 − g) · x; with all to the signal, gates get nothing."""

    class Highway(nn.Module):
        def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
            gate = torch.sigmoid(b)
            return (gate * f + (1 - gate) * x).sum(1, keepdim=True)

    x, f, b = (torch.rand(2, 3).double() + 0.5 for _ in range(3))
    options: dict[str, Any] = {"composite": "epsilon", "epsilon": 0.0, "product": product}
    ((one, other, gate),) = attribute("lrp", Highway(), (x, f, b), [0], **options)
    torch.testing.assert_close((one + other + gate).sum(1), Highway()(x, f, b)[:, 0])
    if product == "all":
        torch.testing.assert_close(one, (1 - torch.sigmoid(b)) * x)
        assert not gate.any()


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "truth values": lambda y: y * (y > 0),
    "floats": lambda y: (y > 0).to(y.dtype) * y,
    "integers": lambda y: y * (y > 0).long(),
    "complement": lambda y: y * torch.sub(torch.ones_like(y), (y <= 0).to(y.dtype)),
    "rsub": lambda y: y * (1 - (y <= 0).to(y.dtype)),
    "two": lambda y: y * ((y > 0).to(y.dtype) * (y < 9).to(y.dtype)),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("product", ["proposal", "absolute", "all", "half"])
def test_a_mask_is_a_gate_without_relevance(case: str, product: str) -> None:
    """All relevance goes to the other factor, as with the ReLU that is the same function."""
    layers, x = (nn.Linear(5, 6), nn.Linear(6, 1)), torch.randn(3, 5)
    options: dict[str, Any] = {"composite": "epsilon", "product": product}
    maps = [
        attribute("lrp", nn.Sequential(layers[0], gate, layers[1]).eval(), x, [0], **options)[0]
        for gate in (Inner(MASKS[case]), nn.ReLU())
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_a_mean_over_a_mask_conserves_relevance() -> None:
    """The number of voxels of a mask divides a sum like a constant."""

    def masked_mean(y: Tensor) -> Tensor:
        mask = (y > 0.5).to(y.dtype)
        return (y * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)

    x = torch.rand(2, 9).double()
    (found,) = attribute("lrp", Inner(masked_mean).eval(), x, [0], composite="epsilon", epsilon=0.0)
    mask = (x > 0.5).double()
    torch.testing.assert_close(found, x * mask / mask.sum(1, keepdim=True))


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Networks of the project."""
    torch.manual_seed(0)
    shape = (24, 28, 24)
    contrasts = (Input("image", ("qT1", "MWF", "NDI"), shape),)
    target = (Target("severe", "binary"),)
    for fusion in ("gated", "attention", "concatenation"):
        yield fusion, attention_densenet(contrasts, target, fusion=fusion, blocks=2), torch.rand(1, 3, *shape)
    masks = (torch.rand(2, 1, 24, 24, 24) > 0.8).float()
    yield "cnn", cnn(1, 2, image_shape=(24, 24, 24), kernel=4, stride=3), masks
    residual = residual_cnn(1, 2, image_shape=(24, 24, 24), kernel=4, stride=3, block_kernel=3, block_stride=2)
    yield "residual_cnn", residual, masks
    yield "resnet10", resnet10(1, 2, width=4), masks
    yield "unet", Summed(unet(2, 2, width=4, depth=2)), torch.rand(1, 2, 16, 16)


class Summed(nn.Module):
    """A segmentation network with the sum of its output as scalar."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x).flatten(2).sum(2)
        return out


@pytest.mark.parametrize(("network", "x"), [pytest.param(net, x, id=name) for name, net, x in networks()])
def test_networks_of_the_project(network: nn.Module, x: Tensor) -> None:
    """All of them can be explained, unchanged, and relevance is finite and reaches the image."""
    network.eval()
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=1e-3)
    assert found.shape == x.shape and bool(torch.isfinite(found).all()) and bool(found.any())


KINDS: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "conv1d": ((3, 12), lambda: nn.Conv1d(3, 4, 3, padding=1, bias=False)),
    "conv2d": ((3, 8, 8), lambda: nn.Conv2d(3, 4, 3, stride=2, bias=False)),
    "conv3d": ((1, 6, 6, 6), lambda: nn.Conv3d(1, 4, 3, dilation=2, bias=False)),
    "groups": ((4, 8, 8), lambda: nn.Conv2d(4, 4, 3, groups=2, bias=False)),
    "transposed": ((3, 5, 5), lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)),
    "linear": ((7,), lambda: nn.Linear(7, 5, bias=False)),
    "normalisation": ((3, 9), lambda: nn.BatchNorm1d(3)),
    **{name: ((9,), getattr(nn, name)) for name in ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Softplus", "PReLU")},
    **{name: ((9,), getattr(nn, name)) for name in ("Tanh", "Sigmoid", "ReLU6", "Mish", "Hardswish", "Dropout")},
    **{name: ((9,), getattr(nn, name)) for name in ("Hardsigmoid", "LogSigmoid")},
    "in place": ((9,), lambda: nn.Sequential(nn.Linear(9, 9, bias=False), nn.ReLU(inplace=True))),
    "max 1d": ((3, 12), lambda: nn.MaxPool1d(2)),
    "max 2d": ((3, 8, 8), lambda: nn.MaxPool2d(3, 2, 1)),
    "max 3d": ((3, 6, 6, 6), lambda: nn.MaxPool3d(2)),
    "mean 1d": ((3, 12), lambda: nn.AvgPool1d(2)),
    "mean 2d": ((3, 8, 8), lambda: nn.AvgPool2d(2)),
    "mean 3d": ((3, 6, 6, 6), lambda: nn.AvgPool3d(3)),
    "adaptive mean 1d": ((3, 12), lambda: nn.AdaptiveAvgPool1d(3)),
    "adaptive mean 2d": ((3, 8, 8), lambda: nn.AdaptiveAvgPool2d(1)),
    "adaptive mean 3d": ((3, 6, 6, 6), lambda: nn.AdaptiveAvgPool3d(2)),
    "adaptive max 1d": ((3, 12), lambda: nn.AdaptiveMaxPool1d(3)),
    "adaptive max 2d": ((3, 8, 8), lambda: nn.AdaptiveMaxPool2d(2)),
    "adaptive max 3d": ((3, 6, 6, 6), lambda: nn.AdaptiveMaxPool3d(1)),
    "mean": ((3, 6, 6), lambda: Inner(lambda x: x.mean((2, 3)))),
    "maximum": ((3, 6, 6), lambda: Inner(lambda x: x.amax((2, 3)))),
    "concatenation": ((3, 6), lambda: Inner(lambda x: torch.cat([x, 2 * x], 1))),
    "residual": ((6,), lambda: Inner(lambda x: x + functional.relu(x - 0.5))),
    "functional": ((3, 8, 8), lambda: Inner(lambda x: functional.max_pool2d(functional.relu(x), 2))),
    "slices": ((4, 6), lambda: Inner(lambda x: x[:, 1:3, ::2])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer_conserves_relevance(kind: str) -> None:
    """Without bias, and with ε towards 0, the relevance of the image is the output for every kind of layer."""
    shape, make = KINDS[kind]
    torch.manual_seed(0)
    x = torch.rand(2, *shape, dtype=torch.double) + 0.1
    inner = nn.Sequential(make(), nn.Flatten()).double().eval()
    network = nn.Sequential(inner, nn.Linear(inner(x).shape[1], 1, bias=False).double()).eval()
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=1e-12)
    torch.testing.assert_close(found.flatten(1).sum(1), network(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_a_class_margin_is_a_start() -> None:
    """Relevance of a difference of two logits is conserved, like that of one of them."""
    network, x = relu_network(), torch.rand(2, 2, 8, 8).double()

    class Margin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = network(x)
            return logits[:, :1] - logits[:, 1:2]

    (found,) = attribute("lrp", Margin(), x, [0], composite="epsilon", epsilon=1e-12)
    torch.testing.assert_close(found.flatten(1).sum(1), Margin()(x)[:, 0], rtol=1e-5, atol=1e-8)


def test_vgg19() -> None:
    """VGG19 has 16 convolutions and here one linear layer, through all of which relevance is propagated."""
    network, x = vgg19(3, 1, (64, 64), width=4), torch.rand(1, 3, 64, 64)
    (found,) = attribute("lrp", network.eval(), x, [0], epsilon=1e-3)
    operations = [line.operation for line in ledger(network, (x,), 0, epsilon=1e-3)]
    assert operations.count("convolution") == 16 and operations.count("addmm") == 1
    assert bool(torch.isfinite(found).all()) and bool(found.any())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["resnet18", "DenseNet121"])
def test_networks_of_monai(name: str, dims: int) -> None:
    """Residual and densely connected networks of another library, without changes."""
    nets = pytest.importorskip("monai.networks.nets")
    if name == "resnet18":
        network = nets.resnet18(spatial_dims=dims, n_input_channels=1, num_classes=2)
    else:
        network = nets.DenseNet121(spatial_dims=dims, in_channels=1, out_channels=2)
    x = torch.rand(1, 1, *([64 if dims == 2 else 48] * dims))
    (found,) = attribute("lrp", network.eval(), x, [1], epsilon=1e-3)
    lines = ledger(network, (x,), 1, epsilon=1e-3)
    assert bool(torch.isfinite(found).all()) and bool(found.any())
    assert {line.operation for line in lines} >= {"convolution", "addmm"}


def test_agrees_with_zennit() -> None:
    """The rules agree with an independent implementation, where it is installed."""
    pytest.importorskip("zennit")
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    network, x = relu_network().float(), torch.rand(2, 2, 8, 8)
    with Gradient(network, EpsilonPlusFlat(epsilon=1e-6)) as attributor:
        _, expected = attributor(x, torch.eye(3)[[1, 1]] * network(x))
    (found,) = attribute("lrp", network, x, [1], composite="alpha1beta0_flat")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


# The layers that read the image

BOUNDED = {"low": -0.5, "high": 1.5}
FIRST = ["alpha1beta0_box", "alpha1beta0_flat", "wsquare"]


class Behind(nn.Module):
    """An operation, and a layer behind it with a head."""

    def __init__(self, operation: Callable[..., Tensor], layer: nn.Module, size: int) -> None:
        super().__init__()
        self.operation, self.layer, self.head = operation, layer, nn.Linear(size, 1, bias=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(self.operation(*inputs)).relu().flatten(1))
        return found


def same_head(network: Behind, operation: Callable[..., Tensor], layer: nn.Module) -> Behind:
    """A network with another operation and first layer."""
    other = Behind(operation, layer, network.head.in_features)
    other.head = network.head
    return other.double().eval()


@pytest.mark.parametrize("composite", FIRST)
def test_concatenated_images_are_read_by_the_first_layer(composite: str) -> None:
    """Maps of two images are the channels of the map of one image."""
    conv = nn.Conv2d(3, 4, 3)
    network = Behind(lambda x, y: torch.cat([x, y], 1), conv, 4 * 16).double().eval()
    x, y = torch.rand(2, 1, 6, 6).double(), torch.rand(2, 2, 6, 6).double()
    (found,) = attribute("lrp", network, (x, y), [0], composite=composite, **BOUNDED)
    joint = same_head(network, lambda z: z, conv)
    (expected,) = attribute("lrp", joint, torch.cat([x, y], 1), [0], composite=composite, **BOUNDED)
    torch.testing.assert_close(torch.cat(tuple(found), 1), expected)


AFFINE: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "normalised": (lambda x: (x - 0.5) / 0.25, 4.0, -2.0),
    "flipped": (lambda x: 2 * (0.5 - x), -2.0, 1.0),
    "negated in place": (lambda x: x.clone().mul_(-3).add_(1), -3.0, 1.0),
    "slices": (lambda x: torch.cat([x[:, :1] + 1, x[:, 1:] + 1], 1), 1.0, 1.0),
    "written": (lambda x: torch.empty_like(x).copy_(x) * 2, 2.0, 0.0),
    "batch normalisation": (nn.BatchNorm2d(2, affine=False).eval(), 1 / math.sqrt(1 + 1e-5), 0.0),
}


@pytest.mark.parametrize("case", AFFINE)
@pytest.mark.parametrize("composite", FIRST)
def test_normalisation_inside_the_network_is_part_of_the_first_layer(case: str, composite: str) -> None:
    """The same as one convolution with the scale in its weights, whose input has the given bounds."""
    operation, scale, shift = AFFINE[case]
    conv, folded = nn.Conv2d(2, 4, 3).double(), nn.Conv2d(2, 4, 3).double()
    with torch.no_grad():
        folded.weight.copy_(conv.weight * scale)
        folded.bias.copy_(conv.bias + shift * conv.weight.sum((1, 2, 3)))
    network = Behind(operation, conv, 4 * 16).double().eval()
    other = same_head(network, lambda x: x, folded)
    x = 2 * torch.rand(2, 2, 6, 6).double() - 0.5
    torch.testing.assert_close(network(x), other(x))
    maps = [attribute("lrp", net, x, [0], composite=composite, **BOUNDED)[0] for net in (network, other)]
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("composite", FIRST)
def test_an_added_array_is_part_of_the_first_layer(composite: str) -> None:
    """The same as a linear layer with the array in its bias."""
    array, layer, folded = torch.randn(5).double(), nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
    with torch.no_grad():
        folded.weight.copy_(layer.weight)
        folded.bias.copy_(layer.bias + layer.weight @ array)
    network = Behind(lambda x: x + array, layer, 4).double().eval()
    other, x = same_head(network, lambda x: x, folded), torch.rand(2, 5).double()
    maps = [attribute("lrp", net, x, [0], composite=composite, **BOUNDED)[0] for net in (network, other)]
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("composite", FIRST)
def test_explicit_padding_is_that_of_the_convolution(composite: str) -> None:
    """Padding gets no relevance, by F.pad or by the convolution, so that the map adds up to the output."""
    conv, padded = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(2, 4, 3, padding=1, bias=False)
    padded.weight = conv.weight
    network = Behind(lambda x: functional.pad(x, (1, 1, 1, 1)), conv, 4 * 25).double().eval()
    other, x = same_head(network, lambda x: x, padded), torch.rand(2, 2, 5, 5).double()
    maps = [attribute("lrp", net, x, [0], composite=composite, **BOUNDED)[0] for net in (network, other)]
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(maps[0].sum(), network(x).sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("composite", FIRST)
def test_constant_channels_get_no_relevance(composite: str) -> None:
    """Channels of coordinates are like a bias: the map of the image adds up to the output."""
    place = torch.rand(1, 1, 5, 5).double()
    network = Behind(lambda x: torch.cat([x, place.expand(len(x), -1, -1, -1)], 1), nn.Conv2d(3, 4, 3), 4 * 9)
    x = torch.rand(2, 2, 5, 5).double()
    (found,) = attribute("lrp", network.double().eval(), x, [0], composite=composite, **BOUNDED)
    torch.testing.assert_close(found.sum(), network(x).sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", ["flat", "wsquare"])
def test_padding_between_layers_gets_no_relevance(rule: str) -> None:
    """The same as padding by the convolution, also behind other layers."""
    first, conv, padded = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3, padding=1)
    padded.weight, padded.bias = conv.weight, conv.bias
    network = Behind(lambda x: functional.pad(first(x).relu(), (1, 1, 1, 1)), conv, 4 * 9)
    network = network.double().eval()
    first.double()
    other, x = same_head(network, lambda x: first(x).relu(), padded), torch.rand(2, 1, 5, 5).double()
    maps = [attribute("lrp", net, x, [0], composite=rule)[0] for net in (network, other)]
    torch.testing.assert_close(maps[0], maps[1])


# Composites


@pytest.fixture
def doubled() -> Iterator[str]:
    """A rule of a user with an option: equal shares, times a factor."""

    @lrp_rule("doubled")
    def rule(layer: Layer, relevance: Tensor, *, factor: float = 2.0) -> Tensors:
        return tuple(factor * one for one in RULES["flat"](layer, relevance))

    yield "doubled"
    del REGISTERED["doubled"]


def test_a_rule_of_a_user_is_a_composite(doubled: str) -> None:
    """By its name, it applies to convolutions and linear layers; by position, with its options."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)).eval()
    x = torch.rand(1, 1, 2, 2)

    def total(composite: str) -> float:
        (found,) = attribute("lrp", network, x, [0], composite=composite, start="one", epsilon=0.0)
        return float(found.sum())

    assert total("doubled") == pytest.approx(4)
    assert total("first:doubled:factor=3") == pytest.approx(3)
    assert total("high:doubled:factor=0.5+first:doubled") == pytest.approx(1)
    assert total("alpha1beta0_flat+linear:doubled") == pytest.approx(2)


def test_a_composite_by_position_is_that_of_its_name() -> None:
    """Names stand for rules by position."""
    convolutions = [nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), nn.ReLU()) for _ in range(4)]
    network = nn.Sequential(*convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3, bias=False)).double().eval()
    x = torch.rand(2, 2, 12, 12).double()
    for name, text in {
        "alpha2beta1_box": "convolution:alpha_beta:alpha=2+first:zbox+pool:alpha_beta:alpha=2",
        "gamma_box": "epsilon_plus+convolution:gamma+first:zbox",
        "by_depth": "first:zbox+low:gamma+middle:epsilon+high:epsilon:epsilon=0",
    }.items():
        (one,) = attribute("lrp", network, x, [1], composite=name)
        (other,) = attribute("lrp", network, x, [1], composite=text)
        torch.testing.assert_close(one, other)


def test_depth_is_the_number_of_layers_from_the_image() -> None:
    """Thirds of the longest path; a short branch beside it is nearer to the image than the layer that follows."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(5))
            self.side, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.layers:
                y = layer(y)
            found: Tensor = self.head(y + self.side(x))
            return found

    composite = "low:gamma+middle:flat+high:wsquare"
    lines = ledger(Branched().eval(), (torch.rand(1, 3),), 0, composite=composite)
    rules = {line.module: line.rule for line in lines if line.operation == "addmm"}
    names = ["layers.0", "layers.1", "layers.2", "layers.3", "layers.4", "head"]
    assert [rules[name] for name in names] == ["gamma", "gamma", "flat", "flat", "wsquare", "wsquare"]
    assert rules["side"] == "gamma"


def test_composites_on_the_command_line(doubled: str) -> None:
    """Rules by position are a value like any other."""
    task = override(TASK, "attributions.f_proposal.composite", "first:flat+convolution:doubled:factor=3")
    assert task.explanations["f_proposal"].attribution.keywords == {
        "composite": "first:flat+convolution:doubled:factor=3"
    }


@pytest.mark.parametrize(
    ("composite", "error", "message"),
    [
        ("alpha1beta0", UnknownName, "alpha1beta0_box"),
        ("first:flatt", UnknownName, "rule of LRP.*flat"),
        ("frist:flat", UnknownName, "position of a composite of LRP.*first"),
        ("first:alpha_beta:alhpa=2", UnknownName, "option of the rule alpha_beta.*alpha"),
        ("first:alpha_beta:alpha=two", OutOfRange, "alpha of the rule alpha_beta of LRP must be a number, got 'two'"),
        ("epsilon+flat", OutOfRange, "position:rule:option=value, got 'flat'"),
    ],
)
def test_faults_of_composites(composite: str, error: type[Exception], message: str) -> None:
    """The message says what is unknown, and what there is."""
    with pytest.raises(error, match=message):
        attribute("lrp", relu_network(), torch.rand(1, 2, 8, 8).double(), [0], composite=composite)


@pytest.mark.parametrize(
    ("composite", "position"),
    [
        ("convolution:flat", "convolution:flat"),
        ("epsilon+pool:flat", "pool:flat"),
        ("epsilon+sum:flat", "sum:flat"),
        ("epsilon+middle:gamma", "middle:gamma"),
        ("alpha1beta0_box", "first:zbox"),
        ("wsquare", "first:wsquare"),
    ],
)
def test_a_rule_without_a_layer_is_refused(composite: str, position: str) -> None:
    """A composite that would be another one is not applied in silence; the first layer here reads an activation."""
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 1)).eval()
    with pytest.raises(CellError, match=rf"the network has none for {position}.*without the position"):
        attribute("lrp", network, torch.rand(1, 1, 2, 2), [0], composite=composite)


def test_the_ledger_has_the_options_of_the_method() -> None:
    """What the ledger passes to the image is the sum of the map with the same options."""
    network, x = relu_network(), torch.rand(1, 2, 8, 8).double()
    options: dict[str, Any] = {"composite": "gamma_box", "gamma": 0.7, "low": -0.5, "high": 2.0, "start": "one"}
    (found,) = attribute("lrp", network, x, [0], **options)
    assert ledger(network, (x,), 0, **options)[-1].passed == pytest.approx(float(found.sum()))
    known = [set(signature(one).parameters) - {"model", "inputs"} for one in (ledger, lrp)]
    assert known[1] - known[0] == {"targets", "batch_size", "numbers"}


def test_mean_pooling_by_absolute_values_conserves_relevance() -> None:
    """Windows of negative values and of zeros lose their relevance under αβ, and keep it with shares by |x|."""
    x = torch.tensor([[[1.0, 3.0, -2.0, -6.0, 0.0, 0.0, -1.0, 4.0]]]).double()
    network = nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 1, bias=False)).double().eval()
    network[2].weight.data = torch.tensor([[0.5, 1.0, 2.0, -1.0]]).double()
    options: dict[str, Any] = {"epsilon": 0.0}
    (lossy,) = attribute("lrp", network, x, [0], composite="linear:epsilon", **options)
    (found,) = attribute("lrp", network, x, [0], composite="linear:epsilon+pool:absolute", **options)
    assert lossy.flatten().tolist() == pytest.approx([0.25, 0.75, 0, 0, 0, 0, 0, -1.5])
    assert found.flatten().tolist() == pytest.approx([0.25, 0.75, -1, -3, 0, 0, -0.3, -1.2])
    assert float(found.sum()) == pytest.approx(network(x).item())
    # Zeros have relevance if the layer behind them gives it, whatever their values.
    (spread,) = attribute("lrp", network, x, [0], composite="linear:flat+pool:absolute", start="one")
    assert spread.flatten().tolist() == pytest.approx([1 / 16, 3 / 16, 1 / 16, 3 / 16, 1 / 8, 1 / 8, 1 / 20, 1 / 5])


# Size of relevance


def cancelling(layers: int) -> nn.Module:
    """Linear layers whose sums cancel for inputs of ones, and whose biases keep all activations at one."""

    def layer(outputs: int) -> nn.Linear:
        found = nn.Linear(2, outputs)
        found.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[:outputs]
        nn.init.ones_(found.bias)
        return found

    hidden = [nn.Sequential(layer(2), nn.ReLU()) for _ in range(layers - 1)]
    return nn.Sequential(*hidden, layer(1)).eval()


def test_the_size_of_relevance_is_reported() -> None:
    """One layer divides by ε = 1e-4: R = ±1e4 for an output of 1; with bias, R = ±1. An output of 0 has no ratio."""
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 2.0]])
    options: dict[str, Any] = {"composite": "epsilon", "epsilon": 1e-4}
    for bias, expected in ((False, [2e4, 2.0, math.nan]), (True, [2.0, 4 / 3, math.nan])):
        numbers: dict[str, Any] = {}
        attribute("lrp", cancelling(1), x, [0], numbers=numbers, bias=bias, batch_size=2, **options)
        assert numbers["relevance_ratio"].shape == (1, 3)
        assert numbers["relevance_ratio"][0].tolist() == pytest.approx(expected, rel=1e-3, nan_ok=True)


def test_infinite_relevance_is_not_blamed_on_the_output() -> None:
    """The message names the layer where relevance overflows, ε and bias; with bias, the same map is finite."""
    network, x = cancelling(8), torch.ones(1, 2)
    with pytest.raises(CellError, match=r"first at addmm \(rule epsilon\) in the module \d.*Raise epsilon.*bias=True"):
        attribute("lrp", network, x, [0], composite="epsilon")
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", bias=True)
    assert bool(found.isfinite().all())


# Refusals


class Odd(nn.Module):
    """A network with an operation that has no rule."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = Inner(operation)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x).flatten(1).sum(1, keepdim=True)
        return found


class Inner(nn.Module):
    """The module with the operation."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: torch.bmm(x[:, 0], x[:, 0]), "bmm"),
        (lambda x: functional.layer_norm(x, x.shape[1:]), "native_layer_norm"),
        (lambda x: torch.sort(x, dim=-1).values, "sort"),
        (lambda x: x / (1 + x), "div"),
        (lambda x: torch.cumsum(x, -1), "cumsum"),
        (lambda x: x + (x > 0.5).to(x.dtype), "_to_copy"),
        (lambda x: (x > 0.5).to(x.dtype) / (1 + x), "div"),
    ],
)
def test_operations_without_a_rule_are_refused_by_name(operation: Callable[[Tensor], Tensor], name: str) -> None:
    """The message names the operation and its module."""
    with pytest.raises(CellError, match=rf"no rule for the operation {name} in the module inner"):
        attribute("lrp", Odd(operation).eval(), torch.rand(1, 1, 4, 4) + 0.1, [0])


def test_input_that_is_not_used_has_no_relevance() -> None:
    """An unused input has a map of zeros."""

    class First(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True)

    options: dict[str, Any] = {"composite": "epsilon"}
    ((_, unused),) = attribute("lrp", First(), (torch.rand(1, 1, 3), torch.rand(1, 1, 3)), [0], **options)
    assert not unused.any()
