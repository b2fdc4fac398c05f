"""Who works, when the API server is slow: never two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import eventually
from yolojob_operator.control import leader_election as module
from yolojob_operator.control.leader_election import Lease, keep
from yolojob_operator.kube.api_client import ApiError

NAMESPACE = "default"


class Server:
    """Keeps one lease for each namespace, and answers as late as it is told."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.delay = 0.0
        self.forbidden: set[str] = set()
        self.version = 0
        self.writing = 0
        """Writes under way."""

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        await asyncio.sleep(self.delay)
        if namespace in self.forbidden:
            raise ApiError(403, "Forbidden", f'leases "{name}" is forbidden: cannot get resource "leases"')
        return self.leases.get(namespace)

    async def create_lease(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        await asyncio.sleep(self.delay)
        return self._take(lease, None)

    async def replace_lease(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        self.writing += 1
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.writing -= 1
        return self._take(lease, lease["metadata"]["resourceVersion"])

    def _take(self, lease: dict[str, Any], known: str | None) -> dict[str, Any] | None:
        namespace = lease["metadata"]["namespace"]
        there = self.leases.get(namespace)
        if (there["metadata"]["resourceVersion"] if there else None) != known:
            return None
        self.version += 1
        made = {**lease, "metadata": {**lease["metadata"], "resourceVersion": str(self.version)}}
        self.leases[namespace] = made
        return made


async def becomes(look: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """`support.eventually`, for a loop that goes on meanwhile."""
    await asyncio.to_thread(eventually, look, what, seconds, 0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of all times."""
    for name in ("LEASE_DURATION_SECONDS", "RENEW_DEADLINE_SECONDS", "RENEW_INTERVAL_SECONDS", "RETRY_INTERVAL_SECONDS"):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


def test_who_cannot_renew_in_time_has_stopped_by_then(quick: None) -> None:
    """An answer that comes just in time, and then none: the work ends with the time that was won, not with the next try."""
    server, until = Server(), [0.0]

    async def live() -> None:
        keeper = asyncio.create_task(
            keep([Lease(server, NAMESPACE, "me")], lambda moment: until.__setitem__(0, moment))  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.1)
        assert until[0] > time.monotonic()
        server.delay = 0.4  # a request each time, of the second that it is good for
        await asyncio.sleep(1.3)
        assert until[0] > time.monotonic()
        server.delay = 60
        await asyncio.sleep(module.RENEW_DEADLINE_SECONDS + 0.2)
        assert until[0] == 0, "told, and not before the next answer"
        server.delay = 0
        await asyncio.sleep(module.RENEW_DEADLINE_SECONDS + 0.5)
        assert until[0] > time.monotonic(), "and it comes back"
        keeper.cancel()

    asyncio.run(live())


def test_a_slow_server_is_asked_once_for_each_renewal(quick: None) -> None:
    """4 s for a request: two of them, one after the other, would take as long as the lease may."""
    server, told = Server(), list[bool]()

    async def live() -> None:
        lease = Lease(server, NAMESPACE, "me")  # type: ignore[arg-type]
        keeper = asyncio.create_task(keep([lease], lambda moment: told.append(moment > time.monotonic())))
        await becomes(lambda: lease.held, "it leads")
        server.delay = 0.4
        begun = len(told)
        await becomes(lambda: len(told) - begun >= 5, "it is renewed again and again")
        assert all(told[begun:])
        assert lease.held
        keeper.cancel()

    asyncio.run(live())


def test_what_somebody_else_wrote_is_looked_at_before_it_is_renewed() -> None:
    server = Server()

    async def live() -> None:
        lease = Lease(server, NAMESPACE, "me")  # type: ignore[arg-type]
        for _ in range(2):
            await lease.tend()
        theirs = server.leases[NAMESPACE]
        server._take(
            {**theirs, "spec": {**theirs["spec"], "holderIdentity": "other"}}, theirs["metadata"]["resourceVersion"]
        )
        await lease.tend()
        assert not lease.held
        assert server.leases[NAMESPACE]["spec"]["holderIdentity"] == "other"

    asyncio.run(live())


def test_a_namespace_that_went_with_our_rights_stops_no_other(quick: None) -> None:
    server, until = Server(), [0.0]
    leases = [Lease(server, name, "me") for name in ("a", "b")]  # type: ignore[arg-type]

    async def live() -> None:
        keeper = asyncio.create_task(keep(leases, lambda moment: until.__setitem__(0, moment)))
        await asyncio.sleep(0.1)
        server.forbidden.add("a")
        await asyncio.sleep(2)
        assert until[0] > time.monotonic()
        server.forbidden.clear()
        await asyncio.sleep(1)
        assert until[0] > time.monotonic()
        assert all(lease.held for lease in leases), "and it is taken again when it is back"
        keeper.cancel()

    asyncio.run(live())


def test_of_two_one_works_at_any_moment(quick: None) -> None:
    """However late the answers are."""
    server = Server()
    until = {"a": 0.0, "b": 0.0}

    async def live() -> None:
        keepers = [
            asyncio.create_task(
                keep([Lease(server, NAMESPACE, me)], lambda moment, me=me: until.__setitem__(me, moment))
            )  # type: ignore[arg-type,misc]
            for me in until
        ]
        worked: set[str] = set()
        for i in range(400):
            server.delay = (0.0, 0.1, 0.3, 0.6)[i // 20 % 4]
            await asyncio.sleep(0.01)
            working = {me for me, moment in until.items() if moment > time.monotonic()}
            assert len(working) <= 1, until
            worked |= working
        assert worked
        for keeper in keepers:
            keeper.cancel()

    asyncio.run(live())


def test_a_refusal_that_passes_ends_no_work_for_good(quick: None) -> None:
    """An API server that has just begun knows no rights yet."""
    server = Server()

    async def live() -> None:
        until = [0.0]
        lease = Lease(server, NAMESPACE, "me")  # type: ignore[arg-type]
        keeper = asyncio.create_task(keep([lease], lambda moment: until.__setitem__(0, moment)))
        await becomes(lambda: until[0], "it leads")
        server.forbidden = {NAMESPACE}
        there = server.leases[NAMESPACE]
        server._take(there, there["metadata"]["resourceVersion"])  # changed by somebody, so that it is looked at
        await becomes(lambda: not lease.exists, "it is taken for gone")
        assert until[0] == 0
        server.forbidden = set()
        await becomes(lambda: until[0] > time.monotonic(), "it leads again")
        keeper.cancel()

    asyncio.run(live())


def test_a_refusal_that_passes_makes_no_second_leader(quick: None) -> None:
    server, told = Server(), list[float]()

    async def live() -> None:
        small = Lease(server, "a", "small")  # type: ignore[arg-type]
        holder = asyncio.create_task(keep([small], lambda _: None))
        await becomes(lambda: small.held, "one leads")
        server.forbidden = {"a"}
        both = [Lease(server, name, "big") for name in ("a", "b")]  # type: ignore[arg-type]
        waiter = asyncio.create_task(keep(both, told.append))
        await becomes(lambda: told, "the other was refused")
        server.forbidden = set()
        before = len(told)
        await becomes(lambda: len(told) >= before + 3, "and has looked since")
        assert small.held
        assert not any(told)
        for task in (holder, waiter):
            task.cancel()

    asyncio.run(live())


def test_what_is_released_is_not_taken_by_a_renewal_under_way(quick: None) -> None:
    server = Server()

    async def live() -> None:
        lease = Lease(server, NAMESPACE, "me")  # type: ignore[arg-type]
        keeper = asyncio.create_task(keep([lease], lambda _: None))
        await becomes(lambda: lease.held, "it leads")
        server.delay = 0.3
        await becomes(lambda: server.writing, "a renewal is on its way")
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        assert not server.writing, "it goes with its keeper"
        server.delay = 0
        await lease.release()
        assert server.leases[NAMESPACE]["spec"]["holderIdentity"] == ""
        assert asyncio.all_tasks() == {asyncio.current_task()}, "and nobody is left who could take it"

    asyncio.run(live())
