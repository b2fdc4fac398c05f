"""Decides whether a job has passed one of its deadlines, and says why it does not run yet. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType
from yolojob_operator.plan import status_summary
from yolojob_operator.plan.builder import PlanBuilder
from yolojob_operator.plan.conditions import find, is_set


def exceeded(builder: PlanBuilder) -> tuple[str, str] | None:
    """(reason, message) of a deadline that has passed; None if none has. Then a plan is due at the next one."""
    policy = builder.job.spec.run_policy
    if policy.active_deadline_seconds is not None and builder.status.start_time:
        end = builder.status.start_time + timedelta(seconds=policy.active_deadline_seconds)
        if builder.now >= end:
            return Reason.DEADLINE_EXCEEDED, f"active for longer than {policy.active_deadline_seconds} s"
        builder.wake(end)
    seconds = policy.pre_running_deadline_seconds
    start = _attempt_start(builder)
    if seconds is not None and start and not is_set(builder.status, ConditionType.RUNNING, "True"):
        end = start + timedelta(seconds=seconds)
        if builder.now >= end and not builder.all_running():
            reason, why = why_not_running(builder)
            return reason, f"not running after {seconds} s (spec.runPolicy.preRunningDeadlineSeconds): {why}"
        builder.wake(end)
    return None


def _attempt_start(builder: PlanBuilder) -> datetime | None:
    """Start of the preRunningDeadlineSeconds of the current attempt; None if it is not known.

    It is the creation of the attempt's pods. Before that, it is the end of the previous attempt or of the back-off,
    because pods of the previous attempt may still use the names.
    """
    status, record = builder.status, builder.record
    if record is None or record.start_time is not None:
        return record.start_time if record else None
    previous = status.history[-2].end_time if len(status.history) > 1 else None
    return max(previous, status.next_attempt_time or previous) if previous else None


def why_not_running(builder: PlanBuilder) -> tuple[str, str]:
    """(reason, message) from the scheduler, the kubelet or the API server."""
    if builder.observed.obstacle:
        return builder.observed.obstacle.reason, builder.observed.obstacle.message
    if held := status_summary.held_pod(builder):
        return Reason.POD_TERMINATING, held
    pod = next((p for p in builder.current if p.waiting), None)
    if pod is None:
        # An obstacle that the operator met before it was restarted is still in the condition.
        known = find(builder.status, ConditionType.SCHEDULED)
        if known is not None and known.status == "False":
            return known.reason, known.message
        return Reason.PRE_RUNNING_DEADLINE_EXCEEDED, "its pods did not start"
    reason = Reason.GATED if pod.gated else pod.waiting.partition(":")[0]
    return reason, f"{pod.name}: {pod.waiting}"
