"""A mask of the cohort as the target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.core.errors import RequestError
from harness.core.targets import Target
from harness.core.types import Cohort
from harness.data.targets.mask import mask


@pytest.fixture
def bare(toy_cohort: Cohort) -> Cohort:
    """Four subjects with masks, and no target yet."""
    return dataclasses.replace(toy_cohort, targets=())


@pytest.mark.parametrize("name", ["target", "brain"])
def test_mask_becomes_the_target(bare: Cohort, tmp_path: Path, name: str) -> None:
    """Samples stay as they are; the mask is among them already."""
    made = mask(bare, tmp_path, name=name)
    assert made.targets == (Target(name, "mask"),)
    assert made.samples == bare.samples


def test_other_targets_stay(toy_cohort: Cohort, tmp_path: Path) -> None:
    """A mask is added behind those there are."""
    made = mask(toy_cohort, tmp_path, name="brain")
    assert [target.name for target in made.targets] == ["target", "brain"]


def test_samples_without_the_mask_are_all_named(bare: Cohort, tmp_path: Path) -> None:
    """Two of four have none."""
    samples = [
        dataclasses.replace(one, masks={"brain": one.masks["brain"]}) if number % 2 else one
        for number, one in enumerate(bare.samples)
    ]
    with pytest.raises(RequestError, match="must have the mask target to be predicted, but 2 have none: sub-02, sub-04"):
        mask(dataclasses.replace(bare, samples=tuple(samples)), tmp_path)


def test_a_target_twice_is_refused(toy_cohort: Cohort, tmp_path: Path) -> None:
    """Targets are told apart by their names."""
    with pytest.raises(RequestError, match="targets of toy must have different names, got target more than once"):
        mask(toy_cohort, tmp_path)
