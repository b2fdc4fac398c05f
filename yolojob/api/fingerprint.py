"""Fingerprints jobs: jobs with the same fingerprint have the same speed on the same machines. Pure."""

from __future__ import annotations

import hashlib
import json

from yolojob.api.spec import YoloTrainingJobSpec

_IGNORED_SETTINGS = (
    "epochs",
    "patience",
    "seed",
    "lr0",
    "lrf",
    "momentum",
    "weight_decay",
    "save_period",
    "val",
    "plots",
)
"""Settings that change the number of steps or the result, but not the time of a step."""


def job_fingerprint(spec: YoloTrainingJobSpec) -> str:
    """A hash of everything that determines the speed of a job, except the machines and the number of workers."""
    train = spec.train.model_dump(mode="json", exclude_none=True, exclude=set(_IGNORED_SETTINGS))
    content = [
        spec.model.model_dump(mode="json", exclude_none=True),
        spec.dataset.model_dump(mode="json", exclude_none=True),
        train,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
