"""The losses of an epoch: added up on the device, and looked at rarely, because every look waits for the device."""

from __future__ import annotations

import math
import time

import torch

from yolojob_trainer.distributed.world import World

LOOK_EVERY = 1.0
"""Seconds between two looks."""


class EpochLosses:
    """Sums of this rank's loss items over the epoch so far, weighted by images."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._images = 0
        self._looked_at = 0.0
        self._value: float | None = None

    def reset(self) -> None:
        self._sums, self._images = {}, 0

    def add(self, items: dict[str, torch.Tensor], images: int) -> None:
        for name, value in items.items():
            weighted = value.detach() * images
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._images += images

    def mean(self, world: World) -> dict[str, float]:
        """Mean of each item over the images of all ranks. All ranks must call it."""
        sums = world.sum([*(float(v) for v in self._sums.values()), float(self._images)])
        return {name: total / max(sums[-1], 1) for name, total in zip(self._sums, sums, strict=False)}

    def look(self) -> None:
        """Read the sum of the means, of this rank."""
        self._looked_at = time.monotonic()
        if self._images:
            self._value = float(sum(self._sums.values(), torch.zeros(()))) / self._images

    @property
    def value(self) -> float | None:
        """Sum of the loss items, mean of this rank's epoch; LOOK_EVERY seconds old at most, none if not finite."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY:
            self.look()
        return None if self._value is None or self.diverged else round(self._value, 5)

    @property
    def diverged(self) -> bool:
        """Whether the last look found a loss that is not finite."""
        return self._value is not None and not math.isfinite(self._value)
