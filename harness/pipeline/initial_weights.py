"""Networks that start from weights in a file (``model.weights=``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.core.errors import CellError, RequestError
from harness.core.registry import MODELS
from harness.core.task import INITIAL_WEIGHTS, Task
from harness.core.types import JSON, NetworkSpec
from harness.models.pretrained import Pretrained
from harness.pipeline.networks import build_network
from harness.storage.files import checksum
from harness.storage.weights import read_weights

__all__ = ["InitialWeights", "check_initial_weights", "initialised"]


@dataclass(frozen=True)
class InitialWeights:
    """A file of initial weights that fits the network.

    Parameters
    ----------
    digest : SHA-256 of the file, part of the identity of a training instead of its path
    note : what was loaded and what was ignored, as a sentence for the user
    """

    digest: str
    note: str


def check_initial_weights(task: Task, spec: NetworkSpec) -> InitialWeights | None:
    """Check before anything is trained that the initial weights fit the network.

    Returns
    -------
    InitialWeights or None
        ``None`` if the weights are drawn at random.

    Raises
    ------
    RequestError
        If the file cannot be read or does not fit the network; lists all faults.
    """
    path = _path(task)
    if path is None:
        return None
    state = read_weights(path)
    with torch.random.fork_rng(devices=[]):
        network = build_network(task, spec)
    ignored = _load(network, task, path, state)
    skipped = f"; ignored: {', '.join(ignored)}" if ignored else ""
    return InitialWeights(checksum(path), f"the backbone starts from {path} ({len(state)} tensors){skipped}")


def initialised(task: Task, spec: NetworkSpec, described: Mapping[str, JSON]) -> torch.nn.Module:
    """Build an untrained network, with the initial weights of its backbone if the task names a file.

    Parameters
    ----------
    task : the task
    spec : specification of the network
    described : the task as JSON, with the digest of the file

    Raises
    ------
    CellError
        If the file has changed since the request was made.
    """
    network, path = build_network(task, spec), _path(task)
    if path is None:
        return network
    if not path.is_file() or checksum(path) != described.get(INITIAL_WEIGHTS):
        raise CellError(f"initial weights must stay unchanged during a run, but {path} was changed or removed")
    _load(network, task, path, read_weights(path))
    return network


def _path(task: Task) -> Path | None:
    """File of the initial weights, or ``None``."""
    if not MODELS.get(MODELS.name_of(task.model.func)).facts.get("pretrained"):
        return None
    given = task.model.keywords.get("weights")
    return None if given is None else Path(given)


def _load(network: torch.nn.Module, task: Task, path: Path, state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    if not isinstance(network, Pretrained):
        raise RequestError(f"model {MODELS.name_of(task.model.func)} must have a method load_pretrained, and has none")
    try:
        return network.load_pretrained(state)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
