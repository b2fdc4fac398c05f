"""Accounts for the running time of a whole run, over all attempts."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolojob.api.status import Timing
from yolojob.api.time_parts import TimePart
from yolojob_trainer.training.span import Span


@dataclass(frozen=True, kw_only=True)
class StartupTimes:
    """Times of a process before it builds its model."""

    started: float
    """When the worker's first process started, in seconds since 1970."""
    rendezvous: float = 0.0
    """Seconds of waiting for the other workers."""
    staging: float = 0.0
    """Seconds for fetching dataset and weights."""
    cached_staging: float = 0.0
    """Seconds for the same when both are on the node already; measured by a bench."""
    staged_bytes: int | None = None
    """Size of the dataset on this node in bytes; counted by a bench."""


@dataclass
class TimeAccount:
    """Seconds of the whole run so far.

    A checkpoint holds these fields, so their names must not change, and a restart continues the account.
    """

    rendezvous: float = 0.0
    staging: float = 0.0
    startup: float = 0.0
    training: dict[str, float] = field(default_factory=dict)
    """By phase, without validation and checkpoints."""
    validation: float = 0.0
    checkpoint: float = 0.0
    reduction: float = 0.0
    """Total time of gradient reduction, a part of which is hidden behind the backward pass."""

    def add(self, span: Span) -> None:
        for phase, value in span.parts:
            if phase is TimePart.VALIDATION:
                self.validation += value
            elif phase is TimePart.CHECKPOINT:
                self.checkpoint += value
            else:
                self.training[phase.value] = self.training.get(phase.value, 0.0) + value
        self.reduction += span.reduction or 0.0

    def add_startup(self, times: StartupTimes, now: float) -> float:
        """Add the time before the first step.

        Args:
            times: the times of this process.
            now: seconds since 1970.

        Returns:
            Seconds since the start of the process that were neither rendezvous nor staging.
        """
        startup = max(now - times.started - times.rendezvous - times.staging, 0.0)
        self.rendezvous += times.rendezvous
        self.staging += times.staging
        self.startup += startup
        return startup

    def timing(self) -> Timing:
        """Return the account in the form of the report."""
        return Timing(
            rendezvous_seconds=round(self.rendezvous, 3),
            staging_seconds=round(self.staging, 3),
            startup_seconds=round(self.startup, 3),
            training_seconds={phase: round(value, 3) for phase, value in self.training.items()},
            validation_seconds=round(self.validation, 3),
            checkpoint_seconds=round(self.checkpoint, 3),
            all_reduce_with_overlap_seconds=round(self.reduction, 3) if self.reduction else None,
        )
