"""The audit of the watches: deleted objects that no watch has reported, and changes that no watch has shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from support import fake_time
from support.fake_time import FakeClock, eventually
from yolojob_operator.control.reconciler import WATCH_STALL_SECONDS
from yolojob_operator.control.watch_audit import (
    AUDIT_INTERVAL_SECONDS,
    AUDIT_INTERVAL_SECONDS_PER_OBJECT,
    RECHECK_INTERVAL_SECONDS,
    SETTLE_SECONDS,
    WatchAudit,
)
from yolojob_operator.kopf_app.indices import Nodes
from yolojob_operator.kube.api_client import ApiError
from yolojob_operator.kube.types import Key
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

KEY = ("default", "digits")
MANY = 5000


class Lists:
    """An API server that only lists: resourceVersion by uid, by kind."""

    def __init__(self, **kinds: dict[str, int]) -> None:
        self.kinds = kinds
        self.failures = 0
        self.times: list[float] = []
        """When pods were listed."""

    async def versions(self, kind: str, _: Iterable[str]) -> dict[str, int]:
        if kind == "Pod":
            self.times.append(time.monotonic())
        if self.failures:
            self.failures -= 1
            raise ApiError(410, "Expired", "The provided continue parameter is too old")
        return self.kinds.get(kind, {})


def pod(uid: str, version: int) -> tuple[Key, PodFacts]:
    return KEY, PodFacts(name=uid, uid=uid, version=version, owner_uid="u", index=0, attempt=1, phase="Running")


def audit(lists: Any, pods: list[tuple[Key, PodFacts]], **jobs: int) -> WatchAudit:
    shown = {uid: (KEY, version) for uid, version in jobs.items()}
    return WatchAudit(lists, (), lambda: shown, lambda: pods, lambda: None)


async def lead() -> None:
    """This operator is always the leader."""


def start(running: WatchAudit) -> asyncio.Task[None]:
    """Run the audit and discard what it reports."""
    return asyncio.create_task(running.run(lead, lambda *_: None, lambda _: None))


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with fake_time.frozen_monotonic() as clock:
        yield clock


def seconds_unseen(running: WatchAudit, clock: FakeClock, *lists: dict[str, int]) -> list[float]:
    """For how long each change has not been shown, after these lists, a minute apart."""
    for listed in lists:
        running.compare(listed)
        clock.advance(60)
    return [clock.now - since for since in running.unseen()]


def test_unseen_job_never_shown_counts_since_the_first_list(clock: FakeClock) -> None:
    assert seconds_unseen(audit(Lists(), []), clock, {"unseen": 7}, {"unseen": 7}) == [120]


def test_unseen_pod_that_changes_again_counts_since_the_first_change(clock: FakeClock) -> None:
    running = audit(Lists(), [pod("pod", 5)])
    assert seconds_unseen(running, clock, {"pod": 5}, {"pod": 5}) == [], "there was no change"
    assert seconds_unseen(running, clock, {"pod": 6}, {"pod": 9}) == [120]


def test_unseen_pod_shown_late_counts_no_longer_without_another_list(clock: FakeClock) -> None:
    pods: list[tuple[Key, PodFacts]] = []
    running = audit(Lists(), pods)
    assert seconds_unseen(running, clock, {"pod": 5}) == [60]
    pods.append(pod("pod", 5))
    assert list(running.unseen()) == []
    assert seconds_unseen(running, clock, {"pod": 6}, {}) == [], "a deleted pod is not missed"


def test_living_nodes_without_the_deleted_nodes() -> None:
    old = NodeFacts(name="a", uid="old", version=3, ready=False)
    new = NodeFacts(name="a", uid="new", version=8, ready=True)
    nodes = Nodes({"a": [old, new], "b": [NodeFacts(name="b", uid="gone", version=1)]})
    assert nodes["a"] is new
    lists: Any = Lists()
    running = WatchAudit(lists, (), dict, list, lambda: nodes)
    running.ghosts = {"old", "gone"}
    assert running.living_nodes() == {"a": new}


@pytest.mark.parametrize("failures", [0, 2])
def test_take_when_a_watch_restarts_reports_deleted_objects(failures: int) -> None:
    """Also when a list fails first: then the audit is repeated."""
    lists = Lists(YoloTrainingJob={"stays": 1}, Pod={"there": 1})
    lists.failures = failures
    running = audit(lists, [pod("there", 1), pod("ghost", 1)], stays=1, went=1)
    reported: list[Any] = []

    async def live() -> None:
        auditing = asyncio.create_task(running.run(lead, lambda key, uid: reported.append((key, uid)), reported.append))
        running.watch_restarted()
        seconds = (failures + 1) * (AUDIT_INTERVAL_SECONDS + SETTLE_SECONDS)
        await eventually(lambda: len(reported) >= 2, "the deleted job and pod are reported", seconds=seconds)
        auditing.cancel()

    fake_time.run(live())
    assert reported[:2] == [(KEY, "went"), KEY]
    assert running.ghosts == {"ghost"}


def test_take_with_many_objects_lists_less_often() -> None:
    async def first_list(count: int) -> float:
        lists = Lists()
        began = time.monotonic()
        auditing = start(audit(lists, [pod(str(n), 1) for n in range(count)]))
        await eventually(lambda: lists.times, "the pods are listed", seconds=1000, every=1)
        auditing.cancel()
        return lists.times[0] - began

    assert fake_time.run(first_list(0)) == pytest.approx(AUDIT_INTERVAL_SECONDS + SETTLE_SECONDS)
    expected = MANY * AUDIT_INTERVAL_SECONDS_PER_OBJECT + SETTLE_SECONDS
    assert fake_time.run(first_list(MANY)) == pytest.approx(expected)


def test_take_with_an_unseen_object_lists_again_before_the_watch_counts_as_stalled() -> None:
    """Of thousands of pods some are always deleted while they are listed: no watch will ever show these."""
    pods = {str(n): 1 for n in range(MANY)}
    lists = Lists(Pod={**pods, "went": 7})
    running = audit(lists, [pod(*item) for item in pods.items()])

    async def live() -> None:
        auditing = start(running)
        running.watch_restarted()
        await eventually(lambda: list(running.unseen()), "one pod was listed and is not shown", every=1)
        lists.kinds["Pod"] = pods
        await eventually(lambda: not list(running.unseen()), "cleared", seconds=WATCH_STALL_SECONDS, every=1)
        await eventually(lambda: len(lists.times) == 3, "the pods are listed a third time", seconds=1000, every=1)
        auditing.cancel()

    fake_time.run(live())
    first, second, third = lists.times
    assert second - first == pytest.approx(RECHECK_INTERVAL_SECONDS + SETTLE_SECONDS)
    assert RECHECK_INTERVAL_SECONDS < WATCH_STALL_SECONDS / 2
    assert third - second > WATCH_STALL_SECONDS, "then the interval is the usual one"
