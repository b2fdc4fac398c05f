"""Ends and beginnings that kwok does not play by itself: the test writes what a kubelet would have written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually
from support.jobs import job, phase
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.usefixtures("operator")
STILL = "nobody-plays-it"
"""A node without a kubelet, real or simulated: pods are placed there, and nothing happens to them."""


@pytest.fixture(scope="module")
def still(kube: Kube) -> Iterator[None]:
    size = {"cpu": "96", "memory": "1000Gi", "pods": "200"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": STILL, "labels": {"type": STILL}}}
    kube.apply(node)
    patch = json.dumps({"status": {"allocatable": size, "capacity": size}})
    kube.run("patch", "node", STILL, "--subresource=status", "--type=merge", "--patch", patch)
    yield
    kube.run("delete", "node", STILL)


def say(kube: Kube, pod: str, **status: Any) -> None:
    """Write a pod's status, as its kubelet would."""
    patch = json.dumps({"status": status})
    kube.run("patch", "pod", pod, "--subresource=status", "--type=merge", "--patch", patch)


def ended(code: int, reason: str = "Error", message: str = "") -> list[dict[str, Any]]:
    moments = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message, **moments}}
    return [{"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def test_out_of_memory_is_named_with_the_limit(kube: Kube) -> None:
    document = job("oom", runPolicy={"backoffLimit": 0})
    document["spec"]["workers"]["resources"] = {"limits": {"memory": "3Gi"}}
    kube.create(document)
    phase(kube, "oom", "Running")
    say(kube, "oom-worker-1", phase="Failed", containerStatuses=ended(137, "OOMKilled"))
    phase(kube, "oom", "Failed")
    message = kube.condition("oom", "Failed")["message"]
    assert "OOMKilled" in message
    assert "memory limit of 3Gi" in message


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown", "OutOfcpu"])
def test_what_a_kubelet_does_is_no_failure(kube: Kube, reason: str) -> None:
    name = reason.lower()
    kube.create(job(name, runPolicy={"backoffLimit": 0}))
    phase(kube, name, "Running")
    say(kube, f"{name}-worker-1", phase="Failed", reason=reason, message="The node was low on resource: memory.")
    eventually(lambda: kube.status(name)["attempt"] == 2, "another attempt")
    status = phase(kube, name, "Running")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert status["history"][0]["reason"] == reason


def test_a_sidecar_does_not_keep_a_job_alive(kube: Kube) -> None:
    document = job("meshed", runPolicy={"cleanPodPolicy": "Running"})
    proxy = {"name": "proxy", "image": "envoy"}
    document["spec"]["workers"]["template"]["spec"]["containers"] = [proxy]
    kube.create(document)
    phase(kube, "meshed", "Running")
    other = {"name": "proxy", "image": "x", "imageID": "", "ready": True, "restartCount": 0}
    other["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    say(kube, "meshed-worker-0", containerStatuses=[*ended(0, "Completed"), other])
    status = phase(kube, "meshed", "Succeeded")
    assert (status["restarts"], status["attempt"]) == (0, 1)
    eventually(lambda: not kube.pods("meshed"), "what the proxies hold is freed")


def test_an_image_that_cannot_be_pulled_is_the_reason(kube: Kube, still: None) -> None:
    document = job("imageless", runPolicy={"preRunningDeadlineSeconds": 6})
    document["spec"]["workers"]["template"]["spec"]["nodeSelector"] = {"type": STILL}
    kube.create(document)
    eventually(
        lambda: all(p["spec"].get("nodeName") for p in kube.pods("imageless") or [{"spec": {}}]), "they are placed"
    )
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image trainer:test"}}
    container = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    say(kube, "imageless-worker-0", containerStatuses=[container])
    phase(kube, "imageless", "Failed")
    failed = kube.condition("imageless", "Failed")
    assert failed["reason"] == "ImagePullBackOff"
    assert "Back-off pulling image" in failed["message"]
    for pod in kube.pods("imageless"):  # no kubelet lets go of them
        kube.run("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("None", 2)])
def test_which_pods_are_cleaned(kube: Kube, policy: str, left: int) -> None:
    name = f"clean-{policy.lower()}"
    kube.create(job(name, 0, runPolicy={"cleanPodPolicy": policy}))
    phase(kube, name, "Succeeded")
    eventually(lambda: len(kube.pods(name)) == left, f"{left} pods are left")
    assert kube.condition(name, "Succeeded")["reason"] == "TrainingCompleted"


def hold(kube: Kube, job_name: str, finalizers: list[str] | None) -> None:
    """Keep a job's pods, or let go of them."""
    for pod in kube.pods(job_name):
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        kube.run("patch", "pod", pod["metadata"]["name"], "--type=merge", "--patch", patch, check=False)


def test_resumed_while_its_pods_are_still_ending(kube: Kube) -> None:
    kube.create(job("wavering"))
    phase(kube, "wavering", "Running")
    hold(kube, "wavering", ["test.yolojob.dev/hold"])
    for suspend in (True, False):
        patch = json.dumps({"spec": {"runPolicy": {"suspend": suspend}}})
        kube.run("patch", "yolotrainingjob", "wavering", "--type=merge", "--patch", patch)
        wanted = "Suspended" if suspend else "Resumed"
        eventually(lambda w=wanted: kube.condition("wavering", "Suspended").get("reason") == w, wanted)  # type: ignore[misc]
    assert all(p["metadata"].get("deletionTimestamp") for p in kube.pods("wavering")), (
        "the old ones go, and no new ones come"
    )
    hold(kube, "wavering", None)
    status = phase(kube, "wavering", "Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)
    assert len(kube.pods("wavering")) == 2


def test_a_template_edited_while_suspended_is_what_the_next_pods_have(kube: Kube) -> None:
    document = job("edited")
    document["spec"]["runPolicy"] = {"suspend": True}
    kube.create(document)
    phase(kube, "edited", "Suspended")
    template = {"metadata": {"labels": {"team": "vision"}}}
    patch = json.dumps({"spec": {"workers": {"template": template}, "runPolicy": {"suspend": False}}})
    refused = kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", patch, check=False)
    first = json.dumps({"spec": {"workers": {"template": template}}})
    if refused.returncode:  # one after the other, then
        kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", first)
        go = json.dumps({"spec": {"runPolicy": {"suspend": False}}})
        kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", go)
    phase(kube, "edited", "Running")
    assert {p["metadata"]["labels"].get("team") for p in kube.pods("edited")} == {"vision"}


def test_a_foreign_service_of_its_name_is_said_before_pods_wait_in_vain(kube: Kube) -> None:
    spec = {"ports": [{"port": 80}], "selector": {"app": "other"}}
    kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "named"}, "spec": spec})
    kube.create(job("named"))
    eventually(lambda: kube.condition("named", "Scheduled").get("reason") == "NameConflict", "the conflict is said")
    assert not kube.pods("named")
    kube.run("delete", "service", "named")
    phase(kube, "named", "Running", seconds=60)
    assert kube.get("service", "named")["spec"]["clusterIP"] == "None"


def test_somebody_elses_job_is_left_alone(kube: Kube) -> None:
    kube.create(job("theirs", runPolicy={"managedBy": "example.com/other"}))
    kube.create(job("ours"))
    phase(kube, "ours", "Running")
    assert kube.status("theirs") == {}
    assert not kube.pods("theirs")


def test_ttl_and_deadline_are_kept_by_an_operator_that_was_away(kube: Kube, operator: Operator) -> None:
    kube.create(job("kept", 0, runPolicy={"ttlSecondsAfterFinished": 4}))
    document = job("stuck", runPolicy={"preRunningDeadlineSeconds": 6})
    document["spec"]["workers"]["resources"] = {"requests": {"cpu": "1000"}}
    kube.create(document)
    phase(kube, "kept", "Succeeded")
    eventually(lambda: kube.condition("stuck", "Scheduled").get("reason") == "Unschedulable", "the reason")
    operator.kill()
    operator.start()
    began = time.monotonic()
    eventually(lambda: not kube.get("yolotrainingjob", "kept"), "it is deleted", seconds=20)
    assert time.monotonic() - began <= 12
    phase(kube, "stuck", "Failed")
    assert kube.condition("stuck", "Failed")["reason"] == "Unschedulable"
