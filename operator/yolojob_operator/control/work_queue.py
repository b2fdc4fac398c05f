"""Queue of jobs to reconcile: at most one reconcile per job at a time, a minimum interval between two, and timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from yolojob_operator.kube.types import Key

MIN_INTERVAL_SECONDS = 0.04
MIN_INTERVAL_SECONDS_PER_JOB = 0.002
"""Minimum interval between two reconciles of a job, plus an increment per starting job. Pod events come in bursts; one
reconcile handles the burst."""


class WorkQueue:
    """Jobs that wait to be reconciled."""

    def __init__(self) -> None:
        self._ready: dict[str, dict[Key, None]] = {}
        """Jobs that can be taken, in their order, by namespace. The namespace that was served last comes last; none is
        empty."""
        self._tickets = asyncio.Semaphore(0)
        """One for each job that became ready; there may be more tickets than ready jobs."""
        self._queued: dict[Key, float] = {}
        """Jobs that are ready or delayed, and since when; monotonic clock."""
        self._delays: dict[Key, asyncio.TimerHandle] = {}
        """Jobs that become ready after their minimum interval."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        """When each job must be reconciled at the latest."""
        self._taken_at: dict[Key, float] = {}
        """When each job was taken last; monotonic clock."""
        self._active: set[Key] = set()
        """Jobs that are being reconciled."""

    def __len__(self) -> int:
        """Number of jobs that wait."""
        return len(self._queued)

    def stop(self) -> None:
        for timer in (*self._timers.values(), *self._delays.values()):
            timer.cancel()

    def forget(self, key: Key) -> None:
        """Drop everything about a job that no longer exists."""
        for memory in (self._taken_at, self._queued):
            memory.pop(key, None)
        self._unready(key)
        if delay := self._delays.pop(key, None):
            delay.cancel()
        self.cancel(key)

    def wake(self, key: Key, starting_jobs: int) -> None:
        """Reconcile this job soon.

        Args:
            key: the job's key.
            starting_jobs: number of jobs whose status is still changing often.
        """
        if key in self._queued:
            return
        now = time.monotonic()
        self._queued[key] = now
        interval = MIN_INTERVAL_SECONDS + MIN_INTERVAL_SECONDS_PER_JOB * starting_jobs
        delay = self._taken_at.get(key, 0.0) + interval - now
        if delay > 0:
            self._delays[key] = asyncio.get_running_loop().call_later(delay, self._enqueue, key)
        else:
            self._enqueue(key)

    def wake_in(self, key: Key, seconds: float) -> None:
        """Reconcile this job after this time, unless it is due earlier."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, 0.0)
        if timer := self._timers.get(key):
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._due, key)

    def cancel(self, key: Key) -> None:
        """Cancel the timer of this job."""
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def take(self, until_leader: Callable[[], Awaitable[None]]) -> tuple[Key, float]:
        """Wait for the next job that is not being reconciled. Returns its key, and the seconds for which it has waited.

        The caller must call `done` afterwards.

        Args:
            until_leader: returns once this operator is the leader.
        """
        while True:
            await self._tickets.acquire()
            await until_leader()
            key = next((k for jobs in self._ready.values() for k in jobs if k not in self._active), None)
            if key is not None:
                break
            if self._ready:  # all ready jobs are still being reconciled; they stay queued
                self._tickets.release()
                await asyncio.sleep(0.01)
        self._unready(key)
        if others := self._ready.pop(key[0], None):
            self._ready[key[0]] = others  # now it is the turn of the other namespaces
        now = time.monotonic()
        self._active.add(key)
        self._taken_at[key] = now
        return key, now - self._queued.pop(key, now)

    def done(self, key: Key) -> None:
        self._active.discard(key)

    def _enqueue(self, key: Key) -> None:
        self._delays.pop(key, None)
        self._ready.setdefault(key[0], {})[key] = None
        self._tickets.release()

    def _unready(self, key: Key) -> None:
        if jobs := self._ready.get(key[0]):
            jobs.pop(key, None)
            if not jobs:
                del self._ready[key[0]]

    def _due(self, key: Key) -> None:
        """The timer of a job has expired: the job does not wait for its minimum interval."""
        self._timers.pop(key, None)
        if delay := self._delays.get(key):
            delay.cancel()
            self._enqueue(key)
        elif key not in self._queued:
            self._queued[key] = time.monotonic()
            self._enqueue(key)
