"""The Kubernetes object `YoloTrainingJob`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from yolojob.api.base import ApiModel
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.status import JobPhase, Time, YoloTrainingJobStatus


class Metadata(ApiModel):
    """The fields of Kubernetes' ObjectMeta that yolojob reads; other fields are kept unchanged."""

    model_config = ConfigDict(extra="allow")

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class YoloTrainingJob(ApiModel):
    """One training of one YOLO detector."""

    api_version: Literal["yolojob.dev/v1alpha1"] = "yolojob.dev/v1alpha1"
    kind: Literal["YoloTrainingJob"] = "YoloTrainingJob"
    metadata: Metadata
    spec: YoloTrainingJobSpec
    status: YoloTrainingJobStatus | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job has succeeded or failed, which is final."""
        return self.status is not None and self.status.phase in (JobPhase.SUCCEEDED, JobPhase.FAILED)

    def to_json(self) -> dict[str, Any]:
        """The object as in Kubernetes, without fields that were never set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
