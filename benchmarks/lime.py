"""What does a multi-scale LIME map cost, relative to the forward passes that it needs?

Explains one generated patch with 4² to 20² superpixels and ten images per superpixel, and
compares the time with that of forward passes alone, in equal batches of such images, which
are made outside the measured time. Both alternate, so that other load affects both.

    python benchmarks/lime.py [model=small_cnn] [width=16] [repeats=3] [threads=1] [levels=16,25,36]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from harness import models
from harness.attribution import attribute
from harness.attribution.lime import LEVELS
from harness.attribution.lime_segments import segments_of
from harness.simulation.histology import histology_phantom

BATCH, PER_SEGMENT = 64, 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(function: Callable[[], object]) -> float:
    """Time of a call, including what runs on the GPU."""
    start = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    """Print times and ratios."""
    given = dict(one.split("=", 1) for one in arguments)
    levels = tuple(int(one) for one in given["levels"].split(",")) if "levels" in given else LEVELS
    torch.set_num_threads(int(given.get("threads", 1)))
    torch.manual_seed(0)
    options = {"width": int(given["width"])} if "width" in given else {}
    name = given.get("model", "small_cnn")
    network = models.build(name, in_channels=3, outputs=1, image_shape=(96, 96), **options).eval().to(DEVICE)
    patch = histology_phantom(0, 0, patches=1)[0].image
    image = torch.from_numpy(np.moveaxis(patch, -1, 0).astype(np.float32) / 255)[None].to(DEVICE)
    array = image[0].cpu().numpy()
    made = [segments_of(array, "slic", count=level, compactness=5.0) for level in levels]
    counts = [PER_SEGMENT * (int(labels.max()) + 1) for labels in made]
    rng = np.random.default_rng(0)

    @torch.no_grad()
    def forwards() -> float:
        total = 0.0
        for labels, count in zip(made, counts, strict=True):
            for start in range(0, count, BATCH):
                shown = rng.random((min(BATCH, count - start), int(labels.max()) + 1)) < 0.5
                images = image * torch.from_numpy(shown[:, labels])[:, None].to(image)
                total += seconds(partial(network, images))
        return total

    def explain() -> None:
        attribute(
            "multiscale_lime", network, image, [0], levels=levels, per_segment=PER_SEGMENT, batch_size=BATCH,
            response="probability",
        )  # fmt: skip

    def segmentation() -> None:
        for level in levels:
            segments_of(array, "slic", count=level, compactness=5.0)

    forwards(), explain()  # warm up
    pairs = [(seconds(explain), forwards()) for _ in range(int(given.get("repeats", 3)))]
    wall, pure = (statistics.median(several) for several in zip(*pairs, strict=True))
    ratio = statistics.median(first / second for first, second in pairs)
    print(f"{name} on {DEVICE.type}, {len(levels)} scales, {sum(counts):,} images")
    print(f"LIME {wall:.2f} s, of which superpixels {seconds(segmentation):.2f} s")
    print(f"forward passes alone {pure:.2f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
