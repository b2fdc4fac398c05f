"""Where the time goes: consecutive marks that leave no gap, on the device's own clock.

On a CPU a mark reads `perf_counter`. On a GPU it records a CUDA event, which costs microseconds and never waits; the events
are read some steps later, when they have passed. So the phases of a GPU are those of the GPU's time line: "data_wait" is
the time in which it had nothing to do because the next batch was not there.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch

from yolojob.api.status import Timing
from yolojob.api.time_parts import TimePart

Mark = float | torch.cuda.Event


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of the time line: a step, or what lay between two steps."""

    epoch: int
    step: int
    """Epoch and step that it belongs to, or that comes next, counted from 0."""
    images: int
    """Images of the whole job in the step; none between steps."""
    start: float
    """Seconds since 1970."""
    parts: list[tuple[TimePart, float]]
    """(phase, seconds), in order and without a gap."""
    reduction: float | None = None
    """Seconds from the first bucket's reduction to the end of the last one's, hidden behind the backward pass or not."""

    @property
    def seconds(self) -> dict[TimePart, float]:
        """Seconds by phase."""
        out: dict[TimePart, float] = {}
        for phase, value in self.parts:
            out[phase] = out.get(phase, 0.0) + value
        return out

    @property
    def duration(self) -> float:
        return sum(value for _, value in self.parts)


@dataclass
class _Pending:
    """A span whose marks may lie in the future of a GPU."""

    epoch: int = 0
    step: int = 0
    images: int = 0
    marks: list[tuple[TimePart, Mark, Mark]] = field(default_factory=list)
    reduction: tuple[Mark, Mark] | None = None


class PhaseClock:
    """Attributes the time between two marks to a phase."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Mark = 0.0
        self._at = 0.0
        self._pending = _Pending()
        self._queue: deque[_Pending] = deque()

    def now(self) -> Mark:
        """This moment of the device's time line."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        """Begin. The only time that the device is waited for: it ties the time line to the calendar."""
        self._last = self.now()
        if isinstance(self._last, torch.cuda.Event):
            self._last.synchronize()
        self._at = time.time()

    def mark(self, phase: TimePart, at: Mark | None = None) -> None:
        """The time since the last mark, until now or until `at`, was this phase."""
        at = self.now() if at is None else at
        self._pending.marks.append((phase, self._last, at))
        self._last = at

    def reduced(self, begin: Mark, end: Mark) -> None:
        """The step's gradients were being reduced from `begin` to `end`."""
        self._pending.reduction = (begin, end)

    def end(self, phase: TimePart, *, epoch: int, step: int, images: int = 0) -> None:
        """The time since the last mark was this phase, and the last one of its span."""
        self.mark(phase)
        self._pending.epoch, self._pending.step, self._pending.images = epoch, step, images
        self._queue.append(self._pending)
        self._pending = _Pending()

    def completed(self, wait: bool = False) -> list[Span]:
        """The spans whose figures are known by now; `wait` for all of them."""
        spans = []
        while self._queue:
            end = self._queue[0].marks[-1][2]
            if isinstance(end, torch.cuda.Event):
                if wait:
                    end.synchronize()
                elif not end.query():  # type: ignore[no-untyped-call]
                    break
            pending = self._queue.popleft()
            span = Span(
                epoch=pending.epoch,
                step=pending.step,
                images=pending.images,
                start=self._at,
                parts=[(phase, _between(start, stop)) for phase, start, stop in pending.marks],
                reduction=_between(*pending.reduction) if pending.reduction else None,
            )
            self._at += span.duration
            spans.append(span)
        return spans


def _between(start: Mark, stop: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(stop, torch.cuda.Event)
        return max(float(start.elapsed_time(stop)) / 1000, 0.0)
    assert isinstance(stop, float)
    return max(stop - start, 0.0)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a process came to the point where it can build its model."""

    started: float
    """When the worker's first process began, seconds since 1970."""
    rendezvous: float = 0.0
    """Seconds of waiting for the other workers."""
    staging: float = 0.0
    """Seconds for fetching data set and weights."""
    cached_staging: float = 0.0
    """The same where they are on the node; measured by a bench."""
    staged_bytes: int | None = None
    """Of the data set on this node; counted by a bench."""


@dataclass
class Clocks:
    """Seconds of the whole run so far. They are saved with the state, so a restart does not begin at zero."""

    rendezvous: float = 0.0
    staging: float = 0.0
    startup: float = 0.0
    training: dict[str, float] = field(default_factory=dict)
    """By phase, without validation and checkpoints."""
    validation: float = 0.0
    checkpoint: float = 0.0
    reduction: float = 0.0
    """Reduction of gradients in all, a part of which is hidden behind the backward pass."""

    def add(self, span: Span) -> None:
        for phase, value in span.parts:
            if phase is TimePart.VALIDATION:
                self.validation += value
            elif phase is TimePart.CHECKPOINT:
                self.checkpoint += value
            else:
                self.training[phase.value] = self.training.get(phase.value, 0.0) + value
        self.reduction += span.reduction or 0.0

    def begin(self, beginning: Beginning, now: float) -> float:
        """Add what came before the first step; the seconds of it that were neither rendezvous nor staging."""
        startup = max(now - beginning.started - beginning.rendezvous - beginning.staging, 0.0)
        self.rendezvous += beginning.rendezvous
        self.staging += beginning.staging
        self.startup += startup
        return startup

    def timing(self) -> Timing:
        return Timing(
            rendezvous_seconds=round(self.rendezvous, 3),
            staging_seconds=round(self.staging, 3),
            startup_seconds=round(self.startup, 3),
            training_seconds={phase: round(value, 3) for phase, value in self.training.items()},
            validation_seconds=round(self.validation, 3),
            checkpoint_seconds=round(self.checkpoint, 3),
            all_reduce_with_overlap_seconds=round(self.reduction, 3) if self.reduction else None,
        )
