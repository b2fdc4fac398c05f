"""Leader election: of several operators that watch the same jobs, the one that holds all their Leases reconciles.

A Lease (coordination.k8s.io/v1) is judged by how long ago *this process* saw it change, on its own monotonic clock, not by the
timestamps in the Lease: the clocks of two machines may differ.

`kubernetes.aio.leaderelection` is not used, for two reasons. It elects over one Lease, while an operator of several namespaces
must hold one in each of them, skip those that were deleted, and take the others in a fixed order. And it measures durations with
the wall clock, which may jump.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Object

log = logging.getLogger(__name__)

LEASE_NAME = "yolojob-operator"
LEASE_DURATION_SECONDS = 15
"""So long after its last renewal a lease is free; the default of Kubernetes' controllers, as is the next."""
RENEW_DEADLINE_SECONDS = 10
"""A holder that could not renew for so long stops working: before anybody else may begin."""
RENEW_INTERVAL_SECONDS = 4.0
RETRY_INTERVAL_SECONDS = 2.0


def identity() -> str:
    """Who we are, the same after a crash of the same pod.

    In a cluster the pod's uid; elsewhere host, process namespace and process, of which another process on this host can
    tell whether it still lives.
    """
    if uid := os.environ.get("YOLOJOB_POD_UID"):
        return uid
    return f"{_here()}{os.getpid()}"


def _here() -> str:
    return f"{socket.gethostname()}_{Path('/proc/self/ns/pid').stat().st_ino}_"


def is_dead(holder: str) -> bool:
    """Whether this holder was a process of this host that is gone."""
    process = holder.removeprefix(_here())
    return process != holder and process.isdigit() and not Path(f"/proc/{process}").exists()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_gone(error: ApiError) -> bool:
    """Whether nothing can be created because the namespace is not there, or about to go."""
    return error.status == 404 or (error.status == 403 and "is being terminated" in str(error))


class Leadership:
    """Whether this operator is the leader: set by leader election, read by everything that reconciles."""

    def __init__(self) -> None:
        self.since = 0.0
        """When this operator became the leader; monotonic clock."""
        self._until = 0.0
        self._gained = asyncio.Event()

    def hold_until(self, until: float) -> None:
        """Lead up to this moment of the monotonic clock; 0: do not lead."""
        if until and not self.is_leader():
            self.since = time.monotonic()
        self._until = until
        if self.is_leader():
            self._gained.set()
        else:
            self._gained.clear()

    def is_leader(self) -> bool:
        return time.monotonic() < self._until

    async def wait(self) -> None:
        """Return once this operator is the leader."""
        while not self.is_leader():
            self._gained.clear()
            await self._gained.wait()


class Lease:
    """The right to work on the jobs of one namespace, or of all."""

    def __init__(self, cluster: ApiClient, namespace: str, me: str) -> None:
        self._api, self.namespace, self._me = cluster, namespace, me
        self.exists = True
        """Whether its namespace does: nobody works on the jobs of one that was deleted."""
        self._seen: Object | None = None
        self._seen_at = 0.0
        self._renewed = -float("inf")
        self._refused: float | None = None
        """Since when we may not look at it, if so."""
        self._written: Object | None = None
        """The lease as we wrote it last, if we know that we did."""

    @property
    def until(self) -> float:
        """Up to which moment of the monotonic clock we hold it, unless it is renewed before."""
        return self._renewed + RENEW_DEADLINE_SECONDS

    @property
    def held(self) -> bool:
        return time.monotonic() < self.until

    async def tend(self) -> None:
        """Renew the lease, or take it where it is free."""
        now = datetime.now(UTC)
        began = time.monotonic()
        if self._written is not None:
            # While nobody else writes it, one request will do. Whatever this one meets, the next looks first.
            known, self._written = self._written, None
            if await self._write(known["metadata"], {**known["spec"], **self._renewal(now)}):
                return
        try:
            lease = await self._api.get_lease(self.namespace, LEASE_NAME)
        except ApiError as error:
            if error.status != 403:
                raise
            # A namespace that was deleted took our rights with it. An API server that has just begun refuses as well, and does
            # not for long; until we know, it may be somebody else's.
            self._refused = self._refused or began
            if began - self._refused < LEASE_DURATION_SECONDS:
                raise
            if self.exists:
                log.warning("%s: nobody works on the jobs of this namespace: %s", self.namespace, error)
            self.exists = False
            return
        self._refused = None
        if lease is None:
            spec: Object = {"holderIdentity": self._me, "acquireTime": _time(now), "leaseTransitions": 0}
            try:
                await self._write({}, {**spec, **self._renewal(now)})
            except ApiError as error:
                self.exists = not is_gone(error)
                if self.exists:
                    raise
                return
            self.exists = True
        else:
            self.exists = True
            spec = lease.get("spec") or {}
            holder = str(spec.get("holderIdentity") or "")
            if self._seen is None or spec != self._seen:
                self._seen, self._seen_at = spec, time.monotonic()
            if holder != self._me:
                age = began - self._seen_at
                if holder and age < LEASE_DURATION_SECONDS and not is_dead(holder):
                    self._renewed = -float("inf")
                    return
                log.info("%s: lease %s was of %s; it is ours now", self.namespace, LEASE_NAME, holder or "nobody")
                count = (spec.get("leaseTransitions") or 0) + 1
                spec = {**spec, "holderIdentity": self._me, "acquireTime": _time(now), "leaseTransitions": count}
            await self._write(lease["metadata"], {**spec, **self._renewal(now)})

    async def _write(self, metadata: Object, spec: Object) -> bool:
        """Write it if nobody else has, since it had this metadata; whether that was so."""
        began = time.monotonic()  # nobody sees it renewed before
        deed = self._api.replace_lease if metadata else self._api.create_lease
        self._written = await deed(self._lease(metadata, spec))
        if self._written is not None:
            self._renewed = began
        return self._written is not None

    async def release(self) -> None:
        """Let go of it, so that the next operator need not wait."""
        if not self.held:
            return
        lease = await self._api.get_lease(self.namespace, LEASE_NAME)
        self._renewed, self._written = -float("inf"), None
        if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._me:
            await self._api.replace_lease(self._lease(lease["metadata"], {**lease["spec"], "holderIdentity": ""}))

    @staticmethod
    def _renewal(now: datetime) -> Object:
        return {"renewTime": _time(now), "leaseDurationSeconds": LEASE_DURATION_SECONDS}

    def _lease(self, metadata: Object, spec: Object) -> Object:
        names = {"name": LEASE_NAME, "namespace": self.namespace}
        kept = {k: v for k, v in metadata.items() if k in ("resourceVersion", "labels", "annotations")}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {**kept, **names},
            "spec": spec,
        }


def _until(leases: list[Lease]) -> float:
    """Up to which moment of the monotonic clock we hold all that there are; in the past where there are none."""
    return min((lease.until for lease in leases if lease.exists), default=-float("inf"))


async def _renew(leases: list[Lease]) -> None:
    """All at once: one that answers late must not let the others run out; and no longer than they are ours."""
    tending = [asyncio.create_task(_tend(lease)) for lease in leases]
    try:
        await asyncio.wait(tending, timeout=max(_until(leases) - time.monotonic(), 0.0))
    finally:  # also when we are told to end: what was released must not be taken again
        for task in tending:
            task.cancel()
        await asyncio.gather(*tending, return_exceptions=True)


async def _take(leases: list[Lease]) -> None:
    """One after the other, in an order that all operators have: two that each hold some would wait for each other."""
    lacking = False
    for lease in sorted(leases, key=lambda each: each.namespace):
        if not lacking:
            await _tend(lease)
            lacking = lease.exists and not lease.held
        else:
            await _quietly(lease.release())


async def _tend(lease: Lease) -> None:
    await _quietly(lease.tend())


async def _quietly(deed: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(deed, RENEW_DEADLINE_SECONDS)
    except (ApiError, TimeoutError) as error:
        log.warning("the lease could not be renewed: %s", error)
    except Exception:  # whatever it is: who does not renew in time rests
        log.exception("the lease could not be renewed")


async def keep(leases: list[Lease], tell: Callable[[float], None]) -> None:
    """Hold all of these, for ever; tell up to which moment of the monotonic clock we do, 0 when we do not."""
    leading = waiting = False
    while True:
        began = time.monotonic()
        await (_renew(leases) if leading else _take(leases))
        took = time.monotonic() - began
        left = _until(leases) - time.monotonic()
        now = left > 0
        tell(_until(leases) if now else 0.0)
        if now != leading:
            log.info("this operator works" if now else "this operator rests: it does not hold the lease")
        elif not now and not waiting and any(lease.exists for lease in leases):
            log.warning("another operator holds the lease %s; this one waits", LEASE_NAME)
        leading, waiting = now, not now
        # The next may take as long as this one, and twice as long while there is time.
        await asyncio.sleep(
            max(min(RENEW_INTERVAL_SECONDS, left / 2, left - 2 * took), 0.0) if leading else RETRY_INTERVAL_SECONDS
        )
