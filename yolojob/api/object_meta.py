"""Checks `metadata` as the API server does (apimachinery's ValidateObjectMeta). Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

from yolojob.api.constants import MAX_NAME_LENGTH
from yolojob.api.structural import Schema, Violation

RANDOM_LENGTH = 5
"""Characters that the API server appends to metadata.generateName."""
_RANDOM_CHARACTERS = "bcdfghjklmnpqrstvwxz2456789"
MAX_ANNOTATION_BYTES = 256 << 10
"""Of all annotations together (apimachinery's TotalAnnotationSizeLimitB)."""
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANYTHING: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = re.compile(rf"{_NAME}(\.{_NAME})*")
_WORD = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_MAX_DOMAIN, _MAX_WORD = 253, 63
_OWNER_FIELDS = ("apiVersion", "kind", "name", "uid")

SCHEMA: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("name", "generateName", "namespace", "uid", "resourceVersion", "selfLink"), _TEXT),
        **dict.fromkeys(("creationTimestamp", "deletionTimestamp"), _TEXT),
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "generation": {"type": "integer"},
        "deletionGracePeriodSeconds": {"type": "integer"},
        "finalizers": {"type": "array", "items": _TEXT},
        "ownerReferences": {
            "type": "array",
            "items": {
                "type": "object",
                "required": list(_OWNER_FIELDS),
                "properties": {
                    **dict.fromkeys(_OWNER_FIELDS, _TEXT),
                    **dict.fromkeys(("controller", "blockOwnerDeletion"), _FLAG),
                },
            },
        },
        "managedFields": _ANYTHING,
    },
}


def generated_name(prefix: str) -> str:
    """A name for metadata.generateName, as the API server makes it."""
    return prefix + "".join(secrets.choice(_RANDOM_CHARACTERS) for _ in range(RANDOM_LENGTH))


def violations(metadata: dict[str, Any]) -> Iterator[Violation]:
    """What is wrong with names, labels and annotations, except for metadata.name, which has a rule of its own.

    Args:
        metadata: has the types of SCHEMA.
    """
    namespace = metadata.get("namespace")
    if namespace and (not re.fullmatch(_NAME, namespace) or len(namespace) > _MAX_WORD):
        yield Violation("metadata.namespace", namespace, "must be a DNS label of at most 63 characters")
    prefix = metadata.get("generateName")
    if prefix and not metadata.get("name") and len(prefix) + RANDOM_LENGTH > MAX_NAME_LENGTH:
        message = f"must have at most {MAX_NAME_LENGTH - RANDOM_LENGTH} characters: {RANDOM_LENGTH} are appended"
        yield Violation("metadata.generateName", prefix, message)
    for name, value in (metadata.get("labels") or {}).items():
        if problem := _key_problem(name):
            yield Violation("metadata.labels", name, problem)
        if value and (not _WORD.fullmatch(value) or len(value) > _MAX_WORD):
            yield Violation("metadata.labels", value, "a value has at most 63 letters, digits, '-', '_' and '.'")
    annotations = metadata.get("annotations") or {}
    for name in annotations:
        if problem := _key_problem(name.lower()):
            yield Violation("metadata.annotations", name, problem)
    if sum(len(name.encode()) + len(value.encode()) for name, value in annotations.items()) > MAX_ANNOTATION_BYTES:
        yield Violation("metadata.annotations", None, f"must have at most {MAX_ANNOTATION_BYTES >> 10} KiB")
    for name in metadata.get("finalizers") or ():
        if problem := _key_problem(name):
            yield Violation("metadata.finalizers", name, problem)


def _key_problem(key: str) -> str:
    """What is wrong with the name of a label; empty if it is correct."""
    domain, slash, word = key.rpartition("/")
    if slash and (not _DOMAIN.fullmatch(domain) or len(domain) > _MAX_DOMAIN):
        return "the part before the slash must be a domain"
    if not _WORD.fullmatch(word) or len(word) > _MAX_WORD:
        return "must be NAME or DOMAIN/NAME: a name has at most 63 letters, digits, '-', '_' and '.'"
    return ""
