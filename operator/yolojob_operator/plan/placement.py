"""Rules of where and how large: the pods of an attempt, and attempts of another size (spec.elastic)."""

from __future__ import annotations

from datetime import timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import ConditionType
from yolojob_operator.objects import gang_scheduling, pods
from yolojob_operator.plan import worker_counts
from yolojob_operator.plan.builder import Draft
from yolojob_operator.plan.conditions import is_set

RETRY = timedelta(seconds=10)
"""Wait before something that the API server has refused is tried again."""
PATIENCE = timedelta(seconds=20)
"""Time for the scheduler to find places for all workers, before those that it found are used alone."""
SHORT_LIFE = timedelta(seconds=30)
"""An attempt that was begun lives so long at least, before a larger one replaces it: its start shall not be in vain."""
GROWTH_PAUSE = timedelta(minutes=5)
"""Wait after a search for more room that found too little."""


def fill(draft: Draft) -> None:
    """Create what is missing of the current attempt."""
    status, record = draft.status, draft.record
    if draft.refused:
        return
    if status.next_attempt_time:
        if draft.now < status.next_attempt_time:
            draft.wake(status.next_attempt_time)
            return
        status.next_attempt_time = None
    if record is not None and record.start_time is None and not draft.current:
        # It may have been scaled down since the size was decided. Room for more is looked for once it runs.
        record.workers = worker_counts.closest(draft.job.spec, min(record.workers, draft.job.spec.workers.replicas))
    missing = draft.missing
    if record is None or not missing:
        return
    if any(p.generation not in (0, draft.job.metadata.generation) for p in draft.current):
        # An edit changes no attempt that has begun: all of its pods are made of one specification.
        size = worker_counts.closest(draft.job.spec, draft.size)
        _change(draft, size, Reason.SPEC_CHANGED, "the specification was edited before all workers were there")
        return
    if draft.observed.obstacle:
        draft.condition(
            ConditionType.SCHEDULED, "False", draft.observed.obstacle.reason, draft.observed.obstacle.message
        )
        draft.wake(draft.now + RETRY)
    if record.start_time is None:
        record.start_time = draft.now
        seconds = draft.job.spec.run_policy.pre_running_deadline_seconds
        if seconds is not None:
            draft.wake(draft.now + timedelta(seconds=seconds))
    job = draft.as_attempted()
    workers = [pods.worker(job, i, status.attempt, draft.defaults) for i in missing]
    if not draft.current:
        draft.create.append(pods.service(job))
        if group := gang_scheduling.pod_group(job, workers[0], pods.owner_reference(job)):
            draft.create.append(group)
    draft.create.extend(workers)


def resize(draft: Draft) -> None:
    """End the current attempt where one of another size is due."""
    spec, record = draft.job.spec, draft.record
    for pod in draft.spares:
        if pod.deleted or spec.elastic is None or draft.refused:
            draft.remove(pod)
    if record is None or record.start_time is None or draft.refused:
        return
    if spec.elastic is None:
        if spec.workers.replicas != draft.size:  # changed in a suspension that nobody saw
            reason = Reason.SCALED_UP if spec.workers.replicas > draft.size else Reason.SCALED_DOWN
            _change(draft, spec.workers.replicas, reason, f"spec.workers.replicas is {spec.workers.replicas}")
        return
    if spec.workers.replicas < draft.size:
        _change(draft, spec.workers.replicas, Reason.SCALED_DOWN, f"spec.workers.replicas is {spec.workers.replicas}")
    elif not is_set(draft.status, ConditionType.RUNNING, "True"):
        _shrink(draft)
    elif spec.workers.replicas > draft.size:
        _grow(draft)
    else:
        for pod in draft.spares:
            draft.remove(pod)


def _change(draft: Draft, workers: int, reason: str, message: str) -> None:
    """Go on with so many workers, from a checkpoint."""
    for pod in (*draft.current, *draft.spares):
        draft.remove(pod)  # with the pod's own grace: the ranks agree and save
    size = f"{draft.size} → {workers} workers" if workers != draft.size else f"{workers} worker(s) anew"
    draft.event("Normal", reason, f"attempt {draft.status.attempt}: {size}: {message}")
    draft.end_attempt(reason, message)
    draft.next_attempt(workers)


def _shrink(draft: Draft) -> None:
    """Use the places that were found, where the others are not to be had."""
    record = draft.record
    placed = len(draft.placed)
    fewer = worker_counts.at_most(draft.job.spec, placed)
    if placed == draft.size or fewer is None or record is None or record.start_time is None:
        return
    end = record.start_time + PATIENCE
    if draft.now < end:
        draft.wake(end)
        return
    waiting = next((f"{p.name}: {p.waiting}" for p in draft.current if not p.node and p.waiting), "")
    obstacle = draft.observed.obstacle.message if draft.observed.obstacle else "no place was found"
    words = waiting or obstacle
    _change(draft, fewer, Reason.SCALED_DOWN, f"{placed} of {draft.size} workers have a place: {words}")


def _grow(draft: Draft) -> None:
    """Look for room by pods that do nothing, so that training stops only when there is enough of it."""
    spec, status, record = draft.job.spec, draft.status, draft.record
    assert record is not None
    begin = (record.running_time or draft.now) + SHORT_LIFE
    if status.next_scale_up_time:
        begin = max(begin, status.next_scale_up_time)
    if draft.now < begin:
        draft.wake(begin)
        return
    again, status.next_scale_up_time = status.next_scale_up_time is not None, None
    if any(p.terminal for p in draft.spares) or (draft.observed.obstacle and not again):
        _pause(draft)  # a kubelet or the API server does not want them
        return
    for pod in draft.spares:
        if pod.index >= spec.workers.replicas:
            draft.remove(pod)
    spares = [p for p in draft.spares if p.deleted is None]
    placed = [p for p in spares if p.node]
    more = worker_counts.at_most(spec, draft.size + len(placed))
    since = min((p.scheduled for p in placed if p.scheduled), default=draft.now)
    if more is not None and more == spec.workers.replicas:
        _change(draft, more, Reason.SCALED_UP, f"there is room for all of spec.workers.replicas: {more}")
    elif placed and draft.now >= since + PATIENCE:
        if more is not None and more > draft.size:
            _change(draft, more, Reason.SCALED_UP, f"there is room for {more} of {spec.workers.replicas} workers")
            return
        _pause(draft)  # what they hold helps nobody
    else:
        if placed:
            draft.wake(since + PATIENCE)
        present = {p.index for p in draft.spares}
        job = draft.as_attempted()
        missing = [i for i in range(draft.size, spec.workers.replicas) if i not in present]
        draft.create.extend(pods.spare(job, i, status.attempt, draft.defaults) for i in missing)


def _pause(draft: Draft) -> None:
    """Look for room again later."""
    for pod in draft.spares:
        draft.remove(pod)
    draft.status.next_scale_up_time = draft.now + GROWTH_PAUSE
    draft.wake(draft.status.next_scale_up_time)
