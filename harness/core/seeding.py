"""Named streams of random numbers.

Each use of randomness has its own stream with its own name (``"training"``,
``"attribution", "gradient_shap"``, …), so that adding one never changes the
numbers of another.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator", "seed_of"]


def seed_of(seed: int, *names: str | int) -> int:
    """63-bit seed of a stream, e.g. for ``torch.manual_seed``.

    Parameters
    ----------
    seed : seed of the run
    names : name of the stream
    """
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy generator of a stream (see :func:`seed_of`)."""
    return np.random.default_rng(seed_of(seed, *names))
