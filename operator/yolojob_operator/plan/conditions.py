"""Conditions of a job's status: find one, ask for it, set it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from yolojob.api.status import Condition, ConditionType, YoloTrainingJobStatus

MOST_REASON, MOST_MESSAGE = 1024, 32768
"""Characters of a metav1.Condition; the words in it may be a trainer's, and of any length."""


def find(status: YoloTrainingJobStatus, kind: ConditionType) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)


def is_set(status: YoloTrainingJobStatus, kind: ConditionType, value: str) -> bool:
    condition = find(status, kind)
    return condition is not None and condition.status == value


def set_condition(
    status: YoloTrainingJobStatus,
    kind: ConditionType,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> bool:
    """Set a condition; True where its status or reason is new."""
    reason, message = reason[:MOST_REASON], message[:MOST_MESSAGE]
    old = find(status, kind)
    same = old is not None and old.status == value
    new = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message,
        last_transition_time=old.last_transition_time if old is not None and same else now,
        observed_generation=generation,
    )
    status.conditions = [*(c for c in status.conditions if c.type != kind), new]
    status.conditions.sort(key=lambda c: list(ConditionType).index(c.type))
    return old is None or not same or old.reason != reason


def is_finished(status: YoloTrainingJobStatus) -> bool:
    return is_set(status, ConditionType.SUCCEEDED, "True") or is_set(status, ConditionType.FAILED, "True")
