"""`status` of a YoloTrainingJob, and the report by which a running trainer tells what goes into it."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, PlainSerializer

from yolojob.api.base import LenientModel
from yolojob.api.time_parts import STEP_PARTS, TimePart, known_part


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[AwareDatetime, Field(strict=False), PlainSerializer(_rfc3339, return_type=str)]
"""A moment, to the second and in UTC, as Kubernetes writes it."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class JobPhase(enum.StrEnum):
    """One word for where the job stands, derived from the conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(enum.StrEnum):
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
    """Pods of the current attempt."""

    desired: Count = 0
    active: Count = 0
    ready: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    completed_indexes: str = ""
    """Workers of the current attempt that have succeeded, such as 0,2-4; also those whose pods are gone."""
    selector: str = ""
    """Label selector of the worker pods, for the scale subresource."""


class Progress(LenientModel):
    """How far the training is."""

    epoch: Count = 0
    """Epochs completed."""
    epochs: Count = 0
    """Epochs to do."""
    step: Count = 0
    """Steps done in the epoch that is running."""
    steps: Count = 0
    """Steps of an epoch."""
    staged_bytes: Count | None = None
    """Bytes of the data set that are on the first worker's node, while it is being fetched."""
    dataset_bytes: Count | None = None
    """Bytes of the data set in all, where its server says so."""
    images_per_second: Seconds | None = None
    """Images trained per second by the whole job, over the last steps."""
    checkpoint_failures: Count | None = None
    """Checkpoints and uploads that failed and are tried again; the training goes on."""
    rollbacks: Count | None = None
    """Times that the training went back to a checkpoint because its loss was not finite."""
    loss: float | None = None
    """Sum of the loss items, mean of the epoch so far."""
    map50: float | None = None
    """mAP at IoU 0.50 of the newest validation, 0 to 1."""
    map: float | None = None
    """mAP at IoU 0.50 to 0.95 of the newest validation, 0 to 1."""
    eta: Time | None = None
    """When the training is expected to end."""
    updated_at: Time | None = None
    """When the trainer said so."""


class Timing(LenientModel):
    """Where the time went, in seconds, over all attempts. From queuedSeconds to unaccountedSeconds the parts share no time."""

    queued_seconds: Seconds | None = None
    """From the job's creation until its pods were asked for, and waiting in a queue for admission."""
    scheduling_seconds: Seconds | None = None
    """Waiting for a place on a node."""
    image_pull_seconds: Seconds | None = None
    """From the pods' places to the first worker's start: images, volumes."""
    rendezvous_seconds: Seconds | None = None
    """The first worker's wait for the others."""
    staging_seconds: Seconds | None = None
    """Fetching and indexing the data set."""
    startup_seconds: Seconds | None = None
    """Process start to first step, without rendezvous and staging: imports, building the model, loading the state."""
    training_seconds: dict[str, Seconds] = Field(default_factory=dict)
    """Wall time of the steps by phase, of global rank 0."""
    validation_seconds: Seconds | None = None
    """Validation."""
    checkpoint_seconds: Seconds | None = None
    """Saving state and weights."""
    lost_seconds: Seconds | None = None
    """Earlier attempts' running time that no checkpoint has kept: training to be done again, and their end."""
    shutdown_seconds: Seconds | None = None
    """From the first worker's end until the last one's is known."""
    restart_seconds: Seconds | None = None
    """Between two attempts: the old pods' end, back-off."""
    suspended_seconds: Seconds | None = None
    """Suspended."""
    unaccounted_seconds: Seconds | None = None
    """Running time that no trainer has accounted for: rounding, and images that make no report."""
    running_seconds: Seconds | None = None
    """From the first worker's start to its end, over all attempts: rendezvous to lostSeconds, and unaccountedSeconds."""
    all_reduce_with_overlap_seconds: Seconds | None = None
    """Reducing gradients in all. The part that is not hidden behind the backward pass is trainingSeconds.all_reduce."""
    updated_at: Time | None = None
    """Time is accounted for up to this moment."""

    @property
    def parts(self) -> dict[TimePart, float]:
        """Seconds by part, in the order in which they happen. Together they are the wall clock."""
        parts = dict.fromkeys(TimePart, 0.0)
        for part in TimePart:
            if part not in STEP_PARTS:
                parts[part] = getattr(self, f"{part.value}_seconds") or 0.0
        for name, seconds in self.training_seconds.items():
            known = known_part(name)
            parts[known if known in STEP_PARTS else TimePart.OTHER] += seconds
        return parts

    @property
    def spent(self) -> dict[TimePart, float]:
        """`parts` without those that took no time."""
        return {part: seconds for part, seconds in self.parts.items() if seconds > 0}

    @property
    def trained_seconds(self) -> float:
        """What the trainer itself has accounted for."""
        own = (self.rendezvous_seconds, self.staging_seconds, self.startup_seconds)
        others = (self.validation_seconds, self.checkpoint_seconds)
        return sum(self.training_seconds.values()) + sum(value or 0.0 for value in (*own, *others))


class Cost(LenientModel):
    """What the pods cost while they ran, over all attempts."""

    currency: str | None = None
    """ISO 4217; none where there is no price."""
    per_hour: Seconds | None = None
    """Of the current attempt's workers together."""
    so_far: Seconds | None = None
    estimated_total: Seconds | None = None
    """When the training ends as progress.eta says."""
    lost: Seconds | None = None
    """Of timing.lostSeconds."""
    budget: Seconds | None = None
    """spec.pricing.budget, when the account was last written."""
    price_source: str | None = None
    """Where the price comes from, or why there is none."""


class Attempt(LenientModel):
    """One gang of pods."""

    attempt: Count
    """Its number; the first is 1."""
    workers: Count
    """Its size."""
    device: Literal["GPU", "CPU"] = "CPU"
    """What it trains on."""
    start_time: Time | None = None
    """When its pods were asked for."""
    running_time: Time | None = None
    """When all of them ran."""
    end_time: Time | None = None
    """When the job went on to the next attempt, or ended."""
    reason: str | None = None
    """Why it ended."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    running_seconds_before: Seconds = 0.0
    """timing.runningSeconds when it began."""
    pod_seconds: Seconds = 0.0
    """Running time of its pods, summed."""
    per_worker_hour: Seconds | None = None
    """Price of one worker for one hour, as it was when the attempt began."""
    currency: str | None = None
    cost: Seconds | None = None
    """podSeconds × perWorkerHour."""


class Result(LenientModel):
    """What came out."""

    weights: str
    """URI of best.pt."""
    map50: float | None = None
    map: float | None = None


class YoloTrainingJobStatus(LenientModel):
    """Where the job stands."""

    phase: Annotated[JobPhase, Field(strict=False)] = JobPhase.PENDING
    conditions: list[Condition] = Field(default_factory=list)
    observed_generation: Count = 0
    start_time: Time | None = None
    """When the first pods were asked for; anew after a suspension, and after a queue has held them back."""
    completion_time: Time | None = None
    """When the job succeeded or failed."""
    attempt: Count = 0
    """Number of the gang of pods that is current; the first is 1."""
    restarts: Count = 0
    """Attempts that failed; counted against spec.runPolicy.backoffLimit."""
    disruptions: Count = 0
    """Attempts lost to preemption, eviction, lost nodes; not counted."""
    next_attempt_time: Time | None = None
    """Back-off: not before this moment is the next attempt made."""
    next_scale_up_time: Time | None = None
    """Not before this moment is room for more workers looked for (spec.elastic)."""
    history: list[Attempt] = Field(default_factory=list)
    """The newest attempts, the current one last."""
    workers: WorkerCounts = Field(default_factory=WorkerCounts)
    progress: Progress | None = None
    timing: Timing | None = None
    cost: Cost | None = None
    result: Result | None = None
