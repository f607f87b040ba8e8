"""Core types: sources, faults, samples, cohorts, splits, adapters, scores.

Arrays of images are ordered (X, Y, Z) as nibabel reads them, in RAS+
orientation once a cohort is prepared: axis 0 runs to the patient's right, axis
1 to the front, axis 2 to the top. Spacing is in mm and follows the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from harness.core.errors import CellError
from harness.core.targets import Target

__all__ = [
    "Adapter",
    "Array",
    "Candidate",
    "Cohort",
    "Direction",
    "Fault",
    "FittedAdapter",
    "Folds",
    "Grid",
    "Image",
    "Ineligible",
    "Input",
    "JSON",
    "NetworkSpec",
    "Prediction",
    "Reads",
    "Sample",
    "Score",
    "Source",
    "SparseAdapter",
    "Split",
    "SplitSample",
    "Truth",
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
class Reads:
    """What of a sample something reads; it enters identities, and nothing else does.

    Parameters
    ----------
    images, masks, covariates : names of those that are read
    targets : names of targets whose values, weights and clean values are read
    """

    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Parameters
    ----------
    affine : (4, 4) voxel to world (mm, RAS+)
    spacing_mm : (3,) voxel size along X, Y, Z
    """

    affine: Array
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Sample:
    """One visit, patch or photograph of a subject; a volume's images share one grid.

    Parameters
    ----------
    id, subject : see :class:`Candidate`
    images : arrays of the sample, prepared (resampled, normalised, …): (X, Y, Z)
        float32 for a volume, (H, W) or (H, W, C) for a picture
    masks : (X, Y, Z) bool or integer each; ``target`` is the mask to predict,
        ``brain`` the brain mask, ``regions`` an integer label image if given
    covariates : numbers, strings or ``None``
    affine : (4, 4) voxel to world (mm, RAS+); ``None`` for pictures, which have pixels
    spacing_mm : (3,) voxel size along X, Y, Z; ``None`` for pictures
    targets : name of a target with one value per sample → the number, 0 or 1, or the
        number of the class
    clean : the same without the noise that was added, where that is known
    weights : name of a target → weight of this sample in its loss; 1 where absent
    """

    id: str
    subject: str
    images: Mapping[str, Image]
    masks: Mapping[str, Image]
    covariates: Mapping[str, float | str | None]
    affine: Array | None = None
    spacing_mm: tuple[float, float, float] | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    clean: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Where its voxels lie.

        Raises
        ------
        CellError
            If the sample is a picture, which has pixels alone.
        """
        if self.affine is None or self.spacing_mm is None:
            raise CellError(f"{self.id} has pixels and no place in space; this needs volumes")
        return Grid(self.affine, self.spacing_mm)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its arrays."""
        return next(iter((*self.images.values(), *self.masks.values()))).shape

    def content(self, reads: Reads) -> list[str]:
        """What is read of this sample, as text for a hash.

        Masks that the sample does not have are skipped: a brain mask may be absent.
        """
        parts = [self.id, self.subject]
        parts += [f"{name}={self.images[name].fingerprint}" for name in reads.images]
        parts += [f"{name}={self.masks[name].fingerprint}" for name in reads.masks if name in self.masks]
        parts += [f"{name}={_text(self.covariates.get(name))}" for name in reads.covariates]
        for kind, values in (("target", self.targets), ("clean", self.clean), ("weight", self.weights)):
            parts += [f"{kind} {name}={_text(values[name])}" for name in reads.targets if name in values]
        return parts


def _text(value: float | str | None) -> str:
    """A value as text for a hash; equal numbers of different types have equal texts."""
    return repr(float(value)) if isinstance(value, Real) else repr(value)


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
    targets : what is predicted, in the order of the network's outputs
    """

    name: str
    samples: tuple[Sample, ...]
    ineligible: tuple[Ineligible, ...] = ()
    regions: Mapping[int, str] = field(default_factory=dict)
    label_source: str = "not stated by the data"
    truth: Truth | None = None
    targets: tuple[Target, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Each subject once, in order."""
        return tuple(dict.fromkeys(sample.subject for sample in self.samples))

    def fingerprint(self, reads: Reads, ids: Sequence[str] | None = None) -> str:
        """Hash of exactly what is read of the samples.

        A subset of sequences has its own fingerprint, which does not change
        when the cohort also holds other sequences.

        Parameters
        ----------
        reads : what is read of each sample
        ids : of the samples that are read, in any order; all by default

        Raises
        ------
        KeyError
            If an image that is read does not exist.
        """
        key = (reads, None if ids is None else frozenset(ids))
        if key not in self._fingerprints:
            digest = hashlib.sha256()
            for sample in self.samples:
                if key[1] is None or sample.id in key[1]:
                    digest.update(repr(sample.content(reads)).encode())
            digest.update(repr([one for one in self.targets if one.name in reads.targets]).encode())
            if "regions" in reads.masks:
                digest.update(repr(sorted(self.regions.items())).encode())
            self._fingerprints[key] = digest.hexdigest()[:16]
        return self._fingerprints[key]

    @cached_property
    def _fingerprints(self) -> dict[tuple[Reads, frozenset[str] | None], str]:
        """Fingerprints that were asked for; every configuration asks for those of the same folds."""
        return {}


@dataclass(frozen=True)
class SplitSample:
    """What a split may know of a sample.

    Parameters
    ----------
    id, subject : all samples of a subject stay on one side
    targets : its targets with one value per sample, to stratify by
    covariates : its row of the participants' table
    """

    id: str
    subject: str
    targets: Mapping[str, float] = field(default_factory=dict)
    covariates: Mapping[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Sample ids of one fold."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """All folds of a cohort, and the test set that none of them touches.

    Parameters
    ----------
    folds : of cross-validation; their ``test`` is empty where there is a fixed test set
    test : sample ids of the fixed test set, on which the networks of all folds are
        averaged; empty where every fold has a test set of its own
    """

    folds: tuple[Split, ...]
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One named array that a network sees of each item.

    Parameters
    ----------
    name : e.g. ``"image"``, ``"age"``
    channels : names of its channels, in order
    shape : space of an item if all items have the same, else empty; () for scalars
    explained : whether attributions explain it
    unchanged : whether it is the cohort's image as it is, so that what an exact model
        would show of it is known
    """

    name: str
    channels: tuple[str, ...]
    shape: tuple[int, ...] = ()
    explained: bool = True
    unchanged: bool = True


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is built for.

    Parameters
    ----------
    inputs : in the order in which the network takes them
    targets : in the order of its outputs
    """

    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]

    @property
    def explained(self) -> tuple[int, ...]:
        """Positions of the inputs that are explained."""
        return tuple(number for number, one in enumerate(self.inputs) if one.explained)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of all explained inputs, in order."""
        return tuple(name for one in self.inputs if one.explained for name in one.channels)

    @property
    def width(self) -> int:
        """Number of output channels of all targets together."""
        return sum(target.width for target in self.targets)


Prediction = Mapping[str, Mapping[str, Array]]
"""Target → what is kept of its prediction, by name; see :mod:`harness.core.targets`."""


class Adapter(Protocol):
    """How a sample becomes items of a network, and outputs become a prediction.

    An item is what a network sees at once: a slice, a volume, a patch. A sample has
    N items, one or more.
    """

    @property
    def reads(self) -> Reads:
        """What of a sample :meth:`inputs` reads; the targets are not part of it."""
        ...

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """Inputs and targets of a network for this cohort.

        Raises
        ------
        HarnessError
            If the cohort lacks something that the adapter needs.
        """
        ...

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """One (N, C, *space) float32 array for each input, in a fixed order; no truth is needed."""
        ...

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Name of each target → what the network should say of each item, (N, …).

        Labels are int64, numbers and binary labels float32.
        """
        ...

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Outputs of each target, (N, width, *space), for all items of a sample → what is kept."""
        ...

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Maps of one explained input, (N, C, *space) → (C, …) in the space of the sample's images."""
        ...


@runtime_checkable
class FittedAdapter(Adapter, Protocol):
    """An adapter that learns something from the training samples."""

    def fit(self, training: Sequence[Sample], targets: Sequence[Target]) -> FittedAdapter:
        """The adapter with what it learned."""
        ...

    @property
    def state(self) -> Mapping[str, Array]:
        """What was learned, by name; empty if the options ask for nothing."""
        ...

    def load_state(self, state: Mapping[str, Array]) -> FittedAdapter:
        """The adapter with what was learned before."""
        ...

    def explained(self, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
        """Each input as what is explained of it and what is added before the network sees it.

        The sum is what :meth:`inputs` gives. What is explained is zero where there is
        nothing, so that a baseline of zero means absence.
        """
        ...


@runtime_checkable
class SparseAdapter(Adapter, Protocol):
    """An adapter of one mostly empty item per sample, which can be read without making it dense."""

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """The item without what is empty: flat indices in C order (N,) and values (N,) float32."""
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
