"""A plan in the making: what is known of a job, what shall be done, and the small verbs that every rule uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report
from yolojob_operator.objects import gang_scheduling, pods
from yolojob_operator.plan import accounting, completed_indexes
from yolojob_operator.plan.conditions import find, is_finished, set_condition
from yolojob_operator.plan.node_facts import NodeFacts, any_offers
from yolojob_operator.plan.pod_facts import PodFacts

FORCE_AFTER = timedelta(seconds=10)
"""A pod that is still there so long after its grace period, on a node that is not ready, is deleted from the API."""
FORCE_AFTER_READY = timedelta(seconds=60)
"""The same on a node that is: its kubelet may be slow, and two workers must not write to one storage."""
RELEASE_AGAIN = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why an object that the job needs could not be created."""

    reason: str
    """One word in CamelCase, as in a condition."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is, around one job."""

    pods: tuple[PodFacts, ...] = ()
    """Worker pods that this job owns."""
    nodes: Mapping[str, NodeFacts] | None = None
    """Nodes by name; none where the operator may not see them."""
    report: Report | None = None
    """What rank 0 of the current attempt said last."""
    obstacle: Obstacle | None = None


@dataclass(frozen=True, kw_only=True)
class Deletion:
    name: str
    uid: str
    grace_seconds: int | None = None
    """None: the pod's own; 0: without waiting for its kubelet."""


@dataclass(frozen=True, kw_only=True)
class EventDraft:
    """Something worth a line in `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass
class PlanBuilder:
    """A plan in the making."""

    job: YoloTrainingJob
    observed: Observed
    now: datetime
    defaults: pods.Defaults
    status: YoloTrainingJobStatus = field(init=False)
    create: list[pods.Object] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    release: set[str] = field(default_factory=set)
    disbanded: list[pods.Object] = field(default_factory=list)
    events: list[EventDraft] = field(default_factory=list)
    due: datetime | None = None
    delete_job: bool = False
    refused: bool = False
    """No pod may be created of this specification."""
    settling: bool = False
    """The end of the attempt has been seen, and a moment is left to the others to show theirs."""

    def __post_init__(self) -> None:
        self.status = (self.job.status or YoloTrainingJobStatus()).model_copy(deep=True)

    # --- what is --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return is_finished(self.status)

    @property
    def record(self) -> Attempt | None:
        """The current attempt."""
        return accounting.current(self.status)

    @property
    def size(self) -> int:
        """Workers of the current attempt."""
        return self.record.workers if self.record else self.job.spec.workers.replicas

    @property
    def current(self) -> list[PodFacts]:
        """The gang."""
        return [p for p in self.observed.pods if p.attempt == self.status.attempt and p.index < self.size]

    @property
    def spares(self) -> list[PodFacts]:
        """Pods that only look for room, so that the next attempt may be larger."""
        return [p for p in self.observed.pods if p.attempt == self.status.attempt and p.index >= self.size]

    @property
    def leftovers(self) -> list[PodFacts]:
        """Pods of attempts that are over."""
        return [p for p in self.observed.pods if p.attempt != self.status.attempt]

    @property
    def placed(self) -> list[PodFacts]:
        return [p for p in self.current if p.node]

    @property
    def missing(self) -> list[int]:
        """Workers that have no pod, and have not succeeded either."""
        done = {p.index for p in self.current} | self.completed
        return [i for i in range(self.size) if i not in done]

    @property
    def completed(self) -> set[int]:
        """Workers that have succeeded, as their pods say, or as it was written before these went."""
        before = self.job.status
        written = before.workers.completed_indexes if before and before.attempt == self.status.attempt else ""
        return completed_indexes.split(written, self.size) | {p.index for p in self.current if p.phase == "Succeeded"}

    def all_running(self) -> bool:
        """Whether all of the gang run, or have done so to a good end."""
        return not self.missing and all(p.phase in ("Running", "Succeeded") for p in self.current)

    def offers_gpus(self) -> bool | None:
        """Whether the cluster has the GPUs that the job asks for; none where nobody may know."""
        gpu, nodes = self.job.spec.workers.gpu, self.observed.nodes
        return None if gpu is None or nodes is None else any_offers(nodes.values(), gpu)

    def as_attempted(self) -> YoloTrainingJob:
        """The job with the size and the device of the current attempt in place of those asked for."""
        spec = self.job.spec
        on_gpus = self.record is None or self.record.device == "GPU"
        workers = spec.workers.model_copy(update={"replicas": self.size, "gpu": spec.workers.gpu if on_gpus else None})
        return self.job.model_copy(update={"spec": spec.model_copy(update={"workers": workers})})

    # --- what shall be --------------------------------------------------------------------------------------------

    def next_attempt(self, workers: int, delay: timedelta = timedelta()) -> None:
        """Another gang; pods of the one before are leftovers from now on."""
        gpu = self.job.spec.workers.gpu
        on_gpus = gpu is not None and (gpu.required or self.offers_gpus() is True)
        self.status.attempt += 1
        self.status.next_attempt_time = self.now + delay if delay else None
        self.status.next_scale_up_time = None
        self.unschedule(Reason.RESTARTING, f"the pods of attempt {self.status.attempt} are not made yet")
        accounting.open_record(self.status, workers, "GPU" if on_gpus else "CPU")
        if gpu is not None and not on_gpus:
            self.event("Warning", Reason.NO_GPU, f"attempt {self.status.attempt} runs on CPUs: no node has such GPUs")

    def end_attempt(self, reason: str, message: str) -> None:
        """The current attempt is over."""
        accounting.fix_price(self.job, self.status, self.placed, self.observed.nodes or {})
        accounting.close_record(self.status, reason, message, self.now)
        if self.status.progress:
            self.status.progress.eta = None
        self.condition(ConditionType.RUNNING, "False", reason, message)

    def unschedule(self, reason: str, message: str) -> None:
        """No pod has a node any more, if any had."""
        if find(self.status, ConditionType.SCHEDULED) is not None:
            self.condition(ConditionType.SCHEDULED, "False", reason, message)

    def disband(self) -> None:
        """The job's PodGroup reserves room in its queue, whether it has pods or not."""
        if group := gang_scheduling.pod_group_ref(self.job):
            self.disbanded.append(group)

    def remove(self, pod: PodFacts, grace_seconds: int | None = None) -> None:
        """Delete a pod; where its node does not let go of it, delete it from the API."""
        if any(d.uid == pod.uid for d in self.delete):
            return
        if pod.deleted is None:
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=grace_seconds))
            return
        if pod.kueue_group:
            # Kueue keeps the pods of a group that has not finished, for others to replace them. Its Workload may come to be
            # just after it was looked for, hence again.
            self.release.add(pod.kueue_group)
            self.wake(self.now + RELEASE_AGAIN)
        node = self.observed.nodes.get(pod.node) if self.observed.nodes else None
        end = pod.deleted + (FORCE_AFTER_READY if node is not None and node.ready else FORCE_AFTER)
        if self.now >= end:
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=0))
        else:
            self.wake(end)

    def wake(self, moment: datetime) -> None:
        """Make a plan again at that moment."""
        self.due = moment if self.due is None else min(self.due, moment)

    def condition(
        self, kind: ConditionType, value: Literal["True", "False", "Unknown"], reason: str, message: str
    ) -> bool:
        """Set a condition; True where its status or reason is new."""
        return set_condition(self.status, kind, value, reason, message, self.job.metadata.generation, self.now)

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.events.append(EventDraft(type=kind, reason=reason, message=message))
