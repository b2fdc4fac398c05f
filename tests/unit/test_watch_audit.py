"""A list shows what no watch has shown. For a moment that is nothing; and what no list shows is a ghost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from support import eventually
from yolojob_operator.control import watch_audit as module
from yolojob_operator.control.reconciler import WATCH_STALL_SECONDS
from yolojob_operator.control.watch_audit import WatchAudit
from yolojob_operator.kopf_app.handlers import Nodes
from yolojob_operator.kube.api_client import ApiError
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import Key, PodFacts

KEY = ("default", "digits")


class Lists:
    """An API server that only lists: resourceVersion by uid, by kind."""

    def __init__(self, **kinds: dict[str, int]) -> None:
        self.kinds = kinds
        self.failures = 0

    async def versions(self, kind: str, _: Iterable[str]) -> dict[str, int]:
        if self.failures:
            self.failures -= 1
            raise ApiError(410, "Expired", "The provided continue parameter is too old")
        return self.kinds.get(kind, {})


def pod(uid: str, version: int) -> tuple[Key, PodFacts]:
    return KEY, PodFacts(name=uid, uid=uid, version=version, owner_uid="u", index=0, attempt=1, phase="Running")


def census(lists: Lists, pods: list[tuple[Key, PodFacts]], **jobs: int) -> WatchAudit:
    shown = {uid: (KEY, version) for uid, version in jobs.items()}
    return WatchAudit(lists, (), lambda: shown, lambda: pods, lambda: None)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def waits(made: WatchAudit, clock: list[float], *listed: dict[str, int]) -> list[float]:
    """The seconds for which each change has waited to be shown, after these lists, a minute apart."""
    for each in listed:
        made.compare(each)
        clock[0] += 60
    return [clock[0] - since for since in made.unseen()]


def test_a_job_that_is_never_shown_is_missed_since_the_first_list(clock: list[float]) -> None:
    assert waits(census(Lists(), []), clock, {"unseen": 7}, {"unseen": 7}) == [120]


def test_a_pod_whose_change_is_never_shown_is_missed_however_often_it_changes(clock: list[float]) -> None:
    made = census(Lists(), [pod("pod", 5)])
    assert waits(made, clock, {"pod": 5}, {"pod": 5}) == [], "there was no change"
    assert waits(made, clock, {"pod": 6}, {"pod": 9}) == [120]


def test_one_that_is_shown_late_is_missed_no_more_though_nobody_lists_again(clock: list[float]) -> None:
    pods: list[tuple[Key, PodFacts]] = []
    made = census(Lists(), pods)
    assert waits(made, clock, {"pod": 5}) == [60]
    pods.append(pod("pod", 5))
    assert list(made.unseen()) == []
    assert waits(made, clock, {"pod": 6}, {}) == [], "and one that went is missed by nobody"


def test_a_node_that_went_unseen_is_no_more() -> None:
    old = NodeFacts(name="a", uid="old", version=3, ready=False)
    new = NodeFacts(name="a", uid="new", version=8, ready=True)
    nodes = Nodes({"a": [old, new], "b": [NodeFacts(name="b", uid="gone", version=1)]})
    assert nodes["a"] is new
    made = WatchAudit(Lists(), (), dict, list, lambda: nodes)  # type: ignore[arg-type]
    made.ghosts = {"old", "gone"}
    assert made.living_nodes() == {"a": new}


@pytest.mark.parametrize("failures", [0, 2])
def test_what_is_gone_is_told_when_a_watch_begins_anew(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Also when a list fails first: then it is counted again."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(module, "AUDIT_INTERVAL_SECONDS", 0.01 if failures else 60.0)
    monkeypatch.setattr(module, "AUDIT_INTERVAL_SECONDS_PER_OBJECT", 0.0)
    lists = Lists(YoloTrainingJob={"stays": 1}, Pod={"there": 1})
    lists.failures = failures
    made = census(lists, [pod("there", 1), pod("ghost", 1)], stays=1, went=1)
    told: list[Any] = []

    async def ours() -> None:
        """It is always our turn."""

    async def live() -> None:
        counting = asyncio.create_task(made.take(ours, lambda key, uid: told.append((key, uid)), told.append))
        made.watch_restarted()
        await asyncio.to_thread(eventually, lambda: len(told) >= 2, "both are told", seconds=5, every=0.01)
        counting.cancel()

    asyncio.run(live())
    assert told[:2] == [(KEY, "went"), KEY]
    assert made.ghosts == {"ghost"}


def test_the_more_there_are_the_rarer_they_are_counted() -> None:
    assert census(Lists(), [])._pause() == module.AUDIT_INTERVAL_SECONDS
    many = [pod(str(n), 1) for n in range(5000)]
    assert census(Lists(), many)._pause() == pytest.approx(5000 * module.AUDIT_INTERVAL_SECONDS_PER_OBJECT)


def test_what_is_missed_is_looked_for_again_before_it_is_an_alarm(clock: list[float]) -> None:
    """Of thousands of pods one always goes while they are listed: no watch will ever show it."""
    made = census(Lists(), [pod(str(n), 1) for n in range(5000)])
    made.compare({"went": 7})
    assert made._pause() < WATCH_STALL_SECONDS / 2
    clock[0] += made._pause()
    made.compare({})
    assert list(made.unseen()) == []
    assert made._pause() > WATCH_STALL_SECONDS
