"""What a run has to run on, and how many jobs find room."""

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
    ("there", "settings", "expected"),
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
def test_room(there: Resources, settings: RunSettings, expected: int) -> None:
    """The scarcer of cores and GPUs decides, ``workers`` is an upper limit, and there is always one."""
    assert room(there, settings) == expected


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cluster of 64 cores and 4 GPUs at every address; gives the addresses that were asked."""
    asked: list[str] = []

    @contextlib.contextmanager
    def session(settings: RunSettings) -> Iterator[None]:
        asked.append(settings.ray)
        yield

    monkeypatch.setattr(places, "session", session)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0, "memory": 1e9})
    return asked


def test_a_cluster_is_asked_for_what_it_has(large: list[str]) -> None:
    """The driver's own cores say nothing about a cluster."""
    found = resources(RunSettings(ray="10.0.0.1:6379"))
    assert found == Resources(64, 4, "the cluster at 10.0.0.1:6379 (64 CPUs, 4 GPUs)")
    assert large == ["10.0.0.1:6379"]


@pytest.mark.parametrize("ray", ["auto", "off"])
def test_this_machine_needs_no_ray(large: list[str], ray: str) -> None:
    """Counting cores starts nothing."""
    found = resources(RunSettings(ray=ray))
    assert found.where == "this machine" and found.cpus < 64 and large == []


def test_the_estimate_is_that_of_the_cluster(
    large: list[str], tiny_words: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three folds train at once where there is room, and the message above 12 hours says where."""
    words = to_overrides(**tiny_words(tmp_path, ray="10.0.0.1:6379"))
    found = estimate(prepare(resolve(words)))
    assert (found.workers, found.where) == (3, "the cluster at 10.0.0.1:6379 (64 CPUs, 4 GPUs)")
    monkeypatch.setattr(api, "LIMIT_S", 0.0)
    with pytest.raises(RequestError, match=r"on the cluster at \S+ \(64 CPUs, 4 GPUs\), 3 at a time \(15 cells"):
        api.carry_out(words, (), api.Silent())


def test_a_finished_run_asks_no_cluster(
    large: list[str], tiny_words: Callable[..., dict[str, Any]], finished: Path
) -> None:
    """It may be gone by then."""
    assert estimate(prepare(resolve(to_overrides(**tiny_words(finished, ray="10.0.0.1:6379"))))).cells == 0
    assert large == []


def test_an_address_that_nobody_answers_is_told_before_anything_starts() -> None:
    """Planning for a cluster needs the cluster."""
    with pytest.raises(RequestError, match=r"a Ray cluster must be reachable at ray=127\.0\.0\.1:9"):
        resources(RunSettings(ray="127.0.0.1:9"))
