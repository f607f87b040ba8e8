"""The training loop and inference, in a plain process."""

from __future__ import annotations

import copy
import ctypes
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse
import torch

from harness.core.errors import CellError
from harness.core.seeding import generator, seed_of
from harness.core.types import Array, Sample, SparseView, View
from harness.models.fitting import Fitted
from harness.recipes.recipe import Recipe

__all__ = ["HELD_BYTES", "Epoch", "Trained", "controlled", "device", "infer", "train"]

Report = Callable[["Epoch"], None]

HELD_BYTES = 512 * 1024**2
"""Inputs of sparse images beyond this are decoded batch by batch."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training items gave.

    Parameters
    ----------
    epoch : from 1
    loss : mean over the items
    validation : what the recipe selects by; NaN if it keeps the last epoch
    """

    epoch: int
    loss: float
    validation: float


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Parameters
    ----------
    weights : state dict on the CPU
    history : one entry per epoch
    best_epoch : whose weights these are
    view : with what it learned of the training samples
    """

    weights: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    view: View


def device() -> torch.device:
    """A GPU that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def controlled(threads: int, seed: int) -> Iterator[None]:
    """Fix torch's threads and global generator, and put both back afterwards.

    Ray grants one thread per CPU and plain torch takes all cores; results
    differ between the two and repeat exactly at equal threads.
    """
    before, state = torch.get_num_threads(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _return_memory()


def _return_memory() -> None:
    """Give back what is free: glibc keeps it, and a worker that lives through a sweep grows to gigabytes."""
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def train(
    build: Callable[[], torch.nn.Module],
    recipe: Recipe,
    view: View,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    seed: int,
    report: Report | None = None,
) -> Trained:
    """Train a network from scratch.

    Parameters
    ----------
    build : makes the network; weights are drawn from the stream ``model``
    training, validation : samples; validation may be empty if the recipe keeps the last epoch
    seed : of the streams ``model`` and ``training``
    report : is told every epoch

    Raises
    ------
    CellError
        If the loss is not finite, with the epoch, or if the recipe selects an
        epoch and there are no validation samples.

    Notes
    -----
    A model that fits itself (:class:`~harness.models.fitting.Fitted`) has no epochs
    and sees no validation samples.
    """
    view = view.fit(training)
    with controlled(recipe.threads, seed_of(seed, "model")):
        model = build().to(device())
        if isinstance(model, Fitted):
            return _fit(model, view, training, seed)
        return _descend(model, recipe, view, training, validation, seed=seed, report=report)


def _fit(model: Fitted, view: View, training: Sequence[Sample], seed: int) -> Trained:
    """Let a model fit itself to sparse lesion maps."""
    if not isinstance(view, SparseView):
        raise CellError(f"{type(model).__name__} is fitted to whole lesion maps; take view=lesion_volume")
    if getattr(model, "reads_masks", False) and not view.plain:
        raise CellError(
            f"{type(model).__name__.strip('_')} reads lesioned fractions of voxels, which this view does not leave as "
            "they are; take volume_control=none or regress_behaviour (a mass-univariate map also: "
            "model.statistic=regression)"
        )
    rows = [view.voxels(sample) for sample in training]
    lesions = scipy.sparse.csr_array(
        (
            np.concatenate([values for _, values in rows]).astype(np.float32),
            np.concatenate([voxels for voxels, _ in rows]),
            np.cumsum([0, *(len(voxels) for voxels, _ in rows)]),
        ),
        shape=(len(rows), int(np.prod(view.shape))),
    )
    targets = np.concatenate([view.targets(sample) for sample in training]).astype(np.float64)
    torch.manual_seed(seed_of(seed, "training"))
    model.fit(lesions, targets, rng=generator(seed, "training"))
    assert isinstance(model, torch.nn.Module)
    return Trained(_on_cpu(model.state_dict()), (), 0, view)


def _descend(
    model: torch.nn.Module,
    recipe: Recipe,
    view: View,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    seed: int,
    report: Report | None,
) -> Trained:
    """Gradient descent, as the recipe has it."""
    if recipe.select is not None and not validation:
        raise CellError(
            "validation samples > 0 must hold for a recipe that selects an epoch by them, got none; "
            "say recipe.select=last, or change the split"
        )
    items = _gather(view, training)
    held_out = _gather(view, validation) if validation else None
    if len(items.shape) == 3:  # a quarter faster on CPUs for networks of few channels, and on GPUs
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = generator(seed, "training")
    torch.manual_seed(seed_of(seed, "training"))  # dropout
    optimiser = recipe.optimiser(list(model.parameters()))
    steps = [group["lr"] for group in optimiser.param_groups]
    history: list[Epoch] = []
    best, best_epoch, weights = -math.inf, 0, model.state_dict()
    for number in range(1, recipe.epochs + 1):
        for group, lr in zip(optimiser.param_groups, steps, strict=True):
            group["lr"] = lr * recipe.lr_factor(number)
        loss = _one_epoch(model, recipe, optimiser, rng, items)
        if not math.isfinite(loss):
            raise CellError(f"the loss became {loss} in epoch {number}; try a smaller recipe.lr")
        value = math.nan
        if recipe.select is not None and held_out is not None:
            value = recipe.select(_outputs(model, held_out, recipe.batch_size), held_out.targets)
        history.append(Epoch(number, loss, value))
        if recipe.select is None or value > best:
            best, best_epoch = value, number
            if recipe.select is not None or number == recipe.epochs:
                weights = copy.deepcopy(model.state_dict())
        if report is not None:
            report(history[-1])
    return Trained(_on_cpu(weights), tuple(history), best_epoch, view)


def _on_cpu(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clones: tied weights share memory, which safetensors refuses."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def infer(model: torch.nn.Module, view: View, sample: Sample, *, batch_size: int) -> dict[str, Array]:
    """Predict one sample; what is kept of it, as the view, which knows the training samples, defines that."""
    inputs = torch.from_numpy(view.inputs(sample))
    return view.prediction(_outputs(model, _Held(inputs, inputs), batch_size).cpu().numpy(), sample)


class _Items(Protocol):
    """Training items, the inputs on demand."""

    @property
    def targets(self) -> torch.Tensor:
        """What the network should say of each."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *space) of an item."""
        ...

    def take(self, chosen: torch.Tensor) -> torch.Tensor:
        """Inputs of some items, (N, C, *space)."""
        ...


@dataclass(frozen=True)
class _Held:
    """Items in memory."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:])

    def take(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.inputs[chosen]


@dataclass(frozen=True)
class _Streamed:
    """Samples of one item each, decoded for each batch: a cohort's lesion maps are 12 GB as floats."""

    view: SparseView
    samples: Sequence[Sample]
    targets: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.view.channels), *self.view.shape)

    def take(self, chosen: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([self.view.inputs(self.samples[index]) for index in chosen.tolist()]))


def _gather(view: View, samples: Sequence[Sample]) -> _Items:
    """All items of some samples; images of several sizes are zero-padded at the far ends to one shape."""
    if isinstance(view, SparseView) and len(samples) * math.prod(view.shape) * 4 > HELD_BYTES:
        scores = np.concatenate([view.targets(sample) for sample in samples])
        return _Streamed(view, tuple(samples), torch.from_numpy(scores))
    items = [view.items(sample) for sample in samples]
    inputs, targets = _stacked([item.inputs for item in items]), _stacked([item.targets for item in items])
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return _Held(inputs, targets)


def _stacked(arrays: Sequence[Array]) -> torch.Tensor:
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = [
        np.pad(array, [(0, 0), *((0, int(full) - own) for full, own in zip(shape, array.shape[1:], strict=True))])
        for array in arrays
    ]
    return torch.from_numpy(np.concatenate(padded))


def _one_epoch(
    model: torch.nn.Module,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    items: _Items,
) -> float:
    model.train()
    order = recipe.sample(rng, items.targets.numpy())
    total, count = 0.0, 0
    where = device()
    for start in range(0, len(order), recipe.batch_size):
        chosen = torch.from_numpy(order[start : start + recipe.batch_size])
        if len(chosen) == 1 < recipe.batch_size and start:
            continue  # batch normalisation cannot use a single item
        batch, labels = recipe.augment(rng, items.take(chosen), items.targets[chosen])
        loss = recipe.loss(model(batch.to(where)), labels.to(where))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total, count = total + loss.item() * len(chosen), count + len(chosen)
    return total / count


@torch.inference_mode()
def _outputs(model: torch.nn.Module, items: _Items, batch_size: int) -> torch.Tensor:
    """Outputs of all items on the CPU, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        where = next(itertools.chain(model.parameters(), model.buffers())).device
        numbers = torch.arange(len(items.targets)).split(batch_size)
        batches = [model(items.take(chosen).to(where)).cpu() for chosen in numbers]
    finally:
        model.train(was_training)
    return torch.cat(batches)
