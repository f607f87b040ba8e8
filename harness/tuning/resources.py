"""Resources of this machine or of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.core.errors import RequestError
from harness.core.machine import usable_cores
from harness.core.passwords import without_password
from harness.core.settings import RunSettings
from harness.tuning.jobs import check_resources, session
from harness.tuning.preflight import check_cluster
from harness.tuning.remote import is_remote

__all__ = ["Resources", "check_request", "cluster", "resources", "room"]


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
        return _machine()
    with session(settings):
        found = cluster()
    return Resources(found.cpus, found.gpus, f"the cluster at {settings.ray} ({found.where})")


def _machine() -> Resources:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(usable_cores(), gpus, "this machine")


def check_request(settings: RunSettings) -> None:
    """Refuse resources that can never be granted, before the cohort is read.

    Raises
    ------
    RequestError
        If the address is that of Ray Jobs, or this machine, or every node of the
        cluster, has fewer CPUs or GPUs than one job requests, or if a node of the
        cluster lacks the folders, the code or versions.

    Notes
    -----
    Each node of a cluster is asked what it sees and has
    (:func:`harness.tuning.preflight.check_nodes`).
    """
    if is_remote(settings.ray):
        raise RequestError(
            f"only the command `harness run` can run through Ray Jobs, got ray={without_password(settings.ray)}; "
            "set ray=HOST:PORT of the cluster, usually port 6379, on a machine of it"
        )
    if settings.ray not in ("auto", "off"):
        with session(settings):
            check_resources(settings)
            if settings.ray != "local":
                check_cluster(settings)
        return
    if settings.ray == "auto" and _in_session():  # of a notebook; it is checked when it is used
        return
    there = _machine()
    lacks = [
        f"{key}={wanted:g}, but it has {has:g} {what}"
        for key, wanted, has, what in (
            ("cpus", settings.cpus, there.cpus, "CPUs that this process may use"),
            ("gpus", settings.gpus, there.gpus, "GPUs that torch can use (see harness doctor)"),
        )
        if wanted > has
    ]
    if lacks:
        raise RequestError(
            f"this machine must have the resources of one job, {'; '.join(lacks)}. Request less, or set "
            "ray=ADDRESS of a cluster"
        )


def _in_session() -> bool:
    import ray

    return bool(ray.is_initialized())


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
