"""The conformance checks detect faulty components."""

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
    """A network with a given fault."""

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
        ("draws", "must not use the global random generators"),
        ("batch", "must not depend on the other items"),
        ("writes", "must not change its input|must be equal"),
        ("buffer", "must be equal"),
        ("idle", "must reach the parameter idle"),
        ("hidden", "weights alone must determine the output"),
    ],
)
def test_faulty_network_is_detected(fault: str, message: str) -> None:
    """Each faulty network is detected."""
    with pytest.raises(AssertionError, match=message):
        check_model(partial(Net, fault=fault), 1, 2, (8, 9))


def test_correct_network_passes() -> None:
    """The same network without a fault passes."""
    check_model(Net, 1, 2, (8, 9))


def test_a_network_must_have_parameters() -> None:
    """A network without parameters is refused, since it cannot be trained."""
    with pytest.raises(AssertionError, match="must have parameters to train"):
        check_model(lambda channels, outputs: nn.Identity(), 2, 2, (8, 9))


def _maps(inputs: Any, targets: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    return [tuple(change(x, target) for x in inputs) for target in targets]


def crosstalk(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """A map that depends on the number of targets."""
    return _maps(inputs, targets, lambda x, t: x * len(targets))


def ignoring_the_seed(model: nn.Module, inputs: Any, targets: Any, *, seed: int) -> Any:
    """A method with a seed that it does not use."""
    return _maps(inputs, targets, lambda x, t: x)


def batch_dependent(model: nn.Module, inputs: Any, targets: Any, *, batch_size: int = 4) -> Any:
    """A map that depends on the batch size."""
    return _maps(inputs, targets, lambda x, t: x * batch_size)


def hiding_the_error(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """A method that replaces the model's error by another one."""
    try:
        model(*inputs), model(*inputs)
    except RuntimeError as error:
        raise RuntimeError("something went wrong") from error
    return _maps(inputs, targets, lambda x, t: x)


def input_map(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """A method that returns the input, registered with properties that it does not have."""
    return _maps(inputs, targets, lambda x, t: x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (crosstalk, "must not depend on the other targets"),
        (ignoring_the_seed, "must give other maps for another seed"),
        (batch_dependent, "`batch_size` must not change the maps"),
        (hiding_the_error, "must pass on the model's own error"),
    ],
)
def test_faulty_attribution_is_detected(function: Callable[..., Any], message: str) -> None:
    """Each faulty attribution is detected."""
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
def test_wrong_declaration_is_detected(facts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared property that does not hold is detected."""
    monkeypatch.setattr(ATTRIBUTIONS, "_entries", dict(ATTRIBUTIONS._entries))
    ATTRIBUTIONS.register("input_map", **facts)(input_map)
    with pytest.raises(AssertionError, match=message):
        check_attribution(input_map)


def test_unregistered_method_declares_no_properties() -> None:
    """The same method without declared properties passes."""
    check_attribution(input_map)


def test_options_reach_the_method() -> None:
    """Options are passed to the method."""
    check_attribution(ATTRIBUTIONS.get("occlusion").function, window=3, stride=2, per_channel=True)


def _hit(prediction: Any, target: Any) -> float:
    """Share of voxels that agree."""
    return float((prediction == target).mean())


def _unbounded(prediction: Any, target: Any) -> float:
    """Number of voxels that agree."""
    return float((prediction == target).sum())


def _random(prediction: Any, target: Any) -> float:
    """A number from the global generator."""
    return float(np.random.rand())


def _writing(prediction: Any, target: Any) -> float:
    """Write into the target."""
    target[0] = True
    return 1.0


def _undefined(prediction: Any, target: Any) -> float:
    """NaN for a perfect prediction."""
    return float("nan") if (prediction == target).all() else 0.5


def _terse(prediction: Any, target: Any) -> float:
    return 1.0


# They need columns of one kind of target, a threshold in [0, 1] or two groups, or are best for what a network uses;
# they have tests of their own.
OWN = {
    "skill", "worst_group_accuracy", "tuned_accuracy", "tuned_balanced_accuracy", "tuned_sensitivity",
    "tuned_specificity", "deletion_area", "insertion_area", "explanation_accuracy", "kept_accuracy", "keeps_label",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(METRICS.names()) - OWN))
def test_every_metric_conforms(name: str) -> None:
    """Every registered metric passes the conformance checks."""
    options = {"channel": "T1w"} if name in ("masked_mean_correlation", "masked_mean_p") else {}
    check_metric(METRICS.get(name).function, **options)


@pytest.mark.parametrize(
    ("function", "direction", "error", "message"),
    [
        (_hit, "lower", AssertionError, r"\(lower is better\) gives a perfect answer 1\.0 and a wrong one"),
        (_hit, "zero", AssertionError, r"\(zero is better\) gives a perfect answer 1\.0 and a wrong one"),
        (_unbounded, "higher", AssertionError, r"must lie in \[0, 1\] or be NaN, got 720"),
        (_random, "none", AssertionError, "must not use the global random generators"),
        (_writing, "none", ValueError, "read-only"),
        (_undefined, "higher", AssertionError, "must be defined for a perfect answer"),
        (_terse, "none", AssertionError, "needs a docstring"),
    ],
)
def test_faulty_metric_is_detected(
    function: Any, direction: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each faulty metric is detected."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction=direction, range=(0, 1))(function)
    with pytest.raises(error, match=message):
        check_metric(function)


def _decrease(explanation: Any, image: Any, predict: Any, *, keep: float = 0.0) -> float:
    """Relative decrease of the scalar if the most relevant voxels are set to zero."""
    mass = np.abs(explanation).sum(0)
    cut = np.where(mass >= max(mass.max(), 1e-12), keep * image, image)
    before, after = predict(np.stack([image, cut]))
    return float((before - after) / before) if before else np.nan


def test_a_probe_metric_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe metric passes with a network for which a perfect map removes the whole output."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="higher", range=(0, 1), level="probe")(_decrease)
    check_metric(_decrease)


def test_probe_metric_in_the_wrong_direction_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe metric with the wrong direction is detected."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="lower", range=(0, 1), level="probe")(_decrease)
    with pytest.raises(AssertionError, match=r"\(lower is better\) gives a perfect answer 1\.0 and a wrong one"):
        check_metric(_decrease)


def test_correct_metric_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that is the share of voxels that agree passes."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    metric("mine", source="", direction="higher", range=(0, 1))(_hit)
    check_metric(_hit)


@pytest.mark.parametrize("name", ["deeplift", "gradcam", "guided_backprop", "channel_shapley", "integrated_gradients"])
def test_the_published_network_can_be_explained(name: str) -> None:
    """Attributions of a U-Net, reduced to one scalar, work on an image that needs padding."""

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
    """The weights of the example network depend on the seed only."""
    first, second = (example_network(3, seed=4).state_dict()["head.3.weight"] for _ in range(2))
    assert torch.equal(first, second)
