"""Carries plans out: creates and deletes, and remembers what the watch has not shown yet and what stood in the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from yolojob.api.job import YoloTrainingJob
from yolojob.api.reasons import Reason
from yolojob_operator.kube.api_client import ApiClient, ApiError
from yolojob_operator.kube.types import Key, Object
from yolojob_operator.plan.builder import Obstacle
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.pod_facts import PodFacts, pod_facts

T = TypeVar("T")
UNSEEN_PRESENT_SECONDS = 30.0
"""For so long a pod that we created counts as there, though the watch has not shown it yet."""
MAX_SERVER_ERRORS = 3
"""So many creations in a row that end in an error of the API server's are a thing to be told."""
UNSEEN_MEMORY_SECONDS = 90.0
"""For so long it is remembered. While its job wants it, it is created again before that, and found to exist."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A pod that we created and that the watch has not shown yet."""

    facts: PodFacts
    since: float
    """When we created it."""
    known: float
    """When the API server last said that it is there."""


class Executor:
    """What is done, and what came of it."""

    def __init__(self, cluster: ApiClient) -> None:
        self._api = cluster
        self._expected: dict[Key, dict[str, Expected]] = {}
        self._obstacles: dict[Key, Obstacle] = {}
        self._troubles: dict[Key, int] = {}
        self._disbanded: set[Key] = set()
        """Jobs whose PodGroup is gone."""

    def forget(self, key: Key) -> None:
        for memory in (self._expected, self._obstacles, self._troubles):
            memory.pop(key, None)
        self._disbanded.discard(key)

    def shown(self, key: Key, uid: str) -> None:
        """The watch has shown this pod, or its end."""
        expected = self._expected.get(key, {})
        for name in [name for name, each in expected.items() if each.facts.uid == uid]:
            del expected[name]

    def obstacle(self, key: Key) -> Obstacle | None:
        """What stood in the way last time."""
        return self._obstacles.get(key)

    def unseen(self) -> Iterator[float]:
        """When each of the pods was created that the watch has not shown yet."""
        oldest = time.monotonic() - UNSEEN_MEMORY_SECONDS
        return (e.since for expected in self._expected.values() for e in expected.values() if e.known >= oldest)

    def pods(self, key: Key, seen: list[PodFacts]) -> list[PodFacts]:
        """A job's pods: those that the watch shows, and those that were created a moment ago."""
        uids = {p.uid for p in seen}
        expected = self._expected.get(key, {})
        now = time.monotonic()
        for name in [n for n, e in expected.items() if e.facts.uid in uids or e.known < now - UNSEEN_MEMORY_SECONDS]:
            del expected[name]
        names = {p.name for p in seen}
        there = (e.facts for e in expected.values() if e.known >= now - UNSEEN_PRESENT_SECONDS)
        return [*seen, *(facts for facts in there if facts.name not in names)]

    async def carry_out(self, key: Key, job: YoloTrainingJob, made: Plan, may: Callable[[], bool]) -> bool:
        """Do what is planned; whether something else stands in the way now, so that it is to be planned anew.

        Args:
            key: the job's.
            job: as it was when the plan was made.
            made: the plan.
            may: whether the job is still ours; asked before each step.

        Raises:
            ApiError: a request failed and may be tried again.
        """
        namespace, anew = key[0], False
        if made.create and may():
            obstacle = await self._create_all(key, job, made.create, may)
            before = self._obstacles.pop(key, None)
            if obstacle is not None and may():
                self._obstacles[key] = obstacle
            # Its words may name another pod each time.
            anew = (obstacle and obstacle.reason) != (before and before.reason)
        if may():
            await all_of(self._api.delete_pod(namespace, d.name, d.uid, d.grace_seconds) for d in made.delete)
            await all_of(self._api.delete_workload(namespace, name) for name in made.release)
        if made.disband and key not in self._disbanded and may():
            await all_of(self._api.delete_if(group, lambda it: _is_owned(it, job)) for group in made.disband)
            self._disbanded.add(key)
        if made.delete_job and job.metadata.uid and may():
            await self._api.delete_job(namespace, job.metadata.name, job.metadata.uid)
        return anew

    async def _create_all(
        self, key: Key, job: YoloTrainingJob, items: Iterable[Object], may: Callable[[], bool]
    ) -> Obstacle | None:
        """Create these; what stands in the way of the first that could not be."""
        # Without its group a pod would wait for ever, and without the service it would not find its peers.
        others, pods = [i for i in items if i["kind"] != "Pod"], [i for i in items if i["kind"] == "Pod"]
        try:
            obstacle = await self._create_some(key, job, others)
            if obstacle is None and may():
                obstacle = await self._create_some(key, job, pods)
        except ApiError as error:
            if error.status < 500:
                raise
            self._troubles[key] = self._troubles.get(key, 0) + 1
            if self._troubles[key] < MAX_SERVER_ERRORS:
                raise
            return Obstacle(reason=Reason.FAILED_CREATE, message=str(error))
        self._troubles.pop(key, None)
        return obstacle

    async def _create_some(self, key: Key, job: YoloTrainingJob, items: Iterable[Object]) -> Obstacle | None:
        found = await all_of(self._create(key, job, item) for item in items)
        return next((obstacle for obstacle in found if obstacle is not None), None)

    async def release_orphans(self, key: Key, left: Iterable[PodFacts]) -> None:
        """Let go of pods whose job is gone: the garbage collector has deleted them, and Kueue would keep them all the same."""
        groups = {p.kueue_group for p in left if p.deleted and p.kueue_group}
        await all_of(self._api.delete_workload(key[0], name) for name in groups)

    async def _create(self, key: Key, job: YoloTrainingJob, item: Object) -> Obstacle | None:
        if item["kind"] == "PodGroup":
            self._disbanded.discard(key)
        try:
            created = await self._api.create(item)
        except ApiError as error:
            if obstacle := _obstacle(item, error):
                return obstacle
            raise
        if created is None:
            found = await self._api.get(item)
            if found is not None and not _is_owned(found, job):
                kind, name = item["kind"].lower(), item["metadata"]["name"]
                words = f"a {kind} {name} exists that is not this job's: delete it, or rename the job"
                return Obstacle(reason=Reason.NAME_CONFLICT, message=words)
            if found is not None and item["kind"] == "PodGroup":
                await self._api.update_spec(item, found)
            created = found
        if created is not None and item["kind"] == "Pod" and not created["metadata"].get("deletionTimestamp"):
            facts, now = pod_facts(created), time.monotonic()
            expected = self._expected.setdefault(key, {})
            old = expected.get(facts.name)
            since = old.since if old and old.facts.uid == facts.uid else now
            expected[facts.name] = Expected(facts, since, now)
        return None


async def all_of(deeds: Iterable[Awaitable[T]]) -> list[T]:
    """Do all of these at once. Where some fail, the others are still done, and the first error is told."""
    done: list[T] = []
    for outcome in await asyncio.gather(*deeds, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        done.append(outcome)
    return done


def _obstacle(item: Object, error: ApiError) -> Obstacle | None:
    """What stands in the way of an object, where trying again at once does not help."""
    kind, words = item["kind"], str(error)
    if error.status == 403:
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in words else Reason(f"{kind}Forbidden")
    elif error.status == 404 and kind == "PodGroup":
        reason = Reason.NO_GANG_SCHEDULER
        words = f"spec.scheduling.gang: this cluster knows no {kind} of {item['apiVersion']}: install that scheduler"
    elif error.status in (400, 422):
        reason = Reason(f"{kind}Invalid")
    else:
        return None
    return Obstacle(reason=reason, message=words)


def _is_owned(found: Object, job: YoloTrainingJob) -> bool:
    owners = found["metadata"].get("ownerReferences") or ()
    return any(o.get("uid") == job.metadata.uid and o.get("controller") for o in owners)
