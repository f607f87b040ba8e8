"""Recipes: loss, selection and what an epoch draws."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from harness.recipes.recipe import mean_iou, segmentation


@pytest.fixture
def targets() -> np.ndarray:
    """(20, 4, 5) int64; six slices hold a lesion."""
    found = np.zeros((20, 4, 5), np.int64)
    found[[1, 2, 5, 8, 13, 19], 2, 3] = 1
    return found


@pytest.mark.parametrize("seed", range(3))
def test_mean_iou_is_sklearns(seed: int) -> None:
    """Reference: the macro Jaccard score of all voxels together."""
    rng = np.random.default_rng(seed)
    outputs, truth = rng.normal(size=(7, 2, 4, 5)), rng.integers(0, 2, (7, 4, 5))
    found = mean_iou(torch.from_numpy(outputs), torch.from_numpy(truth))
    assert found == pytest.approx(jaccard_score(truth.ravel(), outputs.argmax(1).ravel(), average="macro"))


def test_mean_iou_by_hand() -> None:
    """Of four voxels one lesion is found, one missed, none invented: (2/3 + 1/2) / 2."""
    outputs = torch.tensor([[[[0.0, 1, 1, 1]], [[1.0, 0, 0, 0]]]])
    assert mean_iou(outputs, torch.tensor([[[1, 1, 0, 0]]])) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_mean_iou_of_an_absent_class() -> None:
    """A class that is in neither counts as found."""
    outputs = torch.tensor([[[[1.0, 1]], [[0.0, 0]]]])
    assert mean_iou(outputs, torch.tensor([[[0, 0]]])) == 1.0


def test_loss_is_the_weighted_cross_entropy() -> None:
    """Replica: −log of the true class's softmax, lesions weighted, over the sum of weights."""
    rng = np.random.default_rng(0)
    outputs, truth = rng.normal(size=(3, 2, 4, 5)), rng.integers(0, 2, (3, 4, 5))
    logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    weights = np.where(truth == 1, 5.0, 1.0)
    expected = -(weights * np.take_along_axis(logs, truth[:, None], 1)[:, 0]).sum() / weights.sum()
    found = segmentation(lesion_weight=5.0).loss(torch.from_numpy(outputs).float(), torch.from_numpy(truth))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_epoch_draws_as_many_background_as_lesion_slices(targets: np.ndarray) -> None:
    """Six slices hold a lesion, so six of the others are drawn, none of them twice."""
    order = segmentation(copies=1, balance=True).sample(np.random.default_rng(0), targets)
    lesion = targets.any((1, 2))[order]
    assert (lesion.sum(), (~lesion).sum()) == (6, 6)
    assert len(set(order.tolist())) == 12


def test_balance_repeats_scarce_background(targets: np.ndarray) -> None:
    """With less background than lesions, background slices are drawn more than once."""
    few = targets[[1, 2, 5, 8, 0]]
    order = segmentation(copies=1, balance=True).sample(np.random.default_rng(0), few)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 4, 4, 4]


def test_copies_repeat_every_slice(targets: np.ndarray) -> None:
    """Every slice comes as often as there are copies."""
    order = segmentation(copies=3, balance=False).sample(np.random.default_rng(0), targets)
    assert np.array_equal(np.bincount(order), np.full(20, 3))


@pytest.mark.parametrize("lesions", [True, False])
def test_epoch_without_one_of_the_kinds(targets: np.ndarray, lesions: bool) -> None:
    """Where all slices are of one kind there is nothing to balance."""
    of_a_kind = targets[targets.any((1, 2)) == lesions]
    order = segmentation(copies=1, balance=True).sample(np.random.default_rng(0), of_a_kind)
    assert sorted(order.tolist()) == list(range(len(of_a_kind)))


def test_epochs_are_shuffled(targets: np.ndarray) -> None:
    """Two epochs of one stream come in different orders, the same stream repeats."""
    sample = segmentation(copies=1, balance=False).sample
    rng = np.random.default_rng(0)
    first, second, again = sample(rng, targets), sample(rng, targets), sample(np.random.default_rng(0), targets)
    assert not np.array_equal(first, second) and np.array_equal(first, again)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimiser(name: str, kind: type) -> None:
    """The optimiser is the one that is named, with its options."""
    made = segmentation(optimiser=name, lr=0.25, weight_decay=0.5).optimiser([torch.nn.Parameter(torch.ones(2))])
    assert isinstance(made, kind)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.25, 0.5)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimiser_steps_are_torchs(name: str, kind: type[torch.optim.Adam]) -> None:
    """Weights are bit for bit those of the optimiser as torch has it."""
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


def test_training_does_not_import_the_compiler() -> None:
    """Every worker would wait for it, and nothing is compiled."""
    script = """
import sys, torch
from harness.recipes.recipe import segmentation
weight = torch.nn.Parameter(torch.ones(2))
optimiser = segmentation().optimiser([weight])
optimiser.zero_grad(set_to_none=True)
weight.sum().backward()
optimiser.step()
print("torch._dynamo" in sys.modules, weight.tolist() != [1, 1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_no_augmentation_leaves_the_very_same_tensors() -> None:
    """``none`` does not even resample."""
    inputs, labels = torch.ones(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64)
    found = segmentation(augmentation="none").augment(np.random.default_rng(0), inputs, labels)
    assert found[0] is inputs and found[1] is labels


def test_last_selects_nothing() -> None:
    """``select=last`` keeps the last epoch."""
    assert segmentation(select="last").select is None
    assert segmentation().select is mean_iou
