"""Rules of where and how large: the pods of an attempt, and attempts of another size (spec.elastic)."""

from __future__ import annotations

from datetime import timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType
from yolojob_operator.objects import gang_scheduling, pods
from yolojob_operator.plan import worker_counts
from yolojob_operator.plan.builder import PlanBuilder
from yolojob_operator.plan.conditions import is_set

RETRY = timedelta(seconds=10)
"""Wait before something that the API server has refused is tried again."""
SCHEDULING_TIMEOUT = timedelta(seconds=20)
"""Time for the scheduler to find places for all workers, before those that it found are used alone."""
MIN_ATTEMPT_AGE = timedelta(seconds=30)
"""An attempt that was begun lives so long at least, before a larger one replaces it: its start shall not be in vain."""
SCALE_UP_INTERVAL = timedelta(minutes=5)
"""Wait after a search for more room that found too little."""


def fill(builder: PlanBuilder) -> None:
    """Create what is missing of the current attempt."""
    status, record = builder.status, builder.record
    if builder.refused:
        return
    if status.next_attempt_time:
        if builder.now < status.next_attempt_time:
            builder.wake(status.next_attempt_time)
            return
        status.next_attempt_time = None
    if record is not None and record.start_time is None and not builder.current:
        # It may have been scaled down since the size was decided. Room for more is looked for once it runs.
        record.workers = worker_counts.closest(builder.job.spec, min(record.workers, builder.job.spec.workers.replicas))
    missing = builder.missing
    if record is None or not missing:
        return
    if any(p.generation not in (0, builder.job.metadata.generation) for p in builder.current):
        # An edit changes no attempt that has begun: all of its pods are made of one specification.
        size = worker_counts.closest(builder.job.spec, builder.size)
        _change(builder, size, Reason.SPEC_CHANGED, "the specification was edited before all workers were there")
        return
    if builder.observed.obstacle:
        builder.condition(
            ConditionType.SCHEDULED, "False", builder.observed.obstacle.reason, builder.observed.obstacle.message
        )
        builder.wake(builder.now + RETRY)
    if record.start_time is None:
        record.start_time = builder.now
        seconds = builder.job.spec.run_policy.pre_running_deadline_seconds
        if seconds is not None:
            builder.wake(builder.now + timedelta(seconds=seconds))
    job = builder.as_attempted()
    workers = [pods.worker(job, i, status.attempt, builder.defaults) for i in missing]
    if not builder.current:
        builder.create.append(pods.service(job))
        if group := gang_scheduling.pod_group(job, workers[0], pods.owner_reference(job)):
            builder.create.append(group)
    builder.create.extend(workers)


def resize(builder: PlanBuilder) -> None:
    """End the current attempt where one of another size is due."""
    spec, record = builder.job.spec, builder.record
    for pod in builder.spares:
        if pod.deleted or spec.elastic is None or builder.refused:
            builder.remove(pod)
    if record is None or record.start_time is None or builder.refused:
        return
    if spec.elastic is None:
        if spec.workers.replicas != builder.size:  # changed in a suspension that nobody saw
            reason = Reason.SCALED_UP if spec.workers.replicas > builder.size else Reason.SCALED_DOWN
            _change(builder, spec.workers.replicas, reason, f"spec.workers.replicas is {spec.workers.replicas}")
        return
    if spec.workers.replicas < builder.size:
        _change(builder, spec.workers.replicas, Reason.SCALED_DOWN, f"spec.workers.replicas is {spec.workers.replicas}")
    elif not is_set(builder.status, ConditionType.RUNNING, "True"):
        _shrink(builder)
    elif spec.workers.replicas > builder.size:
        _grow(builder)
    else:
        for pod in builder.spares:
            builder.remove(pod)


def _change(builder: PlanBuilder, workers: int, reason: str, message: str) -> None:
    """Go on with so many workers, from a checkpoint."""
    for pod in (*builder.current, *builder.spares):
        builder.remove(pod)  # with the pod's own grace: the ranks agree and save
    size = f"{builder.size} → {workers} workers" if workers != builder.size else f"{workers} worker(s) anew"
    builder.event("Normal", reason, f"attempt {builder.status.attempt}: {size}: {message}")
    builder.end_attempt(reason, message)
    builder.next_attempt(workers)


def _shrink(builder: PlanBuilder) -> None:
    """Use the places that were found, where the others are not to be had."""
    record = builder.record
    placed = len(builder.placed)
    fewer = worker_counts.at_most(builder.job.spec, placed)
    if placed == builder.size or fewer is None or record is None or record.start_time is None:
        return
    end = record.start_time + SCHEDULING_TIMEOUT
    if builder.now < end:
        builder.wake(end)
        return
    waiting = next((f"{p.name}: {p.waiting}" for p in builder.current if not p.node and p.waiting), "")
    obstacle = builder.observed.obstacle.message if builder.observed.obstacle else "no place was found"
    words = waiting or obstacle
    _change(builder, fewer, Reason.SCALED_DOWN, f"{placed} of {builder.size} workers have a place: {words}")


def _grow(builder: PlanBuilder) -> None:
    """Look for room by pods that do nothing, so that training stops only when there is enough of it."""
    spec, status, record = builder.job.spec, builder.status, builder.record
    assert record is not None
    begin = (record.running_time or builder.now) + MIN_ATTEMPT_AGE
    if status.next_scale_up_time:
        begin = max(begin, status.next_scale_up_time)
    if builder.now < begin:
        builder.wake(begin)
        return
    again, status.next_scale_up_time = status.next_scale_up_time is not None, None
    if any(p.terminal for p in builder.spares) or (builder.observed.obstacle and not again):
        _pause(builder)  # a kubelet or the API server does not want them
        return
    for pod in builder.spares:
        if pod.index >= spec.workers.replicas:
            builder.remove(pod)
    spares = [p for p in builder.spares if p.deleted is None]
    placed = [p for p in spares if p.node]
    more = worker_counts.at_most(spec, builder.size + len(placed))
    since = min((p.scheduled for p in placed if p.scheduled), default=builder.now)
    if more is not None and more == spec.workers.replicas:
        _change(builder, more, Reason.SCALED_UP, f"there is room for all of spec.workers.replicas: {more}")
    elif placed and builder.now >= since + SCHEDULING_TIMEOUT:
        if more is not None and more > builder.size:
            _change(builder, more, Reason.SCALED_UP, f"there is room for {more} of {spec.workers.replicas} workers")
            return
        _pause(builder)  # what they hold helps nobody
    else:
        if placed:
            builder.wake(since + SCHEDULING_TIMEOUT)
        present = {p.index for p in builder.spares}
        job = builder.as_attempted()
        missing = [i for i in range(builder.size, spec.workers.replicas) if i not in present]
        builder.create.extend(pods.spare(job, i, status.attempt, builder.defaults) for i in missing)


def _pause(builder: PlanBuilder) -> None:
    """Look for room again later."""
    for pod in builder.spares:
        builder.remove(pod)
    builder.status.next_scale_up_time = builder.now + SCALE_UP_INTERVAL
    builder.wake(builder.status.next_scale_up_time)
