"""ResNet18: published size, torchvision's names, initial weights and all faults of their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from harness import models
from harness.attribution import attribute
from harness.core.errors import OutOfRange, RequestError
from harness.core.targets import Target
from harness.models.resnet import resnet18
from harness.storage.weights import read_weights
from harness.testing import check_model

TARGETS = (Target("age", "number"), Target("sex", "binary"), Target("origin", "classes", ("a", "b", "c", "d")))
OWN = ("hidden.", "heads.")


def backbone_names() -> list[str]:
    """Names of torchvision's ``resnet18().state_dict()`` without the classifier, written out from its layout."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{one}" for one in norm)]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            for number in (1, 2):
                names.append(f"layer{layer}.{block}.conv{number}.weight")
                names += [f"layer{layer}.{block}.bn{number}.{one}" for one in norm]
            if layer > 1 and block == 0:
                names.append(f"layer{layer}.0.downsample.0.weight")
                names += [f"layer{layer}.0.downsample.1.{one}" for one in norm]
    return names


def backbone(network: nn.Module) -> dict[str, Tensor]:
    """State dict without hidden layer and heads."""
    return {name: one for name, one in network.state_dict().items() if not name.startswith(OWN)}


def small(**options: Any) -> nn.Module:
    """A narrow network for three targets."""
    torch.manual_seed(0)
    return resnet18(3, 6, targets=TARGETS, width=4, hidden=8, **options)


def given(**options: Any) -> dict[str, Tensor]:
    """Weights of another narrow network with a classifier, as a lab may have them."""
    torch.manual_seed(1)
    state = backbone(resnet18(3, width=4, hidden=0, **options))
    return state | {"fc.weight": torch.rand(1000, 32), "fc.bias": torch.rand(1000)}


def test_published_number_of_parameters() -> None:
    """The backbone has 11,176,512 parameters, and each layer the count of its shape."""
    network = resnet18(3, 6, targets=TARGETS)
    counts = {name: sum(one.numel() for one in part.parameters()) for name, part in network.named_children()}
    assert sum(counts.values()) - counts["hidden"] - counts["heads"] == 11_176_512
    assert counts["hidden"] == 512 * 512 + 512 and counts["heads"] == 6 * 513
    assert counts["conv1"] == 3 * 64 * 49 and counts["layer1"] == 4 * (64 * 64 * 9 + 2 * 64)


def test_names_are_those_of_torchvision() -> None:
    """The backbone has torchvision's 120 names, in its order."""
    names = list(backbone(resnet18()))
    assert names == backbone_names() and len(names) == 120


def test_feature_maps_have_the_published_shapes() -> None:
    """The last feature map of a picture with 200×200 pixels has 512×7×7."""
    network, shapes = resnet18().eval(), []
    for part in (network.maxpool, network.layer2, network.layer3, network.layer4):
        part.register_forward_hook(lambda module, inputs, made: shapes.append(tuple(made.shape[1:])))
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 200, 200)).shape == (1, 1)
    assert shapes == [(64, 50, 50), (128, 25, 25), (256, 13, 13), (512, 7, 7)]


def test_forward_pass_from_its_definition() -> None:
    """The output is that of the layers, written out by functions with the weights of the state dict."""
    network = small().eval()
    for name, one in network.state_dict().items():  # statistics that differ from those of a new network
        if name.endswith(("running_mean", "running_var")):
            one.uniform_(0.5, 1.5)
    w = network.state_dict()
    x = torch.rand(2, 3, 40, 48)

    def norm(y: Tensor, name: str) -> Tensor:
        scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        return (y - w[f"{name}.running_mean"][:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]

    conv = nn.functional.conv2d
    y = nn.functional.max_pool2d(norm(conv(x, w["conv1.weight"], stride=2, padding=3), "bn1").relu(), 3, 2, 1)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            branch = norm(conv(y, w[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            branch = norm(conv(branch, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                y = norm(conv(y, w[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            y = (branch + y).relu()
    y = (y.mean((2, 3)) @ w["hidden.0.weight"].T + w["hidden.0.bias"]).relu()
    torch.testing.assert_close(network(x), y @ w["heads.weight"].T + w["heads.bias"], rtol=1e-4, atol=1e-5)


def test_leaky_activation_of_numbers_only() -> None:
    """The leaky ReLU changes negative numbers, and no logit."""
    plain, leaky = small().eval(), small(number_activation="leaky_relu").eval()
    with torch.inference_mode():
        plain.heads.bias[:] = leaky.heads.bias[:] = -5
        x = torch.rand(3, 3, 32, 32)
        before, after = plain(x), leaky(x)
    torch.testing.assert_close(after[:, 0], 0.01 * before[:, 0])
    torch.testing.assert_close(after[:, 1:], before[:, 1:])


def test_model_conforms() -> None:
    """The network passes the conformance checks of models."""

    def narrow(in_channels: int, outputs: int) -> nn.Module:
        return resnet18(in_channels, outputs, width=4, hidden=8)

    check_model(narrow, in_channels=3, outputs=2, shape=(32, 40))


def test_network_can_be_traced() -> None:
    """``torch.fx`` traces the network, as exact occlusion and relevance propagation require."""
    network = small().eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), network(x))


def test_targets_must_fit_the_outputs() -> None:
    """Targets with another number of outputs are refused."""
    with pytest.raises(OutOfRange, match=r"outputs=5 and 6 of age, sex, origin"):
        resnet18(3, 5, targets=TARGETS)
    with pytest.raises(OutOfRange, match="0 of no targets"):
        resnet18(3, 1, number_activation="leaky_relu")


@pytest.mark.parametrize("end", ["pth", "safetensors", "checkpoint.pth"])
def test_weights_of_a_file_are_loaded(tmp_path: Path, end: str) -> None:
    """The backbone has the weights of the file, heads keep theirs, and the classifier is reported as ignored."""
    path, state, network = tmp_path / f"lab.{end}", given(), small()
    heads = {name: one.clone() for name, one in network.state_dict().items() if name.startswith(OWN)}
    if end == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if end.startswith("checkpoint") else state, path)
    assert network.load_pretrained(read_weights(path)) == ("fc.bias", "fc.weight")
    for name, one in network.state_dict().items():
        assert torch.equal(one, heads[name] if name in heads else state[name]), name


def test_counters_may_be_missing() -> None:
    """Files of old versions have no ``num_batches_tracked``."""
    state = {name: one for name, one in given().items() if not name.endswith("num_batches_tracked")}
    network = small()
    network.load_pretrained(state)
    assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_all_faults_of_the_names_are_listed() -> None:
    """Missing and unexpected names, shapes and values that are not finite are listed, and nothing is loaded."""
    state, network = given(), small()
    del state["layer3.0.downsample.0.weight"]
    state["module.conv1.weight"] = state["conv1.weight"]
    state["bn1.bias"] = torch.zeros(7)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"] * float("nan")
    before = {name: one.clone() for name, one in network.state_dict().items()}
    with pytest.raises(RequestError) as found:
        network.load_pretrained(state)
    for fault in (
        "missing: layer3.0.downsample.0.weight",
        "unexpected: module.conv1.weight",
        "bn1.bias has the shape (7,), expected (4,)",
        "layer1.0.conv1.weight has values that are not finite",
    ):
        assert fault in str(found.value)
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())


def test_wide_weights_do_not_fit_a_narrow_network() -> None:
    """The message names the shapes and the option."""
    with pytest.raises(RequestError, match=r"model\.width.*conv1\.weight has the shape \(8, 3, 7, 7\), expected \(4,"):
        small().load_pretrained(backbone(resnet18(width=8)))


class Malicious:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harness-was-here"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is none at"),
        (b"not a state dict", "cannot be read"),
        (b"", "cannot be read"),
        ({}, "mapping from names to tensors, got dict"),
        ([torch.zeros(1)], "got list"),
        ({"conv1.weight": torch.zeros(1), "epoch": 3}, r"contains 'epoch' \(int\)"),
        ({"conv1.weight": Malicious()}, "cannot be read"),
    ],
)
def test_faults_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    """A missing, foreign or damaged file, other objects and code are refused, with the path."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(RequestError, match=message) as found:
        read_weights(path)
    assert str(path) in str(found.value)
    assert not (tmp_path / "harness-was-here").exists()


def test_damaged_safetensors_is_refused(tmp_path: Path) -> None:
    """A file with the ending of safetensors and other content is refused."""
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(RequestError, match="cannot be read"):
        read_weights(tmp_path / "weights.safetensors")


def test_build_does_not_ignore_weights() -> None:
    """``build`` reads no file, and says what to do instead."""
    with pytest.raises(OutOfRange, match="load_pretrained"):
        models.build("resnet18", weights="imagenet.pth")


def test_occlusion_equals_captum() -> None:
    """Windows of 15 pixels in all channels with stride 8 give the map of captum's (3, 15, 15) and (3, 8, 8)."""
    network, x = small().eval().double(), torch.rand(1, 3, 40, 40, dtype=torch.float64)
    (found,) = attribute("occlusion", network, x, [1], window=15, stride=8, per_channel=False)
    expected = Occlusion(network).attribute(x, sliding_window_shapes=(3, 15, 15), strides=(3, 8, 8), target=1)
    torch.testing.assert_close(
        found, expected.double(), rtol=0, atol=1e-6 * float(found.abs().max())
    )  # captum: float32
