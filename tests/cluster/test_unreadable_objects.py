"""Objects that the operator cannot read: other jobs run all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support import ROOT, eventually
from support.jobs import job, phase
from support.kube import Kube
from support.operator_process import Operator

from yolojob.api.crd import crd

LEVELS = 1_500
"""More than Python's JSON decoder reads; the API server accepts ten thousand."""


def create_deep(kube: Kube, name: str) -> None:
    """Creates a job whose pod template has an annotation of LEVELS levels."""
    document = job(name)
    document["spec"]["workers"]["template"] = {"metadata": {"annotations": {"deep": "HERE"}}}
    deep = '{"a":' * LEVELS + '"x"' + "}" * LEVELS
    kube.run("create", "--filename", "-", input=json.dumps(document).replace('"HERE"', deep))


@pytest.fixture
def untyped_template(kube: Kube) -> Iterator[None]:
    """The CRD of an earlier version, which stores any content in a pod template. This version's would drop it, also
    from stored objects.
    """
    earlier = crd()
    schema = earlier["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema["properties"]["workers"]["properties"]["template"]["properties"] = {"metadata": anything, "spec": anything}
    kube.run("apply", "--filename", "-", input=json.dumps(earlier))
    eventually(lambda: stores_anything(kube), "the earlier CRD is served", seconds=60)
    yield
    kube.run("delete", "yolotrainingjobs", "--all")
    kube.run("apply", "--filename", str(ROOT / "manifests" / "crd.yaml"))
    eventually(lambda: not stores_anything(kube), "this version's CRD is served", seconds=60)


def stores_anything(kube: Kube) -> bool:
    document = job("probe")
    document["spec"]["workers"]["template"] = {"spec": {"unknown": {"deep": 1}}}
    done = kube.run("create", "--dry-run=server", "--filename", "-", input=json.dumps(document), check=False)
    return done.returncode == 0


def accepted(kube: Kube, name: str) -> dict[str, str]:
    """Returns the condition Accepted of a job that Python cannot decode as a whole."""
    text = kube.run("get", "yolotrainingjob", name, "--output", "jsonpath={.status.conditions}").stdout
    return next((c for c in json.loads(text or "[]") if c["type"] == "Accepted"), {})


@pytest.mark.exclusive
@pytest.mark.usefixtures("untyped_template")
@pytest.mark.parametrize("start", ["watch", "list"])
def test_deeply_nested_job_does_not_stop_other_jobs(kube: Kube, operator: Operator, start: str) -> None:
    """Whether the operator meets it in its watch, or in the list with which it starts."""
    deep, other = f"deep-{start}", f"other-{start}"
    # A watch that was opened before the CRD was replaced shows objects by the schema of that time.
    operator.stop()
    if start == "watch":
        operator.start()
        eventually(lambda: operator.leads, "the operator leads")
    create_deep(kube, deep)
    if start == "list":
        operator.start()
    kube.create(job(other, 0))
    phase(kube, other, "Succeeded")
    eventually(lambda: accepted(kube, deep).get("reason") == "InvalidSpec", "the deep job is refused")
    message = accepted(kube, deep)["message"]
    assert "spec.workers" in message
    assert "nested deeper than 64 levels" in message
    assert not kube.pods(deep)
    eventually(lambda: operator.value("yolojob_unreadable_objects_total") > 0, "the metric counts it")
    assert f"{kube.namespace}/{deep} cannot be read" in operator.log.read_text()
    assert "kopf is restarted" not in operator.log.read_text()
