"""Builds what a gang scheduler needs: labels and annotations on the pods, and for some schedulers a PodGroup. Pure.

- Kueue's plain-pod groups (kueue.sigs.k8s.io/docs/tasks/run/plain_pods): labels and a total count on the pods. Kueue
  adds a scheduling gate that holds the pods until all are admitted. Every attempt is a separate group.
- Volcano and the coscheduling plugin of scheduler-plugins: a PodGroup with the job's name, and a separate scheduler.
"""

from __future__ import annotations

from yolojob.api import constants
from yolojob.api.fields import parse_quantity
from yolojob.api.job import YoloTrainingJob
from yolojob_operator.kube.types import Object

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
KUEUE_COUNT = "kueue.x-k8s.io/pod-group-total-count"
KUEUE_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
KUEUE_FINALIZER = "kueue.x-k8s.io/managed"
VOLCANO = "volcano"
VOLCANO_GROUP = "scheduling.k8s.io/group-name"
COSCHEDULING_GROUP = "scheduling.x-k8s.io/pod-group"
API_VERSIONS = {"volcano": "scheduling.volcano.sh/v1beta1", "coscheduling": "scheduling.x-k8s.io/v1alpha1"}


def group_name(job: str, attempt: int) -> str:
    """Name of the Kueue pod group of an attempt of the job with this name."""
    return f"{job}-{attempt}"


def pod_patch(job: YoloTrainingJob, attempt: int, scheduler: str) -> Object:
    """The patch that adds labels, annotations and the scheduler to a worker pod.

    Args:
        job: the job, with the attempt's size.
        attempt: the attempt's number.
        scheduler: name of the scheduler that has the coscheduling plugin.
    """
    scheduling, name = job.spec.scheduling, job.metadata.name
    match scheduling.gang:
        case "kueue":
            labels = {KUEUE_GROUP: group_name(name, attempt)}
            if scheduling.queue:
                labels[KUEUE_QUEUE] = scheduling.queue
            annotations = {KUEUE_COUNT: str(job.spec.workers.replicas), KUEUE_RETRIABLE: "false"}
            return {"metadata": {"labels": labels, "annotations": annotations}}
        case "volcano":
            return {"metadata": {"annotations": {VOLCANO_GROUP: name}}, "spec": {"schedulerName": VOLCANO}}
        case "coscheduling":
            return {"metadata": {"labels": {COSCHEDULING_GROUP: name}}, "spec": {"schedulerName": scheduler}}
    return {}


def pod_group_ref(job: YoloTrainingJob) -> Object | None:
    """Kind and name of the job's PodGroup; None if its scheduler uses none."""
    scheduling = job.spec.scheduling
    if scheduling.gang not in API_VERSIONS:
        return None
    metadata = {"name": job.metadata.name, "namespace": job.metadata.namespace}
    return {"apiVersion": API_VERSIONS[scheduling.gang], "kind": "PodGroup", "metadata": metadata}


def pod_group(job: YoloTrainingJob, pod: Object, owner: Object) -> Object | None:
    """The job's PodGroup; None if its scheduler uses none.

    Args:
        job: the job, with the attempt's size.
        pod: one of its worker pods, for the requested resources.
        owner: owner reference to the job.
    """
    scheduling, group = job.spec.scheduling, pod_group_ref(job)
    if group is None:
        return None
    # An elastic job is placed as soon as its minimum number of workers fits.
    min_workers = job.spec.elastic.min_replicas if job.spec.elastic else job.spec.workers.replicas
    spec: Object = {"minMember": min_workers, "minResources": _total_requests(pod, min_workers)}
    if scheduling.gang == "volcano":
        if scheduling.queue:
            spec["queue"] = scheduling.queue
        if scheduling.priority_class_name:
            spec["priorityClassName"] = scheduling.priority_class_name
    elif seconds := job.spec.run_policy.pre_running_deadline_seconds:
        spec["scheduleTimeoutSeconds"] = seconds
    labels = {constants.LABEL_JOB: job.metadata.name, constants.LABEL_MANAGED_BY: constants.MANAGER}
    return {**group, "metadata": {**group["metadata"], "labels": labels, "ownerReferences": [owner]}, "spec": spec}


def _total_requests(pod: Object, count: int) -> dict[str, str]:
    """The resources that `count` of these pods request together; in milli-units where a sum is not an integer."""
    total: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        # As in the API server, a limit without a request is also the request.
        requested = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, quantity in requested.items():
            total[name] = total.get(name, 0.0) + parse_quantity(quantity) * count
    return {name: str(int(n)) if n.is_integer() else f"{round(n * 1000)}m" for name, n in total.items()}
