"""A cohort on nodes that share no folder travels through a bucket (of a mock of S3)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import StoreError
from harness.core.settings import RunSettings
from harness.data.sharing import open_shared, share
from harness.data.table import files_of
from harness.storage.bucket import Bucket
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import prepare
from harness.sweep.request import resolve


def test_missing_files_are_read_from_the_bucket(
    s3_url: str, tiny_overrides: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """On a node without them, table and images have the same paths and content; they are written once."""
    plan = prepare(resolve(to_overrides(**tiny_overrides(tmp_path / "runs"))))
    (group,) = plan.groups.values()
    bucket, root = Bucket(s3_url), tmp_path / "runs"
    count = share([group.path], root, bucket)
    assert count == 1 + len(files_of(group.path)) > 1 and share([group.path], root, bucket) == 0
    expected = {
        one.id: {name: image.load().copy() for name, image in one.images.items()} for one in plan.cohort.samples
    }

    shutil.rmtree(root)  # as on another node
    cohort = open_shared(group.path, root, bucket)
    assert {one.id: set(one.images) for one in cohort.samples} == {key: set(one) for key, one in expected.items()}
    for sample in cohort.samples:
        for name, image in sample.images.items():
            assert np.array_equal(image.load(), expected[sample.id][name])
    assert {path for path in root.rglob("*") if path.is_file()} == {group.path, *files_of(group.path)}

    lost = files_of(group.path)[0]
    lost.unlink()
    bucket.delete(lost.relative_to(root).as_posix())
    with pytest.raises(StoreError, match=r"is missing, and so is s3://lab/.*; run the command again"):
        open_shared(group.path, root, bucket)


def test_settings_of_a_bucket_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared images are in the local folder of a run, from which they are shared."""
    monkeypatch.chdir(tmp_path)
    assert RunSettings(out="s3://lab/x").folder.is_relative_to(tmp_path)
