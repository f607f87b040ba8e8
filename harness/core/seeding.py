"""Named streams of random numbers.

Every consumer of randomness has a stream of its own, named by what it is for
(``"training"``, ``"attribution", "gradient_shap"``, …). Adding a consumer
therefore never changes the numbers of another.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator", "seed_of"]


def seed_of(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one stream, e.g. for ``torch.manual_seed``.

    Parameters
    ----------
    seed : the user's seed
    names : what the stream is for
    """
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for one stream (see :func:`seed_of`)."""
    return np.random.default_rng(seed_of(seed, *names))
