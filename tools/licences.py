"""``python tools/licences.py`` rewrites ``THIRD_PARTY_LICENSES.md`` from installed metadata."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path

from dependencies import ROOT, pins, tree

__all__ = ["PAGE", "page"]

PAGE = ROOT / "THIRD_PARTY_LICENSES.md"

# Licences of packages whose metadata have none, from their licence files.
_READ = {"huey": "MIT", "skops": "MIT"}

_HEAD = """\
# Licences of the dependencies of harness

harness itself is under the Apache License 2.0 (see `LICENSE`). It contains no code of the packages
below and does not distribute them; they are downloaded on installation. The licences are those stated in
the metadata of each package; their texts are installed with it. Rewritten by `make licences`.

connected-components-3d is under the LGPL: it is imported unmodified, and you may replace it by your own
version. CUDA builds of torch include NVIDIA's libraries, under NVIDIA's terms, which are not listed here.

The extra `postgres` adds psycopg and psycopg-binary, under the LGPL; they are imported unmodified, too.
The extra `s3` adds obstore, under the MIT licence.
The extra `jobs` adds what Ray's dashboard needs, under the licences Apache-2.0, BSD-2-Clause, MIT and PSF-2.0:
aiohttp-cors, colorful, distlib, google-api-core, googleapis-common-protos, grpcio, opencensus, opencensus-context,
opentelemetry-exporter-prometheus, platformdirs, prometheus-client, proto-plus, py-spy, python-discovery, smart-open,
virtualenv.

| package | version | licence |
|---|---|---|
"""


def page() -> str:
    """The page with all run-time dependencies."""
    versions = dict(pin.split("==") for pin in pins())
    rows = [f"| {name} | {versions[name]} | {_licence(name, one)} |" for name, one in tree().items()]
    return _HEAD + "\n".join(rows) + "\n"


def _licence(name: str, package: Distribution) -> str:
    """SPDX expression if there is one, otherwise classifiers, otherwise a one-line statement."""
    metadata = package.metadata
    if name in _READ:
        return _READ[name]
    if expression := metadata.get("License-Expression"):
        return str(expression)
    stated = (metadata.get("License") or "").strip()
    classifiers = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or () if "License ::" in text]
    if stated and "\n" not in stated and stated != "Dual License":
        return stated
    if classifiers:
        return " or ".join(classifiers)
    raise SystemExit(f"the metadata of {name} have no licence; read its licence file and add it to _READ")


if __name__ == "__main__":
    Path(PAGE).write_text(page())
