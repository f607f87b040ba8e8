"""Conformance checks for components, including those of third parties.

In the tests of your own package::

    from harness.testing import check_attribution, check_metric, check_model

    def test_my_network():
        check_model(my_network, in_channels=2, outputs=2, shape=(33, 40))

Each check raises ``AssertionError`` with the first requirement that is not met.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.attribution import explain
from harness.core.registry import ATTRIBUTIONS, METRICS
from harness.core.targets import KINDS, Target
from harness.core.types import Adapter, Array, Cohort, Direction, FittedAdapter, NetworkSpec, Sample
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs
from harness.metrics.register import evaluate_all, inputs_of

__all__ = [
    "ArrayImage",
    "Formula",
    "check_adapter",
    "check_attribution",
    "check_metric",
    "check_model",
    "check_target",
    "example_cohort",
    "example_image",
    "example_network",
]


def check_model(
    build: Callable[..., nn.Module], in_channels: int, outputs: int, shape: Sequence[int], **options: Any
) -> None:
    """Check the requirements of a model.

    The output is (N, outputs) or (N, outputs, *shape), finite float. In evaluation mode,
    the output for an item is reproducible and does not depend on other items in the batch,
    no random numbers are used, and buffers and the input are not changed. The gradient
    reaches every parameter. The weights determine the outputs and can be loaded with
    ``weights_only=True``. The seed determines the initial weights.

    Parameters
    ----------
    build : model builder, called as ``build(in_channels, outputs, **options)``
    in_channels, outputs : numbers of input and output channels
    shape : spatial shape of the images
    options : options of the model

    Raises
    ------
    AssertionError
        With the first requirement that is not met.
    """
    model = _built(build, in_channels, outputs, options, seed=0).eval()
    x = torch.randn(3, in_channels, *shape, generator=torch.Generator().manual_seed(1))
    before, buffers = x.clone(), {name: b.clone() for name, b in model.named_buffers()}
    with torch.no_grad(), _draws_nothing("a forward pass in evaluation mode"):
        y = model(x)
        again, alone = model(x), model(x[:1])
    allowed = [(3, outputs), (3, outputs, *shape)]
    _require(tuple(y.shape) in allowed, f"the output must have one of the shapes {allowed}, got {tuple(y.shape)}")
    _require(y.is_floating_point() and bool(torch.isfinite(y).all()), "the output must be finite and float")
    _require(torch.equal(y, again), "two forward passes in evaluation mode must be equal")
    _require(_close(y[:1], alone), "an item's output must not depend on the other items of its batch")
    _require(torch.equal(x, before), "the forward pass must not change its input")
    for name, buffer in model.named_buffers():
        _require(torch.equal(buffer, buffers[name]), f"evaluation mode must not change the buffer {name}")
    _check_gradients(model, x)
    _check_weights(build, model, in_channels, outputs, options, x, y)


def check_attribution(function: Callable[..., Any], **options: Any) -> None:
    """Check the requirements of an attribution method.

    The method is applied to 2D and 3D networks with one and two inputs. It returns one
    finite float map per target, with the shape of each input. The map of a target does not
    depend on other targets or on ``batch_size``, and is reproducible for the same seed;
    other seeds give other maps if the method has a seed. Model, inputs and global state are
    not changed, even if the model raises an error. The properties declared by the decorator
    hold (``zero_if_ignored``, ``complete``).

    Parameters
    ----------
    function : the method; declared properties are checked if it is registered
    options : options of the method

    Raises
    ------
    AssertionError
        With the first requirement that is not met.
    """
    promised = next((e.facts for n in ATTRIBUTIONS.names() if (e := ATTRIBUTIONS.get(n)).function is function), {})
    run: Callable[..., list[Any]] = partial(explain, function, **options)
    accepted = inspect.signature(function).parameters
    for model, inputs in _cases():
        maps = run(model, inputs, [0, 2])
        _check_shapes(maps, inputs, 2)
        alone = run(model, inputs, [2])[0]
        _require(_close_maps(maps[1], alone), "a target's map must not depend on the other targets")
        _require(_close_maps(maps, run(model, inputs, [0, 2])), "the same seed must give the same maps")
        if "seed" in accepted:
            other = run(model, inputs, [0, 2], seed=1)
            _require(
                not _close_maps(maps, other), "a method with a parameter `seed` must give other maps for another seed"
            )
        if "batch_size" in accepted:
            single = partial(run, **{**options, "batch_size": 1})(model, inputs, [0, 2])
            _require(_close_maps(maps, single), "`batch_size` must not change the maps")
        _check_after_state(run, model, inputs)
        if promised.get("zero_if_ignored"):
            _check_ignored(run, model, inputs)
        if promised.get("complete"):
            _check_complete(run, model, inputs, promised["complete"])


def check_adapter(adapter: Adapter, cohort: Cohort) -> None:
    """Check the requirements of an adapter.

    Inputs have the channels and shapes of the spec. All inputs and targets of a sample have
    the same number of items. Targets have the dtype of their kind. Inputs are reproducible
    and do not need targets. Predictions contain all targets. Maps are converted to the space
    of the sample's images. The state of a fitted adapter can be stored and restored.

    Parameters
    ----------
    adapter : the adapter
    cohort : a cohort with targets, e.g. from :func:`example_cohort`

    Raises
    ------
    AssertionError
        With the first requirement that is not met.
    """
    spec = adapter.spec(cohort)
    if isinstance(adapter, FittedAdapter):
        learned = adapter.fit(cohort.samples, spec.targets)
        again = adapter.load_state(dict(learned.state))
        first = cohort.samples[0]
        same = all(np.array_equal(a, b) for a, b in zip(learned.inputs(first), again.inputs(first), strict=True))
        _require(same, "load_state must give the adapter that fit gave")
        adapter = learned
    for sample in cohort.samples:
        inputs = adapter.inputs(dataclasses.replace(sample, targets={}, clean={}, weights={}))
        again_read = adapter.inputs(sample)
        _require(
            all(np.array_equal(a, b) for a, b in zip(inputs, again_read, strict=True)),
            "inputs must be the same each time they are read, and need no target",
        )
        _check_inputs(spec, inputs)
        items = len(inputs[0])
        targets = adapter.targets(sample, spec.targets)
        _require(list(targets) == [one.name for one in spec.targets], "targets must have every target, in order")
        for target in spec.targets:
            array, wanted = targets[target.name], KINDS[target.kind].dtype
            _require(len(array) == items, f"target {target.name} must have a value for each of {items} items")
            _require(array.dtype == wanted, f"target {target.name} must be {wanted.__name__}, got {array.dtype}")
        outputs = {one.name: _outputs_like(one, targets[one.name], items) for one in spec.targets}
        predicted = adapter.to_prediction(outputs, sample, spec.targets)
        _require(set(predicted) == set(outputs), "to_prediction must give every target")
        for place in spec.explained:
            image = adapter.to_image(inputs[place], sample)
            channels = len(spec.inputs[place].channels)
            _require(image.shape[0] == channels, f"to_image must keep the {channels} channels first, got {image.shape}")


def check_target(component: Callable[..., Cohort], cohort: Cohort, **options: Any) -> None:
    """Check the requirements of a target component.

    The component adds targets with new names and does not change existing ones. Each
    remaining sample has a finite value: 0 or 1 for a binary target, the index of a class for
    classes. Samples without a value are listed as ineligible. The values are reproducible.

    Parameters
    ----------
    component : target component, called as ``component(cohort, cache, **options)``
    cohort : a cohort without the target, e.g. from :func:`example_cohort`
    options : options of the component

    Raises
    ------
    AssertionError
        With the first requirement that is not met.
    """
    with tempfile.TemporaryDirectory() as folder:
        made, again = (component(cohort, Path(folder), **options) for _ in range(2))
    added = made.targets[len(cohort.targets) :]
    _require(made.targets[: len(cohort.targets)] == cohort.targets, "existing targets must be kept, in order")
    _require(bool(added), "a target component must add a target")
    names = [target.name for target in made.targets]
    _require(len(set(names)) == len(names), f"names of targets must differ, got {', '.join(names)}")
    gone = {one.id for one in cohort.samples} - {one.id for one in made.samples}
    listed = {one.subject for one in made.ineligible}
    for sample in cohort.samples:
        _require(
            sample.id not in gone or bool({sample.id, sample.subject} & listed),
            f"{sample.id} was left out and must be listed as ineligible",
        )
    for sample, twin in zip(made.samples, again.samples, strict=True):
        _require(dict(sample.targets) == dict(twin.targets), "the same cohort must give the same values")
        for target in added:
            if target.of_sample:
                _check_value(target, sample.targets.get(target.name, float("nan")), sample.id)
            else:
                _require(target.name in sample.masks, f"{sample.id} must have the mask {target.name}")


def _check_inputs(spec: NetworkSpec, inputs: Sequence[Array]) -> None:
    _require(len(inputs) == len(spec.inputs), f"there must be {len(spec.inputs)} inputs, got {len(inputs)}")
    for one, array in zip(spec.inputs, inputs, strict=True):
        _require(array.dtype == np.float32, f"input {one.name} must be float32, got {array.dtype}")
        _require(array.shape[1] == len(one.channels), f"input {one.name} must have {len(one.channels)} channels")
        _require(len(array) == len(inputs[0]), "all inputs must have the same number of items")
        fits = not one.shape or array.shape[2:] == one.shape
        _require(fits, f"items of input {one.name} must have the shape {one.shape}, got {array.shape[2:]}")


def _outputs_like(target: Target, values: Array, items: int) -> Array:
    """Random outputs of a network for a target."""
    shape = (items, target.width, *values.shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _check_value(target: Target, value: float, sample: str) -> None:
    _require(bool(np.isfinite(value)), f"{sample} must have a finite value of {target.name}, got {value}")
    count = KINDS[target.kind].class_count(target)
    if count:
        _require(value in range(count), f"{target.name} of {sample} must be one of 0 to {count - 1}, got {value}")


def check_metric(function: Callable[..., Any], **options: Any) -> None:
    """Check the requirements of a metric.

    The metric is registered, has a docstring, and only has inputs that exist. For generated
    subjects, including an empty truth, an empty prediction, or both, it returns a
    reproducible number within its range or NaN, and does not change its inputs. No imperfect
    prediction has a better value than a perfect one.

    Parameters
    ----------
    function : a metric, decorated with ``harness.metrics.register.metric``
    options : options of the metric

    Raises
    ------
    AssertionError
        With the first requirement that is not met.
    RegistrationError
        If the function is not registered.
    """
    entry = METRICS.get(METRICS.name_of(function))
    _require(bool(entry.summary), f"metric {entry.name} needs a docstring: its first line is shown to the user")
    unknown = [name for name in inputs_of(function) if name not in METRIC_INPUTS]
    _require(not unknown, f"metric {entry.name} has the inputs {', '.join(unknown)}, which do not exist")
    component = partial(function, **options) if options else function
    low, high = entry.facts["range"]
    probed = [name for name in entry.facts["needs"] if METRICS.get(name).facts["level"] == "probe"]
    columns = tuple(column for name in entry.facts["needs"] for column in _columns_of(name))
    perfect, others = _subjects(columns) if entry.facts["level"] == "pool" else _answers()
    with _draws_nothing(f"metric {entry.name}"):
        bests = _values(component, perfect)
        values = [value for inputs in others for value in _values(component, inputs)]
    for value in [*bests, *values]:
        _require(
            np.isnan(value) or low - 1e-9 <= value <= high + 1e-9,
            f"metric {entry.name} must lie in [{low}, {high}] or be NaN, got {value}",
        )
    again = [value for inputs in others for value in _values(component, inputs)]
    _require(np.array_equal(values, again, equal_nan=True), f"metric {entry.name} must give the same value twice")
    direction = entry.facts["direction"]
    # Whether images were changed for the better is not known for values of probes.
    if direction != "none" and not probed:
        (best,) = bests
        _require(not np.isnan(best), f"metric {entry.name} must be defined for a perfect answer, got NaN")
        for value in values:
            _require(
                np.isnan(value) or _cost(direction, best) <= _cost(direction, value) + 1e-9,
                f"metric {entry.name} ({direction} is better) gives a perfect answer {best} and a wrong one {value}",
            )


# ----------------------------------------------------------------- models


def _built(
    build: Callable[..., nn.Module], in_channels: int, outputs: int, options: dict[str, Any], *, seed: int
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(in_channels, outputs, **options)


def _check_gradients(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _require(bool(trained), "a network must have parameters to train")
    gradients = torch.autograd.grad((y * weights).sum(), list(trained.values()), allow_unused=True)
    for name, gradient in zip(trained, gradients, strict=True):
        _require(gradient is not None and bool(gradient.any()), f"the gradient must reach the parameter {name}")


def _check_weights(
    build: Callable[..., nn.Module],
    model: nn.Module,
    in_channels: int,
    outputs: int,
    options: dict[str, Any],
    x: Tensor,
    y: Tensor,
) -> None:
    twin = _built(build, in_channels, outputs, options, seed=0).state_dict()
    for name, value in model.state_dict().items():
        _require(torch.equal(value, twin[name]), f"the same seed must give the same initial weights, {name} differs")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = _built(build, in_channels, outputs, options, seed=3).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        _require(torch.equal(loaded(x), y), "the weights alone must determine the output in evaluation mode")


# ----------------------------------------------------------------- attributions


class _Network(nn.Module):
    def __init__(self, dims: int, channels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        # In place, as many networks have it: what is hooked must not be overwritten.
        self.first = nn.ModuleList(
            nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(inputs)
        )
        self.second = nn.Sequential(conv(4, 5, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(10, outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        features = torch.stack([first(x) for first, x in zip(self.first, inputs, strict=True)]).sum(0)
        out: Tensor = self.head(self.second(features))
        return out


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory, for tests."""

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.values.shape

    @property
    def fingerprint(self) -> str:
        """Hash of the values."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()[:16]

    def load(self) -> Array:
        """The values."""
        return self.values

    def voxels(self) -> tuple[Array, Array]:
        """Flat indices and values of non-zero voxels."""
        flat = self.values.ravel()
        return np.flatnonzero(flat), flat[np.flatnonzero(flat)]


def example_cohort(*, pictures: bool = True, samples: int = 6, seed: int = 0) -> Cohort:
    """Create a small cohort in memory, without targets.

    Parameters
    ----------
    pictures : create (12, 10, 3) uint8 pictures named ``rgb``, instead of volumes of
        (10, 12, 4) voxels named ``T1w`` and ``T2w`` with a mask ``target``
    samples : number of samples, two per subject
    seed : seed of the values

    Returns
    -------
    Cohort
        Has the covariates ``age`` (number), ``sex`` (``F`` or ``M``) and ``group`` (``a``,
        ``b``, ``c``); the last sample has no age.
    """
    rng = np.random.default_rng(seed)
    made = []
    for number in range(samples):
        age = None if number == samples - 1 else float(rng.integers(20, 80))
        facts = {"age": age, "sex": "FM"[number % 2], "group": "abc"[number % 3]}
        name, subject = f"sub-{number // 2 + 1:02d}_ses-{number % 2 + 1}", f"sub-{number // 2 + 1:02d}"
        if pictures:
            images = {"rgb": ArrayImage(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8))}
            made.append(Sample(name, subject, images, {}, facts))
            continue
        volumes = {key: ArrayImage(rng.normal(size=(10, 12, 4)).astype(np.float32)) for key in ("T1w", "T2w")}
        masks = {"target": ArrayImage(rng.random((10, 12, 4)) < 0.1)}
        made.append(Sample(name, subject, volumes, masks, facts, np.diag([1.0, 1.0, 2.0, 1.0]), (1.0, 1.0, 2.0)))
    return Cohort("example", tuple(made))


def example_network(dims: int, *, channels: int = 2, inputs: int = 1, outputs: int = 3, seed: int = 0) -> nn.Module:
    """Create a small network for tests of attribution methods.

    The network has two convolutions, each followed by a ReLU (the first in-place), and a
    linear layer, with random weights in float64.

    Parameters
    ----------
    dims : 2 or 3 spatial axes, each of at least three voxels
    channels : number of channels of each input
    inputs : number of inputs
    outputs : number of scalars, K
    seed : seed of the weights

    Returns
    -------
    nn.Module
        Maps one or several tensors (N, channels, *space) to (N, outputs).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _Network(dims, channels, inputs, outputs).double()


def example_image(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal random numbers, float64, of a shape such as (N, C, *space)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Formula(nn.Module):
    """A network that computes a formula, for examples with known results.

    Parameters
    ----------
    formula : maps the inputs to (N, K)
    """

    def __init__(self, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, *inputs: Tensor) -> Tensor:
        """Value of the formula."""
        return self.formula(*inputs)


class _Blind(nn.Module):
    """A network that ignores the first channel of its first input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        seen = torch.ones(x.shape[1], device=x.device, dtype=x.dtype)
        seen[0] = 0
        out: Tensor = self.network(x * seen.reshape(-1, *[1] * (x.ndim - 2)), *others)
        return out


class _Failing(nn.Module):
    """A network that raises on its second forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("failed on purpose")
        out: Tensor = self.network(*inputs)
        return out


def _cases() -> Iterator[tuple[nn.Module, Any]]:
    yield example_network(2), example_image(2, 2, 11, 12)
    yield example_network(3, channels=1), example_image(2, 1, 7, 8, 9)
    yield example_network(2, inputs=2), (example_image(2, 2, 9, 10), example_image(2, 2, 9, 10, seed=1))


def _check_shapes(maps: list[Any], inputs: Any, targets: int) -> None:
    _require(len(maps) == targets, f"there must be one map per target, got {len(maps)} for {targets}")
    for of_target in maps:
        for each, x in zip(_tuple(of_target), _tuple(inputs), strict=True):
            _require(each.shape == x.shape, f"a map must have its input's shape {tuple(x.shape)}, got {each.shape}")
            _require(each.is_floating_point() and bool(torch.isfinite(each).all()), "a map must be finite and float")
            _require(not each.requires_grad, "a map must carry no graph")


def _check_after_state(run: Callable[..., Any], model: nn.Module, inputs: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for subject in (model, _Failing(model)):
        subject.train()
        before, given = _state(subject), [x.clone() for x in _tuple(inputs)]
        with _draws_nothing("an attribution"):
            try:
                run(subject, inputs, [0])
            except RuntimeError as error:
                _require("on purpose" in str(error), f"an attribution must pass on the model's own error, got: {error}")
        _require(_state(subject) == before, "hooks, gradients, modes, flags and weights must be as before")
        unchanged = all(
            torch.equal(x, old) and not x.requires_grad for x, old in zip(_tuple(inputs), given, strict=True)
        )
        _require(unchanged, "the inputs must be as before")
    _require(torch.is_grad_enabled(), "gradients must be enabled as before")


def _state(model: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, module.training, [len(getattr(module, kind)) for kind in hooks], sorted(vars(module)))
        for name, module in model.named_modules()
    ]
    parameters = [
        (name, p.requires_grad, p.tolist(), None if p.grad is None else p.grad.tolist())
        for name, p in model.named_parameters()
    ]
    return [modules, parameters, [(name, b.tolist()) for name, b in model.named_buffers()]]


def _check_ignored(run: Callable[..., Any], model: nn.Module, inputs: Any) -> None:
    first = _tuple(run(_Blind(model), inputs, [0])[0])[0]
    scale = float(_tuple(run(model, inputs, [0])[0])[0].abs().max())
    _require(bool((first[:, 0].abs() <= 1e-9 * scale).all()), "a channel that the model ignores must get zero")


def _check_complete(run: Callable[..., Any], model: nn.Module, inputs: Any, kind: str) -> None:
    of_target = _tuple(run(model, inputs, [1])[0])
    axes = "every voxel" if kind == "voxels" else "each channel once"
    total = torch.stack([(m if kind == "voxels" else m.flatten(2)[:, :, 0]).flatten(1).sum(1) for m in of_target]).sum(
        0
    )
    with torch.no_grad():
        expected = (model.eval()(*_tuple(inputs)) - model(*(torch.zeros_like(x) for x in _tuple(inputs))))[:, 1]
    _require(
        bool(torch.allclose(total, expected, rtol=0.02, atol=1e-3)),
        f"{axes} must sum to f(input) - f(0) = {expected.tolist()}, got {total.tolist()}",
    )


def _close_maps(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return _close(first, second)
    return all(_close_maps(a, b) for a, b in zip(first, second, strict=True))


def _tuple(inputs: Any) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


# ----------------------------------------------------------------- metrics


def _values(component: Callable[..., Any], inputs: MetricInputs) -> list[float]:
    """The value of a metric, or all values of one with several."""
    found = evaluate_all(component, inputs)
    return list(found.values()) if isinstance(found, dict) else [found]


def _columns_of(name: str) -> list[str]:
    """Columns of a metric for pooled metrics: one, or one for each of its values."""
    entry = METRICS.get(name)
    if not entry.facts.get("several"):
        return [name]
    found = evaluate_all(entry.function, _answers()[0])
    assert isinstance(found, dict)
    return [f"{name}@{key}" for key in found]


def _answers() -> tuple[MetricInputs, list[MetricInputs]]:
    """Inputs for a perfect prediction of a generated subject, and for imperfect ones; some with an empty truth."""
    truth = np.zeros((10, 9, 8), dtype=bool)
    truth[1:3, 2:5, 3] = truth[6:9, 6, 4:7] = truth[4, 1, 1] = True
    few = truth.copy()
    few[6:] = False
    more = truth | np.roll(truth, 2, axis=1)
    nothing = np.zeros_like(truth)
    wrong = [few, more, np.roll(truth, 1, axis=0), np.roll(truth, 4, axis=2), nothing, ~truth]
    empty = [_metric_inputs(nothing, answer) for answer in (nothing, few)]
    return _metric_inputs(truth, truth), [*(_metric_inputs(truth, answer) for answer in wrong), *empty]


def _cost(direction: Direction, value: float) -> float:
    return {"higher": -value, "lower": value, "zero": abs(value), "none": 0.0}[direction]


def _metric_inputs(truth: Array, answer: Array) -> MetricInputs:
    probability, brain = answer.astype(np.float32), np.ones_like(truth)
    explanation = np.stack([probability, probability])
    image = np.stack([truth, truth]).astype(np.float32)
    right = 1.0 - float(np.mean(truth != answer))
    rois = np.stack([truth, brain & ~truth])
    for array in (truth, answer, probability, brain, explanation, image, rois):
        # Metrics that change their inputs raise an error.
        array.setflags(write=False)
    return MetricInputs(
        target=truth,
        prediction=answer,
        probability=probability,
        brain=brain,
        explanation=explanation,
        exact=truth.astype(np.float32),
        spacing_mm=(0.9, 0.8, 1.5),
        channels=("T1w", "FLAIR"),
        rois=rois,
        target_score=float(truth.mean()),
        predicted_score=float(answer.mean()),
        clean_score=float(truth.mean()),
        target_label=1.0,
        predicted_probability=right,
        predicted_logit=4.0 * right - 2.0,
        target_class=0.0,
        class_probabilities=np.array([right, 1.0 - right]),
        image=image,
        image_channels=("T1w", "FLAIR"),
        predict=lambda images: images[:, :, truth].sum(axis=(1, 2)),
        predict_logit=lambda images: images[:, :, truth].sum(axis=(1, 2)),
        covariates={"": right},
        exposed={"": right},
        rng=np.random.default_rng(0),
    )


def _subjects(columns: Sequence[str]) -> tuple[MetricInputs, list[MetricInputs]]:
    """Columns with perfect agreement over subjects, and columns without."""
    truth = np.array([3.0, 9.0, 4.0, 12.0, 7.0, 1.0])
    wrong = [truth[::-1], truth + 5, truth * 0.4, np.roll(truth, 1)]

    def inputs_of(*values: Array) -> MetricInputs:
        given = {name: _as_column(name, values[min(place, len(values) - 1)]) for place, name in enumerate(columns)}
        for column in given.values():
            column.setflags(write=False)
        return MetricInputs(columns=given, rng=np.random.default_rng(0))

    return inputs_of(truth), [
        *(inputs_of(truth, other) for other in wrong),
        inputs_of(truth[:1]),
        inputs_of(truth[:0]),
    ]


def _as_column(name: str, values: Array) -> Array:
    """Convert values to those of a column: labels and probabilities 0 or 1, integer classes."""
    if name in ("target_label", "predicted_probability"):
        return (values > 5).astype(np.float64)
    if name in ("target_class", "predicted_class"):
        return np.floor(values) % 3
    return values.copy()


# ----------------------------------------------------------------- shared functions


def _require(holds: bool, promise: str) -> None:
    # Not `assert`, so that the checks work with `python -O`.
    if not holds:
        raise AssertionError(promise)


def _close(first: Tensor, second: Tensor) -> bool:
    scale = float(first.abs().max()) if first.numel() else 1.0
    # The batch size changes the order of summation, and captum's occlusion returns float32.
    return torch.allclose(first, second, rtol=0, atol=1e-5 * max(scale, 1e-30))


@contextmanager
def _draws_nothing(what: str) -> Iterator[None]:
    """Check that the global random generators of torch, NumPy and Python are not used."""
    before = _generators()
    yield
    _require(_generators() == before, f"{what} must not use the global random generators; add a parameter `seed`")


def _generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().tolist(), name, np.asarray(keys).tolist(), rest, random.getstate()
