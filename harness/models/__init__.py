"""Models: plain functions that build a ``torch.nn.Module``.

The parameters of a model builder are ``in_channels`` and ``outputs``, followed by
keyword-only options. The module maps (N, in_channels, *space) float to (N, outputs,
*space) or (N, outputs) logits; softmax and sigmoid belong to the loss. See
``harness.testing.check_model`` for all requirements.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.registry import MODELS
from harness.core.seeding import seed_of
from harness.core.values import checked, checked_options

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build"]

_SIZES = ("in_channels", "outputs")  # parameters of every model
_MOST = 2**16  # channels or outputs; weights of more would fill the memory


def build(name: str, *, seed: int | None = None, **options: Any) -> nn.Module:
    """Build an untrained network.

    Parameters
    ----------
    name : a registered model, e.g. ``"unet"``
    seed : seed of the initial weights, which leaves the global generators unchanged;
        ``None`` uses torch's global generator
    options : options of the model, e.g. ``in_channels=2, width=16``

    Raises
    ------
    UnknownName
        If there is no such model or option.
    OutOfRange
        If an option has the wrong type or violates a bound, names a file of weights, or the
        network does not fit into the memory.
    RequestError
        If an option without a default is missing.
    """
    import torch

    function = MODELS.get(name).function
    known = inspect.signature(function).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UnknownName(f"option of model {name}", unknown[0], known)
    if missing := [one.name for one in known.values() if one.default is one.empty and one.name not in options]:
        raise RequestError(f"{', '.join(missing)} of model {name} must be given, as there is no default")
    options = checked_options(function, options, f"model {name}")
    if MODELS.get(name).facts.get("pretrained") and options.get("weights") is not None:
        raise OutOfRange(
            f"weights of model {name} must be null here, as build reads no file, got {str(options['weights'])!r}; "
            "pass the tensors to load_pretrained(state) of the network"
        )
    options |= {key: checked(Annotated[int, Gt(0), Le(_MOST)], options[key], key) for key in _SIZES if key in options}
    if "inputs" in options and not options["inputs"]:
        raise OutOfRange(f"inputs of model {name} must have at least one input, the image, got {options['inputs']!r}")
    if seed is not None:
        seed = checked(Annotated[int, Ge(0)], seed, "seed")
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed_of(seed, "model"))
        try:
            network: nn.Module = function(**options)
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise OutOfRange(
                f"model {name} does not fit into the memory with these options; reduce its sizes"
            ) from error
    return network
