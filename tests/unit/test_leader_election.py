"""Leader election: at no moment do two operators lead, however slow the API server is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from support import fake_time
from support.fake_time import eventually
from yolojob_operator.control.leader_election import RENEW_DEADLINE_SECONDS, Leadership, Lease, keep_leases
from yolojob_operator.kube.api_client import ApiError

NAMESPACE = "default"


class Server:
    """An API server with one Lease for each namespace. Each request takes `delay` seconds."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.delay = 0.0
        self.forbidden: set[str] = set()
        self.version = 0
        self.pending_writes = 0

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        await asyncio.sleep(self.delay)
        if namespace in self.forbidden:
            raise ApiError(403, "Forbidden", f'leases "{name}" is forbidden: cannot get resource "leases"')
        return self.leases.get(namespace)

    async def create_lease(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        await asyncio.sleep(self.delay)
        return self.store(lease, None)

    async def replace_lease(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        self.pending_writes += 1
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.pending_writes -= 1
        return self.store(lease, lease["metadata"]["resourceVersion"])

    def store(self, lease: dict[str, Any], expected_version: str | None) -> dict[str, Any] | None:
        """Store the Lease if its current version is the expected one, as the API server does."""
        namespace = lease["metadata"]["namespace"]
        existing = self.leases.get(namespace)
        if (existing["metadata"]["resourceVersion"] if existing else None) != expected_version:
            return None
        self.version += 1
        stored = {**lease, "metadata": {**lease["metadata"], "resourceVersion": str(self.version)}}
        self.leases[namespace] = stored
        return stored

    def change(self, namespace: str, **spec: Any) -> None:
        """Write the Lease as another client would."""
        existing = self.leases[namespace]
        self.store({**existing, "spec": {**existing["spec"], **spec}}, existing["metadata"]["resourceVersion"])


class Observed:
    """What leader election reported: up to which moment of the monotonic clock the operator leads."""

    def __init__(self) -> None:
        self.reports: list[float] = []

    def report(self, until: float) -> None:
        self.reports.append(until)

    @property
    def until(self) -> float:
        return self.reports[-1] if self.reports else 0.0

    @property
    def leads(self) -> bool:
        return self.until > time.monotonic()


def lease(server: Any, namespace: str = NAMESPACE, holder: str = "me") -> Lease:
    return Lease(server, namespace, holder)


def test_leader_that_cannot_renew_in_time_stops_before_its_lease_expires() -> None:
    """Leadership ends when the lease that was won runs out, not when the next request is answered."""
    server, observed = Server(), Observed()

    async def live() -> None:
        keeper = asyncio.create_task(keep_leases([lease(server)], observed.report))
        await asyncio.sleep(1)
        assert observed.leads
        server.delay = 4.0  # of the 10 s for which a renewal is valid
        await asyncio.sleep(13)
        assert observed.leads
        server.delay = 600
        await asyncio.sleep(RENEW_DEADLINE_SECONDS + 2)
        assert observed.until == 0, "reported before the next request is answered"
        server.delay = 0
        await asyncio.sleep(RENEW_DEADLINE_SECONDS + 5)
        assert observed.leads, "it leads again when the API server answers"
        keeper.cancel()

    fake_time.run(live())


def test_lease_with_slow_api_server_is_renewed_by_one_request_each_time() -> None:
    """A request takes 4 s: a read and a write one after the other would take almost as long as the renewal is valid."""
    server, observed = Server(), Observed()

    async def live() -> None:
        held = lease(server)
        leads: list[bool] = []

        def report(until: float) -> None:
            observed.report(until)
            leads.append(observed.leads)

        keeper = asyncio.create_task(keep_leases([held], report))
        await eventually(lambda: held.held, "the operator leads")
        server.delay = 4.0
        first = len(leads)
        await eventually(lambda: len(leads) - first >= 5, "the lease is renewed five times", seconds=60)
        assert all(leads[first:])
        assert held.held
        keeper.cancel()

    fake_time.run(live())


def test_lease_changed_by_another_client_is_read_before_it_is_renewed() -> None:
    server = Server()

    async def live() -> None:
        held = lease(server)
        for _ in range(2):
            await held.renew_or_acquire()
        server.change(NAMESPACE, holderIdentity="other")
        await held.renew_or_acquire()
        assert not held.held
        assert server.leases[NAMESPACE]["spec"]["holderIdentity"] == "other"

    fake_time.run(live())


def test_leases_with_one_namespace_deleted_are_kept_in_the_other_namespaces() -> None:
    """The operator's rights in a namespace are deleted with it."""
    server, observed = Server(), Observed()
    leases = [lease(server, name) for name in ("a", "b")]

    async def live() -> None:
        keeper = asyncio.create_task(keep_leases(leases, observed.report))
        await asyncio.sleep(1)
        server.forbidden.add("a")
        await asyncio.sleep(20)
        assert observed.leads
        server.forbidden.clear()
        await asyncio.sleep(10)
        assert observed.leads
        assert all(each.held for each in leases), "the lease is taken again when the namespace is back"
        keeper.cancel()

    fake_time.run(live())


def test_two_operators_with_slow_api_server_never_lead_at_the_same_time() -> None:
    server = Server()
    operators = {"a": Observed(), "b": Observed()}

    async def live() -> None:
        keepers = [
            asyncio.create_task(keep_leases([lease(server, holder=name)], observed.report))
            for name, observed in operators.items()
        ]
        have_led: set[str] = set()
        for i in range(400):
            server.delay = (0.0, 1.0, 3.0, 6.0)[i // 20 % 4]
            await asyncio.sleep(0.1)
            leaders = {name for name, observed in operators.items() if observed.leads}
            assert len(leaders) <= 1, leaders
            have_led |= leaders
        assert have_led
        for keeper in keepers:
            keeper.cancel()

    fake_time.run(live())


def test_leader_after_a_temporary_refusal_leads_again() -> None:
    """An API server that has just started refuses all requests until it has loaded the roles."""
    server, observed = Server(), Observed()

    async def live() -> None:
        held = lease(server)
        keeper = asyncio.create_task(keep_leases([held], observed.report))
        await eventually(lambda: observed.until, "the operator leads")
        server.forbidden = {NAMESPACE}
        server.change(NAMESPACE)  # so that the operator reads it before the next renewal
        await eventually(lambda: not held.exists, "the namespace counts as deleted", seconds=100)
        assert observed.until == 0
        server.forbidden = set()
        await eventually(lambda: observed.leads, "the operator leads again", seconds=100)
        keeper.cancel()

    fake_time.run(live())


def test_second_operator_after_a_temporary_refusal_does_not_lead() -> None:
    server, observed = Server(), Observed()

    async def live() -> None:
        held = lease(server, "a", "first")
        first = asyncio.create_task(keep_leases([held], lambda _: None))
        await eventually(lambda: held.held, "the first operator leads")
        server.forbidden = {"a"}
        both = [lease(server, name, "second") for name in ("a", "b")]
        second = asyncio.create_task(keep_leases(both, observed.report))
        await eventually(lambda: observed.reports, "the second operator was refused")
        server.forbidden = set()
        before = len(observed.reports)
        await eventually(lambda: len(observed.reports) >= before + 3, "it has read the lease since", seconds=100)
        assert held.held
        assert not any(observed.reports)
        for task in (first, second):
            task.cancel()

    fake_time.run(live())


def test_release_during_a_renewal_leaves_the_lease_without_holder() -> None:
    server = Server()

    async def live() -> None:
        held = lease(server)
        keeper = asyncio.create_task(keep_leases([held], lambda _: None))
        await eventually(lambda: held.held, "the operator leads")
        server.delay = 3.0
        await eventually(lambda: server.pending_writes, "a renewal is in progress")
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        assert not server.pending_writes, "the renewal is cancelled with its task"
        server.delay = 0
        await held.release()
        assert server.leases[NAMESPACE]["spec"]["holderIdentity"] == ""
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no task is left that could take the lease again"

    fake_time.run(live())


def test_leadership_ends_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC stands still meanwhile, and CLOCK_BOOTTIME goes on."""
    real = time.clock_gettime
    leadership = Leadership()
    leadership.hold_until(real(time.CLOCK_BOOTTIME) + 60)
    assert leadership.is_leader()
    suspended = {time.CLOCK_BOOTTIME: 120.0}
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + suspended.get(clock, 0.0))
    assert not leadership.is_leader()
