"""Networks for lesion-symptom mapping: published layers, sizes and parameter counts, and attributions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from captum.attr import DeepLift
from torch import Tensor, fx, nn

from harness import models
from harness.core.errors import OutOfRange
from harness.models.lesion_networks import ResidualBlock, cnn, residual_cnn, resnet10
from harness.testing import check_model

SHAPE = (13, 16, 12)
SMALL: dict[str, Callable[..., nn.Module]] = {
    "cnn": partial(cnn, image_shape=SHAPE, kernel=4, stride=2, widths=(3, 5)),
    "residual_cnn": partial(residual_cnn, image_shape=SHAPE, kernel=3, stride=2, widths=(3, 5), block_kernel=3),
    "resnet10": partial(resnet10, image_shape=SHAPE, width=2, hidden=7),
}


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _meta(name: str, **options: Any) -> nn.Module:
    """A network on the meta device, for which sizes and counts need no computation."""
    with torch.device("meta"):
        return models.build(name, **options)


def _shapes(network: nn.Module, kind: type | tuple[type, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Output sizes of the outermost modules of the given kinds, in order of execution."""
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: Any, out: Tensor) -> None:
        seen.append(tuple(out.shape[1:]))

    for module in network.children():
        if isinstance(module, kind):
            module.register_forward_hook(note)
    network(torch.zeros(1, 1, *shape, device="meta"))
    return seen


def _filled(network: nn.Module) -> nn.Module:
    """A float64 network with random batch statistics and weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.double().eval()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cnn", {"image_shape": (152, 179, 142), "outputs": 3}, 5_074_453),
        ("cnn", {"image_shape": (152, 179, 142)}, 5_058_451),
        ("residual_cnn", {"outputs": 3}, 2_254_053),
        ("residual_cnn", {"outputs": 3, "widths_by": "block"}, 2_559_003),
        ("resnet10", {}, 14_618_689),
        ("resnet10", {"outputs": 3}, 14_619_715),
        ("resnet10", {"hidden": 0}, 14_355_520 + 513),
        ("resnet10", {"dilated": False}, 14_618_689),
    ],
)
def test_published_number_of_parameters(name: str, options: dict[str, Any], expected: int) -> None:
    """Every published network, and each option of it, has the parameter count worked out from its layers."""
    assert _count(_meta(name, **options)) == expected


def test_backbone_of_resnet10_has_the_published_number_of_parameters() -> None:
    """The layers before the spatial mean have 14,355,520 parameters."""
    layers = list(_meta("resnet10"))
    backbone = layers[: [isinstance(layer, nn.AdaptiveAvgPool3d) for layer in layers].index(True)]
    assert sum(map(_count, backbone)) == 14_355_520


def test_cnn_has_the_published_shapes() -> None:
    """The sizes are 50×29×34×27, 100×4×5×4 and 8,000 features."""
    network = _meta("cnn", outputs=3)
    assert _shapes(network, (nn.ReLU, nn.Flatten), (152, 179, 142)) == [(50, 29, 34, 27), (100, 4, 5, 4), (8000,)]


@pytest.mark.parametrize("widths_by", ["convolution", "block"])
def test_residual_cnn_has_the_published_shapes(widths_by: str) -> None:
    """The sizes are 10×12×9 and 4×4×3 after the blocks, and 100 features after the mean."""
    network = _meta("residual_cnn", outputs=3, widths_by=widths_by)
    first = 100 if widths_by == "convolution" else 50
    shapes = _shapes(network, (ResidualBlock, nn.Flatten), (152, 179, 142))
    assert shapes == [(first, 10, 12, 9), (100, 4, 4, 3), (100,)]


@pytest.mark.parametrize(
    ("dilated", "last"), [(True, [(256, 12, 14, 11), (512, 12, 14, 11)]), (False, [(256, 6, 7, 6), (512, 3, 4, 3)])]
)
def test_resnet10_has_the_published_shapes(dilated: bool, last: list[tuple[int, ...]]) -> None:
    """The sizes are 46×54×43 (stem), 23×27×22 and 12×14×11 (blocks), then dilated or strided."""
    network = _meta("resnet10", dilated=dilated)
    expected = [(64, 46, 54, 43), (64, 23, 27, 22), (64, 23, 27, 22), (128, 12, 14, 11), *last]
    kinds = (nn.ReLU, nn.MaxPool3d, ResidualBlock, nn.Flatten)
    assert _shapes(network, kinds, (91, 107, 86))[:7] == [*expected, (512,)]


@pytest.mark.parametrize("dilated", [True, False])
def test_resnet10_agrees_with_monai(dilated: bool) -> None:
    """With the same weights, MONAI's ResNet10, dilated as in MedicalNet, gives the same features."""
    from monai.networks.nets.resnet import ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = _filled(resnet10(width=4, dilated=dilated))
        x = torch.randn(2, 1, 21, 25, 19, dtype=torch.float64)
    theirs = ResNet(
        "basic",
        [1, 1, 1, 1],
        [4, 8, 16, 32],
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )
    for stage, dilation in ((theirs.layer3, 2), (theirs.layer4, 4)) if dilated else ():
        block = stage[0]
        block.conv1.stride = block.downsample[0].stride = (1, 1, 1)
        for conv in (block.conv1, block.conv2):
            conv.dilation = conv.padding = (dilation,) * 3
    layers = list(ours)
    backbone = nn.Sequential(*layers[: [isinstance(layer, nn.Flatten) for layer in layers].index(True) + 1])
    state = zip(theirs.state_dict(), backbone.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(state))
    with torch.no_grad():
        torch.testing.assert_close(theirs.double().eval()(x), backbone(x), rtol=1e-10, atol=1e-12)


def test_residual_block_agrees_with_its_formula() -> None:
    """The block computes ReLU(BN(conv(ReLU(BN(conv x)))) + conv₁ x), as written with torch's functions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = _filled(SMALL["residual_cnn"]())
        x = torch.randn(2, 3, 6, 7, 5, dtype=torch.float64)
    block = next(layer for layer in network if isinstance(layer, ResidualBlock))
    one, norm_one, _, two, norm_two = block.branch

    def norm(values: Tensor, layer: nn.BatchNorm3d) -> Tensor:
        mean, var, weight, bias = (
            part.reshape(1, -1, 1, 1, 1) for part in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        return (values - mean) / (var + layer.eps) ** 0.5 * weight + bias

    inner = norm(nn.functional.conv3d(x, one.weight, one.bias, stride=3, padding=1), norm_one).clamp(min=0)
    outer = norm(nn.functional.conv3d(inner, two.weight, two.bias, padding=1), norm_two)
    expected = (outer + nn.functional.conv3d(x, block.skip.weight, block.skip.bias, stride=3)).clamp(min=0)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", SMALL)
def test_network_conforms(name: str) -> None:
    """Every network passes the conformance checks."""
    check_model(SMALL[name], in_channels=2, outputs=3, shape=SHAPE)


@pytest.mark.parametrize("name", SMALL)
def test_network_can_be_traced(name: str) -> None:
    """torch.fx can trace every network, and the traced network gives the same output."""
    network = SMALL[name](1, 2).eval()
    x = torch.randn(2, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(network)(x), network(x))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_deeplift_explains_the_whole_difference(name: str) -> None:
    """captum's DeepLIFT sums to f(x) − f(0), so no ReLU is used twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = _filled(SMALL[name](1, 2))
        x = torch.rand(2, 1, *SHAPE, dtype=torch.float64, requires_grad=True)
    attribution = DeepLift(network).attribute(x, target=1)
    with torch.no_grad():
        expected = (network(x) - network(torch.zeros_like(x)))[:, 1]
    torch.testing.assert_close(attribution.sum(dim=(1, 2, 3, 4)), expected)


@pytest.mark.parametrize(("name", "bounded"), [("cnn", False), ("residual_cnn", False), ("resnet10", True)])
def test_only_resnet10_has_a_sigmoid(name: str, bounded: bool) -> None:
    """Only ResNet10 ends in a sigmoid by default, as published."""
    assert isinstance(list(SMALL[name]())[-1], nn.Sigmoid) == bounded


@pytest.mark.parametrize("name", SMALL)
def test_activation_is_an_option(name: str) -> None:
    """The final sigmoid can be added or omitted and does not change the layers before it."""
    networks = [models.build(name, seed=4, **SMALL[name].keywords, activation=a) for a in ("none", "sigmoid")]  # type: ignore[attr-defined]
    x = torch.randn(2, 1, *SHAPE)
    with torch.no_grad():
        plain, squashed = (network.eval()(x) for network in networks)
    torch.testing.assert_close(torch.sigmoid(plain), squashed)


def test_kernels_that_do_not_fit_are_refused_with_a_suggestion() -> None:
    """Two kernels of 10 with stride 5 need 55 voxels; the message suggests kernels that fit."""
    with pytest.raises(OutOfRange, match=r"kernel \+ stride.*need 55; kernel=7, stride=3 would fit"):
        cnn(image_shape=(30, 36, 28))


@pytest.mark.parametrize("size", [1, 2, 5, 12, 28, 54, 91])
def test_suggested_kernel_fits(size: int) -> None:
    """The suggested kernel fits, and one larger by one voxel with half its stride does not."""
    from harness.models.lesion_networks import _fitting

    kernel, stride = (int(part.split("=")[1]) for part in _fitting(size).split(", "))
    cnn(image_shape=(size, size + 1, size), kernel=kernel, stride=stride, widths=(1, 1))
    larger = kernel + 1
    with pytest.raises(OutOfRange, match="would fit"):
        cnn(image_shape=(size, size + 1, size), kernel=larger, stride=max(larger // 2, 1), widths=(1, 1))


def test_smallest_image_of_the_published_kernels_is_55_voxels() -> None:
    """With the published kernels, 55 voxels fit and 54 do not."""
    assert _count(_meta("cnn", image_shape=(55, 55, 55))) == 5_050_450 + 101
    with pytest.raises(OutOfRange, match="need 55"):
        cnn(image_shape=(55, 55, 54))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(cnn, kernel=3, stride=4), "`stride <= kernel`.*stride=3 would fit"),
        (partial(residual_cnn, image_shape=(9, 20, 20)), "`kernel <= image_shape`.*kernel=9 would fit"),
        (partial(residual_cnn, block_kernel=4), "must be odd.*3 or 5 would fit"),
        (partial(resnet10, image_shape=(20, 20)), r"three sizes.*\(20, 20\)"),
        (partial(cnn, image_shape=(20, 0, 20)), r"three sizes.*\(20, 0, 20\)"),
    ],
)
def test_options_out_of_range_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    """Options out of range are refused, and the message suggests a value that fits."""
    with pytest.raises(OutOfRange, match=message):
        build()
