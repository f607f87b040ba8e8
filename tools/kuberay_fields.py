"""Write the fields of KubeRay's published RayJob that ``clusters/kuberay.yaml`` uses, with their types.

    python tools/kuberay_fields.py ray.io_rayjobs.yaml

The argument is the custom resource definition (CRD) of a release of KubeRay, in
``ray-operator/config/crd/bases``. It has 25,000 lines; the test needs only these fields.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def used(schema: dict[str, Any], value: Any) -> dict[str, Any]:
    """The part of a schema that describes a value, with no other fields allowed.

    Raises
    ------
    KeyError
        If the value has a field that the schema does not know.
    """
    if isinstance(value, dict) and "properties" in schema:
        fields = {name: used(schema["properties"][name], one) for name, one in value.items()}
        needed = [name for name in schema.get("required", []) if name in fields]
        return {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        parts = [used(schema["items"], one) for one in value]
        return {"type": "array", "items": {"anyOf": parts}}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return {key: schema[key] for key in ("type", "enum", "minimum") if key in schema}


def main(path: str) -> None:
    """Write the schema to ``tests/kuberay_rayjob.json``."""
    definition = yaml.safe_load(Path(path).read_text("utf-8"))
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # checked by Kubernetes, not by the CRD
    found = used(schema, yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text("utf-8")))
    (ROOT / "tests" / "kuberay_rayjob.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
