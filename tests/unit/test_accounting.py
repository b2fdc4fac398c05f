"""Time and money: the parts are the wall clock, and a pod's running time is charged once."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import after, job, make, pod
from yolojob_operator.plan.lifecycle import Plan
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.constants import ExitCode
from yolojob.api.status import Progress, Timing, YoloTrainingJobStatus
from yolojob.api.trainer_report import Report

CREATED = after(-10)
PRICE = {"pricing": {"perWorkerHour": 3.6}}


def written(status: YoloTrainingJobStatus) -> YoloTrainingJobStatus:
    """As it comes back from the API server."""
    return YoloTrainingJobStatus.model_validate(json.loads(status.model_dump_json(by_alias=True, exclude_none=True)))


class Story:
    """A job whose plan is made again and again, as pods and time go on."""

    def __init__(self, **spec: Any) -> None:
        self.spec, self.status = spec, None

    def at(self, seconds: float, *pods: PodFacts, **observed: Any) -> Plan:
        made = make(job(self.status, **self.spec), *pods, now=after(seconds), **observed)
        self.status = written(made.status)
        return made

    @property
    def timing(self) -> Timing:
        assert self.status is not None
        assert self.status.timing is not None
        return self.status.timing


def gang(attempt: int, asked: float, **facts: Any) -> list[PodFacts]:
    """Two pods: placed 2 s after they were asked for, started 3 s (the first) and 4 s after that."""
    times = {"created": after(asked), "scheduled": after(asked + 2)}
    return [
        pod(i, attempt=attempt, **{**times, "started": after(asked + 5 + i), **facts})  # type: ignore[arg-type]
        for i in range(2)
    ]


def said(training: float, *, carried: float = 0.0) -> Report:
    timing = Timing(startup_seconds=2.0, rendezvous_seconds=1.0, training_seconds={"forward": training})
    return Report(progress=Progress(epoch=1, epochs=9), timing=timing, carried_seconds=carried)


def test_the_wait_is_split_by_what_the_pods_say() -> None:
    story = Story()
    story.at(0)
    story.at(2, pod(0, "Pending", node="", started=None, scheduled=None))
    story.at(30, *gang(1, 0), report=said(20.0))
    timing = story.timing
    assert (timing.queued_seconds, timing.scheduling_seconds, timing.image_pull_seconds) == (10, 2, 3)
    assert timing.running_seconds == 25
    assert timing.unaccounted_seconds == 25 - (2 + 1 + 20)
    assert sum(timing.parts.values()) == (after(30) - CREATED).total_seconds()


def test_time_alone_is_no_news_until_the_account_is_old() -> None:
    story = Story()
    story.at(0)
    first = story.at(10, *gang(1, 0)).status
    assert story.at(40, *gang(1, 0)).status == first
    later = story.at(80, *gang(1, 0)).status
    assert later != first
    assert sum(story.timing.parts.values()) == 90


def test_what_no_checkpoint_has_kept_is_lost() -> None:
    """Attempt 1 runs from 5 to 100; its checkpoint has 60 s of that; attempt 2 goes on from there."""
    story = Story(**PRICE)
    story.at(0)
    story.at(90, *gang(1, 0), report=said(80.0))
    dead = [pod(0, "Failed", exit_code=ExitCode.PEER_LOST, started=after(5), finished=after(99)), *gang(1, 0)[1:]]
    dead[1] = pod(1, "Failed", exit_code=1, started=after(6), finished=after(99))
    story.at(100, *dead)
    assert story.status is not None
    assert story.status.attempt == 2
    story.at(103)
    story.at(150, *gang(2, 103), report=said(60.0 + 30.0, carried=60.0))
    timing = story.timing
    assert timing.lost_seconds == 94 - 60
    assert timing.shutdown_seconds == 1
    assert timing.restart_seconds == 3
    assert timing.scheduling_seconds == 4
    assert timing.running_seconds == 94 + 42
    assert sum(timing.parts.values()) == (after(150) - CREATED).total_seconds()
    cost = story.status.cost
    assert cost is not None
    assert (cost.currency, cost.per_hour) == ("USD", 7.2)
    assert cost.lost == pytest.approx(7.2 * 34 / 3600)


def test_suspended_time_is_neither_queued_nor_lost() -> None:
    story = Story()
    story.at(0)
    story.at(20, *gang(1, 0), report=said(10.0))
    story.spec = {"runPolicy": {"suspend": True}}
    story.at(30, *gang(1, 0))
    story.at(60)
    story.spec = {}
    story.at(130)
    story.at(131)
    story.at(150, *gang(2, 131), report=said(10.0 + 9.0, carried=13.0))
    assert story.timing.suspended_seconds == 100
    assert story.timing.lost_seconds == 25 - 13
    assert story.timing.restart_seconds == 0, "its pods are asked for at once"
    assert sum(story.timing.parts.values()) == (after(150) - CREATED).total_seconds()


def test_waiting_for_admission_is_queueing() -> None:
    story = Story(scheduling={"gang": "kueue", "queue": "q"})
    story.at(0)
    held = {"node": "", "started": None, "scheduled": None, "gated": True, "waiting": "SchedulingGated: "}
    story.at(1, pod(0, "Pending", **held), pod(1, "Pending", **held))
    story.at(41, pod(0, "Pending", **{**held, "gated": False}), pod(1, "Pending", **{**held, "gated": False}))
    story.at(60, *gang(1, 41))
    assert story.timing.queued_seconds == 10 + 40
    assert story.timing.scheduling_seconds == 1 + 2, "the first second nobody knew of the gate"


def test_each_pods_running_time_is_charged() -> None:
    """Worker 0 from 5 to 65, worker 1 from 6 to 60, though it is gone when it is counted."""
    story = Story(**PRICE)
    story.at(0)
    story.at(30, *gang(1, 0))
    story.at(61, gang(1, 0)[0], pod(1, "Succeeded", started=after(6), finished=after(60)))
    story.at(
        66,
        pod(0, "Succeeded", started=after(5), finished=after(65)),
        pod(1, "Succeeded", started=after(6), finished=after(60)),
    )
    assert story.status is not None
    assert story.status.cost is not None
    record = story.status.history[-1]
    assert record.pod_seconds == 60 + 54
    assert record.per_worker_hour == 3.6
    assert record.cost == pytest.approx(114 * 3.6 / 3600)
    assert story.status.cost.so_far == pytest.approx(record.cost)
    assert story.status.cost.estimated_total == pytest.approx(record.cost)


def test_a_pod_that_outlives_the_job_is_still_paid() -> None:
    story = Story(**PRICE)
    story.at(0)
    story.at(30, *gang(1, 0))
    done = pod(0, "Succeeded", started=after(5), finished=after(40))
    story.at(45, done, gang(1, 0)[1])
    assert story.status is not None
    assert story.status.completion_time == after(45)
    story.at(50, done)  # worker 1 has gone; what was not seen of it is not known
    ended = pod(1, "Failed", started=after(6), finished=after(48))
    story = Story(**PRICE)
    story.at(0)
    story.at(45, done, gang(1, 0)[1])
    story.at(50, done, ended)
    assert story.status is not None
    assert story.status.history[-1].pod_seconds == 35 + 42


def test_the_price_is_fixed_when_the_attempt_begins() -> None:
    story = Story(**PRICE)
    story.at(0)
    story.at(30, *gang(1, 0))
    story.spec = {"pricing": {"perWorkerHour": 360.0}}
    story.at(95, *gang(1, 0))
    assert story.status is not None
    assert story.status.history[0].per_worker_hour == 3.6
    story.at(100, *gang(1, 0, deleted=after(130)))
    story.at(105)
    story.at(120, *gang(2, 105))
    assert story.status.history[1].per_worker_hour == 360.0
    assert story.status.cost is not None
    assert story.status.cost.so_far == pytest.approx(sum(r.cost or 0.0 for r in story.status.history))


def test_the_price_comes_from_the_node() -> None:
    labels = {"node.kubernetes.io/instance-type": "g2-standard-4", "cloud.google.com/gke-spot": "true"}
    story = Story()
    story.at(0)
    story.at(30, *gang(1, 0), nodes={"node-0": NodeFacts(name="node-0", labels=labels)})
    assert story.status is not None
    assert story.status.cost is not None
    assert story.status.history[-1].per_worker_hour == 0.424
    assert "g2-standard-4" in (story.status.cost.price_source or "")


def test_no_price_is_said_and_is_not_nothing() -> None:
    story = Story(pricing={"machine": "g2-standard-8"})
    story.at(0)
    made = story.at(30, *gang(1, 0)).status
    assert made.cost is not None
    assert made.cost.so_far is None
    assert "g2-standard-4" in (made.cost.price_source or ""), "the nearest name is offered"


class TestAnyHistory:
    """Whatever happens, and whenever it is looked at."""

    @given(
        st.lists(
            st.tuples(
                st.integers(1, 50),
                st.sampled_from(["none", "pending", "placed", "running", "deleted", "failed"]),
                st.booleans(),
            ),
            min_size=1,
            max_size=12,
        )
    )
    def test_the_parts_without_the_trainers_are_the_wall_clock(self, scenes: list[tuple[int, str, bool]]) -> None:
        story, now, began = Story(**PRICE, runPolicy={"backoffLimit": 99}), 0.0, {}
        for step, kind, suspend in scenes:
            now += step
            story.spec = {**PRICE, "runPolicy": {"backoffLimit": 99, "suspend": suspend}}
            attempt = story.status.attempt if story.status else 1
            asked = began.setdefault(attempt, now)
            story.at(now, *self.pods(kind, attempt, asked, now))
            timing = story.timing
            assert timing.updated_at is not None
            wall = (timing.updated_at - CREATED).total_seconds()
            own = timing.queued_seconds, timing.scheduling_seconds, timing.image_pull_seconds, timing.restart_seconds
            others = timing.suspended_seconds, timing.running_seconds, timing.shutdown_seconds
            assert sum(s or 0.0 for s in (*own, *others)) == wall
            assert story.status is not None
            total = sum(r.cost or 0.0 for r in story.status.history)
            if story.status.cost and len(story.status.history) < 10:
                assert story.status.cost.so_far == pytest.approx(total)

    @staticmethod
    def pods(kind: str, attempt: int, asked: float, now: float) -> list[PodFacts]:
        def moment(later: float) -> datetime | None:
            return after(asked + later) if asked + later <= now else None

        if kind == "none":
            return []
        placed, started = moment(1), moment(2) if kind != "placed" else None
        if kind == "pending":
            placed = started = None
        facts: dict[str, Any] = {"created": after(asked), "scheduled": placed, "started": started}
        facts["node"] = "node-0" if placed else ""
        if kind == "failed" and started:
            facts |= {"finished": after(now), "exit_code": 1}
        if kind == "deleted":
            facts["deleted"] = after(now) + timedelta(seconds=30)
        phase = "Failed" if kind == "failed" and started else "Running" if started else "Pending"
        return [pod(i, phase, attempt=attempt, **facts) for i in range(2)]


def test_a_recorded_moment_is_never_counted_twice() -> None:
    """The same plan, made anew at the same second."""
    story = Story(**PRICE)
    story.at(0)
    for _ in range(3):
        story.at(70, *gang(1, 0))
    assert story.status is not None
    assert story.status.history[-1].pod_seconds == 65 + 64


def test_what_an_attempt_without_a_step_has_taken_over_is_not_counted_again() -> None:
    """Attempt 1 trains 80 s and saves nothing; attempt 2 ends before its first step."""
    story = Story()
    story.at(0)
    story.at(90, *gang(1, 0), report=said(80.0))
    story.at(100, pod(0, "Failed", started=after(5), finished=after(100)), *gang(1, 0)[1:])
    story.at(103)
    story.at(115, *gang(2, 103), report=Report(timing=Timing(startup_seconds=2.0)))
    assert story.timing.training_seconds == {}
    assert sum(story.timing.parts.values()) == (after(115) - CREATED).total_seconds()


def test_a_report_does_not_write_the_operators_part_of_the_account() -> None:
    story = Story()
    story.at(0)
    lie = Timing(queued_seconds=1000.0, running_seconds=3.0, updated_at=after(9999), startup_seconds=1.0)
    story.at(30, *gang(1, 0), report=Report(timing=lie))
    assert (story.timing.queued_seconds, story.timing.running_seconds) == (10, 25)
    many = Timing(training_seconds={f"phase{i}": 0.1 for i in range(100)})
    story.at(95, *gang(1, 0), report=Report(timing=many))
    assert len(story.timing.training_seconds) == 32, "as many as the API server takes"


def test_a_first_worker_that_vanished_has_run_until_then() -> None:
    story = Story()
    story.at(0)
    story.at(30, *gang(1, 0), report=said(20.0))
    story.at(80, *gang(1, 0)[1:])
    assert (story.timing.scheduling_seconds, story.timing.running_seconds) == (2, 75)
    assert sum(story.timing.parts.values()) == 90


def test_two_currencies_are_not_added_up() -> None:
    story = Story(pricing={"perWorkerHour": 3.6, "currency": "USD"})
    story.at(0)
    story.at(30, *gang(1, 0))
    story.at(100, pod(0, "Failed", started=after(5), finished=after(100)), *gang(1, 0)[1:])
    before = story.status.cost.so_far  # type: ignore[union-attr]
    story.spec = {"pricing": {"perWorkerHour": 1.0, "currency": "EUR"}}
    story.at(103)
    story.at(200, *gang(2, 103))
    cost = story.status.cost  # type: ignore[union-attr]
    assert (cost.currency, cost.so_far) == ("USD", before)
    assert "EUR" in cost.price_source
