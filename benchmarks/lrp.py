"""What does a map by layer-wise relevance propagation cost, relative to a gradient?

Explains the published network of the MS disability study, with three contrasts of 96 × 96 × 112
voxels, and compares the time with that of a forward and a backward pass in the same run.

    python benchmarks/lrp.py [repeats=3] [size=96,96,112] [threads=1]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from harness.attribution.lrp import COMPOSITES
from harness.attribution.lrp_tape import Composite, propagate, record
from harness.core.targets import Target
from harness.core.types import Input
from harness.models.attention import attention_densenet

CONTRASTS = ("qT1", "MWF", "NDI")


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
    shape = tuple(int(one) for one in given.get("size", "96,96,112").split(","))
    repeats = int(given.get("repeats", 3))
    torch.set_num_threads(int(given.get("threads", 1)))
    torch.manual_seed(0)
    inputs = (Input("image", CONTRASTS, shape), Input("age", ("age",), explained=False))
    network = attention_densenet(inputs, (Target("severe", "binary"),)).eval()
    image, age = torch.rand(1, 3, *shape), torch.tensor([[0.46]])

    def gradient() -> None:
        x = image.clone().requires_grad_()
        network(x, age).sum().backward()

    class OfImage(torch.nn.Module):
        """The network with a fixed age."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.network(x, age)
            return result

    model = OfImage()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    base = fastest(gradient, repeats)
    print(f"forward and backward pass: {base:.2f} s")
    for name, composite in COMPOSITES.items():

        def relevance(composite: Composite = composite) -> None:
            tape = record(model, (image,))
            propagate(tape, tape.value, composite)

        found = fastest(relevance, repeats)
        print(f"{name:18} {found:6.2f} s  {found / base:.2f} times")


if __name__ == "__main__":
    main(sys.argv[1:])
