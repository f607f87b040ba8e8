"""Exact occlusion against captum and slow replicas."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import harness.attribution.occlusion as module
from harness import models
from harness.attribution import attribute
from harness.attribution.incremental import Incremental, Unreadable, read
from harness.attribution.occlusion import Windows
from harness.attribution.products import by_blocks, by_matrix, by_taps
from harness.core.errors import CellError, HarnessError, OutOfRange
from harness.testing import Formula, check_attribution, example_image, example_network

MODEL = example_network(2, channels=4, outputs=2)
X = example_image(2, 4, 9, 8, seed=2)


def _drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A float64 network in evaluation mode with random weights and batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build().double()
        for each in network.modules():
            if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.normal_(each.running_mean, 0.0, 0.5)  # type: ignore[arg-type]
                nn.init.uniform_(each.running_var, 0.5, 2.0)  # type: ignore[arg-type]
                nn.init.normal_(each.weight)
    return network.eval()


def _lesions(*shape: int, share: float = 0.03, seed: int = 0) -> Tensor:
    """A mask in which most windows are empty."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn < share).double()


def _captum(
    model: nn.Module,
    x: Tensor,
    targets: list[int],
    window: Any,
    stride: Any,
    baseline: Any = 0.0,
    all_at_once: bool = False,
) -> list[Tensor]:
    axes = x.ndim - 2
    edges, steps = ((each,) * axes if isinstance(each, int) else each for each in (window, stride))
    edges = tuple(min(edge, size) for edge, size in zip(edges, x.shape[2:], strict=True))
    steps = tuple(min(step, edge) for step, edge in zip(steps, edges, strict=True))
    channels = x.shape[1] if all_at_once else 1
    return [
        captum.attr.Occlusion(model).attribute(
            x, target=target, baselines=baseline, sliding_window_shapes=(channels, *edges), strides=(channels, *steps)
        )
        for target in targets
    ]


def _agree(found: list[Tensor], expected: list[Tensor]) -> None:
    """Compare to 1e-6 of the largest value, since captum always averages in float32."""
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * scale, check_dtype=False)


class _Residual(nn.Module):
    """A network with in-place sums, a pooled branch, concatenation, and functions in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.body, self.skip = nn.Conv2d(4, 4, 3, 1, 2, dilation=2), nn.Conv2d(4, 4, 1)
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1)
        self.last, self.head = nn.Conv2d(8, 6, 3, groups=2, padding="same"), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 3)."""
        x = functional.leaky_relu(self.norm(self.stem(x)), 0.1, inplace=True)
        out = self.body(x)
        out += self.skip(x)
        out = torch.cat([self.pool(out.sigmoid()), self.pool(torch.tanh(out) * x)], dim=1)
        out = self.mean(out) * 0.5 - 1
        scores: Tensor = self.head(self.last(out).relu().mean(dim=(2, 3)).view(out.size(0), -1))
        return scores


class _UNet(nn.Module):
    """A small U-Net with a skip connection and a mean over the image as score."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) → (N, 3)."""
        high = self.down(x).relu()
        low = self.low(functional.max_pool2d(high, 2)).relu()
        scores: Tensor = self.out(torch.cat([high, self.up(low)], dim=1)).flatten(2).mean(2)
        return scores


class _Rotated(nn.Module):
    """A network whose Python code depends on tensor values, so that it cannot be traced layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 3)."""
        if float(x.abs().sum()) > 1e9:
            x = -x
        return functional.softplus(self.conv(x)).flatten(2).sum(2)


def _chain(*layers: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """A chain of layers that ends in a linear layer."""
    chain = nn.Sequential(*(layer() for layer in layers), nn.Flatten())
    with torch.no_grad():
        width = chain.eval()(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*chain, nn.Linear(width, 3))


_CNN = partial(models.build, "cnn", outputs=3, image_shape=(26, 23, 25), kernel=4, stride=3, widths=(3, 4))
_RESIDUAL = partial(
    models.build, "residual_cnn", outputs=3, image_shape=(24, 21, 26), kernel=5, stride=3, block_kernel=3, widths=(3, 4)
)
_POOLED = partial(
    _chain,
    partial(nn.Conv3d, 1, 3, 3, 2, 1),
    nn.ReLU,
    partial(nn.MaxPool3d, 3, 2, 1, ceil_mode=True),
    partial(nn.Conv3d, 3, 3, 3, padding=1),
    nn.ELU,
    shape=(1, 17, 18, 19),
)
_CHAIN = partial(
    _chain, partial(nn.Conv1d, 2, 4, 5, 2, 1, 2), partial(nn.PReLU, 4), partial(nn.AvgPool1d, 3, 2), shape=(2, 61)
)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (_CNN, (2, 1, 26, 23, 25)),
    "residual_cnn": (_RESIDUAL, (2, 1, 24, 21, 26)),
    "max-pool": (_POOLED, (1, 1, 17, 18, 19)),
    "one axis": (_CHAIN, (2, 2, 61)),
    "sums, branches, dilation, groups": (_Residual, (2, 1, 37, 34)),
    "u-net": (_UNet, (2, 2, 16, 18)),
    "untraceable": (_Rotated, (2, 1, 13, 14)),
}


@pytest.mark.parametrize("most_share", [1e9, 0.9, -1.0], ids=["incremental", "automatic", "full passes"])
@pytest.mark.parametrize("name", NETWORKS)
def test_occlusion_agrees_with_captum(name: str, most_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map agrees with captum for windows of odd sizes over lesion masks, for every way of computing it."""
    monkeypatch.setattr(module, "_WORTH", most_share)
    build, shape = NETWORKS[name]
    model, x = _drawn(build), _lesions(*shape)
    _agree(attribute("occlusion", model, x, [0, 2], window=5, stride=3), _captum(model, x, [0, 2], 5, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"window": (3, 64), "stride": (2, 64)},
        {"window": (4, 5), "stride": (4, 2), "baseline": 0.3},
        {"window": 1, "stride": 1},
        {"window": 64, "stride": 64, "baseline": -1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_options_agree_with_captum(options: dict[str, Any], per_channel: bool) -> None:
    """Options agree with captum: channels together or apart, edges per axis, windows wider than the image."""
    model = _drawn(_UNet)
    x = example_image(2, 2, 10, 12)
    expected = _captum(model, x, [1], all_at_once=not per_channel, **options)
    _agree(attribute("occlusion", model, x, [1], per_channel=per_channel, **options), expected)


def test_a_baseline_per_voxel_agrees_with_captum() -> None:
    """A baseline tensor agrees with captum, also where it equals the image."""
    model, x = _drawn(_CNN), example_image(1, 1, 26, 23, 25)
    baseline = x.clone()
    baseline[..., 12:] = 0.5
    found = attribute("occlusion", model, x, [0], window=4, stride=3, baseline=baseline)
    _agree(found, _captum(model, x, [0], 4, 3, baseline))
    assert float(found[0][..., :9].abs().max()) == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_any_geometry_agrees_with_captum(seed: int) -> None:
    """Random kernels, strides, paddings, dilations, windows and sizes agree with captum."""
    draw = random.Random(seed)
    axes = draw.choice([2, 2, 3])
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
    channels = draw.choice([1, 2])

    def several(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(low, high) for _ in range(axes))

    shape = (channels, *several(14, 19 if axes == 3 else 30))
    kernels, steps = [several(1, 5), several(1, 3)], [several(1, 4), several(1, 3)]
    paddings = [tuple(draw.randint(0, k // 2 + 1) for k in kernel) for kernel in kernels]
    spread = several(1, 2) if min(shape[1:]) > 14 else (1,) * axes
    layers = [partial(conv, channels, 3, kernels[0], steps[0], paddings[0]), partial(norm, 3), nn.ReLU]
    layers += [partial(conv, 3, 2, kernels[1], steps[1], paddings[1], spread), nn.Softplus]
    model = _drawn(partial(_chain, *layers, shape=shape), seed)
    window = several(1, 6)
    stride = tuple(draw.randint(max(1, edge // 2), edge) for edge in window)
    x = _lesions(1, *shape, share=0.02, seed=seed)
    found = attribute("occlusion", model, x, [2], window=window, stride=stride, verify=2)
    _agree(found, _captum(model, x, [2], window, stride))


def test_several_inputs_agree_with_captum() -> None:
    """With several inputs, windows of one input are occluded while the other is unchanged, as in captum."""
    model = example_network(2, inputs=2)
    x = (example_image(2, 2, 9, 10), example_image(2, 2, 9, 10, seed=1))
    expected = captum.attr.Occlusion(model.eval()).attribute(
        x, target=1, sliding_window_shapes=((1, 4, 4), (1, 4, 4)), strides=((1, 3, 3), (1, 3, 3))
    )
    _agree(attribute("occlusion", model, x, [1], window=4, stride=3)[0], list(expected))


def test_float32_is_as_close_as_captum_is_to_itself() -> None:
    """The float32 map differs from captum's by at most four times captum's own error.

    That error is the larger of its difference between batch sizes and its difference from float64. For the
    published image size, ``benchmarks/occlusion.py`` prints the first one.
    """
    exact, x = _drawn(_CNN), _lesions(1, 1, 26, 23, 25)
    model = _drawn(_CNN).float()
    dense = [
        captum.attr.Occlusion(model).attribute(
            x.float(), target=0, sliding_window_shapes=(1, 5, 5, 5), strides=(1, 3, 3, 3), perturbations_per_eval=size
        )
        for size in (1, 32)
    ]
    found = attribute("occlusion", model, x.float(), [0], window=5, stride=3)[0]
    truth = attribute("occlusion", exact, x, [0], window=5, stride=3)[0]
    spread = max(float((dense[0] - dense[1]).abs().max()), float((dense[0] - truth).abs().max()))
    assert 0 < float((found - dense[0]).abs().max()) <= 4 * spread


def test_occlusion_agrees_with_a_slow_replica() -> None:
    """The map agrees with a loop over all windows: the mean loss over the windows that cover a voxel, in float64."""
    total, count = torch.zeros_like(X), torch.zeros_like(X)
    for channel in range(4):
        for row in (0, 2, 4, 6):
            for column in (0, 2, 4, 6):
                x = X.clone()
                window = (slice(None), channel, slice(row, row + 3), slice(column, column + 3))
                x[window] = 0.125
                with torch.no_grad():
                    lost = (MODEL.eval()(X) - MODEL(x))[:, 1]
                total[window] += lost[:, None, None]
                count[window] += 1
    found = attribute("occlusion", MODEL, X, [1], window=3, stride=2, baseline=0.125)[0]
    torch.testing.assert_close(found, total / count, rtol=0, atol=1e-13)


def test_occlusion_of_all_channels_gives_them_one_map() -> None:
    """Without `per_channel`, a window covers all channels at once."""
    found = attribute("occlusion", MODEL, X, [0], window=3, stride=3, per_channel=False)[0]
    assert torch.equal(found, found[:, :1].expand_as(found))


def test_occlusion_window_may_be_wider_than_the_image() -> None:
    """A window wider than the image covers a whole channel and equals channel ablation."""
    wide = attribute("occlusion", MODEL, X, [0], window=64, stride=64)[0]
    torch.testing.assert_close(wide, attribute("channel_ablation", MODEL, X, [0])[0], rtol=0, atol=1e-13)


def test_a_window_of_baseline_values_has_no_effect() -> None:
    """Where the image equals the baseline, the map is exactly zero."""
    x = X.clone()
    x[:, 1] = 0.0
    assert float(attribute("occlusion", MODEL, x, [0], window=3, stride=3)[0][:, 1].abs().max()) == 0.0


class _Counting(nn.Module):
    """A network that records batch sizes; it cannot be traced, so every window is a full forward pass."""

    batches: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.network = _drawn(_Rotated)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Counting":
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 3)."""
        if isinstance(x, Tensor):
            self.batches.append(len(x))
        scores: Tensor = self.network(x)
        return scores


def _passes(x: Tensor, targets: list[int], **options: Any) -> list[int]:
    model = _Counting()
    model.batches = []
    attribute("occlusion", model, x, targets, window=5, stride=3, **options)
    return model.batches


def test_empty_windows_need_no_forward_pass() -> None:
    """One lesion voxel at (7, 7) lies in four windows, so there are four passes and one without a window.

    Further passes show the memory of the activations, and that items are independent, also in a batch of four.
    """
    empty, one = torch.zeros(1, 1, 20, 20, dtype=torch.float64), torch.zeros(1, 1, 20, 20, dtype=torch.float64)
    one[..., 7, 7] = 1.0
    without = _passes(empty, [0])
    assert sum(_passes(one, [0])) - sum(without) - 2 - 11 - 4 == 4
    assert sum(without) == 1


def test_all_targets_share_the_passes() -> None:
    """Three outputs need as many forward passes as one."""
    x = _lesions(1, 1, 20, 20)
    assert _passes(x, [0, 1, 2]) == _passes(x, [1])


def test_batches_are_bounded() -> None:
    """`batch_size` and `memory_mb` limit the number of windows per pass."""
    x = _lesions(1, 1, 20, 20, share=0.5)
    assert max(_passes(x, [0], batch_size=3)) == 3
    # An image and its activations take 20² and 3 · 18² numbers, images twice: 14 kB, so 100 kB hold seven.
    assert max(_passes(x, [0], memory_mb=0.1)) == 7
    assert max(_passes(x, [0])) == 36


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"memory_mb": 0.1}], ids=str)
@pytest.mark.parametrize("name", ["cnn", "untraceable"])
def test_batches_do_not_change_the_map(name: str, options: dict[str, Any]) -> None:
    """The batch size does not change the map."""
    build, shape = NETWORKS[name]
    model, x = _drawn(build), _lesions(*shape)
    usual = attribute("occlusion", model, x, [1], window=5, stride=3)[0]
    found = attribute("occlusion", model, x, [1], window=5, stride=3, **options)[0]
    torch.testing.assert_close(found, usual, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["cnn", "residual_cnn"])
def test_published_networks_are_computed_incrementally(name: str) -> None:
    """A window of five voxels needs less than half the multiplications of a full pass, even in a small image."""
    build, shape = NETWORKS[name]
    network = Incremental(read(_drawn(build), 1), (_lesions(*shape)[:1],))
    origin = torch.tensor([[0, 0, 0], [3, 9, 6], [15, 12, 18]])
    network.changes(0, origin, torch.ones(3, 1, 5, 5, 5, dtype=torch.float64))
    few, whole = network.products
    assert 0 < few < 0.5 * whole


def test_verify_accepts_a_correctly_computed_network() -> None:
    """With ``verify``, a correctly computed map is unchanged."""
    model, x = _drawn(_CNN), _lesions(1, 1, 26, 23, 25)
    plain, checked = (attribute("occlusion", model, x, [0], window=5, stride=3, verify=k)[0] for k in (0, 5))
    assert torch.equal(plain, checked)


def test_verify_refuses_a_random_network() -> None:
    """With ``verify``, a network with active dropout is refused, since its output is random."""
    model = Formula(lambda x: functional.dropout(x, 0.5, training=True).flatten(1).sum(1, keepdim=True))
    with pytest.raises(CellError, match=r"network with reproducible outputs, but they differ by"):
        attribute("occlusion", model, example_image(1, 1, 9, 9), [0], window=3, stride=3, verify=3)


class _BatchStatistics(nn.Module):
    """A network with batch normalisation without running statistics, which can be traced or not."""

    def __init__(self, *, traced: bool) -> None:
        super().__init__()
        self.traced = traced
        self.network = example_network(2, channels=1)
        self.first, self.norm = nn.Conv2d(1, 1, 3, padding=1).double(), nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 3)."""
        if not self.traced and float(x.sum()) > 1e9:
            x = -x
        scores: Tensor = self.network(self.norm(self.first(x)))
        return scores


@pytest.mark.parametrize("verify", [0, 3])
@pytest.mark.parametrize("traced", [True, False])
def test_windows_are_computed_alone_if_outputs_depend_on_the_batch(traced: bool, verify: int) -> None:
    """Batch normalisation without running statistics gives the map of a network that computes items one by one."""
    model, x = _BatchStatistics(traced=traced).double(), _lesions(1, 1, 20, 20, share=0.2)
    found = attribute("occlusion", model, x, [1, 0], window=5, stride=3, verify=verify)
    _agree(found, _captum(model, x, [1, 0], 5, 3))


def test_verify_refuses_a_wrong_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``verify``, a wrong effect is refused, and the message shows both values and the window."""
    right = Incremental.changes
    monkeypatch.setattr(Incremental, "changes", lambda *given: 1.01 * right(*given))
    x = _lesions(1, 1, 26, 23, 25)
    with pytest.raises(CellError, match=r"must agree with full forward passes, got .* for .* window at \("):
        attribute("occlusion", _drawn(_CNN), x, [0], window=5, stride=3, verify=3)


def test_hooks_of_the_network_are_applied() -> None:
    """A user's hook that changes the output of a layer is part of the network."""
    build, shape = NETWORKS["cnn"]
    model, x = _drawn(build), _lesions(*shape)
    model[0].register_forward_hook(lambda layer, given, output: output.abs())  # type: ignore[index, operator]
    _agree(attribute("occlusion", model, x, [0], window=5, stride=3), _captum(model, x, [0], 5, 3))


class _Reused(nn.Module):
    """A network that changes a tensor in place and uses it again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 3)."""
        first = self.conv(x)
        second = first.relu_()
        return (first * 2 + second).flatten(2).sum(2)


def test_a_reused_tensor_changed_in_place_is_detected() -> None:
    """A network that reuses a tensor changed in place is computed by full passes, with correct results."""
    model, x = _drawn(_Reused), _lesions(1, 1, 12, 12, share=0.2)
    with pytest.raises(Unreadable, match="in place"):
        Incremental(read(model, 1), (x,))
    _agree(attribute("occlusion", model, x, [0], window=5, stride=3), _captum(model, x, [0], 5, 3))


def test_error_of_the_network_is_told() -> None:
    """An error raised by the network itself is quoted, with the shapes of input and weights."""
    with pytest.raises(HarnessError, match=r"fails for \(1, 1, 14, 40, 14\).*shapes cannot be multiplied"):
        attribute("occlusion", _drawn(_CNN), torch.ones(1, 1, 14, 40, 14, dtype=torch.float64), [0])


def test_occlusion_conforms_when_it_verifies() -> None:
    """With ``verify``, the extra full passes change neither the model nor the map."""
    check_attribution(module.occlusion, window=3, stride=2, verify=1)


def test_occlusion_refuses_a_stride_that_leaves_gaps() -> None:
    """A stride larger than the window is refused, and the message shows both."""
    with pytest.raises(OutOfRange, match="`1 <= stride <= window` must hold for occlusion, got stride=5, window=4"):
        attribute("occlusion", MODEL, X, [0], window=4, stride=5)


def test_occlusion_refuses_edges_of_other_axes() -> None:
    """Three edges for an image of two axes are refused."""
    with pytest.raises(OutOfRange, match=r"all 2 spatial axes or one per axis, got window=\(3, 3, 3\), stride=2"):
        attribute("occlusion", MODEL, X, [0], window=(3, 3, 3), stride=2)


def test_windows_are_placed_as_in_captum() -> None:
    """Eleven voxels, window 5 and stride 3 start at 0, 3, 6; twelve voxels need a fourth window of three voxels."""
    assert Windows((11,), (5,), (3,)).counts == (3,)
    grid = Windows((12,), (5,), (3,))
    assert grid.counts == (4,)
    assert grid.touch(torch.eye(12, dtype=torch.bool)[11:]).tolist() == [[False, False, False, True]]
    covered = grid.spread(torch.tensor([[1.0, 3.0, 5.0, 9.0]]))
    assert covered.tolist() == [[1, 1, 1, 2, 2, 3, 4, 4, 5, 7, 7, 9]]


@pytest.mark.parametrize("product", [by_matrix, by_blocks, by_taps])
@pytest.mark.parametrize("seed", range(6))
def test_products_agree_with_a_padded_convolution(product: Callable[..., Tensor], seed: int) -> None:
    """Products agree with a padded convolution of the whole image."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    box, taps, outputs = ([draw.randint(1, 4) for _ in range(3)] for _ in range(3))
    stride, dilation = [draw.randint(1, 4) for _ in range(3)], [draw.randint(1, 2) for _ in range(3)]
    values = torch.randn(5, *box, 2, generator=generator, dtype=torch.float64)
    kernel = torch.randn(*taps, 2, 3, generator=generator, dtype=torch.float64)
    place = torch.randint(-2, 8, (5, 3), generator=generator)
    padded = torch.zeros(5, 2, 30, 30, 30, dtype=torch.float64)
    for image, (i, j, k), each in zip(padded, (place + 4).tolist(), values.movedim(-1, 1), strict=True):
        image[:, i : i + box[0], j : j + box[1], k : k + box[2]] = each
    whole = functional.conv3d(padded[:, :, 4:, 4:, 4:], kernel.permute(4, 3, 0, 1, 2), None, stride, 0, dilation)
    expected = whole[:, :, : outputs[0], : outputs[1], : outputs[2]].movedim(1, -1)
    found = product(values, place, kernel, tuple(outputs), tuple(stride), tuple(dilation))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
