"""Derives from a status the events that an operator before this one may not have posted. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from yolojob.api.reasons import Reason
from yolojob.api.status import Attempt, ConditionType, YoloTrainingJobStatus
from yolojob_operator.plan.builder import EventDraft, attempt_occasion
from yolojob_operator.plan.conditions import find

MEMORY = timedelta(minutes=10)
"""Older events are not posted again: Kubernetes keeps events for an hour, and a lease changes within seconds."""
_TOLD_OTHERWISE = (Reason.SUSPENDED, Reason.SCALED_DOWN, Reason.SCALED_UP, Reason.SPEC_CHANGED, Reason.SUCCEEDED)
"""Ends of attempts that are no restarts."""


def restarting(attempt: int, reason: str, message: str) -> EventDraft:
    """The event that an attempt has ended and another follows."""
    text = f"attempt {attempt} ended: {reason}: {message}"
    return EventDraft(type="Warning", reason=Reason.RESTARTING, message=text, occasion=attempt_occasion(attempt))


def past_events(status: YoloTrainingJobStatus, now: datetime) -> Iterator[EventDraft]:
    """The events of the last minutes that the status implies.

    An operator writes the status first and posts events afterwards, so one that is killed in between posts none. An
    event that exists already is not posted twice: its name is made from its reason and occasion.
    """
    for record in status.history:
        if _is_restart(record, status) and record.end_time and now - record.end_time < MEMORY:
            yield restarting(record.attempt, record.reason or "", record.message or "")
    if status.completion_time is None or now - status.completion_time >= MEMORY:
        return
    failed = find(status, ConditionType.FAILED)
    occasion = attempt_occasion(status.attempt)
    if failed is not None and failed.status == "True":
        message = f"{failed.reason}: {failed.message}"
        yield EventDraft(type="Warning", reason=Reason.FAILED, message=message, occasion=occasion)
    else:
        yield succeeded(status)


def succeeded(status: YoloTrainingJobStatus) -> EventDraft:
    """The event that the training is complete."""
    weights = f": {status.result.weights}" if status.result else ""
    message = f"the training is complete{weights}"
    return EventDraft(
        type="Normal", reason=Reason.SUCCEEDED, message=message, occasion=attempt_occasion(status.attempt)
    )


def _is_restart(record: Attempt, status: YoloTrainingJobStatus) -> bool:
    return record.attempt < status.attempt and record.reason not in _TOLD_OTHERWISE
