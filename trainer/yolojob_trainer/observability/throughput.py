"""Measures the throughput over a sliding window."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 20.0
"""Training time over which the throughput is averaged."""


class Throughput:
    """Images per second over a sliding window of training time, without validation and checkpoints."""

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        self.window = window
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._images = 0

    def add(self, seconds: float, images: int) -> None:
        """Add a step.

        Args:
            seconds: duration of the step.
            images: number of images that the step has trained.

        Raises:
            ValueError: a value is negative.
        """
        if seconds < 0 or images < 0:
            raise ValueError(f"a step cannot have {seconds} seconds and {images} images: both must be at least 0")
        self._steps.append((seconds, images))
        self._seconds += seconds
        self._images += images
        while len(self._steps) > 1 and self._seconds - self._steps[0][0] >= self.window:
            old_seconds, old_images = self._steps.popleft()
            self._seconds -= old_seconds
            self._images -= old_images

    @property
    def rate(self) -> float | None:
        """Images per second; None before the first step."""
        return self._images / self._seconds if self._seconds > 0 else None
