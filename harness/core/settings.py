"""How to run: resources, places, tracking. None of it changes a result."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from harness.core.errors import UnknownName
from harness.core.paths import absolute, absolute_sqlite
from harness.core.types import JSON
from harness.core.values import checked

__all__ = ["RunSettings", "settings_from"]


@dataclass(frozen=True)
class RunSettings:
    """What stays on the driver.

    Parameters
    ----------
    out : folder for everything a run writes; absolute once the settings are made
    data : the cohort's folder, also made absolute; empty generates the task's phantom cohort
    ray : ``auto`` starts Ray here, ``off`` runs in this process, else the
        address of a cluster
    workers : jobs at a time; 0 takes as many as the resources allow
    cpus, gpus : of each job; gpus may be a fraction
    mlflow : ``auto`` is a database in ``out``, ``off`` none, else a tracking URI, of
        which the path of an SQLite database is made absolute
    anonymous : nothing that names a subject goes to MLflow (the report does)
    exclude : subjects to leave out
    accept_code : take finished cells of older code, flagged
    yes : start although the estimate is above 12 hours
    report : write the HTML report
    trials : of a search, per outer fold
    search_subjects : subjects on which a search runs once per configuration; the
        evaluation leaves them out. Empty searches within each outer fold
    """

    out: str = "harness-runs"
    data: str = ""
    ray: str = "auto"
    workers: Annotated[int, Ge(0)] = 0
    cpus: Annotated[float, Gt(0)] = 1.0
    gpus: Annotated[float, Ge(0)] = 0.0
    mlflow: str = "auto"
    anonymous: bool = False
    exclude: tuple[str, ...] = ()
    accept_code: bool = False
    yes: bool = False
    report: bool = True
    trials: Annotated[int, Ge(1)] = 16
    search_subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", str(absolute(self.out, "out")))
        object.__setattr__(self, "data", str(absolute(self.data, "data")) if self.data else "")
        object.__setattr__(self, "mlflow", absolute_sqlite(self.mlflow))

    @property
    def folder(self) -> Path:
        """``out`` as a path."""
        return Path(self.out)

    @property
    def data_folder(self) -> Path | None:
        """``data`` as a path."""
        return Path(self.data) if self.data else None


def settings_from(words: Mapping[str, JSON]) -> RunSettings:
    """Settings with every value checked against its type and bound."""
    hints: dict[str, Any] = typing.get_type_hints(RunSettings, include_extras=True)
    known = {field.name for field in dataclasses.fields(RunSettings)}
    for key in words:
        if key not in known:
            raise UnknownName("setting", key, known)
    values = dict(words)
    for key in ("exclude", "search_subjects"):
        if isinstance(values.get(key), str):
            values[key] = (values[key],)
    return RunSettings(**{key: checked(hints[key], value, key) for key, value in values.items()})
