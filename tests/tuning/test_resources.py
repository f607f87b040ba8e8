"""Available resources and the number of jobs that run at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli import api
from harness.core.errors import RequestError
from harness.core.settings import RunSettings
from harness.sweep.estimate import estimate
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import prepare
from harness.sweep.request import resolve
from harness.tuning import resources as places
from harness.tuning.resources import Resources, resources, room


@pytest.mark.parametrize(
    ("available", "settings", "expected"),
    [
        (Resources(8, 0, ""), RunSettings(), 8),
        (Resources(8, 0, ""), RunSettings(cpus=3), 2),
        (Resources(8, 2, ""), RunSettings(gpus=0.5), 4),
        (Resources(8, 0, ""), RunSettings(gpus=1), 1),
        (Resources(8, 0, ""), RunSettings(workers=3), 3),
        (Resources(2, 0, ""), RunSettings(workers=3), 2),
        (Resources(8, 0, ""), RunSettings(ray="off"), 1),
    ],
)
def test_room(available: Resources, settings: RunSettings, expected: int) -> None:
    """Cores and GPUs limit the number of jobs, as does ``workers``, and at least one job runs."""
    assert room(available, settings) == expected


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cluster with 64 cores and 4 GPUs at every address; returns the addresses used."""
    addresses: list[str] = []

    @contextlib.contextmanager
    def session(settings: RunSettings) -> Iterator[None]:
        addresses.append(settings.ray)
        yield

    monkeypatch.setattr(places, "session", session)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0, "memory": 1e9})
    return addresses


def test_resources_of_a_cluster(large: list[str]) -> None:
    """Resources of a cluster are those reported by Ray."""
    found = resources(RunSettings(ray="10.0.0.1:6379"))
    assert found == Resources(64, 4, "the cluster at 10.0.0.1:6379 (64 CPUs, 4 GPUs)")
    assert large == ["10.0.0.1:6379"]


@pytest.mark.parametrize("ray", ["auto", "off"])
def test_resources_of_this_machine_need_no_ray(large: list[str], ray: str) -> None:
    """Resources of this machine are counted without Ray."""
    found = resources(RunSettings(ray=ray))
    assert found.where == "this machine" and found.cpus < 64 and large == []


def test_estimate_uses_the_cluster(
    large: list[str], tiny_overrides: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate uses the resources of the cluster, and the message names it."""
    overrides = to_overrides(**tiny_overrides(tmp_path, ray="10.0.0.1:6379"))
    found = estimate(prepare(resolve(overrides)))
    assert (found.workers, found.where) == (3, "the cluster at 10.0.0.1:6379 (64 CPUs, 4 GPUs)")
    monkeypatch.setattr(api, "LIMIT_S", 0.0)
    with pytest.raises(
        RequestError, match=r"on the cluster at \S+ \(64 CPUs, 4 GPUs\), with 3 jobs at a time \(15 cells"
    ):
        api.carry_out(overrides, (), api.Silent())


def test_finished_run_does_not_connect_to_the_cluster(
    large: list[str], tiny_overrides: Callable[..., dict[str, Any]], finished: Path
) -> None:
    """Estimating a finished run does not connect to the cluster."""
    assert estimate(prepare(resolve(to_overrides(**tiny_overrides(finished, ray="10.0.0.1:6379"))))).cells == 0
    assert large == []


def test_address_without_a_cluster_is_refused() -> None:
    """An address without a Ray cluster raises an error."""
    with pytest.raises(RequestError, match=r"a Ray cluster must be reachable at ray=127\.0\.0\.1:9"):
        resources(RunSettings(ray="127.0.0.1:9"))
