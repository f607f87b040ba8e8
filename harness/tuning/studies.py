"""Optuna's studies of searches, kept in a database if the user names one with ``optuna=URI``.

Without a database, the candidates of a running search are in the memory of the driver, and a
search that is interrupted starts again. In a database, it goes on after its last finished
candidate, and others can watch it, for example with optuna-dashboard. The store keeps the
results in either case; nothing is read from the database once a search has ended.

Notes
-----
The seed of the proposals of a search that goes on also depends on the number of candidates
in its study. Otherwise the random first candidates would be proposed a second time. So the
winner may be another one than that of an undisturbed search, as with several candidates at a
time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from harness.core.databases import check_driver
from harness.core.errors import RequestError, StoreError, first_line
from harness.core.identity import identify
from harness.core.passwords import without_password, without_passwords_of
from harness.core.seeding import seed_of
from harness.core.settings import RunSettings
from harness.core.types import JSON
from harness.tuning.nested import Candidate, Search, epochs_of
from harness.tuning.spaces import decoded

__all__ = ["check_optuna", "earlier", "kept_in", "reachable", "sampler"]

_ACCEPTED = "off, or the URI of a database (postgresql://USER@HOST/NAME, sqlite:///FILE), {got}"


def check_optuna(settings: RunSettings) -> None:
    """Refuse a value of ``optuna=`` that cannot work, before anything is computed; nothing is connected to.

    Raises
    ------
    RequestError
        If it is no URI of a database, the driver of its database is not installed, or it is
        the database of MLflow.
    """
    if settings.optuna == "off":
        return
    check_driver(settings.optuna, "optuna", _ACCEPTED)
    if settings.optuna == settings.mlflow:
        raise RequestError(
            f"optuna must be another database than mlflow={without_password(settings.mlflow)}; create an empty one"
        )


def kept_in(search: Search, settings: RunSettings) -> dict[str, Any]:
    """Storage and name of a search's study, as keyword arguments of Optuna and of Ray's OptunaSearch.

    Parameters
    ----------
    search : the search
    settings : settings of the run

    Returns
    -------
    dict
        Empty if studies are kept in memory. The name has the identity of the search and a
        digest of the output folder, so that runs into different folders, which may train at
        the same time, have different studies.
    """
    if settings.optuna == "off":
        return {}
    name = f"{search.configuration.task['name']}-{search.identity[:16]}-{identify(settings.out)[:8]}"
    return {"storage": _storage(settings.optuna), "study_name": name}


@cache
def _storage(uri: str) -> Any:
    """Optuna's storage; its tables are created if needed.

    Raises
    ------
    RequestError
        If another program, such as MLflow, has tables in the database: both number their
        versions in a table ``alembic_version``, so that MLflow could not open it again.
    """
    import sqlalchemy
    from optuna.storages import RDBStorage

    engine = sqlalchemy.create_engine(uri)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if "alembic_version" in tables and "studies" not in tables:
        raise RequestError(
            f"optuna must be a database of its own, got {without_password(uri)}, which another program uses, such as "
            "MLflow; create an empty one"
        )
    return RDBStorage(uri, engine_kwargs={"pool_pre_ping": True})


def earlier(search: Search, settings: RunSettings) -> tuple[Candidate, ...]:
    """Candidates that were finished when the search was interrupted; candidates that failed are tried again.

    Candidates that an ended driver left running are marked as failed in the study.
    """
    import optuna

    if settings.optuna == "off":
        return ()
    study = optuna.create_study(direction="maximize", load_if_exists=True, **kept_in(search, settings))
    study.set_user_attr("fold", search.fold)
    study.set_user_attr("seed", search.seed)
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED):
            found.append(_candidate(search, trial.params, trial.intermediate_values))
        elif not trial.state.is_finished():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return tuple(found[: search.trials])


def _candidate(search: Search, params: Mapping[str, JSON], curve: Mapping[int, float]) -> Candidate:
    values = decoded(search.space, params)
    complete = len(curve) == epochs_of(search, values)
    return Candidate(values, "done" if complete else "stopped", curve[max(curve)], len(curve))


def sampler(search: Search, settings: RunSettings) -> Any:
    """The sampler of a search, which may have candidates in its study."""
    import optuna

    # By default, Optuna draws the first ten candidates at random; a short search must learn from fewer.
    startup = min(10, max(1, search.trials // 2))
    names: tuple[str | int, ...] = ("search",)
    if settings.optuna != "off":
        study = optuna.create_study(direction="maximize", load_if_exists=True, **kept_in(search, settings))
        names += (number,) if (number := len(study.get_trials(deepcopy=False))) else ()
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed_of(search.seed, *names) % 2**32)


@contextlib.contextmanager
def reachable(settings: RunSettings) -> Iterator[None]:
    """Say in one sentence that the database of the studies does not answer, and close its connections at the end.

    Raises
    ------
    StoreError
        If it does not; finished candidates are in it.
    """
    import optuna
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = without_passwords_of(first_line(error.__cause__ or error), [settings.optuna])
        raise StoreError(
            f"the database optuna={without_password(settings.optuna)} does not answer: {reason}. Finished candidates "
            "are kept in it: repeat the command once it answers, or set optuna=off"
        ) from None
    finally:
        if _storage.cache_info().currsize:
            storage = _storage(settings.optuna)
            storage.remove_session()
            storage.engine.dispose()
            _storage.cache_clear()
