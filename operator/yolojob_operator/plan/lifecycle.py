"""The life of a job as one pure function: `plan(job, observed, now) -> Plan`.

No network, no kopf, no clock of its own, so every rule is a table test. The function is level-triggered: it looks at what is,
never at what has just happened, and what it must remember stands in the job's status. It may be called at any time, any
number of times, and after any crash.

One attempt is one fixed gang of pods. Whatever ends it raises `status.attempt` in the same write that counts the cause; pods
of an older attempt are then merely leftovers. So nothing is counted twice, however often the plan is made anew.

Here are the rules of the lifecycle. `placement` has those of size and places, `summary` what the status says, `ledger` the
account of time and money.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from yolojob.api import constants
from yolojob.api.constants import worker_name
from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType, YoloTrainingJobStatus
from yolojob_operator.objects import gang_scheduling, pods, template_policy
from yolojob_operator.objects.template_policy import Privilege
from yolojob_operator.plan import accounting, placement, status_summary, worker_counts
from yolojob_operator.plan.builder import Deletion, EventDraft, Observed, PlanBuilder
from yolojob_operator.plan.conditions import find, is_set, set_condition
from yolojob_operator.plan.pod_facts import Cause, PodFacts
from yolojob_operator.plan.pod_failures import failure_of, first_to_end, report_of

BACKOFF = timedelta(seconds=10)
"""Wait before the second restart; doubled for each further one. The first restart is at once."""
MAX_BACKOFF = timedelta(seconds=300)
FEW_DISRUPTIONS = 3
"""After these, an attempt that a disruption ends sooner than MIN_ATTEMPT_AGE is followed by a wait, or preemption could spin."""
ROOT_CAUSE_TIMEOUT = timedelta(seconds=3)
"""Time for the culprit to be seen, once the others have reported that they lost it."""
LOST_AFTER = timedelta(seconds=60)
"""A worker whose node has been silent for so long is lost, also where Kubernetes leaves its pods alone: it evicts none from a
zone in which most nodes are silent."""
PEER_EXIT_TIMEOUT = timedelta(seconds=5)
"""Time for the other workers to end by themselves, once worker 0 has succeeded."""
FAILURE_GRACE_SECONDS = 5
"""Survivors of a failure have nobody left to agree with: they need no long farewell."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What should be. The status is written first: it is the memory."""

    status: YoloTrainingJobStatus
    create: tuple[pods.Object, ...] = ()
    delete: tuple[Deletion, ...] = ()
    release: tuple[str, ...] = ()
    """Kueue's Workloads that keep pods which are to go."""
    disband: tuple[pods.Object, ...] = ()
    """PodGroups that are not needed any more; once they are gone, nothing is left to do about them."""
    delete_job: bool = False
    due: datetime | None = None
    """Make a plan again at this moment, even if nothing happens until then."""
    events: tuple[EventDraft, ...] = ()

    @property
    def has_actions(self) -> bool:
        return bool(self.create or self.delete or self.release or self.delete_job or self.events)


def plan(job: YoloTrainingJob, observed: Observed, now: datetime, defaults: pods.Defaults) -> Plan:
    """What should be, given what is."""
    builder = PlanBuilder(job, observed, now, defaults)
    before = job.status or YoloTrainingJobStatus()
    if is_ours(job.metadata.deletion_timestamp, job.spec.run_policy.managed_by):
        _recognise(builder)
        accounting.book(job, builder.status, observed.pods, now)
        _decide(builder)
        if builder.finished or len(builder.placed) == builder.size:
            accounting.fix_price(job, builder.status, builder.placed, observed.nodes or {})
        accounting.balance(builder.status)
        accounting.charge(job, builder.status, before, now)
    only_time = _without_account(builder.status) == _without_account(before)
    parting, moment = accounting.pays_parting(before, builder.status, observed.pods, now)
    if moment:
        builder.wake(moment)
    return Plan(
        # That time passes is no news by itself: the account waits for the next word, or until it is old.
        status=before if only_time and not parting and not accounting.is_stale(before, now) else builder.status,
        create=tuple(builder.create),
        delete=tuple(builder.delete),
        release=tuple(sorted(builder.release)),
        disband=tuple(builder.disbanded),
        delete_job=builder.delete_job,
        due=builder.due,
        events=tuple(builder.events),
    )


def is_ours(deletion: object, manager: object) -> bool:
    """Whether this operator looks after a job.

    Args:
        deletion: its metadata.deletionTimestamp; set while it is being deleted.
        manager: its spec.runPolicy.managedBy.
    """
    return deletion is None and manager in (None, constants.MANAGER)


def _without_account(status: YoloTrainingJobStatus) -> YoloTrainingJobStatus:
    history = [r.model_copy(update={"pod_seconds": 0.0, "cost": None}) for r in status.history]
    return status.model_copy(update={"timing": None, "cost": None, "history": history})


def rejected(status: YoloTrainingJobStatus, faults: str, generation: int, now: datetime) -> YoloTrainingJobStatus:
    """Status of a job whose spec is broken: stored before the CRD was tightened, or by someone who went round it."""
    status = status.model_copy(deep=True)
    set_condition(status, ConditionType.ACCEPTED, "False", Reason.INVALID_SPEC, faults, generation, now)
    status.observed_generation = generation
    return status


def _recognise(builder: PlanBuilder) -> None:
    """The first gang may have been made before any status was written."""
    first = [p for p in builder.observed.pods if p.attempt == 1]
    if builder.status.attempt == 0 and first:
        builder.next_attempt(max(p.workers for p in first) or builder.job.spec.workers.replicas)
        assert builder.record is not None
        builder.record.start_time = min((p.created for p in first if p.created), default=builder.now)
        builder.status.start_time = builder.record.start_time


# --- the decision, from the top ---------------------------------------------------------------------------------------


def _decide(builder: PlanBuilder) -> None:
    if builder.finished:
        _clean(builder)
        _expire(builder)
    else:
        refusal = _refusal(builder)
        builder.refused = refusal is not None
        if refusal is None:
            builder.condition(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the specification can be run")
        else:
            builder.condition(ConditionType.ACCEPTED, "False", *refusal)
        asleep = is_set(builder.status, ConditionType.SUSPENDED, "True")
        if builder.refused and builder.status.attempt == 0:
            for pod in builder.observed.pods:
                builder.remove(pod)
        elif builder.job.spec.run_policy.suspend and (asleep or not _is_trained(builder)):
            _suspend(builder)
        else:
            _run(builder)
    status_summary.sum_up(builder)


def _refusal(builder: PlanBuilder) -> tuple[str, str] | None:
    """What a cluster cannot do, though the specification is well-formed: (reason, message)."""
    spec = builder.job.spec
    for path, uri in (
        ("dataset.uri", spec.dataset.uri),
        ("storage.uri", spec.storage.uri if spec.storage else None),
        ("model.weights.uri", spec.model.weights.uri if spec.model.weights else None),
    ):
        if uri and uri.scheme == "file":
            return (
                Reason.LAPTOP_ONLY,
                f"spec.{path}: {uri}: file:// is this machine's disk; use pvc://CLAIM/PATH on a cluster",
            )
    for privilege, path, wanted in template_policy.disallowed_fields(spec.workers.template):
        account = builder.defaults.service_account
        own = privilege is Privilege.SERVICE_ACCOUNT and account is not None and wanted == account
        if privilege not in builder.defaults.allowed and not own:
            return Reason.TEMPLATE_FORBIDDEN, (
                f"spec.workers.template.{path}: {wanted}: this installation does not allow it "
                f"(workers.allow: [{privilege}] of its chart does); leave it out"
            )
    pod_spec = spec.workers.template.get("spec")
    policy_of_restarts = pod_spec.get("restartPolicy", "Never") if isinstance(pod_spec, dict) else "Never"
    if policy_of_restarts != "Never":
        return Reason.TEMPLATE_FORBIDDEN, (
            f"spec.workers.template.spec.restartPolicy: {policy_of_restarts}: all workers are replaced together, by "
            "spec.runPolicy.backoffLimit; leave it out"
        )
    if spec.workers.gpu is not None and not spec.workers.gpu.required and builder.observed.nodes is None:
        return (
            Reason.NODES_UNKNOWN,
            "spec.workers.gpu.required: false: whether the cluster has GPUs is for an operator to say that may see nodes, "
            "and this one is bound to namespaces; set it to true, or leave spec.workers.gpu out to train on CPUs",
        )
    return _malformed(builder)


def _malformed(builder: PlanBuilder) -> tuple[str, str] | None:
    """Why no pod can be made of a template, of which the API server keeps whatever it is given; while one is to be made."""
    job = builder.as_attempted()
    grows = job.spec.elastic is not None and builder.job.spec.workers.replicas > builder.size
    if not job.spec.workers.template or (len(builder.current) == builder.size and not grows):
        return None
    try:
        gang_scheduling.pod_group(job, pods.worker(job, 0, 1, builder.defaults), {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        return Reason.TEMPLATE_INVALID, (
            f"spec.workers.template: no pod can be made of it ({words}); `kubectl explain pod.spec` tells what it may hold"
        )
    return None


# --- suspended --------------------------------------------------------------------------------------------------------


def _suspend(builder: PlanBuilder) -> None:
    status = builder.status
    for pod in builder.observed.pods:
        builder.remove(pod)
    builder.disband()
    if builder.condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.runPolicy.suspend is true"):
        stays = "; its checkpoint stays" if status.attempt and builder.job.spec.storage else ""
        builder.event("Normal", Reason.SUSPENDED, f"the job is suspended{stays}")
        if builder.record and builder.record.end_time is None:
            builder.end_attempt(Reason.SUSPENDED, "the job is suspended")
        builder.unschedule(Reason.SUSPENDED, "a suspended job has no pods")
    status.start_time = None
    status.next_attempt_time = None


def _resume(builder: PlanBuilder) -> None:
    builder.condition(ConditionType.SUSPENDED, "False", Reason.RESUMED, "the job goes on")
    if builder.status.attempt == 0:
        words = "the job begins"
    elif builder.job.spec.storage is None:
        words = "the job begins anew: spec.storage is not set"
    else:
        words = "the job goes on from its newest checkpoint"
    builder.event("Normal", Reason.RESUMED, words)
    builder.next_attempt(builder.job.spec.workers.replicas)


# --- running ----------------------------------------------------------------------------------------------------------


def _run(builder: PlanBuilder) -> None:
    status, begins = builder.status, builder.status.attempt == 0
    if is_set(status, ConditionType.SUSPENDED, "True"):
        _resume(builder)
    if any(p.gated for p in builder.current):
        status.start_time = None  # it is not active while a queue holds it
    elif status.start_time is None:
        status.start_time = builder.now
    if status.attempt == 0:
        builder.next_attempt(builder.job.spec.workers.replicas)
    if begins and builder.job.spec.storage is None:
        builder.event("Warning", Reason.NO_STORAGE, "spec.storage is not set: checkpoints and weights go with the pods")
    _judge(builder)
    if not builder.finished and not _is_trained(builder):
        _check_deadlines(builder)
    if builder.finished:
        _clean(builder)
        _expire(builder)
        return
    if not builder.settling:
        placement.resize(builder)
    for pod in builder.leftovers:
        builder.remove(pod)
    if not _is_trained(builder):
        status_summary.follow(builder)
        if not builder.leftovers and not builder.settling:
            placement.fill(builder)


def _is_trained(builder: PlanBuilder) -> bool:
    """Whether worker 0 has succeeded: all weights are saved, and nothing that happens now takes them away."""
    return 0 in builder.completed


def _is_due(builder: PlanBuilder, since: datetime | None, patience: timedelta) -> bool:
    """Whether patience since a moment on a node's clock is used up; else a plan is due then. Clocks may differ."""
    if since is None or abs(builder.now - since) >= patience:
        return True
    builder.wake(since + patience)
    return False


def _judge(builder: PlanBuilder) -> None:
    """Whether the attempt has come to an end, and to which."""
    if _is_trained(builder):
        # The others have nothing left to do but to end, and may do so in peace.
        rank0_pod = next((p for p in builder.current if p.index == 0), None)
        if (
            rank0_pod is None
            or all(p.terminal for p in builder.current)
            or _is_due(builder, rank0_pod.finished, PEER_EXIT_TIMEOUT)
        ):
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
    elif gone := _gone(builder):
        _restart(builder, Reason.POD_DELETED, f"{gone} was deleted", counted=False)
    elif survivors := by_cause.get(Cause.SURVIVOR):
        _wait_for_culprit(builder, survivors)
    elif lost := _lost(builder):
        _restart(builder, Reason.NODE_LOST, lost, counted=False, grace_seconds=FAILURE_GRACE_SECONDS)


def _lost(builder: PlanBuilder) -> str | None:
    """A worker whose node has been silent for long, or is no more."""
    nodes = builder.observed.nodes
    if nodes is None:
        return None
    for pod in builder.placed:
        node = nodes.get(pod.node)
        if pod.terminal or pod.scheduled is None or (node is not None and node.ready):
            continue
        since = max(pod.scheduled, node.since) if node is not None and node.since else pod.scheduled
        if builder.now >= since + LOST_AFTER:
            return f"node {pod.node} of {pod.name} is {'not ready' if node else 'no more'}"
        builder.wake(since + LOST_AFTER)
    return None


def _gone(builder: PlanBuilder) -> str | None:
    """A pod that is being deleted, or that is missing from a gang which ran."""
    for pod in builder.current:
        if pod.deleted and pod.phase != "Succeeded":
            return pod.name
    if is_set(builder.status, ConditionType.RUNNING, "True") and builder.missing:
        return worker_name(builder.job.metadata.name, builder.missing[0])
    return None


def _wait_for_culprit(builder: PlanBuilder, survivors: list[PodFacts]) -> None:
    """Workers that only lost a peer: give the peer a moment to show why."""
    words = failure_of(first_to_end(survivors))[1]
    latest = max((p.finished for p in survivors if p.finished), default=None)
    silent = next((p for p in builder.current if not p.terminal), None)
    never_began = bool(builder.missing) or any(p.started is None and not p.terminal for p in builder.current)
    if never_began and not is_set(builder.status, ConditionType.RUNNING, "True"):
        # They have waited in vain for one that has no pod, no place, or no image yet: nobody has failed.
        reason, why = _why_not_running(builder)
        _restart(builder, reason, f"{words}: {why}", counted=False, grace_seconds=FAILURE_GRACE_SECONDS)
    elif silent is None:
        _restart(builder, Reason.PEER_LOST, words, counted=True)
    elif _is_due(builder, latest, ROOT_CAUSE_TIMEOUT):
        # A process that ends, however badly, is reported by its kubelet. Whoever is gone without that has lost its node.
        where = f"{silent.name} on node {silent.node} is silent"
        # A worker that hangs looks the same. It is no node's fault that it does so again and again.
        often = builder.status.disruptions >= FEW_DISRUPTIONS
        _restart(builder, Reason.PEER_SILENT, f"{where}; {words}", counted=often, grace_seconds=FAILURE_GRACE_SECONDS)
    else:
        builder.settling = True


def _restart(
    builder: PlanBuilder, reason: str, message: str, *, counted: bool, grace_seconds: int | None = None
) -> None:
    """End the attempt and begin another, or fail where the limit is reached."""
    status = builder.status
    if counted:
        if status.restarts >= builder.job.spec.run_policy.backoff_limit:
            _fail(
                builder,
                Reason.BACKOFF_LIMIT_EXCEEDED,
                f"{status.restarts + 1} attempts failed; the last: {reason}: {message}",
            )
            return
        status.restarts += 1
        doubled = BACKOFF * 2 ** min(status.restarts - 2, 10) if status.restarts > 1 else timedelta()
        delay = min(doubled, MAX_BACKOFF)
    else:
        status.disruptions += 1
        began = builder.record.start_time if builder.record else None
        short = began is not None and builder.now - began < placement.MIN_ATTEMPT_AGE
        delay = BACKOFF if short and status.disruptions > FEW_DISRUPTIONS else timedelta()
    for pod in (*builder.current, *builder.spares):
        # Whoever can still agree with others saves and goes in its own time.
        builder.remove(pod, grace_seconds=FAILURE_GRACE_SECONDS if counted else grace_seconds)
    builder.event("Warning", Reason.RESTARTING, f"attempt {status.attempt} ended: {reason}: {message}")
    size = worker_counts.closest(builder.job.spec, builder.size)
    builder.end_attempt(reason, message)
    builder.next_attempt(size, delay)


def _check_deadlines(builder: PlanBuilder) -> None:
    policy, record = builder.job.spec.run_policy, builder.record
    if policy.active_deadline_seconds is not None and builder.status.start_time:
        end = builder.status.start_time + timedelta(seconds=policy.active_deadline_seconds)
        if builder.now >= end:
            _fail(builder, Reason.DEADLINE_EXCEEDED, f"active for longer than {policy.active_deadline_seconds} s")
            return
        builder.wake(end)
    seconds = policy.pre_running_deadline_seconds
    began = record.start_time if record else None
    if seconds is not None and began and not is_set(builder.status, ConditionType.RUNNING, "True"):
        end = began + timedelta(seconds=seconds)
        if builder.now >= end and not builder.all_running():
            reason, words = _why_not_running(builder)
            _fail(builder, reason, f"not running after {seconds} s (spec.runPolicy.preRunningDeadlineSeconds): {words}")
            return
        builder.wake(end)


def _why_not_running(builder: PlanBuilder) -> tuple[str, str]:
    """(reason, words), as the scheduler, the kubelet or the API server gave them."""
    if builder.observed.obstacle:
        return builder.observed.obstacle.reason, builder.observed.obstacle.message
    pod = next((p for p in builder.current if p.waiting), None)
    if pod is None:
        # What stood in the way was seen by an operator that was started anew since.
        known = find(builder.status, ConditionType.SCHEDULED)
        if known is not None and known.status == "False":
            return known.reason, known.message
        return Reason.PRE_RUNNING_DEADLINE_EXCEEDED, "its pods did not start"
    reason = Reason.GATED if pod.gated else pod.waiting.partition(":")[0]
    return reason, f"{pod.name}: {pod.waiting}"


# --- the end ----------------------------------------------------------------------------------------------------------


def _succeed(builder: PlanBuilder, rank0_pod: PodFacts | None) -> None:
    status = builder.status
    if builder.all_running():
        status_summary.note_running(builder)
    report = (report_of(rank0_pod) if rank0_pod else None) or builder.observed.report
    if report is not None:
        status_summary.take_over(builder, report)
        status.result = report.result
    builder.end_attempt(Reason.SUCCEEDED, "the training is complete")
    builder.condition(ConditionType.SUCCEEDED, "True", Reason.TRAINING_COMPLETED, "the training is complete")
    weights = f": {status.result.weights}" if status.result else ""
    builder.event("Normal", Reason.SUCCEEDED, f"the training is complete{weights}")
    status.completion_time = builder.now


def _fail(builder: PlanBuilder, reason: str, message: str) -> None:
    if report := next((r for p in builder.current if p.index == 0 and (r := report_of(p))), None):
        status_summary.take_over(builder, report)
    builder.end_attempt(reason, message)
    builder.condition(ConditionType.FAILED, "True", reason, message)
    builder.event("Warning", Reason.FAILED, f"{reason}: {message}")
    builder.status.completion_time = builder.now


def _clean(builder: PlanBuilder) -> None:
    builder.disband()
    policy = builder.job.spec.run_policy.clean_pod_policy
    for pod in builder.observed.pods:
        old = pod.attempt != builder.status.attempt or pod in builder.spares
        # Of a job that failed nothing goes on, or begins, whatever is to be kept.
        failed = is_set(builder.status, ConditionType.FAILED, "True") and not pod.terminal
        if old or failed or policy == "All" or (policy == "Running" and (not pod.terminal or pod.lingers)):
            builder.remove(pod)


def _expire(builder: PlanBuilder) -> None:
    ttl = builder.job.spec.run_policy.ttl_seconds_after_finished
    if ttl is None or builder.status.completion_time is None:
        return
    end = builder.status.completion_time + timedelta(seconds=ttl)
    if builder.now >= end:
        builder.delete_job = True
    else:
        builder.wake(end)
