"""What is done, what came of it, and what the watch has not shown yet."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from support import minimal
from yolojob_operator.control import executor as module
from yolojob_operator.control.executor import UNSEEN_MEMORY_SECONDS, Executor
from yolojob_operator.plan.lifecycle import Plan

from yolojob.api.job import YoloTrainingJob
from yolojob.api.status import YoloTrainingJobStatus

KEY = ("default", "digits")


class Server:
    """An API server that takes everything."""

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        metadata = {**item["metadata"], "uid": f"uid-{item['metadata']['name']}"}
        return {"kind": "PartialObjectMetadata", "metadata": metadata}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def job() -> YoloTrainingJob:
    document = minimal()
    document["metadata"] |= {"namespace": "default", "uid": "job-uid"}
    return YoloTrainingJob.model_validate(document)


def always() -> bool:
    return True


class TestExpected:
    """Pods that were created and that the watch has not shown."""

    POD: ClassVar[dict[str, Any]] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "digits-worker-0", "namespace": "default"},
    }

    @staticmethod
    def plan_of(pod: dict[str, Any]) -> Plan:
        return Plan(status=YoloTrainingJobStatus(), create=(pod,))

    def test_a_deaf_watch_is_noticed_by_them_too(self, clock: list[float]) -> None:
        """They count as there for a while, then are created again, in vain: they exist. All the time they are unseen."""
        server = Server()
        deeds = Executor(server)  # type: ignore[arg-type]
        for _ in range(4):
            asyncio.run(deeds.carry_out(KEY, job(), self.plan_of(self.POD), always))
            assert len(deeds.pods(KEY, [])) == 1
            clock[0] += 60
            assert deeds.pods(KEY, []) == []
        assert min(deeds.unseen()) == 1000.0

    def test_one_that_was_never_heard_of_again_is_forgotten(self, clock: list[float]) -> None:
        """Created and deleted before the watch could show it, or its job was deleted meanwhile."""
        server = Server()
        deeds = Executor(server)  # type: ignore[arg-type]
        asyncio.run(deeds.carry_out(KEY, job(), self.plan_of(self.POD), always))
        assert list(deeds.unseen()) == [1000.0]
        clock[0] += UNSEEN_MEMORY_SECONDS + 1
        assert list(deeds.unseen()) == []

    def test_one_that_was_shown_is_expected_no_more(self, clock: list[float]) -> None:
        """Also where it was created and deleted between two plans: it is to be made again at once."""
        deeds = Executor(Server())  # type: ignore[arg-type]
        asyncio.run(deeds.carry_out(KEY, job(), self.plan_of(self.POD), always))
        deeds.shown(KEY, "of another pod")
        assert len(deeds.pods(KEY, [])) == 1
        deeds.shown(KEY, "uid-digits-worker-0")
        assert deeds.pods(KEY, []) == []
        assert list(deeds.unseen()) == []


class TestDisbanding:
    """A PodGroup goes once, and only where it is ours."""

    GROUP: ClassVar[dict[str, Any]] = {"kind": "PodGroup", "metadata": {"name": "digits", "namespace": "default"}}

    class Groups(Server):
        def __init__(self, owner: str) -> None:
            self.owner, self.asked, self.deleted = owner, 0, 0

        async def delete_if(self, item: dict[str, Any], owned: Any) -> None:
            self.asked += 1
            owner = {"uid": self.owner, "controller": True}
            self.deleted += owned({"metadata": {**item["metadata"], "ownerReferences": [owner]}})

    @pytest.mark.parametrize(("owner", "deleted"), [("job-uid", 1), ("somebody", 0)])
    def test_once(self, owner: str, deleted: int) -> None:
        server = self.Groups(owner)
        deeds = Executor(server)  # type: ignore[arg-type]
        asleep = Plan(status=YoloTrainingJobStatus(), disband=(self.GROUP,))
        for _ in range(3):
            asyncio.run(deeds.carry_out(KEY, job(), asleep, always))
        assert (server.asked, server.deleted) == (1, deleted)
        asyncio.run(deeds.carry_out(KEY, job(), Plan(status=YoloTrainingJobStatus(), create=(self.GROUP,)), always))
        asyncio.run(deeds.carry_out(KEY, job(), asleep, always))
        assert server.asked == 2, "it was made again meanwhile"
