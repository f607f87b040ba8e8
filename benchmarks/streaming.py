"""How much memory does a training on hundreds of thousands of patches need?

Writes HDF5 files as PatchCamelyon has them, with generated patches whose brightness varies,
reads them as a cohort, trains a small network for one epoch, and prints the memory of this
process after each step.

    python benchmarks/streaming.py [patches=20000] [folder=streaming-patches]

With 300,000 patches, the files have 8 GB, and one epoch takes about five minutes.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from harness.adapters.pixels import pixels
from harness.data.patchcamelyon import patchcamelyon
from harness.data.table import open_cohort, save
from harness.data.targets.column import binary_column
from harness.models.picture_networks import small_cnn
from harness.pipeline.train import train
from harness.recipes.stained import stained_pictures
from harness.simulation.histology import histology_phantom

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def write(root: Path, patches: int) -> None:
    """Write the files of all subsets."""
    root.mkdir(parents=True, exist_ok=True)
    base = [one for slide in range(20) for one in histology_phantom(9, slide, patches=30)]
    images = np.stack([one.image for one in base])
    labels = np.array([one.covariates["label"] for one in base], np.uint8)
    rng = np.random.default_rng(0)
    for split, share in SHARES.items():
        count = round(patches * share)
        chosen = rng.integers(0, len(base), count)
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            made = file.create_dataset("x", (count, *images.shape[1:]), np.uint8)
            for start in range(0, count, 1000):
                block = images[chosen[start : start + 1000]].astype(np.int16)
                block += rng.integers(-12, 13, (len(block), 1, 1, 3))
                made[start : start + 1000] = np.clip(block, 0, 255)
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = labels[chosen].reshape(-1, 1, 1, 1)
        lines = [f"{row},0,0,True,{bool(labels[one])},{split}_{row % 80}" for row, one in enumerate(chosen)]
        header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
        (root / f"{stem}_meta.csv").write_text("\n".join([header, *lines]) + "\n")


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now and at most, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def main(arguments: list[str]) -> None:
    """Write, open, train and print."""
    given = dict(one.split("=", 1) for one in arguments)
    patches, root = int(given.get("patches", 20_000)), Path(given.get("folder", "streaming-patches")).resolve()
    begun = time.monotonic()

    def show(step: str) -> None:
        now, most = memory_mb()
        print(f"{time.monotonic() - begun:7.1f} s  {step:32}{now:7.0f} MB, at most {most:.0f} MB", flush=True)

    table = root / "cohort.arrow"
    if not table.exists():  # a second run, in a process of its own, measures the training alone
        write(root, patches)
        show("files written")
        read = patchcamelyon(root, root / "cache")
        save(binary_column(read, root / "cache", column="label", name="tumour", positive="1"), table)
        show("cohort prepared")
    cohort = open_cohort(table)
    show(f"{len(cohort.samples):,} patches opened")
    own = {name: [one for one in cohort.samples if one.covariates["split"] == name] for name in SHARES}
    adapter = pixels()
    train(
        partial(small_cnn, width=2, blocks=3), stained_pictures(epochs=1, batch_size=64, stain=0.0), adapter,
        adapter.spec(cohort), own["train"], own["valid"], seed=0,
    )  # fmt: skip
    show(f"an epoch of {len(own['train']):,} patches")


if __name__ == "__main__":
    main(sys.argv[1:])
