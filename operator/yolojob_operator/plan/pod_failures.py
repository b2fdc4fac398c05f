"""Derives the reason and the message of a failed pod, for conditions and events. Pure."""

from __future__ import annotations

from pydantic import ValidationError

from yolojob.api.constants import ExitCode
from yolojob.api.reasons import Reason
from yolojob.api.trainer_report import Report
from yolojob_operator.plan.pod_facts import SIGKILL_EXIT_CODE, PodFacts

MAX_LOG_LINES = 3
"""Lines of a termination message that are quoted if it is not a report."""


def report_of(pod: PodFacts) -> Report | None:
    """The report in the trainer's termination message; None if the message is not a report."""
    try:
        return Report.model_validate_json(pod.message) if pod.message else None
    except ValidationError:
        return None


def failure_of(pod: PodFacts) -> tuple[str, str]:
    """(reason, message) of a pod's end. The message is the failing rank's own, if it left one."""
    if pod.disruption:
        reason, _, rest = pod.disruption.partition(": ")
        return reason, f"{pod.name}: {rest or reason}"
    if pod.limit_exceeded:
        hint = "raise the limit, or sizeLimit of the volume"
        return Reason.LIMIT_EXCEEDED, f"{pod.name} was evicted: {pod.limit_exceeded.strip()} ({hint})"
    if pod.deleted and pod.exit_code in (ExitCode.INTERRUPTED, SIGKILL_EXIT_CODE):
        return Reason.POD_DELETED, f"{pod.name} was deleted"
    if pod.exit_reason == Reason.OOM_KILLED:
        limit = f" of {pod.memory_limit}" if pod.memory_limit else ""
        return Reason.OOM_KILLED, (
            f"{pod.name} used more than its memory limit{limit}: raise spec.workers.resources.limits.memory, or use a "
            "smaller spec.train.batch, spec.train.imgsz or spec.train.cache"
        )
    report = report_of(pod)
    if report is not None and report.failure is not None:
        rank = "" if report.failure.rank is None else f" (rank {report.failure.rank})"
        return report.failure.reason, f"{pod.name}{rank}: {report.failure.message}"
    lines = [line for line in pod.message.strip().splitlines() if line.strip()]
    tail = f": {' | '.join(lines[-MAX_LOG_LINES:])}" if lines else ""
    outcome = "failed" if pod.exit_code is None else f"exited with code {pod.exit_code}"
    return Reason.TRAINING_FAILED, f"{pod.name} {outcome}{tail}"


def first_to_end(pods: list[PodFacts]) -> PodFacts:
    """The pod that ended first: its end is the cause, the others are consequences."""
    return min(pods, key=lambda p: (p.finished is None, p.finished or p.created or 0, p.index))
