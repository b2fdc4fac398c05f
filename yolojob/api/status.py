"""Defines the `status` of a YoloTrainingJob."""

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, PlainSerializer

from yolojob.api.base import LenientModel
from yolojob.api.fields import Count
from yolojob.api.task import labelled, main_metric
from yolojob.api.time_parts import STEP_PARTS, TimePart, sum_trainer_parts


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _year_of_four_digits(moment: datetime) -> datetime:
    if not 1000 < moment.year < 9999:
        raise ValueError("must be in the years 1001 to 9998, so that every time zone can express it")
    return moment


def _phases(seconds: dict[str, float]) -> dict[str, float]:
    if not all(re.fullmatch(r"[a-z0-9_]{1,40}", name) for name in seconds):
        raise ValueError("the name of a phase has 1 to 40 of a-z, 0-9 and _")
    return seconds


def _metric_names(metrics: dict[str, float]) -> dict[str, float]:
    if not all(re.fullmatch(METRIC_NAME, name) for name in metrics) or len(metrics) > MAX_METRICS:
        raise ValueError("at most 32 metrics, with names of 1 to 40 letters, digits and _.()-")
    return metrics


MAX_METRICS = 32
METRIC_NAME = r"[A-Za-z0-9_.()-]{1,40}"
MetricValue = Annotated[float, Field(ge=-1e9, le=1e9)]
Time = Annotated[
    AwareDatetime,
    Field(strict=False),
    AfterValidator(_year_of_four_digits),
    PlainSerializer(_rfc3339, return_type=str),
]
"""A time in UTC with a resolution of one second, as in Kubernetes."""

Seconds = Annotated[float, Field(ge=0, le=1e12)]
"""At most some thirty thousand years: sums of them stay finite."""


class JobPhase(enum.StrEnum):
    """The job's state in one word, derived from the conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(enum.StrEnum):
    """The types of a job's conditions."""

    ACCEPTED = "Accepted"
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(LenientModel):
    """A metav1.Condition."""

    type: Annotated[ConditionType, Field(strict=False)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: Time
    observed_generation: Count = 0


class WorkerCounts(LenientModel):
    """Worker pods of the current attempt."""

    desired: Count = 0
    active: Count = 0
    ready: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    completed_indexes: str = ""
    """Workers of the current attempt that have succeeded, such as 0,2-4; includes those whose pods were deleted."""
    selector: str = ""
    """Label selector of the worker pods, for the scale subresource."""


class Position(LenientModel):
    """A position in the training."""

    epoch: Count = 0
    """Epochs completed."""
    step: Count = 0
    """Steps completed in the current epoch."""


class Accuracy(LenientModel):
    """The metrics of a validation."""

    metrics: Annotated[dict[str, MetricValue], AfterValidator(_metric_names)] | None = None
    """All metrics of the validation, by Ultralytics' names: mAP50-95(B) of boxes, (M) of masks, (P) of poses,
    accuracy_top1, mIoU, delta1…"""
    main_metric: Annotated[str, Field(max_length=40, pattern=f"^{METRIC_NAME}$")] | None = None
    """Name of the metric in `score`: that of the task's own output, such as mAP50-95(M) of a segmentation."""
    score: MetricValue | None = None
    """Value of mainMetric, 0 to 1; more is better."""
    map50: float | None = None
    """mAP at IoU 0.50 of the boxes, 0 to 1; also in `metrics`."""
    map: float | None = None
    """mAP at IoU 0.50 to 0.95 of the boxes, 0 to 1; also in `metrics`."""

    def set_metrics(self, metrics: dict[str, float]) -> None:
        """Set all fields of this class from the metrics of a validation by their names."""
        self.metrics = metrics or None
        self.main_metric = main_metric(metrics)
        self.score = round(metrics[self.main_metric], 4) if self.main_metric else None
        self.map50, self.map = metrics.get("mAP50(B)"), metrics.get("mAP50-95(B)")

    @property
    def all_metrics(self) -> dict[str, float]:
        """All metrics by their names, also of a trainer of an older version, which reports only those of boxes."""
        boxes = {"mAP50(B)": self.map50, "mAP50-95(B)": self.map}
        return self.metrics or {name: value for name, value in boxes.items() if value is not None}

    @property
    def labelled(self) -> dict[str, float]:
        """The metrics that people read first, by their names for people."""
        return labelled(self.all_metrics)


class Progress(Accuracy):
    """Progress of the training. Its metrics are those of the newest validation."""

    epoch: Count = 0
    """Epochs completed."""
    epochs: Count = 0
    """Total number of epochs."""
    step: Count = 0
    """Steps completed in the current epoch."""
    steps: Count = 0
    """Steps per epoch."""
    staged_bytes: Count | None = None
    """Bytes of the dataset on the first worker's node, during staging."""
    dataset_bytes: Count | None = None
    """Total bytes of the dataset, if its server reports them."""
    images_per_second: Seconds | None = None
    """Images trained per second by the whole job, over the last steps."""
    checkpoint_failures: Count | None = None
    """Failed checkpoints and uploads; they are retried while the training continues."""
    rollbacks: Count | None = None
    """Number of rollbacks to a checkpoint because the loss was not finite."""
    loss: float | None = None
    """Sum of the loss items, averaged over the current epoch so far."""
    eta: Time | None = None
    """Expected end of the training."""
    updated_at: Time | None = None
    """Time of the trainer's report."""


class Timing(LenientModel):
    """Where the time went, in seconds, over all attempts. The parts from queuedSeconds to unaccountedSeconds do not
    overlap."""

    queued_seconds: Seconds | None = None
    """From the job's creation until its pods were created, and waiting in a queue for admission."""
    scheduling_seconds: Seconds | None = None
    """Waiting for a node."""
    image_pull_seconds: Seconds | None = None
    """From the assignment of nodes to the first worker's start: pulling images, mounting volumes."""
    rendezvous_seconds: Seconds | None = None
    """The first worker's wait for the other workers."""
    staging_seconds: Seconds | None = None
    """Downloading and indexing the dataset."""
    startup_seconds: Seconds | None = None
    """From process start to first step, without rendezvous and staging: imports, building the model, loading the
    state."""
    training_seconds: Annotated[dict[str, Seconds], AfterValidator(_phases)] = Field(default_factory=dict)
    """Wall-clock time of global rank 0's steps, by phase."""
    validation_seconds: Seconds | None = None
    """Validation."""
    checkpoint_seconds: Seconds | None = None
    """Saving state and weights."""
    lost_seconds: Seconds | None = None
    """Running time of earlier attempts after their last checkpoint: training that is repeated, and their end."""
    shutdown_seconds: Seconds | None = None
    """From the end of the first worker until the end of the last worker is known."""
    restart_seconds: Seconds | None = None
    """Between two attempts: termination of the old pods, back-off."""
    suspended_seconds: Seconds | None = None
    """While the job is suspended."""
    unaccounted_seconds: Seconds | None = None
    """Running time that no trainer has reported: rounding, and trainer images without reports."""
    running_seconds: Seconds | None = None
    """From the first worker's start to its end, over all attempts: the parts from rendezvousSeconds to lostSeconds, and
    unaccountedSeconds."""
    all_reduce_with_overlap_seconds: Seconds | None = None
    """All-reduce of gradients, including the part that overlaps with the backward pass. trainingSeconds.all_reduce is
    the part that does not overlap."""
    updated_at: Time | None = None
    """The account covers the time until this moment."""

    @property
    def parts(self) -> dict[TimePart, float]:
        """Seconds by part, in the order in which the parts happen. Their sum is the wall-clock time."""
        parts = dict.fromkeys(TimePart, 0.0)
        for part in TimePart:
            if part not in STEP_PARTS:
                parts[part] = getattr(self, f"{part.value}_seconds") or 0.0
        for part, seconds in sum_trainer_parts(self.training_seconds).items():
            parts[part if part in STEP_PARTS else TimePart.OTHER] += seconds
        return parts

    @property
    def spent(self) -> dict[TimePart, float]:
        """`parts` without parts of 0 seconds."""
        return {part: seconds for part, seconds in self.parts.items() if seconds > 0}

    @property
    def trained_seconds(self) -> float:
        """Seconds that the trainer itself has reported."""
        start = (self.rendezvous_seconds, self.staging_seconds, self.startup_seconds)
        others = (self.validation_seconds, self.checkpoint_seconds)
        return sum(self.training_seconds.values()) + sum(value or 0.0 for value in (*start, *others))


class Cost(LenientModel):
    """Cost of the pods' running time, over all attempts."""

    currency: str | None = None
    """Currency (ISO 4217); not set without a price."""
    per_hour: Seconds | None = None
    """Cost of all workers of the current attempt per hour."""
    so_far: Seconds | None = None
    """Cost so far."""
    estimated_total: Seconds | None = None
    """Cost of the whole job if it ends at progress.eta."""
    lost: Seconds | None = None
    """Cost of timing.lostSeconds."""
    budget: Seconds | None = None
    """spec.pricing.budget at the last update of the cost."""
    price_source: str | None = None
    """Source of the price, or why there is no price."""


class Attempt(LenientModel):
    """One attempt: a gang of pods that is created and ends together."""

    attempt: Count
    """Number of the attempt; the first is 1."""
    workers: Count
    """Number of workers."""
    device: Literal["GPU", "CPU"] = "CPU"
    """Device of the training."""
    start_time: Time | None = None
    """When its pods were created."""
    running_time: Time | None = None
    """When all its pods were running."""
    end_time: Time | None = None
    """When the next attempt followed, or the job ended."""
    reason: str | None = None
    """Why it ended: a CamelCase word."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """Why it ended, in a sentence."""
    image: Annotated[str, Field(max_length=1024)] | None = None
    """Image of all its pods."""
    spec_digest: Annotated[str, Field(max_length=64)] | None = None
    """Hash of the part of the specification that its workers keep until they end."""
    running_seconds_before: Seconds = 0.0
    """timing.runningSeconds at its start."""
    pod_seconds: Seconds = 0.0
    """Sum of the running times of its pods."""
    per_worker_hour: Seconds | None = None
    """Price of one worker for one hour, at the start of the attempt."""
    currency: str | None = None
    """Currency of perWorkerHour and cost (ISO 4217)."""
    cost: Seconds | None = None
    """podSeconds × perWorkerHour."""


class Result(Accuracy):
    """The result of the training. Its metrics are those of the best model."""

    weights: Annotated[str, Field(max_length=4096)]
    """URI of best.pt."""


class YoloTrainingJobStatus(LenientModel):
    """The observed state of the job."""

    phase: Annotated[JobPhase, Field(strict=False)] = JobPhase.PENDING
    conditions: list[Condition] = Field(default_factory=list)
    observed_generation: Count = 0
    start_time: Time | None = None
    """When the first pods were created; reset after a suspension, and after waiting for admission by a queue."""
    completion_time: Time | None = None
    """When the job succeeded or failed."""
    attempt: Count = 0
    """Number of the current attempt; the first is 1."""
    restarts: Count = 0
    """Failed attempts; they count towards spec.runPolicy.backoffLimit."""
    disruptions: Count = 0
    """Attempts that ended by preemption, eviction or loss of a node; they do not count towards backoffLimit."""
    disruptions_in_a_row: Count = 0
    """Disruptions since the training has last made progress; they count towards spec.runPolicy.disruptionLimit."""
    furthest: Position | None = None
    """The furthest position that the training has reached at a disruption."""
    next_attempt_time: Time | None = None
    """Back-off: the next attempt does not start before this time."""
    next_scale_up_time: Time | None = None
    """The operator does not look for resources for more workers before this time (spec.elastic)."""
    history: list[Attempt] = Field(default_factory=list)
    """The most recent attempts; the last one is the current attempt."""
    workers: WorkerCounts = Field(default_factory=WorkerCounts)
    progress: Progress | None = None
    timing: Timing | None = None
    cost: Cost | None = None
    result: Result | None = None
