"""Training on volumes: augmentation in three dimensions, selection by AUC, balanced sampling, patience."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from harness.core.errors import CellError
from harness.core.seeding import generator
from harness.core.targets import Target
from harness.recipes.recipe import Batch
from harness.recipes.volumes import augmented, volume_recipe

NOTHING: dict[str, Any] = {"flips": False, "quarter_turns": False, "noise": 0.0, "angle_deg": 0.0, "scaling": 0.0}
SEVERE = Target("severe", "binary")


def batch(n: int = 6, shape: tuple[int, int, int] = (8, 10, 8)) -> Batch:
    """Images with one bright corner each, an age and labels."""
    torch.manual_seed(0)
    images = torch.rand(n, 2, *shape)
    return Batch((images, torch.rand(n, 1)), {"severe": torch.arange(n).float() % 2}, {"severe": torch.rand(n)})


def change(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images before and after an augmentation."""
    given = batch()
    made = augmented(generator(0, "test"), given, **{**NOTHING, **options})
    assert made.inputs[0].shape == given.inputs[0].shape
    assert made.inputs[1] is given.inputs[1] and made.targets is given.targets and made.weights is given.weights
    return given.inputs[0], made.inputs[0]


def test_nothing_asked_changes_nothing() -> None:
    """Without augmentation, images are the same."""
    before, after = change()
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_flips_reverse_axes() -> None:
    """Each image is one of its eight flips, and several occur."""
    before, after = change(flips=True)
    found = set()
    for one, made in zip(before, after, strict=True):
        axes = [
            axes
            for axes in ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
            if torch.equal(one.flip(axes), made)
        ]
        assert len(axes) == 1
        found.add(axes[0])
    assert len(found) > 2


def test_quarter_turns_are_in_the_square_plane() -> None:
    """Images of 8 × 10 × 8 voxels are turned around the second axis by multiples of 90°."""
    before, after = change(quarter_turns=True)
    turns = [
        [turn for turn in range(4) if torch.equal(torch.rot90(one, turn, (1, 3)), made)]
        for one, made in zip(before, after, strict=True)
    ]
    assert all(len(one) == 1 for one in turns) and len({one[0] for one in turns}) > 1
    given = batch(shape=(8, 10, 12))
    made = augmented(generator(0, "test"), given, **{**NOTHING, "quarter_turns": True})
    assert torch.equal(given.inputs[0], made.inputs[0])


def test_noise_has_the_standard_deviation() -> None:
    """The difference is Gaussian with the given standard deviation."""
    before, after = change(noise=0.2)
    assert float((after - before).std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float((after - before).mean())) < 0.01


def test_rotation_is_in_voxels_and_scaling_in_size() -> None:
    """A ball stays a ball in an image with unequal sides, and its volume changes with the cube of the size."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (24, 32, 28)), indexing="ij"))
    ball = ((grid**2).sum(0).sqrt() < 8).float()[None, None].expand(8, 1, -1, -1, -1)
    turned = augmented(generator(0, "test"), Batch((ball,)), **{**NOTHING, "angle_deg": 30.0}).inputs[0]
    for one in turned:
        assert float((one[0] - ball[0, 0]).abs().sum() / ball[0].sum()) < 0.15
    scaled = augmented(generator(0, "test"), Batch((ball,)), **{**NOTHING, "scaling": 0.1}).inputs[0]
    volumes = scaled.sum((1, 2, 3, 4)) / ball[0].sum()
    assert 0.9**3 * 0.95 < float(volumes.min()) < float(volumes.max()) < 1.1**3 * 1.05
    assert float(volumes.std()) > 0.03
    corner = torch.zeros(1, 1, 24, 32, 28)
    corner[0, 0, 4:8, 14:18, 12:16] = 1
    options = {**NOTHING, "angle_deg": 30.0}
    moved = [augmented(generator(seed, "test"), Batch((corner,)), **options).inputs[0] for seed in range(6)]
    assert all(float((one - corner).abs().sum() / corner.sum()) > 0.2 for one in moved)


def test_selection_is_the_auc_of_scikit_learn() -> None:
    """The validation value is the area under the ROC curve over all batches."""
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 40).astype(np.float32), rng.normal(size=40).astype(np.float32)
    parts = [
        ({"severe": torch.from_numpy(logits[part])[:, None]}, Batch((), {"severe": torch.from_numpy(labels[part])}))
        for part in (slice(0, 15), slice(15, 40))
    ]
    select = volume_recipe().select
    assert select is not None
    assert select(parts, (SEVERE,)) == pytest.approx(roc_auc_score(labels, logits))
    with pytest.raises(CellError, match="needs a binary target"):
        select(parts, (Target("edss", "number"),))
    with pytest.raises(CellError, match="both classes"):
        select([({"severe": torch.zeros(2, 1)}, Batch((), {"severe": torch.ones(2)}))], (SEVERE,))


def test_classes_are_sampled_equally_often() -> None:
    """With ``balance``, the rare class is half of an epoch."""
    recipe = volume_recipe(balance="severe")
    labels = np.zeros(1000, np.float32)
    labels[:100] = 1
    drawn = recipe.sample(generator(0, "test"), {"severe": labels})
    assert len(drawn) == 1000 and labels[drawn].mean() == pytest.approx(0.5, abs=0.05)


def test_published_defaults() -> None:
    """300 epochs at most with a patience of 50, batches of 70, AdamW at 5e-5 with a decay of .01."""
    recipe = volume_recipe()
    assert (recipe.epochs, recipe.patience, recipe.batch_size) == (300, 50, 70)
    optimiser = recipe.optimiser([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimiser, torch.optim.AdamW)
    assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (5e-5, 0.01)
