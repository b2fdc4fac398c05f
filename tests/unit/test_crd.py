"""The generated CustomResourceDefinition: size, columns, descriptions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from yolojob.api.crd import COLUMNS, crd, render, structural


def test_crd_is_small_enough_for_client_side_apply() -> None:
    """kubectl keeps a copy in an annotation, and annotations are limited to 256 KiB."""
    assert len(render()) < 160_000
    assert len(json.dumps(crd())) < 128_000


def test_columns_are_unchanged() -> None:
    """Scripts may parse the output of `kubectl get`."""
    assert [c[0] for c in COLUMNS] == ["Phase", "Workers", "Restarts", "Epoch", "Score", "Img/s", "ETA", "Cost", "Age"]


def test_crd_describes_every_field_of_the_spec() -> None:
    def walk(schema: dict[str, Any], path: str) -> None:
        for name, child in schema.get("properties", {}).items():
            assert child.get("description") or ".template." in f"{path}.", f"{path}.{name}"
            walk(child, f"{path}.{name}")

    walk(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec")


def test_structural_of_union_is_refused() -> None:
    with pytest.raises(TypeError, match="unions"):
        structural({"anyOf": [{"type": "integer"}, {"type": "string"}]}, {})
