"""Reading of cohorts: options of the reader and settings of the run together."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.core.settings import RunSettings
from harness.core.task import Task
from harness.core.types import Cohort
from harness.sweep.catalogue import load_task
from harness.sweep.cohorts import read_cohort


@pytest.mark.parametrize(("minimum", "expected"), [(None, 3), (1, 3), (40, 40)])
def test_options_of_the_reader_are_used_with_the_settings(tmp_path: Path, minimum: int | None, expected: int) -> None:
    """``cohort.exclude`` adds to ``exclude``, and ``cohort.minimum`` can only raise the minimum of a run."""
    given: dict[str, Any] = {}

    def reader(root: Path, cache: Path, *, exclude: tuple[str, ...] = (), minimum: int = 3, **more: Any) -> Cohort:
        given.update(exclude=exclude, minimum=minimum)
        return Cohort("own", ())

    options: dict[str, Any] = {} if minimum is None else {"minimum": minimum}
    task: Task = replace(load_task("lsm"), cohort=partial(reader, exclude=("sub-01", "sub-02"), **options))
    settings = RunSettings(out=str(tmp_path / "out"), data=str(tmp_path), exclude=("sub-02", "sub-03"))
    read_cohort(task, (), settings, lambda text: None)
    assert given == {"exclude": ("sub-02", "sub-03", "sub-01"), "minimum": expected}
