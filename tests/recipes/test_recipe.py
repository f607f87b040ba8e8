"""Optimisers and batches, which all recipes share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from harness.core.targets import KINDS, Target
from harness.recipes.losses import default_loss
from harness.recipes.recipe import Batch, Outputs, Recipe, mean_loss
from harness.recipes.regression import regression
from harness.recipes.segmentation import segmentation
from harness.recipes.supervised import supervised

RECIPES = pytest.mark.parametrize("build", [regression, segmentation, supervised])
OPTIMISERS = pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])


@RECIPES
@OPTIMISERS
def test_optimiser(build: Callable[..., Recipe], name: str, kind: type) -> None:
    """The optimiser has the given type and options."""
    made = build(optimiser=name, lr=0.25, weight_decay=0.5).optimiser([torch.nn.Parameter(torch.ones(2))])
    assert isinstance(made, kind)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.25, 0.5)


@OPTIMISERS
def test_optimiser_steps_agree_with_torch(name: str, kind: type[torch.optim.Adam]) -> None:
    """Weights after some steps are identical to those of torch's optimiser."""
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2))
    one = segmentation(optimiser=name, lr=0.1, weight_decay=0.5).optimiser([ours])
    other = kind([theirs], lr=0.1, weight_decay=0.5, fused=True)
    for weight, optimiser in ((ours, one), (theirs, other)):
        for _ in range(4):
            optimiser.zero_grad(set_to_none=True)
            weight.pow(3).sum().backward()
            optimiser.step()
    assert not torch.equal(ours, torch.linspace(-1, 1, 9))
    assert torch.equal(ours, theirs)


def test_a_batch_moves_as_a_whole() -> None:
    """Inputs, targets and weights of a batch move to the device together."""
    batch = Batch((torch.ones(2, 1), torch.ones(2, 3)), {"age": torch.ones(2)}, {"age": torch.ones(2)})
    moved = batch.to(torch.device("meta"))
    assert [one.device.type for one in (*moved.inputs, *moved.targets.values(), *moved.weights.values())] == [
        "meta"
    ] * 4


LESION, AGE = Target("lesion", "mask", loss_weight=0.3), Target("age", "number")
SEX, HAIR = Target("sex", "binary", loss_weight=2.0), Target("hair", "classes", ("black", "blond", "red"))
SIZES = (4, 4, 1, 2)  # batches of unequal size


def everything(targets: tuple[Target, ...], weighted: bool) -> tuple[Outputs, Batch]:
    """Outputs, targets and weights of eleven items."""
    rng, count = np.random.default_rng(0), sum(SIZES)
    outputs, labels = {}, {}
    for target in targets:
        space = () if target.of_sample else (4, 5)
        outputs[target.name] = torch.from_numpy(rng.normal(size=(count, target.width, *space)).astype(np.float32))
        drawn = rng.integers(0, 2, (count, *space)).astype(KINDS[target.kind].dtype)
        labels[target.name] = torch.from_numpy(drawn)
    weights = {target.name: torch.from_numpy(rng.random(count).astype(np.float32)) for target in targets[::2]}
    return outputs, Batch((), labels, weights if weighted else {})


def in_batches(outputs: Outputs, batch: Batch) -> Iterator[tuple[Outputs, Batch]]:
    """The same in batches of unequal size."""
    for place in range(len(SIZES)):
        heads, labels, weights = (
            {name: values.split(SIZES)[place] for name, values in one.items()}
            for one in (outputs, batch.targets, batch.weights)
        )
        yield heads, Batch((), labels, weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal weights", "weights of samples"])
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (supervised, (LESION, AGE, SEX, HAIR)),
        (supervised, (LESION,)),
        (regression, (AGE, Target("score", "number"))),
        (regression, (AGE, Target("score", "number", loss_weight=0.5))),
    ],
)
def test_validation_loss_is_that_of_all_items_at_once(
    build: Callable[..., Recipe], targets: tuple[Target, ...], weighted: bool
) -> None:
    """The validation loss of batches of unequal size is the loss of all items in one batch."""
    recipe, (outputs, batch) = build(select="validation_loss"), everything(targets, weighted)
    assert recipe.select is not None
    expected = -float(recipe.loss(outputs, batch, targets))
    assert recipe.select(in_batches(outputs, batch), targets) == pytest.approx(expected, rel=1e-6)
    means = [-float(recipe.loss(*one, targets)) for one in in_batches(outputs, batch)]
    assert np.mean(means) != pytest.approx(expected, rel=1e-3)  # batches count by their size


def test_validation_loss_holds_one_batch() -> None:
    """When a batch is computed, no more than the one before is still in memory."""
    outputs, batch = everything((LESION,), weighted=False)
    seen: list[weakref.ref[torch.Tensor]] = []
    held = []

    def copies() -> Iterator[tuple[Outputs, Batch]]:
        for heads, labels in in_batches(outputs, batch):
            held.append(sum(one() is not None for one in seen))
            copied = {name: head.clone() for name, head in heads.items()}
            seen.append(weakref.ref(copied["lesion"]))
            yield copied, labels
            del copied

    assert np.isfinite(mean_loss(default_loss, copies(), (LESION,)))
    assert held == [0, 1, 1, 1]
