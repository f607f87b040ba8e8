"""The nouns of the house: sources, faults, scans, samples, cohorts, scores.

Arrays of images are ordered (X, Y, Z) as nibabel reads them, in RAS+
orientation once a cohort is prepared: axis 0 runs to the patient's right, axis
1 to the front, axis 2 to the top. Spacing is in mm and follows the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Candidate",
    "Cohort",
    "Direction",
    "Fault",
    "Image",
    "Ineligible",
    "Items",
    "JSON",
    "Sample",
    "Score",
    "Source",
    "SparseView",
    "Split",
    "Truth",
    "View",
]

Array = npt.NDArray[Any]
JSON = Any  # str | int | float | bool | None | list[JSON] | dict[str, JSON]
Direction = Literal["higher", "lower", "zero", "none"]


@dataclass(frozen=True)
class Source:
    """Where a task, method or metric was published."""

    authors: str
    year: int
    title: str = ""
    doi: str = ""

    def __str__(self) -> str:
        doi = f", doi:{self.doi}" if self.doi else ""
        return f"{self.authors} {self.year}{doi}"


@dataclass(frozen=True)
class Fault:
    """Something present in the data but wrong.

    Parameters
    ----------
    kind : short stable name of the fault, e.g. ``"nan"``
    file : the file, relative to the cohort's root
    subject : the subject it belongs to, empty if it concerns the whole cohort
    value : what was found
    expected : what must hold
    remedy : what the user can do next
    """

    kind: str
    file: str
    subject: str
    value: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"[{self.kind}] {where}{self.value}; expected {self.expected}. {self.remedy}"


@dataclass(frozen=True)
class Ineligible:
    """A subject left out because something required is absent, and why."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One subject (or session) of a BIDS folder, as file names; nothing is read.

    Parameters
    ----------
    id : ``sub-01`` or ``sub-01_ses-2``
    subject : ``sub-01``; all candidates of a subject share folds
    images : file of each sequence, by suffix (``T2w``, ``FLAIR``, …)
    masks : file of each label image, by label (``pvs``, ``lesion``, ``brain``, ``regions``)
    covariates : the row of participants.tsv, ``None`` where it says n/a
    """

    id: str
    subject: str
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    covariates: Mapping[str, float | str | None] = field(default_factory=dict)


class Image(Protocol):
    """An image that is read when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z), without reading the values."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the values and of everything that produced them."""
        ...

    def load(self) -> Array:
        """Array (X, Y, Z), not to be written to; a view of a memory map where possible."""
        ...

    def voxels(self) -> tuple[Array, Array]:
        """Flat indices (C order, rising) of voxels that are not zero, (N,) int64, and their values (N,)."""
        ...


@dataclass(frozen=True)
class Sample:
    """One subject's prepared images, all on one grid.

    Parameters
    ----------
    id, subject : see :class:`Candidate`
    images : (X, Y, Z) float32 each, prepared (resampled, normalised, …)
    masks : (X, Y, Z) bool or integer each; ``target`` is the label to predict,
        ``brain`` the brain mask, ``regions`` an integer label image if given
    covariates : numbers, strings or ``None``
    affine : (4, 4) voxel to world (mm, RAS+)
    spacing_mm : (3,) voxel size along X, Y, Z
    scores : name → number to predict, for tasks that predict numbers
    clean : the same without the noise that was added, where that is known
    """

    id: str
    subject: str
    images: Mapping[str, Image]
    masks: Mapping[str, Image]
    covariates: Mapping[str, float | str | None]
    affine: Array
    spacing_mm: tuple[float, float, float]
    scores: Mapping[str, float] = field(default_factory=dict)
    clean: Mapping[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z) of its grid."""
        return next(iter((*self.images.values(), *self.masks.values()))).shape


@dataclass(frozen=True)
class Truth:
    """Where the signal of generated scores lies.

    Parameters
    ----------
    rois : name → (X, Y, Z) bool, the regions of interest, all disjoint
    weights : score → region → its weight in the score
    counts : (X, Y, Z) float32, how many subjects have a lesion at each voxel
        (the sum of their occupancies)
    table : one line of facts per region, for the report
    linear : whether a score is its weights times the lesioned shares, and not a curve of that
    """

    rois: Mapping[str, Image]
    weights: Mapping[str, Mapping[str, float]]
    counts: Image
    table: tuple[Mapping[str, JSON], ...] = ()
    linear: bool = True

    @property
    def fingerprint(self) -> str:
        """Of all that a score of an explanation depends on."""
        parts = {name: image.fingerprint for name, image in self.rois.items()}
        content = repr(
            [parts, self.counts.fingerprint, {key: dict(one) for key, one in self.weights.items()}, self.linear]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cohort:
    """Samples in a fixed order, with what was left out.

    Parameters
    ----------
    name : of the data set
    samples : eligible samples, sorted by id
    ineligible : subjects left out, with the reason
    regions : label value → name of the regions image, empty if there is none
    label_source : sequences on which the truth was drawn, as far as the data say
    truth : of scores that were generated, ``None`` where there is none
    """

    name: str
    samples: tuple[Sample, ...]
    ineligible: tuple[Ineligible, ...] = ()
    regions: Mapping[int, str] = field(default_factory=dict)
    label_source: str = "not stated by the data"
    truth: Truth | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the numbers to predict, in order; empty for tasks that predict images."""
        return tuple(self.samples[0].scores) if self.samples else ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Each subject once, in order."""
        return tuple(dict.fromkeys(sample.subject for sample in self.samples))

    def fingerprint(self, images: tuple[str, ...], masks: tuple[str, ...]) -> str:
        """Hash of exactly the images and masks that a configuration reads.

        A subset of sequences has its own fingerprint, which does not change
        when the cohort also holds other sequences.
        """
        digest = hashlib.sha256()
        for sample in self.samples:
            parts = [sample.id, sample.subject]
            parts += [f"{name}={sample.images[name].fingerprint}" for name in images]
            parts += [f"{name}={sample.masks[name].fingerprint}" for name in masks if name in sample.masks]
            parts += [f"{name}={value!r}" for name, value in sample.scores.items()]
            digest.update(repr(parts).encode())
        if "regions" in masks:
            digest.update(repr(sorted(self.regions.items())).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """Sample ids of one fold."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Items:
    """What a network sees of one sample.

    Parameters
    ----------
    inputs : (N, C, *space) float32, N items of C channels
    targets : (N, ...) what the network should say of each item
    """

    inputs: Array
    targets: Array


class View(Protocol):
    """How a sample becomes items of a network, and outputs become a prediction."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the input channels, in order."""
        ...

    @property
    def images(self) -> tuple[str, ...]:
        """The cohort's images that are read."""
        ...

    @property
    def masks(self) -> tuple[str, ...]:
        """The cohort's masks that are read."""
        ...

    @property
    def outputs(self) -> int:
        """Number of output channels of the network."""
        ...

    @property
    def grouped(self) -> bool:
        """Whether explanations are judged as their sum over subjects, not one by one."""
        ...

    @property
    def plain(self) -> bool:
        """Whether the network sees images as they are, so that what an exact model would show of them is known."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Space of an item if all have the same, else empty; known once :meth:`of` was called."""
        ...

    def of(self, cohort: Cohort) -> View:
        """The view of this cohort: its scores and its grid filled in."""
        ...

    def fit(self, training: Sequence[Sample]) -> View:
        """The view with what it must learn from the training samples, often nothing."""
        ...

    @property
    def learned(self) -> Mapping[str, Array]:
        """What :meth:`fit` learned, by name; empty if that is nothing."""
        ...

    def knowing(self, learned: Mapping[str, Array]) -> View:
        """The view with what was learned before."""
        ...

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the scalar outputs that an attribution explains."""
        ...

    def inputs(self, sample: Sample) -> Array:
        """All items of a sample, in a fixed order; no truth is needed."""
        ...

    def items(self, sample: Sample) -> Items:
        """The same with what the network should say."""
        ...

    def summands(self, sample: Sample) -> tuple[Array, Array | None]:
        """The inputs as what is explained of them, zero where there is nothing, and what comes on top, if anything."""
        ...

    def prediction(self, outputs: Array, sample: Sample) -> dict[str, Array]:
        """Network outputs (N, K, *space) of all items of a sample → what is kept and scored."""
        ...

    def volume(self, maps: Array) -> Array:
        """Attribution maps (N, C, *space) → (C, X, Y, Z)."""
        ...

    def scalars(self, outputs: Any) -> Any:
        """Network outputs, a tensor (N, K, *space) → the explained scalars (N, len(explained))."""
        ...


@runtime_checkable
class SparseView(View, Protocol):
    """A view of one item per sample that is mostly zero: it can be read without being made whole."""

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """The item without what is empty: flat indices in C order (N,) and values (N,) float32."""
        ...

    def targets(self, sample: Sample) -> Array:
        """What the network should say of the item, (1, K) float32."""
        ...


@dataclass(frozen=True)
class Score:
    """One value of the leaderboard.

    Parameters
    ----------
    value : point estimate; NaN if it could not be computed
    low, high : 95 % interval over subjects; NaN where none can be given
    n : number of subjects with a value
    se : standard error of the mean, NaN for pooled metrics
    missing : number of subjects for which the metric is not defined
    chance, ceiling : what no skill and a perfect answer would score, if known
    """

    value: float
    low: float
    high: float
    n: int
    se: float = float("nan")
    missing: int = 0
    chance: float = float("nan")
    ceiling: float = float("nan")

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
