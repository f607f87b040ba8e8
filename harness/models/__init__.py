"""Networks: plain functions that build a ``torch.nn.Module``.

A model builder takes ``in_channels`` and ``outputs`` first and its own options
after ``*``. It gives a module that maps (N, in_channels, *space) float to
(N, outputs, *space) or (N, outputs) logits; softmax and sigmoid belong to the
loss. ``harness.testing.check_model`` says what else must hold.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from harness.core.errors import UnknownName
from harness.core.registry import MODELS
from harness.core.seeding import seed_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build"]


def build(name: str, *, seed: int | None = None, **options: Any) -> nn.Module:
    """A new, untrained network.

    Parameters
    ----------
    name : of a registered model, e.g. ``"unet"``
    seed : of the initial weights; the global generators are as before
        afterwards. ``None`` draws the weights from torch's global generator.
    options : of the model, e.g. ``in_channels=2, width=16``

    Raises
    ------
    UnknownName
        If no model, or no option of this model, has that name.
    """
    import torch

    function = MODELS.get(name).function
    known = inspect.signature(function).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UnknownName(f"option of model {name}", unknown[0], known)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed_of(seed, "model"))
        network: nn.Module = function(**options)
    return network
