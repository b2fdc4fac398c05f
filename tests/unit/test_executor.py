"""The executor: what it creates and deletes, and which of its pods the watch has not shown yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from support import fake_time, minimal
from support.fake_time import FakeClock
from yolojob_operator.control.executor import UNSEEN_MEMORY_SECONDS, Executor
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
