"""The conformance checks catch what they are there to catch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.registry import ATTRIBUTIONS, METRICS
from harness.metrics.register import metric
from harness.models.unet import unet
from harness.testing import check_attribution, check_metric, check_model, example_image, example_network


class Net(nn.Module):
    """A network with one fault, by name."""

    def __init__(self, channels: int, outputs: int, fault: str = "") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.idle = nn.Parameter(torch.ones(1)) if fault == "idle" else None
        self.hidden = torch.randn(1)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K, H, W)."""
        if self.fault == "writes":
            x.mul_(0.5)
        y = self.norm(self.conv(x))
        faults: dict[str, Callable[[], Tensor]] = {
            "shape": lambda: y[:, :, 1:],
            "infinite": lambda: y / 0,
            "draws": lambda: y + 0 * torch.randn(1),
            "random": lambda: y + torch.rand(1, generator=torch.Generator().manual_seed(int(torch.seed() % 99))),
            "batch": lambda: y - y.mean(),
            "buffer": lambda: y + self.norm.running_mean.add_(0.1).sum(),
            "hidden": lambda: y + self.hidden,
        }
        return faults.get(self.fault, lambda: y)()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"must have one of the shapes .* got \(3, 2, 7, 9\)"),
        ("infinite", "must be finite and float"),
        ("draws", "must not draw from the global random generators"),
        ("batch", "must not depend on the other items"),
        ("writes", "must not change its input|must be equal"),
        ("buffer", "must be equal"),
        ("idle", "must reach the parameter idle"),
        ("hidden", "weights alone must determine the output"),
    ],
)
def test_a_faulty_network_is_caught(fault: str, message: str) -> None:
    """Each promise has a network that breaks it."""
    with pytest.raises(AssertionError, match=message):
        check_model(partial(Net, fault=fault), 1, 2, (8, 9))


def test_a_sound_network_passes() -> None:
    """The same network without a fault."""
    check_model(Net, 1, 2, (8, 9))


def test_a_network_must_have_parameters() -> None:
    """There is nothing to train."""
    with pytest.raises(AssertionError, match="must have parameters to train"):
        check_model(lambda channels, outputs: nn.Identity(), 2, 2, (8, 9))


def _maps(inputs: Any, targets: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    return [tuple(change(x, target) for x in inputs) for target in targets]


def crosstalk(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """A map that depends on how many targets there are."""
    return _maps(inputs, targets, lambda x, t: x * len(targets))


def deaf(model: nn.Module, inputs: Any, targets: Any, *, seed: int) -> Any:
    """A method that asks for a seed and does not use it."""
    return _maps(inputs, targets, lambda x, t: x)


def batchy(model: nn.Module, inputs: Any, targets: Any, *, batch_size: int = 4) -> Any:
    """A map that depends on the size of the batches."""
    return _maps(inputs, targets, lambda x, t: x * batch_size)


def swallowing(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """A method that turns the model's error into another one."""
    try:
        model(*inputs), model(*inputs)
    except RuntimeError as error:
        raise RuntimeError("something went wrong") from error
    return _maps(inputs, targets, lambda x, t: x)


def echo(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """The input itself, under promises that it does not keep."""
    return _maps(inputs, targets, lambda x, t: x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (crosstalk, "must not depend on the other targets"),
        (deaf, "must give other maps for another one"),
        (batchy, "`batch_size` must not change the maps"),
        (swallowing, "must pass on the model's own error"),
    ],
)
def test_a_faulty_attribution_is_caught(function: Callable[..., Any], message: str) -> None:
    """Each promise has a method that breaks it."""
    with pytest.raises(AssertionError, match=message):
        check_attribution(function)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"zero_if_ignored": True}, "a channel that the model ignores must get zero"),
        ({"complete": "voxels"}, r"every voxel must sum to f\(input\) - f\(0\)"),
        ({"complete": "channels"}, r"each channel once must sum to f\(input\) - f\(0\)"),
    ],
)
def test_a_broken_promise_is_caught(facts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decorator says is checked."""
    monkeypatch.setattr(ATTRIBUTIONS, "_entries", dict(ATTRIBUTIONS._entries))
    ATTRIBUTIONS.register("echo", **facts)(echo)
    with pytest.raises(AssertionError, match=message):
        check_attribution(echo)


def test_an_unregistered_method_promises_nothing_more() -> None:
    """The same method without promises passes."""
    check_attribution(echo)


def test_options_reach_the_method() -> None:
    """A check can be made with options."""
    check_attribution(ATTRIBUTIONS.get("occlusion").function, window=3, stride=2, per_channel=True)


def _hit(prediction: Any, target: Any) -> float:
    """Share of voxels that agree."""
    return float((prediction == target).mean())


def _unbounded(prediction: Any, target: Any) -> float:
    """Number of voxels that agree."""
    return float((prediction == target).sum())


def _moody(prediction: Any, target: Any) -> float:
    """A number of the global generator."""
    return float(np.random.rand())


def _writing(prediction: Any, target: Any) -> float:
    """Writes into what it was given."""
    target[0] = True
    return 1.0


def _undefined(prediction: Any, target: Any) -> float:
    """NaN for a perfect answer."""
    return float("nan") if (prediction == target).all() else 0.5


def _terse(prediction: Any, target: Any) -> float:
    return 1.0


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_conforms(name: str) -> None:
    """All metrics of the registry, by existing."""
    check_metric(METRICS.get(name).function)


@pytest.mark.parametrize(
    ("function", "direction", "error", "message"),
    [
        (_hit, "lower", AssertionError, r"\(lower is better\) gives a perfect answer 1\.0 and a wrong one"),
        (_hit, "zero", AssertionError, r"\(zero is better\) gives a perfect answer 1\.0 and a wrong one"),
        (_unbounded, "higher", AssertionError, r"must lie in \[0, 1\] or be NaN, got 720"),
        (_moody, "none", AssertionError, "must not draw from the global random generators"),
        (_writing, "none", ValueError, "read-only"),
        (_undefined, "higher", AssertionError, "must be defined for a perfect answer"),
        (_terse, "none", AssertionError, "needs a docstring"),
    ],
)
def test_a_faulty_metric_is_caught(
    function: Any, direction: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each promise has a metric that breaks it."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction=direction, range=(0, 1))(function)
    with pytest.raises(error, match=message):
        check_metric(function)


def _fall(explanation: Any, image: Any, predict: Any, *, keep: float = 0.0) -> float:
    """How far the scalar falls when the most relevant voxels are set to zero."""
    mass = np.abs(explanation).sum(0)
    cut = np.where(mass >= max(mass.max(), 1e-12), keep * image, image)
    before, after = predict(np.stack([image, cut]))
    return float((before - after) / before) if before else np.nan


def test_a_probe_metric_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given a network that looks at the truth, so that a perfect map takes all of it away."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="higher", range=(0, 1), level="probe")(_fall)
    check_metric(_fall)


def test_a_probe_metric_in_the_wrong_direction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong map takes less away than a perfect one, which is not better."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="lower", range=(0, 1), level="probe")(_fall)
    with pytest.raises(AssertionError, match=r"\(lower is better\) gives a perfect answer 1\.0 and a wrong one"):
        check_metric(_fall)


def test_a_sound_metric_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreement, the higher the better."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="higher", range=(0, 1))(_hit)
    check_metric(_hit)


@pytest.mark.parametrize("name", ["deeplift", "gradcam", "guided_backprop", "channel_shapley", "integrated_gradients"])
def test_the_published_network_can_be_explained(name: str) -> None:
    """A U-Net followed by a reduction to one scalar, on an image that has to be padded."""

    class LesionEvidence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.softplus = unet(2, width=4, depth=3, output_bias=0.0), nn.Softplus()

        def forward(self, x: Tensor) -> Tensor:
            y = self.network(x)
            return self.softplus(y[:, 1] - y[:, 0]).flatten(1).mean(1, keepdim=True)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    maps = attribute(name, LesionEvidence(), example_image(2, 2, 13, 10).float(), [0])
    assert maps[0].shape == (2, 2, 13, 10)


def test_the_example_network_is_the_same_for_the_same_seed() -> None:
    """Its weights come from the seed alone."""
    first, second = (example_network(3, seed=4).state_dict()["head.3.weight"] for _ in range(2))
    assert torch.equal(first, second)
