"""The generated ePVS cohort: contrast, truth, lesion sizes, random streams and geometry."""

from __future__ import annotations

import itertools
from functools import cache

import cc3d
import numpy as np
import pytest

from harness.core.errors import OutOfRange
from harness.core.registry import PHANTOMS
from harness.core.types import Array
from harness.simulation import epvs
from harness.simulation.brain import REGIONS, Grid, anatomy, draw_head
from harness.simulation.epvs import RULE, contrast, epvs_phantom
from harness.simulation.phantom import PhantomSubject

SMALL = (40, 40, 10)


@cache
def subject(number: int) -> PhantomSubject:
    """A cached subject with a small field of view."""
    return epvs_phantom(0, number, shape=SMALL)


@cache
def sizes(number: int) -> Array:
    """Sizes in voxels of all lesions of a subject with the default field of view."""
    mask = epvs_phantom(0, number).masks["pvs"][0]
    return np.bincount(cc3d.connected_components(mask, connectivity=26).ravel())[1:]


def box(image: Array, affine: Array) -> Array:
    """World coordinates (8, 3) of the corners of an image's field of view."""
    ends = [(-0.5, size - 0.5) for size in image.shape]
    return np.array(list(itertools.product(*ends))) @ affine[:3, :3].T + affine[:3, 3]


def test_registered() -> None:
    """The phantom is registered under its name."""
    assert PHANTOMS.get("epvs_phantom").function is epvs_phantom


def test_white_matter_is_brighter_than_grey_on_t1w() -> None:
    """On T1w, signal decreases from white matter over grey matter to fluid."""
    level = contrast("T1w")
    assert level["white"] > level["grey"] > level["csf"] >= 0


def test_fluid_is_brightest_on_t2w() -> None:
    """On T2w, signal decreases from fluid over hyperintensity, grey and white matter to veins."""
    level = contrast("T2w")
    order = ["fluid", "wmh", "grey", "white", "vein"]
    assert sorted(order, key=lambda name: -level[name]) == order


def test_flair_suppresses_fluid_and_shows_hyperintensities() -> None:
    """On FLAIR, fluid has less than a third of white matter's signal, and hyperintensities are brightest."""
    level = contrast("FLAIR")
    assert 0 < level["fluid"] < level["white"] / 3
    assert level["wmh"] > max(level["white"], level["grey"], level["striatum"])


def test_nominal_echo_time_leaves_no_white_matter_signal() -> None:
    """At the nominal echo time of 408 ms, a spin echo retains 0.6 % of white matter, so it is not used."""
    white = epvs.TISSUES_3T["white"]
    assert epvs.spin_echo(white, tr_ms=3200, te_ms=408) < 0.006


def test_same_numbers_give_the_same_subject() -> None:
    """Equal seeds and numbers give identical subjects."""
    again = epvs_phantom(0, 3, shape=SMALL)
    assert all(np.array_equal(again.images[name][0], subject(3).images[name][0]) for name in again.images)
    assert all(np.array_equal(again.masks[name][0], subject(3).masks[name][0]) for name in again.masks)
    assert again.covariates == subject(3).covariates


def test_a_subject_does_not_depend_on_others() -> None:
    """A subject does not depend on those generated before."""
    together = [epvs_phantom(7, number, shape=(16, 16, 8)) for number in range(3)]
    alone = epvs_phantom(7, 2, shape=(16, 16, 8))
    assert all(np.array_equal(together[2].images[name][0], alone.images[name][0]) for name in alone.images)


def test_subjects_differ() -> None:
    """Subjects of other numbers or seeds differ."""
    other_seed = epvs_phantom(1, 3, shape=SMALL)
    for other in (subject(4), other_seed):
        assert not np.array_equal(other.images["T2w"][0], subject(3).images["T2w"][0])


def test_noise_has_a_separate_stream() -> None:
    """The noise level does not change the masks."""
    quiet = epvs_phantom(0, 3, shape=SMALL, noise_percent=0.0)
    assert all(np.array_equal(quiet.masks[name][0], subject(3).masks[name][0]) for name in quiet.masks)


def test_lesion_voxels_reach_the_fluid_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lesion voxel is one whose fraction of fluid reaches the threshold."""
    seen: dict[str, Array] = {}
    original = epvs._mix

    def spy(fractions: dict[str, Array], levels: dict[str, float], steps: int) -> Array:
        seen.update({name: values.copy() for name, values in fractions.items()})
        return original(fractions, levels, steps)

    monkeypatch.setattr(epvs, "_mix", spy)
    made = epvs_phantom(0, 5, shape=SMALL)
    fluid = (seen["fluid"][:, :, 0:20:2] + seen["fluid"][:, :, 1:20:2]) / 2
    assert np.array_equal(made.masks["pvs"][0] == 1, fluid >= RULE)
    assert np.sum(fluid >= RULE) > 0


def test_fractions_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tissue fractions sum to one."""
    totals: list[Array] = []
    original = epvs._mix

    def spy(fractions: dict[str, Array], levels: dict[str, float], steps: int) -> Array:
        totals.append(np.sum(list(fractions.values()), axis=0))
        return original(fractions, levels, steps)

    monkeypatch.setattr(epvs, "_mix", spy)
    epvs_phantom(0, 5, shape=(16, 16, 8))
    assert totals[0] == pytest.approx(1, abs=1e-5)


def test_hyperintensities_do_not_overlap_lesions() -> None:
    """Hyperintensities and lesions do not overlap."""
    for number in range(4):
        pvs, wmh = (subject(number).masks[name][0] for name in ("pvs", "wmh"))
        assert pvs.any() and wmh.any()
        assert not np.any(pvs & wmh)


def test_lesions_lie_inside_the_brain() -> None:
    """All lesions lie within the brain mask."""
    for number in range(4):
        assert np.all(subject(number).masks["brain"][0][subject(number).masks["pvs"][0] > 0])


def test_mean_lesion_size_is_that_of_table_s2() -> None:
    """The mean lesion size is 7.7 voxels, within 1.5, over about 500 lesions of 16 subjects."""
    assert np.concatenate([sizes(number) for number in range(16)]).mean() == pytest.approx(7.7, abs=1.5)


def test_mean_size_varies_between_subjects_as_in_table_s2() -> None:
    """The middle half of the subjects has a mean size within the source's 4.3 to 11.8 voxels, with variation."""
    low, high = np.quantile([sizes(number).mean() for number in range(16)], (0.25, 0.75))
    assert 4.3 < low < high < 11.8
    assert high - low > 1


def test_sizes_have_a_heavy_tail() -> None:
    """The median size is well below the mean, and some lesions exceed four times the mean."""
    pooled = np.concatenate([sizes(number) for number in range(16)])
    assert np.median(pooled) < 0.8 * pooled.mean()
    assert pooled.max() > 4 * pooled.mean()


def test_number_of_lesions_follows_the_density() -> None:
    """The default density of 569 per litre gives about 33 lesions in 61 ml of brain."""
    assert np.mean([len(sizes(number)) for number in range(16)]) == pytest.approx(33, rel=0.25)


def test_planned_burden_is_that_of_table_s2() -> None:
    """Planned numbers of lesions have the mean, spread and mean size of Table S2."""
    drawn = [epvs._burden(np.random.default_rng(number), 683.0) for number in range(2000)]
    counts, means = (np.array(values) for values in zip(*drawn, strict=True))
    counts, means = counts * epvs.VISIBLE_SHARE, means * epvs.SIZE_KEPT
    assert counts.mean() == pytest.approx(683, rel=0.05)
    assert counts.std() == pytest.approx(243, rel=0.15)
    assert np.average(means, weights=counts) == pytest.approx(7.7, rel=0.05)


def test_no_density_no_lesions() -> None:
    """With a density of zero, the mask is empty and the images exist."""
    made = epvs_phantom(0, 0, shape=SMALL, density=0.0)
    assert not made.masks["pvs"][0].any()
    assert made.images["T2w"][0].std() > 0


def test_swi_covers_the_same_field() -> None:
    """If 1.5 mm divides the height, the corners of the SWI field of view are those of the others."""
    made = epvs_phantom(0, 0, shape=(16, 24, 12))
    assert made.images["SWI"][0].shape == (16, 24, 8)
    assert box(*made.images["SWI"]) == pytest.approx(box(*made.images["T2w"]), abs=1e-9)


def test_swi_extends_less_than_a_slice_further() -> None:
    """Otherwise, the lower faces coincide and the last slice covers the remainder."""
    image, affine = subject(0).images["SWI"]
    assert image.shape == (40, 40, 7)
    swi, reference = box(image, affine), box(*subject(0).images["T2w"])
    assert swi[::2] == pytest.approx(reference[::2], abs=1e-9)
    assert np.linalg.norm(swi[1::2] - reference[1::2], axis=1) == pytest.approx(0.5, abs=1e-9)


def test_swi_shows_the_same_head() -> None:
    """In blocks of 3 mm, which both grids divide, SWI and T1w are empty in the same places."""
    made = epvs_phantom(0, 0, shape=(64, 64, 12), noise_percent=0.0, bias_percent=0.0)
    t1w = made.images["T1w"][0].reshape(64, 64, 4, 3).mean(axis=-1)
    swi = made.images["SWI"][0].reshape(64, 64, 4, 2).mean(axis=-1)
    assert np.any(t1w == 0) and np.array_equal(t1w == 0, swi == 0)


def test_affine_is_las_oblique_and_rigid() -> None:
    """Voxel axes point left, front and top, are orthogonal, rotated, and as long as the spacing."""
    affine = subject(0).images["T1w"][1]
    axes = affine[:3, :3]
    assert axes[0, 0] < 0 < axes[1, 1] and axes[2, 2] > 0
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-12)
    assert np.abs(axes - np.diag([-1, 1, 1])).max() > 0.01


@pytest.mark.parametrize("slices", [8, 9, 10, 11, 12])
def test_all_masks_lie_on_the_reference_grid(slices: int) -> None:
    """Masks, T1w, T2w and FLAIR have the given shape and one affine."""
    made = epvs_phantom(0, 0, shape=(9, 10, slices))
    affine = made.images["T2w"][1]
    for image, its_affine in [*made.masks.values(), *(made.images[name] for name in ("T1w", "T2w", "FLAIR"))]:
        assert image.shape == (9, 10, slices)
        assert np.array_equal(its_affine, affine)


def test_region_names_are_those_that_occur() -> None:
    """Regions have names for exactly the values in the image."""
    regions = subject(0).masks["regions"][0]
    assert set(subject(0).region_names) == set(np.unique(regions)) - {0}
    assert "basal_ganglia" in subject(0).region_names.values()


def test_a_whole_head_has_all_regions() -> None:
    """A coarse field of view over the whole head contains every region of the source."""
    grid = Grid((35, 45, 32), (4, 4, 4), (-70, -108, -54))
    body = anatomy(grid, draw_head(np.random.default_rng(0), 78))
    assert set(np.unique(body.regions)) == {0, *REGIONS}


def test_ages_and_sexes_are_those_of_the_source() -> None:
    """Ages are 64 to 94 years, and both sexes occur."""
    people = [epvs._draw_person(np.random.default_rng(number)) for number in range(300)]
    ages = np.array([age for age, _ in people])
    assert ages.min() >= 64 and ages.max() <= 94
    assert ages.mean() == pytest.approx(78.7, abs=1.5)
    assert {sex for _, sex in people} == {"F", "M"}


@pytest.mark.parametrize("name", ["T1w", "T2w", "FLAIR", "SWI"])
def test_noise_has_the_given_level(name: str) -> None:
    """Noise has a standard deviation of 5 % of white matter's signal."""
    noisy, clean = (
        epvs_phantom(0, 2, shape=SMALL, bias_percent=0.0, noise_percent=level, density=0, vein_density=0).images[name][
            0
        ]
        for level in (5.0, 0.0)
    )
    # The gain is 1000 per signal of white matter, times a random factor per image.
    white = 1000 * np.exp(epvs.generator(0, "data", 2, "gain", name).normal(0, 0.2))
    assert (noisy - clean)[clean > white / 2].std() == pytest.approx(0.05 * white, rel=0.03)


def test_brightest_reference_makes_t2w_noisier() -> None:
    """With fluid as reference, T2w has 2.5 times the noise and T1w the same."""
    assert epvs._reference_level(contrast("T1w"), "brightest") == contrast("T1w")["white"]
    assert epvs._reference_level(contrast("T2w"), "brightest") == contrast("T2w")["csf"]


def test_too_small_a_field_is_refused() -> None:
    """A field of view that is too small is refused, and the message gives an example."""
    with pytest.raises(OutOfRange, match=r"at least 8 voxels, got \(64, 64, 4\); for example"):
        epvs_phantom(0, 0, shape=(64, 64, 4))


def test_the_smallest_field_is_generated() -> None:
    """The smallest field of view has eight voxels per axis and six slices of SWI."""
    made = epvs_phantom(0, 0, shape=(8, 8, 8))
    assert made.images["SWI"][0].shape == (8, 8, 6)
