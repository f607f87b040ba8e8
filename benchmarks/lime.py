"""What does multi-scale LIME cost beside the forward passes of its own images?

Explains one generated patch on the published scales, 4² to 20² superpixels, with ten images
for each superpixel, and compares the wall time with that of pure forward passes of as many
images, and with the package lime on the segments of one scale, in the same run.

    python benchmarks/lime.py [network=small_cnn|vgg19] [width=16] [repeats=3] [threads=1]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.attribution import attribute
from harness.attribution.lime import LEVELS
from harness.attribution.lime_segments import segments_of
from harness.models.picture_networks import small_cnn, vgg19
from harness.simulation.histology import histology_phantom

BATCH = 64


def fastest(function: Callable[[], object], repeats: int) -> float:
    """Smallest time of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main(arguments: list[str]) -> None:
    """Print times and ratios."""
    given = dict(one.split("=", 1) for one in arguments)
    repeats, width = int(given.get("repeats", 3)), int(given.get("width", 16))
    torch.set_num_threads(int(given.get("threads", 1)))
    torch.manual_seed(0)
    build: Callable[..., torch.nn.Module] = {"small_cnn": small_cnn, "vgg19": vgg19}[given.get("network", "small_cnn")]
    network = build(3, 1, (96, 96), width=width).eval()
    patch = histology_phantom(0, 0, patches=1)[0].image
    image = torch.from_numpy(np.moveaxis(patch, -1, 0).astype(np.float32) / 255)[None]
    numbers: dict[str, Any] = {}
    attribute("multiscale_lime", network, image, [0], numbers=numbers)
    count = 10 * int(numbers["segments"][0, 0])

    @torch.inference_mode()
    def forward() -> None:
        batch = image.repeat(BATCH, 1, 1, 1)
        for start in range(0, count, BATCH):
            network(batch[: min(BATCH, count - start)])

    base = fastest(forward, repeats)
    own = fastest(lambda: attribute("multiscale_lime", network, image, [0], batch_size=BATCH), repeats)
    print(f"{count} images on {len(LEVELS)} scales")
    print(f"forward passes alone       {base:7.2f} s")
    print(f"multi-scale LIME           {own:7.2f} s   {own / base:.2f} times")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lime.lime_image import LimeImageExplainer
    labels = segments_of(image[0].numpy(), "slic", count=100, compactness=10.0)
    samples = 10 * (int(labels.max()) + 1)

    @torch.inference_mode()
    def classify(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits = network(torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float32)))
        return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1).numpy()

    def package() -> None:
        LimeImageExplainer(random_state=0).explain_instance(
            np.moveaxis(image[0].numpy(), 0, -1).astype(np.float64), classify, labels=(1,), top_labels=None,
            hide_color=0, num_samples=samples, batch_size=BATCH, segmentation_fn=lambda x: labels, progress_bar=False,
        )  # fmt: skip

    theirs = fastest(package, repeats)
    ours = fastest(lambda: attribute("lime", network, image, [0], samples=samples, batch_size=BATCH), repeats)
    print(f"package lime, one scale    {theirs:7.2f} s   {samples} images")
    print(f"LIME, the same scale       {ours:7.2f} s   {theirs / ours:.2f} times as fast")


if __name__ == "__main__":
    main(sys.argv[1:])
