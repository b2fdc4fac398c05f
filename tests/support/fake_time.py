"""Fake time: an event loop whose clock jumps to the next timer, so that a test of minutes takes milliseconds.

The clock stands still while callbacks are ready. When nothing is ready and no I/O has arrived, it jumps to the next
timer. Hence results do not depend on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")
START_SECONDS = 1000.0
"""Reading of a fake monotonic clock at the start of a test."""
EPOCH_SECONDS = 1_767_268_800.0
"""Unix time of the fake wall clock when the monotonic clock reads 0: 2026-01-01T12:00:00Z."""


class FakeClock:
    """A monotonic clock that only the test advances."""

    def __init__(self) -> None:
        self.now = START_SECONDS

    def read(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the clock where another selector would wait for a timer."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise RuntimeError("deadlock: no callback is ready, and no timer is set that could make one ready")
        self._clock.advance(timeout)
        return events


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a fake clock. Threads and sockets get no time to answer, so tests with these need a real
    loop.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(_JumpingSelector(clock))
        self._fake_clock = clock

    def time(self) -> float:
        return self._fake_clock.now


@contextmanager
def frozen_monotonic() -> Iterator[FakeClock]:
    """Replace `time.monotonic`, and the clock that counts suspended time, by a fake clock, which the test advances."""
    clock = FakeClock()
    with (
        mock.patch.object(time, "monotonic", clock.read),
        mock.patch.object(time, "clock_gettime", side_effect=lambda _: clock.read()),
    ):
        yield clock


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in fake time; `time.monotonic` reads the loop's clock meanwhile.

    Raises:
        RuntimeError: the coroutine waits for something that can never happen.
    """
    with frozen_monotonic() as clock, asyncio.Runner(loop_factory=lambda: FakeTimeLoop(clock)) as runner:
        return runner.run(main)


async def eventually(condition: Callable[[], T], what: str, seconds: float = 30.0, every: float = 0.02) -> T:
    """The first truthy result of the condition within a deadline in fake time.

    Raises:
        AssertionError: the condition was not fulfilled by the deadline.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s: {what}"
        await asyncio.sleep(every)
    return result


class FakeDatetime(datetime):
    """`datetime` whose `now` follows `time.monotonic`, which is fake in the tests that use this class."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> FakeDatetime:
        return cls.fromtimestamp(EPOCH_SECONDS + time.monotonic(), tz)
