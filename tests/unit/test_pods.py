"""The objects that a job wants, and what is read off a pod."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import eventually, minimal
from yolojob_operator.objects import pods
from yolojob_operator.plan.pod_facts import Cause, pod_facts

from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.catalogue import gpu_labels

DEFAULTS = pods.Defaults(image="trainer:test")


def worker(index: int = 0, **spec: Any) -> dict[str, Any]:
    document = minimal(**spec)
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    return pods.worker(YoloTrainingJob.model_validate(document), index, 1, DEFAULTS)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}


def test_static_rendezvous_at_worker_0() -> None:
    env = environment(worker(1, workers={"replicas": 2, "gpu": {"count": 4}}))
    assert env["PET_MASTER_ADDR"] == env["MASTER_ADDR"] == "digits-worker-0.digits"
    assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("2", "1", "4")
    assert env["PET_RDZV_BACKEND"] == "static"
    assert env["PET_MAX_RESTARTS"] == "0"
    assert env["WORLD_SIZE"] == "8"


def test_the_pod_carries_its_spec() -> None:
    run = Run.model_validate_json(environment(worker(train={"epochs": 7}))["YOLOJOB_RUN"])
    assert run.spec.train.epochs == 7
    assert run.spec.train.batch == 16


def test_it_fits_pod_security_restricted() -> None:
    spec = worker()["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False


def test_shared_memory_is_half_of_the_limit() -> None:
    def size(**workers: Any) -> Any:
        volumes = worker(workers=workers)["spec"]["volumes"]
        return next(v["emptyDir"].get("sizeLimit") for v in volumes if v["name"] == "shm")

    assert size(resources={"limits": {"memory": "4Gi"}}) == str(2 << 30)
    assert size(sharedMemory="1Gi") == "1Gi"
    assert size() is None


def test_only_worker_0_mounts_the_storage() -> None:
    storage = {"uri": "pvc://runs/digits"}
    first, second = worker(0, storage=storage), worker(1, storage=storage)
    claims = [v["persistentVolumeClaim"]["claimName"] for v in first["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["runs"]
    assert environment(first)["YOLOJOB_OUTPUT_DIR"] == "/yolojob/volumes/runs/digits"
    assert not any("persistentVolumeClaim" in v for v in second["spec"]["volumes"])


def test_data_is_mounted_read_only_unless_results_go_there() -> None:
    def read_only(index: int) -> dict[str, bool]:
        pod = worker(index, dataset={"uri": "pvc://data/coco"}, storage={"uri": "pvc://data/runs"})
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        return {m["mountPath"]: m["readOnly"] for m in mounts if "readOnly" in m}

    assert read_only(0) == {"/yolojob/volumes/data": False}
    assert read_only(1) == {"/yolojob/volumes/data": True}


def test_a_gpu_is_asked_for_under_every_platforms_name() -> None:
    pod = worker(workers={"gpu": {"count": 2, "types": ["T4", "L4"]}})
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = {e["key"]: e["values"] for t in affinity["nodeSelectorTerms"] for e in t["matchExpressions"]}
    assert terms["cloud.google.com/gke-accelerator"] == ["nvidia-tesla-t4", "nvidia-l4"]
    assert terms["nvidia.com/gpu.product"] == ["Tesla-T4", "NVIDIA-L4"]
    assert terms["karpenter.k8s.aws/instance-gpu-name"] == terms["eks.amazonaws.com/instance-gpu-name"] == ["t4", "l4"]
    assert {"g4dn.xlarge", "g6.xlarge"} <= set(terms["node.kubernetes.io/instance-type"])
    assert all(len(t["matchExpressions"]) == 1 for t in affinity["nodeSelectorTerms"]), "OR-ed"
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]


def test_the_gpu_table_is_whole() -> None:
    for name, kinds in gpu_labels.table().items():
        assert set(kinds) == set(gpu_labels.LABELS), name
    assert gpu_labels.labels(["MY-GPU"])["nvidia.com/gpu.product"] == ["MY-GPU"]


def test_template_is_laid_over_by_strategic_merge() -> None:
    template = {
        "metadata": {"labels": {"team": "vision", "yolojob.dev/job-name": "other"}, "annotations": {"a": "b"}},
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "containers": [{"name": "trainer", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}, {"name": "side"}],
            "topologySpreadConstraints": [],
        },
    }
    pod = worker(workers={"template": template})
    names = [c["name"] for c in pod["spec"]["containers"]]
    assert names == ["trainer", "side"]
    assert environment(pod)["NCCL_DEBUG"] == "INFO"
    assert environment(pod)["PET_NNODES"] == "1"
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["labels"]["yolojob.dev/job-name"] == "digits"
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}


def test_owner_reference_cleans_up() -> None:
    owner = worker()["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("YoloTrainingJob", "job-uid", True)


def ended(code: int, **status: Any) -> dict[str, Any]:
    pod = worker()
    state = {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z", "message": "why"}}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}], **status}
    return pod


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        (ended(2), Cause.PERMANENT),
        (ended(1), Cause.FAILURE),
        (ended(137), Cause.FAILURE),
        (ended(143), Cause.DISRUPTION),
        (ended(76), Cause.SURVIVOR),
        (ended(1, reason="Evicted"), Cause.DISRUPTION),
        (ended(1, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "x"}]), Cause.DISRUPTION),
        (ended(0, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "x"}]), Cause.DISRUPTION),
        (ended(0), None),  # a sidecar has failed, after the training was complete
    ],
)
def test_causes(pod: dict[str, Any], cause: Cause | None) -> None:
    assert pod_facts(json.loads(json.dumps(pod))).cause == cause


def test_why_a_pod_waits() -> None:
    pod = worker()
    words = "0/2 nodes are available"
    pod["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]
    }
    assert pod_facts(pod).waiting == f"Unschedulable: {words}"
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer", **waiting}]}
    assert pod_facts(pod).waiting == "ImagePullBackOff: no"


def test_a_bucket_as_storage_mounts_no_claim() -> None:
    """Worker 0 works in a folder of its own, and the trainer uploads it; credentials come with the pod template."""
    secret = {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "id"}}}
    pod = worker(
        0,
        dataset={"uri": "s3://data/coco.zip"},
        storage={"uri": "s3://runs/digits"},
        workers={"template": {"spec": {"containers": [{"name": "trainer", "env": [secret]}]}}},
    )
    assert not [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    variables = {e["name"]: e for e in pod["spec"]["containers"][0]["env"]}
    assert variables["YOLOJOB_OUTPUT_DIR"]["value"] == pods.OUTPUT
    assert variables["AWS_ACCESS_KEY_ID"] == secret
    assert variables["YOLOJOB_CACHE_DIR"]["value"] == pods.CACHE


def test_the_cache_is_where_the_installation_says() -> None:
    document = minimal()
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    shared = {"hostPath": {"path": "/var/cache/yolojob", "type": "Directory"}}
    defaults = pods.Defaults(image="trainer:test", cache_volume=shared)
    pod = pods.worker(YoloTrainingJob.model_validate(document), 0, 1, defaults)
    assert {"name": "cache", **shared} in pod["spec"]["volumes"]
    assert {"name": "cache", "emptyDir": {}} in worker()["spec"]["volumes"]


def ended(status: dict[str, Any], sidecar: bool = False, **terminated: Any) -> Any:
    """Facts of a pod whose trainer has ended."""
    pod = worker()
    containers: list[dict[str, Any]] = [{"name": "trainer", "state": {"terminated": terminated}}] if terminated else []
    if sidecar:
        containers.append({"name": "proxy", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    return pod_facts({**pod, "status": {**status, "containerStatuses": containers}})


def test_a_sidecar_does_not_keep_a_worker_alive() -> None:
    """A mesh's proxy goes on when the trainer has ended, and with it the pod's phase."""
    done = ended({"phase": "Running"}, sidecar=True, exitCode=0)
    assert (done.phase, done.terminal, done.lingers) == ("Succeeded", True, True)
    failed = ended({"phase": "Running"}, sidecar=True, exitCode=1)
    assert (failed.phase, failed.cause) == ("Failed", Cause.FAILURE)
    assert not ended({"phase": "Succeeded"}, exitCode=0).lingers
    alone = ended({"phase": "Running"}, exitCode=0)
    assert (alone.phase, alone.lingers) == ("Running", False), "the kubelet is about to say how it ended"


@pytest.mark.parametrize(
    "reason", ["UnexpectedAdmissionError", "TopologyAffinityError", "OutOfcpu", "OutOfnvidia.com/gpu", "NodeShutdown"]
)
def test_a_kubelet_that_does_not_take_a_pod_is_a_disruption(reason: str) -> None:
    facts = ended({"phase": "Failed", "reason": reason, "message": "Pod was rejected"})
    assert facts.cause is Cause.DISRUPTION
    assert facts.disruption == f"{reason}: Pod was rejected"


def test_an_end_that_no_kubelet_saw_is_a_disruption() -> None:
    facts = ended({"phase": "Failed"}, exitCode=137, reason="ContainerStatusUnknown", message="could not be located")
    assert facts.cause is Cause.DISRUPTION


def test_who_tolerates_everything_leaves_a_lost_node_all_the_same() -> None:
    """The first toleration that fits counts, so ours stand before those of a template; unless that names ours."""
    everything = {"operator": "Exists"}
    tolerations = worker(workers={"template": {"spec": {"tolerations": [everything]}}})["spec"]["tolerations"]
    assert [t.get("tolerationSeconds") for t in tolerations] == [15, 15, None]
    own = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 99,
    }
    tolerations = worker(workers={"template": {"spec": {"tolerations": [own]}}})["spec"]["tolerations"]
    assert [t["tolerationSeconds"] for t in tolerations] == [15, 99]


def test_why_a_pod_failed_whose_trainer_never_ran() -> None:
    ended = {"terminated": {"exitCode": 2, "message": "no such bucket"}}
    status = {"phase": "Failed", "initContainerStatuses": [{"name": "fetch", "state": ended}]}
    facts = pod_facts({"metadata": {"name": "p"}, "status": status})
    assert facts.message == "init container fetch ended with exit code 2: no such bucket"
    assert facts.cause is Cause.FAILURE
    status = {"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}
    assert pod_facts({"metadata": {"name": "p"}, "status": status}).message == "DeadlineExceeded: too long"


def test_a_spare_ends_when_it_is_told_to() -> None:
    """As process 1 of a namespace of its own, which hears no signal that it does not care for."""
    document = minimal(workers={"replicas": 2})
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    spare = pods.spare(YoloTrainingJob.model_validate(document), 1, 1, DEFAULTS)
    python, *arguments = spare["spec"]["containers"][0]["command"]
    assert python == "python"
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", sys.executable, *arguments])
    try:
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        inner = int(eventually(lambda: child.read_text().split(), "it runs")[0])

        def ended() -> bool:
            with suppress(ProcessLookupError):
                os.kill(inner, signal.SIGTERM)
            return process.poll() is not None

        eventually(ended, "it ends", seconds=10)
        assert process.returncode == 0
    finally:
        process.kill()
