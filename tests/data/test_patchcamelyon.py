"""PatchCamelyon's files, made small."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import harness
from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.types import SplitSample
from harness.data.patchcamelyon import patchcamelyon
from harness.data.splits import official

COUNTS = {"train": 30, "valid": 12, "test": 12}


def write(root: Path, *, slides: bool = True, size: int = 32, **counts: int) -> Path:
    """Random patches; those of tumour have a dark centre."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in {**COUNTS, **counts}.items():
        start = root / f"camelyonpatch_level_2_split_{part}"
        labels = np.arange(count) % 2
        pictures = rng.integers(120, 255, (count, size, size, 3), np.uint8)
        pictures[labels == 1, 8:24, 8:24] //= 3
        with h5py.File(f"{start}_x.h5", "w") as file:
            file["x"] = pictures
        with h5py.File(f"{start}_y.h5", "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1)
        if slides:
            with Path(f"{start}_meta.csv").open("w", newline="") as text:
                table = csv.writer(text)
                table.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
                table.writerows([row, 0, 0, True, True, f"camelyon16_{part}_{row // 3:03d}"] for row in range(count))
    return root


def test_patches_labels_and_slides(tmp_path: Path) -> None:
    """Each patch has its label, its slide and its part."""
    root = write(tmp_path / "pcam")
    cohort = patchcamelyon(root, tmp_path / "cache")
    assert len(cohort.samples) == 54 and len(cohort.subjects) == 10 + 4 + 4 and not cohort.notes
    one = next(sample for sample in cohort.samples if sample.id == "valid-000004")
    assert (one.subject, one.covariates) == ("camelyon16_valid_001", {"tumour": 0.0, "part": "valid"})
    with h5py.File(root / "camelyonpatch_level_2_split_valid_x.h5") as file:
        np.testing.assert_array_equal(one.images["rgb"].load(), file["x"][4])


def test_some_patches_are_drawn_and_slides_left_out(tmp_path: Path) -> None:
    """A drawn part is the same each time, and is said; excluded slides are not there."""
    root = write(tmp_path / "pcam")
    some = patchcamelyon(root, tmp_path / "cache", images=5, exclude=("camelyon16_train_000",))
    again = patchcamelyon(root, tmp_path / "cache", images=5, exclude=("camelyon16_train_000",))
    assert [one.id for one in some.samples] == [one.id for one in again.samples] and len(some.samples) == 15
    assert some.notes[0] == "5 of 27 patches of train were drawn (cohort.images=5)"
    assert "camelyon16_train_000" not in some.subjects
    with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5") as file:
        for one in some.samples[:5]:
            np.testing.assert_array_equal(one.images["rgb"].load(), file["x"][int(one.id[-6:])])
    with pytest.raises(UnknownName, match="no slide of pcam"):
        patchcamelyon(root, tmp_path / "cache", exclude=("x",))


def test_unknown_slides_are_said(tmp_path: Path) -> None:
    """Without tables, each patch counts as independent, which is said."""
    cohort = patchcamelyon(write(tmp_path / "pcam", slides=False), tmp_path / "cache", parts=("test",))
    assert len(cohort.subjects) == 12
    assert cohort.notes == (
        "slides of test are not known (no camelyonpatch_level_2_split_test_meta.csv): patches count as independent",
    )


def test_all_faults_at_once(tmp_path: Path) -> None:
    """Missing files, wrong labels, other types and differing counts are listed together."""
    root = write(tmp_path / "pcam")
    (root / "camelyonpatch_level_2_split_train_x.h5").unlink()
    (root / "camelyonpatch_level_2_split_valid_y.h5").write_text("no HDF5")
    with h5py.File(root / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file["x"] = np.zeros((12, 8, 8, 3), np.float32)
    with pytest.raises(CohortError) as caught:
        patchcamelyon(root, tmp_path / "cache")
    faults = {(fault.file, fault.kind) for fault in caught.value.faults}
    assert faults == {
        ("camelyonpatch_level_2_split_train_x.h5", "unreadable"),
        ("camelyonpatch_level_2_split_valid_y.h5", "unreadable"),
        ("camelyonpatch_level_2_split_test_x.h5", "depth"),
    }
    with h5py.File(write(tmp_path / "other") / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = np.array([0, 1, 7])
    with pytest.raises(CohortError) as caught:
        patchcamelyon(tmp_path / "other", tmp_path / "cache")
    assert [(fault.kind, fault.value) for fault in caught.value.faults] == [("label", "1 labels such as 7")]


class TestOfficialSplit:
    """The split that a data set states."""

    def samples(self, *parts: Any) -> list[SplitSample]:
        """One sample per part, each of its own subject."""
        return [SplitSample(f"i{n}", f"s{n}", {}, {"part": part}) for n, part in enumerate(parts)]

    def test_parts(self) -> None:
        """Samples are in the part that their column states."""
        (split,) = official(self.samples("train", "valid", "test", "train"), seed=0).folds
        assert (split.train, split.validation, split.test) == (("i0", "i3"), ("i1",), ("i2",))

    def test_faults(self) -> None:
        """Unknown columns and values, empty parts and shared subjects are refused."""
        with pytest.raises(UnknownName, match="column of the cohort"):
            official(self.samples("train"), seed=0, by="fold")
        with pytest.raises(OutOfRange, match="part must be one of train, valid, test for every sample, got dev for i1"):
            official(self.samples("train", "dev"), seed=0)
        with pytest.raises(OutOfRange, match=r"got none for validation \(part=valid\), test \(part=test\)"):
            official(self.samples("train"), seed=0)
        shared = [SplitSample(f"i{n}", "s", {}, {"part": part}) for n, part in enumerate(("train", "valid", "test"))]
        with pytest.raises(OutOfRange, match="but 1 are in several: s; use split=holdout"):
            official(shared, seed=0)


def test_run_on_official_files(tmp_path: Path) -> None:
    """The task trains on the official training part and explains true positives of the test part."""
    made = harness.run(
        task="histopathology", data=str(write(tmp_path / "pcam", train=60)), cohort="patchcamelyon", split="official",
        model="small_cnn", model__blocks=3, recipe__epochs=6, recipe__batch_size=16,
        attribution=("squares_w1", "random"), ray="off", mlflow="off", report=False, out=str(tmp_path / "out"),
    )  # fmt: skip
    with made.csv.open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert float(line["auroc"]) > 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_patches_are_never_all_in_memory(tmp_path: Path) -> None:
    """Reading 20,000 patches (553 MB) and two batches of each of them takes less than 300 MB more than the imports."""
    script = f"""
        import os, resource, sys
        from pathlib import Path
        import h5py, numpy as np
        from harness.data.patchcamelyon import patchcamelyon
        from harness.data.cache import CachedImage
        root = Path({str(tmp_path)!r})
        rng = np.random.default_rng(0)
        for part, count in (("train", 19000), ("valid", 500), ("test", 500)):
            start = f"{{root}}/camelyonpatch_level_2_split_{{part}}"
            with h5py.File(start + "_x.h5", "w") as file:
                data = file.create_dataset("x", (count, 96, 96, 3), np.uint8, chunks=(64, 96, 96, 3))
                for first in range(0, count, 500):
                    data[first:first + 500] = rng.integers(0, 255, (min(500, count - first), 96, 96, 3), np.uint8)
            with h5py.File(start + "_y.h5", "w") as file:
                file["y"] = np.arange(count).reshape(-1, 1, 1, 1) % 2
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cohort = patchcamelyon(root, root / "cache")
        total = sum(int(one.images["rgb"].load()[0, 0, 0]) for one in cohort.samples)
        status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
        print(len(cohort.samples), before, int(status["RssAnon"].split()[0]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert done[0] == "20000"
    assert int(done[2]) - int(done[1]) < 300_000  # kB; pages of the memory map belong to the system
