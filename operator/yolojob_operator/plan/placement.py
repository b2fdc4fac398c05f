"""Rules of pod creation and of the attempt's size: missing pods, and attempts with fewer or more workers
(spec.elastic). Pure.
"""

from __future__ import annotations

from datetime import timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType
from yolojob_operator.objects import gang_scheduling, isolation, pods
from yolojob_operator.objects.metadata import owner_reference
from yolojob_operator.plan import worker_counts
from yolojob_operator.plan.builder import PlanBuilder
from yolojob_operator.plan.conditions import is_set
from yolojob_operator.plan.pod_facts import PodFacts

CREATE_RETRY_INTERVAL = timedelta(seconds=10)
"""Wait before an object that the API server has refused is created again."""
SCHEDULING_TIMEOUT = timedelta(seconds=20)
"""Time for the scheduler to place all workers, before the attempt continues with those that are placed."""
MAX_BACKOFF = timedelta(seconds=300)
"""Longest wait before an attempt."""
MIN_ATTEMPT_AGE = timedelta(seconds=30)
"""Minimum age of an attempt before it may be replaced by a larger one, so that its start-up cost pays off."""
SCALE_UP_INTERVAL = timedelta(minutes=5)
"""Wait after a search for more room that found too little."""


def create_missing_pods(builder: PlanBuilder) -> None:
    """Create the missing pods of the current attempt."""
    record = builder.record
    if builder.refused or _is_backing_off(builder):
        return
    if record is not None and record.start_time is None and not builder.current:
        # The job may have been scaled down since the size was decided. Room for more workers is searched once it runs.
        record.workers = worker_counts.closest(builder.job.spec, min(record.workers, builder.job.spec.workers.replicas))
    missing = builder.missing
    if record is None or not missing:
        return
    if any(p.generation not in (0, builder.job.metadata.generation) for p in builder.current):
        # An edit does not change a started attempt: all its pods are created from one specification.
        workers = worker_counts.closest(builder.job.spec, builder.size)
        message = "the specification was edited before all workers were created"
        _replace_attempt(builder, workers, Reason.SPEC_CHANGED, message)
        return
    if obstacle := builder.observed.obstacle:
        builder.condition(ConditionType.SCHEDULED, "False", obstacle.reason, obstacle.message)
        builder.wake(builder.now + CREATE_RETRY_INTERVAL)
    if record.start_time is None:
        record.start_time = builder.now
        seconds = builder.job.spec.run_policy.pre_running_deadline_seconds
        if seconds is not None:
            builder.wake(builder.now + timedelta(seconds=seconds))
    if not builder.current and not builder.completed:
        builder.record_specification(builder.job.spec.workers.image or builder.defaults.image)
    _create_objects(builder, missing)


def _create_objects(builder: PlanBuilder, missing: list[int]) -> None:
    """Create the workers of these indices, and what they need."""
    status, job = builder.status, builder.as_attempted()
    workers_to_create = [pods.worker(job, i, status.attempt, builder.defaults) for i in missing]
    if not builder.current:
        builder.create.append(pods.service(job))
        if builder.defaults.network_policies:
            builder.create.append(isolation.network_policy(job, builder.defaults))
        if group := gang_scheduling.pod_group(job, workers_to_create[0], owner_reference(job)):
            builder.create.append(group)
    if isolation.needs_secret(job):
        # With every missing pod: an older operator, which creates no secrets, may have created the other pods.
        builder.create.append(isolation.secret(job))
    builder.create.extend(workers_to_create)


def _is_backing_off(builder: PlanBuilder) -> bool:
    """Whether the next attempt may not start yet."""
    status = builder.status
    if status.next_attempt_time is None:
        return False
    # A longer wait was never planned: the clock has gone back since.
    if builder.now < status.next_attempt_time <= builder.now + MAX_BACKOFF:
        builder.wake(status.next_attempt_time)
        return True
    status.next_attempt_time = None
    return False


def resize_attempt(builder: PlanBuilder) -> None:
    """Replace the current attempt if it must have another size."""
    spec, record = builder.job.spec, builder.record
    for pod in builder.spares:
        if pod.deleted or spec.elastic is None or builder.refused:
            builder.remove(pod)
    if record is None or record.start_time is None or builder.refused:
        return
    replicas = spec.workers.replicas
    message = f"spec.workers.replicas is {replicas}"
    if spec.elastic is None:
        if replicas != builder.size:  # edited during a suspension that the operator did not observe
            reason = Reason.SCALED_UP if replicas > builder.size else Reason.SCALED_DOWN
            _replace_attempt(builder, replicas, reason, message)
        return
    if replicas < builder.size:
        _replace_attempt(builder, replicas, Reason.SCALED_DOWN, message)
    elif not is_set(builder.status, ConditionType.RUNNING, "True"):
        _scale_down(builder)
    elif replicas > builder.size:
        _scale_up(builder)
    else:
        for pod in builder.spares:
            builder.remove(pod)


def _replace_attempt(builder: PlanBuilder, workers: int, reason: str, message: str) -> None:
    """Continue with this number of workers, from a checkpoint."""
    for pod in (*builder.current, *builder.spares):
        builder.remove(pod)  # with the pod's own grace period: the ranks agree and save
    size = f"{builder.size} → {workers} workers" if workers != builder.size else f"{workers} worker(s) are replaced"
    builder.event("Normal", reason, f"attempt {builder.status.attempt}: {size}: {message}")
    builder.end_attempt(reason, message)
    builder.next_attempt(workers)


def _scale_down(builder: PlanBuilder) -> None:
    """Continue with the workers that have a node, if the others do not get one in time."""
    record = builder.record
    placed = len(builder.placed)
    workers = worker_counts.at_most(builder.job.spec, placed)
    if placed == builder.size or workers is None or record is None or record.start_time is None:
        return
    end = record.start_time + SCHEDULING_TIMEOUT
    if builder.now < end:
        builder.wake(end)
        return
    waiting = next((f"{p.name}: {p.waiting}" for p in builder.current if not p.node and p.waiting), "")
    obstacle = builder.observed.obstacle.message if builder.observed.obstacle else "no node was found"
    message = f"{placed} of {builder.size} workers have a node: {waiting or obstacle}"
    _replace_attempt(builder, workers, Reason.SCALED_DOWN, message)


def _scale_up(builder: PlanBuilder) -> None:
    """Search for room with spare pods, which do nothing, so that training stops only once there is enough room."""
    status, record = builder.status, builder.record
    assert record is not None
    start = (record.running_time or builder.now) + MIN_ATTEMPT_AGE
    if status.next_scale_up_time:
        start = max(start, status.next_scale_up_time)
    if builder.now < start:
        builder.wake(start)
        return
    is_retry, status.next_scale_up_time = status.next_scale_up_time is not None, None
    if any(p.terminal for p in builder.spares) or (builder.observed.obstacle and not is_retry):
        _postpone_scale_up(builder)  # a kubelet or the API server refuses the spare pods
        return
    for pod in builder.spares:
        if pod.index >= builder.job.spec.workers.replicas:
            builder.remove(pod)
    _use_room(builder, [p for p in builder.spares if p.deleted is None and p.node])


def _use_room(builder: PlanBuilder, placed: list[PodFacts]) -> None:
    """Scale up to the room that these spare pods have found, stop the search, or continue it."""
    replicas = builder.job.spec.workers.replicas
    workers = worker_counts.at_most(builder.job.spec, builder.size + len(placed))
    end = min((p.scheduled for p in placed if p.scheduled), default=builder.now) + SCHEDULING_TIMEOUT
    if workers == replicas:
        message = f"there is room for all of spec.workers.replicas: {replicas}"
        _replace_attempt(builder, replicas, Reason.SCALED_UP, message)
    elif placed and builder.now >= end:
        if workers is not None and workers > builder.size:
            message = f"there is room for {workers} of {replicas} workers"
            _replace_attempt(builder, workers, Reason.SCALED_UP, message)
        else:
            _postpone_scale_up(builder)  # the room is too small for the next allowed size
    else:
        if placed:
            builder.wake(end)
        _create_missing_spares(builder)


def _create_missing_spares(builder: PlanBuilder) -> None:
    present = {p.index for p in builder.spares}
    job = builder.as_attempted()
    builder.create.extend(
        pods.spare(job, index, builder.status.attempt, builder.defaults)
        for index in range(builder.size, builder.job.spec.workers.replicas)
        if index not in present
    )


def _postpone_scale_up(builder: PlanBuilder) -> None:
    """Delete the spare pods and search for room again later."""
    for pod in builder.spares:
        builder.remove(pod)
    builder.status.next_scale_up_time = builder.now + SCALE_UP_INTERVAL
    builder.wake(builder.status.next_scale_up_time)
