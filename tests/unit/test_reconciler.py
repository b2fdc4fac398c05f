"""The reconciler: what it remembers of a job from plan to plan, and what it forgets."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Iterable
from datetime import UTC
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pytest
from support import fake_time, minimal
from support.fake_time import FakeDatetime, eventually
from yolojob_operator.control import reconciler as reconciler_module
from yolojob_operator.control.metrics import OperatorMetrics
from yolojob_operator.control.reconciler import WATCH_STALL_SECONDS, Reconciler, WatchCache
from yolojob_operator.control.status_debounce import QUIET_SECONDS
from yolojob_operator.kube.api_client import ApiError, Conflict
from yolojob_operator.kube.types import EventDraft
from yolojob_operator.objects.defaults import Defaults

KEY = ("default", "digits")
UID = "job-uid"


@pytest.fixture(autouse=True)
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of the reconciler advances with the monotonic clock."""
    monkeypatch.setattr(reconciler_module, "datetime", FakeDatetime)


class Server:
    """An API server that accepts every change and counts. It shows nothing through watches, and cannot list."""

    def __init__(self) -> None:
        self.version, self.inside = 1, True
        self.created: list[str] = []
        """Kinds."""
        self.statuses: list[dict[str, Any]] = []
        self.events: list[tuple[str, str]] = []
        """The uid of the job, and the message."""

    @property
    def changes(self) -> int:
        return len(self.created) + len(self.statuses) + len(self.events)

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        self.created.append(item["kind"])
        metadata = {**item["metadata"], "uid": f"uid-{item['metadata']['name']}"}
        return {"kind": "PartialObjectMetadata", "metadata": metadata}

    async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any] | None:
        self.version += 1
        self.statuses.append(status)
        return {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}, "status": status}

    async def post_event(self, body: dict[str, Any], event: EventDraft) -> None:
        self.events.append((body["metadata"]["uid"], event.message))

    async def versions(self, kind: str, namespaces: Iterable[str]) -> dict[str, int]:
        raise ApiError(503, "ServiceUnavailable", "this server cannot list")


class RefusingServer(Server):
    """An API server that creates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    async def create(self, item: dict[str, Any]) -> dict[str, Any]:
        self.requests += 1
        raise ApiError(500, "InternalError", "failed calling webhook mpod.kb.io")


def body(version: int, uid: str = UID) -> dict[str, Any]:
    document = minimal(storage={"uri": "pvc://runs"})
    document["metadata"] |= {
        "namespace": "default",
        "uid": uid,
        "generation": 1,
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "resourceVersion": str(version),
    }
    return document


def new_body(**policy: Any) -> dict[str, Any]:
    """A job that was created at this moment."""
    document = body(1)
    document["metadata"]["creationTimestamp"] = FakeDatetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document["spec"]["runPolicy"] = policy
    return document


def reconciler(server: Any, metrics: OperatorMetrics | None = None) -> Reconciler:
    """A reconciler that leads. Its watch shows no pods, and it may not see nodes."""
    cache = WatchCache(pods_of=lambda key: [], all_pods=lambda: [], nodes=lambda: None)
    created = Reconciler(server, Defaults(image="x"), metrics or OperatorMetrics(lambda: []), (), cache)
    created.leadership.hold_until(float("inf"))
    return created


def shown_jobs(running: Reconciler) -> list[tuple[tuple[str, str], int]]:
    """Key and resourceVersion of the jobs that the reconciler has in memory."""
    return [(key, version) for key, version, _ in running.statuses()]


def remembers(running: Reconciler, text: str) -> bool:
    """Whether an object that the reconciler holds contains this string. Its tasks and the test's server do not
    count.
    """
    skipped = (type, ModuleType, FunctionType, BuiltinFunctionType, asyncio.AbstractEventLoop, asyncio.Task, Server)
    found, pending = set[int](), [running]
    while pending:
        item: Any = pending.pop()
        if id(item) in found or isinstance(item, skipped):
            continue
        if item == text:
            return True
        found.add(id(item))
        pending += gc.get_referents(item)
    return False


def test_unhealthy_reason_when_own_writes_are_not_shown_names_the_stalled_watch() -> None:
    """The first gang is created without a status. As soon as the status is written, the watch must show it."""
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        running.job_seen(body(1))
        await asyncio.sleep(QUIET_SECONDS / 2)
        assert server.created
        assert server.statuses == [], "the first gang follows from the spec alone"
        assert running.unhealthy_reason() == ""
        await asyncio.sleep(QUIET_SECONDS)
        assert len(server.statuses) == 1
        await asyncio.sleep(WATCH_STALL_SECONDS + 1)
        assert running.unhealthy_reason() != ""
        assert running.watch_lag() > WATCH_STALL_SECONDS
        running.job_seen({**body(server.version), "status": {}})
        await running.pods_changed(KEY, "uid-digits-worker-0")
        assert running.unhealthy_reason() == "", "the watch has shown the status and the pod"
        await running.stop()

    fake_time.run(live())


def test_minor_change_of_a_status_is_written_after_a_quiet_time() -> None:
    """Each plan has new timestamps in its messages, which alone are no change."""
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        await asyncio.sleep(0)  # the first resync finds no job, and the next one is a minute later
        running.job_seen(body(1))  # its pods are created, which is a change for the next plan
        for _ in range(2):
            await asyncio.sleep(QUIET_SECONDS * 0.75)
            running.wake(KEY)
            await asyncio.sleep(0.1)
            assert server.statuses == []
        await asyncio.sleep(QUIET_SECONDS * 0.5)
        assert len(server.statuses) == 1
        await running.stop()

    fake_time.run(live())


def test_deleted_job_is_forgotten() -> None:
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        running.job_seen(body(1))
        await asyncio.sleep(QUIET_SECONDS / 2)
        running.job_gone(KEY, "uid-of-an-older-job-of-this-name")
        assert shown_jobs(running) == [(KEY, 1)], "this job still exists"
        assert remembers(running, UID)
        running.job_gone(KEY, UID)
        assert shown_jobs(running) == []
        assert running.watch_lag() == 0
        assert not remembers(running, UID)
        assert not remembers(running, KEY[1])
        changes = server.changes
        await asyncio.sleep(3600)
        assert server.changes == changes
        await running.stop()

    fake_time.run(live())


def test_job_managed_by_another_controller_gets_no_status() -> None:
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        foreign = body(1)
        foreign["spec"]["runPolicy"] = {"managedBy": "kueue.x-k8s.io/multikueue"}
        running.job_seen(foreign)
        await asyncio.sleep(600)
        assert server.changes == 0
        await running.stop()

    fake_time.run(live())


def test_new_job_of_the_same_name_inherits_nothing() -> None:
    async def live() -> None:
        running = reconciler(Server())
        running.start()
        running.job_seen(body(1))
        await asyncio.sleep(QUIET_SECONDS / 2)
        assert running.watch_lag() > 0, "the watch has not shown the pod"
        running.job_seen(body(9, uid="another"))
        assert running.watch_lag() == 0
        running.job_seen(body(2))
        assert shown_jobs(running) == [(KEY, 9)], "a late event of the first job does not change the second one"
        assert not remembers(running, UID)
        await running.stop()

    fake_time.run(live())


def test_broken_job_keeps_its_stored_status() -> None:
    """Neither its spec nor its status can be parsed. A later version of the operator may understand both."""
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        broken = body(1)
        broken["spec"]["train"] = {"epochs": "many"}
        condition = {"type": "Later", "status": "True", "reason": "New", "lastTransitionTime": "2026-01-01T12:00:00Z"}
        broken["status"] = {"phase": "Dreaming", "attempt": 3, "restarts": 2, "conditions": [condition]}
        running.job_seen(broken)
        await asyncio.sleep(1)
        await running.stop()

    fake_time.run(live())
    status = server.statuses[0]
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Dreaming", 3, 2)
    assert [c["type"] for c in status["conditions"]] == ["Later", "Accepted"]


def test_loop_that_raises_an_unexpected_error_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Server):
        lists = 0

        async def versions(self, kind: str, namespaces: Iterable[str]) -> dict[str, int]:
            self.lists += 1
            raise ValueError("an error that no code expects")

    server = Failing()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        await eventually(lambda: server.lists >= 3, "the audit lists again after each error", seconds=600, every=1)
        await running.stop()

    fake_time.run(live())
    assert server.lists >= 3
    assert "watch-audit: restarted after an error" in caplog.text


def test_deadline_of_a_job_whose_pods_cannot_be_created_is_kept() -> None:
    """And the status reports why they cannot be created."""
    server = RefusingServer()

    async def live() -> float:
        running = reconciler(server)
        running.start()
        running.job_seen(new_body(activeDeadlineSeconds=5))
        start = time.monotonic()
        await eventually(lambda: server.statuses and server.statuses[-1]["phase"] == "Failed", "the job fails")
        await running.stop()
        return time.monotonic() - start

    # A job starts when its first status is written: after three tries, 0.1 s and 0.5 s apart.
    assert 5 <= fake_time.run(live()) < 7.5
    messages = {c["reason"]: c["message"] for c in server.statuses[0]["conditions"]}
    assert "failed calling webhook" in messages["FailedCreate"]


def test_exceeded_quota_is_not_requested_again_and_again() -> None:
    """Each message names another pod, and still it is the same obstacle."""

    class Quota(RefusingServer):
        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            self.requests += 1
            await asyncio.sleep(0.01 * random.Random(self.requests).random())
            name = item["metadata"]["name"]
            if item["kind"] != "Pod":
                return await Server.create(self, item)
            raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: exceeded quota')

    server = Quota()

    async def live() -> None:
        running = reconciler(server)
        wide = new_body()
        wide["spec"] |= {"workers": {"replicas": 16}, "train": {"batch": 16}}
        running.start()
        running.job_seen(wide)
        await asyncio.sleep(3)
        await running.stop()

    fake_time.run(live())
    once = 4
    assert once <= server.requests <= 2 * once, (
        "the service, the secret, the policy and one pod; again for the obstacle"
    )


def test_job_deleted_before_its_status_is_written_gets_no_pods() -> None:
    class Gone(Server):
        async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any] | None:
            return None

    server = Gone()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        without_storage = body(1)
        without_storage["spec"]["storage"] = None  # an event reports this, so the status is written first
        running.job_seen(without_storage)
        await asyncio.sleep(1)
        assert shown_jobs(running) == []
        await running.stop()

    fake_time.run(live())
    assert server.created == []


def test_leadership_lost_between_two_requests_stops_the_plan() -> None:
    class Slow(Server):
        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(6)
            return await super().create(item)

    server = Slow()

    async def live() -> None:
        running = reconciler(server)
        running.leadership.hold_until(time.monotonic() + 5)
        running.start()
        running.job_seen(body(1))
        await asyncio.sleep(60)
        assert server.created == ["Service"]
        assert list(running.statuses()) == []
        await running.stop()

    fake_time.run(live())


def test_unhealthy_reason_of_a_standby_is_empty() -> None:
    with fake_time.frozen_monotonic() as clock:
        running = reconciler(Server())
        running.watch_audit.compare({"unseen": 7})
        clock.advance(1000)
        assert running.unhealthy_reason() != ""
        running.leadership.hold_until(0)
        assert running.unhealthy_reason() == "", "a standby writes nothing that a watch could show"
        running.leadership.hold_until(float("inf"))
        clock.advance(100)
        assert running.unhealthy_reason() == "", "a new leader counts from the start of its leadership"
        clock.advance(100)
        assert running.unhealthy_reason() != ""


def test_new_job_of_the_same_name_found_after_a_conflict_inherits_nothing() -> None:
    """Both are so broken that the API server rejects their status, so each is reported by one event."""

    class Replaced(Server):
        error: ApiError = ApiError(422, "Invalid", "status.phase: unsupported value")

        async def patch_status(self, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any] | None:
            raise self.error

        async def get(self, item: dict[str, Any]) -> dict[str, Any]:
            self.error = Replaced.error
            return broken(9, "another")

    def broken(version: int, uid: str) -> dict[str, Any]:
        document = body(version, uid)
        document["spec"]["train"] = {"epochs": "many"}
        return document

    server = Replaced()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        running.job_seen(broken(1, UID))
        await asyncio.sleep(1)
        running.wake(KEY)
        await asyncio.sleep(1)
        assert [uid for uid, _ in server.events] == [UID], "reported once"
        server.error = Conflict(409, "Conflict", "the object has been modified")
        running.wake(KEY)
        await asyncio.sleep(1)
        assert shown_jobs(running) == [(KEY, 9)]
        assert [uid for uid, _ in server.events] == [UID, "another"]
        await running.stop()

    fake_time.run(live())


def test_broken_job_managed_by_another_controller_gets_no_status() -> None:
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        running.start()
        foreign = body(1)
        foreign["spec"] |= {"runPolicy": {"managedBy": "example.com/other"}, "nonsense": 1}
        running.job_seen(foreign)
        await asyncio.sleep(600)
        await running.stop()

    fake_time.run(live())
    assert server.changes == 0


def test_standby_keeps_nothing_of_deleted_jobs() -> None:
    """A standby takes nothing from the queue, possibly for weeks."""
    metrics = OperatorMetrics(lambda: [])

    async def live() -> None:
        running = reconciler(Server(), metrics)
        running.leadership.hold_until(0)
        running.start()
        for n in range(100):
            document = body(n + 1, f"uid-{n}")
            document["metadata"]["name"] = f"job-{n}"
            running.job_seen(document)
            await asyncio.sleep(0)
            running.job_gone(("default", f"job-{n}"), f"uid-{n}")
        assert metrics.registry.get_sample_value("yolojob_reconcile_queue_length") == 0
        assert not remembers(running, "uid-99")
        assert not remembers(running, "job-99")
        await running.stop()

    fake_time.run(live())


def test_job_deleted_while_its_pods_cannot_be_created_is_forgotten() -> None:
    class Failing(RefusingServer):
        async def create(self, item: dict[str, Any]) -> dict[str, Any]:
            running.job_gone(KEY, UID)
            return await super().create(item)

    server = Failing()
    running = reconciler(server)

    async def live() -> None:
        running.start()
        running.job_seen(body(1))
        await asyncio.sleep(600)
        await running.stop()

    fake_time.run(live())
    assert server.requests == 1
    assert not remembers(running, UID)
    assert not remembers(running, KEY[1])


def test_new_leader_posts_the_events_that_its_predecessor_did_not() -> None:
    """Once for each time that it begins to lead."""
    server = Server()

    async def live() -> None:
        running = reconciler(server)
        ended = FakeDatetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        history = [
            {"attempt": 1, "workers": 1, "endTime": ended, "reason": "OOMKilled", "message": "too much"},
            {"attempt": 2, "workers": 1, "image": "x"},
        ]
        job = new_body()
        job["status"] = {"phase": "Restarting", "attempt": 2, "restarts": 1, "history": history}
        running.start()
        running.job_seen(job)
        await asyncio.sleep(1)
        running.wake(KEY)
        await asyncio.sleep(1)
        posted = [message for _, message in server.events if "OOMKilled" in message]
        assert posted == ["attempt 1 ended: OOMKilled: too much"]
        running.leadership.hold_until(0)
        running.leadership.hold_until(float("inf"))
        running.wake(KEY)
        await asyncio.sleep(1)
        assert sum("OOMKilled" in message for _, message in server.events) == 2
        await running.stop()

    fake_time.run(live())
