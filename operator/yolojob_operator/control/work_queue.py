"""When each job is planned next: a queue, pauses between the plans of a job, and timers for what is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from yolojob_operator.kube.types import Key

MIN_INTERVAL_SECONDS = 0.04
MIN_INTERVAL_SECONDS_PER_JOB = 0.002
"""Between two plans of a job; the second for each job that is on its way. Its pods' news come in flocks: one plan is for all."""


class WorkQueue:
    """Jobs that are to be planned, at most one at a time each."""

    def __init__(self) -> None:
        self._ready: dict[Key, None] = {}
        """Jobs that can be taken, the first first."""
        self._tickets = asyncio.Semaphore(0)
        """One for each that was ever ready; there may be more of them than jobs."""
        self._queued: dict[Key, float] = {}
        """Jobs that are ready, or about to be, and since when."""
        self._pauses: dict[Key, asyncio.TimerHandle] = {}
        """Those that are about to come."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        """When each job is due at the latest."""
        self._planned: dict[Key, float] = {}
        """When each job was planned last."""
        self._active: set[Key] = set()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._queued)

    def stop(self) -> None:
        for timer in (*self._timers.values(), *self._pauses.values()):
            timer.cancel()

    def forget(self, key: Key) -> None:
        """A job is no more."""
        for memory in (self._planned, self._ready, self._queued):
            memory.pop(key, None)
        if pause := self._pauses.pop(key, None):
            pause.cancel()
        self.cancel(key)

    def wake(self, key: Key, on_their_way: int) -> None:
        """Plan this job soon.

        Args:
            key: the job's.
            on_their_way: how many jobs there are whose news are yet to settle.
        """
        if key in self._queued:
            return
        now = time.monotonic()
        self._queued[key] = now
        pause = self._planned.get(key, 0.0) + MIN_INTERVAL_SECONDS + MIN_INTERVAL_SECONDS_PER_JOB * on_their_way - now
        if pause > 0:
            self._pauses[key] = asyncio.get_running_loop().call_later(pause, self._enqueue, key)
        else:
            self._enqueue(key)

    def wake_in(self, key: Key, seconds: float) -> None:
        """Plan this job after so long, if it is not due before."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, 0.0)
        if timer := self._timers.get(key):
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._due, key)

    def cancel(self, key: Key) -> None:
        """What was due is not any more."""
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def take(self, turn: Callable[[], Awaitable[None]]) -> tuple[Key, float]:
        """The next job that nobody plans now, and the seconds for which it has waited; `done` gives it back.

        Args:
            turn: returns when it is on us to plan.
        """
        while True:
            await self._tickets.acquire()
            await turn()
            key = next((key for key in self._ready if key not in self._active), None)
            if key is not None:
                break
            if self._ready:  # they stay there for when those that plan them are done
                self._tickets.release()
                await asyncio.sleep(0.01)
        del self._ready[key]
        now = time.monotonic()
        self._active.add(key)
        self._planned[key] = now
        return key, now - self._queued.pop(key, now)

    def done(self, key: Key) -> None:
        self._active.discard(key)

    def _enqueue(self, key: Key) -> None:
        self._pauses.pop(key, None)
        self._ready[key] = None
        self._tickets.release()

    def _due(self, key: Key) -> None:
        """The moment has come that a plan asked for: it does not wait for more news."""
        self._timers.pop(key, None)
        if pause := self._pauses.get(key):
            pause.cancel()
            self._enqueue(key)
        elif key not in self._queued:
            self._queued[key] = time.monotonic()
            self._enqueue(key)
