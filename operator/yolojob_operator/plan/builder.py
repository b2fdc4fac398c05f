"""Collects the actions and the status of one plan while the rules run: PlanBuilder and its parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from yolojob.api.fingerprint import worker_digest
from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report
from yolojob_operator.kube.types import EventDraft, Object
from yolojob_operator.objects import gang_scheduling
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.objects.template_policy import MAX_GRACE_SECONDS
from yolojob_operator.plan import completed_indexes
from yolojob_operator.plan.accounting import Account
from yolojob_operator.plan.conditions import ConditionUpdate, find, is_finished, set_condition
from yolojob_operator.plan.events import attempt_occasion
from yolojob_operator.plan.node_facts import NodeFacts, any_offers
from yolojob_operator.plan.pod_facts import PodFacts

FORCE_AFTER = timedelta(seconds=10)
"""A pod that still exists this long after its grace period, on a node that is not ready, is deleted from the API."""
FORCE_AFTER_READY = timedelta(seconds=60)
"""The same on a ready node: its kubelet may be slow, and two workers must not write to one storage."""
RELEASE_RETRY_INTERVAL = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why an object that the job needs could not be created."""

    reason: str
    """One CamelCase word, as in a condition."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The observed state of one job's surroundings."""

    pods: tuple[PodFacts, ...] = ()
    """Worker pods owned by this job."""
    nodes: Mapping[str, NodeFacts] | None = None
    """Nodes by name; None if the operator may not list nodes."""
    report: Report | None = None
    """The newest report of rank 0 of the current attempt."""
    obstacle: Obstacle | None = None
    """What the previous plan could not create, and why."""


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """A pod to delete."""

    name: str
    uid: str
    grace_seconds: int
    """0: from the API, without waiting for its kubelet."""


@dataclass(frozen=True, kw_only=True, order=True)
class Release:
    """A Workload of Kueue to delete, so that Kueue gives up a pod of its group."""

    name: str
    pod_uid: str
    """A pod of this job that must be among the Workload's owners."""


@dataclass
class PlanBuilder:
    """A plan under construction. Rules read the observed state from it and add status changes and actions to it."""

    job: YoloTrainingJob
    observed: Observed
    now: datetime
    defaults: Defaults
    status: YoloTrainingJobStatus = field(init=False)
    account: Account = field(init=False)
    create: list[Object] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    release: dict[str, Release] = field(default_factory=dict)
    """By the name of the Workload."""
    disband: list[Object] = field(default_factory=list)
    events: list[EventDraft] = field(default_factory=list)
    due: datetime | None = None
    delete_job: bool = False
    refused: bool = False
    """No pod may be created from this specification."""
    settling: bool = False
    """The attempt is ending; wait briefly for the other pods' exit codes before deciding on the cause."""

    def __post_init__(self) -> None:
        self.status = (self.job.status or YoloTrainingJobStatus()).model_copy(deep=True)
        self.account = Account(self.job, self.status, self.observed.pods, self.observed.nodes, self.now)

    # --- the observed state ---------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return is_finished(self.status)

    @property
    def record(self) -> Attempt | None:
        """The record of the current attempt, once its size is decided."""
        return self.account.record

    @property
    def size(self) -> int:
        """Workers of the current attempt."""
        return self.record.workers if self.record else self.job.spec.workers.replicas

    @property
    def current(self) -> list[PodFacts]:
        """Pods of the current attempt's workers."""
        return [p for p in self.observed.pods if p.attempt == self.status.attempt and p.index < self.size]

    @property
    def spares(self) -> list[PodFacts]:
        """Spare pods: they test whether a larger attempt would be scheduled."""
        return [p for p in self.observed.pods if p.attempt == self.status.attempt and p.index >= self.size]

    @property
    def leftovers(self) -> list[PodFacts]:
        """Pods of earlier attempts."""
        return [p for p in self.observed.pods if p.attempt != self.status.attempt]

    @property
    def placed(self) -> list[PodFacts]:
        """Pods of the current attempt that have a node."""
        return [p for p in self.current if p.node]

    @property
    def missing(self) -> list[int]:
        """Indices of workers that have no pod and have not succeeded."""
        present = {p.index for p in self.current} | self.completed
        return [i for i in range(self.size) if i not in present]

    @property
    def completed(self) -> set[int]:
        """Indices of workers that have succeeded, by their pods, or by the status if the pods are gone."""
        before = self.job.status
        written = before.workers.completed_indexes if before and before.attempt == self.status.attempt else ""
        return completed_indexes.split(written, self.size) | {p.index for p in self.current if p.phase == "Succeeded"}

    def all_running(self) -> bool:
        """Whether every worker of the attempt runs or has succeeded."""
        return not self.missing and all(p.phase in ("Running", "Succeeded") for p in self.current)

    def offers_gpus(self) -> bool | None:
        """Whether the cluster has GPUs that the job requests; None if it requests none, or nodes may not be listed."""
        gpu, nodes = self.job.spec.workers.gpu, self.observed.nodes
        return None if gpu is None or nodes is None else any_offers(nodes.values(), gpu)

    def as_attempted(self) -> YoloTrainingJob:
        """The job with the size, the device and the image of the current attempt instead of the requested ones."""
        spec = self.job.spec
        on_gpus = self.record is None or self.record.device == "GPU"
        image = (self.record.image if self.record else None) or spec.workers.image
        gpu = spec.workers.gpu if on_gpus else None
        workers = spec.workers.model_copy(update={"replicas": self.size, "gpu": gpu, "image": image})
        return self.job.model_copy(update={"spec": spec.model_copy(update={"workers": workers})})

    # --- changes --------------------------------------------------------------------------------------------------

    def next_attempt(self, workers: int, delay: timedelta = timedelta()) -> None:
        """Start another attempt. Pods of the previous one become leftovers."""
        gpu = self.job.spec.workers.gpu
        on_gpus = gpu is not None and (gpu.required or self.offers_gpus() is True)
        self.status.attempt += 1
        self.status.next_attempt_time = self.now + delay if delay else None
        self.status.next_scale_up_time = None
        self.unschedule(Reason.RESTARTING, f"the pods of attempt {self.status.attempt} are not created yet")
        self.account.open_attempt(workers, "GPU" if on_gpus else "CPU")
        if gpu is not None and not on_gpus:
            self.event("Warning", Reason.NO_GPU, f"attempt {self.status.attempt} runs on CPUs: no node has such GPUs")

    def record_specification(self, image: str | None) -> None:
        """Record what the current attempt keeps from its first pod on, whatever is edited or upgraded.

        Args:
            image: of its pods.
        """
        if self.record is not None:
            self.record.image, self.record.spec_digest = image, worker_digest(self.job.spec)

    def end_attempt(self, reason: str, message: str) -> None:
        """End the current attempt."""
        self.account.close_attempt(reason, message)
        if self.status.progress:
            self.status.progress.eta = None
        self.condition(ConditionType.RUNNING, "False", reason, message)

    def unschedule(self, reason: str, message: str) -> None:
        """Set Scheduled to False, if it was ever set."""
        if find(self.status, ConditionType.SCHEDULED) is not None:
            self.condition(ConditionType.SCHEDULED, "False", reason, message)

    def delete_pod_group(self) -> None:
        """Delete the job's PodGroup: it reserves room in its queue, with or without pods."""
        if group := gang_scheduling.pod_group_ref(self.job):
            self.disband.append(group)

    def remove(self, pod: PodFacts, grace_seconds: int | None = None) -> None:
        """Delete a pod. If its node does not confirm the deletion in time, delete it from the API."""
        if any(d.uid == pod.uid for d in self.delete):
            return
        longest = min(pod.grace_seconds, MAX_GRACE_SECONDS)
        if pod.deleted is None or pod.deleted > self.now + timedelta(seconds=MAX_GRACE_SECONDS):
            # Also a second time, if somebody has deleted it with a longer period: Kubernetes shortens it.
            seconds = longest if grace_seconds is None else min(grace_seconds, longest)
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=seconds))
            return
        if pod.kueue_group == gang_scheduling.group_name(self.job.metadata.name, pod.attempt):
            # Kueue keeps the pods of an unfinished group until others replace them. Kueue may create the Workload just
            # after it was looked up, hence the repetition.
            self.release.setdefault(pod.kueue_group, Release(name=pod.kueue_group, pod_uid=pod.uid))
            self.wake(self.now + RELEASE_RETRY_INTERVAL)
        node = self.observed.nodes.get(pod.node) if self.observed.nodes else None
        end = pod.deleted + (FORCE_AFTER_READY if node is not None and node.ready else FORCE_AFTER)
        if self.now >= end:
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=0))
        else:
            self.wake(end)

    def wake(self, moment: datetime) -> None:
        """Plan again at this moment at the latest."""
        self.due = moment if self.due is None else min(self.due, moment)

    def condition(
        self, kind: ConditionType, value: Literal["True", "False", "Unknown"], reason: str, message: str
    ) -> bool:
        """Set a condition. Returns whether its status or reason has changed."""
        generation = self.job.metadata.generation
        update = ConditionUpdate(type=kind, status=value, reason=reason, message=message, generation=generation)
        return set_condition(self.status, update, self.now)

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str, occasion: str | None = None) -> None:
        """Post an event.

        Args:
            kind: Normal or Warning.
            reason: a CamelCase word.
            message: a sentence.
            occasion: see EventDraft; default: the current attempt.
        """
        occasion = occasion or attempt_occasion(self.status.attempt)
        self.events.append(EventDraft(type=kind, reason=reason, message=message, occasion=occasion))
