"""Images that the program writes: their headers have the grid, and no text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib

import harness
from harness.cli.prediction import predict_folder
from harness.sweep.grammar import to_overrides

Overrides = Callable[..., dict[str, Any]]


def test_headers_of_all_images_have_no_text(tiny_overrides: Overrides, phantom_root: Path, tmp_path: Path) -> None:
    """Those of cells, MLflow and predictions; the names of the channels are in the records."""
    out = tmp_path / "runs"
    assert harness.run(**tiny_overrides(out, sequences="T2w+FLAIR")).complete
    (record,) = [json.loads(path.read_text()) for path in out.glob("store/train/*/record.json")][:1]
    into = tmp_path / "predicted"
    predict_folder(to_overrides(model=record["identity"], data=phantom_root, out=out, into=into), say=lambda text: None)
    found = [path for folder in (out, into) for path in sorted(folder.rglob("*.nii*"))]
    assert {path.relative_to(tmp_path).parts[0] for path in found} == {"runs", "predicted"}
    for path in found:
        header: Any = nib.load(path).header
        fields = {name: header[name].item() for name in header if header[name].dtype.kind == "S"}
        # "n+1" is the format; "regular" is a mark that ANALYZE 7.5 demanded.
        assert {name: text for name, text in fields.items() if text and name != "regular"} == {"magic": b"n+1"}
        assert list(header.extensions) == []
    explained = [json.loads(path.read_text()) for path in out.glob("store/explain/*/record.json")]
    assert explained and all(one["facts"]["channels"] == ["T2w", "FLAIR"] for one in explained)
