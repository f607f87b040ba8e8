"""Searches whose studies are in a database: they go on where they were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.core.errors import RequestError, StoreError
from harness.core.settings import RunSettings
from harness.tuning import trials
from harness.tuning.studies import _storage, check_optuna

Overrides = Callable[..., dict[str, Any]]
SEARCH = {
    "search": "optuna", "recipe.lr": "tag(search,log,interval(1e-4,1e-2))", "recipe.epochs": "2", "trials": "5",
    "fold": "0", "attribution": "none",
    "phantom_subjects": 5, "phantom.shape": [24, 24, 8], "phantom.density": 4000,
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URI of a database."""
    yield f"sqlite:///{tmp_path / 'studies.db'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    assert _storage.cache_info().currsize == 0  # connections are closed


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Values of the candidates that were trained; training takes no time."""
    seen: list[Mapping[str, Any]] = []

    def train_candidate(search: Any, values: Mapping[str, Any], cohort: Any, report: Callable[..., None]) -> None:
        seen.append(values)
        for epoch in (1, 2):
            report(epoch, values["recipe.lr"] * epoch)

    monkeypatch.setattr(trials, "train_candidate", train_candidate)
    return seen


def ask(tiny_overrides: Overrides, out: Path, **more: Any) -> dict[str, Any]:
    """Overrides of a search of one fold."""
    return {**tiny_overrides(out, data=None, exclude=None, recipe__select=None), **SEARCH, **more}


def studies(database: str) -> dict[str, list[str]]:
    """States of the trials of each study."""
    import optuna

    storage = optuna.storages.RDBStorage(database)
    found = {}
    for study in optuna.get_all_study_summaries(storage):
        loaded = optuna.load_study(study_name=study.study_name, storage=storage)
        found[study.study_name] = sorted(trial.state.name for trial in loaded.get_trials(deepcopy=False))
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_interrupted_search_goes_on(
    database: str,
    tiny_overrides: Overrides,
    tmp_path: Path,
    trained: list[Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished candidates are not trained again, the interrupted one is, and the study has no twin and no password."""
    overrides = ask(tiny_overrides, tmp_path / "runs", optuna=database)
    whole = trials.train_candidate

    def interrupted(search: Any, values: Mapping[str, Any], cohort: Any, report: Callable[..., None]) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        whole(search, values, cohort, report)

    monkeypatch.setattr(trials, "train_candidate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.run(**overrides)
    before = studies(database)
    assert [len(states) for name, states in before.items() if "RUNNING" in states] == [4]
    monkeypatch.setattr(trials, "train_candidate", whole)
    result = harness.run(**overrides)
    assert result.complete and len(trained) == 5
    assert len({values["recipe.lr"] for values in trained}) == 5  # random candidates are not proposed twice
    after = studies(database)
    assert after.keys() == before.keys()
    (states,) = (after[name] for name in after if before[name] != after[name])
    assert len(states) == 6 and states.count("FAIL") == 1 and "RUNNING" not in states
    held = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"pa%25ss" in path.read_bytes()]
    assert held == []


def test_another_output_folder_has_its_own_study(
    tiny_overrides: Overrides, tmp_path: Path, trained: list[Mapping[str, Any]]
) -> None:
    """Two runs of one search at the same time do not take each other's candidates."""
    database = f"sqlite:///{tmp_path / 'studies.db'}"
    for name in ("a", "b"):
        harness.run(**ask(tiny_overrides, tmp_path / name, optuna=database))
    assert len(trained) == 10
    assert [len(states) for states in studies(database).values()] == [5, 5]


def test_search_without_database_is_the_same(
    tiny_overrides: Overrides, tmp_path: Path, trained: list[Mapping[str, Any]]
) -> None:
    """A database changes no proposal of an undisturbed search."""
    harness.run(**ask(tiny_overrides, tmp_path / "a"))
    harness.run(**ask(tiny_overrides, tmp_path / "b", optuna=f"sqlite:///{tmp_path / 'studies.db'}"))
    assert trained[:5] == trained[5:]


@pytest.mark.ray
def test_search_on_ray_is_kept(tiny_overrides: Overrides, tmp_path: Path) -> None:
    """Candidates of a search on Ray are in the study, from which a lost store takes them without training."""
    database = f"sqlite:///{tmp_path / 'studies.db'}"
    overrides = ask(tiny_overrides, tmp_path / "runs", optuna=database, ray="auto", trials="2")
    one = harness.run(**overrides)
    (states,) = studies(database).values()
    assert one.complete and states == ["COMPLETE"] * 2
    (record,) = (tmp_path / "runs" / "store" / "search").glob("*/record.json")
    record.unlink()
    assert harness.run(**{**overrides, "ray": "off"}).complete
    (states,) = studies(database).values()
    assert states == ["COMPLETE"] * 2 and record.is_file()


def test_database_that_does_not_answer(
    tiny_overrides: Overrides, tmp_path: Path, trained: list[Mapping[str, Any]]
) -> None:
    """One sentence without the password."""
    pytest.importorskip("psycopg")
    dead = "postgresql://me:secret@127.0.0.1:9/db"
    with pytest.raises(StoreError, match=r"optuna=postgresql://me:\*\*\*@127.0.0.1:9/db does not answer") as caught:
        harness.run(**ask(tiny_overrides, tmp_path / "runs", optuna=dead))
    assert "secret" not in str(caught.value)
    assert trained == []


@pytest.mark.parametrize("uri", ["postgres://me:secret@host/db", "s3://bucket/x", "http://host:5000", "auto"])
def test_other_addresses_are_refused(uri: str) -> None:
    """Before anything is computed, without the password."""
    with pytest.raises(RequestError, match=r"^optuna must be") as caught:
        check_optuna(RunSettings(optuna=uri))
    assert "secret" not in str(caught.value)


def test_database_of_mlflow_is_refused(
    tiny_overrides: Overrides, tmp_path: Path, trained: list[Mapping[str, Any]]
) -> None:
    """Optuna's tables in it would keep MLflow from opening it: by its name, and by its tables."""
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(RequestError, match="another database than mlflow=sqlite:///"):
        check_optuna(RunSettings(optuna=database, mlflow=database))
    harness.run(**tiny_overrides(tmp_path / "a", mlflow=database))
    content = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(RequestError, match="must be a database of its own, got sqlite:///.*, which another program"):
        harness.run(**ask(tiny_overrides, tmp_path / "b", optuna=database))
    assert (tmp_path / "mlflow.db").read_bytes() == content
