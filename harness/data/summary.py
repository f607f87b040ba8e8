"""Summary of a cohort for the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import cc3d
import numpy as np

from harness.core.types import JSON, Cohort, Sample

__all__ = ["describe"]


def describe(cohort: Cohort) -> dict[str, JSON]:
    """Summary of a cohort, as plain JSON.

    Lesions are 26-connected components of the mask ``target`` on the prepared grid.

    Parameters
    ----------
    cohort : the cohort

    Returns
    -------
    dict
        ``name``, ``subjects``, ``samples``, ``sequences`` and ``masks`` (name →
        samples that have it), ``shapes`` and ``spacing_mm`` (text → samples), ``lesions``
        (per sample: count and volume in mm³ with total, mean, lowest, highest;
        ``mean_voxels``; ``without``: samples without one; ``None`` if there is no target),
        ``age`` and ``sex`` where participants.tsv has them, ``regions``,
        ``label_source``, ``files`` (name → variant of the file name → samples), ``notes``,
        ``ineligible``.
    """
    samples = cohort.samples
    facts: dict[str, JSON] = {
        "name": cohort.name,
        "subjects": len(cohort.subjects),
        "samples": len(samples),
        "sequences": dict(Counter(name for one in samples for name in one.images)),
        "masks": dict(Counter(name for one in samples for name in one.masks)),
        "shapes": dict(Counter("×".join(map(str, one.shape)) for one in samples)),
        "spacing_mm": dict(
            Counter("×".join(f"{size:.4g}" for size in one.spacing_mm) for one in samples if one.spacing_mm)
        ),
        "lesions": _lesions(samples),
        "age": _ages([one.covariates["age"] for one in samples if "age" in one.covariates]),
        "sex": dict(Counter(str(one.covariates["sex"] or "n/a") for one in samples if "sex" in one.covariates)),
        "regions": {str(value): name for value, name in cohort.regions.items()},
        "label_source": cohort.label_source,
        "files": {name: dict(variants) for name, variants in cohort.files.items()},
        "notes": list(cohort.notes),
        "ineligible": [asdict(one) for one in cohort.ineligible],
    }
    return facts


def _lesions(samples: Iterable[Sample]) -> JSON:
    counts, volumes, voxels, without = [], [], 0, []
    for sample in samples:
        if "target" not in sample.masks:
            continue
        mask = sample.masks["target"].load()
        _, count = cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)
        filled = int(np.count_nonzero(mask))
        counts.append(float(count))
        volumes.append(filled * float(abs(np.linalg.det(sample.grid.affine[:3, :3]))))
        voxels += filled
        without += [] if filled else [sample.id]
    if not counts:
        return None
    mean_voxels = round(voxels / sum(counts), 2) if sum(counts) else None
    return {"count": _spread(counts), "volume_mm3": _spread(volumes), "mean_voxels": mean_voxels, "without": without}


def _spread(values: Sequence[float]) -> dict[str, float]:
    summary = {"total": sum(values), "mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, 3) for name, value in summary.items()}


def _ages(values: Sequence[float | str | None]) -> JSON:
    """Mean and range of the ages that are numbers, number of unknown ages, and ages that are text."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    words = sorted({value for value in values if isinstance(value, str)})
    if not values:
        return None
    summary = {name: value for name, value in _spread(numbers).items() if name != "total"} if numbers else {}
    return {**summary, "n": len(numbers), "unknown": sum(value is None for value in values), "not_numbers": words}
