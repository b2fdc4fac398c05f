"""The schema of `spec.workers.template`: that of a pod in Kubernetes, in `pod_spec.json` (see tools/pod_schema.py)."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

MAX_ITEMS, MAX_TEXT = 256, 16 << 10
"""Limits of each list, map and text of a template."""


class PodTemplateSchema:
    """Annotation of a field that is a pod template. Reads the schema only when it is asked for: trainers never ask."""

    @staticmethod
    def __get_pydantic_json_schema__(_core: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _schema()


def _schema() -> dict[str, Any]:
    pod_spec = json.loads((files("yolojob.api") / "pod_spec.json").read_text())
    pod_spec["description"] = "The fields of a pod's spec: `kubectl explain pod.spec`."
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = {
        "type": "object",
        "description": "Labels and annotations of the pods.",
        "properties": {
            "labels": texts,
            "annotations": texts,
            # kubectl writes `creationTimestamp: null` into the templates that it prints.
            "creationTimestamp": {"type": "string"},
        },
    }
    return _bounded({"type": "object", "properties": {"metadata": metadata, "spec": pod_spec}})


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with limits for all lists, maps and texts."""
    limited = dict(schema)
    match schema.get("type"):
        case "string":
            limited["maxLength"] = MAX_TEXT
        case "array":
            limited |= {"maxItems": MAX_ITEMS, "items": _bounded(schema["items"])}
        case "object" if "additionalProperties" in schema:
            limited |= {"maxProperties": MAX_ITEMS, "additionalProperties": _bounded(schema["additionalProperties"])}
    if "properties" in schema:
        limited["properties"] = {name: _bounded(child) for name, child in schema["properties"].items()}
    return limited
