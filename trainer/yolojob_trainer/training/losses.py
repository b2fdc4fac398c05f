"""Accumulates the losses of an epoch on the device, and reads them rarely, because every read waits for the device."""

from __future__ import annotations

import math
import time

import torch

from yolojob_trainer.distributed.world import World

READ_INTERVAL_SECONDS = 1.0
"""Minimum time between two reads from the device while steps run."""


class EpochLosses:
    """Sums of this rank's loss items over the epoch so far, weighted by images."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._images = 0
        self._read_at = 0.0
        self._value: float | None = None

    def reset(self) -> None:
        self._sums, self._images = {}, 0

    def add(self, items: dict[str, torch.Tensor], images: int) -> None:
        """Add the mean loss items of a microbatch with this number of images."""
        for name, value in items.items():
            weighted = value.detach() * images
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._images += images

    def mean(self, world: World) -> dict[str, float]:
        """Return the mean of each item over the images of all ranks. All ranks must call it."""
        sums = world.sum([*(float(v) for v in self._sums.values()), float(self._images)])
        return {name: total / max(sums[-1], 1) for name, total in zip(self._sums, sums, strict=False)}

    def read(self) -> None:
        """Read the sum of this rank's mean loss items from the device."""
        self._read_at = time.monotonic()
        if self._images:
            self._value = float(sum(self._sums.values(), torch.zeros(()))) / self._images

    @property
    def value(self) -> float | None:
        """Sum of the loss items, mean over this rank's epoch; at most READ_INTERVAL_SECONDS old, None if not finite."""
        if time.monotonic() - self._read_at >= READ_INTERVAL_SECONDS:
            self.read()
        return None if self._value is None or self.diverged else round(self._value, 5)

    @property
    def diverged(self) -> bool:
        """Whether the last read returned a loss that is not finite."""
        return self._value is not None and not math.isfinite(self._value)
