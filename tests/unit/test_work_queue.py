"""The work queue: when each job is planned next."""

from __future__ import annotations

import asyncio
import time

import pytest
from support import fake_time
from yolojob_operator.control.work_queue import WorkQueue

KEY, OTHER = ("default", "digits"), ("default", "letters")


async def lead() -> None:
    """This operator is always the leader."""


async def take(queue: WorkQueue, seconds: float = 2.0) -> tuple[str, str]:
    """The next job, within a deadline in fake time."""
    return (await asyncio.wait_for(queue.take(lead), seconds))[0]


def test_wake_with_several_changes_makes_one_plan_after_a_pause() -> None:
    async def live() -> None:
        queue = WorkQueue()
        queue.wake(KEY, starting_jobs=0)
        start = time.monotonic()
        assert await take(queue) == KEY
        assert time.monotonic() == start, "the first change is planned immediately"
        queue.done(KEY)
        for _ in range(5):
            queue.wake(KEY, starting_jobs=100)
        assert len(queue) == 1
        assert await take(queue) == KEY
        assert time.monotonic() - start > 0.2
        queue.done(KEY)
        assert len(queue) == 0

    fake_time.run(live())


def test_wake_in_when_due_does_not_wait_for_further_changes() -> None:
    async def live() -> None:
        queue = WorkQueue()
        queue.wake(KEY, starting_jobs=0)
        await take(queue)
        queue.done(KEY)
        queue.wake(KEY, starting_jobs=10_000)
        queue.wake_in(KEY, 0.05)
        start = time.monotonic()
        assert await take(queue) == KEY
        assert time.monotonic() - start == pytest.approx(0.05)
        queue.done(KEY)
        with pytest.raises(TimeoutError):
            await take(queue, 60)
        queue.stop()

    fake_time.run(live())


def test_wake_in_called_several_times_uses_the_earliest_time_until_cancelled() -> None:
    async def live() -> None:
        queue = WorkQueue()
        queue.wake_in(KEY, 60)
        queue.wake_in(KEY, 0.05)
        queue.wake_in(KEY, 60)
        assert await take(queue) == KEY
        queue.wake_in(OTHER, 0.05)
        queue.cancel(OTHER)
        with pytest.raises(TimeoutError):
            await take(queue, 600)

    fake_time.run(live())


def test_take_of_a_job_in_progress_waits_and_keeps_its_changes() -> None:
    async def live() -> None:
        queue = WorkQueue()
        queue.wake(KEY, starting_jobs=0)
        await take(queue)
        queue.wake(KEY, starting_jobs=0)
        with pytest.raises(TimeoutError):
            await take(queue)
        queue.wake(KEY, starting_jobs=0)  # another change, while the first one waits
        queue.done(KEY)
        assert len(queue) == 1

    fake_time.run(live())


def test_single_job_of_a_namespace_does_not_wait_behind_the_jobs_of_another() -> None:
    async def live() -> None:
        queue = WorkQueue()
        for number in range(100):
            queue.wake(("busy", f"job-{number}"), starting_jobs=0)
        queue.wake(KEY, starting_jobs=0)
        taken = [await take(queue) for _ in range(4)]
        assert taken == [("busy", "job-0"), KEY, ("busy", "job-1"), ("busy", "job-2")]
        queue.stop()

    fake_time.run(live())
