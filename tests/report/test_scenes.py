"""Backgrounds of group maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.core.types import Array, Cohort, Reads, Sample, Truth
from harness.report.figures.scenes import scene_of

SHAPE = (5, 4, 3)
MASKS = [np.random.default_rng(number).random(SHAPE) < 0.3 for number in range(3)]
IMAGES = [np.random.default_rng(number).random(SHAPE, np.float32) for number in range(3)]


@pytest.fixture
def cohort(in_memory: Callable[[Array], Any]) -> Cohort:
    """Three subjects with an image and a mask called plaque."""
    pairs = enumerate(zip(IMAGES, MASKS, strict=True))
    return Cohort(
        "three",
        tuple(
            Sample(f"{number}", f"{number}", {"T2w": in_memory(image)}, {"plaque": in_memory(mask)}, {})
            for number, (image, mask) in pairs
        ),
    )


def test_masks_are_counted_if_the_network_sees_nothing_else(cohort: Cohort) -> None:
    """The background of a network that sees a mask of any name is the number of masks in each voxel."""
    scene = scene_of(cohort, Reads(masks=("plaque",)), (), "age", SHAPE)
    assert (list(scene.images), scene.caption) == (["number of plaque masks"], "number of plaque masks")
    np.testing.assert_array_equal(scene.images[scene.caption], np.sum(MASKS, axis=0))
    assert scene.outline is None


def test_images_are_averaged_if_the_network_sees_them(cohort: Cohort) -> None:
    """The background of a network that sees images is their mean, whatever masks it reads besides."""
    scene = scene_of(cohort, Reads(images=("T2w",), masks=("plaque",)), ("T2w",), "age", SHAPE)
    assert (list(scene.images), scene.caption) == (["T2w"], "mean image of some subjects")
    np.testing.assert_allclose(scene.images["T2w"], np.mean(IMAGES, axis=0), rtol=1e-6)


def test_simulated_scores_have_the_counts_and_regions_of_their_truth(
    cohort: Cohort, in_memory: Callable[[Array], Any]
) -> None:
    """The background of a simulated score is that of its truth, and the outline its main region."""
    counts, region = np.sum(MASKS, axis=0).astype(np.float32), np.zeros(SHAPE, bool)
    region[1:3] = True
    truth = Truth({"roi": in_memory(region)}, {"score": {"roi": 1.0}}, "plaque", in_memory(counts))
    simulated = Cohort("three", cohort.samples, truth=truth)
    scene = scene_of(simulated, Reads(masks=("plaque",)), (), "score", SHAPE)
    np.testing.assert_array_equal(scene.images["number of plaque masks"], counts)
    assert scene.outline is not None and np.array_equal(scene.outline, region)
    assert scene_of(simulated, Reads(masks=("plaque",)), (), "age", SHAPE).outline is None


@pytest.mark.parametrize("reads", [Reads(images=("T2w",)), Reads(masks=("plaque",))])
def test_map_of_another_shape_has_no_background(cohort: Cohort, reads: Reads) -> None:
    """A map on another grid has no background."""
    assert scene_of(cohort, reads, reads.images, "age", (4, 4, 4)).images == {}
