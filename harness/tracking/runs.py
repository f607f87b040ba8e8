"""Find MLflow runs by their identity, and write them with few requests."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.pseudonyms import Pseudonyms
from harness.core.types import JSON
from harness.tracking.redaction import Redaction

__all__ = ["IDENTITY", "PARENT", "Dataset", "Run", "Runs", "legal", "now_ms"]

IDENTITY, PARENT = "harness.identity", "mlflow.parentRunId"
"""Tags of a run: the identity of its configuration or training, and the id of its parent run."""

_LONGEST_PARAM, _LONGEST_TAG = 500, 5000  # characters that every MLflow backend accepts
_METRICS, _PARAMS, _TAGS = 800, 100, 100  # MLflow accepts 1000, 100 and 100 per request, and 1000 in total
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Dataset:
    """The data set of a configuration, as MLflow lists it.

    Parameters
    ----------
    name : name of the cohort
    digest : fingerprint of the data that the configuration reads
    source : folder of the data, or the generator
    profile : summary, such as the number of subjects
    """

    name: str
    digest: str
    source: str
    profile: Mapping[str, JSON] = field(default_factory=dict)


@dataclass
class Run:
    """Local copy of the state of an MLflow run.

    Parameters
    ----------
    id : MLflow's id of the run
    status : RUNNING, FINISHED, FAILED or KILLED
    tags : tags, as last read or written
    described : whether it has parameters, which are written after its data set
    """

    id: str
    status: str
    tags: dict[str, str]
    described: bool = False


class Runs:
    """Finds, creates and writes runs.

    Parameters
    ----------
    client : :class:`mlflow.MlflowClient` to use
    redact : applied to all text that is written; ``None`` for no redaction
    """

    def __init__(self, client: Any, redact: Redaction | Pseudonyms | None) -> None:
        self._client, self._redact = client, redact

    def find(self, experiment: str, identity: str) -> Run | None:
        """The run with an identity, from this or another process.

        Notes
        -----
        If there are several, the oldest is kept and the others are moved to MLflow's
        deleted runs. Two processes with different output folders and one server can create
        the same run at once, and so can a request that is repeated because its answer was
        lost.
        """
        found = list(self._search(experiment, IDENTITY, identity))
        for twin in found[1:]:
            self.delete(twin)
        return found[0] if found else None

    def below(self, experiment: str, parent: Run) -> Iterator[Run]:
        """The child runs of a run in an experiment, the oldest first."""
        return self._search(experiment, PARENT, parent.id)

    def create(self, experiment: str, name: str, tags: Mapping[str, str], *, seconds: float = 0.0) -> Run:
        """Create a run with status RUNNING.

        Parameters
        ----------
        experiment : id of the experiment
        name : name of the run
        tags : tags of the run, including its identity
        seconds : seconds since the run started
        """
        kept = {key: self._tag(value) for key, value in tags.items()}
        made = self._client.create_run(
            experiment, start_time=now_ms() - int(1000 * seconds), run_name=self.redacted(name), tags=kept
        )
        return Run(str(made.info.run_id), "RUNNING", kept)

    def begin(self, run: Run) -> None:
        """Mark a run as running."""
        if run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"

    def end(self, run: Run, status: str) -> None:
        """Mark a run as FINISHED, FAILED or KILLED."""
        if run.status != status:
            self._client.set_terminated(run.id, status)
            run.status = status

    def delete(self, run: Run) -> None:
        """Move a run to MLflow's deleted runs, from which it can be restored."""
        self._client.delete_run(run.id)

    def log(
        self,
        run: Run,
        *,
        points: Sequence[tuple[str, float, int]] = (),
        params: Mapping[str, str] = _NOTHING,
        tags: Mapping[str, str] = _NOTHING,
    ) -> None:
        """Write metrics, parameters and tags in one request, whose overhead equals about forty metrics.

        Parameters
        ----------
        run : the run
        points : metrics as (name, value, step); values that are not finite are left out
        params : parameters by name; MLflow does not allow changing them later
        tags : tags by name; unchanged tags are left out
        """
        from mlflow.entities import Metric, Param, RunTag

        now = now_ms()
        kept = {legal(key): self._tag(value) for key, value in tags.items()}
        changed = {key: value for key, value in kept.items() if run.tags.get(key) != value}
        metrics = [Metric(legal(key), value, now, step) for key, value, step in points if math.isfinite(value)]
        parameters = [Param(legal(key), self.redacted(value)[:_LONGEST_PARAM]) for key, value in params.items()]
        labels = [RunTag(key, value) for key, value in changed.items()]
        for some in itertools.zip_longest(
            _parts(metrics, _METRICS), _parts(parameters, _PARAMS), _parts(labels, _TAGS), fillvalue=()
        ):
            self._client.log_batch(run.id, metrics=some[0], params=some[1], tags=some[2], synchronous=True)
        run.tags |= changed
        run.described |= bool(params)

    def untag(self, run: Run, key: str) -> None:
        """Remove a tag, if the run has it."""
        if run.tags.pop(key, None) is not None:
            self._client.delete_tag(run.id, key)

    def log_dataset(self, run: Run, dataset: Dataset) -> None:
        """Write the data set of a run."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        source = json.dumps({"uri": self.redacted(dataset.source)})
        profile = self.redacted(json.dumps(dict(dataset.profile)))
        entity = Entity(self.redacted(dataset.name), dataset.digest, "local", source, profile=profile)
        context = [InputTag("mlflow.data.context", "cross-validation")]
        self._client.log_inputs(run.id, datasets=[DatasetInput(entity, context)])

    def log_files(self, run: Run, folder: Path) -> None:
        """Write the files of a folder as artifacts, under their relative paths."""
        if any(folder.iterdir()):
            self._client.log_artifacts(run.id, str(folder))

    def redacted(self, text: str, *, foreign: bool = False) -> str:
        """The text after redaction, see :class:`~harness.tracking.redaction.Redaction`."""
        return text if self._redact is None else self._redact(text, foreign=foreign)

    def _tag(self, value: str) -> str:
        return self.redacted(value)[:_LONGEST_TAG]

    def _search(self, experiment: str, tag: str, value: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"], page_token=token
            )
            for run in page:
                yield Run(run.info.run_id, run.info.status, dict(run.data.tags), bool(run.data.params))
            token = page.token
            if not token:
                return


def legal(name: str) -> str:
    """A name that MLflow accepts: characters other than letters, digits and ``_ - . / space`` become ``_``."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def now_ms() -> int:
    """Current time in milliseconds, as used by MLflow."""
    return int(time.time() * 1000)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
