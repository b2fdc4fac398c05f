"""What the reconciler keeps in mind between two plans."""

from __future__ import annotations

import asyncio
from datetime import datetime, tzinfo
from typing import Any, ClassVar

import pytest
from support import minimal
from yolojob_operator import reconciler as module
from yolojob_operator.deeds import REMEMBERED_SECONDS, Deeds
from yolojob_operator.facts import PodFacts
from yolojob_operator.metrics import Metrics
from yolojob_operator.plan import Plan
from yolojob_operator.pods import Defaults
from yolojob_operator.reconciler import Reconciler

from yolojob.job import YoloTrainingJob
from yolojob.status import YoloTrainingJobStatus

KEY = ("default", "digits")


class Server:
    """An API server that takes everything and counts; no watch."""

    def __init__(self) -> None:
        self.version, self.writes, self.inside = 1, 0, True

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        metadata = {**item["metadata"], "uid": f"uid-{item['metadata']['name']}"}
        return {"kind": "PartialObjectMetadata", "metadata": metadata}

    async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.writes += 1
        return {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}, "status": status}

    async def post_event(self, *_: Any) -> None:
        """Nobody reads it."""


def body(version: int) -> dict[str, Any]:
    document = minimal(storage={"uri": "pvc://runs"})
    document["metadata"] |= {
        "namespace": "default",
        "uid": "job-uid",
        "generation": 1,
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "resourceVersion": str(version),
    }
    return document


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_watch_that_does_not_show_our_own_writes_is_deaf(clock: list[float]) -> None:
    """The first gang is made without a status; when that is written at last, the watch has to show it."""
    server = Server()

    async def live() -> None:
        made = Reconciler(
            server, Defaults(image="x"), Metrics(lambda: []), (), lambda key: [], lambda: [], lambda: None
        )  # type: ignore[arg-type]
        made.job_seen(body(1))
        await made._reconcile(KEY)
        assert server.writes == 0, "the spec alone says what the first gang is"
        assert made.ailment() == ""
        await made._reconcile(KEY)
        clock[0] += module.MINOR_SECONDS
        await made._reconcile(KEY)
        assert server.writes == 1
        clock[0] += module.DEAF_SECONDS + 1
        assert made.ailment().startswith("the watch is deaf")
        assert made.watch_lag() > module.DEAF_SECONDS
        seen = body(server.version)
        made.job_seen({**seen, "status": {}})
        made._deeds.forget(KEY)  # as if the pods had been shown, too
        assert made.ailment() == ""
        await made.stop()

    asyncio.run(live())


def test_minor_news_is_written_when_it_is_quiet_about_a_job(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plan says its words anew, with new times; that is no news."""
    server = Server()

    class Wall(datetime):
        """The wall clock goes on with the other, and with it the times of conditions."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(1_767_268_800 + clock[0], tz)

    monkeypatch.setattr(module, "datetime", Wall)

    async def live() -> None:
        made = reconciler(server)
        made.job_seen(body(1))
        await made._reconcile(KEY)  # its pods are created: that is news for the next plan
        for _ in range(2):
            clock[0] += module.MINOR_SECONDS * 0.75
            await made._reconcile(KEY)
            assert server.writes == 0
        clock[0] += module.MINOR_SECONDS * 0.5
        await made._reconcile(KEY)
        assert server.writes == 1
        await made.stop()

    asyncio.run(live())


def test_a_deleted_job_leaves_nothing(clock: list[float]) -> None:
    server = Server()

    async def live() -> None:
        made = Reconciler(
            server, Defaults(image="x"), Metrics(lambda: []), (), lambda key: [], lambda: [], lambda: None
        )  # type: ignore[arg-type]
        made.job_seen(body(1))
        await made._reconcile(KEY)
        made.lead(True)
        made.job_gone(KEY, "of a namesake that was deleted before")
        assert list(made.statuses()), "this one is still there"
        made.job_gone(KEY, body(1)["metadata"]["uid"])
        kept = {name: value for name, value in vars(made).items() if isinstance(value, dict | set) and value}
        assert set(kept) <= {"_queued"}, kept
        assert list(made._deeds.unseen()) == []
        assert list(made.statuses()) == []
        await made.stop()

    asyncio.run(live())


def test_somebody_elses_job_gets_no_status(clock: list[float]) -> None:
    server = Server()

    async def live() -> None:
        made = Reconciler(
            server, Defaults(image="x"), Metrics(lambda: []), (), lambda key: [], lambda: [], lambda: None
        )  # type: ignore[arg-type]
        theirs = body(1)
        theirs["spec"]["runPolicy"] = {"managedBy": "kueue.x-k8s.io/multikueue"}
        made.job_seen(theirs)
        for _ in range(3):
            await made._reconcile(KEY)
            clock[0] += module.MINOR_SECONDS
        assert server.writes == 0
        await made.stop()

    asyncio.run(live())


def reconciler(server: Server, seen: list[tuple[tuple[str, str], PodFacts]] | None = None) -> Reconciler:
    metrics = Metrics(lambda: [])
    return Reconciler(server, Defaults(image="x"), metrics, (), lambda key: [], lambda: seen or [], lambda: None)  # type: ignore[arg-type]


class TestDeaf:
    """A list shows what no watch has shown. For a moment that is nothing."""

    @staticmethod
    def later(made: Reconciler, clock: list[float], *listed: dict[str, int]) -> str:
        for each in listed:
            made._compare(each)
            clock[0] += 70
        return made.ailment()

    def test_a_job_that_is_never_shown(self, clock: list[float]) -> None:
        made = reconciler(Server())
        assert self.later(made, clock, {"unseen": 7}) == ""
        assert "deaf" in self.later(made, clock, {"unseen": 7})

    def test_a_pod_whose_change_is_never_shown(self, clock: list[float]) -> None:
        old = PodFacts(name="p", uid="pod", version=5, owner_uid="job-uid", index=0, attempt=1, phase="Running")
        made = reconciler(Server(), [(KEY, old)])
        assert self.later(made, clock, {"pod": 5}, {"pod": 5}, {"pod": 5}) == "", "there was no change"
        assert "deaf" in self.later(made, clock, {"pod": 6}, {"pod": 9}), "however often it changes since"

    def test_one_that_is_shown_a_little_later(self, clock: list[float]) -> None:
        seen: list[tuple[tuple[str, str], PodFacts]] = []
        made = reconciler(Server(), seen)
        made._compare({"pod": 5})
        seen.append((KEY, PodFacts(name="p", uid="pod", version=5, owner_uid="u", index=0, attempt=1, phase="Running")))
        made._all_pods = lambda: seen  # type: ignore[method-assign]
        assert self.later(made, clock, {"pod": 6}, {}) == "", "and one that went is missed by nobody"


def test_another_job_of_the_same_name_inherits_nothing(clock: list[float]) -> None:
    async def live() -> None:
        made = reconciler(Server())
        made.job_seen(body(1))
        await made._reconcile(KEY)
        assert list(made._deeds.unseen())
        other = body(9)
        other["metadata"]["uid"] = "another"
        made.job_seen(other)
        assert list(made._deeds.unseen()) == []
        made.job_seen(body(2))
        assert made._jobs[KEY]["metadata"]["uid"] == "another", "late news of the first is not news of the second"
        await made.stop()

    asyncio.run(live())


def test_the_memory_of_a_broken_job_is_kept(clock: list[float]) -> None:
    """Its spec cannot be read, nor its status; a version of us that can will find there what was."""
    server = Server()
    written: list[dict[str, Any]] = []

    async def live() -> None:
        made = reconciler(server)
        broken = body(1)
        broken["spec"]["train"] = {"epochs": "many"}
        condition = {"type": "Later", "status": "True", "reason": "New", "lastTransitionTime": "2026-01-01T12:00:00Z"}
        broken["status"] = {"phase": "Dreaming", "attempt": 3, "restarts": 2, "conditions": [condition]}

        async def patch_status(body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
            written.append(status)
            return await Server.patch_status(server, body, status)

        server.patch_status = patch_status  # type: ignore[method-assign]
        made.job_seen(broken)
        await made._reconcile(KEY)
        await made.stop()

    asyncio.run(live())
    assert (written[0]["phase"], written[0]["attempt"], written[0]["restarts"]) == ("Dreaming", 3, 2)
    assert [c["type"] for c in written[0]["conditions"]] == ["Later", "Accepted"]


def test_a_loop_that_fails_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    async def loop() -> None:
        begun.append(1)
        if len(begun) < 3:
            raise ValueError("of no kind that anybody thought of")
        raise asyncio.CancelledError

    async def at_once(_: float) -> None:
        """No pause."""

    monkeypatch.setattr(module.asyncio, "sleep", at_once)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(module._for_ever("it", loop))
    assert len(begun) == 3


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
        deeds, job = Deeds(server), YoloTrainingJob.model_validate(body(1))  # type: ignore[arg-type]
        for _ in range(4):
            asyncio.run(deeds.carry_out(KEY, job, self.plan_of(self.POD)))
            assert len(deeds.pods(KEY, [])) == 1
            clock[0] += 60
            assert deeds.pods(KEY, []) == []
        assert min(deeds.unseen()) == 1000.0

    def test_one_that_was_never_heard_of_again_is_forgotten(self, clock: list[float]) -> None:
        """Created and deleted before the watch could show it, or its job was deleted meanwhile."""
        server = Server()
        deeds, job = Deeds(server), YoloTrainingJob.model_validate(body(1))  # type: ignore[arg-type]
        asyncio.run(deeds.carry_out(KEY, job, self.plan_of(self.POD)))
        assert list(deeds.unseen()) == [1000.0]
        clock[0] += REMEMBERED_SECONDS + 1
        assert list(deeds.unseen()) == []
