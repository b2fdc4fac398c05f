"""Scheduling: elastic sizes, GPU types by the labels of every platform, PodGroups that match their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually
from support.crds import crds
from support.jobs import edit, job, phase, suspend
from support.kube import Kube

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(300)]


def nodes_of(kube: Kube, name: str) -> set[str]:
    """The nodes to which a job's pods are scheduled."""
    return {p["spec"]["nodeName"] for p in kube.pods(name) if p["spec"].get("nodeName")}


def labelled(name: str, labels: dict[str, str], gpus: int = 1) -> dict[str, Any]:
    """A simulated node of another platform."""
    size = {"cpu": "8", "memory": "32Gi", "pods": "20", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, **labels},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
        "status": {"allocatable": size, "capacity": size},
    }


PLATFORMS = {
    "gke-t4": {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"},
    "eks-t4": {"node.kubernetes.io/instance-type": "g4dn.xlarge"},
    "auto-l4": {"eks.amazonaws.com/instance-gpu-name": "l4"},
    "karpenter-l4": {"karpenter.k8s.aws/instance-gpu-name": "l4"},
    "nfd-l40s": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
}


@pytest.fixture(scope="module")
def platforms(kube: Kube) -> Iterator[None]:
    if not kube.is_devcluster:
        pytest.skip("nodes are simulated only in the test cluster")
    kube.apply(*(labelled(name, labels) for name, labels in PLATFORMS.items()))
    yield
    kube.run("delete", "node", *PLATFORMS)


@pytest.mark.parametrize(
    ("types", "nodes"),
    [
        (["T4"], {"gke-t4", "eks-t4"}),
        (["L4"], {"auto-l4", "karpenter-l4"}),
        (["L40S"], {"nfd-l40s"}),
        (["T4", "L4"], {"gke-t4", "eks-t4", "auto-l4", "karpenter-l4"}),
    ],
)
def test_gpu_types_match_the_labels_of_every_platform(
    kube: Kube, platforms: None, types: list[str], nodes: set[str]
) -> None:
    """There are as many workers as GPUs of these types: they use all of these, and no other."""
    name = f"typed-{'-'.join(types).lower()}"
    document = job(name, replicas=len(nodes), train={"batch": 12})
    document["spec"]["workers"]["template"]["spec"] = {}
    document["spec"]["workers"]["gpu"] = {"types": types}
    kube.create(document)
    phase(kube, name, "Running")
    assert nodes_of(kube, name) == nodes


def elastic(name: str, replicas: int = 4, **spec: Any) -> dict[str, Any]:
    """A job whose workers use a whole simulated node each; there are four of these."""
    document = job(name, replicas=replicas, elastic={"minReplicas": 1, "maxReplicas": 4}, train={"batch": 64}, **spec)
    document["spec"]["workers"]["gpu"] = {"count": 8, "types": ["A100"]}
    return document


def blocker(name: str) -> dict[str, Any]:
    """A pod of another user that occupies a whole node."""
    container = {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    spec = {"containers": [container], "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def crowded(kube: Kube) -> Iterator[None]:
    """Two of the four nodes are occupied."""
    if len(kube.get("nodes", "--selector=type=kwok")["items"]) != 4:
        pytest.skip("needs a cluster with four simulated nodes")
    for i in range(2):
        kube.create(blocker(f"blocker-{i}"))
    eventually(
        lambda: all(kube.get("pod", f"blocker-{i}")["spec"].get("nodeName") for i in range(2)), "both are scheduled"
    )
    yield
    kube.run("delete", "pod", "blocker-0", "blocker-1", "--ignore-not-found")


@pytest.mark.exclusive("gpu-nodes")
def test_elastic_job_shrinks_and_grows_with_the_capacity(kube: Kube, crowded: None) -> None:
    """Four workers are requested and two are schedulable; the job grows when capacity is free again."""
    kube.create(elastic("tide"))
    status = phase(kube, "tide", "Running", seconds=60)
    assert [r["workers"] for r in status["history"]] == [4, 2]
    assert status["history"][0]["reason"] == "ScaledDown"
    assert "2 of 4 workers have a node" in status["history"][0]["message"]
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert (status["workers"]["desired"], status["workers"]["ready"]) == (4, 2)
    spares = ("pods", "--selector", "yolojob.dev/job-name=tide,yolojob.dev/spare=true")
    eventually(lambda: len(kube.get(*spares)["items"]) == 2, "it requests capacity", seconds=60)
    assert kube.status("tide")["phase"] == "Running", "it trains while the spare pods wait"
    kube.run("delete", "pod", "blocker-0", "blocker-1")
    eventually(lambda: kube.status("tide")["attempt"] == 3, "the job grows", seconds=60)
    status = phase(kube, "tide", "Running", seconds=30)
    assert [r["workers"] for r in status["history"]] == [4, 2, 4]
    assert status["history"][1]["reason"] == "ScaledUp"
    assert status["workers"]["ready"] == 4
    assert not kube.get(*spares)["items"]


@pytest.mark.exclusive("gpu-nodes")
def test_elastic_job_below_its_minimum_fails_at_its_deadline(kube: Kube, crowded: None) -> None:
    """Two workers are schedulable and four are the minimum: it waits, reports why, and deletes its pods at the
    deadline.
    """
    scarce = elastic("scarce")
    scarce["spec"]["elastic"]["minReplicas"] = 4
    scarce["spec"]["runPolicy"] = {"preRunningDeadlineSeconds": 25}
    kube.create(scarce)
    eventually(lambda: len(nodes_of(kube, "scarce")) == 2, "two workers are scheduled")
    status = phase(kube, "scarce", "Failed", seconds=60)
    assert [r["workers"] for r in status["history"]] == [4]
    failed = kube.condition("scarce", "Failed")
    assert failed["reason"] == "Unschedulable"
    assert "nodes are available" in failed["message"], "the message is the scheduler's"
    eventually(lambda: not kube.pods("scarce"), "the nodes are free")


@pytest.mark.exclusive("gpu-nodes")
def test_kubectl_scale_changes_the_size_within_its_limits(kube: Kube) -> None:
    kube.create(elastic("scaled"))
    phase(kube, "scaled", "Running")
    kube.run("scale", "ytj", "scaled", "--replicas=2")
    eventually(lambda: kube.status("scaled")["attempt"] == 2, "it shrinks immediately", seconds=20)
    phase(kube, "scaled", "Running")
    refused = kube.run("scale", "ytj", "scaled", "--replicas=3", check=False)
    assert "multiple of the worker processes" in refused.stderr
    refused = kube.run("scale", "ytj", "scaled", "--replicas=8", check=False)
    assert "spec.elastic.maxReplicas" in refused.stderr
    kube.run("scale", "ytj", "scaled", "--replicas=4")
    eventually(lambda: kube.status("scaled")["attempt"] == 3, "it grows after its minimum age", seconds=60)
    status = phase(kube, "scaled", "Running")
    assert [r["workers"] for r in status["history"]] == [4, 2, 4]


def test_evicted_worker_is_a_disruption(kube: Kube) -> None:
    kube.create(job("evicted"))
    phase(kube, "evicted", "Running")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted-worker-1"}}
    path = f"/api/v1/namespaces/{kube.namespace}/pods/evicted-worker-1/eviction"
    kube.run("create", "--raw", path, "--filename", "-", input=json.dumps(eviction))
    eventually(lambda: kube.status("evicted")["attempt"] == 2, "there is a new gang")
    status = phase(kube, "evicted", "Running")
    assert [r.get("reason") for r in status["history"]] == ["EvictionByEvictionAPI", None], status["history"]
    assert (status["restarts"], status["disruptions"]) == (0, 1)


@pytest.mark.exclusive("gpu-nodes")
def test_worker_preempted_by_the_scheduler_is_a_disruption(kube: Kube) -> None:
    """A pod of higher priority takes a node. The gang waits until all of it is schedulable again."""
    urgent = f"urgent-{kube.namespace}"
    kube.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": urgent}, "value": 1000}
    )
    try:
        document = job("modest", replicas=4, train={"batch": 64})
        document["spec"]["workers"]["gpu"] = {"count": 8, "types": ["A100"]}
        kube.create(document)
        phase(kube, "modest", "Running")
        taker = blocker("taker")
        taker["spec"]["priorityClassName"] = urgent
        kube.create(taker)
        eventually(lambda: kube.status("modest")["attempt"] == 2, "the job starts another attempt")
        status = kube.status("modest")
        assert status["history"][0]["reason"] == "PreemptionByScheduler"
        assert (status["restarts"], status["disruptions"]) == (0, 1)
        eventually(lambda: kube.condition("modest", "Scheduled").get("reason") == "Unschedulable", "the job waits")
        kube.run("delete", "pod", "taker")
        phase(kube, "modest", "Running", seconds=60)
    finally:
        kube.run("delete", "pod", "taker", "--ignore-not-found")
        kube.run("delete", "priorityclass", urgent)


@pytest.mark.exclusive("pod-group-crds")
@pytest.mark.parametrize(
    ("scheduler", "group", "crd"),
    [
        ("volcano", "scheduling.volcano.sh", "scheduling.volcano.sh_podgroups.yaml"),
        ("coscheduling", "scheduling.x-k8s.io", "scheduling.x-k8s.io_podgroups.yaml"),
    ],
)
def test_pod_group_matches_its_schema_and_follows_the_job(kube: Kube, scheduler: str, group: str, crd: str) -> None:
    kube.run("apply", "--server-side", "--filename", str(crds(crd)))
    kube.wait_for_crd(f"podgroups.{group}")
    try:
        queue = {"queue": "team"} if scheduler == "volcano" else {}
        document = job("gang", scheduling={"gang": scheduler, **queue}, runPolicy={"preRunningDeadlineSeconds": 600})
        document["spec"]["workers"]["resources"] = {"requests": {"cpu": "1500m", "memory": "2Gi"}}
        kube.create(document)
        eventually(lambda: len(kube.pods("gang")) == 2, "its pods exist")
        pod_group = kube.get(f"podgroups.{group}", "gang")
        assert pod_group["spec"]["minMember"] == 2
        assert pod_group["spec"]["minResources"] == {"cpu": "3", "memory": str(4 << 30)}
        assert pod_group["spec"].get("queue") == queue.get("queue")
        assert pod_group["spec"].get("scheduleTimeoutSeconds") == (600 if scheduler == "coscheduling" else None)
        assert pod_group["metadata"]["ownerReferences"][0]["kind"] == "YoloTrainingJob"
        assert {p["spec"]["schedulerName"] for p in kube.pods("gang")} <= {"volcano", "scheduler-plugins-scheduler"}
        eventually(
            lambda: kube.condition("gang", "Scheduled").get("status") == "False", "that scheduler is not installed"
        )
        suspend(kube, "gang", True)
        eventually(lambda: not kube.get(f"podgroups.{group}", "gang"), "the group is deleted")
        suspend(kube, "gang", False)
        eventually(lambda: kube.get(f"podgroups.{group}", "gang"), "the group exists again")
        edit(kube, "gang", runPolicy={"activeDeadlineSeconds": 1})
        phase(kube, "gang", "Failed")
        eventually(lambda: not kube.get(f"podgroups.{group}", "gang"), "the group of a failed job is deleted")
    finally:
        kube.run("delete", "yolotrainingjob", "gang")
        kube.run("delete", "crd", f"podgroups.{group}")
