"""Conformance of all built-in adapters and targets, and detection of broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from harness.adapters.axial_slices import axial_slices
from harness.adapters.lesion_volume import lesion_volume
from harness.adapters.pixels import Pixels, pixels
from harness.adapters.volumes import volumes
from harness.core.registry import ADAPTERS
from harness.core.targets import Target
from harness.core.types import Adapter, Array, Cohort, Sample
from harness.data.targets.column import binary_column, class_column, number_column
from harness.data.targets.mask import mask
from harness.testing import ArrayImage, check_adapter, check_target, example_cohort

FOLDER = Path("unused")


def pictures() -> Cohort:
    """Pictures with a binary and a classes target."""
    cohort = binary_column(example_cohort(), FOLDER, column="sex", positive="F")
    return class_column(cohort, FOLDER, column="group")


def lesions() -> Cohort:
    """Lesion maps with two numeric targets."""
    cohort = example_cohort(pictures=False)
    rng = np.random.default_rng(1)
    samples = tuple(
        dataclasses.replace(
            one,
            masks={"lesion": ArrayImage((rng.random((10, 12, 4)) < 0.2).astype(np.float32))},
            targets={"first": float(rng.normal()), "second": float(rng.normal())},
        )
        for one in cohort.samples
    )
    return dataclasses.replace(cohort, samples=samples, targets=(Target("first", "number"), Target("second", "number")))


def labelled_volumes() -> Cohort:
    """Volumes with a binary target."""
    return binary_column(example_cohort(pictures=False), FOLDER, column="sex", positive="F")


CASES = {
    "axial_slices": [(partial(axial_slices, channels="T2w+T1w"), lambda: mask(example_cohort(pictures=False), FOLDER))],
    "lesion_volume": [
        (partial(lesion_volume, volume_control=control), lesions)
        for control in ("none", "direct_total_lesion_volume", "regress_behaviour", "regress_lesion", "regress_both")
    ],
    "pixels": [(partial(pixels), pictures)],
    "volumes": [(partial(volumes, channels="T2w+T1w", scale="T1w:9+T2w:9"), labelled_volumes)],
}


def test_every_adapter_has_a_case() -> None:
    """Every registered adapter has a cohort in this module."""
    assert sorted(CASES) == ADAPTERS.names()


@pytest.mark.parametrize(("component", "cohort"), [case for cases in CASES.values() for case in cases])
def test_adapters_conform(component: partial[Adapter], cohort: object) -> None:
    """Every built-in adapter passes the conformance checks."""
    check_adapter(component(), cohort())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (number_column, {"column": "age"}),
        (binary_column, {"column": "age", "at_least": 50.0}),
        (binary_column, {"column": "sex", "positive": "M"}),
        (class_column, {"column": "group"}),
    ],
)
def test_columns_conform(component: object, options: dict[str, object]) -> None:
    """Every built-in target from a column passes the conformance checks."""
    check_target(component, example_cohort(), **options)  # type: ignore[arg-type]


def test_masks_conform() -> None:
    """The mask target passes the conformance checks."""
    check_target(mask, example_cohort(pictures=False))


class _Float64(Pixels):
    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        return tuple(one.astype(np.float64) for one in super().inputs(sample))


class _Unsorted(Pixels):
    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        return super().targets(sample, targets[::-1])


class _ReadingTargets(Pixels):
    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        return tuple(one + float(sample.targets.get("sex", 7.0)) for one in super().inputs(sample))


@pytest.mark.parametrize(
    ("adapter", "promise"),
    [(_Float64(), "must be float32"), (_Unsorted(), "in order"), (_ReadingTargets(), "need no target")],
)
def test_broken_adapters_are_refused(adapter: Adapter, promise: str) -> None:
    """A broken adapter is refused, and the message names its first violation."""
    with pytest.raises(AssertionError, match=promise):
        check_adapter(adapter, pictures())


def _forgetful(cohort: Cohort, cache: Path) -> Cohort:
    made = number_column(cohort, cache, column="age")
    return dataclasses.replace(made, ineligible=())


def _out_of_range(cohort: Cohort, cache: Path) -> Cohort:
    samples = tuple(dataclasses.replace(one, targets={"x": 2.0}) for one in cohort.samples)
    return dataclasses.replace(cohort, samples=samples, targets=(Target("x", "binary"),))


@pytest.mark.parametrize(
    ("component", "promise"), [(_forgetful, "listed as ineligible"), (_out_of_range, "one of 0 to 1")]
)
def test_broken_targets_are_refused(component: object, promise: str) -> None:
    """A broken target is refused, and the message names its first violation."""
    with pytest.raises(AssertionError, match=promise):
        check_target(component, example_cohort())  # type: ignore[arg-type]
