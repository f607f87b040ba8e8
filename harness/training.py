"""The training loop and inference, in a plain process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from harness.errors import CellError
from harness.recipes import Recipe
from harness.seeding import generator, seed_of
from harness.types import Array, Sample, View

__all__ = ["Epoch", "Trained", "controlled", "device", "infer", "train"]

Report = Callable[["Epoch"], None]


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
    """

    weights: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int


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
    """
    if recipe.select is not None and not validation:
        raise CellError(
            "validation samples > 0 must hold for a recipe that selects an epoch by them, got none; "
            "say recipe.select=last, or change the split"
        )
    with controlled(recipe.threads, seed_of(seed, "model")):
        model = build().to(device())
        inputs, targets = _gather(view, training)
        held_out = _gather(view, validation) if validation else None
        if inputs.ndim == 4:  # a quarter faster on CPUs for networks of few channels, and on GPUs
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        rng = generator(seed, "training")
        torch.manual_seed(seed_of(seed, "training"))  # dropout
        optimiser = recipe.optimiser(list(model.parameters()))
        history: list[Epoch] = []
        best, best_epoch, weights = -math.inf, 0, model.state_dict()
        for number in range(1, recipe.epochs + 1):
            loss = _one_epoch(model, recipe, optimiser, rng, inputs, targets)
            if not math.isfinite(loss):
                raise CellError(f"the loss became {loss} in epoch {number}; try a smaller recipe.lr")
            value = math.nan
            if recipe.select is not None and held_out is not None:
                value = recipe.select(_outputs(model, held_out[0], recipe.batch_size), held_out[1])
            history.append(Epoch(number, loss, value))
            if recipe.select is None or value > best:
                best, best_epoch, weights = value, number, copy.deepcopy(model.state_dict())
            if report is not None:
                report(history[-1])
        # Clones: tied weights share memory, which safetensors refuses.
        cpu = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
        }
        return Trained(cpu, tuple(history), best_epoch)


def infer(model: torch.nn.Module, view: View, sample: Sample, *, batch_size: int) -> dict[str, Array]:
    """Predict one sample; arrays in the sample's space, as the view defines them."""
    inputs = torch.from_numpy(view.inputs(sample))
    return view.prediction(_outputs(model, inputs, batch_size).cpu().numpy())


def _gather(view: View, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """All items of some samples, zero-padded at the far ends to one shape."""
    items = [view.items(sample) for sample in samples]
    return _stacked([item.inputs for item in items]), _stacked([item.targets for item in items])


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
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    model.train()
    order = recipe.sample(rng, targets.numpy())
    total, count = 0.0, 0
    where = device()
    for start in range(0, len(order), recipe.batch_size):
        chosen = torch.from_numpy(order[start : start + recipe.batch_size])
        if len(chosen) == 1 < recipe.batch_size and start:
            continue  # batch normalisation cannot use a single item
        batch, labels = recipe.augment(rng, inputs[chosen], targets[chosen])
        loss = recipe.loss(model(batch.to(where)), labels.to(where))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total, count = total + loss.item() * len(chosen), count + len(chosen)
    return total / count


@torch.inference_mode()
def _outputs(model: torch.nn.Module, inputs: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Outputs of all items on the CPU, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        where = next(model.parameters()).device
        batches = [model(batch.to(where)).cpu() for batch in inputs.split(batch_size)]
    finally:
        model.train(was_training)
    return torch.cat(batches)
