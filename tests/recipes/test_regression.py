"""Regression: the mean squared error over samples and scores, and the order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.core.errors import CellError
from harness.core.targets import Target
from harness.recipes.recipe import Batch
from harness.recipes.regression import regression

ONE, TWO = TARGETS = (Target("one", "number"), Target("two", "number"))
OUTPUTS = {"one": torch.tensor([[1.0], [2.0], [4.0]]), "two": torch.tensor([[0.0], [1.0], [0.0]])}
LABELS = {"one": torch.tensor([0.0, 2.0, 1.0]), "two": torch.tensor([2.0, 1.0, 1.0])}


def test_loss_is_the_mean_over_samples_and_scores() -> None:
    """The loss is the mean of all squared errors: (1 + 0 + 9 + 4 + 0 + 1) / 6."""
    assert float(regression().loss(OUTPUTS, Batch((), LABELS), TARGETS)) == 15 / 6


def test_loss_is_identical_to_torch() -> None:
    """The loss is identical to torch's MSE of all scores in one tensor."""
    generator = torch.Generator().manual_seed(0)
    predicted, truth = (torch.randn(7, 3, generator=generator) for _ in range(2))
    targets = tuple(Target(name, "number") for name in "abc")
    outputs = {name: predicted[:, [place]] for place, name in enumerate("abc")}
    batch = Batch((), {name: truth[:, place] for place, name in enumerate("abc")})
    assert torch.equal(regression().loss(outputs, batch, targets), torch.nn.MSELoss()(predicted, truth))


def test_weights_multiply_the_squared_errors() -> None:
    """Squared errors are multiplied by the weights of samples and targets."""
    targets = (ONE, Target("two", "number", loss_weight=0.5))
    batch = Batch((), LABELS, {"one": torch.tensor([3.0, 1.0, 0.0])})
    assert float(regression().loss(OUTPUTS, batch, targets)) == pytest.approx((3 * 1 + 0 + 0 + 0.5 * (4 + 0 + 1)) / 6)


def test_other_kinds_are_refused() -> None:
    """Targets of another kind are refused."""
    with pytest.raises(CellError, match=r"regression trains targets of kind number, got sex \(binary\); use recipe="):
        regression().loss(OUTPUTS, Batch((), LABELS), (ONE, Target("sex", "binary")))


def test_the_lowest_error_is_selected() -> None:
    """The selection value is minus the validation loss, and by default no epoch is selected."""
    select = regression(select="validation_loss").select
    assert select is not None and select([(OUTPUTS, Batch((), LABELS))], TARGETS) == -15 / 6
    assert regression().select is None


def test_an_epoch_visits_every_sample_once() -> None:
    """Every epoch visits each sample once, in a random order that depends on the generator."""
    sample, rng = regression().sample, np.random.default_rng(0)
    values = {"one": np.zeros(9), "two": np.ones(9)}
    first, second, again = (sample(one, values) for one in (rng, rng, np.random.default_rng(0)))
    assert sorted(first) == sorted(second) == list(range(9))
    assert not np.array_equal(first, second) and np.array_equal(first, again)


@pytest.mark.parametrize(("drop", "expected"), [(0, [1, 1, 1, 1]), (2, [1, 1, 0.5, 0.5])])
def test_learning_rate_drops_after_an_epoch(drop: int, expected: list[float]) -> None:
    """The learning rate drops after the given epoch; 0 disables the drop."""
    factor = regression(lr_drop_epoch=drop, lr_drop_factor=0.5).lr_factor
    assert [factor(epoch) for epoch in (1, 2, 3, 4)] == expected
