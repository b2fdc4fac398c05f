"""A piece of the training's time line, as the phase clock measures it."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.time_parts import TimePart


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of the time line: a step, or the time between two steps."""

    epoch: int
    step: int
    """Epoch and step that the span belongs to, or that follow it, counted from 0."""
    images: int
    """Images of the whole job in the step; 0 between steps."""
    start: float
    """Seconds since 1970."""
    parts: list[tuple[TimePart, float]]
    """(phase, seconds), in order and without a gap."""
    reduction: float | None = None
    """Seconds from the start of the first bucket's reduction to the end of the last one's, overlapped or not."""

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
