"""Generates the CustomResourceDefinition from the models: structural schema, defaults, rules, columns."""

from __future__ import annotations

import functools
import json
from typing import Any

import yaml

from yolojob.api import constants, object_meta
from yolojob.api.rules import FIXED, NAME_MESSAGE, NAME_PATTERN, RULES, TRANSITIONS
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.status import YoloTrainingJobStatus

Schema = dict[str, Any]

_COPIED_KEYS = [
    "type",
    "format",
    "description",
    "default",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "not",
    "anyOf",
    "required",
    "multipleOf",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-int-or-string",
]
# The API server estimates the cost of CEL rules from these limits; they also keep objects small.
_MAX_KEYS = 32
_PLACE = "POD-SPEC"

COLUMNS = (
    ("Phase", "string", ".status.phase", "State of the job"),
    ("Workers", "integer", ".status.workers.ready", "Ready workers"),
    ("Restarts", "integer", ".status.restarts", "Failed attempts"),
    ("Epoch", "integer", ".status.progress.epoch", "Completed epochs"),
    ("Score", "number", ".status.progress.score", "Main metric of the newest validation"),
    ("Img/s", "number", ".status.progress.imagesPerSecond", "Images trained per second"),
    ("ETA", "string", ".status.progress.eta", "Expected end of the training"),
    ("Cost", "number", ".status.cost.soFar", "Cost so far"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the job was created"),
)
WIDE_COLUMNS = (
    ("Task", "string", ".spec.task", "What the model predicts, if the job states it"),
    ("Metric", "string", ".status.progress.mainMetric", "Name of the metric in the column Score"),
)
"""Columns of `kubectl get -o wide` only."""


def structural(schema: Schema, definitions: dict[str, Schema], *, object_defaults: bool = False) -> Schema:
    """Convert pydantic's JSON schema to a structural schema: without references, unions with null, and `const`.

    Args:
        schema: of a value.
        definitions: what its references name.
        object_defaults: add `default: {}` to every object that a model creates by itself: without it, the API server
            does not apply the defaults of its fields.
    """
    if reference := schema.get("$ref"):
        target = definitions[reference.rsplit("/", 1)[1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    schema = dict(schema)
    if schema.get("x-kubernetes-int-or-string") is None and "anyOf" in schema:
        schema = _without_null(schema, definitions)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    _adapt(schema)
    out = {key: schema[key] for key in _COPIED_KEYS if key in schema}
    if "properties" in out:
        out["properties"] = {
            # What a pod template does not name, the operator decides.
            name: structural(child, definitions, object_defaults=object_defaults and name != "template")
            for name, child in out["properties"].items()
        }
        for name, child in out["properties"].items():
            is_optional = "anyOf" in schema["properties"][name] or name in schema.get("required", ())
            if object_defaults and child.get("type") == "object" and not is_optional:
                child["default"] = {}
    if isinstance(out.get("items"), dict):
        out["items"] = structural(out["items"], definitions)
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(out["additionalProperties"], definitions)
        out.setdefault("maxProperties", _MAX_KEYS)
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    return out


def _adapt(schema: Schema) -> None:
    """Write limits and defaults as OpenAPI 3.0 has them."""
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(bound), int | float) and not isinstance(schema[bound], bool):
            schema[limit], schema[bound] = schema[bound], True
    if schema.get("default", 0) is None:
        del schema["default"]
    if schema.get("type") == "object" and schema.get("additionalProperties") is False:
        del schema["additionalProperties"]


def _without_null(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """A union of a type and null, as the type: the API server takes a field that is null and not nullable as absent.

    Raises:
        TypeError: the schema is another union.
    """
    members = [member for member in schema.pop("anyOf") if member != {"type": "null"}]
    if len(members) != 1:
        raise TypeError(f"a structural schema has no unions: {members}")
    return {**structural(members[0], definitions), **schema}


def _structural_schema(
    model: type[YoloTrainingJobSpec] | type[YoloTrainingJobStatus], *, object_defaults: bool
) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return structural(schema, schema.get("$defs", {}), object_defaults=object_defaults)


def _rule(field: str, cel: str, message: str) -> Schema:
    return {"rule": cel, "message": message, "fieldPath": f".{field}"}


def spec_schema() -> Schema:
    """The schema of `spec`, with defaults and rules."""
    schema = _structural_schema(YoloTrainingJobSpec, object_defaults=True)
    schema["x-kubernetes-validations"] = [
        *(_rule(rule.field, rule.cel, rule.message) for rule in RULES),
        *(_rule(*transition) for transition in TRANSITIONS),
    ]
    for field in FIXED:
        schema["properties"][field]["x-kubernetes-validations"] = [
            {"rule": "self == oldSelf", "message": "cannot be changed; create another job"}
        ]
    return schema


def status_schema() -> Schema:
    """The schema of `status`, without defaults."""
    schema = _structural_schema(YoloTrainingJobStatus, object_defaults=False)
    conditions = schema["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    for child in schema["properties"].values():
        child.pop("default", None)  # only the operator writes the status
    return schema


@functools.cache
def manifest_schema() -> Schema:
    """The schema of a whole manifest. `status` is left out: the API server ignores it in manifests."""
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "enum": [constants.API_VERSION]},
            "kind": {"type": "string", "enum": [constants.KIND]},
            "metadata": object_meta.SCHEMA,
            "spec": spec_schema(),
        },
    }


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition."""
    spec = spec_schema()
    schema = {
        "description": "One training of one YOLO detector, by one or more workers.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status_schema(),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.matches('{NAME_PATTERN}') "
                f"&& size(self.metadata.name) <= {constants.MAX_NAME_LENGTH}",
                "message": f"metadata.name {NAME_MESSAGE}",
            }
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{constants.PLURAL}.{constants.GROUP}"},
        "spec": {
            "group": constants.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": constants.KIND,
                "listKind": f"{constants.KIND}List",
                "plural": constants.PLURAL,
                "singular": constants.SINGULAR,
                "shortNames": [constants.SHORT_NAME],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": constants.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": description}
                        for name, kind, path, description in COLUMNS
                    ]
                    + [
                        {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": 1}
                        for name, kind, path, description in WIDE_COLUMNS
                    ],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.workers.active",
                            "labelSelectorPath": ".status.workers.selector",
                        },
                    },
                }
            ],
        },
    }


def render() -> str:
    """The CRD as YAML."""
    header = "# Generated from the models by `make generate`. Do not edit.\n"
    document = crd()
    template = _template_of(document)
    text = yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=True)
    # The schema of a pod has thousands of lines; in one line, the rest of the file stays readable.
    return header + text.replace(_PLACE, json.dumps(template, separators=(", ", ": ")))


def _template_of(document: dict[str, Any]) -> Schema:
    """Replace the schema of a pod's spec in a CustomResourceDefinition by a placeholder; return it."""
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    template = schema["properties"]["spec"]["properties"]["workers"]["properties"]["template"]["properties"]
    pod_spec, template["spec"] = template["spec"], _PLACE
    return dict(pod_spec)
