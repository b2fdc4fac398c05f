"""Pod failures that kwok does not simulate: the test writes the pod status that a kubelet would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from support import eventually
from support.jobs import job, phase
from support.kube import Kube
from support.operator_process import Operator

pytestmark = pytest.mark.usefixtures("operator")
IDLE_NODE = "no-kubelet"
"""A node without a kubelet, real or simulated: pods are scheduled to it, and their status does not change."""


@pytest.fixture(scope="module")
def idle_node(kube: Kube) -> Iterator[None]:
    size = {"cpu": "96", "memory": "1000Gi", "pods": "200"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": IDLE_NODE, "labels": {"type": IDLE_NODE}}}
    kube.apply(node)
    patch = json.dumps({"status": {"allocatable": size, "capacity": size}})
    kube.run("patch", "node", IDLE_NODE, "--subresource=status", "--type=merge", "--patch", patch)
    yield
    kube.run("delete", "node", IDLE_NODE)


def has_reason(kube: Kube, name: str, kind: str, reason: str) -> bool:
    """Whether a condition of a job has this reason."""
    return kube.condition(name, kind).get("reason") == reason


def set_status(kube: Kube, pod: str, **status: Any) -> None:
    """Write a pod's status as its kubelet would."""
    patch = json.dumps({"status": status})
    kube.run("patch", "pod", pod, "--subresource=status", "--type=merge", "--patch", patch)


def terminated(code: int, reason: str = "Error", message: str = "") -> list[dict[str, Any]]:
    """Container statuses of a trainer that has terminated."""
    moments = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message, **moments}}
    return [{"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def test_out_of_memory_failure_message_has_the_memory_limit(kube: Kube) -> None:
    document = job("oom", runPolicy={"backoffLimit": 0})
    document["spec"]["workers"]["resources"] = {"limits": {"memory": "3Gi"}}
    kube.create(document)
    phase(kube, "oom", "Running")
    set_status(kube, "oom-worker-1", phase="Failed", containerStatuses=terminated(137, "OOMKilled"))
    phase(kube, "oom", "Failed")
    message = kube.condition("oom", "Failed")["message"]
    assert "OOMKilled" in message
    assert "memory limit of 3Gi" in message


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown", "OutOfcpu"])
def test_pod_rejected_or_evicted_by_the_kubelet_is_a_disruption(kube: Kube, reason: str) -> None:
    name = reason.lower()
    kube.create(job(name, runPolicy={"backoffLimit": 0}))
    phase(kube, name, "Running")
    set_status(kube, f"{name}-worker-1", phase="Failed", reason=reason, message="The node was low on resource: memory.")
    eventually(lambda: kube.status(name)["attempt"] == 2, "the job starts another attempt")
    status = phase(kube, name, "Running")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert status["history"][0]["reason"] == reason


def test_job_with_a_running_sidecar_succeeds_when_its_trainer_does(kube: Kube) -> None:
    document = job("meshed", runPolicy={"cleanPodPolicy": "Running"})
    proxy = {"name": "proxy", "image": "envoy"}
    document["spec"]["workers"]["template"]["spec"]["containers"] = [proxy]
    kube.create(document)
    phase(kube, "meshed", "Running")
    sidecar: dict[str, Any] = {"name": "proxy", "image": "x", "imageID": "", "ready": True, "restartCount": 0}
    sidecar["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    set_status(kube, "meshed-worker-0", containerStatuses=[*terminated(0, "Completed"), sidecar])
    status = phase(kube, "meshed", "Succeeded")
    assert (status["restarts"], status["attempt"]) == (0, 1)
    eventually(lambda: not kube.pods("meshed"), "the pods of the sidecars are deleted")


def test_image_that_cannot_be_pulled_is_the_reason_of_the_failure(kube: Kube, idle_node: None) -> None:
    document = job("imageless", runPolicy={"preRunningDeadlineSeconds": 6})
    document["spec"]["workers"]["template"]["spec"]["nodeSelector"] = {"type": IDLE_NODE}
    kube.create(document)
    eventually(
        lambda: all(p["spec"].get("nodeName") for p in kube.pods("imageless") or [{"spec": {}}]),
        "the pods are scheduled",
    )
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image trainer:test"}}
    container = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    set_status(kube, "imageless-worker-0", containerStatuses=[container])
    phase(kube, "imageless", "Failed")
    failed = kube.condition("imageless", "Failed")
    assert failed["reason"] == "ImagePullBackOff"
    assert "Back-off pulling image" in failed["message"]
    for pod in kube.pods("imageless"):  # no kubelet finishes their deletion
        kube.run("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("None", 2)])
def test_clean_pod_policy_decides_which_pods_stay(kube: Kube, policy: str, left: int) -> None:
    name = f"clean-{policy.lower()}"
    kube.create(job(name, 0, runPolicy={"cleanPodPolicy": policy}))
    phase(kube, name, "Succeeded")
    eventually(lambda: len(kube.pods(name)) == left, f"{left} pods are left")
    assert kube.condition(name, "Succeeded")["reason"] == "TrainingCompleted"


def set_finalizers(kube: Kube, job_name: str, finalizers: list[str] | None) -> None:
    """Set the finalizers of a job's pods: with any of them, a deleted pod stays."""
    for pod in kube.pods(job_name):
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        kube.run("patch", "pod", pod["metadata"]["name"], "--type=merge", "--patch", patch, check=False)


def test_job_resumed_while_its_pods_terminate_waits_for_them(kube: Kube) -> None:
    kube.create(job("wavering"))
    phase(kube, "wavering", "Running")
    set_finalizers(kube, "wavering", ["test.yolojob.dev/hold"])
    for suspend in (True, False):
        patch = json.dumps({"spec": {"runPolicy": {"suspend": suspend}}})
        kube.run("patch", "yolotrainingjob", "wavering", "--type=merge", "--patch", patch)
        wanted = "Suspended" if suspend else "Resumed"
        eventually(partial(has_reason, kube, "wavering", "Suspended", wanted), wanted)
    assert all(p["metadata"].get("deletionTimestamp") for p in kube.pods("wavering")), (
        "the old pods terminate, and no new pods are created"
    )
    set_finalizers(kube, "wavering", None)
    status = phase(kube, "wavering", "Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)
    assert len(kube.pods("wavering")) == 2


def test_template_edited_while_suspended_applies_to_the_next_pods(kube: Kube) -> None:
    document = job("edited")
    document["spec"]["runPolicy"] = {"suspend": True}
    kube.create(document)
    phase(kube, "edited", "Suspended")
    template = {"metadata": {"labels": {"team": "vision"}}}
    patch = json.dumps({"spec": {"workers": {"template": template}, "runPolicy": {"suspend": False}}})
    refused = kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", patch, check=False)
    first = json.dumps({"spec": {"workers": {"template": template}}})
    if refused.returncode:  # then in two steps
        kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", first)
        second = json.dumps({"spec": {"runPolicy": {"suspend": False}}})
        kube.run("patch", "yolotrainingjob", "edited", "--type=merge", "--patch", second)
    phase(kube, "edited", "Running")
    assert {p["metadata"]["labels"].get("team") for p in kube.pods("edited")} == {"vision"}


def test_foreign_service_with_the_jobs_name_is_a_name_conflict(kube: Kube) -> None:
    spec = {"ports": [{"port": 80}], "selector": {"app": "other"}}
    kube.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "named"}, "spec": spec})
    kube.create(job("named"))
    eventually(
        lambda: kube.condition("named", "Scheduled").get("reason") == "NameConflict",
        "the condition reports the conflict",
    )
    assert not kube.pods("named")
    kube.run("delete", "service", "named")
    phase(kube, "named", "Running", seconds=60)
    assert kube.get("service", "named")["spec"]["clusterIP"] == "None"


def test_job_managed_by_another_controller_gets_no_status(kube: Kube) -> None:
    kube.create(job("foreign", runPolicy={"managedBy": "example.com/other"}))
    kube.create(job("ours"))
    phase(kube, "ours", "Running")
    assert kube.status("foreign") == {}
    assert not kube.pods("foreign")


def test_ttl_and_deadline_survive_a_restart_of_the_operator(kube: Kube, operator: Operator) -> None:
    kube.create(job("kept", 0, runPolicy={"ttlSecondsAfterFinished": 4}))
    document = job("stuck", runPolicy={"preRunningDeadlineSeconds": 6})
    document["spec"]["workers"]["resources"] = {"requests": {"cpu": "1000"}}
    kube.create(document)
    phase(kube, "kept", "Succeeded")
    eventually(
        lambda: kube.condition("stuck", "Scheduled").get("reason") == "Unschedulable", "the condition has the reason"
    )
    operator.kill()
    operator.start()
    eventually(lambda: not kube.get("yolotrainingjob", "kept"), "the job is deleted", seconds=20)
    phase(kube, "stuck", "Failed")
    assert kube.condition("stuck", "Failed")["reason"] == "Unschedulable"
