"""Backgrounds and outlines for group maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.types import Array, Cohort, Reads
from harness.pipeline.group_maps import mask_counts, target_mask

__all__ = ["Scene", "scene_of"]

_MOST_IMAGES = 16  # largest number of subjects whose images are averaged


@dataclass(frozen=True)
class Scene:
    """Background images and outline on the grid of a map.

    Parameters
    ----------
    images : (X, Y, Z) images by name, one for all channels or one per channel; empty if
        none is on the grid of the map
    caption : what the images show
    outline : (X, Y, Z) bool, the true region; ``None`` if it is not known
    """

    images: Mapping[str, Array]
    caption: str = ""
    outline: Array | None = None


def scene_of(cohort: Cohort, reads: Reads, channels: Sequence[str], output: str, shape: Sequence[int]) -> Scene:
    """Background and outline for a map of a cohort.

    Parameters
    ----------
    cohort : the cohort
    reads : what the adapter reads of a sample
    channels : names of the images that were explained
    output : name of the output that was explained
    shape : shape (X, Y, Z) of the map

    Returns
    -------
    Scene
        For simulated scores, the number of masks in each voxel, with the regions of this
        score as outline; for other networks that see one mask and no image, the number of
        masks; otherwise the mean image of each channel over the first subjects.
    """
    truth, grid = cohort.truth, tuple(shape)
    if truth is not None and truth.counts.shape == grid:
        outline = target_mask(truth, output) if output in truth.weights else None
        return _counted(truth.mask, np.asarray(truth.counts.load()), outline)
    if len(reads.masks) == 1 and not reads.images and all(sample.shape == grid for sample in cohort.samples):
        (mask,) = reads.masks
        return _counted(mask, mask_counts(cohort, mask).astype(np.float32))
    samples = cohort.samples[:_MOST_IMAGES]
    known = all(name in sample.images and sample.images[name].shape == grid for sample in samples for name in channels)
    if not channels or not known:
        return Scene({})
    means = {name: np.mean([sample.images[name].load() for sample in samples], axis=0) for name in channels}
    return Scene({name: mean.astype(np.float32) for name, mean in means.items()}, "mean image of some subjects")


def _counted(mask: str, counts: Array, outline: Array | None = None) -> Scene:
    caption = f"number of {mask} masks"
    return Scene({caption: counts}, caption, outline)
