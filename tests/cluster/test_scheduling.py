"""Where workers go: sizes that follow the room, GPU types by any platform's labels, PodGroups that their owners accept."""

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
def test_gpu_types_by_any_platforms_labels(kube: Kube, platforms: None, types: list[str], nodes: set[str]) -> None:
    """As many workers as there are such GPUs: they take all of them, and no other."""
    name = f"typed-{'-'.join(types).lower()}"
    made = job(name, replicas=len(nodes), train={"batch": 12})
    made["spec"]["workers"]["template"]["spec"] = {}
    made["spec"]["workers"]["gpu"] = {"types": types}
    kube.create(made)
    phase(kube, name, "Running")
    assert nodes_of(kube, name) == nodes


def elastic(name: str, replicas: int = 4, **spec: Any) -> dict[str, Any]:
    """A job whose workers take a whole simulated node each; there are four of these."""
    made = job(name, replicas=replicas, elastic={"minReplicas": 1, "maxReplicas": 4}, train={"batch": 64}, **spec)
    made["spec"]["workers"]["gpu"] = {"count": 8, "types": ["A100"]}
    return made


def blocker(name: str) -> dict[str, Any]:
    """Somebody else's pod, on a whole node."""
    container = {"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
    spec = {"containers": [container], "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def crowded(kube: Kube) -> Iterator[None]:
    """Two of the four nodes are taken."""
    if len(kube.get("nodes", "--selector=type=kwok")["items"]) != 4:
        pytest.skip("needs a cluster with four simulated nodes")
    for i in range(2):
        kube.create(blocker(f"blocker-{i}"))
    eventually(
        lambda: all(kube.get("pod", f"blocker-{i}")["spec"].get("nodeName") for i in range(2)), "they are placed"
    )
    yield
    kube.run("delete", "pod", "blocker-0", "blocker-1", "--ignore-not-found")


def test_an_elastic_job_follows_the_room(kube: Kube, crowded: None) -> None:
    """Four are asked for, two find a place; room comes back, and it grows."""
    kube.create(elastic("tide"))
    status = phase(kube, "tide", "Running", seconds=60)
    assert [r["workers"] for r in status["history"]] == [4, 2]
    assert status["history"][0]["reason"] == "ScaledDown"
    assert "2 of 4 workers have a node" in status["history"][0]["message"]
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert (status["workers"]["desired"], status["workers"]["ready"]) == (4, 2)
    spares = ("pods", "--selector", "yolojob.dev/job-name=tide,yolojob.dev/spare=true")
    eventually(lambda: len(kube.get(*spares)["items"]) == 2, "it looks for room", seconds=60)
    assert kube.status("tide")["phase"] == "Running", "and trains meanwhile"
    kube.run("delete", "pod", "blocker-0", "blocker-1")
    eventually(lambda: kube.status("tide")["attempt"] == 3, "it grows", seconds=60)
    status = phase(kube, "tide", "Running", seconds=30)
    assert [r["workers"] for r in status["history"]] == [4, 2, 4]
    assert status["history"][1]["reason"] == "ScaledUp"
    assert status["workers"]["ready"] == 4
    assert not kube.get(*spares)["items"]


def test_fewer_places_than_it_can_do_with(kube: Kube, crowded: None) -> None:
    """Two find a place, four are the least: it waits, says so, and past its deadline gives back what it held."""
    scarce = elastic("scarce")
    scarce["spec"]["elastic"]["minReplicas"] = 4
    scarce["spec"]["runPolicy"] = {"preRunningDeadlineSeconds": 25}
    kube.create(scarce)
    eventually(lambda: len(nodes_of(kube, "scarce")) == 2, "two have a place")
    status = phase(kube, "scarce", "Failed", seconds=60)
    assert [r["workers"] for r in status["history"]] == [4]
    failed = kube.condition("scarce", "Failed")
    assert failed["reason"] == "Unschedulable"
    assert "nodes are available" in failed["message"], "the scheduler's own words"
    eventually(lambda: not kube.pods("scarce"), "the places are free")


def test_kubectl_scale(kube: Kube) -> None:
    kube.create(elastic("scaled"))
    phase(kube, "scaled", "Running")
    kube.run("scale", "ytj", "scaled", "--replicas=2")
    eventually(lambda: kube.status("scaled")["attempt"] == 2, "it shrinks at once", seconds=5)
    phase(kube, "scaled", "Running")
    refused = kube.run("scale", "ytj", "scaled", "--replicas=3", check=False)
    assert "multiple of the worker processes" in refused.stderr
    refused = kube.run("scale", "ytj", "scaled", "--replicas=8", check=False)
    assert "spec.elastic.maxReplicas" in refused.stderr
    kube.run("scale", "ytj", "scaled", "--replicas=4")
    eventually(lambda: kube.status("scaled")["attempt"] == 3, "it grows when it has lived a while", seconds=60)
    status = phase(kube, "scaled", "Running")
    assert [r["workers"] for r in status["history"]] == [4, 2, 4]


def test_an_evicted_worker_is_a_disruption(kube: Kube) -> None:
    kube.create(job("evicted"))
    phase(kube, "evicted", "Running")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted-worker-1"}}
    path = f"/api/v1/namespaces/{kube.namespace}/pods/evicted-worker-1/eviction"
    kube.run("create", "--raw", path, "--filename", "-", input=json.dumps(eviction))
    eventually(lambda: kube.status("evicted")["attempt"] == 2, "a new gang")
    status = phase(kube, "evicted", "Running")
    assert [r.get("reason") for r in status["history"]] == ["EvictionByEvictionAPI", None], status["history"]
    assert (status["restarts"], status["disruptions"]) == (0, 1)


def test_preempted_by_the_scheduler(kube: Kube) -> None:
    """Somebody more important takes a node: not counted, and the gang waits until all of it has a place again."""
    urgent = f"urgent-{kube.namespace}"
    kube.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": urgent}, "value": 1000}
    )
    try:
        made = job("modest", replicas=4, train={"batch": 64})
        made["spec"]["workers"]["gpu"] = {"count": 8, "types": ["A100"]}
        kube.create(made)
        phase(kube, "modest", "Running")
        taker = blocker("taker")
        taker["spec"]["priorityClassName"] = urgent
        kube.create(taker)
        eventually(lambda: kube.status("modest")["attempt"] == 2, "another attempt")
        status = kube.status("modest")
        assert status["history"][0]["reason"] == "PreemptionByScheduler"
        assert (status["restarts"], status["disruptions"]) == (0, 1)
        eventually(lambda: kube.condition("modest", "Scheduled").get("reason") == "Unschedulable", "it waits")
        kube.run("delete", "pod", "taker")
        phase(kube, "modest", "Running", seconds=60)
    finally:
        kube.run("delete", "pod", "taker", "--ignore-not-found")
        kube.run("delete", "priorityclass", urgent)


@pytest.mark.parametrize(
    ("scheduler", "group", "crd"),
    [
        ("volcano", "scheduling.volcano.sh", "scheduling.volcano.sh_podgroups.yaml"),
        ("coscheduling", "scheduling.x-k8s.io", "scheduling.x-k8s.io_podgroups.yaml"),
    ],
)
def test_a_pod_group_is_what_its_schema_wants(kube: Kube, scheduler: str, group: str, crd: str) -> None:
    kube.run("apply", "--server-side", "--filename", str(crds(crd)))
    kube.run("wait", "--for=condition=Established", f"crd/podgroups.{group}", "--timeout=30s")
    try:
        queue = {"queue": "team"} if scheduler == "volcano" else {}
        made = job("gang", scheduling={"gang": scheduler, **queue}, runPolicy={"preRunningDeadlineSeconds": 600})
        made["spec"]["workers"]["resources"] = {"requests": {"cpu": "1500m", "memory": "2Gi"}}
        kube.create(made)
        eventually(lambda: len(kube.pods("gang")) == 2, "its pods")
        found = kube.get(f"podgroups.{group}", "gang")
        assert found["spec"]["minMember"] == 2
        assert found["spec"]["minResources"] == {"cpu": "3", "memory": str(4 << 30)}
        assert found["spec"].get("queue") == queue.get("queue")
        assert found["spec"].get("scheduleTimeoutSeconds") == (600 if scheduler == "coscheduling" else None)
        assert found["metadata"]["ownerReferences"][0]["kind"] == "YoloTrainingJob"
        assert {p["spec"]["schedulerName"] for p in kube.pods("gang")} <= {"volcano", "scheduler-plugins-scheduler"}
        eventually(lambda: kube.condition("gang", "Scheduled").get("status") == "False", "that scheduler is not here")
        suspend(kube, "gang", True)
        eventually(lambda: not kube.get(f"podgroups.{group}", "gang"), "nothing keeps room in the queue")
        suspend(kube, "gang", False)
        eventually(lambda: kube.get(f"podgroups.{group}", "gang"), "it is there again")
        edit(kube, "gang", runPolicy={"activeDeadlineSeconds": 1})
        phase(kube, "gang", "Failed")
        eventually(lambda: not kube.get(f"podgroups.{group}", "gang"), "nor does one that has failed")
    finally:
        kube.run("delete", "yolotrainingjob", "gang")
        kube.run("delete", "crd", f"podgroups.{group}")
