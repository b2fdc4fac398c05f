"""The check of a value against a structural schema; a cluster test compares it with the API server."""

from __future__ import annotations

from typing import Any

import pytest

from yolojob.api.structural import Schema, normalise_numbers, unknown_fields, violations, without_nulls

SCHEMA: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "rate": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "size": {"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+Gi$"},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "list": {"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {"x": {"type": "boolean"}}}},
        "map": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}},
        "any": {"x-kubernetes-preserve-unknown-fields": True},
    },
}


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"name": "a"}, []),
        ({}, ["name"]),
        ([], [""]),
        ({"name": "a\n"}, ["name"]),
        ({"name": "A"}, ["name"]),
        ({"name": "abcdef"}, ["name"]),
        ({"name": "a", "count": True}, ["count"]),
        ({"name": "a", "count": 0}, ["count"]),
        ({"name": "a", "count": 2**63}, ["count"]),
        ({"name": "a", "rate": 0}, ["rate"]),
        ({"name": "a", "rate": 0.1}, []),
        ({"name": "a", "size": 1.5}, ["size"]),
        ({"name": "a", "size": "1Gi"}, []),
        ({"name": "a", "size": "1"}, ["size"]),
        ({"name": "a", "mode": "c"}, ["mode"]),
        ({"name": "a", "list": [{"x": 1}, {}]}, ["list[0].x"]),
        ({"name": "a", "list": [{}, {}, {}]}, ["list"]),
        ({"name": "a", "map": {"k": 1}}, ["map.k"]),
        ({"name": "a", "map": {"k": "", "l": ""}}, ["map"]),
        ({"name": "a", "any": {"b": [1]}}, []),
    ],
)
def test_violations_name_the_paths(value: Any, paths: list[str]) -> None:
    assert [violation.path for violation in violations(value, SCHEMA)] == paths


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ({"nam": 1}, ["nam"]),
        ({"list": [{"y": 1}]}, ["list[0].y"]),
        ({"map": {"k": "v"}, "any": {"b": {"c": 1}}}, []),
        ({"name": {"x": 1}}, ["name.x"]),
    ],
)
def test_unknown_fields_are_found(value: Any, paths: list[str]) -> None:
    assert [violation.path for violation in unknown_fields(value, SCHEMA)] == paths


def test_unknown_field_hints_at_the_known_one() -> None:
    (violation,) = unknown_fields({"naem": 1}, SCHEMA)
    assert violation.message == "unknown field; did you mean name?"


def test_nulls_are_absent_but_not_in_lists() -> None:
    value = {"name": None, "map": {"k": None}, "list": [None, {"x": None}], "any": {"b": None}}
    assert without_nulls(value, SCHEMA) == {"map": {}, "list": [None, {}], "any": {"b": None}}


@pytest.mark.parametrize(
    ("value", "expected"), [(16.0, 16), (1e20, 10**20), (1e21, 1e21), (0.5, 0.5), (True, True), ([1.0], [1])]
)
def test_whole_numbers_are_integers(value: Any, expected: Any) -> None:
    result = normalise_numbers({"a": value})["a"]
    assert (result, type(result)) == (expected, type(expected))
