"""What is kept of the API's objects."""

from __future__ import annotations

import json
from typing import Any

from yolojob_operator.kube.types import lean


def test_a_job_is_kept_lean_and_whole_however_deep_it_is() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": [deep]}
    body = {"metadata": {"name": "x", "managedFields": [{"f": 1}]}, "spec": {"template": deep, "list": [{"b": None}]}}
    kept, other = lean(body), lean(json.loads('{"metadata": {"name": "y"}, "spec": {}}'))
    assert kept["metadata"] == {"name": "x"}
    assert kept["spec"]["list"] == [{"b": None}]
    assert kept["spec"]["template"]["a"][0].keys() == {"a"}
    assert body["metadata"]["managedFields"], "what was given stays as it is"
    assert {id(name) for name in other} <= {id(name) for name in kept}
