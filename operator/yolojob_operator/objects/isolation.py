"""Builds the objects that keep strangers away from a job's workers: a shared secret and a NetworkPolicy. Pure,
except `random_data`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

from yolojob.api import constants
from yolojob.api.job import YoloTrainingJob
from yolojob_operator.kube.types import Object
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.metadata import labels, owner_reference

SECRET_KEY = "key"  # noqa: S105 - the name of the Secret's only entry
SECRET_FOLDER = "/yolojob/secret"  # noqa: S105 - where it is mounted
SECRET_BYTES = 32
GROUP_MAY_READ = 0o440


def needs_secret(job: YoloTrainingJob) -> bool:
    """Whether the workers connect to each other."""
    return job.spec.workers.replicas > 1


def secret_name(job: YoloTrainingJob) -> str:
    """A name that differs from that of an earlier job of the same name, whose secret may not be collected yet."""
    uid = hashlib.sha256((job.metadata.uid or "").encode()).hexdigest()[:8]
    return f"{job.metadata.name}-{uid}"


def secret(job: YoloTrainingJob) -> Object:
    """The secret by which the workers of a job recognise each other; the executor adds random bytes.

    The trainer derives a key of each attempt from it.
    """
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _metadata(job), "type": "Opaque", "immutable": True}


def random_data() -> dict[str, str]:
    """The content of a secret, new at each call."""
    return {SECRET_KEY: base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}


def secret_volume(job: YoloTrainingJob) -> Object:
    source = {"secretName": secret_name(job), "defaultMode": GROUP_MAY_READ}
    return {"name": "gang-secret", "secret": source}


def network_policy(job: YoloTrainingJob, defaults: Defaults) -> Object:
    """The policy that lets only the job's own workers, the operator and Prometheus connect to a worker.

    What workers connect to is not limited: datasets, buckets and registries have no common address.
    """
    # Local rank r serves its metrics on the port METRICS_PORT + r.
    last = constants.METRICS_PORT + job.spec.workers.processes - 1
    metrics: Object = {"ports": [{"port": constants.METRICS_PORT, "endPort": last, "protocol": "TCP"}]}
    if defaults.metrics_peers:
        metrics["from"] = list(defaults.metrics_peers)
    workers = {"podSelector": {"matchLabels": {constants.LABEL_JOB: job.metadata.name}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job),
        "spec": {
            "podSelector": {"matchLabels": {constants.LABEL_JOB: job.metadata.name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [workers]}, metrics],
        },
    }


def _metadata(job: YoloTrainingJob) -> Object:
    return {
        "name": secret_name(job),
        "namespace": job.metadata.namespace,
        "labels": labels(job),
        "ownerReferences": [owner_reference(job)],
    }
