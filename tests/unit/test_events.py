"""Events that an operator was killed before it posted: the next operator posts them."""

from __future__ import annotations

from datetime import timedelta

from support.plans import after, failed, job, make_plan, pod, running
from yolojob_operator.plan.events import MAX_AGE, past_events
from yolojob_operator.plan.lifecycle import Plan

from yolojob.api.status import YoloTrainingJobStatus


def posted(planned: Plan) -> list[tuple[str, str, str, str]]:
    return [(e.type, e.reason, e.message, e.occasion) for e in planned.events]


def implied(status: YoloTrainingJobStatus, seconds: float = 5) -> list[tuple[str, str, str, str]]:
    return [(e.type, e.reason, e.message, e.occasion) for e in past_events(status, after(seconds))]


def test_restart_is_told_again_in_the_same_words_and_once() -> None:
    planned = make_plan(job(running().status), failed(0, 1), failed(1, 1))
    assert [reason for _, reason, _, _ in posted(planned)] == ["Restarting"]
    assert implied(planned.status) == posted(planned)


def test_restarts_of_several_attempts_are_told_apart() -> None:
    first = make_plan(job(running().status), failed(0, 1))
    second = make_plan(job(first.status), failed(0, 1, attempt=2), now=after(60))
    occasions = [occasion for _, _, _, occasion in implied(second.status, 70)]
    assert occasions == ["attempt 1", "attempt 2"]


def test_success_and_failure_are_told_again_in_the_same_words() -> None:
    done = make_plan(job(running().status), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert implied(done.status) == posted(done)
    lost = make_plan(job(running().status), failed(0, 2))
    assert [reason for _, reason, _, _ in posted(lost)] == ["Failed"]
    assert implied(lost.status) == posted(lost)


def test_old_events_are_not_told_again() -> None:
    planned = make_plan(job(running().status), failed(0, 1), failed(1, 1))
    assert implied(planned.status, (MAX_AGE + timedelta(seconds=1)).total_seconds()) == []
    done = make_plan(job(running().status), pod(0, "Succeeded"), pod(1, "Succeeded"))
    assert implied(done.status, MAX_AGE.total_seconds() + 1) == []


def test_suspension_is_no_restart() -> None:
    suspended = make_plan(job(running().status, runPolicy={"suspend": True}), pod(0), pod(1))
    resumed = make_plan(job(suspended.status))
    assert resumed.status.attempt == 2
    assert implied(resumed.status) == []
