"""What a measurement is of: jobs with the same fingerprint take the same time on the same machines. Pure."""

from __future__ import annotations

import hashlib
import json

from yolojob.api.spec import YoloTrainingJobSpec

_NO_MATTER = ("epochs", "patience", "seed", "lr0", "lrf", "momentum", "weight_decay", "save_period", "val", "plots")
"""Settings that change how many steps there are, or what is learnt, but not how long a step takes."""


def job_fingerprint(spec: YoloTrainingJobSpec) -> str:
    """A short name for all that the speed of a job depends on, but for machines and the number of workers."""
    train = spec.train.model_dump(mode="json", exclude_none=True, exclude=set(_NO_MATTER))
    content = [
        spec.model.model_dump(mode="json", exclude_none=True),
        spec.dataset.model_dump(mode="json", exclude_none=True),
        train,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
