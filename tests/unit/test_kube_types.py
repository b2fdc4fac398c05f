"""Trimming of watched objects: what the operator keeps of them in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from yolojob_operator.kube.types import MAX_KEPT_TEMPLATE_BYTES, lean, without_large_template


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


@pytest.mark.parametrize("size", [0, 1_000, MAX_KEPT_TEMPLATE_BYTES])
def test_job_with_a_large_template_is_kept_without_it(size: int) -> None:
    template = {"metadata": {"annotations": {"a": "x" * size}}}
    spec = {"workers": {"replicas": 2, "template": template}, "train": {}}
    body: dict[str, Any] = {"metadata": {"name": "x"}, "spec": spec}
    kept = without_large_template(body)
    workers = kept["spec"]["workers"]
    assert (workers["replicas"], kept["spec"]["train"]) == (2, {})
    assert workers["template"] == (template if size < MAX_KEPT_TEMPLATE_BYTES else "(left out: larger than 128 KiB)")
    assert len(json.dumps(kept)) < 2 * MAX_KEPT_TEMPLATE_BYTES
    assert body["spec"]["workers"]["template"] is template, "the watched object is unchanged"


@pytest.mark.parametrize("spec", [None, 5, {}, {"workers": None}, {"workers": {"template": None}}])
def test_job_of_any_shape_is_kept_as_it_is(spec: Any) -> None:
    body = {"metadata": {"name": "x"}, "spec": spec}
    assert without_large_template(body) == body
