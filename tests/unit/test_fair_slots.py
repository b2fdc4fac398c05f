"""Slots for requests: their number, and the turns of the namespaces."""

from __future__ import annotations

import asyncio

import pytest
from yolojob_operator.kube.fair_slots import FairSlots


def order(slots: int, namespaces: list[str]) -> list[str]:
    """Returns the order in which requests of these namespaces get a slot, if all of them ask at once."""

    async def run() -> list[str]:
        fair, served = FairSlots(slots), []

        async def request(namespace: str) -> None:
            async with fair.slot(namespace):
                served.append(namespace)
                await asyncio.sleep(0)

        await asyncio.gather(*map(request, namespaces))
        return served

    return asyncio.run(run())


def test_single_request_of_a_namespace_does_not_wait_behind_a_thousand_of_another() -> None:
    assert order(1, ["a"] * 1000 + ["b"]).index("b") <= 2


def test_namespaces_take_turns() -> None:
    assert "".join(order(1, list("aaaabbcc"))) == "aabcabca"


def test_requests_of_one_namespace_keep_their_order_and_use_all_slots() -> None:
    async def run() -> tuple[int, list[int]]:
        fair, running, most, served = FairSlots(3), 0, 0, []

        async def request(number: int) -> None:
            nonlocal running, most
            async with fair.slot("a"):
                running += 1
                most = max(most, running)
                served.append(number)
                await asyncio.sleep(0)
                running -= 1

        await asyncio.gather(*map(request, range(20)))
        return most, served

    assert asyncio.run(run()) == (3, list(range(20)))


@pytest.mark.parametrize("at_its_turn", [False, True])
def test_cancelled_waiter_loses_no_slot(at_its_turn: bool) -> None:
    async def run() -> None:
        fair = FairSlots(1)

        async def request() -> None:
            async with fair.slot("a"):
                raise AssertionError("a cancelled request runs")

        async with fair.slot("a"):
            waiter = asyncio.create_task(request())
            await asyncio.sleep(0)
            if not at_its_turn:
                waiter.cancel()
        waiter.cancel()  # the slot may be its own by now
        with pytest.raises(asyncio.CancelledError):
            await waiter
        async with asyncio.timeout(30), fair.slot("b"):
            pass

    asyncio.run(run())
