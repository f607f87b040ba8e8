"""The grid on which networks were trained: kept with them, and what new samples are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.errors import RequestError
from harness.core.types import JSON, Sample

__all__ = ["TrainingGrid", "is_same_spacing", "spacing_text"]

_RELATIVE = 0.01  # voxel sizes that differ by less are one: headers are rounded
_MM = 1e-3  # affines are stored in float32
_NAMED = 8  # samples that an error names


@dataclass(frozen=True)
class TrainingGrid:
    """What training samples have in common.

    Parameters
    ----------
    smallest_mm, largest_mm : (3,) smallest and largest voxel size along X, Y, Z; empty
        for pictures
    shape : of every sample; empty if they differ
    affine : (4, 4) of every sample, as tuples; empty if they differ, and for pictures
    """

    smallest_mm: tuple[float, ...] = ()
    largest_mm: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> TrainingGrid:
        """The grid of at least one sample."""
        return cls.merged([cls._of_one(sample) for sample in samples])

    @classmethod
    def _of_one(cls, sample: Sample) -> TrainingGrid:
        shape = tuple(map(int, sample.shape))
        if sample.affine is None:
            return cls(shape=shape)
        spacing = tuple(map(float, sample.grid.spacing_mm))
        return cls(spacing, spacing, shape, tuple(tuple(map(float, row)) for row in sample.affine))

    @classmethod
    def merged(cls, grids: Sequence[TrainingGrid]) -> TrainingGrid:
        """What several have in common, e.g. those of all folds."""
        first = grids[0]
        same_shape = all(one.shape == first.shape for one in grids)
        same_affine = all(_is_same_place(one.affine, first.affine) for one in grids)
        return cls(
            tuple(map(min, zip(*(one.smallest_mm for one in grids), strict=True))),
            tuple(map(max, zip(*(one.largest_mm for one in grids), strict=True))),
            first.shape if same_shape else (),
            first.affine if same_shape and same_affine else (),
        )

    @classmethod
    def from_json(cls, saved: JSON) -> TrainingGrid:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(saved["smallest_mm"]),
            tuple(saved["largest_mm"]),
            tuple(saved["shape"]),
            tuple(map(tuple, saved["affine"])),
        )

    def to_json(self) -> JSON:
        """As plain JSON."""
        return {
            "smallest_mm": list(self.smallest_mm),
            "largest_mm": list(self.largest_mm),
            "shape": list(self.shape),
            "affine": [list(row) for row in self.affine],
        }

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """(3,) voxel size that all samples share; empty if they differ."""
        if not self.smallest_mm or not is_same_spacing(self.smallest_mm, self.largest_mm):
            return ()
        return tuple((low + high) / 2 for low, high in zip(self.smallest_mm, self.largest_mm, strict=True))

    def __str__(self) -> str:
        if not self.smallest_mm:
            return f"pictures of {'×'.join(map(str, self.shape)) or 'several sizes'}"
        if self.affine:
            corner = ", ".join(f"{row[3]:.4g}" for row in self.affine[:3])
            size = "×".join(map(str, self.shape))
            return f"{size} voxels of {spacing_text(self.smallest_mm)} from ({corner}) mm"
        if self.spacing_mm:
            return f"voxels of {spacing_text(self.spacing_mm)}"
        return f"voxels from {spacing_text(self.smallest_mm)} to {spacing_text(self.largest_mm)}"

    def holds(self, spacing_mm: Sequence[float]) -> bool:
        """Whether a voxel size is one of those in training."""
        sides = zip(spacing_mm, self.smallest_mm, self.largest_mm, strict=True)
        return all(low * (1 - _RELATIVE) <= side <= high * (1 + _RELATIVE) for side, low, high in sides)

    def check(self, samples: Sequence[Sample], *, template: bool) -> None:
        """Refuse samples that lie otherwise than those of the training.

        Parameters
        ----------
        template : whether all samples lie in one space, so that their grid must be
            that of the training, voxel by voxel; else their voxel size must be

        Raises
        ------
        RequestError
            With the grid of the training, that of each sample, and the remedy.
        """
        wrong = {one.id: TrainingGrid.of([one]) for one in samples if not self._fits(TrainingGrid.of([one]), template)}
        if not wrong:
            return
        listed = [f"{name} has {grid}" for name, grid in list(wrong.items())[:_NAMED]]
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise RequestError(
            f"new samples must be on the grid of the training, {self}; {', '.join(listed)}{more}. "
            + _remedy(template=template, pictures=not self.smallest_mm)
        )

    def _fits(self, one: TrainingGrid, template: bool) -> bool:
        if bool(one.smallest_mm) != bool(self.smallest_mm):
            return False
        if not self.smallest_mm:
            return not self.shape or one.shape == self.shape
        if template and self.affine:
            return one.shape == self.shape and _is_same_place(one.affine, self.affine)
        return self.holds(one.smallest_mm)


def _remedy(*, template: bool, pictures: bool) -> str:
    if pictures:
        return "Bring them to that size."
    if template:
        return "Bring them to that grid, or train with a fixed one (cohort.box=published)."
    return "Resample them, or train with one voxel size (cohort.spacing_mm), to which new samples are then brought."


def _is_same_place(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> bool:
    return bool(first and second) and bool(np.allclose(first, second, atol=_MM))


def is_same_spacing(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two voxel sizes are equal up to rounding."""
    return bool(np.allclose(first, second, rtol=_RELATIVE, atol=0))


def spacing_text(spacing_mm: Sequence[float]) -> str:
    """A voxel size as people write it."""
    return f"{'×'.join(f'{side:.3g}' for side in spacing_mm)} mm"
