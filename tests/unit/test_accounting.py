"""Accounting of time and money: the parts add up to the wall clock, and a pod's running time is charged once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plans import Timeline, after, pod
from yolojob_operator.plan.node_facts import NodeFacts
from yolojob_operator.plan.pod_facts import PodFacts

from yolojob.api.constants import ExitCode
from yolojob.api.status import Progress, Timing
from yolojob.api.trainer_report import Report

CREATED = after(-10)
PRICE = {"pricing": {"perWorkerHour": 3.6}}


def gang(attempt: int, requested: float, **facts: Any) -> list[PodFacts]:
    """Two pods, scheduled 2 s after they were requested, started 3 s (the first) and 4 s after that."""
    times: dict[str, Any] = {"created": after(requested), "scheduled": after(requested + 2)}
    return [pod(i, attempt=attempt, **{**times, "started": after(requested + 5 + i), **facts}) for i in range(2)]


def report(training: float, *, carried: float = 0.0) -> Report:
    timing = Timing(startup_seconds=2.0, rendezvous_seconds=1.0, training_seconds={"forward": training})
    return Report(progress=Progress(epoch=1, epochs=9), timing=timing, carried_seconds=carried)


def test_timing_of_the_wait_is_split_by_the_times_of_the_pods() -> None:
    timeline = Timeline()
    timeline.at(0)
    timeline.at(2, pod(0, "Pending", node="", started=None, scheduled=None))
    timeline.at(30, *gang(1, 0), report=report(20.0))
    timing = timeline.timing
    assert (timing.queued_seconds, timing.scheduling_seconds, timing.image_pull_seconds) == (10, 2, 3)
    assert timing.running_seconds == 25
    assert timing.unaccounted_seconds == 25 - (2 + 1 + 20)
    assert sum(timing.parts.values()) == (after(30) - CREATED).total_seconds()


def test_timing_without_a_change_is_updated_only_after_a_minute() -> None:
    timeline = Timeline()
    timeline.at(0)
    first = timeline.at(10, *gang(1, 0)).status
    assert timeline.at(40, *gang(1, 0)).status == first
    later = timeline.at(80, *gang(1, 0)).status
    assert later != first
    assert sum(timeline.timing.parts.values()) == 90


def test_lost_time_is_the_training_time_that_no_checkpoint_contains() -> None:
    """Attempt 1 runs from second 5 to 99. Its checkpoint contains 60 s of that, from which attempt 2 continues."""
    timeline = Timeline(**PRICE)
    timeline.at(0)
    timeline.at(90, *gang(1, 0), report=report(80.0))
    ended = [pod(0, "Failed", exit_code=ExitCode.PEER_LOST, started=after(5), finished=after(99)), *gang(1, 0)[1:]]
    ended[1] = pod(1, "Failed", exit_code=1, started=after(6), finished=after(99))
    timeline.at(100, *ended)
    assert timeline.status.attempt == 2
    timeline.at(103)
    timeline.at(150, *gang(2, 103), report=report(60.0 + 30.0, carried=60.0))
    timing = timeline.timing
    assert timing.lost_seconds == 94 - 60
    assert timing.shutdown_seconds == 1
    assert timing.restart_seconds == 3
    assert timing.scheduling_seconds == 4
    assert timing.running_seconds == 94 + 42
    assert sum(timing.parts.values()) == (after(150) - CREATED).total_seconds()
    cost = timeline.cost
    assert (cost.currency, cost.per_hour) == ("USD", 7.2)
    assert cost.lost == pytest.approx(7.2 * 34 / 3600)


def test_suspended_time_is_counted_neither_as_queued_nor_as_restart() -> None:
    timeline = Timeline()
    timeline.at(0)
    timeline.at(20, *gang(1, 0), report=report(10.0))
    timeline.spec = {"runPolicy": {"suspend": True}}
    timeline.at(30, *gang(1, 0))
    timeline.at(60)
    timeline.spec = {}
    timeline.at(130)
    timeline.at(131)
    timeline.at(150, *gang(2, 131), report=report(10.0 + 9.0, carried=13.0))
    assert timeline.timing.suspended_seconds == 100
    assert timeline.timing.lost_seconds == 25 - 13
    assert timeline.timing.restart_seconds == 0, "its pods are requested immediately"
    assert sum(timeline.timing.parts.values()) == (after(150) - CREATED).total_seconds()


def test_queued_time_includes_the_wait_for_admission() -> None:
    timeline = Timeline(scheduling={"gang": "kueue", "queue": "q"})
    timeline.at(0)
    held: dict[str, Any] = {
        "node": "",
        "started": None,
        "scheduled": None,
        "gated": True,
        "waiting": "SchedulingGated: ",
    }
    timeline.at(1, pod(0, "Pending", **held), pod(1, "Pending", **held))
    timeline.at(41, pod(0, "Pending", **{**held, "gated": False}), pod(1, "Pending", **{**held, "gated": False}))
    timeline.at(60, *gang(1, 41))
    assert timeline.timing.queued_seconds == 10 + 40
    assert timeline.timing.scheduling_seconds == 1 + 2, "in the first second the gate was not known yet"


def test_cost_is_the_running_time_of_each_pod() -> None:
    """Worker 0 runs from second 5 to 65, worker 1 from 6 to 60, although its end is seen only later."""
    timeline = Timeline(**PRICE)
    timeline.at(0)
    timeline.at(30, *gang(1, 0))
    timeline.at(61, gang(1, 0)[0], pod(1, "Succeeded", started=after(6), finished=after(60)))
    timeline.at(
        66,
        pod(0, "Succeeded", started=after(5), finished=after(65)),
        pod(1, "Succeeded", started=after(6), finished=after(60)),
    )
    record = timeline.status.history[-1]
    assert record.pod_seconds == 60 + 54
    assert record.per_worker_hour == 3.6
    assert record.cost == pytest.approx(114 * 3.6 / 3600)
    assert timeline.cost.so_far == pytest.approx(record.cost)
    assert timeline.cost.estimated_total == pytest.approx(record.cost)


def test_cost_of_a_pod_that_runs_longer_than_its_job_includes_all_its_time() -> None:
    timeline = Timeline(**PRICE)
    timeline.at(0)
    timeline.at(30, *gang(1, 0))
    done = pod(0, "Succeeded", started=after(5), finished=after(40))
    timeline.at(45, done, gang(1, 0)[1])
    assert timeline.status.completion_time == after(45)
    timeline.at(50, done)  # worker 1 is gone: when it ended was not seen, so it is unknown
    ended = pod(1, "Failed", started=after(6), finished=after(48))
    timeline = Timeline(**PRICE)
    timeline.at(0)
    timeline.at(45, done, gang(1, 0)[1])
    timeline.at(50, done, ended)
    assert timeline.status.history[-1].pod_seconds == 35 + 42


def test_price_changed_during_an_attempt_applies_to_the_next_one() -> None:
    timeline = Timeline(**PRICE)
    timeline.at(0)
    timeline.at(30, *gang(1, 0))
    timeline.spec = {"pricing": {"perWorkerHour": 360.0}}
    timeline.at(95, *gang(1, 0))
    assert timeline.status.history[0].per_worker_hour == 3.6
    timeline.at(100, *gang(1, 0, deleted=after(130)))
    timeline.at(105)
    timeline.at(120, *gang(2, 105))
    assert timeline.status.history[1].per_worker_hour == 360.0
    assert timeline.cost.so_far == pytest.approx(sum(r.cost or 0.0 for r in timeline.status.history))


def test_price_without_pricing_comes_from_the_node() -> None:
    labels = {"node.kubernetes.io/instance-type": "g2-standard-4", "cloud.google.com/gke-spot": "true"}
    timeline = Timeline()
    timeline.at(0)
    timeline.at(30, *gang(1, 0), nodes={"node-0": NodeFacts(name="node-0", labels=labels)})
    assert timeline.status.history[-1].per_worker_hour == 0.424
    assert "g2-standard-4" in (timeline.cost.price_source or "")


def test_cost_without_a_known_price_is_unknown_and_not_zero() -> None:
    timeline = Timeline(pricing={"machine": "g2-standard-8"})
    timeline.at(0)
    planned = timeline.at(30, *gang(1, 0)).status
    assert planned.cost is not None
    assert planned.cost.so_far is None
    assert "g2-standard-4" in (planned.cost.price_source or ""), "the message suggests the nearest name"


class TestAnyHistory:
    """The sums are right for any sequence of pods and times."""

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
    def test_timing_without_reports_adds_up_to_the_wall_clock(self, scenes: list[tuple[int, str, bool]]) -> None:
        timeline, now, requested_at = Timeline(**PRICE, runPolicy={"backoffLimit": 99}), 0.0, dict[int, float]()
        for step, kind, suspend in scenes:
            now += step
            timeline.spec = {**PRICE, "runPolicy": {"backoffLimit": 99, "suspend": suspend}}
            attempt = timeline.latest.attempt if timeline.latest else 1
            requested = requested_at.setdefault(attempt, now)
            timeline.at(now, *self.pods(kind, attempt, requested, now))
            timing = timeline.timing
            assert timing.updated_at is not None
            wall = (timing.updated_at - CREATED).total_seconds()
            before_running = (
                timing.queued_seconds,
                timing.scheduling_seconds,
                timing.image_pull_seconds,
                timing.restart_seconds,
            )
            running_or_later = timing.suspended_seconds, timing.running_seconds, timing.shutdown_seconds
            assert sum(s or 0.0 for s in (*before_running, *running_or_later)) == wall
            total = sum(r.cost or 0.0 for r in timeline.status.history)
            if timeline.status.cost and len(timeline.status.history) < 10:
                assert timeline.cost.so_far == pytest.approx(total)

    @staticmethod
    def pods(kind: str, attempt: int, requested: float, now: float) -> list[PodFacts]:
        def moment(later: float) -> datetime | None:
            return after(requested + later) if requested + later <= now else None

        if kind == "none":
            return []
        placed, started = moment(1), moment(2) if kind != "placed" else None
        if kind == "pending":
            placed = started = None
        facts: dict[str, Any] = {"created": after(requested), "scheduled": placed, "started": started}
        facts["node"] = "node-0" if placed else ""
        if kind == "failed" and started:
            facts |= {"finished": after(now), "exit_code": 1}
        if kind == "deleted":
            facts["deleted"] = after(now) + timedelta(seconds=30)
        phase = "Failed" if kind == "failed" and started else "Running" if started else "Pending"
        return [pod(i, phase, attempt=attempt, **facts) for i in range(2)]


def test_cost_planned_again_at_the_same_time_is_unchanged() -> None:
    timeline = Timeline(**PRICE)
    timeline.at(0)
    for _ in range(3):
        timeline.at(70, *gang(1, 0))
    assert timeline.status.history[-1].pod_seconds == 65 + 64


def test_training_time_of_an_attempt_without_a_step_is_not_carried_over() -> None:
    """Attempt 1 trains for 80 s and saves nothing. Attempt 2 has not made its first step."""
    timeline = Timeline()
    timeline.at(0)
    timeline.at(90, *gang(1, 0), report=report(80.0))
    timeline.at(100, pod(0, "Failed", started=after(5), finished=after(100)), *gang(1, 0)[1:])
    timeline.at(103)
    timeline.at(115, *gang(2, 103), report=Report(timing=Timing(startup_seconds=2.0)))
    assert timeline.timing.training_seconds == {}
    assert sum(timeline.timing.parts.values()) == (after(115) - CREATED).total_seconds()


def test_report_cannot_change_the_times_that_the_operator_measures() -> None:
    timeline = Timeline()
    timeline.at(0)
    wrong = Timing(queued_seconds=1000.0, running_seconds=3.0, updated_at=after(9999), startup_seconds=1.0)
    timeline.at(30, *gang(1, 0), report=Report(timing=wrong))
    assert (timeline.timing.queued_seconds, timeline.timing.running_seconds) == (10, 25)
    many = Timing(training_seconds={f"phase{i}": 0.1 for i in range(100)})
    timeline.at(95, *gang(1, 0), report=Report(timing=many))
    assert len(timeline.timing.training_seconds) == 32, "as many as the API server accepts"


def test_running_time_of_a_missing_worker_0_lasts_until_it_is_missed() -> None:
    timeline = Timeline()
    timeline.at(0)
    timeline.at(30, *gang(1, 0), report=report(20.0))
    timeline.at(80, *gang(1, 0)[1:])
    assert (timeline.timing.scheduling_seconds, timeline.timing.running_seconds) == (2, 75)
    assert sum(timeline.timing.parts.values()) == 90


def test_cost_in_another_currency_is_not_added() -> None:
    timeline = Timeline(pricing={"perWorkerHour": 3.6, "currency": "USD"})
    timeline.at(0)
    timeline.at(30, *gang(1, 0))
    timeline.at(100, pod(0, "Failed", started=after(5), finished=after(100)), *gang(1, 0)[1:])
    before = timeline.cost.so_far
    timeline.spec = {"pricing": {"perWorkerHour": 1.0, "currency": "EUR"}}
    timeline.at(103)
    timeline.at(200, *gang(2, 103))
    cost = timeline.cost
    assert (cost.currency, cost.so_far) == ("USD", before)
    assert "EUR" in (cost.price_source or "")
