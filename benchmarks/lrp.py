"""What does a map by layer-wise relevance propagation cost, relative to a gradient?

Explains the published network of the MS disability study, with three contrasts of 96 × 96 × 112
voxels, from its output and from the attention weights of all contrasts, which share one record of
the forward pass. Compares the processor time (user and system) with that of a forward and a
backward pass in the same run; other jobs on the machine disturb it less than elapsed time. Times
are of `attribute`, with all its checks.

    python benchmarks/lrp.py [repeats=3] [size=96,96,112] [threads=1]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.attribution.lrp import COMPOSITES
from harness.core.targets import Target
from harness.core.types import Input
from harness.models.attention import attention_densenet

CONTRASTS = ("qT1", "MWF", "NDI")


def cheapest(function: Callable[[], object], repeats: int) -> float:
    """Smallest processor time of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


class OfImage(nn.Module):
    """The network with a fixed age; its outputs, or the attention weights."""

    def __init__(self, network: nn.Module, age: Tensor, *, weights: bool) -> None:
        super().__init__()
        self.network, self.age, self.weights = network, age, weights

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, *space) → (N, K)."""
        if self.weights:
            exposed = self.network.exposed(x, self.age)  # type: ignore[operator]
            return torch.stack([exposed[f"attention:{name}"] for name in CONTRASTS], dim=1)
        result: Tensor = self.network(x, self.age)
        return result


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

    base = cheapest(gradient, repeats)
    print(f"forward and backward pass: {base:.2f} s")
    for start, model in (
        ("output", OfImage(network, age, weights=False)),
        ("attention", OfImage(network, age, weights=True)),
    ):
        targets = [0] if start == "output" else list(range(len(CONTRASTS)))
        rows = [(name, "proposal") for name in COMPOSITES] + [("alpha1beta0_box", "all")]
        for composite, product in rows:

            def relevance(
                model: nn.Module = model,
                targets: list[int] = targets,
                composite: str = composite,
                product: str = product,
            ) -> None:
                attribute("lrp", model, image, targets, composite=composite, product=product)

            found = cheapest(relevance, repeats)
            print(f"{start:10} {composite:16} {product:9} {found:6.2f} s  {found / base:.2f} times")


if __name__ == "__main__":
    main(sys.argv[1:])
