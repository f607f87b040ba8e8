"""Default losses: torch's own, and how weights enter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.core.targets import KINDS, Target
from harness.recipes.losses import LOSSES, default_loss
from harness.recipes.recipe import Batch

MASK, AGE = Target("lesion", "mask"), Target("age", "number")
SEX, HAIR = Target("sex", "binary"), Target("hair", "classes", ("black", "blond", "red"))
TARGETS = (MASK, AGE, SEX, HAIR)
N = 6

# What a user of torch would write for the kind.
TORCHS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mask": nn.CrossEntropyLoss(),
    "number": lambda output, target: nn.MSELoss()(output.squeeze(1), target),
    "binary": lambda output, target: nn.BCEWithLogitsLoss()(output.squeeze(1), target),
    "classes": nn.CrossEntropyLoss(),
}


def drawn(generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs of each head, and what they should say."""
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
    """A batch of six items."""
    return drawn(torch.Generator().manual_seed(0))


Drawn = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def test_every_kind_has_a_loss() -> None:
    """A target of any kind can be trained."""
    assert set(LOSSES) == set(KINDS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_loss_of_each_item_is_torchs(outputs_and_targets: Drawn, target: Target) -> None:
    """One loss per item, as torch gives it for that item alone."""
    outputs, labels = (one[target.name] for one in outputs_and_targets)
    found = LOSSES[target.kind](outputs, labels)
    expected = torch.stack([TORCHS[target.kind](outputs[[i]], labels[[i]]) for i in range(N)])
    assert found.shape == (N,)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_loss_of_a_batch_is_torchs(outputs_and_targets: Drawn, target: Target) -> None:
    """Without weights, the mean that torch's loss gives of the batch."""
    outputs, labels = outputs_and_targets
    found = default_loss(outputs, Batch((), labels), (target,))
    torch.testing.assert_close(found, TORCHS[target.kind](outputs[target.name], labels[target.name]))


def test_losses_of_targets_are_added_with_their_weights(outputs_and_targets: Drawn) -> None:
    """Σ loss_weight · loss over targets of all kinds."""
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
    """The sum is divided by the number of items, so that a weight of zero leaves the others as they are."""
    outputs, labels = outputs_and_targets
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    found = default_loss(outputs, Batch((), labels, {target.name: weights}), (target,))
    each = [TORCHS[target.kind](outputs[target.name][[i]], labels[target.name][[i]]) for i in range(N)]
    torch.testing.assert_close(found, sum(weights[i] * each[i] for i in range(N)) / N)


def test_weights_of_one_target_leave_the_others(outputs_and_targets: Drawn) -> None:
    """A sample may count twice for one target and once for another."""
    outputs, labels = outputs_and_targets
    both = default_loss(outputs, Batch((), labels, {"age": torch.full((N,), 2.0)}), (AGE, SEX))
    age, sex = (default_loss(outputs, Batch((), labels), (one,)) for one in (AGE, SEX))
    torch.testing.assert_close(both, 2 * age + sex)


def test_gradient_is_that_of_torchs_loss(outputs_and_targets: Drawn) -> None:
    """Backwards as well, with all kinds at once."""
    outputs, labels = outputs_and_targets
    ours, theirs = ({name: one.clone().requires_grad_() for name, one in outputs.items()} for _ in range(2))
    default_loss(ours, Batch((), labels), TARGETS).backward()
    sum(TORCHS[one.kind](theirs[one.name], labels[one.name]) for one in TARGETS).backward()
    for name in outputs:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)
