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
    # Looks at the nodes from within, see test_preflight.py.
    monkeypatch.setattr(places, "check_cluster", lambda settings: None)
    nodes = [{"CPU": 16.0, "GPU": 2.0, "memory": 1e9}, {"CPU": 48.0, "GPU": 2.0}, {"memory": 1e9}]
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": one} for one in nodes])
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


@pytest.mark.parametrize("settings", [{"cpus": 48, "gpus": 2}, {"gpus": 0.5}, {"cpus": 1}, {"cpus": 16, "gpus": 1}])
def test_request_that_a_node_has_is_accepted(large: list[str], settings: dict[str, float]) -> None:
    """One node has the CPUs and GPUs of a job."""
    places.check_request(RunSettings(ray="10.0.0.1:6379", **settings))


@pytest.mark.parametrize("settings", [{"cpus": 64}, {"gpus": 4}, {"cpus": 49, "gpus": 1}])
def test_request_that_no_node_has_is_refused(large: list[str], settings: dict[str, float]) -> None:
    """The sum over nodes is not sufficient, because a job runs on one node; the message lists what nodes have."""
    with pytest.raises(RequestError, match="its nodes have 16 CPUs, 2 GPUs; 48 CPUs, 2 GPUs; 0 CPUs, 0 GPUs. Request"):
        places.check_request(RunSettings(ray="10.0.0.1:6379", **settings))


def test_nodes_that_left_the_cluster_do_not_count(large: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lists them as not alive."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": False, "Resources": {"CPU": 8.0}}])
    with pytest.raises(RequestError, match="its nodes have none"):
        places.check_request(RunSettings(ray="10.0.0.1:6379", cpus=2))


def test_nodes_of_a_cluster_are_always_examined(large: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of one CPU fits everywhere, but needs the folders and the code."""
    examined: list[RunSettings] = []
    monkeypatch.setattr(places, "check_cluster", examined.append)
    settings = RunSettings(ray="10.0.0.1:6379")
    places.check_request(settings)
    assert (large, examined) == (["10.0.0.1:6379"], [settings])


@pytest.mark.parametrize("ray", ["auto", "off"])
def test_request_that_this_machine_lacks_is_refused(ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs and GPUs in one message."""
    monkeypatch.setattr(places, "usable_cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    places.check_request(RunSettings(ray=ray, cpus=4))
    with pytest.raises(RequestError, match=r"cpus=5, but it has 4 CPUs .*; gpus=0.5, but it has 0 GPUs .* ray=ADDRESS"):
        places.check_request(RunSettings(ray=ray, cpus=5, gpus=0.5))


@pytest.mark.parametrize("command", [api.run, api.plan])
def test_request_is_refused_before_anything_is_read(command: Callable[..., Any], tmp_path: Path) -> None:
    """Neither a folder is created nor a cohort generated."""
    with pytest.raises(RequestError, match="cpus=1000, but it has"):
        command(task="epvs", out=str(tmp_path / "out"), cpus=1000)
    assert list(tmp_path.iterdir()) == []
