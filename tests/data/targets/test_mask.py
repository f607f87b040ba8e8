"""Masks as targets."""

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
    """Four subjects with masks and no target."""
    return dataclasses.replace(toy_cohort, targets=())


@pytest.mark.parametrize("name", ["target", "brain"])
def test_mask_becomes_the_target(bare: Cohort, tmp_path: Path, name: str) -> None:
    """The target is added, and samples are unchanged."""
    made = mask(bare, tmp_path, name=name)
    assert made.targets == (Target(name, "mask"),)
    assert made.samples == bare.samples


def test_existing_targets_are_kept(toy_cohort: Cohort, tmp_path: Path) -> None:
    """The new target is last."""
    made = mask(toy_cohort, tmp_path, name="brain")
    assert [target.name for target in made.targets] == ["target", "brain"]


def test_samples_without_the_mask_raise(bare: Cohort, tmp_path: Path) -> None:
    """The message names all of them."""
    samples = [
        dataclasses.replace(one, masks={"brain": one.masks["brain"]}) if number % 2 else one
        for number, one in enumerate(bare.samples)
    ]
    with pytest.raises(
        RequestError, match="must have the mask target to be predicted, but 2 have none: sub-02, sub-04"
    ):
        mask(dataclasses.replace(bare, samples=tuple(samples)), tmp_path)


def test_duplicate_target_raises(toy_cohort: Cohort, tmp_path: Path) -> None:
    """Names of targets must be unique."""
    with pytest.raises(RequestError, match="targets of toy must have different names, got target more than once"):
        mask(toy_cohort, tmp_path)
