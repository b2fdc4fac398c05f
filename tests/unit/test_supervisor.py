"""The supervisor: it ends a run of kopf that does not end by itself."""

from __future__ import annotations

import asyncio

import pytest
from support import fake_time
from yolojob_operator.kopf_app import supervisor


class RunFailed(Exception):
    """The error that ends a run."""


async def stuck_watch(ignored_cancellations: int) -> None:
    """A watch that ignores its first cancellations."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ignored_cancellations -= 1
            if ignored_cancellations < 0:
                raise


async def kopf_run(cleaned: asyncio.Event, ignored_cancellations: int) -> None:
    """Ends as kopf does: it calls our cleanup handler, cancels its own tasks once, and waits for them."""
    watch = asyncio.create_task(stuck_watch(ignored_cancellations))
    await asyncio.sleep(0)  # let the watch start
    cleaned.set()
    watch.cancel()
    await asyncio.wait((watch,))
    raise RunFailed


@pytest.mark.parametrize("cancellations", [0, 1, 3])
def test_ended_with_a_stuck_watch_cancels_it_again(cancellations: int) -> None:
    async def live() -> None:
        cleaned = asyncio.Event()
        unrelated = asyncio.create_task(asyncio.Event().wait())
        with pytest.raises(RunFailed):
            await asyncio.wait_for(supervisor.run_to_end(kopf_run(cleaned, cancellations), cleaned), 60)
        assert not unrelated.cancelled(), "this task is not kopf's"
        assert not unrelated.cancelling()
        unrelated.cancel()

    fake_time.run(live())


def test_ended_with_a_run_that_never_ends_exits_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the kubelet restarts the container."""
    monkeypatch.setattr(supervisor, "MAX_CANCELLATIONS", 1)

    async def live() -> None:
        cleaned = asyncio.Event()
        # It ignores kopf's cancellation and the supervisor's; the third one, at the end of the event loop, ends it.
        await supervisor.run_to_end(kopf_run(cleaned, 2), cleaned)

    with pytest.raises(SystemExit):
        fake_time.run(live())


def test_ended_while_kopf_runs_sets_no_deadline() -> None:
    """Only the end of a run has a deadline."""

    async def live() -> None:
        end = asyncio.Event()
        running = asyncio.create_task(supervisor.run_to_end(end.wait(), asyncio.Event()))
        done, _ = await asyncio.wait((running,), timeout=100 * supervisor.SHUTDOWN_TIMEOUT_SECONDS)
        assert not done
        end.set()
        await running

    fake_time.run(live())
