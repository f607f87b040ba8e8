"""Cohorts and samples: the content of fingerprints, shapes and grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from harness.core.errors import CellError, HarnessError
from harness.core.targets import Target
from harness.core.types import Cohort, Input, NetworkSpec, Reads, Sample

READS = Reads(
    images=("T2w",),
    masks=("target", "regions"),
    covariates=("age",),
    targets=("sex",),
    weights=("sex",),
    clean=("sex",),
    grid=("affine", "spacing_mm"),
)
FIRST, LAST = "sub-01", "sub-04"


@pytest.fixture
def cohort(toy_cohort: Cohort) -> Cohort:
    """Four subjects with covariates and two targets, of which ``READS`` covers one each."""
    samples = [
        dataclasses.replace(
            one,
            covariates={"age": 40.0 + number, "site": "A", "unread": None},
            targets={"sex": float(number % 2), "score": 0.5 * number},
            clean={"sex": 0.25, "score": 0.5},
            weights={"sex": 2.0, "score": 1.0},
        )
        for number, one in enumerate(toy_cohort.samples)
    ]
    return dataclasses.replace(
        toy_cohort, samples=tuple(samples), targets=(Target("sex", "binary"), Target("score", "number"))
    )


def edited(cohort: Cohort, sample_id: str, **changes: Any) -> Cohort:
    """The cohort with some fields of one sample changed."""

    def edit(one: Sample) -> Sample:
        whole = {
            name: {**getattr(one, name), **change} if isinstance(change, Mapping) else change
            for name, change in changes.items()
        }
        return dataclasses.replace(one, **whole) if one.id == sample_id else one

    return dataclasses.replace(cohort, samples=tuple(map(edit, cohort.samples)))


READ = {
    "covariate": {"covariates": {"age": 41.5}},
    "covariate that becomes absent": {"covariates": {"age": None}},
    "covariate that becomes text": {"covariates": {"age": "40.0"}},
    "target": {"targets": {"sex": 1.0}},
    "clean value": {"clean": {"sex": 0.75}},
    "weight": {"weights": {"sex": 3.0}},
    "subject": {"subject": "sub-99"},
    "affine": {"affine": np.diag([1.2, 1.5, 2.0, 1.0])},
    "voxel size": {"spacing_mm": (1.2, 1.5, 2.5)},
}
NOT_READ = {
    "covariate": {"covariates": {"site": "B"}},
    "new covariate": {"covariates": {"height": 1.8}},
    "target": {"targets": {"score": 9.0}},
    "clean value": {"clean": {"score": 9.0}},
    "weight": {"weights": {"score": 9.0}},
}


@pytest.mark.parametrize("edit", READ)
def test_edit_of_read_values_changes_the_fingerprint(cohort: Cohort, edit: str) -> None:
    """Editing a value that is read changes the fingerprint."""
    changed = edited(cohort, FIRST, **READ[edit])
    assert changed.fingerprint(READS) != cohort.fingerprint(READS)


@pytest.mark.parametrize("edit", NOT_READ)
def test_edit_of_other_values_keeps_the_fingerprint(cohort: Cohort, edit: str) -> None:
    """Editing a value that is not read does not change the fingerprint."""
    assert edited(cohort, FIRST, **NOT_READ[edit]).fingerprint(READS) == cohort.fingerprint(READS)


@pytest.mark.parametrize("edit", ["target", "clean value", "weight", "affine", "voxel size"])
def test_each_field_counts_where_it_is_read(cohort: Cohort, edit: str) -> None:
    """Values, clean values and weights of a target, affine and voxel size are read independently."""
    changed = edited(cohort, FIRST, **READ[edit])
    reads = {
        "target": Reads(targets=("sex",)),
        "clean value": Reads(clean=("sex",)),
        "weight": Reads(weights=("sex",)),
        "affine": Reads(grid=("affine",)),
        "voxel size": Reads(grid=("spacing_mm",)),
    }
    assert {name for name in reads if changed.fingerprint(reads[name]) != cohort.fingerprint(reads[name])} == {edit}


def test_affine_counts_up_to_rounding(cohort: Cohort) -> None:
    """Affines that differ in the last bits, as between machines, are equal."""
    affine = cohort.samples[0].affine
    assert affine is not None
    assert edited(cohort, FIRST, affine=affine + 1e-9).fingerprint(READS) == cohort.fingerprint(READS)


def test_pictures_without_a_grid_have_a_fingerprint(cohort: Cohort) -> None:
    """The grid of a picture, which has none, is skipped."""
    other = edited(cohort, FIRST, affine=None, spacing_mm=None)
    assert other.fingerprint(READS) != cohort.fingerprint(READS)


@pytest.mark.parametrize("edit", READ)
def test_only_the_samples_named_count(cohort: Cohort, edit: str) -> None:
    """A fingerprint of selected samples depends on those samples only."""
    changed, others = edited(cohort, FIRST, **READ[edit]), ["sub-02", LAST]
    assert changed.fingerprint(READS, others) == cohort.fingerprint(READS, others)
    assert changed.fingerprint(READS, [FIRST, LAST]) != cohort.fingerprint(READS, [FIRST, LAST])


def test_fingerprint_refuses_unknown_samples(cohort: Cohort) -> None:
    """Ids that are not in the cohort are refused, and the message lists them."""
    with pytest.raises(HarnessError, match="ids must be samples of .*, got sub-88, sub-99"):
        cohort.fingerprint(READS, [FIRST, "sub-99", "sub-88"])


@pytest.mark.parametrize(("kind", "read", "unread"), [("images", "T2w", "FLAIR"), ("masks", "target", "brain")])
def test_images_and_masks_count_where_they_are_read(
    cohort: Cohort, in_memory: Callable[..., Any], kind: str, read: str, unread: str
) -> None:
    """The voxels of images and masks count if those are read."""

    def with_other_voxel(name: str) -> Cohort:
        values = getattr(cohort.samples[0], kind)[name].load().copy()
        values[0, 0, 0] = 1 - values[0, 0, 0]
        return edited(cohort, FIRST, **{kind: {name: in_memory(values)}})

    assert with_other_voxel(read).fingerprint(READS) != cohort.fingerprint(READS)
    assert with_other_voxel(unread).fingerprint(READS) == cohort.fingerprint(READS)


def test_absent_masks_are_skipped_and_absent_images_are_not(cohort: Cohort) -> None:
    """An absent mask is skipped, and an absent image raises ``KeyError``."""
    assert cohort.fingerprint(Reads(masks=("vessels",))) == cohort.fingerprint(Reads())
    with pytest.raises(KeyError, match="SWI"):
        cohort.fingerprint(Reads(images=("SWI",)))


@pytest.mark.parametrize(
    ("name", "changed"), [("sex", True), ("score", False)], ids=["target that is read", "target that is not"]
)
def test_declaration_of_a_target_counts_where_it_is_read(cohort: Cohort, name: str, changed: bool) -> None:
    """The declaration of a target counts if that target is read."""
    targets = tuple(dataclasses.replace(one, loss_weight=0.5) if one.name == name else one for one in cohort.targets)
    other = dataclasses.replace(cohort, targets=targets)
    assert (other.fingerprint(READS) != cohort.fingerprint(READS)) is changed


def test_names_of_regions_count_where_regions_are_read(cohort: Cohort) -> None:
    """Names of regions count if the regions mask is read."""
    other = dataclasses.replace(cohort, regions={1: "left", 2: "east"})
    without = dataclasses.replace(READS, masks=("target",))
    assert other.fingerprint(READS) != cohort.fingerprint(READS)
    assert other.fingerprint(without) == cohort.fingerprint(without)


def test_fingerprint_ignores_the_order_and_repetition_of_ids(cohort: Cohort) -> None:
    """The order and repetition of sample ids do not matter."""
    assert cohort.fingerprint(READS, [LAST, FIRST, LAST]) == cohort.fingerprint(READS, [FIRST, LAST])
    assert cohort.fingerprint(READS, [one.id for one in cohort.samples]) == cohort.fingerprint(READS)


def test_fingerprint_ignores_the_name_of_the_cohort(cohort: Cohort) -> None:
    """The name of a cohort and other fields without data do not matter."""
    other = dataclasses.replace(cohort, name="other", ineligible=(), label_source="FLAIR")
    assert other.fingerprint(READS) == cohort.fingerprint(READS)


def test_fingerprint_distinguishes_fields(cohort: Cohort) -> None:
    """The same number as target, clean value or weight gives different fingerprints."""
    samples = [dataclasses.replace(one, targets={}, clean={}, weights={}) for one in cohort.samples]
    bare = dataclasses.replace(cohort, samples=tuple(samples))
    prints = {
        edited(bare, FIRST, **{name: {"sex": 2.0}}).fingerprint(READS) for name in ("targets", "clean", "weights")
    }
    assert len({*prints, bare.fingerprint(READS)}) == 4


def test_shape_is_that_of_any_image_or_mask(cohort: Cohort) -> None:
    """The shape of a sample is found with or without images."""
    sample = cohort.samples[1]
    assert sample.shape == dataclasses.replace(sample, images={}).shape == (16, 14, 6)


def test_grid_of_a_volume(cohort: Cohort) -> None:
    """The grid of a volume contains its affine and voxel spacing."""
    sample = cohort.samples[0]
    assert sample.grid.affine is sample.affine and sample.grid.spacing_mm == (1.2, 1.5, 2.0)


@pytest.mark.parametrize("absent", [{"affine": None}, {"spacing_mm": None}, {"affine": None, "spacing_mm": None}])
def test_pictures_have_no_grid(cohort: Cohort, absent: dict[str, None]) -> None:
    """The grid of a picture raises an error that names the sample."""
    sample = dataclasses.replace(cohort.samples[0], **absent)
    with pytest.raises(CellError, match="samples must be volumes, got sub-01, a picture without affine"):
        _ = sample.grid


def test_subjects_of_a_cohort_are_unique(cohort: Cohort) -> None:
    """Each subject is listed once, in the order of its first sample."""
    assert edited(cohort, LAST, subject=FIRST).subjects == ("sub-01", "sub-02", "sub-03")


def test_spec_lists_explained_inputs() -> None:
    """A spec knows the explained inputs, their channels and the total width of the outputs."""
    spec = NetworkSpec(
        (Input("age", ("age",), (), explained=False), Input("image", ("T1w", "FLAIR"))),
        (Target("lesion", "mask"), Target("hair", "classes", ("a", "b", "c"))),
    )
    assert (spec.explained, spec.channels, spec.width) == ((1,), ("T1w", "FLAIR"), 5)


def test_equal_numbers_of_other_types_are_equal(cohort: Cohort) -> None:
    """Equal numbers of Python and numpy types give the same fingerprint."""
    other = edited(
        cohort, FIRST, targets={"sex": np.float32(0.0)}, covariates={"age": 40}, weights={"sex": np.float64(2)}
    )
    assert other.fingerprint(READS) == cohort.fingerprint(READS)
