"""A task whose network and attribution wait for a harm, or do it themselves, inside of a Ray worker.

Installed as a third-party package by :mod:`chaos`. The orders are in a folder, because the
code, the options and therefore the identities must be those of an undisturbed run.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from harness.tasks.epvs import TASK as EPVS
from torch import nn

from harness.attribution.batches import Inputs, Maps
from harness.attribution.controls import random_map
from harness.attribution.gradients import saliency
from harness.core.registry import ATTRIBUTIONS, MODELS
from harness.models.unet import unet

_HOLD_S = 120.0
_MEMORY_BYTES = 2**30  # added by a cell that runs out of memory


def strike(stage: str) -> bool:
    """Take part in a harm, if it is to strike here; returns whether the result must be NaN.

    Parameters
    ----------
    stage : ``train`` or ``explain``
    """
    folder = Path(os.environ.get("CHAOS", "/nonexistent"))
    title = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    if not title.startswith("ray::") or not (folder / "orders.json").is_file():
        return False
    orders = json.loads((folder / "orders.json").read_text())
    if orders["stage"] != stage or _call(folder) != orders["call"]:
        return False
    part = folder / "part"
    part.write_text(json.dumps({"pid": os.getpid(), "title": title, "stage": stage, "call": orders["call"]}))
    part.rename(folder / "inside.json")
    if orders["harm"] == "raise":
        raise RuntimeError("a cell that raises")
    if orders["harm"] == "hang":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if orders["harm"] == "memory":
        _exhaust_memory()
    if orders["harm"] == "segfault":
        ctypes.string_at(0)
    if orders["harm"] == "nan":
        return True
    until_s = time.monotonic() + _HOLD_S
    while not (folder / "struck").exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    return False


def _call(folder: Path) -> int:
    """Number of this call among those of all workers, from 1."""
    number = 1
    while True:
        try:
            (folder / f"call-{number}").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def _exhaust_memory() -> None:
    """Run into a limit of the address space, which is restored for the next cell of this worker."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY_BYTES, before[1]))
    held = []
    try:
        while True:
            held.append(bytearray(2**26))
    finally:
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)


class Exposed(nn.Module):
    """A network that a harm may strike in its first training step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.called = network, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the network."""
        broken = False
        if self.training and not self.called:
            self.called = True
            broken = strike("train")
        logits: torch.Tensor = self.network(x)
        return logits * float("nan") if broken else logits


@MODELS.register("exposed_unet", source="harness")
def exposed_unet(in_channels: int, outputs: int = 2) -> nn.Module:
    """A U-Net with few weights."""
    return Exposed(unet(in_channels, outputs, width=4, depth=1, output_bias=0.0))


@ATTRIBUTIONS.register("exposed_saliency", source="harness", zero_if_ignored=True)
def exposed_saliency(model: nn.Module, inputs: Inputs, targets: list[int]) -> Maps:
    """Saliency that a harm may strike."""
    broken = strike("explain")
    maps = saliency(model, inputs, targets)
    return [tuple(one * float("nan") for one in each) for each in maps] if broken else maps


TASK = replace(
    EPVS,
    name="chaos",
    model=partial(exposed_unet),
    explanations={"saliency": partial(exposed_saliency), "random": partial(random_map)},
    profiles={
        "quick": {
            "recipe.epochs": 1,
            "recipe.batch_size": 4,
            "recipe.lesion_weight": 30.0,
            "recipe.lr": 0.02,
            "recipe.copies": 10,
            "recipe.select": "last",
            "recipe.augmentation": "none",
        }
    },
)
