"""Default losses against torch, and their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.core.targets import KINDS, Target
from harness.models.heads import HEADS
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Batch

MASK, AGE = Target("lesion", "mask"), Target("age", "number")
SEX, HAIR = Target("sex", "binary"), Target("hair", "classes", ("black", "blond", "red"))
TARGETS = (MASK, AGE, SEX, HAIR)
N = 6

# Losses of torch for each kind of target.
TORCHS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mask": nn.CrossEntropyLoss(),
    "number": lambda output, target: nn.MSELoss()(output.squeeze(1), target),
    "binary": lambda output, target: nn.BCEWithLogitsLoss()(output.squeeze(1), target),
    "classes": nn.CrossEntropyLoss(),
}


def drawn(generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs of each head with their targets."""
    outputs = {
        "lesion": torch.randn(N, 2, 4, 5, generator=generator),
        "age": torch.randn(N, 1, generator=generator),
        "sex": torch.randn(N, 1, generator=generator),
        "hair": torch.randn(N, 3, generator=generator),
    }
    targets = {
        "lesion": torch.randint(0, 2, (N, 4, 5), generator=generator),
        "age": torch.randn(N, generator=generator),
        "sex": torch.randint(0, 2, (N,), generator=generator).float(),
        "hair": torch.randint(0, 3, (N,), generator=generator),
    }
    return outputs, targets


@pytest.fixture
def outputs_and_targets() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and targets of a batch of six items."""
    return drawn(torch.Generator().manual_seed(0))


Drawn = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def test_every_kind_has_a_loss() -> None:
    """Every kind of target has a loss."""
    assert set(HEADS) == set(KINDS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_loss_of_each_item_agrees_with_torch(outputs_and_targets: Drawn, target: Target) -> None:
    """The loss of each item is torch's loss of that item."""
    outputs, labels = (one[target.name] for one in outputs_and_targets)
    found = HEADS[target.kind].loss(outputs, labels)
    expected = torch.stack([TORCHS[target.kind](outputs[[i]], labels[[i]]) for i in range(N)])
    assert found.shape == (N,)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_loss_of_a_batch_agrees_with_torch(outputs_and_targets: Drawn, target: Target) -> None:
    """Without weights, the loss of a batch is torch's loss."""
    outputs, labels = outputs_and_targets
    found = default_loss(outputs, Batch((), labels), (target,))
    torch.testing.assert_close(found, TORCHS[target.kind](outputs[target.name], labels[target.name]))


def test_losses_of_targets_are_added_with_their_weights(outputs_and_targets: Drawn) -> None:
    """Losses of all targets are summed with their weights: Σ loss_weight · loss."""
    outputs, labels = outputs_and_targets
    weighted = [
        Target(one.name, one.kind, one.classes, weight)
        for one, weight in zip(TARGETS, (1.0, 0.01, 3.0, 0.5), strict=True)
    ]
    found = default_loss(outputs, Batch((), labels), weighted)
    expected = sum(one.loss_weight * TORCHS[one.kind](outputs[one.name], labels[one.name]) for one in weighted)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_weights_of_items_multiply_their_losses(outputs_and_targets: Drawn, target: Target) -> None:
    """Losses of items are multiplied by their weights and divided by the number of items."""
    outputs, labels = outputs_and_targets
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    found = default_loss(outputs, Batch((), labels, {target.name: weights}), (target,))
    each = [TORCHS[target.kind](outputs[target.name][[i]], labels[target.name][[i]]) for i in range(N)]
    torch.testing.assert_close(found, sum(weights[i] * each[i] for i in range(N)) / N)


def test_weights_apply_to_one_target_only(outputs_and_targets: Drawn) -> None:
    """Weights for one target do not affect the loss of another."""
    outputs, labels = outputs_and_targets
    both = default_loss(outputs, Batch((), labels, {"age": torch.full((N,), 2.0)}), (AGE, SEX))
    age, sex = (default_loss(outputs, Batch((), labels), (one,)) for one in (AGE, SEX))
    torch.testing.assert_close(both, 2 * age + sex)


def test_gradient_agrees_with_torch(outputs_and_targets: Drawn) -> None:
    """The gradient of the summed loss agrees with torch."""
    outputs, labels = outputs_and_targets
    ours, theirs = ({name: one.clone().requires_grad_() for name, one in outputs.items()} for _ in range(2))
    default_loss(ours, Batch((), labels), TARGETS).backward()
    sum(TORCHS[one.kind](theirs[one.name], labels[one.name]) for one in TARGETS).backward()
    for name in outputs:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)
