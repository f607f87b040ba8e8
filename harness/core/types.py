"""Core types: sources, faults, samples, cohorts, splits, adapters, scores.

Image arrays have the axes (X, Y, Z), as in nibabel. Prepared cohorts are in RAS+
orientation: axis 0 points to the subject's right, axis 1 to anterior, axis 2 to
superior. Spacing is in mm, in the same order.
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

from harness.core.errors import CellError, HarnessError, RequestError
from harness.core.targets import Target

__all__ = [
    "NUISANCE",
    "TRUTH",
    "Adapter",
    "Array",
    "Candidate",
    "Cohort",
    "Direction",
    "Fault",
    "FilePath",
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
    "Remarks",
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
TRUTH, NUISANCE = "truth_", "nuisance"
"""Masks of a sample: start of the name of the mask that determines a target, and the mask of a nuisance."""
FilePath = Path
"""Annotation of an option that names a file, for components, which read no files themselves."""


_NOTHING: Mapping[str, float] = {}  # shared by hundreds of thousands of samples, and never changed


@dataclass(frozen=True)
class Source:
    """Citation of a task, method or metric."""

    authors: str
    year: int
    title: str = ""
    doi: str = ""

    def __str__(self) -> str:
        doi = f", doi:{self.doi}" if self.doi else ""
        return f"{self.authors} {self.year}{doi}"


@dataclass(frozen=True)
class Fault:
    """An error in the data.

    Parameters
    ----------
    kind : short, stable name of the fault, e.g. ``"nan"``
    file : file, relative to the root of the cohort
    subject : subject that is affected; empty for the whole cohort
    value : what was found
    expected : what was expected
    remedy : what the user can do
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
    """A subject that is left out because required data are missing."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One subject or session of a BIDS folder, as file names.

    Parameters
    ----------
    id : ``sub-01`` or ``sub-01_ses-2``
    subject : ``sub-01``; all sessions of a subject are in the same fold
    images : suffix (``T2w``, ``FLAIR``, …) → file
    masks : label (``pvs``, ``lesion``, ``brain``, ``regions``) → file of the label image
    covariates : row of participants.tsv, with ``None`` for n/a
    space : template space of the files (``MNI152NLin6Asym``); empty for the space of the
        subject, or if none is stated
    """

    id: str
    subject: str
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    covariates: Mapping[str, float | str | None] = field(default_factory=dict)
    space: str = ""


class Image(Protocol):
    """An image that is read on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z), without reading the values."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the values, or of everything that determines them."""
        ...

    def load(self) -> Array:
        """Read-only array (X, Y, Z); a view of a memory map where possible."""
        ...

    def voxels(self) -> tuple[Array, Array]:
        """Sorted flat indices (C order) of non-zero voxels, (N,) int64, and their values, (N,)."""
        ...


@dataclass(frozen=True)
class Reads:
    """The data of a sample that a stage reads; only these enter its identity.

    Parameters
    ----------
    images, masks, covariates : names of what is read
    targets, weights, clean : names of targets whose values, weights and clean values are read
    grid : ``"affine"`` and ``"spacing_mm"``, where they are read
    """

    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    clean: tuple[str, ...] = ()
    grid: tuple[Literal["affine", "spacing_mm"], ...] = ()


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid of a volume.

    Parameters
    ----------
    affine : (4, 4) voxel-to-world matrix (mm, RAS+)
    spacing_mm : (3,) voxel size along X, Y, Z
    """

    affine: Array
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One visit, patch or photograph of a subject.

    All images of a volume have the same grid.

    Parameters
    ----------
    id, subject : see :class:`Candidate`
    images : prepared images (resampled, normalised, …) by name: (X, Y, Z) float32 for
        volumes, (H, W) or (H, W, C) for pictures
    masks : (X, Y, Z) bool or integer arrays by name: ``target`` is the mask to predict, or
        that determines the targets, ``truth_<target>`` that which determines one of several
        targets, ``nuisance`` that of a known nuisance, ``brain`` the brain mask, ``regions``
        an optional label image of regions
    covariates : numbers, strings or ``None``
    affine : (4, 4) voxel-to-world matrix (mm, RAS+); ``None`` for pictures
    spacing_mm : (3,) voxel size along X, Y, Z; ``None`` for pictures
    targets : target with one value per sample → the number, the label 0 or 1, or the
        index of the class
    clean : the same without added noise, where known
    weights : target → weight of this sample in the loss; 1 if absent
    space : see :class:`Candidate`
    """

    id: str
    subject: str
    images: Mapping[str, Image]
    masks: Mapping[str, Image]
    covariates: Mapping[str, float | str | None]
    affine: Array | None = None
    spacing_mm: tuple[float, float, float] | None = None
    targets: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    clean: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    weights: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    space: str = ""

    @property
    def grid(self) -> Grid:
        """Voxel grid of the sample.

        Raises
        ------
        CellError
            If the sample is a picture, which has no affine.
        """
        if self.affine is None or self.spacing_mm is None:
            raise CellError(f"samples must be volumes, got {self.id}, a picture without affine and voxel size")
        return Grid(self.affine, self.spacing_mm)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the images."""
        return next(iter((*self.images.values(), *self.masks.values()))).shape

    def truth_of(self, scalar: str) -> Image | None:
        """The mask that determines an explained scalar; ``None`` if it is unknown.

        Parameters
        ----------
        scalar : name of a target, ``target:class``, or of a scalar that the model exposes

        Returns
        -------
        Image or None
            The mask of the target, if targets have masks of their own, otherwise the mask
            ``target``.
        """
        own = [name for name in self.masks if name.startswith(TRUTH)]
        return self.masks.get(f"{TRUTH}{scalar.partition(':')[0]}" if own else "target")

    def content(self, reads: Reads) -> list[str]:
        """The data that is read of this sample, as text to hash.

        Masks that the sample does not have are skipped: a brain mask may be absent.
        """
        texts = [self.id, self.subject]
        texts += [f"{name}={self.images[name].fingerprint}" for name in reads.images]
        texts += [f"{name}={self.masks[name].fingerprint}" for name in reads.masks if name in self.masks]
        texts += [f"{name}={_text(self.covariates.get(name))}" for name in reads.covariates]
        for kind, values, names in (
            ("target", self.targets, reads.targets),
            ("weight", self.weights, reads.weights),
            ("clean", self.clean, reads.clean),
        ):
            texts += [f"{kind} {name}={_text(values[name])}" for name in names if name in values]
        for name in reads.grid:
            numbers = getattr(self, name)
            texts += [] if numbers is None else [f"{name}={_rounded(numbers)}"]
        return texts


def _text(value: float | str | None) -> str:
    """A value as text for a hash; equal numbers of different types have equal texts."""
    return repr(float(value)) if isinstance(value, Real) else repr(value)


def _rounded(numbers: Array | tuple[float, ...]) -> list[Any]:
    """Numbers for a hash; rounded, because the last bits of a product may differ between machines."""
    found: list[Any] = (np.round(np.asarray(numbers, float), 6) + 0.0).tolist()
    return found


@dataclass(frozen=True)
class Truth:
    """Ground truth of simulated scores.

    Parameters
    ----------
    rois : name → (X, Y, Z) bool, disjoint regions of interest
    weights : score → region → weight of the region in the score
    mask : name of the mask from which scores are simulated
    counts : (X, Y, Z) float32, sum of this mask over all samples; partial volumes count
        as fractions
    table : one row of facts per region, for the report
    linear : whether a score is the weighted sum of the means of the mask in the regions,
        rather than a non-linear function of it
    """

    rois: Mapping[str, Image]
    weights: Mapping[str, Mapping[str, float]]
    mask: str
    counts: Image
    table: tuple[Mapping[str, JSON], ...] = ()
    linear: bool = True

    @property
    def fingerprint(self) -> str:
        """Hash of everything that metrics of explanations depend on."""
        rois = {name: image.fingerprint for name, image in self.rois.items()}
        content = repr(
            [
                rois,
                self.mask,
                self.counts.fingerprint,
                {key: dict(one) for key, one in self.weights.items()},
                self.linear,
            ]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cohort:
    """Samples of a data set, in a fixed order.

    Parameters
    ----------
    name : name of the data set
    samples : eligible samples, sorted by id
    ineligible : subjects that are left out, with the reason
    regions : value in the regions image → name of the region; empty without regions
    label_source : sequences on which the labels were drawn, as stated by the data
    truth : ground truth of simulated scores; ``None`` if there is none
    targets : what is predicted, in the order of the network's outputs
    notes : what was inferred, cut off or read with a reservation, as sentences for the user
    files : name of an image or mask → variant of the file name → number of samples
    private : whether images may show a person, so that the report shows them only with
        ``show_images=true``

    Raises
    ------
    RequestError
        If two targets have the same name.
    """

    name: str
    samples: tuple[Sample, ...]
    ineligible: tuple[Ineligible, ...] = ()
    regions: Mapping[int, str] = field(default_factory=dict)
    label_source: str = "not stated by the data"
    truth: Truth | None = None
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    private: bool = False

    def __post_init__(self) -> None:
        names = [target.name for target in self.targets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RequestError(
                f"targets of {self.name} must have different names, got {', '.join(twice)} more than once; remove one"
            )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Unique subjects, in order."""
        return tuple(dict.fromkeys(sample.subject for sample in self.samples))

    def fingerprint(self, reads: Reads, ids: Sequence[str] | None = None) -> str:
        """Hash of the data that is read, and of nothing else.

        The fingerprint of a subset of sequences does not depend on other sequences in
        the cohort.

        Parameters
        ----------
        reads : data that is read of each sample
        ids : samples that are read, in any order; all by default

        Raises
        ------
        HarnessError
            If the cohort does not have a sample of ``ids``; all of them are listed.
        KeyError
            If an image does not exist.
        """
        key = (reads, None if ids is None else frozenset(ids))
        if key not in self._fingerprints:
            if unknown := sorted((key[1] or frozenset()) - {sample.id for sample in self.samples}):
                raise HarnessError(f"ids must be samples of {self.name}, got {', '.join(unknown)}")
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
        """Cache: configurations share the fingerprints of the same folds."""
        return {}


@dataclass(frozen=True, slots=True)
class SplitSample:
    """The data of a sample that a split may use.

    Parameters
    ----------
    id, subject : all samples of a subject are in the same subset
    targets : targets with one value per sample, for stratification
    covariates : row of the participants table
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
    """Cross-validation folds, and optionally a fixed test set.

    Parameters
    ----------
    folds : cross-validation folds; their ``test`` is empty if there is a fixed test set
    test : sample ids of the fixed test set, which is predicted by the ensemble of all
        folds; empty if every fold has its own test set
    """

    folds: tuple[Split, ...]
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One named input array of a network.

    Parameters
    ----------
    name : e.g. ``"image"``, ``"age"``
    channels : names of the channels, in order
    shape : spatial shape if it is the same for all items, otherwise empty; () for scalars
    explained : whether attributions are computed for it
    unchanged : whether it is the image of the cohort without changes by the adapter, so
        that the explanation of an exact model is known
    """

    name: str
    channels: tuple[str, ...]
    shape: tuple[int, ...] = ()
    explained: bool = True
    unchanged: bool = True


@dataclass(frozen=True)
class NetworkSpec:
    """Inputs and targets of a network.

    Parameters
    ----------
    inputs : inputs in the order of the network's arguments
    targets : targets in the order of the network's outputs
    """

    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]

    @property
    def explained(self) -> tuple[int, ...]:
        """Indices of the explained inputs."""
        return tuple(number for number, one in enumerate(self.inputs) if one.explained)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of all explained inputs, in order."""
        return tuple(name for one in self.inputs if one.explained for name in one.channels)

    @property
    def width(self) -> int:
        """Total number of output channels."""
        return sum(target.width for target in self.targets)


Prediction = Mapping[str, Mapping[str, Array]]
"""Target → stored arrays of its prediction, by name; see :mod:`harness.core.targets`."""


@runtime_checkable
class Remarks(Protocol):
    """An adapter that tells which data it cannot use."""

    def notes(self, cohort: Cohort) -> tuple[str, ...]:
        """Sentences for the user; empty if there is nothing to say."""
        ...


class Adapter(Protocol):
    """Converts samples to network inputs, and network outputs to predictions.

    A sample is split into N >= 1 items: slices, volumes or patches that the network
    processes independently.
    """

    @property
    def reads(self) -> Reads:
        """The data of a sample that the adapter reads, without the targets."""
        ...

    def spec(self, cohort: Cohort) -> NetworkSpec:
        """Inputs and targets of a network for this cohort.

        Raises
        ------
        HarnessError
            If the cohort lacks data that the adapter needs.
        """
        ...

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        """Network inputs of all items, (N, C, *space) float32 for each input, in a fixed order."""
        ...

    def targets(self, sample: Sample, targets: Sequence[Target]) -> dict[str, Array]:
        """Training targets of all items by name, (N, …).

        Masks and classes are int64, numbers and binary labels float32.
        """
        ...

    def to_prediction(self, outputs: Mapping[str, Array], sample: Sample, targets: Sequence[Target]) -> Prediction:
        """Convert the outputs for all items of a sample, (N, width, *space) per target, to a prediction."""
        ...

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Convert maps of one explained input, (N, C, *space), to the space of the sample's images, (C, …)."""
        ...


@runtime_checkable
class FittedAdapter(Adapter, Protocol):
    """An adapter that is fitted to the training samples."""

    def fit(self, training: Sequence[Sample], targets: Sequence[Target]) -> FittedAdapter:
        """Return a fitted copy of the adapter."""
        ...

    @property
    def state(self) -> Mapping[str, Array]:
        """Fitted parameters by name; empty if the options require none."""
        ...

    def load_state(self, state: Mapping[str, Array]) -> FittedAdapter:
        """Return a copy of the adapter with this state."""
        ...

    def explained(self, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
        """Split each input into an explained array and one that is added before the network.

        Their sum is the array of :meth:`inputs`. The explained array is zero where the
        image is empty, so that a baseline of zero means absence.
        """
        ...


@runtime_checkable
class SparseAdapter(Adapter, Protocol):
    """An adapter with one sparse item per sample, which can be read without a dense array."""

    def voxels(self, sample: Sample) -> tuple[Array, Array]:
        """Non-zero voxels of the item: flat indices in C order, (N,), and values, (N,) float32."""
        ...


@dataclass(frozen=True)
class Score:
    """One value of the leaderboard.

    Parameters
    ----------
    value : point estimate; NaN if it could not be computed
    low, high : 95 % confidence interval over subjects; NaN if there is none
    n : number of subjects with a value
    se : standard error; NaN if there is no interval
    missing : number of subjects for which the metric is undefined
    chance, ceiling : score without skill and best possible score; NaN if unknown
    reason : why there is no interval; empty if there is one, or if none is computed
    """

    value: float
    low: float
    high: float
    n: int
    se: float = float("nan")
    missing: int = 0
    chance: float = float("nan")
    ceiling: float = float("nan")
    reason: str = ""

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
