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
from yolojob_operator.plan.builder import Deletion, Draft, Event, Observed
from yolojob_operator.plan.conditions import find, is_set, set_condition
from yolojob_operator.plan.pod_facts import Cause, PodFacts
from yolojob_operator.plan.pod_failures import first, report_of, words_of

BACKOFF = timedelta(seconds=10)
"""Wait before the second restart; doubled for each further one. The first restart is at once."""
MAX_BACKOFF = timedelta(seconds=300)
FEW_DISRUPTIONS = 3
"""After these, an attempt that a disruption ends sooner than SHORT_LIFE is followed by a wait, or preemption could spin."""
SURVIVORS_PATIENCE = timedelta(seconds=3)
"""Time for the culprit to be seen, once the others have reported that they lost it."""
LOST_AFTER = timedelta(seconds=60)
"""A worker whose node has been silent for so long is lost, also where Kubernetes leaves its pods alone: it evicts none from a
zone in which most nodes are silent."""
FAREWELL = timedelta(seconds=5)
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
    events: tuple[Event, ...] = ()

    @property
    def has_deeds(self) -> bool:
        return bool(self.create or self.delete or self.release or self.delete_job or self.events)


def plan(job: YoloTrainingJob, observed: Observed, now: datetime, defaults: pods.Defaults) -> Plan:
    """What should be, given what is."""
    draft = Draft(job, observed, now, defaults)
    before = job.status or YoloTrainingJobStatus()
    if is_ours(job.metadata.deletion_timestamp, job.spec.run_policy.managed_by):
        _recognise(draft)
        accounting.book(job, draft.status, observed.pods, now)
        _decide(draft)
        if draft.finished or len(draft.placed) == draft.size:
            accounting.fix_price(job, draft.status, draft.placed, observed.nodes or {})
        accounting.balance(draft.status)
        accounting.charge(job, draft.status, before, now)
    only_time = _without_account(draft.status) == _without_account(before)
    parting, moment = accounting.pays_parting(before, draft.status, observed.pods, now)
    if moment:
        draft.wake(moment)
    return Plan(
        # That time passes is no news by itself: the account waits for the next word, or until it is old.
        status=before if only_time and not parting and not accounting.is_stale(before, now) else draft.status,
        create=tuple(draft.create),
        delete=tuple(draft.delete),
        release=tuple(sorted(draft.release)),
        disband=tuple(draft.disbanded),
        delete_job=draft.delete_job,
        due=draft.due,
        events=tuple(draft.events),
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


def _recognise(draft: Draft) -> None:
    """The first gang may have been made before any status was written."""
    first = [p for p in draft.observed.pods if p.attempt == 1]
    if draft.status.attempt == 0 and first:
        draft.next_attempt(max(p.workers for p in first) or draft.job.spec.workers.replicas)
        assert draft.record is not None
        draft.record.start_time = min((p.created for p in first if p.created), default=draft.now)
        draft.status.start_time = draft.record.start_time


# --- the decision, from the top ---------------------------------------------------------------------------------------


def _decide(draft: Draft) -> None:
    if draft.finished:
        _clean(draft)
        _expire(draft)
    else:
        refusal = _refusal(draft)
        draft.refused = refusal is not None
        if refusal is None:
            draft.condition(ConditionType.ACCEPTED, "True", Reason.ACCEPTED, "the specification can be run")
        else:
            draft.condition(ConditionType.ACCEPTED, "False", *refusal)
        asleep = is_set(draft.status, ConditionType.SUSPENDED, "True")
        if draft.refused and draft.status.attempt == 0:
            for pod in draft.observed.pods:
                draft.remove(pod)
        elif draft.job.spec.run_policy.suspend and (asleep or not _is_trained(draft)):
            _suspend(draft)
        else:
            _run(draft)
    status_summary.sum_up(draft)


def _refusal(draft: Draft) -> tuple[str, str] | None:
    """What a cluster cannot do, though the specification is well-formed: (reason, message)."""
    spec = draft.job.spec
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
    for privilege, path, wanted in template_policy.trespasses(spec.workers.template):
        account = draft.defaults.service_account
        own = privilege is Privilege.SERVICE_ACCOUNT and account is not None and wanted == account
        if privilege not in draft.defaults.allowed and not own:
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
    if spec.workers.gpu is not None and not spec.workers.gpu.required and draft.observed.nodes is None:
        return (
            Reason.NODES_UNKNOWN,
            "spec.workers.gpu.required: false: whether the cluster has GPUs is for an operator to say that may see nodes, "
            "and this one is bound to namespaces; set it to true, or leave spec.workers.gpu out to train on CPUs",
        )
    return _malformed(draft)


def _malformed(draft: Draft) -> tuple[str, str] | None:
    """Why no pod can be made of a template, of which the API server keeps whatever it is given; while one is to be made."""
    job = draft.as_attempted()
    grows = job.spec.elastic is not None and draft.job.spec.workers.replicas > draft.size
    if not job.spec.workers.template or (len(draft.current) == draft.size and not grows):
        return None
    try:
        gang_scheduling.pod_group(job, pods.worker(job, 0, 1, draft.defaults), {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        return Reason.TEMPLATE_INVALID, (
            f"spec.workers.template: no pod can be made of it ({words}); `kubectl explain pod.spec` tells what it may hold"
        )
    return None


# --- suspended --------------------------------------------------------------------------------------------------------


def _suspend(draft: Draft) -> None:
    status = draft.status
    for pod in draft.observed.pods:
        draft.remove(pod)
    draft.disband()
    if draft.condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, "spec.runPolicy.suspend is true"):
        stays = "; its checkpoint stays" if status.attempt and draft.job.spec.storage else ""
        draft.event("Normal", Reason.SUSPENDED, f"the job is suspended{stays}")
        if draft.record and draft.record.end_time is None:
            draft.end_attempt(Reason.SUSPENDED, "the job is suspended")
        draft.unschedule(Reason.SUSPENDED, "a suspended job has no pods")
    status.start_time = None
    status.next_attempt_time = None


def _resume(draft: Draft) -> None:
    draft.condition(ConditionType.SUSPENDED, "False", Reason.RESUMED, "the job goes on")
    if draft.status.attempt == 0:
        words = "the job begins"
    elif draft.job.spec.storage is None:
        words = "the job begins anew: spec.storage is not set"
    else:
        words = "the job goes on from its newest checkpoint"
    draft.event("Normal", Reason.RESUMED, words)
    draft.next_attempt(draft.job.spec.workers.replicas)


# --- running ----------------------------------------------------------------------------------------------------------


def _run(draft: Draft) -> None:
    status, begins = draft.status, draft.status.attempt == 0
    if is_set(status, ConditionType.SUSPENDED, "True"):
        _resume(draft)
    if any(p.gated for p in draft.current):
        status.start_time = None  # it is not active while a queue holds it
    elif status.start_time is None:
        status.start_time = draft.now
    if status.attempt == 0:
        draft.next_attempt(draft.job.spec.workers.replicas)
    if begins and draft.job.spec.storage is None:
        draft.event("Warning", Reason.NO_STORAGE, "spec.storage is not set: checkpoints and weights go with the pods")
    _judge(draft)
    if not draft.finished and not _is_trained(draft):
        _check_deadlines(draft)
    if draft.finished:
        _clean(draft)
        _expire(draft)
        return
    if not draft.settling:
        placement.resize(draft)
    for pod in draft.leftovers:
        draft.remove(pod)
    if not _is_trained(draft):
        status_summary.follow(draft)
        if not draft.leftovers and not draft.settling:
            placement.fill(draft)


def _is_trained(draft: Draft) -> bool:
    """Whether worker 0 has succeeded: all weights are saved, and nothing that happens now takes them away."""
    return 0 in draft.completed


def _is_due(draft: Draft, since: datetime | None, patience: timedelta) -> bool:
    """Whether patience since a moment on a node's clock is used up; else a plan is due then. Clocks may differ."""
    if since is None or abs(draft.now - since) >= patience:
        return True
    draft.wake(since + patience)
    return False


def _judge(draft: Draft) -> None:
    """Whether the attempt has come to an end, and to which."""
    if _is_trained(draft):
        # The others have nothing left to do but to end, and may do so in peace.
        chief = next((p for p in draft.current if p.index == 0), None)
        if chief is None or all(p.terminal for p in draft.current) or _is_due(draft, chief.finished, FAREWELL):
            _succeed(draft, chief)
        else:
            draft.settling = True
        return
    by_cause: dict[Cause, list[PodFacts]] = {}
    for pod in draft.current:
        if pod.cause:
            by_cause.setdefault(pod.cause, []).append(pod)
    if permanent := by_cause.get(Cause.PERMANENT):
        _fail(draft, *words_of(first(permanent)))
    elif disrupted := by_cause.get(Cause.DISRUPTION):
        _restart(draft, *words_of(first(disrupted)), counted=False)
    elif failed := by_cause.get(Cause.FAILURE):
        _restart(draft, *words_of(first(failed)), counted=True)
    elif gone := _gone(draft):
        _restart(draft, Reason.POD_DELETED, f"{gone} was deleted", counted=False)
    elif survivors := by_cause.get(Cause.SURVIVOR):
        _wait_for_culprit(draft, survivors)
    elif lost := _lost(draft):
        _restart(draft, Reason.NODE_LOST, lost, counted=False, grace_seconds=FAILURE_GRACE_SECONDS)


def _lost(draft: Draft) -> str | None:
    """A worker whose node has been silent for long, or is no more."""
    nodes = draft.observed.nodes
    if nodes is None:
        return None
    for pod in draft.placed:
        node = nodes.get(pod.node)
        if pod.terminal or pod.scheduled is None or (node is not None and node.ready):
            continue
        since = max(pod.scheduled, node.since) if node is not None and node.since else pod.scheduled
        if draft.now >= since + LOST_AFTER:
            return f"node {pod.node} of {pod.name} is {'not ready' if node else 'no more'}"
        draft.wake(since + LOST_AFTER)
    return None


def _gone(draft: Draft) -> str | None:
    """A pod that is being deleted, or that is missing from a gang which ran."""
    for pod in draft.current:
        if pod.deleted and pod.phase != "Succeeded":
            return pod.name
    if is_set(draft.status, ConditionType.RUNNING, "True") and draft.missing:
        return worker_name(draft.job.metadata.name, draft.missing[0])
    return None


def _wait_for_culprit(draft: Draft, survivors: list[PodFacts]) -> None:
    """Workers that only lost a peer: give the peer a moment to show why."""
    words = words_of(first(survivors))[1]
    latest = max((p.finished for p in survivors if p.finished), default=None)
    silent = next((p for p in draft.current if not p.terminal), None)
    never_began = bool(draft.missing) or any(p.started is None and not p.terminal for p in draft.current)
    if never_began and not is_set(draft.status, ConditionType.RUNNING, "True"):
        # They have waited in vain for one that has no pod, no place, or no image yet: nobody has failed.
        reason, why = _why_not_running(draft)
        _restart(draft, reason, f"{words}: {why}", counted=False, grace_seconds=FAILURE_GRACE_SECONDS)
    elif silent is None:
        _restart(draft, Reason.PEER_LOST, words, counted=True)
    elif _is_due(draft, latest, SURVIVORS_PATIENCE):
        # A process that ends, however badly, is reported by its kubelet. Whoever is gone without that has lost its node.
        where = f"{silent.name} on node {silent.node} is silent"
        # A worker that hangs looks the same. It is no node's fault that it does so again and again.
        often = draft.status.disruptions >= FEW_DISRUPTIONS
        _restart(draft, Reason.PEER_SILENT, f"{where}; {words}", counted=often, grace_seconds=FAILURE_GRACE_SECONDS)
    else:
        draft.settling = True


def _restart(draft: Draft, reason: str, message: str, *, counted: bool, grace_seconds: int | None = None) -> None:
    """End the attempt and begin another, or fail where the limit is reached."""
    status = draft.status
    if counted:
        if status.restarts >= draft.job.spec.run_policy.backoff_limit:
            _fail(
                draft,
                Reason.BACKOFF_LIMIT_EXCEEDED,
                f"{status.restarts + 1} attempts failed; the last: {reason}: {message}",
            )
            return
        status.restarts += 1
        doubled = BACKOFF * 2 ** min(status.restarts - 2, 10) if status.restarts > 1 else timedelta()
        delay = min(doubled, MAX_BACKOFF)
    else:
        status.disruptions += 1
        began = draft.record.start_time if draft.record else None
        short = began is not None and draft.now - began < placement.SHORT_LIFE
        delay = BACKOFF if short and status.disruptions > FEW_DISRUPTIONS else timedelta()
    for pod in (*draft.current, *draft.spares):
        # Whoever can still agree with others saves and goes in its own time.
        draft.remove(pod, grace_seconds=FAILURE_GRACE_SECONDS if counted else grace_seconds)
    draft.event("Warning", Reason.RESTARTING, f"attempt {status.attempt} ended: {reason}: {message}")
    size = worker_counts.closest(draft.job.spec, draft.size)
    draft.end_attempt(reason, message)
    draft.next_attempt(size, delay)


def _check_deadlines(draft: Draft) -> None:
    policy, record = draft.job.spec.run_policy, draft.record
    if policy.active_deadline_seconds is not None and draft.status.start_time:
        end = draft.status.start_time + timedelta(seconds=policy.active_deadline_seconds)
        if draft.now >= end:
            _fail(draft, Reason.DEADLINE_EXCEEDED, f"active for longer than {policy.active_deadline_seconds} s")
            return
        draft.wake(end)
    seconds = policy.pre_running_deadline_seconds
    began = record.start_time if record else None
    if seconds is not None and began and not is_set(draft.status, ConditionType.RUNNING, "True"):
        end = began + timedelta(seconds=seconds)
        if draft.now >= end and not draft.all_running():
            reason, words = _why_not_running(draft)
            _fail(draft, reason, f"not running after {seconds} s (spec.runPolicy.preRunningDeadlineSeconds): {words}")
            return
        draft.wake(end)


def _why_not_running(draft: Draft) -> tuple[str, str]:
    """(reason, words), as the scheduler, the kubelet or the API server gave them."""
    if draft.observed.obstacle:
        return draft.observed.obstacle.reason, draft.observed.obstacle.message
    pod = next((p for p in draft.current if p.waiting), None)
    if pod is None:
        # What stood in the way was seen by an operator that was started anew since.
        known = find(draft.status, ConditionType.SCHEDULED)
        if known is not None and known.status == "False":
            return known.reason, known.message
        return Reason.PRE_RUNNING_DEADLINE_EXCEEDED, "its pods did not start"
    reason = Reason.GATED if pod.gated else pod.waiting.partition(":")[0]
    return reason, f"{pod.name}: {pod.waiting}"


# --- the end ----------------------------------------------------------------------------------------------------------


def _succeed(draft: Draft, chief: PodFacts | None) -> None:
    status = draft.status
    if draft.all_running():
        status_summary.note_running(draft)
    report = (report_of(chief) if chief else None) or draft.observed.report
    if report is not None:
        status_summary.take_over(draft, report)
        status.result = report.result
    draft.end_attempt(Reason.SUCCEEDED, "the training is complete")
    draft.condition(ConditionType.SUCCEEDED, "True", Reason.TRAINING_COMPLETED, "the training is complete")
    weights = f": {status.result.weights}" if status.result else ""
    draft.event("Normal", Reason.SUCCEEDED, f"the training is complete{weights}")
    status.completion_time = draft.now


def _fail(draft: Draft, reason: str, message: str) -> None:
    if report := next((r for p in draft.current if p.index == 0 and (r := report_of(p))), None):
        status_summary.take_over(draft, report)
    draft.end_attempt(reason, message)
    draft.condition(ConditionType.FAILED, "True", reason, message)
    draft.event("Warning", Reason.FAILED, f"{reason}: {message}")
    draft.status.completion_time = draft.now


def _clean(draft: Draft) -> None:
    draft.disband()
    policy = draft.job.spec.run_policy.clean_pod_policy
    for pod in draft.observed.pods:
        old = pod.attempt != draft.status.attempt or pod in draft.spares
        # Of a job that failed nothing goes on, or begins, whatever is to be kept.
        failed = is_set(draft.status, ConditionType.FAILED, "True") and not pod.terminal
        if old or failed or policy == "All" or (policy == "Running" and (not pod.terminal or pod.lingers)):
            draft.remove(pod)


def _expire(draft: Draft) -> None:
    ttl = draft.job.spec.run_policy.ttl_seconds_after_finished
    if ttl is None or draft.status.completion_time is None:
        return
    end = draft.status.completion_time + timedelta(seconds=ttl)
    if draft.now >= end:
        draft.delete_job = True
    else:
        draft.wake(end)
