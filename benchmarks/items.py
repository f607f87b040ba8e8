"""Memory and time of a training on many patches: read batch by batch, or held in memory as usual.

``python benchmarks/items.py [patches …]`` trains a small network for one epoch on a number
of generated RGB patches of 96 × 96 pixels, with both methods in separate processes. It
prints peak memory (on Linux; without pages of mapped files), seconds, and the ratios
relative to a `TensorDataset` of 32-bit floats in memory. Caching the patches is not
included.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness.adapters.pixels import pixels
from harness.core.targets import Target
from harness.core.types import Cohort, Sample
from harness.data.cache import ArrayCache, CachedImage
from harness.pipeline.train import train
from harness.recipes.supervised import supervised

SIDE, BATCH = 96, 64


def network() -> nn.Module:
    """A small network with one logit."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    )


def ours(images: list[CachedImage], labels: list[float]) -> None:
    """One epoch with the pipeline's training."""
    samples = tuple(
        Sample(f"patch-{number}", f"slide-{number % 50}", {"rgb": image}, {}, {}, targets={"tumour": label})
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    cohort = Cohort("patches", samples, targets=(Target("tumour", "binary"),))
    adapter = pixels()
    recipe = supervised(epochs=1, batch_size=BATCH, select="last")
    train(network, recipe, adapter, adapter.spec(cohort), samples, (), seed=0)


def usual(images: list[CachedImage], labels: list[float]) -> None:
    """One epoch with tensors in memory."""
    torch.set_num_threads(1)
    stacked = torch.from_numpy(np.stack([image.load() for image in images])).permute(0, 3, 1, 2).float() / 255
    loader = DataLoader(TensorDataset(stacked, torch.tensor(labels)), batch_size=BATCH, shuffle=True)
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, targets in loader:
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def measured(way: Callable[..., None], images: list[CachedImage], labels: list[float]) -> tuple[float, float]:
    """Increase of peak memory in MB, and seconds, measured in a separate process."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_child, args=(way, images, labels, queue))
    process.start()
    found: tuple[float, float] = queue.get()
    process.join()
    return found


def _child(way: Callable[..., None], images: list[CachedImage], labels: list[float], queue: Any) -> None:
    way(images[:BATCH], labels[:BATCH])  # imports and buffers are not measured
    before, peak, done = _anonymous_kb(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _anonymous_kb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    way(images, labels)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    queue.put((max(0, peak[0] - before) / 1024, seconds))


def _anonymous_kb() -> int:
    """Memory of this process in kB, without pages of mapped files, which the system can reclaim."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def main() -> None:
    """Print one line for each number of patches."""
    counts = [int(word) for word in sys.argv[1:]] or [2_000, 20_000]
    print(f"{'patches':>9} {'ours, MB':>10} {'usual, MB':>10} {'ratio':>7} {'ours, s':>9} {'usual, s':>9} {'ratio':>7}")
    for count in counts:
        rng = np.random.default_rng(0)
        labels = (rng.random(count) < 0.5).astype(float).tolist()
        with tempfile.TemporaryDirectory() as folder:
            made = ((str(number), rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)) for number in range(count))
            with ArrayCache(Path(folder)) as cache:
                images = [cache.add(key, patch) for key, patch in made]
            (our_mb, our_s), (mb, s) = measured(ours, images, labels), measured(usual, images, labels)
        print(f"{count:>9,} {our_mb:>10.0f} {mb:>10.0f} {our_mb / mb:>7.3f} {our_s:>9.1f} {s:>9.1f} {our_s / s:>7.2f}")


if __name__ == "__main__":
    main()
