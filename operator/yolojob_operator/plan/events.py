"""Events of a job: those that several rules post, and those that a previous leader may not have posted. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, YoloTrainingJobStatus
from yolojob_operator.kube.types import EventDraft
from yolojob_operator.plan.conditions import find

MAX_AGE = timedelta(minutes=10)
"""Older events are not posted again: a lease changes its holder within seconds."""
_NO_RESTARTS = (Reason.SUSPENDED, Reason.SCALED_DOWN, Reason.SCALED_UP, Reason.SPEC_CHANGED, Reason.SUCCEEDED)
"""Reasons of ended attempts that are no restarts."""


def attempt_occasion(attempt: int) -> str:
    """The occasion of events of an attempt."""
    return f"attempt {attempt}"


def generation_occasion(generation: int) -> str:
    """The occasion of events about an edited specification."""
    return f"generation {generation}"


def restarting(attempt: int, reason: str, message: str) -> EventDraft:
    """The event that an attempt has ended and another follows."""
    text = f"attempt {attempt} ended: {reason}: {message}"
    return EventDraft(type="Warning", reason=Reason.RESTARTING, message=text, occasion=attempt_occasion(attempt))


def failed(attempt: int, reason: str, message: str) -> EventDraft:
    """The event that the job has failed."""
    text = f"{reason}: {message}"
    return EventDraft(type="Warning", reason=Reason.FAILED, message=text, occasion=attempt_occasion(attempt))


def succeeded(status: YoloTrainingJobStatus) -> EventDraft:
    """The event that the training is complete."""
    text = f"the training is complete{f': {status.result.weights}' if status.result else ''}"
    occasion = attempt_occasion(status.attempt)
    return EventDraft(type="Normal", reason=Reason.SUCCEEDED, message=text, occasion=occasion)


def past_events(status: YoloTrainingJobStatus, now: datetime) -> Iterator[EventDraft]:
    """The events of the last minutes that the status implies.

    An operator writes the status first and posts events afterwards. One that is killed in between posts none. An event
    that exists is not posted twice, because its reason and its occasion determine its name.
    """
    for record in status.history:
        if _is_restart(record, status) and record.end_time and now - record.end_time < MAX_AGE:
            yield restarting(record.attempt, record.reason or "", record.message or "")
    if status.completion_time is None or now - status.completion_time >= MAX_AGE:
        return
    condition = find(status, ConditionType.FAILED)
    if condition is not None and condition.status == "True":
        yield failed(status.attempt, condition.reason, condition.message)
    else:
        yield succeeded(status)


def _is_restart(record: Attempt, status: YoloTrainingJobStatus) -> bool:
    return record.attempt < status.attempt and record.reason not in _NO_RESTARTS
