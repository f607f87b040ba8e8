"""Train, explain, score and rank every model of a medical-imaging experiment.

Stable names for scripts and notebooks, each imported when it is first used::

    harness.run(task="epvs", sequences=("T2w", "FLAIR"))
    harness.models.build("unet", in_channels=2)
    harness.attribution.attribute("saliency", model, inputs, targets=[0])
    harness.metrics.compute("dice", prediction=a, target=b)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.cli.api import plan, run, table

__all__ = ["plan", "run", "table"]

_FUNCTIONS = {"plan", "run", "table"}
_MODULES = {"attribution", "metrics", "models", "statistics", "testing"}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("harness.cli.api"), name)
    if name in _MODULES:
        return importlib.import_module(f"harness.{name}")
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
