"""Where the time of a step goes: consecutive marks that leave no gap, on the device's own clock.

On a CPU a mark reads `perf_counter`. On a GPU it records a CUDA event, which costs microseconds and never waits; the events
are read some steps later, when they have passed. So the phases of a GPU are those of the GPU's time line: "data_wait" is
the time in which it had nothing to do because the next batch was not there.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from yolojob.status import Timing

Mark = float | torch.cuda.Event


class Phase(enum.StrEnum):
    """Parts of a step, in order."""

    DATA_WAIT = "data_wait"
    H2D = "h2d"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    ALL_REDUCE = "all_reduce"
    """Exposed part of the gradients' reduction: from the last gradient to the end of the backward pass."""
    OPTIMIZER = "optimizer"
    EMA = "ema"
    UNACCOUNTED = "unaccounted"
    """What the loop does between the others: agreement, counters, callbacks."""


class PhaseClock:
    """Attributes the time between two marks to a phase."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Mark = 0.0
        self._step: list[tuple[Phase, Mark, Mark]] = []
        self._queue: deque[list[tuple[Phase, Mark, Mark]]] = deque()

    def now(self) -> Mark:
        """This moment of the device's time line."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        """Begin, or begin again after something that has a clock of its own; the time since the last mark is nobody's."""
        self._last = self.now()

    def mark(self, phase: Phase, at: Mark | None = None) -> None:
        """The time since the last mark, until now or until `at`, was this phase."""
        at = self.now() if at is None else at
        self._step.append((phase, self._last, at))
        self._last = at

    def end_step(self) -> None:
        self.mark(Phase.UNACCOUNTED)
        self._queue.append(self._step)
        self._step = []

    def completed(self, wait: bool = False) -> list[dict[Phase, float]]:
        """Seconds by phase for each step whose figures are known by now; `wait` for all of them."""
        steps = []
        while self._queue:
            end = self._queue[0][-1][2]
            if isinstance(end, torch.cuda.Event):
                if wait:
                    end.synchronize()
                elif not end.query():  # type: ignore[no-untyped-call]
                    break
            seconds: dict[Phase, float] = {}
            for phase, start, stop in self._queue.popleft():
                seconds[phase] = seconds.get(phase, 0.0) + _between(start, stop)
            steps.append(seconds)
        return steps


def _between(start: Mark, stop: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(stop, torch.cuda.Event)
        return float(start.elapsed_time(stop)) / 1000
    assert isinstance(stop, float)
    return max(stop - start, 0.0)


@dataclass
class Clocks:
    """Seconds of the whole run so far. They are saved with the state, so a restart does not begin at zero."""

    staging: float = 0.0
    startup: float = 0.0
    training: dict[str, float] = field(default_factory=dict)
    validation: float = 0.0
    checkpoint: float = 0.0

    def add_step(self, seconds: dict[Phase, float]) -> None:
        for phase, value in seconds.items():
            self.training[phase.value] = self.training.get(phase.value, 0.0) + value

    def timing(self) -> Timing:
        return Timing(
            staging_seconds=round(self.staging, 3),
            startup_seconds=round(self.startup, 3),
            training_seconds={phase: round(value, 3) for phase, value in self.training.items()},
            validation_seconds=round(self.validation, 3),
            checkpoint_seconds=round(self.checkpoint, 3),
        )
