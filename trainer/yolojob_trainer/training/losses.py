"""Accumulates the losses of an epoch on the device, and reads them rarely, because every read waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import copy

import torch

from yolojob_trainer.distributed.world import World

MIN_SCALE = 1.0
"""torch's GradScaler starts with 2^16. Without scaling, fp16 has no better range for gradients than for losses."""
IMAGES = "images"
"""Key of the number of images among the totals."""
READ_INTERVAL_SECONDS = 1.0
"""Minimum time between two reads from the device while steps run."""


class EpochLosses:
    """Sums of this rank's loss items over the epoch so far, weighted by images."""

    def __init__(self, scale: Callable[[], float] | None = None) -> None:
        """
        Args:
            scale: returns the factor of the loss scaling of fp16. Microbatches with a loss that is not finite are then
                left out, as their gradients are; it is a divergence when the factor, which each of them halves, has
                fallen below MIN_SCALE. None without loss scaling.
        """
        self._scale = scale
        self._sums: dict[str, torch.Tensor] = {}
        self._images = 0
        self._left_out: torch.Tensor | int = 0
        """Images of the microbatches that were left out."""
        self._read_at = 0.0
        self._value: float | None = None

    def copy(self) -> EpochLosses:
        """Return a copy that later additions do not change; it reads nothing from the device."""
        result = copy(self)
        result._sums = dict(self._sums)  # noqa: SLF001 - of this class
        return result

    def reset(self) -> None:
        self._sums, self._images, self._left_out = {}, 0, 0

    def add(self, items: dict[str, torch.Tensor], images: int) -> None:
        """Add the mean loss items of a microbatch with this number of images."""
        weighted = {name: value.detach() * images for name, value in items.items()}
        if self._scale and weighted:
            # All on the device: reading the values would wait for it.
            finite = torch.isfinite(torch.stack([value.float() for value in weighted.values()])).all()
            weighted = {name: torch.where(finite, value, 0.0) for name, value in weighted.items()}
            self._left_out = self._left_out + torch.where(finite, 0, images)
        for name, value in weighted.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._images += images

    def totals(self, world: World) -> dict[str, float]:
        """Return the sum of each item over the images of all ranks, and as IMAGES their number. Collective."""
        own = {name: float(value) for name, value in self._sums.items()}
        sums = world.sum([*own.values(), float(self._images - int(self._left_out))])
        return dict(zip([*own, IMAGES], sums, strict=True))

    def restore(self, totals: dict[str, float], world: World) -> None:
        """Continue from the totals of an epoch's first steps. Rank 0 takes them; the others begin at zero."""
        own = {name: value if world.is_main else 0.0 for name, value in totals.items()}
        self._images, self._left_out = int(own.pop(IMAGES, 0)), 0
        self._sums = {name: torch.tensor(value) for name, value in own.items()}

    def mean(self, world: World) -> dict[str, float]:
        """Return the mean of each item over the images of all ranks. All ranks must call it."""
        totals = self.totals(world)
        images = totals.pop(IMAGES) or math.nan
        return {name: total / images for name, total in totals.items()}

    def read(self) -> None:
        """Read the sum of this rank's mean loss items from the device."""
        self._read_at = time.monotonic()
        if self._scale and self._scale() < MIN_SCALE:
            self._value = math.nan
        elif images := self._images - int(self._left_out):
            self._value = float(sum(self._sums.values(), torch.zeros(()))) / images

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
