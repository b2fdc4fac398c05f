"""Defines the parts of a job's wall-clock time: their order, groups, labels and colours."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping


class TimeGroup(enum.StrEnum):
    """The phase of a job's life to which a part belongs."""

    WAITING = "waiting"
    """Before a pod runs."""
    START = "start"
    """From a pod's start to its first training step."""
    STEP = "step"
    """Training steps and the training loop between them."""
    EVALUATION = "evaluation"
    """Between training steps: validation and checkpoints."""
    INTERRUPTION = "interruption"
    """Time lost by failures, restarts and suspensions."""


class TimePart(enum.StrEnum):
    """A part of the wall-clock time. The members are in the order in which the parts happen.

    The value is the part's name in `status.timing`, in traces, and as the label of a metric.
    """

    group: TimeGroup
    colour: str
    """`#rrggbb`, readable on white and on black."""

    def __new__(cls, value: str, group: TimeGroup, colour: str) -> TimePart:
        member = str.__new__(cls, value)
        member._value_ = value
        member.group = group
        member.colour = colour
        return member

    QUEUED = "queued", TimeGroup.WAITING, "#8c959f"
    SCHEDULING = "scheduling", TimeGroup.WAITING, "#a8b1ba"
    IMAGE_PULL = "image_pull", TimeGroup.WAITING, "#6e7781"
    RENDEZVOUS = "rendezvous", TimeGroup.START, "#b59aa8"
    STAGING = "staging", TimeGroup.START, "#9a6700"
    STARTUP = "startup", TimeGroup.START, "#bf8700"
    DATA_WAIT = "data_wait", TimeGroup.STEP, "#d4a72c"
    H2D = "h2d", TimeGroup.STEP, "#c9b458"
    FORWARD = "forward", TimeGroup.STEP, "#1a7f37"
    LOSS = "loss", TimeGroup.STEP, "#4ac26b"
    BACKWARD = "backward", TimeGroup.STEP, "#0969da"
    ALL_REDUCE = "all_reduce", TimeGroup.STEP, "#8250df"
    """The exposed part of gradient reduction: from the last gradient to the end of the backward pass."""
    OPTIMIZER = "optimizer", TimeGroup.STEP, "#54aeff"
    EMA = "ema", TimeGroup.STEP, "#7fb8d8"
    OTHER = "other", TimeGroup.STEP, "#d98c7a"
    """The rest of the training loop: agreement between ranks, counters, callbacks."""
    VALIDATION = "validation", TimeGroup.EVALUATION, "#bf3989"
    CHECKPOINT = "checkpoint", TimeGroup.EVALUATION, "#cf222e"
    LOST = "lost", TimeGroup.INTERRUPTION, "#a8324a"
    SHUTDOWN = "shutdown", TimeGroup.INTERRUPTION, "#9da7b3"
    RESTART = "restart", TimeGroup.INTERRUPTION, "#fa4549"
    SUSPENDED = "suspended", TimeGroup.INTERRUPTION, "#7d8590"
    UNACCOUNTED = "unaccounted", TimeGroup.INTERRUPTION, "#e07b39"
    """Running time that no trainer has reported."""

    @property
    def label(self) -> str:
        """The name for people: "image pull"."""
        return self.value.replace("_", " ")


def in_group(*groups: TimeGroup) -> tuple[TimePart, ...]:
    """The parts of these groups, in order."""
    return tuple(part for part in TimePart if part.group in groups)


STEP_PARTS = in_group(TimeGroup.STEP)
NETWORK_PARTS = (TimePart.FORWARD, TimePart.LOSS, TimePart.BACKWARD)
"""The model's part of a step."""
TRAINER_PARTS = in_group(TimeGroup.STEP, TimeGroup.EVALUATION)
"""The parts that a trainer's phase clock measures."""
REPORTED_PARTS = in_group(TimeGroup.START, TimeGroup.STEP, TimeGroup.EVALUATION)
"""The parts that a trainer reports."""


def in_order(parts: Iterable[TimePart]) -> list[TimePart]:
    """Each part once, in the order in which they happen."""
    present = set(parts)
    return [part for part in TimePart if part in present]


def known_part(name: str) -> TimePart:
    """The part with this name; OTHER for a name that this version does not know."""
    return next((part for part in TimePart if part.value == name), TimePart.OTHER)


def sum_trainer_parts(seconds: Mapping[str, float]) -> dict[TimePart, float]:
    """Seconds that a trainer reported by name, summed by part. What this version does not know of trainers is OTHER."""
    parts: dict[TimePart, float] = {}
    for name, value in seconds.items():
        part = known_part(name)
        part = part if part in REPORTED_PARTS else TimePart.OTHER
        parts[part] = parts.get(part, 0.0) + float(value)
    return parts
