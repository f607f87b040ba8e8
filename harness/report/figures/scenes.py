"""What lies under a map of a group, and what is outlined on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.types import Array, Cohort
from harness.pipeline.group_maps import lesion_counts, target_mask

__all__ = ["Scene", "scene_of"]

_MOST_IMAGES = 16  # subjects whose images are averaged


@dataclass(frozen=True)
class Scene:
    """Images on the grid of a map.

    Parameters
    ----------
    images : name → (X, Y, Z), one for all channels or one for each; empty if none fits
    outline : (X, Y, Z) bool, where the map should lie; ``None`` if that is not known
    """

    images: Mapping[str, Array]
    outline: Array | None = None


def scene_of(cohort: Cohort, channels: Sequence[str], output: str, shape: Sequence[int]) -> Scene:
    """The scene of a map of a cohort.

    Parameters
    ----------
    channels : names of the images that were explained
    output : what was explained
    shape : (X, Y, Z) of the map

    Returns
    -------
    Scene
        Where scores were simulated, the regions of this one on the number of lesions;
        of lesion masks their number; else the mean image of each channel over the
        first subjects.
    """
    truth, grid = cohort.truth, tuple(shape)
    if truth is not None and truth.counts.shape == grid:
        outline = target_mask(truth, output) if output in truth.weights else None
        return Scene({"number of lesions": np.asarray(truth.counts.load())}, outline)
    if all("lesion" in sample.masks and sample.shape == grid for sample in cohort.samples):
        return Scene({"number of lesions": lesion_counts(cohort).astype(np.float32)})
    samples = cohort.samples[:_MOST_IMAGES]
    known = all(name in sample.images and sample.images[name].shape == grid for sample in samples for name in channels)
    if not channels or not known:
        return Scene({})
    means = {name: np.mean([sample.images[name].load() for sample in samples], axis=0) for name in channels}
    return Scene({name: mean.astype(np.float32) for name, mean in means.items()})
