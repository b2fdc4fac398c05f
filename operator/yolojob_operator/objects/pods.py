"""The objects that a job wants: a headless service and its worker pods. Pure builders of plain API objects."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolojob.api import constants
from yolojob.api.constants import worker_name
from yolojob.api.fields import parse_quantity
from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.catalogue import gpu_labels
from yolojob_operator.objects import gang_scheduling
from yolojob_operator.objects.template_policy import Privilege

Object = dict[str, Any]

BASE = "/yolojob"
CACHE, VOLUMES, OUTPUT = f"{BASE}/cache", f"{BASE}/volumes", f"{BASE}/output"
USER = 10001
GRACE_SECONDS = 30
"""Time for the ranks to agree, save and end; the kubelet's default."""
LOST_NODE_SECONDS = 15
"""A pod on a node that is not ready is given up after so long, not after Kubernetes' default of 300 s."""

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists that strategic merge joins by a key; all others are replaced (as in Kubernetes' own types)."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the operator's installation decides for all jobs."""

    image: str
    """Trainer image."""
    image_pull_policy: str | None = None
    service_account: str | None = None
    """Service account of workers; the namespace's default unless set. Its token is never mounted."""
    cache_volume: Object | None = None
    """Source of the volume for staged data sets; emptyDir unless set. A volume of the node's own (hostPath) lets all pods
    of a node share what one of them has fetched, from job to job."""
    allowed: frozenset[Privilege] = frozenset()
    """What templates may ask for beyond an ordinary pod."""
    coscheduling_scheduler: str = "scheduler-plugins-scheduler"
    """Name of the scheduler that has the coscheduling plugin; this is what its chart calls it."""


def strategic_merge(base: Any, patch: Any, key: str = "") -> Any:
    """`patch` laid over `base` by strategic merge; null removes."""
    if isinstance(base, dict) and isinstance(patch, dict):
        out = dict(base)
        for name, value in patch.items():
            if value is None:
                out.pop(name, None)
            else:
                out[name] = strategic_merge(out.get(name), value, name)
        return out
    if isinstance(base, list) and isinstance(patch, list) and key in _MERGE_KEYS:
        merge_key = _MERGE_KEYS[key]
        merged = {item.get(merge_key): item for item in base}
        for item in patch:
            merged[item.get(merge_key)] = strategic_merge(merged.get(item.get(merge_key)), item)
        return list(merged.values())
    return copy.deepcopy(patch)


def labels(job: YoloTrainingJob) -> dict[str, str]:
    return {
        constants.LABEL_JOB: job.metadata.name,
        constants.LABEL_MANAGED_BY: constants.MANAGER,
        "app.kubernetes.io/name": "yolojob-trainer",
    }


def owner_reference(job: YoloTrainingJob) -> Object:
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
    }


def service(job: YoloTrainingJob) -> Object:
    """The name of worker 0, where all others look for it: NAME-worker-0.NAME. Also before it is ready, for that is when.

    The others need no names. Each pod that a service selects costs three writes of its endpoints, a tenth of what starting a
    fleet of jobs costs the API server.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": job.metadata.name,
            "namespace": job.metadata.namespace,
            "labels": labels(job),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {constants.LABEL_JOB: job.metadata.name, constants.LABEL_WORKER: "0"},
            "ports": [{"name": "metrics", "port": constants.METRICS_PORT}],
        },
    }


def worker(job: YoloTrainingJob, index: int, attempt: int, defaults: Defaults) -> Object:
    """The pod of one worker in one attempt."""
    spec = job.spec
    volumes, mounts, output = _volumes(job, index, defaults)
    template = spec.workers.template
    pod_spec: Object = {
        "restartPolicy": "Never",
        "hostname": worker_name(job.metadata.name, index),
        "subdomain": job.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, index, attempt, output, mounts, defaults)],
        "volumes": volumes,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {constants.LABEL_JOB: job.metadata.name}},
            }
        ],
    }
    if spec.workers.gpu and spec.workers.gpu.types:
        pod_spec["affinity"] = {"nodeAffinity": _gpu_affinity(spec.workers.gpu.types)}
    if spec.scheduling.priority_class_name:
        pod_spec["priorityClassName"] = spec.scheduling.priority_class_name
    if defaults.service_account:
        pod_spec["serviceAccountName"] = defaults.service_account
    metadata: Object = {
        "name": worker_name(job.metadata.name, index),
        "namespace": job.metadata.namespace,
        "labels": {
            **labels(job),
            constants.LABEL_WORKER: str(index),
            constants.LABEL_WORKERS: str(job.spec.workers.replicas),
            constants.LABEL_ATTEMPT: str(attempt),
        },
        "ownerReferences": [owner_reference(job)],
    }
    over = template.get("metadata") or {}
    metadata["annotations"] = dict(over.get("annotations") or {})
    if job.metadata.generation:
        metadata["annotations"][constants.ANNOTATION_GENERATION] = str(job.metadata.generation)
    # The job's own labels win: pods are found by them.
    metadata["labels"] = {**(over.get("labels") or {}), **metadata["labels"]}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": strategic_merge(pod_spec, template.get("spec") or {}),
    }
    # Ours come first, for the first that fits counts: who tolerates everything would stay on a lost node for ever.
    asked = pod["spec"].get("tolerations") or []
    named = {toleration.get("key") for toleration in asked}
    pod["spec"]["tolerations"] = [*(t for t in _tolerations(job) if t["key"] not in named), *asked]
    return dict(strategic_merge(pod, gang_scheduling.pod_patch(job, attempt, defaults.coscheduling_scheduler)))


def spare(job: YoloTrainingJob, index: int, attempt: int, defaults: Defaults) -> Object:
    """A pod of a worker's size that does nothing: where it finds a place, so will the worker of a larger attempt."""
    pod = worker(job, index, attempt, defaults)
    pod["metadata"]["labels"][constants.LABEL_SPARE] = "true"
    # Blocked first: process 1 is not told of signals that it does nothing about.
    wait = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGTERM}); s.sigwait({s.SIGTERM})"
    for container in pod["spec"]["containers"]:
        if container["name"] == constants.CONTAINER:
            container |= {"command": ["python", "-c", wait], "ports": []}
    return pod


def _container(
    job: YoloTrainingJob, index: int, attempt: int, output: str, mounts: list[Object], defaults: Defaults
) -> Object:
    container: Object = {
        "name": constants.CONTAINER,
        "image": job.spec.workers.image or defaults.image,
        "command": ["python", "-m", "yolojob_trainer.launch"],
        "env": _environment(job, index, attempt, output),
        "ports": [{"name": "metrics", "containerPort": constants.METRICS_PORT}],
        "resources": _resources(job),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if defaults.image_pull_policy:
        container["imagePullPolicy"] = defaults.image_pull_policy
    return container


def _environment(job: YoloTrainingJob, index: int, attempt: int, output: str) -> list[Object]:
    workers = job.spec.workers
    processes = workers.processes
    run = Run(name=job.metadata.name, namespace=job.metadata.namespace or "default", attempt=attempt, spec=job.spec)
    master = f"{worker_name(job.metadata.name, 0)}.{job.metadata.name}"
    values = {
        constants.ENV_RUN: run.to_env(),
        constants.ENV_OUTPUT_DIR: output,
        constants.ENV_CACHE_DIR: CACHE,
        constants.ENV_VOLUMES_DIR: VOLUMES,
        "PET_NNODES": str(workers.replicas),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        "PET_RDZV_BACKEND": "static",
        "PET_MAX_RESTARTS": "0",
        # The same for images that do not use torchrun.
        "MASTER_ADDR": master,
        "MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        "WORLD_SIZE": str(workers.replicas * processes),
        "NODE_RANK": str(index),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod's own
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    cpu = workers.resources.limits.get("cpu") or workers.resources.requests.get("cpu")
    if cpu:
        values[constants.ENV_CPUS] = str(max(math.ceil(parse_quantity(cpu)), 1))
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(job: YoloTrainingJob) -> Object:
    workers = job.spec.workers
    requests, limits = dict(workers.resources.requests), dict(workers.resources.limits)
    if workers.gpu:
        limits[workers.gpu.resource] = requests[workers.gpu.resource] = str(workers.gpu.count)
    return {"requests": requests, "limits": limits}


def _volumes(job: YoloTrainingJob, index: int, defaults: Defaults) -> tuple[list[Object], list[Object], str]:
    """(volumes, mounts, output folder). Only worker 0 mounts the storage, so ReadWriteOnce is enough for it."""
    spec = job.spec
    shm: Object = {"medium": "Memory"}
    if size := _shared_memory(job):
        shm["sizeLimit"] = size
    volumes: list[Object] = [
        {"name": "shm", "emptyDir": shm},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", **(defaults.cache_volume or {"emptyDir": {}})},
    ]
    mounts: list[Object] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": CACHE},
    ]
    read_only: dict[str, bool] = {}
    for uri in (spec.dataset.uri, spec.model.weights.uri if spec.model.weights else None):
        if uri and uri.scheme == "pvc":
            read_only.setdefault(uri.location, True)
    output = OUTPUT
    if spec.storage and index == 0 and spec.storage.uri.scheme == "pvc":
        read_only[spec.storage.uri.location] = False
        output = str(spec.storage.uri.under(Path(VOLUMES)))
    else:
        volumes.append({"name": "output", "emptyDir": {}})
        mounts.append({"name": "output", "mountPath": OUTPUT})
    for claim, only in read_only.items():
        name = f"claim-{claim}"[:63].rstrip("-")
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": name, "mountPath": f"{VOLUMES}/{claim}", "readOnly": only})
    return volumes, mounts, output


def _shared_memory(job: YoloTrainingJob) -> str | None:
    asked = job.spec.workers.shared_memory
    if asked != "auto":
        return asked
    limit = job.spec.workers.resources.limits.get("memory")
    return str(int(parse_quantity(limit) / 2)) if limit else None


def _tolerations(job: YoloTrainingJob) -> list[Object]:
    tolerations: list[Object] = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]
    if gpu := job.spec.workers.gpu:
        # GKE and most GPU node groups keep other pods away by a taint named after the resource.
        keys = dict.fromkeys((gpu.resource, "nvidia.com/gpu"))
        tolerations += [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    return tolerations


def _gpu_affinity(types: list[str]) -> Object:
    """Any label by which any platform names one of these GPUs: the terms are OR-ed."""
    terms = [
        {"matchExpressions": [{"key": label, "operator": "In", "values": values}]}
        for label, values in gpu_labels.labels(types).items()
    ]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
