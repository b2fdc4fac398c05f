"""Types of Kubernetes API objects, how they are kept in memory, and JSON merge patches. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Object = dict[str, Any]
"""An API object as JSON."""
Body = Mapping[str, Any]
"""An API object that is only read."""
Key = tuple[str, str]
"""(namespace, name) of a job."""
MAX_KEPT_TEMPLATE_BYTES = 128 << 10
"""Largest pod template, as JSON, that is kept in memory: the kernel's limit for one environment variable, by which such
a template once reached the trainer. `objects.template_policy` accepts less."""
SHARED_LEVELS = 32
"""Levels of nesting whose keys are shared between objects. No real job is nested deeper."""


@dataclass(frozen=True, kw_only=True)
class EventDraft:
    """A Kubernetes event to post: one line in `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: str
    """One CamelCase word."""
    message: str
    occasion: str
    """Distinguishes events of a job with the same reason: an event is posted once for each occasion."""


def lean(body: Body) -> Object:
    """An API object as it is kept in memory: without managedFields, with interned keys. It takes a third less
    memory.
    """
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return dict(_shared({**body, "metadata": metadata}, levels=SHARED_LEVELS))


def without_large_template(body: Body) -> Object:
    """A job whose pod template is replaced by text if it is larger than MAX_KEPT_TEMPLATE_BYTES.

    The job is then invalid, and says why. No pod can start with such a template, and every job is kept in memory.
    """
    spec = body.get("spec")
    workers = spec.get("workers") if isinstance(spec, dict) else None
    template = workers.get("template") if isinstance(workers, dict) else None
    if not isinstance(spec, dict) or not isinstance(workers, dict) or not template:
        return dict(body)
    if len(json.dumps(template)) <= MAX_KEPT_TEMPLATE_BYTES:
        return dict(body)
    text = f"(left out: larger than {MAX_KEPT_TEMPLATE_BYTES >> 10} KiB)"
    return {**body, "spec": {**spec, "workers": {**workers, "template": text}}}


def _shared(value: Any, levels: int) -> Any:
    if isinstance(value, dict) and levels:
        return {sys.intern(name): _shared(child, levels - 1) for name, child in value.items()}
    return [_shared(child, levels - 1) for child in value] if isinstance(value, list) and levels else value


def merge_patch(old: Object, new: Object) -> Object:
    """The JSON merge patch (RFC 7386) that turns `old` into `new`."""
    patch: Object = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if child := merge_patch(before, value):
                patch[name] = child
        elif value != before:
            patch[name] = value
    return patch
