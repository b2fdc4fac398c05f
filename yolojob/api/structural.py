"""Checks a value against a structural schema, as the API server checks a custom resource. Pure.

The schemas are those of the generated CustomResourceDefinition, so both give the same verdict at the same paths. The
steps and their order are those of apiextensions-apiserver: unknown fields, null, types and limits
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/). Defaults are left to
the models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

Schema = dict[str, Any]

MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
MAX_PLAIN = 1e21


class Violation(NamedTuple):
    """What is wrong with a value."""

    path: str
    value: object
    """None if the message says all."""
    message: str


def normalise_numbers(value: Any) -> Any:
    """A value as it arrives at the API server: JSON has one kind of number, so 16.0 is 16."""
    if isinstance(value, dict):
        return {key: normalise_numbers(child) for key, child in value.items()}
    if isinstance(value, list):
        return [normalise_numbers(child) for child in value]
    # Go writes whole numbers below 10^21 without an exponent (encoding/json), and reads those of 64 bits as integers.
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_PLAIN:
        return int(value)
    return value


def unknown_fields(value: Any, schema: Schema, path: str = "") -> Iterator[Violation]:
    """Fields that the schema does not have; kubectl and this program refuse them."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from unknown_fields(item, schema.get("items") or {}, f"{path}[{number}]")
        return
    if not isinstance(value, dict):
        return
    known = schema.get("properties") or {}
    others = schema.get("additionalProperties")
    for name, child in value.items():
        where = f"{path}.{name}" if path else str(name)
        if name in known:
            yield from unknown_fields(child, known[name], where)
        elif isinstance(others, dict):
            yield from unknown_fields(child, others, where)
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield Violation(where, None, unknown_field(str(name), known))


def unknown_field(name: str, known: Iterable[str]) -> str:
    """The message about an unknown field, with the known field that looks like it."""
    matches = difflib.get_close_matches(name, known, n=1)
    return "unknown field" + (f"; did you mean {matches[0]}?" if matches else "")


def without_nulls(value: Any, schema: Schema) -> Any:
    """The value without the fields that are null: the API server takes them as absent, because none is nullable."""
    if isinstance(value, list):
        return [without_nulls(item, schema.get("items") or {}) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, child in value.items():
        field = _field(schema, name)
        if child is None and field is not None:
            continue
        result[name] = without_nulls(child, field or {})
    return result


def _field(schema: Schema, name: str) -> Schema | None:
    """The schema of a field of an object; None if it has none."""
    known = schema.get("properties") or {}
    if name in known:
        return dict(known[name])
    others = schema.get("additionalProperties")
    return others if isinstance(others, dict) else None


def violations(value: Any, schema: Schema, path: str = "") -> Iterator[Violation]:
    """Values of the wrong type or outside of the limits.

    Args:
        value: as `normalise_numbers` and `without_nulls` return it.
        schema: structural.
        path: of the value.
    """
    kind = "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type")
    if kind is not None and not _TYPES[kind](value):
        hint = '; write it as text: "1.5"' if kind == "int-or-string" and isinstance(value, float) else ""
        yield Violation(path, value, f"must be {_NAMES[kind]}{hint}")
        return
    for message in _limits(value, schema):
        yield Violation(path, value, message)
    if isinstance(value, dict):
        for name in schema.get("required") or ():
            if name not in value:
                yield Violation(f"{path}.{name}" if path else name, None, "is required")
        for name, child in value.items():
            field = _field(schema, name)
            if field is not None:
                yield from violations(child, field, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from violations(item, schema.get("items") or {}, f"{path}[{number}]")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and MIN_INT64 <= value <= MAX_INT64


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": _is_number,
    "int-or-string": lambda value: _is_integer(value) or isinstance(value, str),
}
_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "int-or-string": "an integer or a string",
}


def _limits(value: Any, schema: Schema) -> Iterator[str]:
    """What a value violates besides its type."""
    if "enum" in schema and not any(_equal(value, allowed) for allowed in schema["enum"]):
        yield f"must be one of {', '.join(_shown(allowed) for allowed in schema['enum'])}"
    if "not" in schema and not any(_limits(value, schema["not"])):
        yield f"must not be one of {', '.join(_shown(refused) for refused in schema['not'].get('enum', ()))}"
    if _is_number(value):
        yield from _number_limits(value, schema)
    elif isinstance(value, str):
        if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
            yield f"must match {schema['pattern']}"
        yield from _size_limits(len(value), schema, "Length", "characters")
    elif isinstance(value, list):
        yield from _size_limits(len(value), schema, "Items", "items")
    elif isinstance(value, dict):
        yield from _size_limits(len(value), schema, "Properties", "fields")


def _number_limits(value: float, schema: Schema) -> Iterator[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (value == low and schema.get("exclusiveMinimum"))):
        yield f"must be {'greater than' if schema.get('exclusiveMinimum') else 'at least'} {low}"
    if high is not None and (value > high or (value == high and schema.get("exclusiveMaximum"))):
        yield f"must be {'less than' if schema.get('exclusiveMaximum') else 'at most'} {high}"
    if schema.get("multipleOf") == 1 and not float(value).is_integer():
        yield "must be an integer"


def _size_limits(size: int, schema: Schema, kind: str, unit: str) -> Iterator[str]:
    low, high = schema.get(f"min{kind}", 0), schema.get(f"max{kind}")
    if size < low:
        yield f"must have at least {low} {unit}, but has {size}"
    if high is not None and size > high:
        yield f"must have at most {high} {unit}, but has {size}"


def _equal(value: object, allowed: object) -> bool:
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """A pattern with the meaning that it has in Go, where `$` does not match before a final line break."""
    return re.compile(text.replace("$", r"\Z"), re.ASCII)
