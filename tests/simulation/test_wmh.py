"""The generated memory clinic: lesion volumes, positions, growth, geometry and random streams."""

from __future__ import annotations

import math
from functools import cache, partial

import cc3d
import numpy as np
import pytest
from scipy import ndimage, stats

from harness.core.errors import OutOfRange
from harness.core.registry import PHANTOMS
from harness.core.types import Array
from harness.simulation import wmh
from harness.simulation.lesion_scores import loads, place_rois
from harness.simulation.phantom import PhantomSubject
from harness.simulation.wmh import wmh_phantom

small = partial(wmh_phantom, 0, shape=(51, 60, 47), spacing_mm=3.0)


@cache
def clinic(number: int = 120) -> tuple[PhantomSubject, ...]:
    """Cached subjects on a coarse template."""
    return tuple(small(k) for k in range(number))


def mask(subject: PhantomSubject) -> Array:
    """The lesion mask as bool."""
    return subject.masks["wmh"][0] > 0


def covariate(name: str) -> Array:
    """One covariate of all subjects."""
    return np.array([subject.covariates[name] for subject in clinic()])


def test_registered() -> None:
    """The phantom is registered under its name, with the name of its target mask."""
    entry = PHANTOMS.get("wmh_phantom")
    assert entry.function is wmh_phantom and entry.facts["target"] == "wmh"


def test_same_numbers_give_the_same_subject() -> None:
    """Equal seeds and numbers give identical subjects."""
    first = clinic()[3]
    again = small(3)
    assert np.array_equal(mask(again), mask(first)) and again.covariates == first.covariates


def test_subjects_and_seeds_differ() -> None:
    """Subjects of other numbers or seeds differ."""
    ages = {small(3).covariates["age"], small(4).covariates["age"]}
    ages.add(wmh_phantom(1, 3, shape=(51, 60, 47), spacing_mm=3.0).covariates["age"])
    assert len(ages) == 3


def test_masks_are_binary_and_lie_in_the_brain() -> None:
    """Masks contain zeros and ones and lie within the brain."""
    for subject in clinic()[:20]:
        values, brain = subject.masks["wmh"][0], subject.masks["brain"][0]
        assert values.dtype == np.uint8 and set(np.unique(values)) == {0, 1}
        assert not (mask(subject) & (brain == 0)).any()


def test_volume_is_that_of_the_mask() -> None:
    """The volume is that of the mask with voxels of 27 mm³."""
    for subject in clinic()[:20]:
        assert subject.covariates["wmh_ml"] == pytest.approx(mask(subject).sum() * 0.027, abs=1e-3)


def test_volumes_follow_the_published_distribution() -> None:
    """Log volumes have the median 8.02 ml and the quartile ratio 21.34 / 3.25, within three standard errors."""
    logs = np.log(covariate("wmh_ml").astype(float))
    spread = math.log(21.34 / 3.25) / (2 * stats.norm.ppf(0.75))
    assert abs(logs.mean() - math.log(8.02)) < 3 * spread / math.sqrt(len(logs))
    assert abs(logs.std(ddof=1) - spread) < 3 * spread / math.sqrt(2 * len(logs))


def test_without_spread_all_volumes_are_the_median() -> None:
    """Without spread, all volumes are the median, within half a voxel."""
    volumes = [small(k, spread=0, median_ml=12.5).covariates["wmh_ml"] for k in range(4)]
    assert volumes == pytest.approx([12.5] * 4, abs=0.0136)


def test_age_and_sex_agree_with_the_clinic() -> None:
    """Age is 67.5 ± 8.5 years with 47 % women, within three standard errors, and volume increases with age."""
    age, women = covariate("age").astype(float), np.mean(covariate("sex") == "F")
    assert abs(age.mean() - 67.5) < 3 * 8.5 / math.sqrt(len(age))
    assert abs(women - 382 / 821) < 3 * math.sqrt(0.25 / len(age))
    assert stats.spearmanr(age, covariate("wmh_ml").astype(float)).pvalue < 0.01


def test_lesions_grow_outwards() -> None:
    """Without foci, the mask of a smaller lesion volume is contained in that of a larger one."""
    less, more = (mask(small(5, spread=0, deep_share=0, median_ml=ml)) for ml in (5, 25))
    assert less.sum() < more.sum() and not (less & ~more).any()


def test_without_patchiness_lesions_grow_in_one_order() -> None:
    """Without patchiness, the mask of one subject contains that of another; with it, it does not."""
    masks = [mask(small(k, deep_share=0, patchiness=0)) for k in (1, 2)]
    assert not (masks[0] & ~masks[1]).any() or not (masks[1] & ~masks[0]).any()
    patchy = [mask(small(k, deep_share=0)) for k in (1, 2)]
    assert (patchy[0] & ~patchy[1]).any() and (patchy[1] & ~patchy[0]).any()


def test_symmetry_of_hemispheres() -> None:
    """With full symmetry, the share of the left hemisphere varies less than without."""

    def left_shares(symmetry: float) -> list[float]:
        masks = [mask(small(k, spread=0, deep_share=0, symmetry=symmetry)) for k in range(12)]
        return [float(m[:25].sum() / m.sum()) for m in masks]

    assert np.std(left_shares(1.0)) < 0.5 * np.std(left_shares(0.0))


def test_number_of_lesions_agrees_with_counts() -> None:
    """A subject of median volume has 19.6 ± 7.1 discrete lesions, as counted in patients."""
    counts = [cc3d.connected_components(mask(wmh_phantom(0, k, spread=0)), connectivity=26).max() for k in range(10)]
    assert 19.6 - 7.1 < np.mean(counts) < 19.6 + 7.1


def test_foci_lie_deeper_than_the_rest() -> None:
    """Lesions added by foci are further from the ventricles than those they replace."""
    template = wmh._template((51, 60, 47), 3.0)
    depth = np.full(template.brain.shape, np.nan)
    depth.ravel()[template.voxels] = template.resistance
    with_foci, without = (mask(small(7, spread=0, deep_share=share)) for share in (0.4, 0.0))
    assert np.mean(depth[with_foci & ~without]) > np.mean(depth[without & ~with_foci])


def test_loads_are_bimodal_where_lesions_are_frequent() -> None:
    """At the positions of highest prevalence, loads are bimodal and correlate with the total volume.

    Their mean is .5 to .8, most are near 0 or 1, and the rank correlation with the total
    volume is near the published .71 to .78.
    """
    prevalence = np.mean([mask(subject) for subject in clinic()], axis=0)
    around = ndimage.uniform_filter(prevalence, 2)
    volumes = covariate("wmh_ml").astype(float)
    for half in (slice(0, 25), slice(26, 51)):
        side = np.zeros_like(around)
        side[half] = around[half]
        roi = place_rois([np.unravel_index(side.argmax(), side.shape)], side.shape, size=2)
        load = np.array([loads(mask(subject), roi)[0] for subject in clinic()])
        assert 0.5 < load.mean() < 0.8
        assert np.mean((load < 0.2) | (load > 0.8)) > 0.7
        assert 0.66 < stats.spearmanr(load, volumes).statistic < 0.86


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0])
def test_template_has_one_middle_whatever_the_grid(spacing_mm: float) -> None:
    """The centre of the field of view is the same on every grid, and axes point right, front and top."""
    shape = (40, 51, 33)
    affine = wmh_phantom(0, 0, shape=shape, spacing_mm=spacing_mm, median_ml=1, spread=0).masks["wmh"][1]
    middle = affine[:3, :3] @ (np.array(shape) - 1) / 2 + affine[:3, 3]
    assert middle == pytest.approx([0, -20.5, 11]) and np.allclose(np.diag(affine), [spacing_mm] * 3 + [1])


def test_brain_is_the_same_in_millimetres_on_every_grid() -> None:
    """The brain volume differs by less than one per cent between 2 and 3 mm, and the field of view covers it."""
    sizes = []
    for spacing_mm, shape in ((2.0, (76, 90, 71)), (3.0, (51, 60, 47))):
        brain = wmh_phantom(0, 0, shape=shape, spacing_mm=spacing_mm).masks["brain"][0]
        assert not any(np.take(brain, end, axis).any() for axis in range(2) for end in (0, -1))
        sizes.append(brain.sum() * spacing_mm**3)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_field_of_view_with_too_little_white_matter_is_refused() -> None:
    """A field of view with too little white matter is refused, and the message gives its volume."""
    with pytest.raises(OutOfRange, match=r"must fit into the template's white matter, got 8 ml for subject 2 and 0 ml"):
        wmh_phantom(0, 2, shape=(8, 8, 8), spacing_mm=1.0, spread=0)


@pytest.mark.parametrize("shape", [(4, 40, 40), (40, 40)])
def test_invalid_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """Shapes with too few voxels or axes are refused."""
    with pytest.raises(OutOfRange, match="three sizes of at least 8 voxels"):
        wmh_phantom(0, 0, shape=shape)  # type: ignore[arg-type]
