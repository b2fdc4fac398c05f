"""Which news of a job may wait to be written: mostly the next news makes them old."""

from __future__ import annotations

import time
from dataclasses import dataclass

from yolojob.api.status import JobPhase, YoloTrainingJobStatus
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.lifecycle import Plan

QUIET_SECONDS = 2.0
MAX_WRITES_PER_SECOND = 10
MAX_DELAY_SECONDS = 60.0
"""Counts, and how far pods are on their way to run, are written when nothing newer has come for a while. The more jobs are on
their way, the longer that is, and no longer than the last of these."""
_ON_ITS_WAY = (JobPhase.PENDING, JobPhase.QUEUED, JobPhase.STARTING, JobPhase.RESTARTING)


@dataclass(frozen=True, slots=True)
class Unwritten:
    """The newest of a job that is not written yet."""

    news: object
    first: float
    """When the first came that is not written."""
    latest: float


class StatusDebounce:
    """What is not written yet, by job."""

    def __init__(self) -> None:
        self._unwritten: dict[Key, Unwritten] = {}

    def __len__(self) -> int:
        """Jobs whose status waits to be written."""
        return len(self._unwritten)

    def forget(self, key: Key) -> None:
        self._unwritten.pop(key, None)

    def seconds_to_wait(self, key: Key, written: YoloTrainingJobStatus | None, made: Plan, *, hindered: bool) -> float:
        """Seconds for which the status need not be written yet; 0: now.

        Args:
            key: the job's.
            written: its status as the API server has it.
            made: the plan, with the status that should be.
            hindered: whether something stood in the way of the last plan.
        """
        before = written or YoloTrainingJobStatus()
        same_attempt = made.status.attempt == before.attempt
        if made.has_actions:
            # The first gang is made from nothing but the spec: whoever crashes now, makes the same again.
            is_first = written is None and bool(made.create) and not (made.delete or made.events or made.release)
            minor = is_first and not hindered
        else:
            on_its_way = made.status.phase in _ON_ITS_WAY and before.phase in _ON_ITS_WAY
            same = made.status.phase == before.phase and made.status.progress == before.progress
            minor = (on_its_way or same) and (same_attempt or before.attempt == 0)
        if not minor or made.status == before:
            self.forget(key)
            return 0.0
        # What was never written is said anew in each plan, with new times.
        words = [(c.type, c.status, c.reason, c.message) for c in made.status.conditions]
        now, news = time.monotonic(), (made.status.phase, made.status.workers, words)
        known = self._unwritten.get(key)
        if known is None or known.news != news:
            known = self._unwritten[key] = Unwritten(news, known.first if known else now, now)
        quiet = QUIET_SECONDS + (len(self._unwritten) - 1) / MAX_WRITES_PER_SECOND
        left = min(known.latest + quiet, known.first + MAX_DELAY_SECONDS) - now
        if left <= 0:
            self.forget(key)
        return max(left, 0.0)
