"""Reads a manifest: from a YAML file to a checked job, or to all its faults with their field paths."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from yolojob.api import object_meta, structural
from yolojob.api.constants import API_VERSION, KIND
from yolojob.api.crd import manifest_schema
from yolojob.api.job import YoloTrainingJob
from yolojob.api.rules import violations
from yolojob.api.train_settings import REPLACED
from yolojob.format import printable

log = logging.getLogger(__name__)

MAX_BYTES = 3 << 20
"""Size limit of a manifest: that of a request to the API server."""
MAX_NODES = 1_000_000
"""Limit of the values in a document, with aliases expanded."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault in a manifest: where it is, what is wrong, and how to correct it."""

    path: str
    """Field path (spec.train.batch), or file with line and column."""
    message: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.path}: {self.message}"
        shown = self.value if isinstance(self.value, str) else json.dumps(self.value, default=str)
        return f"{self.path}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {self.message}"


class InvalidManifest(ValueError):
    """The manifest is invalid; `faults` has every fault."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class _Loader(yaml.CSafeLoader):
    """Reads YAML as kubectl does: with libyaml's scanner, YAML 1.1's numbers and booleans, and dates as text."""

    where = ""
    """Name of the file, for warnings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    mark = key.start_mark
                    place = f"{self.where}:{mark.line + 1}:{mark.column + 1}"
                    # kubectl accepts it silently.
                    log.warning(printable(f"warning: {place}: duplicate key {key.value!r}: the last one counts"))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_INTEGER = r"[-+]?(0b[0-1_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_BOOLEANS = {"y": True, "Y": True, "n": False, "N": False}
"""Those of YAML 1.1 that PyYAML leaves out."""

_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":float", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The first one that matches counts. Numbers of base 60 (60:10) are text.
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^({_INTEGER})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({_FLOAT})$"), list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    if node.value in _BOOLEANS:
        return _BOOLEANS[node.value]
    return bool(loader.construct_yaml_bool(node))


_Loader.add_constructor("tag:yaml.org,2002:bool", _boolean)


MAX_DEPTH = 64
"""Levels of a document. Deeper ones overflow the stack of libyaml's composer."""


def _check_depth(text: str) -> None:
    """Reject documents that are nested too deeply, before they are composed.

    Raises:
        YAMLError: it is, or it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise yaml.YAMLError("the document is nested too deeply")


def _check_size(value: Any, depth: int = 0, budget: list[int] | None = None) -> None:
    """Reject documents that contain themselves, or whose aliases expand to too many values.

    Raises:
        YAMLError: the document is too deep or too large.
    """
    budget = budget if budget is not None else [MAX_NODES]
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise yaml.YAMLError("the document is nested too deeply, or is too large with its aliases expanded")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(child, depth + 1, budget)


def load(path: Path) -> dict[str, Any]:
    """The only YoloTrainingJob of a file; documents of other kinds are ignored.

    Raises:
        InvalidManifest: the file cannot be read, is not YAML, or does not contain exactly one job.
    """
    return load_with_others(path)[0]


def load_with_others(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(the only YoloTrainingJob of a file, KIND/NAME of its other documents).

    Raises:
        InvalidManifest: as `load`.
    """
    documents = [item for document in read_documents(path) for item in _items(document)]
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(jobs) > 1:
        raise _fault(path, f"contains {len(jobs)} YoloTrainingJobs; exactly one is expected")
    if not jobs:
        kinds = ", ".join(str(d.get("kind")) if isinstance(d, dict) else type(d).__name__ for d in documents)
        message = f"contains no document with apiVersion: {API_VERSION} and kind: {KIND}; found: {kinds or 'nothing'}"
        raise _fault(path, message)
    return jobs[0], [_kind_and_name(d) for d in documents if isinstance(d, dict) and d is not jobs[0]]


def _items(document: Any) -> list[Any]:
    """The documents that a document of kind List contains; else the document itself."""
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        return list(document["items"])
    return [document]


def _kind_and_name(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{document.get('kind') or '?'}/{name or '?'}"


def _fault(path: Path, message: str, where: str = "") -> InvalidManifest:
    return InvalidManifest([Fault(path=f"{path}{where}", message=message)])


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file, whose size and depth are limited.

    Raises:
        InvalidManifest: the file cannot be read, or is not YAML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _fault(path, f"{path.stat().st_size} bytes are too large for a manifest (limit: {MAX_BYTES})")
        text = path.read_text(encoding="utf-8")
        if version := re.search(r"^%YAML +(?!1\.1\s)(\S+)", text, re.MULTILINE):
            raise _fault(path, f"%YAML {version[1]}: kubectl reads only YAML 1.1; leave the line out")
        _check_depth(text)
        loader = type("Loader", (_Loader,), {"where": str(path)})
        documents = [d for d in yaml.load_all(text, Loader=loader) if d is not None]
        for document in documents:
            _check_size(document)
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _fault(path, "is not valid UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise _fault(path, error.problem or "is not valid YAML", where) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InvalidManifest):
            raise
        raise _fault(path, f"is not valid YAML: {error}") from None
    return documents


def parse(document: dict[str, Any]) -> YoloTrainingJob:
    """The job of a manifest: accepted if, and only if, the API server would accept it.

    Raises:
        InvalidManifest: has every fault.
    """
    try:
        document, faults = _check(document)
        job = parse_stored(document)
    except InvalidManifest as invalid:
        known = {fault.path for fault in invalid.faults}
        # The models' messages are about the single field; those of the schema complete them.
        raise InvalidManifest([*invalid.faults, *(fault for fault in faults if fault.path not in known)]) from None
    except RecursionError:
        raise InvalidManifest([Fault(path="", message="the document is nested too deeply")]) from None
    if faults:
        raise InvalidManifest(faults)
    return job


def parse_stored(document: dict[str, Any]) -> YoloTrainingJob:
    """The job of an object that the API server has accepted, checked against the models and the rules only.

    Raises:
        InvalidManifest: has every fault.
    """
    try:
        job = YoloTrainingJob.model_validate(document)
    except ValidationError as error:
        raise InvalidManifest(list(_faults(error))) from None
    except RecursionError:
        raise InvalidManifest([Fault(path="", message="the document is nested too deeply")]) from None
    faults = [Fault(path=path, value=value, message=message) for path, value, message in violations(job)]
    if faults:
        raise InvalidManifest(faults)
    return job


def _check(document: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Check a manifest as the API server does, before its rules between fields.

    Returns:
        The document as the API server would store it, and its faults.
    """
    schema = manifest_schema()
    document = {name: value for name, value in structural.normalise_numbers(document).items() if name != "status"}
    found = list(structural.unknown_fields(document, schema))
    document = structural.without_nulls(document, schema)
    found += structural.violations(document, schema)
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and not found:
        found += object_meta.violations(metadata)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = object_meta.generated_name(metadata["generateName"])
    return document, [Fault(path=path, value=value, message=message) for path, value, message in found]


def _faults(error: ValidationError) -> Iterator[Fault]:
    seen: set[str] = set()
    for detail in error.errors():
        path = _path(detail["loc"])
        if path not in seen:  # pydantic reports a union's error once for each of its members
            seen.add(path)
            yield Fault(path=path, value=_value(detail), message=_message(detail, path))


def _path(location: tuple[int | str, ...]) -> str:
    """The field path, such as spec.workers.gpu.types[0], without pydantic's names of union members and keys."""
    path = ""
    model: type[BaseModel] | None = YoloTrainingJob
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        if "[" in part or part in ("int", "float", "str", "bool"):
            continue
        fields = {f.alias or name: f for name, f in model.model_fields.items()} if model else {}
        path += f".{part}" if path else part
        model = _model_of(fields[part].annotation) if part in fields else None
    return path


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_of, get_args(annotation)) if m), None)


def _value(detail: ErrorDetails) -> object:
    return None if detail["type"] in ("missing", "extra_forbidden") else detail["input"]


def _message(detail: ErrorDetails, path: str) -> str:
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "extra_forbidden":
        parent, _, name = path.rpartition(".")
        if parent == "spec.train" and name in REPLACED:
            return f"unknown field: {REPLACED[name]}"
        return structural.unknown_field(name, _fields(parent))
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    message = detail["msg"].replace("Input should", "must")
    return message[0].lower() + message[1:]


def _fields(path: str) -> list[str]:
    """Names of the fields of the object at this path."""
    model: type[BaseModel] | None = YoloTrainingJob
    for part in filter(None, path.split(".")):
        if model is None:
            break
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        model = _model_of(fields[part].annotation) if part in fields else None
    return [f.alias or name for name, f in model.model_fields.items()] if model else []
