"""The train stage: train a network by gradient descent, or fit a model that fits itself."""

from __future__ import annotations

import copy
import ctypes
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from harness.core.errors import CellError
from harness.core.seeding import generator, seed_of
from harness.core.types import Adapter, Array, FittedAdapter, NetworkSpec, Sample, SparseAdapter
from harness.models.fitting import Fitted, FittedToVolumes, Summarises
from harness.pipeline.items import Items, batches, open_items
from harness.pipeline.networks import device, split_outputs
from harness.recipes.recipe import Batch, Outputs, Recipe

__all__ = ["Epoch", "Trained", "controlled", "train"]

Report = Callable[["Epoch"], None]

_BLOCK = 64  # samples that are summarised at a time


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch.

    Parameters
    ----------
    epoch : number of the epoch, from 1
    loss : mean loss over the items
    validation : selection value of the recipe; NaN if the last epoch is used
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
    best_epoch : epoch of the weights
    adapter : adapter, fitted if necessary
    """

    weights: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    adapter: Adapter


@contextmanager
def controlled(threads: int, seed: int) -> Iterator[None]:
    """Set torch's number of threads and seed for the duration of a ``with`` block.

    Ray grants one thread per CPU, whereas torch uses all cores by default. Results depend
    on the number of threads, and are reproducible for equal numbers.
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
    """Return free memory to the system; glibc keeps it, so that long-lived workers would grow to gigabytes."""
    with suppress(OSError, AttributeError):  # other C libraries do not have this function
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def train(
    build: Callable[[], torch.nn.Module],
    recipe: Recipe,
    adapter: Adapter,
    spec: NetworkSpec,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    seed: int,
    report: Report | None = None,
) -> Trained:
    """Train a network from scratch.

    Parameters
    ----------
    build : builds the network; its weights are drawn from the stream ``model``
    recipe : the recipe
    adapter : the adapter
    spec : specification of the network
    training, validation : samples; validation may be empty if the recipe uses the last epoch
    seed : seed of the streams ``model`` and ``training``
    report : called after every epoch

    Raises
    ------
    CellError
        If the loss or the validation value is not finite, or if the recipe selects an
        epoch and there are no validation samples.

    Notes
    -----
    A model that fits itself (:class:`~harness.models.fitting.Fitted`) has no epochs and
    does not use validation samples.
    """
    if isinstance(adapter, FittedAdapter):
        adapter = adapter.fit(training, spec.targets)
    with controlled(recipe.threads, seed_of(seed, "model")):
        model = build().to(device())
        if isinstance(model, FittedToVolumes):
            return _fit_volumes(model, adapter, spec, training)
        if isinstance(model, Fitted):
            return _fit(model, adapter, spec, training, seed)
        return _descend(model, recipe, adapter, spec, training, validation, seed=seed, report=report)


def _fit(model: Fitted, adapter: Adapter, spec: NetworkSpec, training: Sequence[Sample], seed: int) -> Trained:
    """Fit a model that fits itself, to sparse lesion maps."""
    name = type(model).__name__.strip("_")
    if not isinstance(adapter, SparseAdapter):
        raise CellError(
            f"{name} needs sparse images, but the adapter {type(adapter).__name__} does not provide them; choose an "
            "adapter with `voxels`, or a model that is trained by gradient descent"
        )
    changed = [one.name for one in spec.inputs if not one.unchanged]
    if getattr(model, "reads_masks", False) and changed:
        raise CellError(
            f"{name} reads the images of the cohort unchanged, but the adapter changes {', '.join(changed)}; choose "
            "options of the adapter that do not change it, or options of the model that support any values"
        )
    weighted = sorted({name for sample in training for name, weight in sample.weights.items() if weight != 1})
    if weighted:
        raise CellError(
            f"{name} gives all samples equal weight, but samples have weights for {', '.join(weighted)}; choose a "
            "model that is trained by gradient descent, or targets without sample weights"
        )
    rows = [adapter.voxels(sample) for sample in training]
    lesions = scipy.sparse.csr_array(
        (
            np.concatenate([values for _, values in rows]).astype(np.float32),
            np.concatenate([voxels for voxels, _ in rows]),
            np.cumsum([0, *(len(voxels) for voxels, _ in rows)]),
        ),
        shape=(len(rows), int(np.prod(spec.inputs[0].shape))),
    )
    by_sample = [adapter.targets(sample, spec.targets) for sample in training]
    targets = np.array([[one[target.name][0] for target in spec.targets] for one in by_sample]).astype(np.float64)
    torch.manual_seed(seed_of(seed, "training"))
    model.fit(lesions, targets, rng=generator(seed, "training"), **_covariates(adapter, spec, training))
    assert isinstance(model, torch.nn.Module)
    return Trained(_on_cpu(model.state_dict()), (), 0, adapter)


def _fit_volumes(model: FittedToVolumes, adapter: Adapter, spec: NetworkSpec, training: Sequence[Sample]) -> Trained:
    """Fit a model that fits itself to dense volumes, all of which are in memory, or to summaries of them."""
    images, rest = [], []
    for start in range(0, len(training), _BLOCK):
        rows = [adapter.inputs(sample) for sample in training[start : start + _BLOCK]]
        if any(len(one[0]) != 1 for one in rows):
            raise CellError(f"{type(model).__name__} needs one item per sample; choose an adapter of whole volumes")
        if isinstance(model, Summarises):
            images.append(model.summary(np.concatenate([one[0] for one in rows])))
        else:
            images += [one[0] for one in rows]
        rest += [[float(each[0, 0]) for each in one[1:]] for one in rows]
    by_sample = [adapter.targets(sample, spec.targets) for sample in training]
    names = [target.name for target in spec.targets]
    model.fit_volumes(
        np.concatenate(images),
        np.array([[one[name][0] for name in names] for one in by_sample], np.float64),
        covariates=np.array(rest).reshape(len(rest), -1),
        weights=np.array([[sample.weights.get(name, 1.0) for name in names] for sample in training]),
        subjects=[sample.subject for sample in training],
        kinds=[target.kind for target in spec.targets],
    )
    assert isinstance(model, torch.nn.Module)
    return Trained(_on_cpu(model.state_dict()), (), 0, adapter)


def _covariates(adapter: Adapter, spec: NetworkSpec, training: Sequence[Sample]) -> dict[str, Array]:
    """Inputs beside the image, (n, C) float64, as an argument of ``fit``; empty if there are none."""
    if len(spec.inputs) == 1:
        return {}
    rows = [np.concatenate([one.ravel() for one in adapter.inputs(sample)[1:]]) for sample in training]
    return {"covariates": np.array(rows, np.float64)}


def _descend(
    model: torch.nn.Module,
    recipe: Recipe,
    adapter: Adapter,
    spec: NetworkSpec,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    *,
    seed: int,
    report: Report | None,
) -> Trained:
    """Train by gradient descent, as defined by the recipe."""
    if recipe.select is not None and not validation:
        raise CellError(
            "a recipe that selects an epoch needs validation samples, got none; "
            "set recipe.select=last, or change the split"
        )
    with open_items(adapter, training, spec) as items:
        if any(len(shape) == 3 for shape in items.shapes):
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.select is None:
            return _epochs(model, recipe, adapter, spec, items, None, seed=seed, report=report)
        with open_items(adapter, validation, spec) as held_out:
            return _epochs(model, recipe, adapter, spec, items, held_out, seed=seed, report=report)


def _epochs(
    model: torch.nn.Module,
    recipe: Recipe,
    adapter: Adapter,
    spec: NetworkSpec,
    items: Items,
    held_out: Items | None,
    *,
    seed: int,
    report: Report | None,
) -> Trained:
    rng = generator(seed, "training")
    torch.manual_seed(seed_of(seed, "training"))  # dropout
    optimiser = recipe.optimiser(list(model.parameters()))
    steps = [group["lr"] for group in optimiser.param_groups]
    history: list[Epoch] = []
    best, best_epoch, weights = -math.inf, 0, model.state_dict()
    for number in range(1, recipe.epochs + 1):
        for group, lr in zip(optimiser.param_groups, steps, strict=True):
            group["lr"] = lr * recipe.lr_factor(number)
        loss = _one_epoch(model, recipe, spec, optimiser, rng, items)
        if not math.isfinite(loss):
            raise CellError(f"the loss must be finite, got {loss} in epoch {number}; try a smaller recipe.lr")
        value = math.nan if held_out is None else _validation(model, recipe, spec, held_out)
        if held_out is not None and not math.isfinite(value):
            raise CellError(
                f"the validation value must be finite, got {value} in epoch {number}: the network's outputs are not "
                "finite, or the value is undefined for the validation samples. Try a smaller recipe.lr, or "
                "recipe.select=last"
            )
        history.append(Epoch(number, loss, value))
        if held_out is None or value > best:
            best, best_epoch = value, number
            if held_out is not None or number == recipe.epochs:
                weights = copy.deepcopy(model.state_dict())
        if report is not None:
            report(history[-1])
        if held_out is not None and 0 < recipe.patience <= number - best_epoch:
            break
    return Trained(_on_cpu(weights), tuple(history), best_epoch, adapter)


def _on_cpu(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the weights on the CPU; safetensors does not support shared memory of tied weights."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
    }


def _one_epoch(
    model: torch.nn.Module,
    recipe: Recipe,
    spec: NetworkSpec,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    items: Items,
) -> float:
    model.train()
    order = recipe.sample(rng, items.targets)
    if len(order) % recipe.batch_size == 1 and 1 < recipe.batch_size < len(order):
        order = order[:-1]  # batch normalisation cannot use a single item
    total, count = 0.0, 0
    where = device()
    for chosen, read in batches(items, order, recipe.batch_size):
        batch = recipe.augment(rng, read).to(where)
        outputs = split_outputs(model(*batch.inputs), spec.targets)
        loss = recipe.loss(outputs, batch, spec.targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total, count = total + loss.item() * len(chosen), count + len(chosen)
    return total / count


@torch.inference_mode()
def _validation(model: torch.nn.Module, recipe: Recipe, spec: NetworkSpec, items: Items) -> float:
    """Selection value of the recipe over all validation items, in evaluation mode."""
    assert recipe.select is not None
    was_training = model.training
    model.eval()
    try:
        return recipe.select(_outputs(model, spec, items, recipe.batch_size), spec.targets)
    finally:
        model.train(was_training)


def _outputs(
    model: torch.nn.Module, spec: NetworkSpec, items: Items, batch_size: int
) -> Iterator[tuple[Outputs, Batch]]:
    """Outputs of all items on the CPU, with targets and weights, batch by batch."""
    where = next(itertools.chain(model.parameters(), model.buffers())).device
    for _, batch in batches(items, np.arange(len(items)), batch_size):
        heads = split_outputs(model(*batch.to(where).inputs), spec.targets)
        yield {name: head.cpu() for name, head in heads.items()}, Batch((), batch.targets, batch.weights)
