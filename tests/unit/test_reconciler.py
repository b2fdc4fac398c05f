"""What the reconciler keeps in mind between two plans."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, tzinfo
from typing import Any, ClassVar

import pytest
from support import minimal
from yolojob_operator.control import reconciler as module
from yolojob_operator.control import status_debounce
from yolojob_operator.control.metrics import Metrics
from yolojob_operator.control.reconciler import Reconciler
from yolojob_operator.kube.api_client import ApiError
from yolojob_operator.objects.pods import Defaults

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
        made = reconciler(server)
        made.job_seen(body(1))
        await made._reconcile(KEY)
        assert server.writes == 0, "the spec alone says what the first gang is"
        assert made.unhealthy_reason() == ""
        await made._reconcile(KEY)
        clock[0] += status_debounce.QUIET_SECONDS
        await made._reconcile(KEY)
        assert server.writes == 1
        clock[0] += module.WATCH_STALL_SECONDS + 1
        assert made.unhealthy_reason().startswith("the watch is deaf")
        assert made.watch_lag() > module.WATCH_STALL_SECONDS
        seen = body(server.version)
        made.job_seen({**seen, "status": {}})
        made._executor.forget(KEY)  # as if the pods had been shown, too
        assert made.unhealthy_reason() == ""
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
            clock[0] += status_debounce.QUIET_SECONDS * 0.75
            await made._reconcile(KEY)
            assert server.writes == 0
        clock[0] += status_debounce.QUIET_SECONDS * 0.5
        await made._reconcile(KEY)
        assert server.writes == 1
        await made.stop()

    asyncio.run(live())


def test_a_deleted_job_leaves_nothing(clock: list[float]) -> None:
    server = Server()

    async def live() -> None:
        made = reconciler(server)
        made.job_seen(body(1))
        await made._reconcile(KEY)
        made.job_gone(KEY, "of a namesake that was deleted before")
        assert list(made.statuses()), "this one is still there"
        made.job_gone(KEY, body(1)["metadata"]["uid"])
        rooms = (made, made._queue, made._executor, made._debounce, made._poller)
        kept = [name for room in rooms for name, it in vars(room).items() if isinstance(it, dict | set) and it]
        assert not kept
        assert list(made._executor.unseen()) == []
        assert list(made.statuses()) == []
        await made.stop()

    asyncio.run(live())


def test_somebody_elses_job_gets_no_status(clock: list[float]) -> None:
    server = Server()

    async def live() -> None:
        made = reconciler(server)
        theirs = body(1)
        theirs["spec"]["runPolicy"] = {"managedBy": "kueue.x-k8s.io/multikueue"}
        made.job_seen(theirs)
        for _ in range(3):
            await made._reconcile(KEY)
            clock[0] += status_debounce.QUIET_SECONDS
        assert server.writes == 0
        await made.stop()

    asyncio.run(live())


def reconciler(server: Server) -> Reconciler:
    metrics = Metrics(lambda: [])
    made = Reconciler(server, Defaults(image="x"), metrics, (), lambda key: [], lambda: [], lambda: None)  # type: ignore[arg-type]
    made.leadership.hold_until(float("inf"))
    return made


def test_another_job_of_the_same_name_inherits_nothing(clock: list[float]) -> None:
    async def live() -> None:
        made = reconciler(Server())
        made.job_seen(body(1))
        await made._reconcile(KEY)
        assert list(made._executor.unseen())
        other = body(9)
        other["metadata"]["uid"] = "another"
        made.job_seen(other)
        assert list(made._executor.unseen()) == []
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
        asyncio.run(module._run_forever("it", loop))
    assert len(begun) == 3


class Refusing(Server):
    """An API server that creates nothing, and says why."""

    def __init__(self, status: int = 500) -> None:
        super().__init__()
        self.status, self.asked = status, 0
        self.statuses: list[dict[str, Any]] = []

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        raise ApiError(self.status, "InternalError", "failed calling webhook mpod.kb.io")

    async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        self.statuses.append(status)
        return await super().patch_status(body, status)


async def until(made: Reconciler, seconds: float, done: Any) -> None:
    """Let the reconciler work until something is so."""
    made.start()
    try:
        async with asyncio.timeout(seconds):
            while not done():
                await asyncio.sleep(0.02)
    finally:
        await made.stop()


def young(version: int, **policy: Any) -> dict[str, Any]:
    made = body(version)
    made["metadata"]["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made["spec"]["runPolicy"] = policy
    return made


def test_a_deadline_does_not_wait_for_deeds_that_fail() -> None:
    """And why they fail is told meanwhile."""
    server = Refusing()

    async def live() -> None:
        made = reconciler(server)
        made.job_seen(young(1, activeDeadlineSeconds=5))
        began = time.monotonic()
        await until(made, 20, lambda: server.statuses and server.statuses[-1]["phase"] == "Failed")
        told = {c["reason"]: c["message"] for c in server.statuses[0]["conditions"]}
        assert "failed calling webhook" in told["FailedCreate"]
        # A job begins when its first status is written: after three tries, 0.1 and 0.5 s apart.
        assert 5 <= time.monotonic() - began < 7.5

    asyncio.run(live())


def test_a_refusal_is_not_asked_for_again_and_again() -> None:
    """Each pod's words name the pod; they are one obstacle all the same."""

    class Quota(Refusing):
        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            self.asked += 1
            await asyncio.sleep(0.01 * random.Random(self.asked).random())
            name = item["metadata"]["name"]
            if item["kind"] != "Pod":
                return await Server.create(self, item)
            raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: exceeded quota')

    server = Quota()

    async def live() -> None:
        made = reconciler(server)
        wide = young(1)
        wide["spec"] |= {"workers": {"replicas": 16}, "train": {"batch": 16}}
        made.job_seen(wide)
        made.start()
        await asyncio.sleep(3)
        await made.stop()

    asyncio.run(live())
    assert 17 <= server.asked <= 2 * 17, "at once, and once more when the obstacle is told"


def test_nothing_is_made_for_a_job_that_is_gone(clock: list[float]) -> None:
    class Gone(Server):
        made: ClassVar[list[str]] = []

        async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> None:  # type: ignore[override]
            return None

        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            self.made.append(item["kind"])
            return await super().create(item)

    async def live() -> None:
        made = reconciler(Gone())
        asleep = body(1)
        asleep["spec"]["storage"] = None  # which is told at once
        made.job_seen(asleep)
        await made._reconcile(KEY)
        assert KEY not in made._jobs
        await made.stop()

    asyncio.run(live())
    assert Gone.made == []


def test_who_does_not_lead_any_more_finishes_no_plan(clock: list[float]) -> None:
    """The lease ran out between two steps."""

    class Slow(Server):
        made: ClassVar[list[str]] = []

        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            clock[0] += 6
            self.made.append(item["kind"])
            return await super().create(item)

    async def live() -> None:
        made = reconciler(Slow())
        made.leadership.hold_until(clock[0] + 5)
        made.job_seen(body(1))
        await made._reconcile(KEY)
        assert Slow.made == ["Service"]
        assert list(made.statuses()) == []
        await made.stop()

    asyncio.run(live())


def test_what_is_missed_while_nobody_can_ask_is_no_deafness(clock: list[float]) -> None:
    made = reconciler(Server())
    made.watch_audit.compare({"unseen": 7})
    clock[0] += 1000
    assert "deaf" in made.unhealthy_reason()
    made.leadership.hold_until(0)
    assert made.unhealthy_reason() == "", "a standby has nothing to show"
    made.leadership.hold_until(float("inf"))
    clock[0] += 100
    assert made.unhealthy_reason() == "", "whoever begins anew begins to count"
    clock[0] += 100
    assert "deaf" in made.unhealthy_reason()


def test_a_namesake_found_by_a_conflict_inherits_nothing(clock: list[float]) -> None:
    class Replaced(Server):
        async def get(self, item: dict[str, Any]) -> dict[str, Any]:
            other = body(9)
            other["metadata"]["uid"] = "another"
            return other

    async def live() -> None:
        made = reconciler(Replaced())
        made.job_seen(body(1))
        made._rejected[KEY] = 1
        await made._refresh(KEY)
        assert made._jobs[KEY]["metadata"]["uid"] == "another"
        assert made._rejected == {}
        await made.stop()

    asyncio.run(live())


def test_a_broken_job_of_somebody_else_is_left_alone(clock: list[float]) -> None:
    server = Server()

    async def live() -> None:
        made = reconciler(server)
        theirs = body(1)
        theirs["spec"] |= {"runPolicy": {"managedBy": "example.com/other"}, "nonsense": 1}
        made.job_seen(theirs)
        await made._reconcile(KEY)
        await made.stop()

    asyncio.run(live())
    assert server.writes == 0


def test_a_standby_keeps_nothing_of_jobs_that_went(clock: list[float]) -> None:
    """It takes nothing from the queue, perhaps for weeks."""

    async def live() -> None:
        made = reconciler(Server())
        made.leadership.hold_until(0)
        made.start()
        for n in range(100):
            each = body(n + 1)
            each["metadata"] |= {"name": f"job-{n}", "uid": f"uid-{n}"}
            made.job_seen(each)
            await asyncio.sleep(0)
            made.job_gone(("default", f"job-{n}"), f"uid-{n}")
        assert len(made._queue) == 0
        await made.stop()

    asyncio.run(live())


def test_nothing_is_kept_of_a_job_that_went_while_its_deeds_failed() -> None:
    class Failing(Refusing):
        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            made.job_gone(KEY, "job-uid")
            return await super().create(item)

    async def live() -> None:
        made.job_seen(body(1))
        with pytest.raises(ApiError):
            await made._reconcile(KEY)
        kept = [name for name, it in vars(made._executor).items() if isinstance(it, dict | set) and it]
        assert not kept
        await made.stop()

    made = reconciler(Failing())
    asyncio.run(live())
