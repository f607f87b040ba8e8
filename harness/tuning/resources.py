"""Resources of this machine or of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.core.machine import usable_cores
from harness.core.settings import RunSettings
from harness.tuning.jobs import session

__all__ = ["Resources", "cluster", "resources", "room"]


@dataclass(frozen=True)
class Resources:
    """Resources for jobs.

    Parameters
    ----------
    cpus, gpus : number of CPUs and GPUs that can be used
    where : description of the machine or cluster
    """

    cpus: float
    gpus: float
    where: str


def resources(settings: RunSettings) -> Resources:
    """Resources of a run; with ``ray=ADDRESS``, those of the cluster, which must be reachable.

    Raises
    ------
    RequestError
        If no cluster responds at the address.
    """
    if settings.ray in ("auto", "off"):
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return Resources(usable_cores(), gpus, "this machine")
    with session(settings):
        found = cluster()
    return Resources(found.cpus, found.gpus, f"the cluster at {settings.ray} ({found.where})")


def cluster() -> Resources:
    """Resources of the current Ray session."""
    import ray

    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    return Resources(cpus, gpus, f"{cpus:g} CPUs, {gpus:g} GPUs")


def room(there: Resources, settings: RunSettings) -> int:
    """Number of jobs, or candidates of a search, that can run at the same time; at least one."""
    if settings.ray == "off":
        return 1
    able = there.cpus / settings.cpus
    if settings.gpus:
        able = min(able, there.gpus / settings.gpus)
    able = max(1, int(able))
    return min(able, settings.workers) if settings.workers else able
