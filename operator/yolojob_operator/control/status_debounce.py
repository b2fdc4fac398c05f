"""Debounces status writes: minor changes are held back briefly, because the next change usually supersedes them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from yolojob.api.status import JobPhase, YoloTrainingJobStatus
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.lifecycle import Plan

QUIET_SECONDS = 2.0
"""A minor change (counts, the start-up of pods) is written when no newer one has come for this long."""
MAX_WRITES_PER_SECOND = 10
"""The quiet time grows with the number of jobs that wait, so that their writes are spread at this rate."""
MAX_DELAY_SECONDS = 60.0
"""Maximum delay of the oldest unwritten change."""
_START_PHASES = (JobPhase.PENDING, JobPhase.QUEUED, JobPhase.STARTING, JobPhase.RESTARTING)


@dataclass(frozen=True, slots=True)
class Unwritten:
    """The newest change of a job that is not written yet."""

    content: object
    first: float
    """When the first unwritten change came; monotonic clock."""
    latest: float


class StatusDebounce:
    """Unwritten status changes by job."""

    def __init__(self) -> None:
        self._unwritten: dict[Key, Unwritten] = {}

    def __len__(self) -> int:
        """Number of jobs whose status waits to be written."""
        return len(self._unwritten)

    def forget(self, key: Key) -> None:
        self._unwritten.pop(key, None)

    def seconds_to_wait(
        self, key: Key, written: YoloTrainingJobStatus | None, plan: Plan, *, has_obstacle: bool
    ) -> float:
        """Seconds for which the status need not be written yet; 0: write it now.

        Args:
            key: the job's key.
            written: its status as the API server has it.
            plan: the plan, with the new status.
            has_obstacle: whether the previous plan could not create an object.
        """
        before = written or YoloTrainingJobStatus()
        if not _is_minor(written, before, plan, has_obstacle) or plan.status == before:
            self.forget(key)
            return 0.0
        # Without times: a condition that was never written gets a new time in each plan.
        conditions = [(c.type, c.status, c.reason, c.message) for c in plan.status.conditions]
        now, content = time.monotonic(), (plan.status.phase, plan.status.workers, conditions)
        known = self._unwritten.get(key)
        if known is None or known.content != content:
            known = self._unwritten[key] = Unwritten(content, known.first if known else now, now)
        quiet = QUIET_SECONDS + (len(self._unwritten) - 1) / MAX_WRITES_PER_SECOND
        left = min(known.latest + quiet, known.first + MAX_DELAY_SECONDS) - now
        if left <= 0:
            self.forget(key)
        return max(left, 0.0)


def _is_minor(
    written: YoloTrainingJobStatus | None, before: YoloTrainingJobStatus, plan: Plan, has_obstacle: bool
) -> bool:
    """Whether the status of this plan may be written later."""
    if plan.has_actions:
        # The first pods follow from the spec alone: after a crash the next plan creates the same ones.
        is_first = written is None and bool(plan.create) and not (plan.delete or plan.events or plan.release)
        return is_first and not has_obstacle
    is_starting = plan.status.phase in _START_PHASES and before.phase in _START_PHASES
    is_same = plan.status.phase == before.phase and plan.status.progress == before.progress
    is_same_attempt = plan.status.attempt == before.attempt
    return (is_starting or is_same) and (is_same_attempt or before.attempt == 0)
