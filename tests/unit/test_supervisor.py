"""A round of kopf's that does not find its end."""

from __future__ import annotations

import asyncio

import pytest
from yolojob_operator.kopf_app import supervisor


class Fault(Exception):
    """What ends a round."""


async def deaf_watch(cancellations: int) -> None:
    """Takes so many cancellations for something else."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancellations -= 1
            if cancellations < 0:
                raise


async def round_of(cleaned: asyncio.Event, cancellations: int) -> None:
    """As kopf ends: our handlers first, then its tasks are cancelled once, and waited for."""
    watch = asyncio.create_task(deaf_watch(cancellations))
    await asyncio.sleep(0)  # it begins
    cleaned.set()
    watch.cancel()
    await asyncio.wait((watch,))
    raise Fault


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHUTDOWN_TIMEOUT_SECONDS", 0.1)


@pytest.mark.parametrize("cancellations", [0, 1, 3])
def test_a_watch_that_does_not_hear_is_cancelled_again(cancellations: int) -> None:
    async def live() -> None:
        cleaned = asyncio.Event()
        bystander = asyncio.create_task(asyncio.Event().wait())
        with pytest.raises(Fault):
            await supervisor.ended(round_of(cleaned, cancellations), cleaned)
        assert not bystander.cancelled(), "it is none of kopf's"
        assert not bystander.cancelling()
        bystander.cancel()

    asyncio.run(asyncio.wait_for(live(), 20))


def test_a_round_that_never_ends_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet starts another one."""
    monkeypatch.setattr(supervisor, "MAX_CANCELLATIONS", 1)

    async def live() -> None:
        cleaned = asyncio.Event()
        await supervisor.ended(round_of(cleaned, 3), cleaned)

    with pytest.raises(SystemExit):
        asyncio.run(asyncio.wait_for(live(), 20))


def test_a_round_that_runs_is_left_alone() -> None:
    """However long: there is a deadline only for its end."""

    async def live() -> None:
        end = asyncio.Event()
        running = asyncio.create_task(supervisor.ended(end.wait(), asyncio.Event()))
        done, _ = await asyncio.wait((running,), timeout=3 * supervisor.SHUTDOWN_TIMEOUT_SECONDS)
        assert not done
        end.set()
        await running

    asyncio.run(live())
