"""The loop: it repeats, it learns, it keeps the best, and it leaves no trace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.adapters.adapter import AxialSlices
from harness.core.errors import CellError
from harness.core.types import Cohort
from harness.models.unet import unet
from harness.pipeline.train import Epoch, Trained, controlled, infer, train
from harness.recipes.recipe import Recipe, segmentation

VIEW = AxialSlices(("T2w",))


def network() -> torch.nn.Module:
    """A network of a few hundred weights."""
    return unet(1, 2, width=2, depth=1)


def recipe(**options: Any) -> Recipe:
    """Two short epochs, unless options say otherwise."""
    options = {"epochs": 2, "batch_size": 4, "copies": 1, "augmentation": "joint", "max_shift_px": 2.0, **options}
    return segmentation(**options)


@pytest.fixture
def trained(toy_cohort: Cohort) -> Callable[..., Trained]:
    """Train on two subjects of different size, select on a third."""

    def run(one: Recipe | None = None, *, seed: int = 0, build: Any = network, report: Any = None) -> Trained:
        samples = toy_cohort.samples
        return train(build, one or recipe(), VIEW, samples[:2], samples[2:3], seed=seed, report=report)

    return run


def test_same_seed_gives_the_same_weights(trained: Callable[..., Trained]) -> None:
    """Two trainings of one seed agree in every bit."""
    one, two = trained(), trained()
    assert one.history == two.history
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_global_random_state_does_not_matter(trained: Callable[..., Trained]) -> None:
    """Whatever was drawn before, the training is the same."""
    one = trained()
    torch.manual_seed(123)
    np.random.seed(5)
    two = trained()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_another_seed_gives_other_weights(trained: Callable[..., Trained]) -> None:
    """Seeds differ from the first epoch on."""
    assert trained().history[0].loss != trained(seed=1).history[0].loss


def test_weights_and_order_have_streams_of_their_own(trained: Callable[..., Trained]) -> None:
    """A network that draws more numbers when it is built changes its weights, not the order of slices."""
    orders: list[list[int]] = []

    def watched(one: Recipe) -> Recipe:
        def sample(rng: np.random.Generator, targets: Any) -> Any:
            order = one.sample(rng, targets)
            orders.append(order.tolist())
            return order

        return dataclasses.replace(one, sample=sample)

    def greedy() -> torch.nn.Module:
        torch.rand(100)
        return network()

    one, two = trained(watched(recipe())), trained(watched(recipe()), build=greedy)
    assert one.history != two.history
    assert orders[:2] == orders[2:]


def test_state_of_the_process_is_put_back(trained: Callable[..., Trained]) -> None:
    """Threads, random numbers and cuDNN's flags are as before."""
    torch.manual_seed(9)
    before = torch.get_num_threads(), torch.get_rng_state(), torch.backends.cudnn.deterministic
    trained(recipe(threads=2, epochs=1))
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.backends.cudnn.deterministic is before[2]


def test_state_is_put_back_after_an_exception() -> None:
    """Also when the block ends badly."""
    torch.manual_seed(9)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), controlled(threads + 1, 0):
        assert torch.get_num_threads() == threads + 1
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_controlled_seeds_torch() -> None:
    """The block draws by its seed, wherever the process stands."""
    drawn = []
    for _ in range(2):
        torch.rand(1)
        with controlled(1, 77):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_loss_that_is_not_finite_ends_the_cell(trained: Callable[..., Trained]) -> None:
    """The message names the epoch and what to try."""
    calls = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return outputs.mean() ** 2 * (math.nan if len(calls) > 3 else 1.0)

    broken = dataclasses.replace(recipe(epochs=9, balance=False), loss=loss)  # three batches of four slices
    with pytest.raises(CellError, match=r"the loss became nan in epoch 2; try a smaller recipe\.lr"):
        trained(broken)


def test_best_epoch_is_kept(trained: Callable[..., Trained]) -> None:
    """Weights are those of the epoch with the highest selection value, not of the last."""
    values = iter([0.1, 0.9, 0.9, 0.3])
    snapshots: list[torch.Tensor] = []
    built: list[torch.nn.Module] = []

    def build() -> torch.nn.Module:
        built.append(network())
        return built[0]

    def report(epoch: Epoch) -> None:
        snapshots.append(next(built[0].parameters()).detach().clone())

    found = trained(
        dataclasses.replace(recipe(epochs=4), select=lambda outputs, targets: next(values)), build=build, report=report
    )
    assert found.best_epoch == 2
    assert [epoch.validation for epoch in found.history] == [0.1, 0.9, 0.9, 0.3]
    first = next(iter(found.weights.values()))
    assert torch.equal(first, snapshots[1]) and not torch.equal(first, snapshots[3])


def test_last_epoch_is_kept_if_nothing_selects(trained: Callable[..., Trained]) -> None:
    """Without selection the last weights stay, and no selection value is invented."""
    found = trained(recipe(select="last", epochs=3))
    assert found.best_epoch == 3
    assert all(math.isnan(epoch.validation) for epoch in found.history)


def test_selection_needs_validation_samples(toy_cohort: Cohort) -> None:
    """A recipe that selects an epoch refuses to fall back on the last in silence."""
    with pytest.raises(CellError, match=r"validation samples > 0 must hold .*say recipe\.select=last"):
        train(network, recipe(), VIEW, toy_cohort.samples[:2], [], seed=0)
    assert train(network, recipe(select="last"), VIEW, toy_cohort.samples[:2], [], seed=0).best_epoch == 2


def test_report_is_told_every_epoch(trained: Callable[..., Trained]) -> None:
    """Progress has one entry per epoch, in order."""
    told: list[Epoch] = []
    found = trained(recipe(epochs=3), report=told.append)
    assert tuple(told) == found.history
    assert [epoch.epoch for epoch in told] == [1, 2, 3]


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 12), (5, 3), (11, 1)])
def test_every_slice_trains(trained: Callable[..., Trained], batch_size: int, steps: int) -> None:
    """Twelve slices make full batches; only a single left-over slice is skipped, but not batches of one."""
    seen: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(outputs))
        return outputs.mean() ** 2

    trained(dataclasses.replace(recipe(epochs=1, batch_size=batch_size, balance=False), loss=loss))
    assert len(seen) == steps
    assert sum(seen) == (11 if batch_size == 11 else 12)


def test_network_learns_what_can_be_learnt(toy_cohort: Cohort) -> None:
    """Lesions that are plain to see are found in a subject that was not trained on."""
    samples = toy_cohort.samples
    one = recipe(epochs=30, lr=0.02, augmentation="none", balance=False)

    def build() -> torch.nn.Module:
        return unet(1, 2, width=4, depth=1)

    found = train(build, one, VIEW, samples[:2], samples[2:3], seed=0)
    model = build()
    model.load_state_dict(found.weights)
    predicted = infer(model.eval(), VIEW, samples[3], batch_size=4)["probability"] > 0.5
    truth = samples[3].masks["target"].load()
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.9


def test_prediction_has_the_shape_of_its_sample(toy_cohort: Cohort) -> None:
    """Inference pads nothing that stays."""
    for sample in toy_cohort.samples:
        found = infer(network().eval(), VIEW, sample, batch_size=4)["probability"]
        assert found.shape == sample.masks["target"].shape and found.dtype == np.float32


def test_inference_does_not_depend_on_the_batch(toy_cohort: Cohort) -> None:
    """Batch normalisation is in evaluation mode, and the mode is put back."""
    model = network().train()
    one, two = (infer(model, VIEW, toy_cohort.samples[0], batch_size=size)["probability"] for size in (1, 6))
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert model.training


def test_tied_weights_can_be_stored(trained: Callable[..., Trained], tmp_path: Any) -> None:
    """A network whose layers share weights is stored and loaded like any other."""
    from safetensors.torch import load_file, save_file

    def build() -> torch.nn.Module:
        one, two = torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 2, 1)
        two.weight = one.weight
        return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), one, two)

    found = trained(recipe(), build=build)
    save_file(found.weights, tmp_path / "weights.safetensors")
    build().load_state_dict(load_file(tmp_path / "weights.safetensors"))
