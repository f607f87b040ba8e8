"""Initial weights of a backbone from a lab's own state dict or a published one.

Components read no files. A model that is registered with ``pretrained=True`` has an
option ``weights``, a file, which :mod:`harness.pipeline.initial_weights` reads, and a
method ``load_pretrained``, which receives the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from harness.core.errors import RequestError

__all__ = ["Pretrained", "load_backbone"]


@runtime_checkable
class Pretrained(Protocol):
    """A network whose backbone can start from given weights."""

    def load_pretrained(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Load the weights of the backbone.

        Parameters
        ----------
        state : weights by torchvision's names

        Returns
        -------
        tuple of str
            Names that were ignored, e.g. those of the classifier.

        Raises
        ------
        RequestError
            If the weights do not fit; lists all faults.
        """
        ...


def load_backbone(
    network: nn.Module, state: Mapping[str, Tensor], *, own: Sequence[str], ignored: Sequence[str]
) -> tuple[str, ...]:
    """Load a state dict into all of a network except its own layers.

    Parameters
    ----------
    network : the network; unchanged if there is a fault
    state : weights by name
    own : prefixes of the network's own names, which have no counterpart in ``state``
    ignored : prefixes of names in ``state`` that are not loaded, e.g. ``fc.``

    Returns
    -------
    tuple of str
        Sorted names in ``state`` that were ignored. ``num_batches_tracked``, which does not
        change a result, may be missing.

    Raises
    ------
    RequestError
        Lists all names that are missing or unexpected, tensors of another shape, and values
        that are not finite.
    """
    needed = {name: one for name, one in network.state_dict().items() if not name.startswith(tuple(own))}
    given = {name: one for name, one in state.items() if not name.startswith(tuple(ignored))}
    faults = [f"missing: {name}" for name in needed if name not in given and not name.endswith("num_batches_tracked")]
    faults += [f"unexpected: {name}" for name in given if name not in needed]
    for name in needed:
        if name not in given:
            continue
        if given[name].shape != needed[name].shape:
            faults.append(f"{name} has the shape {tuple(given[name].shape)}, expected {tuple(needed[name].shape)}")
        elif not given[name].isfinite().all():
            faults.append(f"{name} has values that are not finite")
    if faults:
        raise RequestError(
            f"initial weights must have torchvision's names and the shapes of {type(network).__name__.strip('_')} with "
            f"the options given (model.width, number of channels): {'; '.join(faults)}; "
            "choose the file of this network, or set model.weights=null"
        )
    network.load_state_dict(given, strict=False)
    return tuple(sorted(set(state) - set(given)))
