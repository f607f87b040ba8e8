"""Grid of the training samples of a network, with which new samples are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.errors import RequestError
from harness.core.types import JSON, Sample
from harness.data.bids_files import is_mni, listed

__all__ = ["TrainingGrid", "is_same_spacing", "spacing_text"]

_RELATIVE = 0.01  # difference of voxel sizes that is rounding of headers
_MM = 1e-3  # difference of affines that is rounding to float32
_NAMED = 8  # samples in an error message


@dataclass(frozen=True)
class TrainingGrid:
    """Voxel size, shape and affine that training samples share.

    Parameters
    ----------
    smallest_mm, largest_mm : (3,) smallest and largest voxel size along X, Y, Z; empty
        for pictures
    shape : shape of all samples; empty if they differ
    affine : (4, 4) affine of all samples, as tuples; empty if they differ, and for pictures
    spaces : template spaces of the samples, sorted, with an empty one for that of the
        subject or one that is not stated; none if they are not known
    """

    smallest_mm: tuple[float, ...] = ()
    largest_mm: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    spaces: tuple[str, ...] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> TrainingGrid:
        """The grid that samples share; there must be at least one sample."""
        return cls.merged([cls._of_one(sample) for sample in samples])

    @classmethod
    def _of_one(cls, sample: Sample) -> TrainingGrid:
        shape = tuple(map(int, sample.shape))
        if sample.affine is None:
            return cls(shape=shape)
        spacing = tuple(map(float, sample.grid.spacing_mm))
        affine = tuple(tuple(map(float, row)) for row in sample.affine)
        return cls(spacing, spacing, shape, affine, (sample.space,))

    @classmethod
    def merged(cls, grids: Sequence[TrainingGrid]) -> TrainingGrid:
        """What several grids share, e.g. those of all folds."""
        first = grids[0]
        same_shape = all(one.shape == first.shape for one in grids)
        same_affine = all(_is_same_place(one.affine, first.affine) for one in grids)
        return cls(
            tuple(map(min, zip(*(one.smallest_mm for one in grids), strict=True))),
            tuple(map(max, zip(*(one.largest_mm for one in grids), strict=True))),
            first.shape if same_shape else (),
            first.affine if same_shape and same_affine else (),
            tuple(sorted({space for one in grids for space in one.spaces})),
        )

    @classmethod
    def from_json(cls, saved: JSON) -> TrainingGrid:
        """The inverse of :meth:`to_json`."""
        return cls(
            tuple(saved["smallest_mm"]),
            tuple(saved["largest_mm"]),
            tuple(saved["shape"]),
            tuple(map(tuple, saved["affine"])),
            tuple(saved.get("spaces", ())),
        )

    def to_json(self) -> JSON:
        """As plain JSON."""
        return {
            "smallest_mm": list(self.smallest_mm),
            "largest_mm": list(self.largest_mm),
            "shape": list(self.shape),
            "affine": [list(row) for row in self.affine],
            "spaces": list(self.spaces),
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
        """Whether a voxel size is within the range of the training samples."""
        sides = zip(spacing_mm, self.smallest_mm, self.largest_mm, strict=True)
        return all(low * (1 - _RELATIVE) <= side <= high * (1 + _RELATIVE) for side, low, high in sides)

    def check(self, samples: Sequence[Sample], *, template: bool) -> None:
        """Check that samples have the grid of the training samples.

        Parameters
        ----------
        samples : new samples
        template : whether all samples are in one template space, so that shape and affine must
            be equal; otherwise, only voxel sizes are compared

        Raises
        ------
        RequestError
            If they differ; lists the grid of the training, that of each sample, and the remedy.
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

    def check_spaces(self, samples: Sequence[Sample], *, template: bool) -> list[str]:
        """Compare the spaces of samples with those of the training samples.

        Parameters
        ----------
        samples : new samples
        template : whether values are compared between subjects voxel by voxel, so that samples
            in another template mean something else

        Returns
        -------
        list of str
            A note if samples are in a space that no training sample has.

        Raises
        ------
        RequestError
            If ``template`` holds and a template is not one of the MNI152 family, whose
            members differ by a few mm.
        """
        known = {space.lower() for space in self.spaces}
        others: dict[str, list[str]] = {}
        for one in samples:
            if known and one.space.lower() not in known:
                others.setdefault(one.space, []).append(one.id)
        if not others:
            return []
        found = "; ".join(f"{listed(ids)}: {_space_text(space, template)}" for space, ids in others.items())
        trained = " and ".join(_space_text(space, template) for space in self.spaces)
        text = f"space of the training samples: {trained}; of new samples: {found}"
        named = [space for space in (*self.spaces, *others) if space]
        if template and not all(map(is_mni, named)):
            raise RequestError(f"{text}. Bring the new samples into the template of the training.")
        return [f"{text}. Check that it is the same; templates differ by some mm or more"]

    def _fits(self, one: TrainingGrid, template: bool) -> bool:
        if bool(one.smallest_mm) != bool(self.smallest_mm):
            return False
        if not self.smallest_mm:
            return not self.shape or one.shape == self.shape
        if template and self.affine:
            return one.shape == self.shape and _is_same_place(one.affine, self.affine)
        return self.holds(one.smallest_mm)


def _space_text(space: str, template: bool) -> str:
    """The space, or what an empty one means."""
    return space or ("not stated" if template else "that of the subject")


def _remedy(*, template: bool, pictures: bool) -> str:
    if pictures:
        return "Crop or resample them to that size."
    if template:
        return "Resample them to that grid, or train with a fixed one (cohort.box=brain)."
    return "Resample them, or train with one voxel size (cohort.spacing_mm), to which new samples are resampled."


def _is_same_place(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> bool:
    return bool(first and second) and bool(np.allclose(first, second, atol=_MM))


def is_same_spacing(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two voxel sizes are equal up to rounding."""
    return bool(np.allclose(first, second, rtol=_RELATIVE, atol=0))


def spacing_text(spacing_mm: Sequence[float]) -> str:
    """A voxel size as text: ``1×1×1.5 mm``."""
    return f"{'×'.join(f'{side:.3g}' for side in spacing_mm)} mm"
