"""Settings of a run: data, resources, folders and tracking."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from harness.core.errors import OutOfRange, RequestError, UnknownName, raise_together
from harness.core.paths import absolute, absolute_sqlite
from harness.core.types import JSON
from harness.core.values import checked

__all__ = ["RunSettings", "settings_from"]


@dataclass(frozen=True)
class RunSettings:
    """How to run; these settings stay in the driver process.

    Relative paths are made absolute when the settings are created.

    Parameters
    ----------
    out : output folder
    data : folder of the cohort; if empty, the task's phantom cohort is generated
    ray : ``auto`` starts Ray on this machine, ``off`` runs in this process; otherwise
        the address of a Ray cluster, or ``http://HOST:PORT`` of its Ray Jobs
    workers : number of parallel jobs; 0 runs as many as the resources allow
    cpus, gpus : CPU cores and GPUs per job; a fraction of one, or a whole number
    mlflow : ``auto`` writes a database in the output folder, ``off`` disables MLflow;
        otherwise a tracking URI
    anonymous : send nothing that identifies subjects to MLflow, except the report
    pseudonymise : show subjects under pseudonyms (keyed hashes) in tables, report and MLflow;
        the key is in the file ``pseudonym.key`` of the output folder
    exclude : subjects to leave out
    accept_code : reuse finished cells of an older code version, and flag them
    time_limit : minutes that one cell may take; a cell that takes longer is ended, and counts
        as failed while the others go on. ``off`` for no limit, because the times of cells
        differ by orders of magnitude; ``auto`` for ten times the estimate of the longest
        training with its explanations, and at least ten minutes. A search is not limited
    yes : start even if the estimate exceeds 12 hours
    report : write the HTML report
    show_images : show pictures of people in the report, if the cohort has any. Generated
        pictures are always shown
    trials : trials of a hyper-parameter search, per outer fold
    optuna : ``off`` keeps the candidates of a running search in memory; with the URI of a
        database, an interrupted search goes on after its last finished candidate, and can
        be watched (optuna-dashboard). Results are in the output folder in either case
    search_subjects : subjects reserved for a search that runs once per configuration
        and excluded from the evaluation; if empty, the search runs within each outer fold
    """

    out: str = "harness-runs"
    data: str = ""
    ray: str = "auto"
    workers: Annotated[int, Ge(0)] = 0
    cpus: Annotated[float, Gt(0)] = 1.0
    gpus: Annotated[float, Ge(0)] = 0.0
    mlflow: str = "auto"
    anonymous: bool = False
    pseudonymise: bool = False
    exclude: tuple[str, ...] = ()
    accept_code: bool = False
    time_limit: Literal["off", "auto"] | Annotated[float, Gt(0)] = "off"
    yes: bool = False
    report: bool = True
    show_images: bool = False
    trials: Annotated[int, Ge(1)] = 16
    optuna: str = "off"
    search_subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, number in (("cpus", self.cpus), ("gpus", self.gpus)):
            if number > 1 and not float(number).is_integer():
                raise OutOfRange(f"{key} must be a whole number above one, as Ray requires, got {number:g}")
        if self.ray.lower() in ("auto", "off", "local"):
            object.__setattr__(self, "ray", self.ray.lower())
        elif ":" not in self.ray:
            raise OutOfRange(
                f"ray must be auto (start Ray on this machine), off (run in this process), or the address HOST:PORT "
                f"of a Ray cluster, got {self.ray!r}"
            )
        object.__setattr__(self, "out", str(absolute(self.out, "out")))
        object.__setattr__(self, "data", str(absolute(self.data, "data")) if self.data else "")
        object.__setattr__(self, "mlflow", absolute_sqlite(self.mlflow))
        object.__setattr__(self, "optuna", absolute_sqlite(self.optuna, "optuna"))

    @property
    def folder(self) -> Path:
        """``out`` as a path."""
        return Path(self.out)

    @property
    def key_file(self) -> Path:
        """File of the key of pseudonyms, see :class:`harness.core.pseudonyms.Pseudonyms`."""
        return self.folder / "pseudonym.key"

    @property
    def data_folder(self) -> Path | None:
        """``data`` as a path."""
        return Path(self.data) if self.data else None


def settings_from(overrides: Mapping[str, JSON]) -> RunSettings:
    """Create settings from overrides; every value is checked against its type and bounds."""
    hints: dict[str, Any] = typing.get_type_hints(RunSettings, include_extras=True)
    known = {field.name for field in dataclasses.fields(RunSettings)}
    faults: list[RequestError] = [UnknownName("setting", key, known) for key in overrides if key not in known]
    values = {key: value for key, value in overrides.items() if key in known}
    for key in ("exclude", "search_subjects"):
        if isinstance(values.get(key), str):
            values[key] = (values[key],)
    for key in ("ray", "mlflow"):
        if isinstance(values.get(key), bool):
            values[key] = "auto" if values[key] else "off"
    if values.get("optuna") is False:
        values["optuna"] = "off"
    if values.get("time_limit") is False:
        values["time_limit"] = "off"
    for key, value in values.items():
        try:
            values[key] = checked(hints[key], value, key)
        except RequestError as error:
            faults.append(error)
    raise_together(faults)
    return RunSettings(**values)
