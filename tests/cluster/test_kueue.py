"""Jobs in a queue of a real Kueue: gated, admitted, preempted, and cleaned up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually
from support.jobs import attempts, job, phase, suspend
from support.kube import Kube, devcluster
from support.operator_process import Operator

pytestmark = [pytest.mark.timeout(300), pytest.mark.exclusive]
"""Kueue's webhooks and finalizers apply to pods of the whole cluster."""
GPUS = 8
KUEUE = "kueue.x-k8s.io/v1beta1"


@pytest.fixture(scope="module", autouse=True)
def queue(kube: Kube, operator: Operator) -> Iterator[str]:
    """A queue of eight GPUs with preemption of lower priorities."""
    if kube.is_devcluster:
        devcluster("kueue", "start")
    elif kube.run("get", "crd", "workloads.kueue.x-k8s.io", check=False).returncode:
        reason = "this cluster has no Kueue"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    name = kube.namespace
    quota = {"name": "nvidia.com/gpu", "nominalQuota": GPUS}
    other_quotas = [{"name": resource, "nominalQuota": 1000} for resource in ("cpu", "memory")]
    group = {
        "coveredResources": ["nvidia.com/gpu", "cpu", "memory"],
        "flavors": [{"name": name, "resources": [quota, *other_quotas]}],
    }
    kube.apply(
        {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": name}},
        {
            "apiVersion": KUEUE,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [group],
                "preemption": {"withinClusterQueue": "LowerPriority"},
            },
        },
        {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": "team"}, "spec": {"clusterQueue": name}},
        *(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": f"{name}-{level}"},
                "value": value,
                "preemptionPolicy": "Never",
            }
            for level, value in (("low", 10), ("high", 1000))
        ),
    )
    yield "team"
    kube.run("delete", "yolotrainingjobs", "--all")
    eventually(lambda: not kube.get("pods").get("items"), "all pods are gone", seconds=60)
    for kind in ("localqueue", "clusterqueue", "resourceflavor"):
        kube.run("delete", f"{kind}.kueue.x-k8s.io", "team" if kind == "localqueue" else name)
    kube.run("delete", "priorityclass", f"{name}-low", f"{name}-high")
    if kube.is_devcluster:
        devcluster("kueue", "stop")


def queued(kube: Kube, name: str, code: int | None = None, after: str = "1s", level: str = "low", **spec: Any) -> Any:
    """A job that uses all GPUs of the queue."""
    scheduling = {"gang": "kueue", "queue": "team", "priorityClassName": f"{kube.namespace}-{level}"}
    document = job(name, code, after, scheduling=scheduling, **spec)
    document["spec"]["workers"]["gpu"] = {"count": GPUS // 2}
    return document


def workloads(kube: Kube) -> list[str]:
    return [w["metadata"]["name"] for w in kube.get("workloads.kueue.x-k8s.io")["items"]]


def test_job_in_a_full_queue_is_gated_until_admitted(kube: Kube) -> None:
    kube.create(queued(kube, "first", 0, "8s"))
    phase(kube, "first", "Running")
    kube.create(queued(kube, "second", 0, "2s"))
    status = phase(kube, "second", "Queued")
    assert kube.condition("second", "Scheduled")["reason"] == "Gated"
    assert "queue team" in kube.condition("second", "Scheduled")["message"]
    assert status["phase"] == "Queued"
    phase(kube, "first", "Succeeded")
    status = phase(kube, "second", "Succeeded")
    assert (status["attempt"], status["disruptions"]) == (1, 0)
    assert status["timing"]["queuedSeconds"] >= 4, "it waited for the first job"
    assert status["timing"].get("schedulingSeconds", 0) <= 3


def test_failed_attempt_is_queued_again(kube: Kube) -> None:
    kube.create(queued(kube, "again", 1, "1s", runPolicy={"backoffLimit": 1}))
    status = phase(kube, "again", "Failed", seconds=60)
    assert (status["attempt"], status["restarts"]) == (2, 1)
    assert kube.condition("again", "Failed")["reason"] == "BackoffLimitExceeded"


def test_job_preempted_by_a_higher_priority_is_queued_and_runs_later(kube: Kube) -> None:
    kube.create(queued(kube, "humble", 0, "15s"))
    phase(kube, "humble", "Running")
    kube.create(queued(kube, "urgent", 0, "5s", level="high"))
    phase(kube, "urgent", "Running", seconds=40)
    waiting = phase(kube, "humble", "Queued")
    assert (waiting["attempt"], waiting["restarts"], waiting["disruptions"]) == (2, 0, 1)
    assert waiting["history"][0]["reason"].startswith("WorkloadEvictedDueToPreempted")
    phase(kube, "urgent", "Succeeded")
    phase(kube, "humble", "Running", seconds=40)
    assert attempts(kube, "humble") == {"2"}
    phase(kube, "humble", "Succeeded", seconds=40)


def test_suspended_job_frees_its_quota(kube: Kube) -> None:
    kube.create(queued(kube, "paused"))
    phase(kube, "paused", "Running")
    kube.create(queued(kube, "next", 0, "2s"))
    phase(kube, "next", "Queued")
    suspend(kube, "paused", True)
    phase(kube, "next", "Succeeded", seconds=40)
    suspend(kube, "paused", False)
    phase(kube, "paused", "Running", seconds=40)


def test_gated_job_respects_its_deadlines_and_suspension(kube: Kube) -> None:
    """A gated job is not active. preRunningDeadlineSeconds limits how long it may be gated, and reports the reason."""
    kube.create(queued(kube, "holder"))
    phase(kube, "holder", "Running")
    kube.create(queued(kube, "patient", 0, "2s", runPolicy={"activeDeadlineSeconds": 4}))
    kube.create(queued(kube, "hasty", runPolicy={"preRunningDeadlineSeconds": 6}))
    phase(kube, "patient", "Queued")
    phase(kube, "hasty", "Failed")
    failed = kube.condition("hasty", "Failed")
    assert failed["reason"] == "Gated"
    assert "spec.runPolicy.preRunningDeadlineSeconds" in failed["message"]
    status = phase(kube, "patient", "Queued", seconds=1)
    assert "startTime" not in status
    suspend(kube, "patient", True)
    phase(kube, "patient", "Suspended")
    eventually(lambda: not kube.pods("patient"), "its pods are gone, although Kueue's finalizer would keep them")
    suspend(kube, "patient", False)
    phase(kube, "patient", "Queued")
    kube.run("delete", "yolotrainingjob", "holder")
    status = phase(kube, "patient", "Succeeded", seconds=40)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)


def test_deleted_job_leaves_the_queue_when_running_or_gated(kube: Kube) -> None:
    """Kueue's finalizer would keep the pods of an unfinished group."""
    kube.create(queued(kube, "runs"))
    phase(kube, "runs", "Running")
    kube.create(queued(kube, "waits"))
    phase(kube, "waits", "Queued")
    kube.run("delete", "yolotrainingjobs", "runs", "waits")
    eventually(lambda: not kube.get("pods").get("items"), "the pods are gone", seconds=20)
    eventually(lambda: not workloads(kube), "the workloads are gone", seconds=20)
