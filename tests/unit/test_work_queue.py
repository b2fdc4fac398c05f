"""When each job is planned next."""

from __future__ import annotations

import asyncio
import time

import pytest
from yolojob_operator.control.work_queue import WorkQueue

KEY, OTHER = ("default", "digits"), ("default", "letters")


async def ours() -> None:
    """It is always our turn."""


async def take(agenda: WorkQueue, seconds: float = 2.0) -> tuple[str, str]:
    return (await asyncio.wait_for(agenda.take(ours), seconds))[0]


def test_news_in_a_flock_make_one_plan_after_a_pause() -> None:
    async def live() -> None:
        agenda = WorkQueue()
        agenda.wake(KEY, on_their_way=0)
        assert await take(agenda, 0.02) == KEY, "the first at once"
        agenda.done(KEY)
        began = time.monotonic()
        for _ in range(5):
            agenda.wake(KEY, on_their_way=100)
        assert len(agenda) == 1
        assert await take(agenda) == KEY
        assert time.monotonic() - began > 0.2
        agenda.done(KEY)
        assert len(agenda) == 0

    asyncio.run(live())


def test_a_due_plan_waits_for_no_flock() -> None:
    async def live() -> None:
        agenda = WorkQueue()
        agenda.wake(KEY, on_their_way=0)
        await take(agenda)
        agenda.done(KEY)
        agenda.wake(KEY, on_their_way=10_000)
        agenda.wake_in(KEY, 0.05)
        assert await take(agenda) == KEY
        agenda.done(KEY)
        with pytest.raises(TimeoutError):
            await take(agenda, 0.1)
        agenda.stop()

    asyncio.run(live())


def test_the_earliest_moment_counts_until_it_is_cancelled() -> None:
    async def live() -> None:
        agenda = WorkQueue()
        agenda.wake_in(KEY, 60)
        agenda.wake_in(KEY, 0.05)
        agenda.wake_in(KEY, 60)
        assert await take(agenda) == KEY
        agenda.wake_in(OTHER, 0.05)
        agenda.cancel(OTHER)
        with pytest.raises(TimeoutError):
            await take(agenda, 0.2)

    asyncio.run(live())


def test_a_job_is_planned_by_one_at_a_time_and_loses_no_news() -> None:
    async def live() -> None:
        agenda = WorkQueue()
        agenda.wake(KEY, on_their_way=0)
        await take(agenda)
        agenda.wake(KEY, on_their_way=0)
        with pytest.raises(TimeoutError):
            await take(agenda, 0.2)
        agenda.wake(KEY, on_their_way=0)  # more news, while the old ones wait
        agenda.done(KEY)
        assert len(agenda) == 1

    asyncio.run(live())
