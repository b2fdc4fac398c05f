"""Fills in the status of the current attempt: conditions, counts, progress, phase. Pure."""

from __future__ import annotations

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType, JobPhase, Progress
from yolojob.api.trainer_report import Report
from yolojob_operator.objects import gang_scheduling
from yolojob_operator.plan import completed_indexes
from yolojob_operator.plan.builder import PlanBuilder
from yolojob_operator.plan.conditions import find, is_set
from yolojob_operator.plan.pod_facts import PodFacts


def describe_attempt(builder: PlanBuilder) -> None:
    """Set the conditions and the progress of the current attempt."""
    gang = builder.current
    if not gang:
        return
    _set_scheduled(builder, gang)
    if builder.all_running():
        note_running(builder)
        builder.condition(ConditionType.RUNNING, "True", Reason.RUNNING, f"attempt {builder.status.attempt} runs")
        if builder.observed.report is not None:
            apply_report(builder, builder.observed.report)
    elif not is_set(builder.status, ConditionType.RUNNING, "True"):
        waiting = next((f"{p.name}: {p.waiting}" for p in gang if p.waiting and p.node), "")
        if waiting:
            builder.condition(ConditionType.RUNNING, "False", Reason.WAITING, waiting)
        elif (known := find(builder.status, ConditionType.RUNNING)) is None or known.reason == Reason.WAITING:
            builder.condition(ConditionType.RUNNING, "False", Reason.STARTING, "the workers are starting")


def held_pod(builder: PlanBuilder) -> str | None:
    """A message about a pod of an older attempt that others keep from being deleted; None if there is none.

    Its name is in use, so the current attempt cannot create its pods.
    """
    for pod in builder.leftovers:
        others = [name for name in pod.finalizers if name != gang_scheduling.KUEUE_FINALIZER]
        if others and pod.deleted is not None and pod.deleted <= builder.now:
            return f"{pod.name} of attempt {pod.attempt} is terminating, and held by the finalizer {', '.join(others)}"
    return None


def _set_scheduled(builder: PlanBuilder, gang: list[PodFacts]) -> None:
    if not builder.missing and all(p.node for p in gang):
        builder.condition(ConditionType.SCHEDULED, "True", Reason.SCHEDULED, "all workers have a node")
        return
    if gated := next((p for p in gang if p.gated), None):
        queue = builder.job.spec.scheduling.queue
        where = f" in queue {queue}" if queue else ""
        builder.condition(ConditionType.SCHEDULED, "False", Reason.GATED, f"{gated.name} waits for admission{where}")
        return
    waiting = next((f"{p.name}: {p.waiting}" for p in gang if p.waiting and not p.node), "")
    reason = Reason.UNSCHEDULABLE if waiting else Reason.SCHEDULING
    builder.condition(ConditionType.SCHEDULED, "False", reason, waiting or "waiting for the scheduler")


def note_running(builder: PlanBuilder) -> None:
    """Record that the attempt runs. Only the first call for an attempt has an effect."""
    record = builder.record
    if record is None or record.running_time is not None:
        return
    record.running_time = builder.now
    if record.attempt > 1:  # for the first attempt, conditions and pods show it already
        builder.event("Normal", Reason.RUNNING, f"attempt {record.attempt}: {record.workers} worker(s) run")


def apply_report(builder: PlanBuilder, report: Report) -> None:
    """Copy the progress and the times that the trainer reports."""
    status, progress = builder.status, report.progress
    if progress.epochs:
        status.progress = progress
    elif progress.staged_bytes is not None:
        # An attempt that is still staging its data does not reset the progress of earlier attempts.
        staged = {name: getattr(progress, name) for name in ("staged_bytes", "dataset_bytes", "updated_at")}
        status.progress = (status.progress or Progress()).model_copy(update=staged)
    builder.account.apply_report(report)


def summarise(builder: PlanBuilder) -> None:
    """Set the counts, the phase, and the message about a job that trains on CPUs instead of GPUs."""
    status, gang, spec = builder.status, builder.current, builder.job.spec
    workers = status.workers
    workers.desired = 0 if spec.run_policy.suspend or builder.finished else spec.workers.replicas
    workers.active = sum(not p.terminal and p.deleted is None for p in gang)
    workers.ready = sum(p.ready and not p.terminal and p.deleted is None for p in gang)
    workers.succeeded, workers.completed_indexes = len(builder.completed), completed_indexes.join(builder.completed)
    workers.failed = sum(p.phase == "Failed" for p in gang)
    workers.selector = f"{constants.LABEL_JOB}={builder.job.metadata.name}"
    status.observed_generation = builder.job.metadata.generation
    status.phase = _phase(builder)
    record = builder.record
    gpu = spec.workers.gpu
    if gpu is not None and not gpu.required and record is not None and record.device == "CPU" and not builder.refused:
        types = f" of type {', '.join(gpu.types)}" if gpu.types else ""
        requested = f"{gpu.count} {gpu.resource}{types}"
        message = f"trains on CPUs: no node has {requested}, and spec.workers.gpu.required is false"
        if builder.offers_gpus():
            message = f"trains on CPUs: it started without {requested}; the next attempt uses GPUs"
        builder.condition(ConditionType.ACCEPTED, "True", Reason.NO_GPU, message)


def _phase(builder: PlanBuilder) -> JobPhase:
    status = builder.status
    for kind, phase in (
        (ConditionType.SUCCEEDED, JobPhase.SUCCEEDED),
        (ConditionType.FAILED, JobPhase.FAILED),
        (ConditionType.SUSPENDED, JobPhase.SUSPENDED),
        (ConditionType.RUNNING, JobPhase.RUNNING),
    ):
        if is_set(status, kind, "True"):
            return phase
    if any(p.gated for p in builder.current):
        return JobPhase.QUEUED
    if len(status.history) > 1 and status.history[-2].reason != Reason.SUSPENDED:
        return JobPhase.RESTARTING
    if not builder.current:
        return JobPhase.PENDING
    return JobPhase.STARTING if is_set(status, ConditionType.SCHEDULED, "True") else JobPhase.QUEUED
