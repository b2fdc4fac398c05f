"""Executes plans: creates and deletes objects, and remembers pods that the watch has not shown yet and obstacles."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Key, Object
from yolojob_operator.objects import gang_scheduling, isolation
from yolojob_operator.plan.builder import Obstacle
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.pod_facts import PodFacts, pod_facts

TEMPORARY_REFUSALS = (401, 408, 409, 429)
"""Statuses below 500 after which the same request may succeed."""
T = TypeVar("T")
UNIQUE_KINDS = ("Secret", "NetworkPolicy")
"""Kinds of objects whose names contain the job's uid: one that exists belongs to the job, and the operator may not read
it."""
UNSEEN_PRESENT_SECONDS = 30.0
"""A created pod counts as existing for this long before the watch shows it."""
MAX_SERVER_ERRORS = 3
"""After this many consecutive creations that end with a server error, the error is reported in the status."""
UNSEEN_MEMORY_SECONDS = 90.0
"""A created pod is remembered for this long. While its job needs it, the pod is created again before that and found to
exist."""
OBJECT_MEMORY_SECONDS = 60.0
"""A Service, Secret or NetworkPolicy is not requested again for this long, so that a retry continues where the last
attempt has failed."""


@dataclass(frozen=True, slots=True)
class UnseenPod:
    """A created pod that the watch has not shown yet."""

    facts: PodFacts
    since: float
    """When it was created; monotonic clock."""
    confirmed: float
    """When the API server last confirmed that it exists; monotonic clock."""


class Executor:
    """Executes the plans of all jobs."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._unseen: dict[Key, dict[str, UnseenPod]] = {}
        self._obstacles: dict[Key, Obstacle] = {}
        self._confirmed: dict[Key, dict[tuple[str, str], float]] = {}
        """(kind, name) of a job's objects -> when the API server has confirmed that they exist; monotonic clock."""
        self._created: dict[Key, int] = {}
        """Objects that were created for each job."""
        self._server_errors: dict[Key, int] = {}
        self._disbanded: set[Key] = set()
        """Jobs whose PodGroup was deleted."""

    def forget(self, key: Key) -> None:
        memories: tuple[dict[Key, Any], ...] = (
            self._unseen,
            self._obstacles,
            self._confirmed,
            self._created,
            self._server_errors,
        )
        for memory in memories:
            memory.pop(key, None)
        self._disbanded.discard(key)

    def shown(self, key: Key, uid: str) -> None:
        """The watch has shown this pod, or its deletion."""
        unseen = self._unseen.get(key, {})
        for name in [name for name, pod in unseen.items() if pod.facts.uid == uid]:
            del unseen[name]

    def created(self, key: Key) -> int:
        """Return how many objects were created for this job."""
        return self._created.get(key, 0)

    def obstacle(self, key: Key) -> Obstacle | None:
        """What the previous plan could not create, and why."""
        return self._obstacles.get(key)

    def unseen(self) -> Iterator[float]:
        """The creation time of each pod that the watch has not shown yet; monotonic clock."""
        oldest = time.monotonic() - UNSEEN_MEMORY_SECONDS
        return (pod.since for unseen in self._unseen.values() for pod in unseen.values() if pod.confirmed >= oldest)

    def pods(self, key: Key, seen: list[PodFacts]) -> list[PodFacts]:
        """A job's pods: those that the watch shows, and those that were just created."""
        uids = {p.uid for p in seen}
        unseen, now = self._unseen.get(key, {}), time.monotonic()
        oldest = now - UNSEEN_MEMORY_SECONDS
        for name in [name for name, pod in unseen.items() if pod.facts.uid in uids or pod.confirmed < oldest]:
            del unseen[name]
        names = {p.name for p in seen}
        present = (pod.facts for pod in unseen.values() if pod.confirmed >= now - UNSEEN_PRESENT_SECONDS)
        return [*seen, *(facts for facts in present if facts.name not in names)]

    async def execute(self, key: Key, job: YoloTrainingJob, plan: Plan, may_act: Callable[[], bool]) -> bool:
        """Execute a plan. Returns whether the obstacle has changed, so that the job must be planned again.

        Args:
            key: the job's key.
            job: the job as it was when the plan was made.
            plan: the plan to execute.
            may_act: whether this operator still leads and the job still exists; called before each step.

        Raises:
            ApiError: a request failed and may be retried.
        """
        namespace, changed = key[0], False
        if plan.create and may_act():
            obstacle = await self._create_all(key, job, plan.create, may_act)
            before = self._obstacles.pop(key, None)
            if obstacle is not None and may_act():
                self._obstacles[key] = obstacle
            # Only the reason is compared: the message may name another pod each time.
            changed = (obstacle and obstacle.reason) != (before and before.reason)
        if may_act():
            await gather_all(self._api.delete_pod(namespace, d.name, d.uid, d.grace_seconds) for d in plan.delete)
            await gather_all(self._api.delete_workload(namespace, r.name, {r.pod_uid}) for r in plan.release)
        if plan.disband and key not in self._disbanded and may_act():
            await gather_all(self._api.delete_if(group, lambda found: _is_owned(found, job)) for group in plan.disband)
            self._disbanded.add(key)
        if plan.delete_job and job.metadata.uid and may_act():
            await self._api.delete_job(namespace, job.metadata.name, job.metadata.uid)
        return changed

    async def _create_all(
        self, key: Key, job: YoloTrainingJob, items: Iterable[Object], may_act: Callable[[], bool]
    ) -> Obstacle | None:
        """Create these objects. Returns the obstacle of the first one that could not be created."""
        # Pods come last: without its PodGroup a pod would never be scheduled, without the service it would not find its
        # peers.
        others, pods = [i for i in items if i["kind"] != "Pod"], [i for i in items if i["kind"] == "Pod"]
        try:
            obstacle = await self._create_some(key, job, others, may_act)
            if obstacle is None and may_act():
                obstacle = await self._create_some(key, job, pods, may_act)
        except ApiError as error:
            if error.status < 500:
                raise
            self._server_errors[key] = self._server_errors.get(key, 0) + 1
            if self._server_errors[key] < MAX_SERVER_ERRORS:
                raise
            return Obstacle(reason=Reason.FAILED_CREATE, message=str(error))
        self._server_errors.pop(key, None)
        return obstacle

    async def _create_some(
        self, key: Key, job: YoloTrainingJob, items: Sequence[Object], may_act: Callable[[], bool]
    ) -> Obstacle | None:
        """Create objects in batches of 1, 2, 4 and so on, as Kubernetes' Job controller does: if the first is refused,
        the others are not tried."""
        start, size = 0, 1
        while start < len(items) and may_act():
            batch = items[start : start + size]
            obstacles = await gather_all(self._create(key, job, item) for item in batch)
            if obstacle := next((found for found in obstacles if found is not None), None):
                return obstacle
            start, size = start + size, 2 * size
        return None

    async def release_orphans(self, key: Key, pods: Iterable[PodFacts]) -> None:
        """Delete the Workloads of pods whose job is gone.

        The garbage collector deletes such pods, but Kueue's finalizer keeps them as long as their Workload exists.
        """
        groups: dict[str, set[str]] = {}
        for pod in pods:
            if pod.deleted and pod.kueue_group == gang_scheduling.group_name(key[1], pod.attempt):
                groups.setdefault(pod.kueue_group, set()).add(pod.uid)
        await gather_all(self._api.delete_workload(key[0], name, uids) for name, uids in groups.items())

    async def _create(self, key: Key, job: YoloTrainingJob, item: Object) -> Obstacle | None:
        if item["kind"] == "PodGroup":
            self._disbanded.discard(key)
        name = (item["kind"], item["metadata"]["name"])
        confirmed = self._confirmed.setdefault(key, {})
        if time.monotonic() - confirmed.get(name, -math.inf) < OBJECT_MEMORY_SECONDS:
            return None
        if item["kind"] == "Secret":
            item = {**item, "data": isolation.random_data()}
        try:
            created = await self._api.create(item)
        except ApiError as error:
            if obstacle := _obstacle(item, error):
                return obstacle
            raise
        if created is not None:
            self._created[key] = self.created(key) + 1
        if created is None and item["kind"] not in UNIQUE_KINDS:
            existing = await self._api.get(item)
            if existing is not None and not _is_owned(existing, job):
                return Obstacle(reason=Reason.NAME_CONFLICT, message=_name_conflict(item, existing))
            if existing is not None and item["kind"] == "PodGroup":
                await self._api.update_spec(item, existing)
            created = existing
        exists = created is not None and not created["metadata"].get("deletionTimestamp")
        if item["kind"] in UNIQUE_KINDS or (item["kind"] == "Service" and exists):
            confirmed[name] = time.monotonic()
        if created is not None and item["kind"] == "Pod" and not created["metadata"].get("deletionTimestamp"):
            facts, now = pod_facts(created), time.monotonic()
            unseen = self._unseen.setdefault(key, {})
            old = unseen.get(facts.name)
            since = old.since if old and old.facts.uid == facts.uid else now
            unseen[facts.name] = UnseenPod(facts, since, confirmed=now)
        return None


async def gather_all(requests: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of these concurrently. If some fail, the others are still completed; then the first error is raised."""
    results: list[T] = []
    for outcome in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


def _obstacle(item: Object, error: ApiError) -> Obstacle | None:
    """The obstacle to creating an object; None if an immediate retry may help."""
    kind, message = item["kind"], str(error)
    if error.status == 403:
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason(f"{kind}Forbidden")
    elif error.status == 404 and kind == "PodGroup":
        reason = Reason.NO_GANG_SCHEDULER
        message = f"spec.scheduling.gang: this cluster has no {kind} in {item['apiVersion']}: install that scheduler"
    elif error.status in (400, 422):
        reason = Reason(f"{kind}Invalid")
    elif 400 <= error.status < 500 and error.status not in TEMPORARY_REFUSALS:
        reason = Reason.FAILED_CREATE
    else:
        return None
    return Obstacle(reason=reason, message=message)


def _name_conflict(item: Object, existing: Object) -> str:
    """Why an object of somebody else keeps a name from this job, and what to do."""
    kind, metadata = item["kind"].lower(), existing["metadata"]
    if not metadata.get("deletionTimestamp"):
        return f"a {kind} {metadata['name']} exists that does not belong to this job: delete it, or rename the job"
    held = f"; it has the finalizers {', '.join(metadata['finalizers'])}" if metadata.get("finalizers") else ""
    return f"waits until the {kind} {metadata['name']} of an earlier job is gone, which is terminating{held}"


def _is_owned(found: Object, job: YoloTrainingJob) -> bool:
    owners = found["metadata"].get("ownerReferences") or ()
    return any(o.get("uid") == job.metadata.uid and o.get("controller") for o in owners)
