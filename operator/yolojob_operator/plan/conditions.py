"""Finds, tests and sets the conditions of a job's status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from yolojob.api.status import Condition, ConditionType, YoloTrainingJobStatus

MAX_REASON_CHARS, MAX_MESSAGE_CHARS = 1024, 32768
"""Limits of a metav1.Condition. The message may come from a trainer and have any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionUpdate:
    """The new state of a condition."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    generation: int
    """metadata.generation of the job that the condition describes."""


def find(status: YoloTrainingJobStatus, kind: ConditionType) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)


def is_set(status: YoloTrainingJobStatus, kind: ConditionType, value: str) -> bool:
    condition = find(status, kind)
    return condition is not None and condition.status == value


def set_condition(status: YoloTrainingJobStatus, update: ConditionUpdate, now: datetime) -> bool:
    """Set a condition. Returns whether its status or reason has changed."""
    old = find(status, update.type)
    same_status = old is not None and old.status == update.status
    new = Condition(
        type=update.type,
        status=update.status,
        reason=update.reason[:MAX_REASON_CHARS],
        message=update.message[:MAX_MESSAGE_CHARS],
        last_transition_time=old.last_transition_time if old is not None and same_status else now,
        observed_generation=update.generation,
    )
    status.conditions = [*(c for c in status.conditions if c.type != update.type), new]
    status.conditions.sort(key=lambda c: list(ConditionType).index(c.type))
    return old is None or not same_status or old.reason != new.reason


def is_finished(status: YoloTrainingJobStatus) -> bool:
    return is_set(status, ConditionType.SUCCEEDED, "True") or is_set(status, ConditionType.FAILED, "True")
