"""Leader election: of several operators that watch the same jobs, the one that holds all their Leases reconciles.

A Lease (coordination.k8s.io/v1) is judged by how long ago *this process* saw it change, on its own monotonic clock, not
by the timestamps in the Lease: the clocks of two machines may differ.

`kubernetes.aio.leaderelection` is not used, for two reasons. It elects over one Lease, while an operator of several
namespaces must hold one in each of them, skip those that were deleted, and take the others in a fixed order. And it
measures durations with the wall clock, which may jump.
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
"""A lease that was not renewed for this long is free. This and the next value are the defaults of Kubernetes'
controllers."""
RENEW_DEADLINE_SECONDS = 10
"""A holder that could not renew for this long stops reconciling, before another operator may take the lease."""
RENEW_INTERVAL_SECONDS = 4.0
RETRY_INTERVAL_SECONDS = 2.0


def identity() -> str:
    """The identity of this operator, the same after a crash in the same pod.

    In a cluster it is the pod's uid; elsewhere host, PID namespace and process id, from which another process on this
    host can find out whether the holder still runs.
    """
    if uid := os.environ.get("YOLOJOB_POD_UID"):
        return uid
    return f"{_host_prefix()}{os.getpid()}"


def _host_prefix() -> str:
    return f"{socket.gethostname()}_{Path('/proc/self/ns/pid').stat().st_ino}_"


def is_dead(holder: str) -> bool:
    """Whether this holder was a process on this host that no longer runs."""
    process = holder.removeprefix(_host_prefix())
    return process != holder and process.isdigit() and not Path(f"/proc/{process}").exists()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_gone(error: ApiError) -> bool:
    """Whether nothing can be created because the namespace does not exist or is being deleted."""
    return error.status == 404 or (error.status == 403 and "is being terminated" in str(error))


def _now() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine is suspended.

    CLOCK_MONOTONIC stands still then: a paused virtual machine would believe to hold a lease that others have taken.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leadership:
    """Whether this operator is the leader: set by leader election, read by everything that reconciles."""

    def __init__(self) -> None:
        self.since = 0.0
        """When this operator became the leader; monotonic clock."""
        self._until = 0.0
        self._gained = asyncio.Event()

    def hold_until(self, until: float) -> None:
        """Lead up to this moment of `_now`; 0: do not lead."""
        if until and not self.is_leader():
            self.since = time.monotonic()
        self._until = until
        if self.is_leader():
            self._gained.set()
        else:
            self._gained.clear()

    def is_leader(self) -> bool:
        return _now() < self._until

    async def wait(self) -> None:
        """Return once this operator is the leader."""
        while not self.is_leader():
            self._gained.clear()
            await self._gained.wait()


class Lease:
    """The right to reconcile the jobs of one namespace, or of all namespaces."""

    def __init__(self, api: ApiClient, namespace: str, me: str) -> None:
        self._api, self.namespace, self._me = api, namespace, me
        self.exists = True
        """Whether its namespace exists: no operator reconciles the jobs of a deleted namespace."""
        self._seen: Object | None = None
        self._seen_at = 0.0
        self._renewed = -float("inf")
        self._refused: float | None = None
        """Since when this operator may not read it; None if it may; of `_now`."""
        self._written: Object | None = None
        """The lease as this operator wrote it last; None if the write may have failed."""

    @property
    def until(self) -> float:
        """Until which moment of `_now` this operator holds the lease, unless it renews it before."""
        return self._renewed + RENEW_DEADLINE_SECONDS

    @property
    def held(self) -> bool:
        return _now() < self.until

    async def renew_or_acquire(self) -> None:
        """Renew the lease, or acquire it if it is free.

        Raises:
            ApiError: the API server refused a request or did not answer.
        """
        now, began = datetime.now(UTC), _now()
        if self._written is not None:
            # If nobody else has written the lease, one PUT renews it. On any failure the next attempt reads it first.
            known, self._written = self._written, None
            if await self._write(known["metadata"], {**known["spec"], **self._renewal(now)}):
                return
        try:
            lease = await self._api.get_lease(self.namespace, LEASE_NAME)
        except ApiError as error:
            if error.status != 403:
                raise
            self._handle_forbidden(error, began)
            return
        self._refused = None
        if lease is None:
            await self._create(now)
        else:
            await self._take_over(lease, now, began)

    def _handle_forbidden(self, error: ApiError, began: float) -> None:
        """Treat the namespace as deleted, once reading the lease has been forbidden for LEASE_DURATION_SECONDS.

        A deleted namespace takes the operator's rights in it along. An API server that has just started refuses
        requests for a moment as well; until then, another operator may hold the lease.
        """
        self._refused = self._refused or began
        if began - self._refused < LEASE_DURATION_SECONDS:
            raise error
        if self.exists:
            log.warning("%s: the jobs of this namespace are not reconciled: %s", self.namespace, error)
        self.exists = False

    async def _create(self, now: datetime) -> None:
        spec: Object = {"holderIdentity": self._me, "acquireTime": _time(now), "leaseTransitions": 0}
        try:
            await self._write({}, {**spec, **self._renewal(now)})
        except ApiError as error:
            self.exists = not is_gone(error)
            if self.exists:
                raise
        else:
            self.exists = True

    async def _take_over(self, lease: Object, now: datetime, began: float) -> None:
        """Write an existing lease, if this operator holds it already or it is free."""
        self.exists = True
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        if self._seen is None or spec != self._seen:
            self._seen, self._seen_at = spec, _now()
        if holder != self._me:
            age = began - self._seen_at
            if holder and age < LEASE_DURATION_SECONDS and not is_dead(holder):
                self._renewed = -float("inf")
                return
            log.info("%s: acquired lease %s, last held by %s", self.namespace, LEASE_NAME, holder or "nobody")
            transitions = (spec.get("leaseTransitions") or 0) + 1
            spec = {
                **spec,
                "holderIdentity": self._me,
                "acquireTime": _time(now),
                "leaseTransitions": transitions,
            }
        await self._write(lease["metadata"], {**spec, **self._renewal(now)})

    async def _write(self, metadata: Object, spec: Object) -> bool:
        """Write the lease unless it was changed since it had this metadata. Returns whether it was written."""
        began = _now()  # before the request: other operators see the renewal later
        write = self._api.replace_lease if metadata else self._api.create_lease
        self._written = await write(self._lease(metadata, spec))
        if self._written is not None:
            self._renewed = began
        return self._written is not None

    async def release(self) -> None:
        """Release the lease, so that the next operator does not have to wait until it expires."""
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


def _held_until(leases: list[Lease]) -> float:
    """Until which moment of `_now` this operator holds all existing leases; in the past if none exists."""
    return min((lease.until for lease in leases if lease.exists), default=-float("inf"))


async def _renew_all(leases: list[Lease]) -> None:
    """Renew all leases concurrently, so that one slow response does not let the others expire, and stop when they
    expire.
    """
    renewals = [asyncio.create_task(_renew_or_acquire(lease)) for lease in leases]
    try:
        await asyncio.wait(renewals, timeout=max(_held_until(leases) - _now(), 0.0))
    finally:  # also on cancellation: a released lease must not be acquired again
        for task in renewals:
            task.cancel()
        await asyncio.gather(*renewals, return_exceptions=True)


async def _acquire_all(leases: list[Lease]) -> None:
    """Acquire the leases one by one, in the same order in all operators: two that hold some each would wait for each
    other.
    """
    missing = False
    for lease in sorted(leases, key=lambda candidate: candidate.namespace):
        if not missing:
            await _renew_or_acquire(lease)
            missing = lease.exists and not lease.held
        else:
            await _log_errors(lease.release())


async def _renew_or_acquire(lease: Lease) -> None:
    await _log_errors(lease.renew_or_acquire())


async def _log_errors(action: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(action, RENEW_DEADLINE_SECONDS)
    except (ApiError, TimeoutError) as error:
        log.warning("the lease could not be renewed: %s", error)
    except Exception:  # for any error: an operator that does not renew in time stops leading
        log.exception("the lease could not be renewed")


async def keep_leases(leases: list[Lease], on_change: Callable[[float], None]) -> None:
    """Acquire and renew all of these leases in an endless loop.

    Args:
        leases: those of the watched namespaces.
        on_change: called after each round with the moment of `_now` until which all leases are held; 0 if
            they are not.
    """
    leading = waiting = False
    while True:
        began = _now()
        await (_renew_all(leases) if leading else _acquire_all(leases))
        duration = _now() - began
        left = _held_until(leases) - _now()
        leads_now = left > 0
        on_change(_held_until(leases) if leads_now else 0.0)
        if leads_now != leading:
            log.info(
                "this operator leads" if leads_now else "this operator stopped leading: it does not hold the lease"
            )
        elif not leads_now and not waiting and any(lease.exists for lease in leases):
            log.warning("another operator holds the lease %s; this one waits", LEASE_NAME)
        leading, waiting = leads_now, not leads_now
        # The next renewal may take as long as this one, and twice as long while time is left.
        pause = max(min(RENEW_INTERVAL_SECONDS, left / 2, left - 2 * duration), 0.0)
        await asyncio.sleep(pause if leading else RETRY_INTERVAL_SECONDS)
