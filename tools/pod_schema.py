"""Writes yolojob/api/pod_spec.json, the schema of a pod's spec, from the OpenAPI document of an API server.

    kubectl get --raw /openapi/v3/api/v1 | python tools/pod_schema.py > yolojob/api/pod_spec.json

A cluster test compares the file with the test cluster's API server, so that a new version of Kubernetes shows what has
changed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

Schema = dict[str, Any]

FILE = "yolojob/api/pod_spec.json"
POD_SPEC = "io.k8s.api.core.v1.PodSpec"
NOT_IN_TEMPLATES = ("ephemeralContainers",)
"""Only a subresource of an existing pod may set these."""


def pod_spec_schema(openapi: Schema) -> Schema:
    """The structural schema of a pod's spec: types and required fields, without descriptions and defaults.

    Args:
        openapi: of the core group, version 3.
    """
    schemas = openapi["components"]["schemas"]
    schema = _resolve(schemas[POD_SPEC], schemas)
    for field in NOT_IN_TEMPLATES:
        schema["properties"].pop(field, None)
    # The operator's own pod, with which the template is merged, has containers.
    del schema["required"]
    return schema


def _resolve(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    (reference,) = schema.get("allOf") or [schema]
    if "$ref" in reference:
        reference = schemas[reference["$ref"].rsplit("/", 1)[1]]
        return _resolve(reference, schemas)
    if "oneOf" in schema or schema.get("format") == "int-or-string":
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    out: Schema = {"type": schema["type"]}
    if "properties" in schema:
        out["properties"] = {name: _resolve(child, schemas) for name, child in sorted(schema["properties"].items())}
    if "items" in schema:
        out["items"] = _resolve(schema["items"], schemas)
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _resolve(schema["additionalProperties"], schemas)
    if schema.get("required"):
        out["required"] = schema["required"]
    return out


def render(openapi: Schema) -> str:
    """The file as text."""
    return json.dumps(pod_spec_schema(openapi), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(json.load(sys.stdin)))
