"""Labels and owner of all objects of a job. Pure."""

from __future__ import annotations

from yolojob.api import constants
from yolojob.api.job import YoloTrainingJob
from yolojob_operator.kube.types import Object


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
