"""Random streams are named, independent and reproducible."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from harness.core.seeding import generator, seed_of


def test_seed_is_the_hash_of_its_names() -> None:
    """The seed is the first 8 bytes of SHA-256 over seed and names, without the sign bit."""
    digest = hashlib.sha256(b"3\x1fsplit\x1f7").hexdigest()[:16]
    assert seed_of(3, "split", 7) == int(digest, 16) // 2


def test_seed_never_changes() -> None:
    """The seed of a stream has a fixed value on every platform and in every version."""
    assert seed_of(0, "model") == 6444945117264671644


def test_same_names_give_the_same_stream() -> None:
    """Two generators of one stream draw the same numbers."""
    assert np.array_equal(generator(1, "a").normal(size=5), generator(1, "a").normal(size=5))


@pytest.mark.parametrize("other", [(2, "a", "b"), (1, "a"), (1, "ab"), (1, "b", "a"), (1, "a", "b", "c")])
def test_other_names_give_other_streams(other: tuple) -> None:
    """Another seed, another name, another order or a joined name gives another stream."""
    assert seed_of(*other) != seed_of(1, "a", "b")


def test_torch_takes_every_seed() -> None:
    """Seeds have at most 63 bits, which torch accepts."""
    seeds = [seed_of(seed, "x") for seed in range(200)]
    assert max(seeds) < 2**63 <= 4 * max(seeds)
    torch.Generator().manual_seed(max(seeds))
