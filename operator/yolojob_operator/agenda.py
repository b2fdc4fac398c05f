"""When each job is planned next: a queue, pauses between the plans of a job, and timers for what is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from yolojob_operator.facts import Key

PAUSE_SECONDS = 0.04
PAUSE_PER_JOB = 0.002
"""Between two plans of a job; the second for each job that is on its way. Its pods' news come in flocks: one plan is for all."""


class Agenda:
    """Jobs that are to be planned, at most one at a time each."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: dict[Key, float] = {}
        """Jobs in the queue, or about to come there, and since when."""
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
        """A job is no more. Where it is queued already, whoever takes it finds that out."""
        self._planned.pop(key, None)
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
        pause = self._planned.get(key, 0.0) + PAUSE_SECONDS + PAUSE_PER_JOB * on_their_way - now
        if pause > 0:
            self._pauses[key] = asyncio.get_running_loop().call_later(pause, self._enqueue, key)
        else:
            self._queue.put_nowait(key)

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
            key = await self._queue.get()
            await turn()
            if key not in self._active:
                break
            self._queue.put_nowait(key)  # it stays queued for when that is done
            await asyncio.sleep(0.01)
        now = time.monotonic()
        self._active.add(key)
        self._planned[key] = now
        return key, now - self._queued.pop(key, now)

    def done(self, key: Key) -> None:
        self._active.discard(key)

    def _enqueue(self, key: Key) -> None:
        self._pauses.pop(key, None)
        self._queue.put_nowait(key)

    def _due(self, key: Key) -> None:
        """The moment has come that a plan asked for: it does not wait for more news."""
        self._timers.pop(key, None)
        if pause := self._pauses.get(key):
            pause.cancel()
            self._enqueue(key)
        elif key not in self._queued:
            self._queued[key] = time.monotonic()
            self._queue.put_nowait(key)
