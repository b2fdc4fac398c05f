"""The objects of a job, and the facts that are read from a pod."""

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
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan.pod_facts import Cause, PodFacts, pod_facts

from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.catalogue import gpu_labels

DEFAULTS = Defaults(image="trainer:test")


def worker(index: int = 0, **spec: Any) -> dict[str, Any]:
    document = minimal(**spec)
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    return pods.worker(YoloTrainingJob.model_validate(document), index, 1, DEFAULTS)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}


def test_worker_environment_has_a_static_rendezvous_at_worker_0() -> None:
    env = environment(worker(1, workers={"replicas": 2, "gpu": {"count": 4}}))
    assert env["PET_MASTER_ADDR"] == env["MASTER_ADDR"] == "digits-worker-0.digits"
    assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("2", "1", "4")
    assert env["PET_RDZV_BACKEND"] == "static"
    assert env["PET_MAX_RESTARTS"] == "0"
    assert env["WORLD_SIZE"] == "8"


def test_worker_environment_contains_the_spec() -> None:
    run = Run.model_validate_json(environment(worker(train={"epochs": 7}))["YOLOJOB_RUN"])
    assert run.spec.train.epochs == 7
    assert run.spec.train.batch == 16


def test_worker_fits_pod_security_restricted() -> None:
    spec = worker()["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False


def test_worker_shared_memory_is_half_of_the_memory_limit() -> None:
    def size(**workers: Any) -> Any:
        volumes = worker(workers=workers)["spec"]["volumes"]
        return next(v["emptyDir"].get("sizeLimit") for v in volumes if v["name"] == "shm")

    assert size(resources={"limits": {"memory": "4Gi"}}) == str(2 << 30)
    assert size(sharedMemory="1Gi") == "1Gi"
    assert size() is None


def test_worker_0_alone_mounts_the_storage() -> None:
    storage = {"uri": "pvc://runs/digits"}
    first, second = worker(0, storage=storage), worker(1, storage=storage)
    claims = [v["persistentVolumeClaim"]["claimName"] for v in first["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["runs"]
    assert environment(first)["YOLOJOB_OUTPUT_DIR"] == "/yolojob/volumes/runs/digits"
    assert not any("persistentVolumeClaim" in v for v in second["spec"]["volumes"])


def test_worker_mounts_data_read_only_unless_results_are_on_the_same_volume() -> None:
    def read_only(index: int) -> dict[str, bool]:
        pod = worker(index, dataset={"uri": "pvc://data/coco"}, storage={"uri": "pvc://data/runs"})
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        return {m["mountPath"]: m["readOnly"] for m in mounts if "readOnly" in m}

    assert read_only(0) == {"/yolojob/volumes/data": False}
    assert read_only(1) == {"/yolojob/volumes/data": True}


def test_worker_with_gpu_types_matches_the_labels_of_every_platform() -> None:
    pod = worker(workers={"gpu": {"count": 2, "types": ["T4", "L4"]}})
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = {e["key"]: e["values"] for t in affinity["nodeSelectorTerms"] for e in t["matchExpressions"]}
    assert terms["cloud.google.com/gke-accelerator"] == ["nvidia-tesla-t4", "nvidia-l4"]
    assert terms["nvidia.com/gpu.product"] == ["Tesla-T4", "NVIDIA-L4"]
    assert terms["karpenter.k8s.aws/instance-gpu-name"] == terms["eks.amazonaws.com/instance-gpu-name"] == ["t4", "l4"]
    assert {"g4dn.xlarge", "g6.xlarge"} <= set(terms["node.kubernetes.io/instance-type"])
    assert all(len(t["matchExpressions"]) == 1 for t in affinity["nodeSelectorTerms"]), "the terms are alternatives"
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]


def test_gpu_table_has_a_value_for_every_label() -> None:
    for name, kinds in gpu_labels.table().items():
        assert set(kinds) == set(gpu_labels.NODE_LABELS), name
    assert gpu_labels.labels(["MY-GPU"])["nvidia.com/gpu.product"] == ["MY-GPU"]


def test_worker_template_is_applied_as_strategic_merge_patch() -> None:
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


def test_worker_has_the_job_as_controlling_owner() -> None:
    owner = worker()["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("YoloTrainingJob", "job-uid", True)


def failed_pod(code: int, **status: Any) -> dict[str, Any]:
    """A failed pod whose trainer exited with this code."""
    pod = worker()
    state = {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z", "message": "why"}}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}], **status}
    return pod


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        (failed_pod(2), Cause.PERMANENT),
        (failed_pod(1), Cause.FAILURE),
        (failed_pod(137), Cause.FAILURE),
        (failed_pod(143), Cause.SURVIVOR),
        (failed_pod(76), Cause.SURVIVOR),
        (failed_pod(1, reason="Evicted"), Cause.DISRUPTION),
        (failed_pod(1, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "x"}]), Cause.DISRUPTION),
        (failed_pod(0, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "x"}]), Cause.DISRUPTION),
        (failed_pod(0), None),  # a sidecar failed after the training had finished
    ],
)
def test_pod_facts_cause_of_a_failed_pod(pod: dict[str, Any], cause: Cause | None) -> None:
    assert pod_facts(json.loads(json.dumps(pod))).cause == cause


def test_pod_facts_waiting_reason_of_a_pending_pod() -> None:
    pod = worker()
    message = "0/2 nodes are available"
    pod["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    }
    assert pod_facts(pod).waiting == f"Unschedulable: {message}"
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer", **waiting}]}
    assert pod_facts(pod).waiting == "ImagePullBackOff: no"


def test_worker_with_a_bucket_as_storage_mounts_no_claim() -> None:
    """Worker 0 writes to a local folder, which the trainer uploads. Credentials come from the pod template."""
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


def test_worker_cache_is_the_volume_of_the_installation() -> None:
    document = minimal()
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    shared = {"hostPath": {"path": "/var/cache/yolojob", "type": "Directory"}}
    defaults = Defaults(image="trainer:test", cache_volume=shared)
    pod = pods.worker(YoloTrainingJob.model_validate(document), 0, 1, defaults)
    assert {"name": "cache", **shared} in pod["spec"]["volumes"]
    assert {"name": "cache", "emptyDir": {}} in worker()["spec"]["volumes"]


def ended(status: dict[str, Any], sidecar: bool = False, **terminated: Any) -> PodFacts:
    """Facts of a pod whose trainer has terminated, with a sidecar that still runs if asked for."""
    pod = worker()
    containers: list[dict[str, Any]] = [{"name": "trainer", "state": {"terminated": terminated}}] if terminated else []
    if sidecar:
        containers.append({"name": "proxy", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    return pod_facts({**pod, "status": {**status, "containerStatuses": containers}})


def test_pod_facts_of_a_terminated_trainer_ignore_a_running_sidecar() -> None:
    """The proxy of a service mesh keeps running after the trainer has terminated, so the pod stays in phase Running."""
    done = ended({"phase": "Running"}, sidecar=True, exitCode=0)
    assert (done.phase, done.terminal, done.lingers) == ("Succeeded", True, True)
    failed = ended({"phase": "Running"}, sidecar=True, exitCode=1)
    assert (failed.phase, failed.cause) == ("Failed", Cause.FAILURE)
    assert not ended({"phase": "Succeeded"}, exitCode=0).lingers
    alone = ended({"phase": "Running"}, exitCode=0)
    assert (alone.phase, alone.lingers) == ("Running", False), "the kubelet is about to set the final phase"


@pytest.mark.parametrize(
    "reason", ["UnexpectedAdmissionError", "TopologyAffinityError", "OutOfcpu", "OutOfnvidia.com/gpu", "NodeShutdown"]
)
def test_pod_facts_of_a_pod_rejected_by_the_kubelet_are_a_disruption(reason: str) -> None:
    facts = ended({"phase": "Failed", "reason": reason, "message": "Pod was rejected"})
    assert facts.cause is Cause.DISRUPTION
    assert facts.disruption == f"{reason}: Pod was rejected"


def test_pod_facts_of_an_unknown_container_status_are_a_disruption() -> None:
    facts = ended({"phase": "Failed"}, exitCode=137, reason="ContainerStatusUnknown", message="could not be located")
    assert facts.cause is Cause.DISRUPTION


def test_worker_that_tolerates_everything_is_still_evicted_from_a_lost_node() -> None:
    """The first matching toleration counts, so ours come before those of the template, unless the template sets the
    same.
    """
    everything = {"operator": "Exists"}
    tolerations = worker(workers={"template": {"spec": {"tolerations": [everything]}}})["spec"]["tolerations"]
    assert [t.get("tolerationSeconds") for t in tolerations] == [15, 15, None]
    own_toleration = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 99,
    }
    tolerations = worker(workers={"template": {"spec": {"tolerations": [own_toleration]}}})["spec"]["tolerations"]
    assert [t["tolerationSeconds"] for t in tolerations] == [15, 99]


def test_pod_facts_message_of_a_pod_whose_trainer_never_ran() -> None:
    terminated = {"terminated": {"exitCode": 2, "message": "no such bucket"}}
    status = {"phase": "Failed", "initContainerStatuses": [{"name": "fetch", "state": terminated}]}
    facts = pod_facts({"metadata": {"name": "p"}, "status": status})
    assert facts.message == "init container fetch exited with code 2: no such bucket"
    assert facts.cause is Cause.FAILURE
    status = {"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}
    assert pod_facts({"metadata": {"name": "p"}, "status": status}).message == "DeadlineExceeded: too long"


@pytest.mark.processes
@pytest.mark.processes
def test_spare_on_sigterm_exits() -> None:
    """It is process 1 of its own PID namespace, which ignores every signal that it does not handle."""
    document = minimal(workers={"replicas": 2})
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    spare = pods.spare(YoloTrainingJob.model_validate(document), 1, 1, DEFAULTS)
    python, *arguments = spare["spec"]["containers"][0]["command"]
    assert python == "python"
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", sys.executable, *arguments])
    try:
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        inner = int(eventually(lambda: child.read_text().split(), "the process runs")[0])

        def exited() -> bool:
            with suppress(ProcessLookupError):
                os.kill(inner, signal.SIGTERM)
            return process.poll() is not None

        eventually(exited, "the process exits", seconds=60)
        assert process.returncode == 0
    finally:
        process.kill()


def test_worker_with_gpu_types_and_required_nodes_of_its_own_needs_both() -> None:
    term = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    template = {"spec": {"affinity": {"nodeAffinity": required}}}
    affinity = worker(workers={"gpu": {"types": ["T4"]}, "template": template})["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms
    assert all({"pool"} < {e["key"] for e in t["matchExpressions"]} for t in terms)


def test_claims_with_long_names_have_different_volumes() -> None:
    names = [name[-63:] for name in ("x" + "c" * 58 + "-one", "x" + "c" * 58 + "-two")]
    pod = worker(dataset={"uri": f"pvc://{names[0]}/set"}, storage={"uri": f"pvc://{names[1]}/run"})
    volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))
    assert all(len(name) <= 63 for name in volumes)


def test_run_of_a_worker_does_not_hold_the_template() -> None:
    pod = worker(workers={"template": {"spec": {"nodeSelector": {"secret": "word"}}}})
    assert "secret" not in environment(pod)["YOLOJOB_RUN"]


def test_further_containers_are_restricted_unless_they_are_privileged() -> None:
    own = {"name": "own", "image": "x", "securityContext": {"readOnlyRootFilesystem": True}}
    template = {"spec": {"containers": [{"name": "side", "image": "x"}, own], "initContainers": [{"name": "first"}]}}
    spec = worker(workers={"template": template})["spec"]
    contexts = {c["name"]: c["securityContext"] for c in [*spec["containers"], *spec["initContainers"]]}
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, read_only in (("trainer", True), ("side", False), ("first", False), ("own", True)):
        assert contexts[name] == {**restricted, **({"readOnlyRootFilesystem": True} if read_only else {})}
