"""Hashes of specifications: of what determines the speed, and of what a running worker keeps. Pure."""

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


def worker_digest(spec: YoloTrainingJobSpec) -> str:
    """A hash of everything that a running worker cannot change any more: all but policies, prices and the size."""
    content = spec.model_dump_json(
        exclude={"run_policy": True, "pricing": True, "elastic": True, "workers": {"replicas"}}, exclude_none=True
    )
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def job_fingerprint(spec: YoloTrainingJobSpec) -> str:
    """A hash of everything that determines the speed of a job, except the machines and the number of workers."""
    train = spec.train.model_dump(mode="json", exclude_none=True, exclude=set(_IGNORED_SETTINGS))
    content = [
        spec.model.model_dump(mode="json", exclude_none=True),
        spec.dataset.model_dump(mode="json", exclude_none=True),
        train,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
