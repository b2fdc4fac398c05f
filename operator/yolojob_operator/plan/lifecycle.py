"""The rules of a job's life as one pure function: `plan(job, observed, now, defaults) -> Plan`.

It does no I/O and reads no clock, so every rule is tested as a table. It is level-triggered: it looks at the current
state, never at events, and what it must remember is in the job's status. It may be called at any time, any number of
times, and after any crash.

One attempt is one fixed set of pods. Whatever ends an attempt increments `status.attempt` in the same write that counts
the cause; pods of an older attempt are leftovers from then on. So nothing is counted twice, however often the plan is
repeated.

This module has the rules of the lifecycle. `acceptance` has the reasons for refusing a job, `placement` the rules of
pod creation and size, `status_summary` the texts of the status, `accounting` the account of time and money.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from yolojob.api import constants
from yolojob.api.constants import ExitCode, worker_name
from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType, Position, Progress, YoloTrainingJobStatus
from yolojob_operator.kube.types import EventDraft, Object
from yolojob_operator.objects.defaults import Defaults
from yolojob_operator.plan import acceptance, adoption, deadlines, placement, status_summary, worker_counts
from yolojob_operator.plan.builder import Deletion, Observed, PlanBuilder, Release
from yolojob_operator.plan.conditions import ConditionUpdate, is_set, set_condition
from yolojob_operator.plan.events import failed, restarting, succeeded
from yolojob_operator.plan.pod_facts import Cause, PodFacts
from yolojob_operator.plan.pod_failures import failure_of, first_to_end, report_of

BACKOFF = timedelta(seconds=10)
"""Wait before the second restart; doubled for each further one. The first restart is immediate."""
FREE_DISRUPTIONS = 3
"""After this many disruptions without progress, back off if the attempt lived shorter than MIN_ATTEMPT_AGE, so that
repeated preemption does not become a hot loop."""
ROOT_CAUSE_TIMEOUT = timedelta(seconds=3)
"""Time for the failed worker to appear, once the others have reported that they lost it."""
NODE_LOST_TIMEOUT = timedelta(seconds=60)
"""A worker whose node has been not ready for this long is lost. Kubernetes may never evict it: it evicts no pods in a
zone in which most nodes are not ready."""
PEER_EXIT_TIMEOUT = timedelta(seconds=5)
"""Time for the other workers to exit on their own, once worker 0 has succeeded."""
LONG_ATTEMPT = timedelta(hours=1)
"""An attempt that has run for so long counts as progress."""
FAILURE_GRACE_SECONDS = 5
"""Grace period for the survivors of a failure: they have no peers to agree with, so a short one suffices."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The desired state. The status is written first, because it is the memory of the next plan."""

    status: YoloTrainingJobStatus
    create: tuple[Object, ...] = ()
    delete: tuple[Deletion, ...] = ()
    release: tuple[Release, ...] = ()
    """Kueue's Workloads that keep pods which are being deleted."""
    disband: tuple[Object, ...] = ()
    """PodGroups that are no longer needed. Once they are gone, nothing is left to do about them."""
    delete_job: bool = False
    due: datetime | None = None
    """Plan again at this moment, even if nothing happens until then."""
    events: tuple[EventDraft, ...] = ()

    @property
    def has_actions(self) -> bool:
        return bool(self.create or self.delete or self.release or self.delete_job or self.events)


def plan(job: YoloTrainingJob, observed: Observed, now: datetime, defaults: Defaults) -> Plan:
    """The desired state of a job, given the observed state."""
    if not is_managed(job.metadata.deletion_timestamp, job.spec.run_policy.managed_by):
        return Plan(status=job.status or YoloTrainingJobStatus())
    builder = PlanBuilder(job, observed, now, defaults)
    adoption.adopt_pods(builder)
    builder.account.book()
    _decide(builder)
    settlement = builder.account.settle()
    if settlement.due:
        builder.wake(settlement.due)
    return Plan(
        status=settlement.status,
        create=tuple(builder.create),
        delete=tuple(builder.delete),
        release=tuple(sorted(builder.release.values())),
        disband=tuple(builder.disband),
        delete_job=builder.delete_job,
        due=builder.due,
        events=tuple(builder.events),
    )


def is_managed(deletion: object, manager: object) -> bool:
    """Whether this operator manages a job.

    Args:
        deletion: its metadata.deletionTimestamp; set while it is being deleted.
        manager: its spec.runPolicy.managedBy.
    """
    return deletion is None and manager in (None, "", constants.MANAGER)


def rejected(status: YoloTrainingJobStatus, faults: str, generation: int, now: datetime) -> YoloTrainingJobStatus:
    """Status of a job with an invalid spec, which was stored before the CRD was tightened, or past its validation."""
    status = status.model_copy(deep=True)
    update = ConditionUpdate(
        type=ConditionType.ACCEPTED, status="False", reason=Reason.INVALID_SPEC, message=faults, generation=generation
    )
    set_condition(status, update, now)
    status.observed_generation = generation
    return status


# --- the decision, from the top ---------------------------------------------------------------------------------------


def _decide(builder: PlanBuilder) -> None:
    if builder.finished:
        _clean_up(builder)
        _expire(builder)
    else:
        refusal = acceptance.refusal(builder)
        builder.refused = refusal is not None
        if refusal is None:
            acceptance.accept(builder)
        else:
            builder.condition(ConditionType.ACCEPTED, "False", *refusal)
        suspended = is_set(builder.status, ConditionType.SUSPENDED, "True")
        if builder.refused and builder.status.attempt == 0:
            for pod in builder.observed.pods:
                builder.remove(pod)
        elif builder.job.spec.run_policy.suspend and (suspended or not _is_trained(builder)):
            _suspend(builder)
        else:
            _run(builder)
    status_summary.summarise(builder)


# --- suspended --------------------------------------------------------------------------------------------------------


def _suspend(builder: PlanBuilder) -> None:
    status = builder.status
    for pod in builder.observed.pods:
        builder.remove(pod)
    builder.delete_pod_group()
    if builder.condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.runPolicy.suspend is true"):
        checkpoint = "; its checkpoint is kept" if status.attempt and builder.job.spec.storage else ""
        builder.event("Normal", Reason.SUSPENDED, f"the job is suspended{checkpoint}")
        if builder.record and builder.record.end_time is None:
            builder.end_attempt(Reason.SUSPENDED, "the job is suspended")
        builder.unschedule(Reason.SUSPENDED, "a suspended job has no pods")
    status.start_time = None
    status.next_attempt_time = None


def _resume(builder: PlanBuilder) -> None:
    builder.condition(ConditionType.SUSPENDED, "False", Reason.RESUMED, "the job is resumed")
    if builder.status.attempt == 0:
        message = "the job starts"
    elif builder.job.spec.storage is None:
        message = "the job starts from the beginning: spec.storage is not set"
    else:
        message = "the job resumes from its newest checkpoint"
    builder.event("Normal", Reason.RESUMED, message)
    builder.next_attempt(builder.job.spec.workers.replicas)


# --- running ----------------------------------------------------------------------------------------------------------


def _run(builder: PlanBuilder) -> None:
    status, is_new = builder.status, builder.status.attempt == 0
    if is_set(status, ConditionType.SUSPENDED, "True"):
        _resume(builder)
    if any(p.gated for p in builder.current):
        status.start_time = None  # a job is not active while a queue holds it
    elif status.start_time is None:
        status.start_time = builder.now
    if status.attempt == 0:
        builder.next_attempt(builder.job.spec.workers.replicas)
    if is_new and builder.job.spec.storage is None:
        message = "spec.storage is not set: checkpoints and weights are lost when the pods are deleted"
        builder.event("Warning", Reason.NO_STORAGE, message)
    _decide_outcome(builder)
    if not builder.finished and not _is_trained(builder) and (exceeded := deadlines.exceeded(builder)):
        _fail(builder, *exceeded)
    if builder.finished:
        _clean_up(builder)
        _expire(builder)
        return
    if not builder.settling:
        placement.resize_attempt(builder)
    _remove_leftovers(builder)
    if not _is_trained(builder):
        status_summary.describe_attempt(builder)
        if not builder.leftovers and not builder.settling:
            placement.create_missing_pods(builder)


def _remove_leftovers(builder: PlanBuilder) -> None:
    for pod in builder.leftovers:
        builder.remove(pod)
    if held := status_summary.held_pod(builder):
        builder.unschedule(Reason.POD_TERMINATING, held)


def _is_trained(builder: PlanBuilder) -> bool:
    """Whether worker 0 has succeeded: all weights are saved, so nothing that happens now can lose them."""
    return 0 in builder.completed


def _has_elapsed(builder: PlanBuilder, since: datetime | None, timeout: timedelta) -> bool:
    """Whether the timeout has elapsed since a moment on a node's clock, which may differ; otherwise a plan is due
    then.
    """
    if since is None or abs(builder.now - since) >= timeout:
        return True
    builder.wake(since + timeout)
    return False


def _decide_outcome(builder: PlanBuilder) -> None:
    """Decide whether the attempt has ended, and how."""
    if _is_trained(builder):
        # The other workers have nothing left to do but to exit.
        rank0_pod = next((p for p in builder.current if p.index == 0), None)
        all_ended = all(p.terminal for p in builder.current)
        if rank0_pod is None or all_ended or _has_elapsed(builder, rank0_pod.finished, PEER_EXIT_TIMEOUT):
            _succeed(builder, rank0_pod)
        else:
            builder.settling = True
        return
    by_cause: dict[Cause, list[PodFacts]] = {}
    for pod in builder.current:
        if pod.cause:
            by_cause.setdefault(pod.cause, []).append(pod)
    if permanent := by_cause.get(Cause.PERMANENT):
        _fail(builder, *failure_of(first_to_end(permanent)))
    elif disrupted := by_cause.get(Cause.DISRUPTION):
        _restart(builder, *failure_of(first_to_end(disrupted)), counted=False)
    elif failed := by_cause.get(Cause.FAILURE):
        _restart(builder, *failure_of(first_to_end(failed)), counted=True)
    elif deleted := _deleted_pod(builder):
        _restart(builder, Reason.POD_DELETED, f"{deleted} was deleted", counted=False)
    elif survivors := by_cause.get(Cause.SURVIVOR):
        _wait_for_root_cause(builder, survivors)
    elif lost := _pod_on_lost_node(builder):
        _restart(builder, Reason.NODE_LOST, lost, counted=False, grace_seconds=FAILURE_GRACE_SECONDS)


def _pod_on_lost_node(builder: PlanBuilder) -> str | None:
    """A message about a worker whose node is gone, or not ready for NODE_LOST_TIMEOUT; None if there is no such
    worker.
    """
    nodes = builder.observed.nodes
    if nodes is None:
        return None
    for pod in builder.placed:
        node = nodes.get(pod.node)
        if pod.terminal or pod.scheduled is None or (node is not None and node.ready):
            continue
        since = max(pod.scheduled, node.since) if node is not None and node.since else pod.scheduled
        if builder.now >= since + NODE_LOST_TIMEOUT:
            return f"node {pod.node} of {pod.name} {'is not ready' if node else 'does not exist any more'}"
        builder.wake(since + NODE_LOST_TIMEOUT)
    return None


def _deleted_pod(builder: PlanBuilder) -> str | None:
    """The name of a pod that is being deleted, or that is missing although the attempt ran; None if there is no such
    pod.
    """
    for pod in builder.current:
        if pod.deleted and pod.phase != "Succeeded":
            return pod.name
    if is_set(builder.status, ConditionType.RUNNING, "True") and builder.missing:
        return worker_name(builder.job.metadata.name, builder.missing[0])
    return None


def _wait_for_root_cause(builder: PlanBuilder, survivors: list[PodFacts]) -> None:
    """Handle workers that exited because they lost a peer: the peer's own end shows the cause, so wait for it
    briefly.
    """
    message = failure_of(first_to_end(survivors))[1]
    latest = max((p.finished for p in survivors if p.finished), default=None)
    silent = next((p for p in builder.current if not p.terminal), None)
    never_started = bool(builder.missing) or any(p.started is None and not p.terminal for p in builder.current)
    if never_started and not is_set(builder.status, ConditionType.RUNNING, "True"):
        # They timed out on a peer that has no pod, no node or no image yet: none of them has failed.
        reason, why = deadlines.why_not_running(builder)
        _restart(builder, reason, f"{message}: {why}", counted=None, grace_seconds=FAILURE_GRACE_SECONDS)
    elif silent is None:
        signalled = all(p.exit_code == ExitCode.INTERRUPTED for p in survivors)
        _restart(builder, Reason.INTERRUPTED if signalled else Reason.PEER_LOST, message, counted=True)
    elif _has_elapsed(builder, latest, ROOT_CAUSE_TIMEOUT):
        # A kubelet reports every process that ends, however it ends. Without a report the node is lost, or the worker
        # hangs. A repeated hang is not a node's fault, so it is counted.
        where = f"{silent.name} on node {silent.node} is silent"
        repeated = builder.status.disruptions_in_a_row >= FREE_DISRUPTIONS
        _restart(
            builder,
            Reason.PEER_SILENT,
            f"{where}; {message}",
            counted=repeated,
            grace_seconds=FAILURE_GRACE_SECONDS,
        )
    else:
        builder.settling = True


def _restart(
    builder: PlanBuilder, reason: str, message: str, *, counted: bool | None, grace_seconds: int | None = None
) -> None:
    """End the attempt and start another one, or fail the job if the limit is reached.

    Args:
        builder: the plan.
        reason: why the attempt ends.
        message: the same in a sentence.
        counted: True: against backoffLimit. False: as a disruption. None: as a disruption without a limit, because the
            attempt has only waited for nodes.
        grace_seconds: of the pods; None: their own.
    """
    status = builder.status
    if counted:
        if status.restarts >= builder.job.spec.run_policy.backoff_limit:
            failure = f"{status.restarts + 1} attempts failed; the last: {reason}: {message}"
            _fail(builder, Reason.BACKOFF_LIMIT_EXCEEDED, failure)
            return
        status.restarts += 1
        delay = _doubled(status.restarts - 2) if status.restarts > 1 else timedelta()
    else:
        status.disruptions += 1
        if counted is not None:
            _count_disruption(builder)
        if status.disruptions_in_a_row > builder.job.spec.run_policy.disruption_limit:
            count = f"{status.disruptions_in_a_row} disruptions in a row without progress"
            _fail(builder, Reason.DISRUPTION_LIMIT_EXCEEDED, f"{count}; the last: {reason}: {message}")
            return
        start = builder.record.start_time if builder.record else None
        short = start is not None and builder.now - start < placement.MIN_ATTEMPT_AGE
        repeated = status.disruptions_in_a_row - FREE_DISRUPTIONS
        delay = _doubled(repeated - 1) if short and repeated > 0 else timedelta()
    for pod in (*builder.current, *builder.spares):
        # After a disruption the workers can still agree and save, within their own grace period.
        builder.remove(pod, grace_seconds=FAILURE_GRACE_SECONDS if counted else grace_seconds)
    builder.events.append(restarting(status.attempt, reason, message))
    workers = worker_counts.closest(builder.job.spec, builder.size)
    builder.end_attempt(reason, message)
    builder.next_attempt(workers, delay)


def _doubled(times: int) -> timedelta:
    """BACKOFF, doubled so many times, at most MAX_BACKOFF."""
    return min(BACKOFF * (1 << min(times, 10)), placement.MAX_BACKOFF)


def _count_disruption(builder: PlanBuilder) -> None:
    """Count disruptions since the training has last got further than before, or run for LONG_ATTEMPT."""
    status, record = builder.status, builder.record
    progress, before = status.progress or Progress(), status.furthest or Position()
    position = Position(epoch=progress.epoch, step=progress.step)
    # Not every image reports its progress.
    long = record is not None and record.running_time is not None and builder.now - record.running_time >= LONG_ATTEMPT
    if (position.epoch, position.step) > (before.epoch, before.step):
        status.furthest, status.disruptions_in_a_row = position, 0
    elif long:
        status.disruptions_in_a_row = 0
    status.disruptions_in_a_row += 1


# --- the end ----------------------------------------------------------------------------------------------------------


def _succeed(builder: PlanBuilder, rank0_pod: PodFacts | None) -> None:
    status = builder.status
    if builder.all_running():
        status_summary.note_running(builder)
    report = (report_of(rank0_pod) if rank0_pod else None) or builder.observed.report
    if report is not None:
        status_summary.apply_report(builder, report)
        status.result = report.result
    builder.end_attempt(Reason.SUCCEEDED, "the training is complete")
    builder.condition(ConditionType.SUCCEEDED, "True", Reason.TRAINING_COMPLETED, "the training is complete")
    builder.events.append(succeeded(status))
    status.completion_time = builder.now


def _fail(builder: PlanBuilder, reason: str, message: str) -> None:
    if report := next((r for p in builder.current if p.index == 0 and (r := report_of(p))), None):
        status_summary.apply_report(builder, report)
    builder.end_attempt(reason, message)
    builder.condition(ConditionType.FAILED, "True", reason, message)
    builder.events.append(failed(builder.status.attempt, reason, message))
    builder.status.completion_time = builder.now


def _clean_up(builder: PlanBuilder) -> None:
    """Delete the pods of a finished job that spec.runPolicy.cleanPodPolicy does not keep."""
    builder.delete_pod_group()
    policy = builder.job.spec.run_policy.clean_pod_policy
    for pod in builder.observed.pods:
        old = pod.attempt != builder.status.attempt or pod in builder.spares
        # The pods of a failed job must not continue or start, whatever the policy keeps.
        failed = is_set(builder.status, ConditionType.FAILED, "True") and not pod.terminal
        if old or failed or policy == "All" or (policy == "Running" and (not pod.terminal or pod.lingers)):
            builder.remove(pod)


def _expire(builder: PlanBuilder) -> None:
    """Delete a finished job after spec.runPolicy.ttlSecondsAfterFinished."""
    ttl = builder.job.spec.run_policy.ttl_seconds_after_finished
    if ttl is None or builder.status.completion_time is None:
        return
    end = builder.status.completion_time + timedelta(seconds=ttl)
    if builder.now >= end:
        builder.delete_job = True
    else:
        builder.wake(end)
