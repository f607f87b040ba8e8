"""Read a state dict from a file, tensors only."""

from __future__ import annotations

import pickle
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from harness.core.errors import RequestError

__all__ = ["read_weights"]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a state dict, on the CPU.

    Parameters
    ----------
    path : a ``.safetensors`` file, or a file that ``torch.save`` wrote. The latter is read
        without executing code; a dictionary with the state dict under ``state_dict`` is
        accepted

    Returns
    -------
    dict
        name → tensor, at least one

    Raises
    ------
    RequestError
        If there is no such file, it is in another format or damaged, contains other objects
        than tensors, or has no tensor.
    """
    if not path.is_file():
        raise RequestError(f"initial weights must be a file, but there is none at {path}; correct the path")
    state = _read(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise RequestError(
            f"initial weights must be a mapping from names to tensors, got {type(state).__name__} in {path}; "
            "save the network's state_dict()"
        )
    wrong = [f"{name!r} ({type(one).__name__})" for name, one in state.items() if not isinstance(one, torch.Tensor)]
    if wrong:
        raise RequestError(
            f"initial weights must be tensors, but {path} contains {', '.join(wrong)}; save only the state_dict()"
        )
    return {str(name): one.detach() for name, one in state.items()}


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise RequestError(
            f"initial weights must be a state dict of tensors (safetensors or torch.save), but {path} cannot be read "
            f"as one: {first}; save the network's state_dict() with safetensors"
        ) from None
