"""Trimming of watched objects: what the operator keeps of them in memory."""

from __future__ import annotations

import json
from typing import Any

from yolojob_operator.kube.types import lean


def test_lean_keeps_the_whole_spec_of_a_deeply_nested_job() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": [deep]}
    body: dict[str, Any] = {
        "metadata": {"name": "x", "managedFields": [{"f": 1}]},
        "spec": {"template": deep, "list": [{"b": None}]},
    }
    kept, second = lean(body), lean(json.loads('{"metadata": {"name": "y"}, "spec": {}}'))
    assert kept["metadata"] == {"name": "x"}
    assert kept["spec"]["list"] == [{"b": None}]
    assert kept["spec"]["template"]["a"][0].keys() == {"a"}
    assert body["metadata"]["managedFields"], "the argument is not changed"
    assert {id(name) for name in second} <= {id(name) for name in kept}, "equal keys are one object"
