"""Files of cells: predictions, maps and values, written by one stage and read by later ones."""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.targets import Target
from harness.core.types import JSON, Array, Input, NetworkSpec, Prediction, Sample
from harness.data.maps import map_name, write_map
from harness.storage.arrays import read_npz
from harness.storage.store import CellRecord, Store, write_json

__all__ = [
    "EXAMPLES",
    "as_stored",
    "read_arrays",
    "read_numbers",
    "read_parts",
    "read_predictions",
    "read_spec",
    "read_values",
    "spec_json",
    "summary_of",
    "write_arrays",
    "write_maps",
    "write_numbers",
    "write_parts",
    "write_predictions",
    "write_values",
]

EXAMPLES = 5
"""Largest number of samples of a cell whose parts of maps are kept, for figures: the first ones by name."""

_PREDICTIONS, _VALUES, _NUMBERS, _PARTS = "predictions.npz", "values.json", "numbers.json", "parts.npz"


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays to a compressed file."""
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(path, **named)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a file written by :func:`write_arrays`, see :func:`~harness.storage.arrays.read_npz`."""
    return read_npz(path)


def write_predictions(folder: Path, predictions: Mapping[str, Prediction]) -> None:
    """Write the predictions of a cell, by sample, as converted by :func:`as_stored`.

    Notes
    -----
    Probabilities of masks are stored in half precision, which is exact to 5e-4 and halves
    the size of the store.
    """
    arrays = {
        _key(sample, target, name): array
        for sample, targets in predictions.items()
        for target, kept in targets.items()
        for name, array in kept.items()
    }
    write_arrays(folder / _PREDICTIONS, arrays)


def as_stored(prediction: Prediction) -> dict[str, dict[str, Array]]:
    """A prediction in the precision of the store: probabilities of masks are float16."""
    return {
        target: {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in kept.items()}
        for target, kept in prediction.items()
    }


def read_predictions(store: Store, record: CellRecord) -> dict[str, dict[str, dict[str, Array]]]:
    """Predictions of a predict cell, by sample and target; images are float32."""
    found: dict[str, dict[str, dict[str, Array]]] = {}
    for key, array in read_arrays(store.artifact(record, _PREDICTIONS)).items():
        sample, target, name = (urllib.parse.unquote(part) for part in key.split(","))
        found.setdefault(sample, {}).setdefault(target, {})[name] = (
            array.astype(np.float32) if array.dtype == np.float16 else array
        )
    return found


def _key(*names: str) -> str:
    return ",".join(urllib.parse.quote(name, safe="") for name in names)


def write_maps(folder: Path, sample: Sample, outputs: Sequence[str], maps: Array) -> None:
    """Write the maps (T, C, …) of a sample: NIfTI files with its affine, or arrays for pictures."""
    for number, (output, one) in enumerate(zip(outputs, maps, strict=True)):
        name = map_name(sample.id, output if number else "", volume=sample.affine is not None)
        if sample.affine is None:
            np.save(folder / name, one.astype(np.float32))
        else:
            write_map(folder / name, one, sample.affine)


def write_numbers(folder: Path, numbers: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Write what a method reports beside its maps: numbers by sample and name, one per output; NaN becomes null."""
    plain = {
        sample: {name: [None if math.isnan(one) else one for one in several] for name, several in of.items()}
        for sample, of in numbers.items()
    }
    write_json(folder / _NUMBERS, plain)


def read_numbers(store: Store, record: CellRecord) -> dict[str, dict[str, tuple[float, ...]]]:
    """Read the numbers written by :func:`write_numbers`; empty if the cell has none."""
    if _NUMBERS not in record.artifacts:
        return {}
    found = json.loads(store.artifact(record, _NUMBERS).read_text("utf-8"))
    return {
        sample: {name: tuple(math.nan if one is None else one for one in several) for name, several in of.items()}
        for sample, of in found.items()
    }


def write_parts(folder: Path, outputs: Sequence[str], parts: Mapping[str, Mapping[str, Array]]) -> None:
    """Write the maps that a method combines, (T, …) by sample and name, for T explained scalars."""
    arrays = {
        _key(sample, output, name): one.astype(np.float32)
        for sample, of in parts.items()
        for name, several in of.items()
        for output, one in zip(outputs, several, strict=True)
    }
    write_arrays(folder / _PARTS, arrays)


def read_parts(store: Store, record: CellRecord, output: str) -> dict[str, dict[str, Array]]:
    """Maps written by :func:`write_parts` of one explained scalar: sample → name → array; empty if there are none."""
    if _PARTS not in record.artifacts:
        return {}
    found: dict[str, dict[str, Array]] = {}
    for key, array in read_arrays(store.artifact(record, _PARTS)).items():
        sample, of, name = (urllib.parse.unquote(part) for part in key.split(","))
        if of == output:
            found.setdefault(sample, {})[name] = array
    return found


def write_values(folder: Path, values: Mapping[str, JSON]) -> None:
    """Write the values of a score or probe cell, by identity of the metric (see :mod:`harness.pipeline.score`)."""
    write_json(folder / _VALUES, dict(values))


def read_values(store: Store, record: CellRecord) -> dict[str, JSON]:
    """Read the values written by :func:`write_values`."""
    found: dict[str, JSON] = json.loads(store.artifact(record, _VALUES).read_text("utf-8"))
    return found


def summary_of(store: Store, record: CellRecord) -> dict[str, float]:
    """Mean over samples and targets of each metric of a score or probe cell, by label."""
    found = {}
    for one in read_values(store, record).values():
        numbers = [
            number
            for of_sample in one["values"].values()
            for number in of_sample["targets"].values()
            if number is not None and not isinstance(number, dict)  # several values have no mean
        ]
        if numbers:
            found[one["label"]] = math.fsum(numbers) / len(numbers)
    return found


def spec_json(spec: NetworkSpec) -> JSON:
    """The specification of a network as plain JSON."""
    return {"inputs": [vars(one) for one in spec.inputs], "targets": [vars(one) for one in spec.targets]}


def read_spec(described: JSON) -> NetworkSpec:
    """The inverse of :func:`spec_json`."""
    inputs = tuple(
        Input(**{**one, "channels": tuple(one["channels"]), "shape": tuple(one["shape"])})
        for one in described["inputs"]
    )
    targets = tuple(Target(**{**one, "classes": tuple(one["classes"])}) for one in described["targets"])
    return NetworkSpec(inputs, targets)
