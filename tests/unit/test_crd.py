"""The CRD fits into what `kubectl apply` can take."""

from __future__ import annotations

import json

import pytest

from yolojob.api.crd import COLUMNS, crd, render, structural


def test_it_is_small_enough_for_plain_apply() -> None:
    """kubectl keeps a copy in an annotation, and annotations end at 256 KiB; ours ends well before."""
    assert len(render()) < 60_000
    assert len(json.dumps(crd())) < 60_000


def test_columns() -> None:
    assert [c[0] for c in COLUMNS] == ["Phase", "Workers", "Restarts", "Epoch", "mAP50", "Img/s", "ETA", "Cost", "Age"]


def test_every_field_of_the_spec_is_described() -> None:
    def walk(schema: dict, path: str) -> None:  # type: ignore[type-arg]
        for name, child in schema.get("properties", {}).items():
            assert child.get("description") or path.endswith(".template"), f"{path}.{name}"
            walk(child, f"{path}.{name}")

    walk(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec")


def test_a_union_is_refused_rather_than_dropped() -> None:
    with pytest.raises(TypeError, match="unions"):
        structural({"anyOf": [{"type": "integer"}, {"type": "string"}]}, {})
