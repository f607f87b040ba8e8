"""Training grids: what is stored, and which new samples are compatible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.core.errors import RequestError
from harness.core.types import Sample
from harness.data.grids import TrainingGrid
from harness.data.transforms import spacing_of

InMemory = Callable[[np.ndarray], Any]


@pytest.fixture
def sample(in_memory: InMemory) -> Callable[..., Sample]:
    """Factory of samples with a voxel size, shape and origin; without a voxel size, a picture."""

    def make(
        spacing: tuple[float, ...] = (1, 1, 2), shape: tuple[int, ...] = (4, 5, 3), start: float = 0, id: str = "sub-1"
    ) -> Sample:
        image = {"T2w": in_memory(np.zeros(shape, np.float32))}
        if not spacing:
            return Sample(id, id, image, {}, {})
        affine = np.diag([*spacing, 1.0])
        affine[0, 3] = start
        return Sample(id, id, image, {}, {}, affine, spacing_of(affine))

    return make


def test_json_round_trip(sample: Callable[..., Sample]) -> None:
    """The grid is stored with the training as plain JSON."""
    grid = TrainingGrid.of([sample(), sample(start=3)])
    assert TrainingGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_properties_common_to_all_samples_are_kept(sample: Callable[..., Sample]) -> None:
    """Shape and affine are kept if all samples agree, and the voxel size if it agrees up to rounding."""
    same = TrainingGrid.of([sample(), sample()])
    assert (same.spacing_mm, same.shape, len(same.affine)) == ((1, 1, 2), (4, 5, 3), 4)
    assert TrainingGrid.of([sample(), sample(start=3)]).affine == ()
    assert TrainingGrid.of([sample(), sample(shape=(4, 5, 4))]).shape == ()
    assert TrainingGrid.of([sample((1, 1, 2)), sample((1.002, 1, 2))]).spacing_mm == pytest.approx((1.001, 1, 2))
    assert TrainingGrid.of([sample((1, 1, 2)), sample((1.2, 1, 2))]).spacing_mm == ()


def test_voxel_size_within_the_range_of_the_training_is_accepted(sample: Callable[..., Sample]) -> None:
    """The range is checked along each axis."""
    grid = TrainingGrid.of([sample((1, 1, 2)), sample((1.2, 1, 3))])
    assert grid.holds((1.1, 1, 2.5)) and grid.holds((0.995, 1, 2))
    assert not grid.holds((0.9, 1, 2.5)) and not grid.holds((1.1, 2, 2.5))


def test_voxel_size_outside_the_range_raises(sample: Callable[..., Sample]) -> None:
    """The message names the sample, both voxel sizes and the remedy."""
    grid = TrainingGrid.of([sample((1, 1, 2)), sample((1.2, 1, 3))])
    with pytest.raises(
        RequestError, match=r"the training, voxels from 1×1×2 mm to 1\.2×1×3 mm; sub-9 has .*5×5×2 mm .*Resample them"
    ):
        grid.check([sample((5, 5, 2), id="sub-9")], template=False)
    grid.check([sample((1.1, 1, 2), start=50)], template=False)


def test_template_grids_must_be_identical(sample: Callable[..., Sample]) -> None:
    """Voxels of a template space correspond, so shape and origin must agree."""
    grid = TrainingGrid.of([sample(), sample()])
    grid.check([sample()], template=True)
    for other in (sample(start=2), sample(shape=(4, 5, 4))):
        with pytest.raises(
            RequestError, match=r"4×5×3 voxels of 1×1×2 mm from \(0, 0, 0\) mm; sub-1 has .*to that grid"
        ):
            grid.check([other], template=True)
        grid.check([other], template=False)


def test_pictures_must_have_the_size_of_the_training(sample: Callable[..., Sample]) -> None:
    """Pictures are compared by their shape."""
    grid = TrainingGrid.of([sample((), (8, 8)), sample((), (8, 8))])
    grid.check([sample((), (8, 8))], template=True)
    with pytest.raises(
        RequestError, match=r"pictures of 8×8; sub-1 has pictures of 9×8. Crop or resample them to that size"
    ):
        grid.check([sample((), (9, 8))], template=True)


class TestSpaces:
    """Template spaces of new samples against those of the training."""

    @staticmethod
    def spaces(sample: Callable[..., Sample], *spaces: str) -> list[Sample]:
        return [replace(sample(id=f"sub-{n}"), space=space) for n, space in enumerate(spaces)]

    def test_same_space_is_fine_in_any_letter_case(self, sample: Callable[..., Sample]) -> None:
        """And so is any space of a mixed training, or if nothing is known of older trainings."""
        trained = TrainingGrid.of(self.spaces(sample, "MNI152NLin6Asym", ""))
        assert trained.spaces == ("", "MNI152NLin6Asym")
        new = self.spaces(sample, "mni152nlin6asym", "")
        assert trained.check_spaces(new, template=True) == []
        older = TrainingGrid.from_json({key: one for key, one in trained.to_json().items() if key != "spaces"})
        assert older.check_spaces(self.spaces(sample, "Talairach"), template=True) == []

    def test_other_mni_template_and_unstated_space_are_notes(self, sample: Callable[..., Sample]) -> None:
        """MNI152 templates differ by a few mm; a name without a space may be right."""
        trained = TrainingGrid.of(self.spaces(sample, "MNI152NLin6Asym"))
        assert trained.check_spaces(self.spaces(sample, "MNI152NLin2009cAsym", ""), template=True) == [
            "space of the training samples: MNI152NLin6Asym; of new samples: sub-0: MNI152NLin2009cAsym; "
            "sub-1: not stated. Check that it is the same; templates differ by some mm or more"
        ]

    def test_another_template_is_refused(self, sample: Callable[..., Sample]) -> None:
        """Where voxels are compared between subjects; networks on images of subjects get a note."""
        trained = TrainingGrid.of(self.spaces(sample, "MNI152NLin6Asym"))
        with pytest.raises(RequestError, match="sub-0: Talairach. Bring the new samples into the template"):
            trained.check_spaces(self.spaces(sample, "Talairach"), template=True)
        native = TrainingGrid.of(self.spaces(sample, ""))
        (note,) = native.check_spaces(self.spaces(sample, "Talairach"), template=False)
        assert note.startswith("space of the training samples: that of the subject; of new samples: sub-0: Talairach")
