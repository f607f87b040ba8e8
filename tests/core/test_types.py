"""Cohorts and samples: what a fingerprint covers, and where a sample lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from harness.core.errors import CellError, HarnessError
from harness.core.targets import Target
from harness.core.types import Cohort, Input, NetworkSpec, Reads, Sample

READS = Reads(images=("T2w",), masks=("target", "regions"), covariates=("age",), targets=("sex",))
FIRST, LAST = "sub-01", "sub-04"


@pytest.fixture
def cohort(toy_cohort: Cohort) -> Cohort:
    """The four subjects with two columns and two targets, of which one is read each."""
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


def edited(cohort: Cohort, sample_id: str, **changes: Mapping[str, Any] | str) -> Cohort:
    """The cohort with entries of one sample's mappings changed, or its other fields replaced."""

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
}
NOT_READ = {
    "covariate": {"covariates": {"site": "B"}},
    "new covariate": {"covariates": {"height": 1.8}},
    "target": {"targets": {"score": 9.0}},
    "clean value": {"clean": {"score": 9.0}},
    "weight": {"weights": {"score": 9.0}},
}


@pytest.mark.parametrize("edit", READ)
def test_editing_what_is_read_changes_the_fingerprint(cohort: Cohort, edit: str) -> None:
    """So that everything computed from it is computed again."""
    changed = edited(cohort, FIRST, **READ[edit])
    assert changed.fingerprint(READS) != cohort.fingerprint(READS)


@pytest.mark.parametrize("edit", NOT_READ)
def test_editing_what_is_not_read_changes_nothing(cohort: Cohort, edit: str) -> None:
    """Nothing is computed again for it."""
    assert edited(cohort, FIRST, **NOT_READ[edit]).fingerprint(READS) == cohort.fingerprint(READS)


@pytest.mark.parametrize("edit", READ)
def test_only_the_samples_named_count(cohort: Cohort, edit: str) -> None:
    """A fingerprint of some samples ignores edits of the others, and notices their own."""
    changed, others = edited(cohort, FIRST, **READ[edit]), ["sub-02", LAST]
    assert changed.fingerprint(READS, others) == cohort.fingerprint(READS, others)
    assert changed.fingerprint(READS, [FIRST, LAST]) != cohort.fingerprint(READS, [FIRST, LAST])


def test_unknown_samples_have_no_fingerprint(cohort: Cohort) -> None:
    """Samples that the cohort does not have are listed."""
    with pytest.raises(HarnessError, match="ids must be samples of .*, got sub-88, sub-99"):
        cohort.fingerprint(READS, [FIRST, "sub-99", "sub-88"])


@pytest.mark.parametrize(("kind", "read", "unread"), [("images", "T2w", "FLAIR"), ("masks", "target", "brain")])
def test_images_and_masks_count_where_they_are_read(
    cohort: Cohort, in_memory: Callable[..., Any], kind: str, read: str, unread: str
) -> None:
    """One other voxel of what is read is another fingerprint."""

    def with_other_voxel(name: str) -> Cohort:
        values = getattr(cohort.samples[0], kind)[name].load().copy()
        values[0, 0, 0] = 1 - values[0, 0, 0]
        return edited(cohort, FIRST, **{kind: {name: in_memory(values)}})

    assert with_other_voxel(read).fingerprint(READS) != cohort.fingerprint(READS)
    assert with_other_voxel(unread).fingerprint(READS) == cohort.fingerprint(READS)


def test_absent_masks_are_skipped_and_absent_images_are_not(cohort: Cohort) -> None:
    """A brain mask may be absent; an image that is asked for may not."""
    assert cohort.fingerprint(Reads(masks=("vessels",))) == cohort.fingerprint(Reads())
    with pytest.raises(KeyError, match="SWI"):
        cohort.fingerprint(Reads(images=("SWI",)))


@pytest.mark.parametrize(
    ("name", "changed"), [("sex", True), ("score", False)], ids=["target that is read", "target that is not"]
)
def test_declaration_of_a_target_counts_where_it_is_read(cohort: Cohort, name: str, changed: bool) -> None:
    """A loss weight changes a training of this target and no other."""
    targets = tuple(dataclasses.replace(one, loss_weight=0.5) if one.name == name else one for one in cohort.targets)
    other = dataclasses.replace(cohort, targets=targets)
    assert (other.fingerprint(READS) != cohort.fingerprint(READS)) is changed


def test_names_of_regions_count_where_regions_are_read(cohort: Cohort) -> None:
    """They are columns of the tables."""
    other = dataclasses.replace(cohort, regions={1: "left", 2: "east"})
    without = dataclasses.replace(READS, masks=("target",))
    assert other.fingerprint(READS) != cohort.fingerprint(READS)
    assert other.fingerprint(without) == cohort.fingerprint(without)


def test_fingerprint_ignores_the_order_and_repetition_of_ids(cohort: Cohort) -> None:
    """A set of samples has one fingerprint, and all of them that of the cohort."""
    assert cohort.fingerprint(READS, [LAST, FIRST, LAST]) == cohort.fingerprint(READS, [FIRST, LAST])
    assert cohort.fingerprint(READS, [one.id for one in cohort.samples]) == cohort.fingerprint(READS)


def test_fingerprint_ignores_what_the_cohort_is_called(cohort: Cohort) -> None:
    """Equal data under another name are equal data."""
    other = dataclasses.replace(cohort, name="other", ineligible=(), label_source="FLAIR")
    assert other.fingerprint(READS) == cohort.fingerprint(READS)


def test_values_cannot_move_between_fields(cohort: Cohort) -> None:
    """The same number as target, clean value or weight is not the same content."""
    samples = [dataclasses.replace(one, targets={}, clean={}, weights={}) for one in cohort.samples]
    bare = dataclasses.replace(cohort, samples=tuple(samples))
    prints = {
        edited(bare, FIRST, **{name: {"sex": 2.0}}).fingerprint(READS) for name in ("targets", "clean", "weights")
    }
    assert len({*prints, bare.fingerprint(READS)}) == 4


def test_shape_is_that_of_any_image_or_mask(cohort: Cohort) -> None:
    """A lesion mask alone has a shape as well."""
    sample = cohort.samples[1]
    assert sample.shape == dataclasses.replace(sample, images={}).shape == (16, 14, 6)


def test_grid_of_a_volume(cohort: Cohort) -> None:
    """Its affine and its spacing."""
    sample = cohort.samples[0]
    assert sample.grid.affine is sample.affine and sample.grid.spacing_mm == (1.2, 1.5, 2.0)


@pytest.mark.parametrize("absent", [{"affine": None}, {"spacing_mm": None}, {"affine": None, "spacing_mm": None}])
def test_pictures_have_no_grid(cohort: Cohort, absent: dict[str, None]) -> None:
    """What needs millimetres is refused, and says for which sample."""
    sample = dataclasses.replace(cohort.samples[0], **absent)
    with pytest.raises(CellError, match="samples must be volumes, got sub-01, a picture without affine"):
        _ = sample.grid


def test_subjects_of_a_cohort_come_once(cohort: Cohort) -> None:
    """In the order of their first samples."""
    assert edited(cohort, LAST, subject=FIRST).subjects == ("sub-01", "sub-02", "sub-03")


def test_spec_names_what_is_explained() -> None:
    """Scalars beside an image are inputs of the network and not of its explanations."""
    spec = NetworkSpec(
        (Input("age", ("age",), (), explained=False), Input("image", ("T1w", "FLAIR"))),
        (Target("lesion", "mask"), Target("hair", "classes", ("a", "b", "c"))),
    )
    assert (spec.explained, spec.channels, spec.width) == ((1,), ("T1w", "FLAIR"), 5)


def test_equal_numbers_of_other_types_are_equal(cohort: Cohort) -> None:
    """A reader that gives numpy's numbers makes the same cohort as one that gives Python's."""
    other = edited(
        cohort, FIRST, targets={"sex": np.float32(0.0)}, covariates={"age": 40}, weights={"sex": np.float64(2)}
    )
    assert other.fingerprint(READS) == cohort.fingerprint(READS)
