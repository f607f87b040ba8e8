"""Supervised training: default losses of any targets, and epochs balanced by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.core.errors import OutOfRange, UnknownName
from harness.core.targets import Target
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Batch
from harness.recipes.supervised import supervised

RARE = {"sex": np.array([1.0] * 5 + [0.0] * 95, np.float32), "hair": np.array([0] * 60 + [1] * 30 + [2] * 10)}


def drawn(balance: str, epochs: int = 200) -> np.ndarray:
    """Indices drawn over many epochs."""
    sample, rng = supervised(balance=balance).sample, np.random.default_rng(0)
    return np.concatenate([sample(rng, RARE) for _ in range(epochs)])


@pytest.mark.parametrize(("balance", "classes"), [("sex", 2), ("hair", 3)])
def test_balance_draws_classes_evenly(balance: str, classes: int) -> None:
    """Over 20,000 draws, classes are equally frequent within five standard deviations of a binomial."""
    found = drawn(balance)
    counts = np.unique(RARE[balance][found], return_counts=True)[1]
    deviation = np.sqrt(len(found) * (1 / classes) * (1 - 1 / classes))
    assert len(found) == 20_000 and len(counts) == classes
    np.testing.assert_allclose(counts, len(found) / classes, atol=5 * deviation)


def test_balance_draws_items_of_a_class_evenly() -> None:
    """Items of the rare class are drawn equally often."""
    counts = np.bincount(drawn("sex"), minlength=100)[:5]
    np.testing.assert_allclose(counts, 2000, atol=5 * np.sqrt(20_000 * 0.1 * 0.9))


def test_balanced_epoch_has_as_many_draws_as_items() -> None:
    """A balanced epoch has as many draws as there are items, with replacement."""
    found = drawn("sex", epochs=1)
    assert len(found) == 100 and len(set(found.tolist())) < 100


def test_without_balance_every_item_comes_once() -> None:
    """Without balancing, every item is drawn once, in a random order that depends on the generator."""
    sample, rng = supervised().sample, np.random.default_rng(0)
    first, second, again = (sample(one, RARE) for one in (rng, rng, np.random.default_rng(0)))
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second) and np.array_equal(first, again)


def test_balance_by_an_unknown_target_is_refused() -> None:
    """Balancing by an unknown target is refused with suggestions."""
    with pytest.raises(UnknownName, match=r"no target \(recipe\.balance\) is named 'sec'\. Near: sex\. All: hair, sex"):
        supervised(balance="sec").sample(np.random.default_rng(0), RARE)


@pytest.mark.parametrize(
    ("values", "what"),
    [(np.linspace(0, 1, 30, dtype=np.float32), "a number"), (np.zeros((4, 3, 3), np.int64), "a mask")],
)
def test_balance_by_a_target_without_classes_is_refused(values: np.ndarray, what: str) -> None:
    """Balancing by a number or a mask is refused, since these have no classes."""
    with pytest.raises(OutOfRange, match=f"balance must name a binary or classes target, got x, which is {what}"):
        supervised(balance="x").sample(np.random.default_rng(0), {"x": values})


def test_weights_of_targets_and_samples_multiply() -> None:
    """Weights of targets and samples multiply: 2 · 2 gives four times the loss."""
    outputs, labels = {"age": torch.tensor([[1.0]])}, {"age": torch.tensor([4.0])}
    loss = supervised().loss
    plain = loss(outputs, Batch((), labels), (Target("age", "number"),))
    both = loss(outputs, Batch((), labels, {"age": torch.tensor([2.0])}), (Target("age", "number", loss_weight=2.0),))
    assert (float(plain), float(both)) == (9.0, 36.0)


def test_the_lowest_validation_loss_is_selected() -> None:
    """The selection value is minus the weighted loss; with ``select="last"`` there is none."""
    targets = (Target("age", "number"), Target("sex", "binary"))
    outputs = {"age": torch.tensor([[1.0], [2.0]]), "sex": torch.tensor([[0.5], [-1.0]])}
    batch = Batch(
        (), {"age": torch.tensor([4.0, 2.0]), "sex": torch.tensor([1.0, 0.0])}, {"age": torch.tensor([1.0, 3.0])}
    )
    select = supervised().select
    assert select is not None
    assert select([(outputs, batch)], targets) == -float(default_loss(outputs, batch, targets))
    assert supervised(select="last").select is None
