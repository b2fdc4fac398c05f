"""The executor: what it creates and deletes, and which of its pods the watch has not shown yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from support import fake_time, minimal
from support.fake_time import FakeClock
from yolojob_operator.control.executor import OBJECT_MEMORY_SECONDS, UNSEEN_MEMORY_SECONDS, Executor
from yolojob_operator.kube.api_client import ApiError
from yolojob_operator.plan.lifecycle import Plan

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import YoloTrainingJobStatus

KEY = ("default", "digits")


class Server:
    """An API server that accepts everything."""

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        metadata = {**item["metadata"], "uid": f"uid-{item['metadata']['name']}"}
        return {"kind": "PartialObjectMetadata", "metadata": metadata}


def executor(server: Any) -> Executor:
    return Executor(server)


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with fake_time.frozen_monotonic() as clock:
        yield clock


def job() -> YoloTrainingJob:
    document = minimal()
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    return YoloTrainingJob.model_validate(document)


def carry_out(running: Executor, **plan: Any) -> None:
    """Carry out a plan with these actions."""
    asyncio.run(running.execute(KEY, job(), Plan(status=YoloTrainingJobStatus(), **plan), lambda: True))


class TestUnseenPods:
    """Pods that were created and that the watch has not shown."""

    POD: ClassVar[dict[str, Any]] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "digits-worker-0", "namespace": "default"},
    }

    def test_unseen_with_a_stalled_watch_counts_since_the_first_creation(self, clock: FakeClock) -> None:
        """After a while a pod is no longer assumed to exist, and its creation is repeated, which finds the existing
        one.
        """
        running, start = executor(Server()), clock.now
        for _ in range(4):
            carry_out(running, create=(self.POD,))
            assert len(running.pods(KEY, [])) == 1
            clock.advance(60)
            assert running.pods(KEY, []) == []
        assert min(running.unseen()) == start

    def test_unseen_pod_that_is_not_created_again_is_forgotten(self, clock: FakeClock) -> None:
        """It was created and deleted before the watch could show it, or its job was deleted in the meantime."""
        running, start = executor(Server()), clock.now
        carry_out(running, create=(self.POD,))
        assert list(running.unseen()) == [start]
        clock.advance(UNSEEN_MEMORY_SECONDS + 1)
        assert list(running.unseen()) == []

    def test_shown_pod_is_no_longer_unseen(self, clock: FakeClock) -> None:
        """Also where it was created and deleted between two plans: then it is created again immediately."""
        running = executor(Server())
        carry_out(running, create=(self.POD,))
        running.shown(KEY, "uid-of-another-pod")
        assert len(running.pods(KEY, [])) == 1
        running.shown(KEY, "uid-digits-worker-0")
        assert running.pods(KEY, []) == []
        assert list(running.unseen()) == []

    def test_forget_of_a_deleted_job_leaves_no_unseen_pods(self, clock: FakeClock) -> None:
        running = executor(Server())
        carry_out(running, create=(self.POD,))
        running.forget(KEY)
        assert running.pods(KEY, []) == []
        assert list(running.unseen()) == []


class RefusingServer:
    """An API server that refuses every pod."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests = 0

    async def create(self, _: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        raise ApiError(self.status, "Refused", "by a test")


def gang(size: int) -> tuple[dict[str, Any], ...]:
    metadata = [{"name": f"digits-worker-{i}", "namespace": "default"} for i in range(size)]
    return tuple({"apiVersion": "v1", "kind": "Pod", "metadata": one} for one in metadata)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "PodInvalid"),
        (403, "PodForbidden"),
        (405, "FailedCreate"),
        (406, "FailedCreate"),
        (413, "FailedCreate"),
        (418, "FailedCreate"),
        (422, "PodInvalid"),
        (451, "FailedCreate"),
    ],
)
def test_refused_gang_is_one_request_and_an_obstacle(status: int, reason: str) -> None:
    server = RefusingServer(status)
    running = executor(server)
    carry_out(running, create=gang(1_000))
    obstacle = running.obstacle(KEY)
    assert obstacle is not None
    assert (server.requests, obstacle.reason) == (1, reason)


@pytest.mark.parametrize("status", [401, 408, 409, 429])
def test_temporary_refusal_is_no_obstacle(status: int) -> None:
    running = executor(RefusingServer(status))
    with pytest.raises(ApiError):
        carry_out(running, create=gang(4))
    assert running.obstacle(KEY) is None


@pytest.mark.parametrize("finalizers", [[], ["example.com/guard"]])
def test_name_of_a_terminating_pod_is_waited_for(finalizers: list[str]) -> None:
    class OccupiedServer:
        """An API server in which an earlier job of the same name has pods that are being deleted."""

        async def create(self, _: dict[str, Any]) -> None:
            return None

        async def get(self, item: dict[str, Any]) -> dict[str, Any]:
            deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}
            return {**item, "metadata": {**item["metadata"], "uid": "other", **deleted}}

    running = executor(OccupiedServer())
    carry_out(running, create=gang(2))
    obstacle = running.obstacle(KEY)
    assert obstacle is not None
    assert obstacle.reason == "NameConflict"
    assert obstacle.message.startswith("waits until the pod digits-worker-0 of an earlier job is gone")
    assert ("example.com/guard" in obstacle.message) == bool(finalizers)


class TestPodGroups:
    """A PodGroup is deleted once, and only if the job owns it."""

    GROUP: ClassVar[dict[str, Any]] = {"kind": "PodGroup", "metadata": {"name": "digits", "namespace": "default"}}

    class Groups(Server):
        def __init__(self, owner: str) -> None:
            self.owner, self.requests, self.deleted = owner, 0, 0

        async def delete_if(self, item: dict[str, Any], owned: Any) -> None:
            self.requests += 1
            owner = {"uid": self.owner, "controller": True}
            self.deleted += owned({"metadata": {**item["metadata"], "ownerReferences": [owner]}})

    @pytest.mark.parametrize(("owner", "deleted"), [("job-uid", 1), ("somebody", 0)])
    def test_pod_group_of_a_suspended_job_is_deleted_once_if_owned(self, owner: str, deleted: int) -> None:
        server = self.Groups(owner)
        running = executor(server)
        for _ in range(3):
            carry_out(running, disband=(self.GROUP,))
        assert (server.requests, server.deleted) == (1, deleted)
        carry_out(running, create=(self.GROUP,))
        carry_out(running, disband=(self.GROUP,))
        assert server.requests == 2, "it was created again in between"


def test_retry_continues_where_the_last_attempt_has_failed(clock: FakeClock) -> None:
    """Otherwise a job whose objects are many would get them only if all requests of one attempt succeed."""

    class FailingServer:
        """An API server that refuses every second request."""

        def __init__(self) -> None:
            self.created: list[str] = []
            self.refuses = False

        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            self.refuses = not self.refuses
            if self.refuses:
                raise ApiError(409, "Conflict", "by a test")
            self.created.append(item["kind"])
            return {**item, "metadata": {**item["metadata"], "uid": f"uid-{item['kind']}"}}

    server = FailingServer()
    running = executor(server)
    kinds = ("Service", "Secret", "NetworkPolicy")
    items = tuple(
        {"apiVersion": "v1", "kind": k, "metadata": {"name": "digits", "namespace": "default"}} for k in kinds
    )
    created = []
    for _ in range(4):
        with suppress(ApiError):
            carry_out(running, create=items)
        created.append(running.created(KEY))
    assert sorted(server.created) == sorted(kinds), "none is requested again"
    assert created == sorted(created)
    clock.advance(OBJECT_MEMORY_SECONDS + 1)
    for _ in range(2):
        with suppress(ApiError):
            carry_out(running, create=items)
    assert len(server.created) > len(kinds), "somebody may have deleted them in the meantime"
