"""The CustomResourceDefinition, generated from the models: structural schema, defaults, rules, columns."""

from __future__ import annotations

from typing import Any

import yaml

from yolojob.api import constants
from yolojob.api.rules import FIXED, NAME_MESSAGE, NAME_PATTERN, RULES, TRANSITIONS
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.status import YoloTrainingJobStatus

Schema = dict[str, Any]

_KEPT = [
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
    "nullable",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-int-or-string",
]
# CEL's cost is estimated from these bounds; they also keep an object small.
_MAX_KEYS, _MAX_KEY_LENGTH = 32, 253

COLUMNS = (
    ("Phase", "string", ".status.phase", "Where the job stands"),
    ("Workers", "integer", ".status.workers.ready", "Workers that are ready"),
    ("Restarts", "integer", ".status.restarts", "Attempts that failed"),
    ("Epoch", "integer", ".status.progress.epoch", "Epochs completed"),
    ("mAP50", "number", ".status.progress.map50", "mAP at IoU 0.50 of the newest validation"),
    ("Img/s", "number", ".status.progress.imagesPerSecond", "Images trained per second"),
    ("ETA", "string", ".status.progress.eta", "When the training is expected to end"),
    ("Cost", "number", ".status.cost.soFar", "Cost so far"),
    ("Age", "date", ".metadata.creationTimestamp", "Since the job was created"),
)


def structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """A pydantic JSON schema as a Kubernetes structural one: no references, no unions with null, no `const`."""
    if reference := schema.get("$ref"):
        target = definitions[reference.rsplit("/", 1)[1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    schema = dict(schema)
    if schema.get("x-kubernetes-int-or-string") is None and "anyOf" in schema:
        members = [m for m in schema.pop("anyOf") if m != {"type": "null"}]
        if len(members) != 1:
            raise TypeError(f"a structural schema has no unions: {members}")
        schema = {**structural(members[0], definitions), **schema, "nullable": True}
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(bound), int | float) and not isinstance(schema[bound], bool):
            schema[limit], schema[bound] = schema[bound], True
    if schema.get("default", 0) is None:
        del schema["default"]
    if schema.get("type") == "object" and schema.get("additionalProperties") is False:
        del schema["additionalProperties"]
    out = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in out:
        out["properties"] = {name: structural(child, definitions) for name, child in out["properties"].items()}
    if isinstance(out.get("items"), dict):
        out["items"] = structural(out["items"], definitions)
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(out["additionalProperties"], definitions)
        out.setdefault("maxProperties", _MAX_KEYS)
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    return out


def defaulted(schema: Schema) -> Schema:
    """The schema with `default: {}` on every optional object, without which its fields' own defaults never apply."""
    for name, child in schema.get("properties", {}).items():
        defaulted(child)
        if child.get("type") == "object" and name not in schema.get("required", ()) and not child.get("nullable"):
            child["default"] = {}
    return schema


def _of(model: type[YoloTrainingJobSpec] | type[YoloTrainingJobStatus]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return structural(schema, schema.get("$defs", {}))


def _rule(field: str, cel: str, message: str) -> Schema:
    return {"rule": cel, "message": message, "fieldPath": f".{field}"}


def spec_schema() -> Schema:
    schema = defaulted(_of(YoloTrainingJobSpec))
    schema["x-kubernetes-validations"] = [
        *(_rule(rule.field, rule.cel, rule.message) for rule in RULES),
        *(_rule(*transition) for transition in TRANSITIONS),
    ]
    for field in FIXED:
        schema["properties"][field]["x-kubernetes-validations"] = [
            {"rule": "self == oldSelf", "message": "cannot be changed: it is what the job is; create another job"}
        ]
    return schema


def status_schema() -> Schema:
    schema = _of(YoloTrainingJobStatus)
    conditions = schema["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    for child in schema["properties"].values():
        child.pop("default", None)  # nobody but the operator writes here
    return schema


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition."""
    spec = spec_schema()
    schema = {
        "description": "One training of one YOLO detector, by one or many workers.",
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
    """The CRD as the YAML that is committed."""
    header = "# Generated from the models by `make generate`. Do not edit.\n"
    return header + yaml.safe_dump(crd(), sort_keys=False, width=1000, allow_unicode=True)
