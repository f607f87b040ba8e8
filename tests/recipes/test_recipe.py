"""Optimisers and batches, which all recipes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.recipes.recipe import Batch, Recipe
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
