"""Builds the objects of a job: its headless service and its worker pods. Pure."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

from yolojob.api import constants
from yolojob.api.constants import worker_name
from yolojob.api.fields import parse_quantity
from yolojob.api.job import YoloTrainingJob
from yolojob.api.run import Run
from yolojob.catalogue import gpu_labels
from yolojob_operator.kube.types import Object
from yolojob_operator.objects import gang_scheduling, isolation
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.metadata import labels, owner_reference

BASE = "/yolojob"
CACHE, VOLUMES, OUTPUT = f"{BASE}/cache", f"{BASE}/volumes", f"{BASE}/output"
USER = 10001
GRACE_SECONDS = 30
MAX_VOLUME_NAME = 63
"""Time for the ranks to agree, save a checkpoint and exit; the kubelet's default."""
LOST_NODE_SECONDS = 15
"""A pod on a node that is not ready is evicted after this time, instead of Kubernetes' default of 300 s."""

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
"""Lists that a strategic merge joins by a key, as in Kubernetes' own types. All other lists are replaced."""


_REQUIRED_TERMS = "requiredDuringSchedulingIgnoredDuringExecution"
_RESTRICTED: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""Security context of every container."""


def strategic_merge(base: Any, patch: Any, key: str = "") -> Any:
    """`base` with `patch` applied as a strategic merge patch. None removes a field."""
    if isinstance(base, dict) and isinstance(patch, dict):
        result = dict(base)
        for name, value in patch.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = strategic_merge(result.get(name), value, name)
        return result
    if isinstance(base, list) and isinstance(patch, list) and key in _MERGE_KEYS:
        merge_key = _MERGE_KEYS[key]
        merged = {item.get(merge_key): item for item in base}
        for item in patch:
            merged[item.get(merge_key)] = strategic_merge(merged.get(item.get(merge_key)), item)
        return list(merged.values())
    return copy.deepcopy(patch)


def service(job: YoloTrainingJob) -> Object:
    """The headless service that gives worker 0 its DNS name, NAME-worker-0.NAME, also before the pod is ready.

    The other workers need no DNS name. Each pod that a service selects costs three writes of its endpoints, a tenth of
    the API server's cost of starting a fleet of jobs.
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
    template = job.spec.workers.template
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(job, index, attempt),
        "spec": strategic_merge(_pod_spec(job, index, attempt, defaults), template.get("spec") or {}),
    }
    # The operator's tolerations come first, because the first match counts: otherwise a pod whose template tolerates
    # everything would stay on a lost node.
    _require_gpu_types(pod["spec"], job)
    for kind in ("containers", "initContainers"):
        for container in pod["spec"].get(kind) or ():
            _confine(container)
    requested = pod["spec"].get("tolerations") or []
    requested_keys = {toleration.get("key") for toleration in requested}
    pod["spec"]["tolerations"] = [*(t for t in _tolerations(job) if t["key"] not in requested_keys), *requested]
    return dict(strategic_merge(pod, gang_scheduling.pod_patch(job, attempt, defaults.coscheduling_scheduler)))


def _require_gpu_types(pod_spec: Object, job: YoloTrainingJob) -> None:
    """Require the job's GPU types also where the template has required node terms of its own, which replace the list.

    A pod may run where any term matches, so each term of the template is joined with each of the GPU types.
    """
    gpu, template = job.spec.workers.gpu, job.spec.workers.template.get("spec") or {}
    required = ((template.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED_TERMS) or {}
    if not gpu or not gpu.types or not required.get("nodeSelectorTerms"):
        return
    own = _gpu_affinity(gpu.types)[_REQUIRED_TERMS]["nodeSelectorTerms"]
    pod_spec["affinity"]["nodeAffinity"][_REQUIRED_TERMS]["nodeSelectorTerms"] = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *types["matchExpressions"]]}
        for term in required["nodeSelectorTerms"]
        for types in own
    ]


def _confine(container: Object) -> None:
    """Give a container what the Pod Security level "restricted" asks for, as far as it sets nothing itself.

    An installation may allow privileged containers and root; those keep what they have.
    """
    context = container.get("securityContext") or {}
    if not context.get("privileged") and context.get("runAsUser") != 0:
        container["securityContext"] = strategic_merge(_RESTRICTED, context)


def _metadata(job: YoloTrainingJob, index: int, attempt: int) -> Object:
    from_template = job.spec.workers.template.get("metadata") or {}
    annotations = dict(from_template.get("annotations") or {})
    if job.metadata.generation:
        annotations[constants.ANNOTATION_GENERATION] = str(job.metadata.generation)
    return {
        "name": worker_name(job.metadata.name, index),
        "namespace": job.metadata.namespace,
        "labels": {
            **(from_template.get("labels") or {}),
            # The job's own labels take precedence: pods are selected by them.
            **labels(job),
            constants.LABEL_WORKER: str(index),
            constants.LABEL_WORKERS: str(job.spec.workers.replicas),
            constants.LABEL_ATTEMPT: str(attempt),
        },
        "ownerReferences": [owner_reference(job)],
        "annotations": annotations,
    }


def _pod_spec(job: YoloTrainingJob, index: int, attempt: int, defaults: Defaults) -> Object:
    """The pod's spec before the job's template is merged into it."""
    spec = job.spec
    volumes, mounts, output = _volumes(job, index, defaults)
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
        "containers": [_container(job, _environment(job, index, attempt, output, defaults), mounts, defaults)],
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
    return pod_spec


def spare(job: YoloTrainingJob, index: int, attempt: int, defaults: Defaults) -> Object:
    """A pod that requests a worker's resources and does nothing.

    Once it has a node, a worker of a larger attempt can get one as well.
    """
    pod = worker(job, index, attempt, defaults)
    pod["metadata"]["labels"][constants.LABEL_SPARE] = "true"
    # The signal is blocked first: the kernel drops signals to process 1 that it neither blocks nor handles.
    wait = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGTERM}); s.sigwait({s.SIGTERM})"
    for container in pod["spec"]["containers"]:
        if container["name"] == constants.CONTAINER:
            container |= {"command": ["python", "-c", wait], "ports": []}
    return pod


def _container(job: YoloTrainingJob, environment: list[Object], mounts: list[Object], defaults: Defaults) -> Object:
    container: Object = {
        "name": constants.CONTAINER,
        "image": job.spec.workers.image or defaults.image,
        "command": ["python", "-m", "yolojob_trainer.launch"],
        "env": environment,
        "ports": [{"name": "metrics", "containerPort": constants.METRICS_PORT}],
        "resources": _resources(job),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {**_RESTRICTED, "readOnlyRootFilesystem": True},
    }
    if defaults.image_pull_policy:
        container["imagePullPolicy"] = defaults.image_pull_policy
    return container


def _environment(job: YoloTrainingJob, index: int, attempt: int, output: str, defaults: Defaults) -> list[Object]:
    workers = job.spec.workers
    processes = workers.processes
    # The trainer does not need the template, which may be large and hold secrets.
    spec = job.spec.model_copy(update={"workers": workers.model_copy(update={"template": {}})})
    run = Run(name=job.metadata.name, namespace=job.metadata.namespace or "default", attempt=attempt, spec=spec)
    master = f"{worker_name(job.metadata.name, 0)}.{job.metadata.name}"
    values = {
        constants.ENV_RUN: run.to_env(),
        constants.ENV_OUTPUT_DIR: output,
        # Namespaces that share a volume do not share its content.
        constants.ENV_CACHE_DIR: f"{CACHE}/{job.metadata.namespace}" if defaults.cache_volume else CACHE,
        constants.ENV_VOLUMES_DIR: VOLUMES,
        "PET_NNODES": str(workers.replicas),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        # For images that start torchrun, or nothing of the kind.
        "PET_RDZV_BACKEND": "static",
        "PET_MAX_RESTARTS": "0",
        "MASTER_ADDR": master,
        "MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        "WORLD_SIZE": str(workers.replicas * processes),
        "NODE_RANK": str(index),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod
        # After a lost peer: abort the communicators, keep the process, which then says why it ends.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
    }
    if (defaults.cache_volume or {"emptyDir": {}}).keys() & {"emptyDir", "hostPath"}:
        values[constants.ENV_RESERVED_DISK_SHARE] = str(defaults.reserved_disk_share)
    if defaults.weights:
        values[constants.ENV_WEIGHTS] = defaults.weights
    if defaults.datasets:
        values[constants.ENV_DATASETS] = defaults.datasets
    if isolation.needs_secret(job):
        values[constants.ENV_SECRET_FILE] = f"{isolation.SECRET_FOLDER}/{isolation.SECRET_KEY}"
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
    """(volumes, mounts, output folder). Only worker 0 mounts the storage, so a ReadWriteOnce claim suffices."""
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
    if isolation.needs_secret(job):
        volumes.append(isolation.secret_volume(job))
        mounts.append({"name": volumes[-1]["name"], "mountPath": isolation.SECRET_FOLDER, "readOnly": True})
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
    for claim, is_read_only in read_only.items():
        name = _volume_name(claim)
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": name, "mountPath": f"{VOLUMES}/{claim}", "readOnly": is_read_only})
    return volumes, mounts, output


def _volume_name(claim: str) -> str:
    """A volume name of at most 63 characters, different for different claims."""
    name = f"claim-{claim}"
    if len(name) <= MAX_VOLUME_NAME:
        return name
    digest = hashlib.sha256(claim.encode()).hexdigest()[:8]
    return f"{name[: MAX_VOLUME_NAME - 9].rstrip('-')}-{digest}"


def _shared_memory(job: YoloTrainingJob) -> str | None:
    setting = job.spec.workers.shared_memory
    if setting != "auto":
        return setting
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
        # GKE and most GPU node groups repel other pods with a taint named after the resource.
        keys = dict.fromkeys((gpu.resource, "nvidia.com/gpu"))
        tolerations += [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    return tolerations


def _gpu_affinity(types: list[str]) -> Object:
    """Node affinity for any label with which any platform names one of these GPUs; the terms are OR-ed."""
    terms = [
        {"matchExpressions": [{"key": label, "operator": "In", "values": values}]}
        for label, values in gpu_labels.labels(types).items()
    ]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
