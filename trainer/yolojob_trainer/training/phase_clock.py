"""Measures the phases of the training loop by consecutive marks without gaps, on the device's own clock.

On a CPU a mark reads `perf_counter`. On a GPU it records a CUDA event, which costs microseconds and never waits; the
events are read some steps later, when the GPU has passed them. So the phases on a GPU are those of the GPU's time line:
"data_wait" is the time in which it was idle because the next batch had not arrived.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch

from yolojob.api.time_parts import TimePart
from yolojob_trainer.training.span import Span

Mark = float | torch.cuda.Event


@dataclass
class _PendingSpan:
    """A span whose marks the GPU may not have reached yet."""

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
        self._next_start = 0.0
        """Start of the next completed span, in seconds since 1970."""
        self._pending = _PendingSpan()
        self._queue: deque[_PendingSpan] = deque()

    def now(self) -> Mark:
        """Return the current moment of the device's time line."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        """Start the time line. Only this call waits for the device, to relate its time line to wall-clock time."""
        self._last = self.now()
        if isinstance(self._last, torch.cuda.Event):
            self._last.synchronize()
        self._next_start = time.time()

    def mark(self, phase: TimePart, at: Mark | None = None) -> None:
        """Attribute the time since the last mark, until now or until `at`, to a phase."""
        at = self.now() if at is None else at
        self._pending.marks.append((phase, self._last, at))
        self._last = at

    def reduced(self, begin: Mark, end: Mark) -> None:
        """Record that the step's gradients were being reduced from `begin` to `end`."""
        self._pending.reduction = (begin, end)

    def end(self, phase: TimePart, *, epoch: int, step: int, images: int = 0) -> None:
        """Attribute the time since the last mark to a phase, and complete the span with it."""
        self.mark(phase)
        self._pending.epoch, self._pending.step, self._pending.images = epoch, step, images
        self._queue.append(self._pending)
        self._pending = _PendingSpan()

    def completed(self, wait: bool = False) -> list[Span]:
        """Return the ended spans that the device has passed; with `wait`, wait for all ended spans."""
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
                start=self._next_start,
                parts=[(phase, _seconds_between(start, stop)) for phase, start, stop in pending.marks],
                reduction=_seconds_between(*pending.reduction) if pending.reduction else None,
            )
            self._next_start += span.duration
            spans.append(span)
        return spans


def _seconds_between(start: Mark, stop: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(stop, torch.cuda.Event)
        return max(float(start.elapsed_time(stop)) / 1000, 0.0)
    assert isinstance(stop, float)
    return max(stop - start, 0.0)
