"""The training loop: reproducibility, convergence, selection of an epoch, and restored state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.adapters.axial_slices import AxialSlices
from harness.core.errors import CellError
from harness.core.seeding import seed_of
from harness.core.task import Task
from harness.core.types import Array, Cohort, NetworkSpec, Sample
from harness.models.unet import unet
from harness.pipeline import items as items_module
from harness.pipeline.networks import Member, build_network
from harness.pipeline.predict import predict
from harness.pipeline.train import Epoch, Trained, controlled, train
from harness.recipes.recipe import Batch, Outputs, Recipe
from harness.recipes.segmentation import segmentation
from harness.recipes.supervised import supervised

ADAPTER = AxialSlices(("T2w",))


def network() -> torch.nn.Module:
    """A network with a few hundred weights."""
    return unet(1, 2, width=2, depth=1)


def recipe(**options: Any) -> Recipe:
    """A recipe with two short epochs by default."""
    options = {"epochs": 2, "batch_size": 4, "copies": 1, "augmentation": "joint", "max_shift_px": 2.0, **options}
    return segmentation(**options)


@pytest.fixture
def spec(toy_cohort: Cohort) -> NetworkSpec:
    """A spec with one input channel and a mask target."""
    return ADAPTER.spec(toy_cohort)


@pytest.fixture
def trained(toy_cohort: Cohort, spec: NetworkSpec) -> Callable[..., Trained]:
    """A function that trains on two subjects of different size and validates on a third."""

    def run(one: Recipe | None = None, *, seed: int = 0, build: Any = network, report: Any = None) -> Trained:
        samples = toy_cohort.samples
        return train(build, one or recipe(), ADAPTER, spec, samples[:2], samples[2:3], seed=seed, report=report)

    return run


def test_same_seed_gives_the_same_weights(trained: Callable[..., Trained]) -> None:
    """Two trainings with the same seed give identical weights."""
    one, two = trained(), trained()
    assert one.history == two.history
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_global_random_state_does_not_matter(trained: Callable[..., Trained]) -> None:
    """The global random state does not affect a training."""
    one = trained()
    torch.manual_seed(123)
    np.random.seed(5)
    two = trained()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_another_seed_gives_other_weights(trained: Callable[..., Trained]) -> None:
    """Another seed gives another loss from the first epoch on."""
    assert trained().history[0].loss != trained(seed=1).history[0].loss


def test_weights_and_order_have_separate_streams(trained: Callable[..., Trained]) -> None:
    """The order of slices does not depend on the random numbers used to build the network."""
    orders: list[list[int]] = []

    def watched(one: Recipe) -> Recipe:
        def sample(rng: np.random.Generator, targets: Any) -> Any:
            order = one.sample(rng, targets)
            orders.append(order.tolist())
            return order

        return dataclasses.replace(one, sample=sample)

    def build_with_extra_draws() -> torch.nn.Module:
        torch.rand(100)
        return network()

    one, two = trained(watched(recipe())), trained(watched(recipe()), build=build_with_extra_draws)
    assert one.history != two.history
    assert orders[:2] == orders[2:]


def test_state_of_the_process_is_restored(trained: Callable[..., Trained]) -> None:
    """Threads, random state and cuDNN flags are restored after a training."""
    torch.manual_seed(9)
    before = torch.get_num_threads(), torch.get_rng_state(), torch.backends.cudnn.deterministic
    trained(recipe(threads=2, epochs=1))
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.backends.cudnn.deterministic is before[2]


def test_state_is_restored_after_an_exception() -> None:
    """Threads and random state are restored after an exception."""
    torch.manual_seed(9)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), controlled(threads + 1, 0):
        assert torch.get_num_threads() == threads + 1
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_controlled_seeds_torch() -> None:
    """Random numbers within ``controlled`` depend only on its seed."""
    drawn = []
    for _ in range(2):
        torch.rand(1)
        with controlled(1, 77):
            drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_loss_that_is_not_finite_raises(trained: Callable[..., Trained]) -> None:
    """A loss that is NaN raises an error that names the epoch and a remedy."""
    calls = []

    def loss(outputs: Outputs, batch: Batch, targets: Any) -> torch.Tensor:
        calls.append(1)
        return outputs["target"].mean() ** 2 * (math.nan if len(calls) > 3 else 1.0)

    broken = dataclasses.replace(recipe(epochs=9, balance=False), loss=loss)  # three batches of four slices
    with pytest.raises(CellError, match=r"the loss must be finite, got nan in epoch 2; try a smaller recipe\.lr"):
        trained(broken)


def test_validation_value_that_is_not_finite_raises(trained: Callable[..., Trained]) -> None:
    """A validation value that is NaN raises an error."""
    values = iter([0.5, math.nan])
    broken = dataclasses.replace(recipe(epochs=3), select=lambda batches, targets: next(values))
    with pytest.raises(
        CellError, match=r"the validation value must be finite, got nan in epoch 2: .*recipe\.select=last"
    ):
        trained(broken)


def test_validation_outputs_are_given_batch_by_batch(trained: Callable[..., Trained]) -> None:
    """The selection value is computed from batches of the recipe's size, so that not all outputs are held at once."""
    sizes: list[list[int]] = []

    def select(batches: Any, targets: Any) -> float:
        sizes.append([len(batch.targets["target"]) for outputs, batch in batches])
        return 0.5

    made = dataclasses.replace(recipe(epochs=1), select=select)
    trained(made)
    assert len(sizes) == 1 and len(sizes[0]) > 1
    assert set(sizes[0][:-1]) == {made.batch_size} and sizes[0][-1] <= made.batch_size


def test_best_epoch_is_kept(trained: Callable[..., Trained]) -> None:
    """The weights of the epoch with the highest validation value are kept."""
    values = iter([0.1, 0.9, 0.9, 0.3])
    snapshots: list[torch.Tensor] = []
    built: list[torch.nn.Module] = []

    def build() -> torch.nn.Module:
        built.append(network())
        return built[0]

    def report(epoch: Epoch) -> None:
        snapshots.append(next(built[0].parameters()).detach().clone())

    found = trained(
        dataclasses.replace(recipe(epochs=4), select=lambda batches, targets: next(values)),
        build=build,
        report=report,
    )
    assert found.best_epoch == 2
    assert [epoch.validation for epoch in found.history] == [0.1, 0.9, 0.9, 0.3]
    first = next(iter(found.weights.values()))
    assert torch.equal(first, snapshots[1]) and not torch.equal(first, snapshots[3])


def test_last_epoch_is_kept_if_nothing_selects(trained: Callable[..., Trained]) -> None:
    """With ``select=last``, the last weights are kept and validation values are NaN."""
    found = trained(recipe(select="last", epochs=3))
    assert found.best_epoch == 3
    assert all(math.isnan(epoch.validation) for epoch in found.history)


def test_selection_needs_validation_samples(toy_cohort: Cohort, spec: NetworkSpec) -> None:
    """Selecting an epoch without validation samples raises an error."""
    samples = toy_cohort.samples[:2]
    with pytest.raises(
        CellError, match=r"a recipe that selects an epoch needs validation samples, got none; set recipe\.select=last"
    ):
        train(network, recipe(), ADAPTER, spec, samples, [], seed=0)
    assert train(network, recipe(select="last"), ADAPTER, spec, samples, [], seed=0).best_epoch == 2


def test_report_is_called_every_epoch(trained: Callable[..., Trained]) -> None:
    """``report`` is called once per epoch, in order."""
    reported: list[Epoch] = []
    found = trained(recipe(epochs=3), report=reported.append)
    assert tuple(reported) == found.history
    assert [epoch.epoch for epoch in reported] == [1, 2, 3]


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 12), (5, 3), (11, 1)])
def test_every_slice_trains(trained: Callable[..., Trained], batch_size: int, steps: int) -> None:
    """All twelve slices are used, except a single left-over slice of a larger batch size."""
    seen: list[int] = []

    def loss(outputs: Outputs, batch: Batch, targets: Any) -> torch.Tensor:
        seen.append(len(outputs["target"]))
        return outputs["target"].mean() ** 2

    trained(dataclasses.replace(recipe(epochs=1, batch_size=batch_size, balance=False), loss=loss))
    assert len(seen) == steps
    assert sum(seen) == (11 if batch_size == 11 else 12)


def test_network_learns_visible_lesions(toy_cohort: Cohort, spec: NetworkSpec) -> None:
    """Visible lesions are segmented in a subject that was not used for training."""
    samples = toy_cohort.samples
    one = recipe(epochs=30, lr=0.02, augmentation="none", balance=False)

    def build() -> torch.nn.Module:
        return unet(1, 2, width=4, depth=1)

    found = train(build, one, ADAPTER, spec, samples[:2], samples[2:3], seed=0)
    model = build()
    model.load_state_dict(found.weights)
    member = Member(model.eval(), ADAPTER)
    predicted = predict([member], spec, samples[3], batch_size=4)["target"]["probability"] > 0.5
    truth = samples[3].masks["target"].load()
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.9


def test_memory_mapped_slices_give_the_same_weights(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices in memory and in memory-mapped files give identical weights."""
    expected = trained()
    monkeypatch.setattr(items_module, "HELD_BYTES", 0)
    found = trained()
    assert found.history == expected.history
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)


def test_tied_weights_can_be_stored(trained: Callable[..., Trained], tmp_path: Any) -> None:
    """A network with tied weights can be stored and loaded."""
    from safetensors.torch import load_file, save_file

    def build() -> torch.nn.Module:
        one, two = torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 2, 1)
        two.weight = one.weight
        return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), one, two)

    found = trained(recipe(), build=build)
    save_file(found.weights, tmp_path / "weights.safetensors")
    build().load_state_dict(load_file(tmp_path / "weights.safetensors"))


class TestSeveralTargets:
    """Training with a picture and a height as inputs and targets of three kinds."""

    @pytest.fixture
    def fit(self, study: Task, crowd_spec: NetworkSpec) -> Callable[..., Trained]:
        """A function that trains on some pictures, with every item once per epoch."""

        def run(cohort: Cohort, **options: Any) -> Trained:
            one = supervised(**{"epochs": 2, "batch_size": 4, "select": "last", **options})
            return train(
                lambda: build_network(study, crowd_spec), one, study.adapter(), crowd_spec,
                cohort.samples[:8], cohort.samples[8:], seed=0,
            )  # fmt: skip

        return run

    @staticmethod
    def weighted(cohort: Cohort, **weights: float) -> Cohort:
        """The cohort with weights for its first sample."""
        first = dataclasses.replace(cohort.samples[0], weights=weights)
        return dataclasses.replace(cohort, samples=(first, *cohort.samples[1:]))

    def test_pictures_read_when_needed_give_the_same_weights(
        self, fit: Callable[..., Trained], people: Callable[[int], Cohort], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pictures that are read when needed give identical weights to those in memory."""
        expected = fit(people(6))
        monkeypatch.setattr(items_module, "HELD_BYTES", 0)
        found = fit(people(6))
        assert found.history == expected.history
        assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)

    def test_weight_of_one_changes_nothing(self, fit: Callable[..., Trained], people: Callable[[int], Cohort]) -> None:
        """A weight of 1 gives the same losses as no weight."""
        plain, one = fit(people(6)), fit(self.weighted(people(6), smile=1.0))
        assert plain.history == one.history

    def test_sample_without_weight_in_any_target_is_not_learned(
        self, fit: Callable[..., Trained], people: Callable[[int], Cohort]
    ) -> None:
        """The targets of a sample with weight zero do not affect the trained weights."""
        nothing = {"age": 0.0, "smile": 0.0, "hair": 0.0}
        cohort = self.weighted(people(6), **nothing)
        first = cohort.samples[0]
        other = {"age": 500.0, "smile": 1 - first.targets["smile"], "hair": (first.targets["hair"] + 1) % 3}
        wrong = dataclasses.replace(cohort, samples=(dataclasses.replace(first, targets=other), *cohort.samples[1:]))
        one, two = fit(cohort), fit(wrong)
        assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
        three = fit(dataclasses.replace(wrong, samples=(dataclasses.replace(wrong.samples[0], weights={}),
                                                        *wrong.samples[1:])))  # fmt: skip
        assert not all(torch.equal(one.weights[name], three.weights[name]) for name in one.weights)

    def test_loss_is_the_weighted_mean_over_items(
        self, fit: Callable[..., Trained], people: Callable[[int], Cohort], crowd_spec: NetworkSpec, study: Task
    ) -> None:
        """The loss of the first epoch agrees with a replica with weights of samples and targets."""
        cohort = self.weighted(people(6), age=5.0, hair=0.5)
        found = fit(cohort, epochs=1, batch_size=8)
        with controlled(1, 0):
            torch.manual_seed(seed_of(0, "model"))
            network = build_network(study, crowd_spec)
        adapter, total = study.adapter(), 0.0
        for number, sample in enumerate(cohort.samples[:8]):
            inputs = [torch.from_numpy(one) for one in adapter.inputs(sample)]
            with torch.no_grad():
                output = network(*inputs)[0].double().numpy()
            p, hair = 1 / (1 + np.exp(-output[1])), np.exp(output[2:]) / np.exp(output[2:]).sum()
            truth = sample.targets
            losses = {
                "age": (output[0] - truth["age"]) ** 2,
                "smile": -np.log(p if truth["smile"] else 1 - p),
                "hair": -np.log(hair[int(truth["hair"])]),
            }
            weights = {"age": 5.0, "smile": 1.0, "hair": 0.5} if number == 0 else dict.fromkeys(losses, 1.0)
            total += sum(
                target.loss_weight * weights[target.name] * losses[target.name] for target in crowd_spec.targets
            )
        assert found.history[0].loss == pytest.approx(total / 8, rel=1e-5)

    def test_selection_is_by_the_loss_on_validation_samples(
        self, fit: Callable[..., Trained], people: Callable[[int], Cohort]
    ) -> None:
        """The epoch with the lowest validation loss is kept."""
        found = fit(people(6), select="validation_loss", epochs=4)
        values = [epoch.validation for epoch in found.history]
        assert all(value < 0 for value in values)
        assert found.best_epoch == 1 + int(np.argmax(values))


def test_weights_of_samples_are_refused_by_models_that_ignore_them(toy_cohort: Cohort, spec: NetworkSpec) -> None:
    """A model that is fitted by its own method would silently give all samples equal weight."""

    class Sparse(AxialSlices):
        """Slices that can be read as sparse images."""

        def voxels(self, sample: Sample) -> tuple[Array, Array]:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)

    class Mean(torch.nn.Module):
        """A model that is fitted by its own method."""

        def fit(self, lesions: Any, targets: Array, *, rng: np.random.Generator) -> None:
            raise AssertionError("must not be fitted")

        def weight_map(self) -> torch.Tensor:
            return torch.zeros(1)

    samples = [dataclasses.replace(one, weights={"target": 2.0}) for one in toy_cohort.samples]
    with pytest.raises(CellError, match="Mean gives all samples equal weight, but samples have weights for target"):
        train(Mean, recipe(), Sparse(("T2w",)), spec, samples[:2], samples[2:3], seed=0)
