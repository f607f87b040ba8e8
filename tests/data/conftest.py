"""A small BIDS cohort on disk, made with the same writer as the phantoms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core import identity
from harness.data.bids_writing import write_phantom

SHAPE = (12, 14, 6)
SPACING_MM = (1.1, 0.9, 2.5)


@dataclass(frozen=True)
class Subject:
    """Arrays with affines, as a phantom generator yields them."""

    images: Mapping[str, tuple[Any, Any]]
    masks: Mapping[str, tuple[Any, Any]]
    covariates: Mapping[str, float | str | None]
    region_names: Mapping[int, str] = field(default_factory=lambda: {1: "left", 2: "right"})


def affine_of(spacing_mm: tuple[float, float, float] = SPACING_MM, angle: float = 0.2) -> np.ndarray:
    """An oblique affine: rotated about the third axis, not centred."""
    affine = np.eye(4)
    cosine, sine = np.cos(angle), np.sin(angle)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.diag(spacing_mm)
    affine[:3, 3] = (-20.0, 7.5, -3.0)
    return affine


def make_subject(number: int) -> Subject:
    """Three sequences on one grid, SWI on a finer one along the third axis, three masks."""
    random = np.random.default_rng(number)
    affine, fine = affine_of(), affine_of((1.1, 0.9, 1.25))
    images = {name: (100 + 10 * random.standard_normal(SHAPE), affine) for name in ("T1w", "T2w", "FLAIR")}
    images["SWI"] = (100 + 10 * random.standard_normal((12, 14, 12)), fine)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[1:-1, 1:-1, 1:-1] = True
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[3 : 5 + number % 3, 4:6, 2 : 3 + number % 2] = True
    lesion[6, 7 + number % 4, 3] = True
    regions = np.where(np.arange(SHAPE[0])[:, None, None] < 6, 1, 2) * brain
    masks = {"lesion": (lesion, affine), "brain": (brain, affine), "regions": (regions, affine)}
    return Subject(
        images, masks, {"sex": "FM"[number % 2], "age": 40.0 + number, "score": None if number == 1 else 2.5}
    )


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that changes the digest of one definition, ``module:name``, as editing it would."""
    step = identity._step

    def one(name: str) -> None:
        def edited(place: tuple[str, str]) -> Any:
            uses, digests = step(place)
            return uses, tuple((key, f"{digest} edited" if key == name else digest) for key, digest in digests)

        monkeypatch.setattr(identity, "_step", edited)
        identity._reached.cache_clear()

    yield one
    monkeypatch.undo()
    identity._reached.cache_clear()


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., Path]:
    """Factory that writes a valid cohort with the given number of subjects and returns its folder."""

    def make(subjects: int = 3, *, name: str = "cohort") -> Path:
        columns = {"age": {"Units": "years"}, "sex": {"Levels": {"F": "female", "M": "male"}}}
        return write_phantom(
            tmp_path / name,
            (make_subject(number) for number in range(subjects)),
            name="Small cohort",
            label_sources={"lesion": ("T2w", "FLAIR")},
            columns=columns,
        )

    return make


@pytest.fixture
def cohort(make_cohort: Callable[..., Path]) -> Path:
    """A valid cohort of three subjects."""
    return make_cohort()
