"""The life of a job as one pure function: `plan(job, observed, now) -> Plan`.

No network, no kopf, no clock of its own, so every rule is a table test. The function is level-triggered: it looks at what is,
never at what has just happened, and what it must remember stands in the job's status. It may be called at any time, any
number of times, and after any crash.

One attempt is one fixed gang of pods. Whatever ends it raises `status.attempt` in the same write that counts the cause; pods
of an older attempt are then merely leftovers. So nothing is counted twice, however often the plan is made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from yolojob import contract
from yolojob.contract import worker_name
from yolojob.job import YoloTrainingJob
from yolojob.status import (
    ConditionType,
    Phase,
    Progress,
    Report,
    Timing,
    YoloTrainingJobStatus,
)
from yolojob_operator import pods
from yolojob_operator.conditions import find, is_finished, is_set, set_condition
from yolojob_operator.endings import first, report_of, words_of
from yolojob_operator.facts import Cause, PodFacts

BACKOFF = timedelta(seconds=10)
"""Wait before the second restart; doubled for each further one. The first restart is at once."""
MAX_BACKOFF = timedelta(seconds=300)
SHORT_LIFE = timedelta(seconds=30)
FEW_DISRUPTIONS = 3
"""After these, an attempt that a disruption ends sooner than SHORT_LIFE is followed by a wait, or preemption could spin."""
SURVIVORS_PATIENCE = timedelta(seconds=3)
"""Time for the culprit to be seen, once the others have reported that they lost it."""
FAREWELL = timedelta(seconds=5)
"""Time for the other workers to end by themselves, once worker 0 has succeeded."""
FORCE_AFTER = timedelta(seconds=10)
"""A pod that is still there so long after its grace period is on a node that is gone."""
FAILURE_GRACE_SECONDS = 5
"""Survivors of a failure have nobody left to agree with: they need no long farewell."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is, around one job."""

    pods: tuple[PodFacts, ...] = ()
    """Worker pods that this job owns."""
    report: Report | None = None
    """What rank 0 of the current attempt said last."""
    conflict: str = ""
    """Words about a foreign object that has a name which the job needs."""


@dataclass(frozen=True, kw_only=True)
class Deletion:
    name: str
    uid: str
    grace_seconds: int | None = None
    """None: the pod's own; 0: without waiting for its kubelet."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth a line in `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What should be. The status is written first: it is the memory."""

    status: YoloTrainingJobStatus
    create: tuple[pods.Object, ...] = ()
    delete: tuple[Deletion, ...] = ()
    delete_job: bool = False
    due: datetime | None = None
    """Make a plan again at this moment, even if nothing happens until then."""
    events: tuple[Event, ...] = ()


def plan(job: YoloTrainingJob, observed: Observed, now: datetime, defaults: pods.Defaults) -> Plan:
    """What should be, given what is."""
    draft = _Draft(job, observed, now, defaults)
    if job.metadata.deletion_timestamp is None and job.spec.run_policy.managed_by in (None, contract.MANAGER):
        draft.decide()
    return draft.plan()


def rejected(status: YoloTrainingJobStatus, faults: str, generation: int, now: datetime) -> YoloTrainingJobStatus:
    """Status of a job whose spec is broken: stored before the CRD was tightened, or by someone who went round it."""
    status = status.model_copy(deep=True)
    set_condition(status, ConditionType.ACCEPTED, "False", "InvalidSpec", faults, generation, now)
    status.observed_generation = generation
    return status


@dataclass
class _Draft:
    """A plan in the making."""

    job: YoloTrainingJob
    observed: Observed
    now: datetime
    defaults: pods.Defaults
    status: YoloTrainingJobStatus = field(init=False)
    create: list[pods.Object] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    due: datetime | None = None
    delete_job: bool = False

    def __post_init__(self) -> None:
        self.status = (self.job.status or YoloTrainingJobStatus()).model_copy(deep=True)

    def plan(self) -> Plan:
        return Plan(
            status=self.status,
            create=tuple(self.create),
            delete=tuple(self.delete),
            delete_job=self.delete_job,
            due=self.due,
            events=tuple(self.events),
        )

    # --- the decision, from the top -------------------------------------------------------------------------------

    def decide(self) -> None:
        if self.finished:
            self._clean()
            self._expire()
        elif refusal := self._refusal():
            self._condition(ConditionType.ACCEPTED, "False", *refusal)
        else:
            self._condition(ConditionType.ACCEPTED, "True", "Accepted", "the specification can be run")
            if self.job.spec.run_policy.suspend:
                self._suspend()
            else:
                self._run()
        self._sum_up()

    @property
    def finished(self) -> bool:
        return is_finished(self.status)

    @property
    def current(self) -> list[PodFacts]:
        return [p for p in self.observed.pods if p.attempt == self.status.attempt]

    @property
    def leftovers(self) -> list[PodFacts]:
        return [p for p in self.observed.pods if p.attempt != self.status.attempt]

    def _refusal(self) -> tuple[str, str] | None:
        """What a cluster cannot do, though the specification is well-formed: (reason, message)."""
        spec = self.job.spec
        for path, value in (
            ("dataset.uri", spec.dataset.uri),
            ("storage.uri", spec.storage.uri if spec.storage else ""),
            ("model.weights.uri", spec.model.weights.uri if spec.model.weights else ""),
        ):
            if value.startswith("file://"):
                return (
                    "LaptopOnly",
                    f"spec.{path}: {value}: file:// is this machine's disk; use pvc://CLAIM/PATH on a cluster",
                )
        for path, asked in (
            ("elastic", spec.elastic is not None),
            ("scheduling.gang", spec.scheduling.gang != "none"),
            ("workers.gpu.required", spec.workers.gpu is not None and not spec.workers.gpu.required),
        ):
            if asked:
                return "NotSupported", f"spec.{path}: this version of the operator does not do this yet; leave it out"
        return None

    # --- suspended ------------------------------------------------------------------------------------------------

    def _suspend(self) -> None:
        for pod in self.observed.pods:
            self._remove(pod)
        if self._condition(ConditionType.SUSPENDED, "True", "Suspended", "spec.runPolicy.suspend is true"):
            self._event("Normal", "Suspended", "the job is suspended; its checkpoint stays")
        if find(self.status, ConditionType.RUNNING):
            self._condition(ConditionType.RUNNING, "False", "Suspended", "the job is suspended")
        self.status.start_time = None
        self.status.next_attempt_time = None

    def _resume(self) -> None:
        self._condition(ConditionType.SUSPENDED, "False", "Resumed", "the job goes on")
        self._event("Normal", "Resumed", "the job goes on from its newest checkpoint")
        self._next_attempt()

    # --- running --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if is_set(self.status, ConditionType.SUSPENDED, "True"):
            self._resume()
        if self.status.start_time is None:
            self.status.start_time = self.now
        if self.status.attempt == 0:
            self._next_attempt()
            if self.job.spec.storage is None:
                self._event("Warning", "NoStorage", "spec.storage is not set: checkpoints and weights go with the pods")
        self._judge()
        if not self.finished:
            self._check_deadlines()
        if self.finished:
            self._clean()
            return
        for pod in self.leftovers:
            self._remove(pod)
        self._follow()
        if not self.leftovers:
            self._fill()

    def _next_attempt(self, delay: timedelta = timedelta()) -> None:
        self.status.attempt += 1
        self.status.attempt_start_time = None
        self.status.next_attempt_time = self.now + delay if delay else None

    def _judge(self) -> None:
        """Whether the attempt has come to an end, and to which."""
        chief = next((p for p in self.current if p.index == 0), None)
        if chief is not None and chief.phase == "Succeeded":
            # All weights are saved. The others have nothing left to do but to end, and may do so in peace.
            end = (chief.finished or self.now) + FAREWELL
            if self.now < end and not all(p.terminal for p in self.current):
                self._wake(end)
            else:
                self._succeed(chief)
            return
        by_cause: dict[Cause, list[PodFacts]] = {}
        for pod in self.current:
            if pod.cause:
                by_cause.setdefault(pod.cause, []).append(pod)
        if permanent := by_cause.get(Cause.PERMANENT):
            reason, message = words_of(first(permanent))
            self._fail(reason, message)
        elif disrupted := by_cause.get(Cause.DISRUPTION):
            self._restart(*words_of(first(disrupted)), counted=False)
        elif failed := by_cause.get(Cause.FAILURE):
            self._restart(*words_of(first(failed)), counted=True)
        elif gone := self._gone():
            self._restart("PodDeleted", f"{gone} was deleted", counted=False)
        elif survivors := by_cause.get(Cause.SURVIVOR):
            self._wait_for_culprit(survivors)

    def _gone(self) -> str | None:
        """A pod that is being deleted, or that is missing from a gang which ran."""
        for pod in self.current:
            if pod.deleted:
                return pod.name
        if is_set(self.status, ConditionType.RUNNING, "True"):
            present = {p.index for p in self.current}
            missing = next((i for i in range(self.job.spec.workers.replicas) if i not in present), None)
            return None if missing is None else worker_name(self.job.metadata.name, missing)
        return None

    def _wait_for_culprit(self, survivors: list[PodFacts]) -> None:
        """Workers that only lost a peer: give the peer a moment to show why."""
        latest = max((p.finished or self.now for p in survivors), default=self.now)
        if self.now - latest >= SURVIVORS_PATIENCE or all(p.terminal for p in self.current):
            self._restart("PeerLost", words_of(first(survivors))[1], counted=True)
        else:
            self._wake(latest + SURVIVORS_PATIENCE)

    def _restart(self, reason: str, message: str, *, counted: bool) -> None:
        """End the attempt and begin another, or fail where the limit is reached."""
        if counted:
            if self.status.restarts >= self.job.spec.run_policy.backoff_limit:
                self._fail(
                    "BackoffLimitExceeded", f"{self.status.restarts + 1} attempts failed; the last: {reason}: {message}"
                )
                return
            self.status.restarts += 1
            doubled = BACKOFF * 2 ** min(self.status.restarts - 2, 10) if self.status.restarts > 1 else timedelta()
            delay = min(doubled, MAX_BACKOFF)
        else:
            self.status.disruptions += 1
            began = self.status.attempt_start_time
            spinning = began is not None and self.now - began < SHORT_LIFE and self.status.disruptions > FEW_DISRUPTIONS
            delay = BACKOFF if spinning else timedelta()
        for pod in self.current:
            # Whoever can still agree with others saves and goes in its own time.
            self._remove(pod, grace_seconds=FAILURE_GRACE_SECONDS if counted else None)
        self._condition(ConditionType.RUNNING, "False", reason, message)
        self._event("Warning", "Restarting", f"attempt {self.status.attempt} ended: {reason}: {message}")
        self._next_attempt(delay)

    def _check_deadlines(self) -> None:
        policy = self.job.spec.run_policy
        if policy.active_deadline_seconds is not None and self.status.start_time:
            end = self.status.start_time + timedelta(seconds=policy.active_deadline_seconds)
            if self.now >= end:
                self._fail("DeadlineExceeded", f"active for longer than {policy.active_deadline_seconds} s")
                return
            self._wake(end)
        began = self.status.attempt_start_time
        if (
            policy.pre_running_deadline_seconds is not None
            and began
            and not is_set(self.status, ConditionType.RUNNING, "True")
        ):
            end = began + timedelta(seconds=policy.pre_running_deadline_seconds)
            if self.now >= end and not self._all_running():
                why = next((f"{p.name}: {p.waiting}" for p in self.current if p.waiting), "its pods did not start")
                seconds = policy.pre_running_deadline_seconds
                self._fail("PreRunningDeadlineExceeded", f"not running after {seconds} s: {why}")
                return
            self._wake(end)

    def _all_running(self) -> bool:
        pods_now = self.current
        return len(pods_now) == self.job.spec.workers.replicas and all(
            p.phase in ("Running", "Succeeded") for p in pods_now
        )

    def _follow(self) -> None:
        """Tell how far the current attempt is."""
        pods_now = self.current
        if not pods_now:
            return
        if len(pods_now) == self.job.spec.workers.replicas and all(p.node for p in pods_now):
            self._condition(ConditionType.SCHEDULED, "True", "Scheduled", "all workers have a node")
        else:
            waiting = next((f"{p.name}: {p.waiting}" for p in pods_now if p.waiting and not p.node), "")
            reason = "Unschedulable" if waiting else "Scheduling"
            self._condition(ConditionType.SCHEDULED, "False", reason, waiting or "waiting for the scheduler")
        if self._all_running():
            if not is_set(self.status, ConditionType.RUNNING, "True"):
                self._note_start(pods_now)
                self._event("Normal", "Running", f"attempt {self.status.attempt}: {len(pods_now)} worker(s) run")
            self._condition(ConditionType.RUNNING, "True", "Running", f"attempt {self.status.attempt} runs")
            if self.observed.report is not None:
                self._take_over(self.observed.report)
        elif not is_set(self.status, ConditionType.RUNNING, "True"):
            waiting = next((f"{p.name}: {p.waiting}" for p in pods_now if p.waiting and p.node), "")
            old = find(self.status, ConditionType.RUNNING)
            if waiting:
                self._condition(ConditionType.RUNNING, "False", "Waiting", waiting)
            elif old is None:
                self._condition(ConditionType.RUNNING, "False", "Starting", "the workers are starting")

    def _note_start(self, pods_now: list[PodFacts]) -> None:
        """Add what this attempt waited for; once, when it begins to run."""
        timing = self.status.timing or Timing()
        # The first attempt's wait begins with the job, a later one's with its pods.
        created = [p.created for p in pods_now if p.created]
        first = self.job.metadata.creation_timestamp if self.status.attempt == 1 else None
        began = first or (min(created) if created else None)
        scheduled = max((p.scheduled for p in pods_now if p.scheduled), default=None)
        started = max((p.started for p in pods_now if p.started), default=None)
        if began and scheduled:
            timing.queued_seconds = (timing.queued_seconds or 0) + max((scheduled - began).total_seconds(), 0)
        if scheduled and started:
            timing.image_pull_seconds = (timing.image_pull_seconds or 0) + max((started - scheduled).total_seconds(), 0)
        self.status.timing = timing

    def _take_over(self, report: Report) -> None:
        said_now = report.progress
        if said_now.epochs:
            self.status.progress = said_now
        elif said_now.staged_bytes is not None:
            # An attempt that is only fetching its data takes nothing away from what those before it have reached.
            staged = {name: getattr(said_now, name) for name in ("staged_bytes", "dataset_bytes", "updated_at")}
            self.status.progress = (self.status.progress or Progress()).model_copy(update=staged)
        timing = self.status.timing or Timing()
        said = report.timing.model_dump(exclude_none=True, exclude_defaults=True)
        self.status.timing = timing.model_copy(update=said)

    def _fill(self) -> None:
        """Create what is missing of the current attempt."""
        if self.status.next_attempt_time:
            if self.now < self.status.next_attempt_time:
                self._wake(self.status.next_attempt_time)
                return
            self.status.next_attempt_time = None
        present = {p.index for p in self.current}
        missing = [i for i in range(self.job.spec.workers.replicas) if i not in present]
        if not missing:
            return
        if self.observed.conflict:
            self._condition(ConditionType.SCHEDULED, "False", "NameConflict", self.observed.conflict)
            self._wake(self.now + BACKOFF)  # to try again
        if self.status.attempt_start_time is None:
            self.status.attempt_start_time = self.now
            seconds = self.job.spec.run_policy.pre_running_deadline_seconds
            if seconds is not None:
                self._wake(self.now + timedelta(seconds=seconds))
        if not present:
            self.create.append(pods.service(self.job))
        self.create.extend(pods.worker(self.job, i, self.status.attempt, self.defaults) for i in missing)

    # --- the end --------------------------------------------------------------------------------------------------

    def _succeed(self, chief: PodFacts) -> None:
        if not is_set(self.status, ConditionType.RUNNING, "True") and self._all_running():
            self._note_start(self.current)
        report = report_of(chief) or self.observed.report
        if report is not None:
            self._take_over(report)
            self.status.result = report.result
        if self.status.progress:
            self.status.progress.eta = None
        self._condition(ConditionType.RUNNING, "False", "Succeeded", "the training is complete")
        self._condition(ConditionType.SUCCEEDED, "True", "TrainingCompleted", "the training is complete")
        weights = f": {self.status.result.weights}" if self.status.result else ""
        self._event("Normal", "Succeeded", f"the training is complete{weights}")
        self.status.completion_time = self.now

    def _fail(self, reason: str, message: str) -> None:
        if find(self.status, ConditionType.RUNNING):
            self._condition(ConditionType.RUNNING, "False", reason, message)
        self._condition(ConditionType.FAILED, "True", reason, message)
        self._event("Warning", "Failed", f"{reason}: {message}")
        if self.status.progress:
            self.status.progress.eta = None
        self.status.completion_time = self.now

    def _clean(self) -> None:
        policy = self.job.spec.run_policy.clean_pod_policy
        for pod in self.observed.pods:
            old = pod.attempt != self.status.attempt
            if old or policy == "All" or (policy == "Running" and not pod.terminal):
                self._remove(pod)

    def _expire(self) -> None:
        ttl = self.job.spec.run_policy.ttl_seconds_after_finished
        if ttl is None or self.status.completion_time is None:
            return
        end = self.status.completion_time + timedelta(seconds=ttl)
        if self.now >= end:
            self.delete_job = True
        else:
            self._wake(end)

    # --- small things ---------------------------------------------------------------------------------------------

    def _remove(self, pod: PodFacts, grace_seconds: int | None = None) -> None:
        """Delete a pod; where its node does not let go of it, delete it from the API."""
        if any(d.uid == pod.uid for d in self.delete):
            return
        if pod.deleted is None:
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=grace_seconds))
            return
        end = pod.deleted + FORCE_AFTER
        if self.now >= end:
            self.delete.append(Deletion(name=pod.name, uid=pod.uid, grace_seconds=0))
        else:
            self._wake(end)

    def _wake(self, moment: datetime) -> None:
        self.due = moment if self.due is None else min(self.due, moment)

    def _condition(
        self, kind: ConditionType, value: Literal["True", "False", "Unknown"], reason: str, message: str
    ) -> bool:
        return set_condition(self.status, kind, value, reason, message, self.job.metadata.generation, self.now)

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.events.append(Event(type=kind, reason=reason, message=message))

    def _sum_up(self) -> None:
        status, pods_now = self.status, self.current
        workers = status.workers
        workers.desired = 0 if self.job.spec.run_policy.suspend or self.finished else self.job.spec.workers.replicas
        workers.active = sum(not p.terminal and p.deleted is None for p in pods_now)
        workers.ready = sum(p.ready and not p.terminal and p.deleted is None for p in pods_now)
        workers.succeeded = sum(p.phase == "Succeeded" for p in pods_now)
        workers.failed = sum(p.phase == "Failed" for p in pods_now)
        workers.selector = f"{contract.LABEL_JOB}={self.job.metadata.name}"
        status.observed_generation = self.job.metadata.generation
        status.phase = self._phase()

    def _phase(self) -> Phase:
        status = self.status
        for kind, phase in (
            (ConditionType.SUCCEEDED, Phase.SUCCEEDED),
            (ConditionType.FAILED, Phase.FAILED),
            (ConditionType.SUSPENDED, Phase.SUSPENDED),
            (ConditionType.RUNNING, Phase.RUNNING),
        ):
            if is_set(status, kind, "True"):
                return phase
        if status.restarts or status.disruptions:
            return Phase.RESTARTING
        if not self.current:
            return Phase.PENDING
        return Phase.STARTING if is_set(status, ConditionType.SCHEDULED, "True") else Phase.QUEUED
