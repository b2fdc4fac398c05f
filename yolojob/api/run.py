"""The run that the operator or a local run passes to each worker."""

from __future__ import annotations

from yolojob.api.base import ApiModel
from yolojob.api.spec import YoloTrainingJobSpec


class Run(ApiModel):
    """One run: the job's spec with all defaults, frozen at the start of the attempt."""

    name: str
    namespace: str = "local"
    attempt: int = 1
    spec: YoloTrainingJobSpec

    def to_env(self) -> str:
        """The value of the environment variable ENV_RUN."""
        return self.model_dump_json(by_alias=True, exclude_none=True)
