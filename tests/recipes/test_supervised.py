"""Supervised: default losses of any targets, epochs that are balanced by class."""

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
    """Indices of many epochs."""
    sample, rng = supervised(balance=balance).sample, np.random.default_rng(0)
    return np.concatenate([sample(rng, RARE) for _ in range(epochs)])


@pytest.mark.parametrize(("balance", "classes"), [("sex", 2), ("hair", 3)])
def test_balance_draws_classes_evenly(balance: str, classes: int) -> None:
    """Of 20,000 draws each class has its share, within five standard deviations of a binomial."""
    found = drawn(balance)
    counts = np.unique(RARE[balance][found], return_counts=True)[1]
    deviation = np.sqrt(len(found) * (1 / classes) * (1 - 1 / classes))
    assert len(found) == 20_000 and len(counts) == classes
    np.testing.assert_allclose(counts, len(found) / classes, atol=5 * deviation)


def test_balance_draws_items_of_a_class_evenly() -> None:
    """Within the rare class, each item comes as often as the others."""
    counts = np.bincount(drawn("sex"), minlength=100)[:5]
    np.testing.assert_allclose(counts, 2000, atol=5 * np.sqrt(20_000 * 0.1 * 0.9))


def test_a_balanced_epoch_is_as_long_as_any() -> None:
    """As many draws as items, with replacement."""
    found = drawn("sex", epochs=1)
    assert len(found) == 100 and len(set(found.tolist())) < 100


def test_without_balance_every_item_comes_once() -> None:
    """In an order that the stream determines."""
    sample, rng = supervised().sample, np.random.default_rng(0)
    first, second, again = (sample(one, RARE) for one in (rng, rng, np.random.default_rng(0)))
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second) and np.array_equal(first, again)


def test_balance_by_an_unknown_target_is_refused() -> None:
    """With the near name, then all."""
    with pytest.raises(UnknownName, match=r"no target \(recipe\.balance\) is named 'sec'\. Near: sex\. All: hair, sex"):
        supervised(balance="sec").sample(np.random.default_rng(0), RARE)


@pytest.mark.parametrize(
    ("values", "what"),
    [(np.linspace(0, 1, 30, dtype=np.float32), "a number"), (np.zeros((4, 3, 3), np.int64), "a mask")],
)
def test_balance_by_what_has_no_classes_is_refused(values: np.ndarray, what: str) -> None:
    """A number or a mask has no classes to draw evenly."""
    with pytest.raises(OutOfRange, match=f"balance must name a binary or classes target, got x, which is {what}"):
        supervised(balance="x").sample(np.random.default_rng(0), {"x": values})


def test_weights_of_targets_and_samples_multiply() -> None:
    """A weight of four is a loss weight of two on a sample that counts twice."""
    outputs, labels = {"age": torch.tensor([[1.0]])}, {"age": torch.tensor([4.0])}
    loss = supervised().loss
    plain = loss(outputs, Batch((), labels), (Target("age", "number"),))
    both = loss(outputs, Batch((), labels, {"age": torch.tensor([2.0])}), (Target("age", "number", loss_weight=2.0),))
    assert (float(plain), float(both)) == (9.0, 36.0)


def test_the_lowest_validation_loss_is_selected() -> None:
    """Minus the loss, weights included; ``last`` selects nothing."""
    targets = (Target("age", "number"), Target("sex", "binary"))
    outputs = {"age": torch.tensor([[1.0], [2.0]]), "sex": torch.tensor([[0.5], [-1.0]])}
    batch = Batch(
        (), {"age": torch.tensor([4.0, 2.0]), "sex": torch.tensor([1.0, 0.0])}, {"age": torch.tensor([1.0, 3.0])}
    )
    select = supervised().select
    assert select is not None
    assert select(outputs, batch, targets) == -float(default_loss(outputs, batch, targets))
    assert supervised(select="last").select is None
